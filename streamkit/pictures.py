"""Rows -> pictures: decode, cut out, resize and mirror into a batch's slots, at the smallest scale that suffices.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> loader = streamkit.Loader(out, split="val", image_size=(16, 24), crop="random", dtype="uint8")
>>> images, _ = loader.batch(0, 0)
>>> images.shape, bool((images == loader.batch(0, 0)[0]).all()), bool((images == loader.batch(1, 0)[0]).all())
((32, 16, 24, 3), True, False)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.augment import center_boxes, flips, random_boxes
from streamkit.buffers import Buffers
from streamkit.codecs import image
from streamkit.codecs.plain import decode_into, decode_part
from streamkit.codecs.resize import EXACT, cut_out, decode_at_least, mirror, recolor, resize
from streamkit.codecs.turbo import Files, How
from streamkit.manifest import Manifest
from streamkit.payloads import Payloads
from streamkit.schema import Field
from streamkit.view import View

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class Slots(NamedTuple):
    """Where pictures of one size lie: their pixels, and their values in the dtype delivered (uint8: the same array)."""

    pixels: Pixels
    values: npt.NDArray[Any]

    def part(self, where: slice) -> Slots:
        """Some of them."""
        pixels = self.pixels[where]
        return Slots(pixels, pixels if self.values is self.pixels else self.values[where])

    def converted(self) -> npt.NDArray[Any]:
        """The values, made of the pixels."""
        if self.values is not self.pixels:
            np.copyto(self.values, self.pixels)
        return self.values


class Pictures:
    """Makes the pictures of rows as a view wants them; `seed` is that of crops and flips."""

    def __init__(self, payloads: Payloads, view: View, buffers: Buffers, seed: int) -> None:
        self.payloads, self.view, self.buffers, self.seed = payloads, view, buffers, seed
        self.columns = payloads.reader.columns
        self.max_pixels = largest(payloads.reader.manifest, view.max_pixels)
        # What was decoded whole when it was converted, and has the same crc32c since, need not be decoded whole again.
        self.known_whole = payloads.reader.manifest.options.get("check") == "decode"

    def batch(self, field: Field, rows: Ints, epoch: int) -> npt.NDArray[Any]:
        """The pictures of `rows`, all of one size: (n, height, width, channels) of the view's dtype."""
        slots = self.slots(field, len(rows))
        self.fill(field, rows, epoch, slots)
        return slots.values

    def slots(self, field: Field, n: int) -> Slots:
        """Where `n` pictures of one size are to lie."""
        height, width = self.view.size(field)
        pixels = self.buffers.empty((n, int(height or 0), int(width or 0), self.view.n_channels(field)), np.uint8)
        return Slots(pixels, self._values(field, pixels))

    def fill(self, field: Field, rows: Ints, epoch: int, slots: Slots) -> None:
        """Put the pictures of `rows` into as many slots."""
        out = slots.pixels
        boxes = self._boxes(field, rows, epoch)
        mirrored = flips((self.seed, epoch), rows) if self.view.flip else np.zeros(len(rows), bool)
        if field.is_encoded_image:
            self._decode_into(field, rows, out, boxes, mirrored)
        else:
            if field.shape == out.shape[1:] and boxes is None:
                self.payloads.raw_into(field, rows, out)
            else:
                for i, pixels in enumerate(self._stored(field, rows)):
                    self._fit(field, recolor(pixels, out.shape[3]), out[i], None if boxes is None else boxes[i])
            for i in np.flatnonzero(mirrored).tolist():
                mirror(out[i])
        slots.converted()

    def single(self, field: Field, one: Ints, epoch: int) -> npt.NDArray[Any]:
        """The picture of one row at the view's size, or at its own: (height, width, channels)."""
        if self.view.image_size is not None or field.fixed:
            return self.batch(field, one, epoch)[0]
        if field.is_encoded_image:
            pixels = self._decode(field, int(one[0]), self.payloads.stored(field, one)[0]).copy()
        else:
            pixels = recolor(self._stored(field, one)[0], self.view.n_channels(field)).copy()
        if self.view.flip and flips((self.seed, epoch), one)[0]:
            mirror(pixels)
        return Slots(pixels, self._values(field, pixels)).converted()

    def _values(self, field: Field, pixels: Pixels) -> npt.NDArray[Any]:
        """Room for the same in the view's dtype: `pixels` itself, where it has that."""
        same = field.kind == "mask" or self.view.dtype == "uint8"
        return pixels if same else self.buffers.empty(pixels.shape, self.view.dtype)

    def _boxes(self, field: Field, rows: Ints, epoch: int) -> npt.NDArray[np.float64] | None:
        """The part of each picture to cut out, as shares of its height and width; None for the whole."""
        if not self.view.crops or self.view.image_size is None:
            return None
        sides = [
            np.asarray(self.columns[s][rows], np.int64) if s in self.columns else np.full(len(rows), d)
            for s, d in zip(("height", "width"), field.shape[:2], strict=True)
        ]
        height, width = self.view.image_size
        if self.view.crop == "random":
            boxes = random_boxes((self.seed, epoch), rows, sides[0], sides[1])
        else:
            boxes = center_boxes(sides[0], sides[1], width / height)
        return boxes / np.stack([*sides, *sides], axis=1)

    def _stored(self, field: Field, rows: Ints) -> Sequence[Pixels]:
        """Pictures that are stored as pixels, each at its own size and with its own channels."""
        if field.chunk_rows is None and not (field.fixed and field.encoding == "raw"):
            return self.payloads.decoded(field, rows)
        stored = np.empty((len(rows), *(int(d or 0) for d in field.shape)), np.uint8)
        self.payloads.raw_into(field, rows, stored)
        return list(stored)

    def _decode_into(
        self,
        field: Field,
        rows: Ints,
        out: Pixels,
        boxes: npt.NDArray[np.float64] | None,
        mirrored: npt.NDArray[np.bool_],
    ) -> None:
        """Decode encoded pictures and fit each, or its box, into its slot; what can be, is done for many at once."""
        files = Files(*self.payloads.packed(field, rows), self._plain(field, rows))
        interpolation, as_they_are = self._interpolation(field), boxes is None and field.shape[:2] == out.shape[1:3]
        sizes = np.tile(out.shape[1:3], (len(rows), 1)) if boxes is None else out.shape[1:3] / boxes[:, 2:]
        least = np.zeros((len(rows), 2), np.int64) if as_they_are else decode_at_least(sizes, interpolation)
        accurate, bilinear = interpolation in EXACT and not as_they_are, interpolation == "bilinear"
        how = How(accurate, self.known_whole, self.max_pixels, resizing=bilinear)
        together = as_they_are or bilinear
        for i in decode_into(files, least, boxes, mirrored, how, out) if together else range(len(rows)):
            box = None if boxes is None else boxes[i]
            pixels = None if together else decode_part(files, i, least[i], box, how, out.shape[3])
            if pixels is None:
                height, width = least[i].tolist()
                at_least = None if as_they_are else (height, width)
                whole = self._decode(field, int(rows[i]), files.data(i), at_least)
                pixels = whole if box is None else cut_out(whole, box.tolist())
            self._fit(field, pixels, out[i], None)
            if mirrored[i]:
                mirror(out[i])

    def _plain(self, field: Field, rows: Ints) -> npt.NDArray[np.bool_]:
        """Which pictures are not to be turned and have no four channels: JPEGs among them are plain ones."""
        plain = np.full(len(rows), field.kind == "image")
        if "orientation" in self.columns:
            plain &= self.columns["orientation"][rows] == 1
        if "channels" in self.columns:
            plain &= self.columns["channels"][rows] < 4
        return plain

    def _decode(self, field: Field, row: int, data: memoryview, least: tuple[int, int] | None = None) -> Pixels:
        """A picture upright, in the view's channels; where it is to be resized, not smaller than `least`."""
        how = self._interpolation(field)
        is_image = field.kind == "image"  # the index's columns speak of it, not of masks
        turned, channels = (self.columns.get(name) if is_image else None for name in ("orientation", "channels"))
        try:
            return image.decode(
                data,
                channels=self.view.n_channels(field),
                orientation=int(turned[row]) if turned is not None else 1 if is_image else None,
                n_stored=3 if channels is None else int(channels[row]),
                at_least=least if least and any(least) else None,
                accurate=least is not None and how in EXACT,
                max_pixels=self.max_pixels,
                mask=not is_image,
            )
        except image.BadImage as error:
            raise self.payloads.reader.bad_picture(row, error) from None

    def _fit(self, field: Field, pixels: Pixels, slot: Pixels, box: Sequence[float] | None) -> None:
        """Cut the box out, and resize it into the batch's slot."""
        if box is not None:
            pixels = cut_out(pixels, box)
        if pixels.shape == slot.shape:
            slot[:] = pixels
        else:
            resize(pixels, (slot.shape[0], slot.shape[1]), self._interpolation(field), out=slot)

    def _interpolation(self, field: Field) -> str:
        return self.view.interpolation if field.kind == "image" else "nearest"  # between two classes there is no mean


def largest(manifest: Manifest, allowed: int) -> int:
    """Pixels of the largest picture there may be, which sizes the decode buffers: those that the user allows, or fewer
    where the manifest says so."""
    sides = manifest.statistics.get("image", {})
    said = manifest.options.get("max_pixels")
    if isinstance(said, int):
        allowed = min(allowed, said)
    if "width" in sides and "height" in sides:
        allowed = min(allowed, int(sides["width"][1]) * int(sides["height"][1]))
    return allowed
