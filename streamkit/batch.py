"""Rows -> batch: read, decode into the batch's slots, stack. Work is done once a batch wherever it can be.

`View` is what the user asked to see; `BatchMaker` makes it for any rows of a reader. Pure in the rows: the same rows give
the same batch in every thread and process.

>>> _at_least((100, 50), np.array([[0, 0, 0.5, 1.0]]), 0)
(200, 50)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.augment import center_boxes, flips, random_boxes
from streamkit.buffers import Buffers
from streamkit.codecs import array as arrays
from streamkit.codecs import image
from streamkit.codecs.resize import cut_out, recolor, resize
from streamkit.errors import UsageError
from streamkit.manifest import Manifest
from streamkit.reader import MAX_RANGE_NBYTES, Reader
from streamkit.schema import Field
from streamkit.view import View

Ints = npt.NDArray[np.int64]

_MAX_PIXELS = 1 << 30  # whatever a manifest says was allowed when it was made


class BatchMaker:
    """Makes batches of a reader's rows as a view wants them.

    Args:
        reader: has loaded what the view's fields need.
        view: what to deliver.
        batched: False when samples are delivered one by one, so that sizes may differ.
        buffers: where batches lie.
        seed: of crops and flips.
    """

    def __init__(self, reader: Reader, view: View, batched: bool, buffers: Buffers, seed: int = 0) -> None:
        self.reader, self.view, self.batched, self.buffers, self.seed = reader, view, batched, buffers, seed
        schema = reader.manifest.schema
        self.names = view.outputs(schema)
        self.specs = view.specs(schema, batched, reader.manifest.statistics.get("image", {}))
        self.fields = {name: schema[name] for name in self.names if name != "key"}
        self.max_pixels = _max_pixels(reader.manifest)

    def structure(self, batch: dict[str, Any]) -> Any:
        """The batch as the user gets it: an array, a tuple or a dict."""
        return self.view.structure(batch, self.reader.manifest.schema)

    def make(self, rows: Ints, epoch: int = 0) -> dict[str, npt.NDArray[Any]]:
        """The batch of these rows: output name -> array with axis 0 the batch. Random crops and flips hang on the epoch.

        Raises:
            DamagedError: a row's bytes are not what the index says, or do not decode.
        """
        out: dict[str, npt.NDArray[Any]] = {}
        for name in self.names:
            if name == "key":
                out[name] = self.reader.columns["key"][rows]
                continue
            field = self.fields[name]
            if field.is_image:
                out[name] = self._images(field, rows, epoch)
            elif not field.is_payload:
                out[name] = self._column(field, rows)
            elif field.fixed:
                out[name] = self._arrays(field, rows)
            else:
                values, lengths = self._ragged(field, rows)
                out[name] = values
                if f"{name}_length" in self.specs:
                    out[f"{name}_length"] = lengths
        return out

    def make_each(self, rows: Ints, epoch: int = 0) -> list[dict[str, Any]]:
        """The samples of these rows, one dict each, without a batch axis; sizes may differ."""
        samples = []
        for row in rows:
            one = np.array([row])
            sample: dict[str, Any] = {}
            for name in self.names:
                field = self.fields.get(name)
                if field is not None and field.is_payload and not field.is_image and not field.fixed:
                    sample[name] = np.require(self._decoded(field, one)[0], requirements="W")  # the caller's to change
                elif field is not None and field.is_image:
                    sample[name] = self._single_image(field, one, epoch)
                else:
                    sample[name] = self._only(name, one)
            samples.append(sample)
        return samples

    def _only(self, name: str, one: Ints) -> Any:
        if name == "key":
            return self.reader.columns["key"][one[0]]
        field = self.fields[name]
        return (self._arrays(field, one) if field.is_payload else self._column(field, one))[0]

    # Columns

    def _column(self, field: Field, rows: Ints) -> npt.NDArray[Any]:
        values = self.reader.columns[field.name][rows]
        if field.kind != "label":
            return values
        mode = self.view.label_mode or "int"
        if mode == "int":
            return values.astype(np.int32)
        if mode == "binary":
            return values.astype(np.float32)[:, None]
        out = self.buffers.empty((len(values), len(field.class_names or ())), np.float32)
        out[:] = 0
        out[np.arange(len(values)), values] = 1
        return out

    # Arrays

    def _arrays(self, field: Field, rows: Ints) -> npt.NDArray[Any]:
        shape = (len(rows), *(int(d or 0) for d in field.shape))
        out = self.buffers.empty(shape, field.dtype)
        self._raw_into(field, rows, out)
        return out

    def _raw_into(self, field: Field, rows: Ints, out: npt.NDArray[Any]) -> None:
        """Fill `out` (n, ...) with fixed-shape values as they are stored."""
        if field.chunk_rows is not None:
            self.reader.read_chunked(field, rows, out)
        elif field.encoding == "raw":
            nbytes = field.sample_nbytes
            lengths = self.reader.lengths(field.name, rows)
            if len(rows) and (lengths.min() != nbytes or lengths.max() != nbytes):
                bad = int(np.argmax(lengths != nbytes))
                raise self.reader.damaged(int(rows[bad]), f"{lengths[bad]} bytes, expected {nbytes}")
            memory = out.reshape(-1).view(np.uint8)
            self.reader.read(field.name, rows, memory, np.arange(len(rows), dtype=np.int64) * nbytes)
        else:
            for i, values in enumerate(self._decoded(field, rows)):
                out[i] = values

    def _ragged(self, field: Field, rows: Ints) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Values padded with zeros, and the sizes before padding of the axes that vary."""
        values = self._decoded(field, rows)
        varying = [axis for axis, d in enumerate(field.shape) if d is None]
        sizes = np.array([[v.shape[axis] for axis in varying] for v in values], np.int32).reshape(len(values), -1)
        shape = [int(d or 0) for d in field.shape]
        for column, axis in enumerate(varying):
            shape[axis] = int(sizes[:, column].max(initial=0))
        if isinstance(self.view.pad_to, int) and varying and varying[0] == 0:
            if shape[0] > self.view.pad_to:
                longest = int(np.argmax(sizes[:, 0]))
                raise UsageError(
                    f"sample {self.reader.index.key(int(rows[longest]))} has {shape[0]} rows, pad_to is {self.view.pad_to}",
                    hint=f"Pass pad_to={shape[0]} or more.",
                )
            shape[0] = self.view.pad_to
        out = self.buffers.empty((len(values), *shape), field.dtype)
        out[:] = 0
        for slot, value in zip(out, values, strict=True):
            slot[tuple(slice(0, n) for n in value.shape)] = value
        return out, sizes[:, 0] if len(varying) == 1 else sizes

    def _decoded(self, field: Field, rows: Ints) -> list[npt.NDArray[Any]]:
        """Each row's own array, addressed payloads only."""
        shapes = self.reader.columns.get(f"{field.name}.shape")
        out = []
        for row, stored in zip(rows.tolist(), self._stored(field, rows), strict=True):
            data: Any = stored
            shape = field.shape if shapes is None else tuple(shapes[row].tolist())
            try:
                if field.encoding == "zlib":
                    limit = field.sample_nbytes if field.fixed else min(MAX_RANGE_NBYTES, 1032 * len(data) + 64)
                    data = arrays.inflate(data, limit)
                out.append(arrays.from_bytes(data, field.dtype, shape))
            except arrays.BadArray as error:
                raise self.reader.damaged(row, str(error)) from None
        return out

    def _stored(self, field: Field, rows: Ints) -> list[memoryview]:
        """The stored bytes of each row, read into one buffer."""
        lengths = self.reader.lengths(field.name, rows)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        memory = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        self.reader.read(field.name, rows, memory, starts)
        view = memoryview(memory)  # type: ignore[arg-type]
        return [view[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

    # Pictures

    def _images(self, field: Field, rows: Ints, epoch: int) -> npt.NDArray[Any]:
        height, width = self.view.size(field)
        shape = (len(rows), int(height or 0), int(width or 0), self.view.n_channels(field))
        out = self.buffers.empty(shape, np.uint8)
        boxes = self._boxes(field, rows, epoch)
        if not field.is_encoded_image and field.shape == shape[1:] and boxes is None:
            self._raw_into(field, rows, out)
        else:
            for i, pixels in enumerate(self._pixels(field, rows, out, boxes)):
                self._fit(field, pixels, out[i], None if boxes is None else boxes[i])
        if self.view.flip:
            for i in np.flatnonzero(flips((self.seed, epoch), rows)).tolist():
                out[i] = out[i, :, ::-1].copy()
        return self._converted(field, out)

    def _single_image(self, field: Field, one: Ints, epoch: int) -> npt.NDArray[Any]:
        if self.view.image_size is not None or field.fixed:
            return self._images(field, one, epoch)[0]
        pixels = next(iter(self._pixels(field, one, None, None))).copy()
        if self.view.flip and flips((self.seed, epoch), one)[0]:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return self._converted(field, pixels)

    def _converted(self, field: Field, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        if field.kind == "mask" or self.view.dtype == "uint8":
            return pixels
        out = self.buffers.empty(pixels.shape, self.view.dtype)
        np.copyto(out, pixels)
        return out

    def _boxes(self, field: Field, rows: Ints, epoch: int) -> npt.NDArray[np.float64] | None:
        """The part of each picture to cut out, as shares of its height and width; None for the whole."""
        if not self.view.crops or self.view.image_size is None:
            return None
        columns = self.reader.columns
        sides = [
            np.asarray(columns[s][rows], np.int64) if s in columns else np.full(len(rows), d)
            for s, d in zip(("height", "width"), field.shape[:2], strict=True)
        ]
        height, width = self.view.image_size
        if self.view.crop == "random":
            boxes = random_boxes((self.seed, epoch), rows, sides[0], sides[1])
        else:
            boxes = center_boxes(sides[0], sides[1], width / height)
        return boxes / np.stack([*sides, *sides], axis=1)

    def _pixels(
        self, field: Field, rows: Ints, out: npt.NDArray[np.uint8] | None, boxes: npt.NDArray[np.float64] | None
    ) -> Any:
        """Yield each row's picture in the channels wanted, at its own size or scaled down; `out[i]` where it fitted."""
        n_channels = self.view.n_channels(field)
        if not field.is_encoded_image:
            if field.chunk_rows is not None or (field.fixed and field.encoding == "raw"):
                stored: Any = np.empty((len(rows), *(int(d or 0) for d in field.shape)), np.uint8)
                self._raw_into(field, rows, stored)
            else:
                stored = self._decoded(field, rows)
            for pixels in stored:
                yield recolor(pixels, n_channels)
            return
        exact = out is not None and field.shape[:2] == out.shape[1:3] and boxes is None
        scale = out is not None and field.kind == "image" and not exact
        orientations = self.reader.columns.get("orientation") if field.kind == "image" else None
        channels = self.reader.columns.get("channels") if field.kind == "image" else None
        for i, data in enumerate(self._stored(field, rows)):
            row = rows[i]
            try:
                yield image.decode(
                    data,
                    channels=n_channels,
                    orientation=1 if orientations is None and field.kind == "image" else _at(orientations, row),
                    n_stored=3 if channels is None else int(channels[row]),
                    at_least=_at_least(out.shape[1:3], boxes, i) if scale and out is not None else None,
                    out=out[i] if exact and out is not None else None,
                    max_pixels=self.max_pixels,
                )
            except image.BadImage as error:
                raise self.reader.damaged(int(row), str(error)) from None

    def _fit(self, field: Field, pixels: Any, slot: npt.NDArray[np.uint8], box: Any) -> None:
        """Cut the box out and resize it into the batch's slot; nothing to do when the picture was decoded there."""
        if box is not None:
            pixels = cut_out(pixels, box)
        elif np.may_share_memory(pixels, slot):
            return
        if pixels.shape == slot.shape:
            slot[:] = pixels
        else:
            how = self.view.interpolation if field.kind == "image" else "nearest"
            resize(pixels, (slot.shape[0], slot.shape[1]), how, out=slot)


def _at_least(size: tuple[int, ...], boxes: npt.NDArray[np.float64] | None, i: int) -> tuple[int, int]:
    """(height, width) that a whole picture must have at least, so that its box i has `size`."""
    if boxes is None:
        return size[0], size[1]
    return math.ceil(size[0] / boxes[i, 2]), math.ceil(size[1] / boxes[i, 3])


def _at(values: npt.NDArray[Any] | None, row: Any) -> int | None:
    return None if values is None else int(values[row])


def _max_pixels(manifest: Manifest) -> int:
    """Pixels of the largest picture there can be, which sizes the decode buffers."""
    sides = manifest.statistics.get("image", {})
    try:
        allowed = min(_MAX_PIXELS, int(manifest.options.get("max_pixels", image.MAX_PIXELS)))
        return min(allowed, int(sides["width"][1]) * int(sides["height"][1]))
    except (KeyError, TypeError, IndexError, ValueError):
        return image.MAX_PIXELS
