"""Rows -> batch: read, decode into the batch's slots, stack. Work is done once a batch wherever it can be.

`View` is what the user asked to see; `BatchMaker` makes it for any rows of a reader. Pure in the rows: the same rows give
the same batch in every thread and process.

    >>> from streamkit.schema import Field
    >>> schema = Schema((Field("x", "array", "float32", (4,)), Field("label", "label", "int64", (), class_names=("a", "b"))))
    >>> View().outputs(schema)
    ('x', 'label')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.buffers import Buffers
from streamkit.codecs import array as arrays
from streamkit.codecs import image
from streamkit.codecs.resize import INTERPOLATIONS, resize
from streamkit.errors import UsageError
from streamkit.manifest import Manifest
from streamkit.reader import MAX_RANGE_NBYTES, Reader
from streamkit.schema import Field, Schema

Ints = npt.NDArray[np.int64]
COLOR_MODES = {"grayscale": 1, "rgb": 3, "rgba": 4}
LABEL_MODES = ("int", "categorical", "binary", None)


class Spec(NamedTuple):
    """What one output looks like: shape of a sample (None for an axis that varies) and dtype ("string" for text)."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class View:
    """How samples are delivered; arguments of `streamkit.Loader` with the same names."""

    image_size: tuple[int, int] | None = None
    dtype: str = "float32"
    color_mode: str = "rgb"
    label_mode: str | None = "int"
    interpolation: str = "bilinear"
    crop_to_aspect_ratio: bool = False
    fields: str | tuple[str, ...] | None = None
    pad_to: str | int = "batch"

    def __post_init__(self) -> None:
        if self.color_mode not in COLOR_MODES:
            raise UsageError(f"color_mode is {self.color_mode!r}, expected one of {', '.join(COLOR_MODES)}")
        if self.label_mode not in LABEL_MODES:
            raise UsageError(f'label_mode is {self.label_mode!r}, expected "int", "categorical", "binary" or None')
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation is {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
        if self.dtype not in ("uint8", "float16", "float32", "float64"):
            raise UsageError(f"dtype is {self.dtype!r}, expected uint8, float16, float32 or float64")
        size = self.image_size
        if size is not None and (len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size)):
            raise UsageError(f"image_size is {size!r}, expected (height, width)")
        if self.pad_to != "batch" and not (isinstance(self.pad_to, int) and self.pad_to > 0):
            raise UsageError(f'pad_to is {self.pad_to!r}, expected "batch" or a number of rows')

    def outputs(self, schema: Schema) -> tuple[str, ...]:
        """Names of the fields delivered, in order: those asked for, else payloads and then columns."""
        if self.fields is not None:
            names = (self.fields,) if isinstance(self.fields, str) else tuple(self.fields)
            return tuple(name if name == "key" else schema[name].name for name in names)
        columns = [f.name for f in schema.columns if f.kind != "label" or self.label_mode is not None]
        return tuple(f.name for f in schema.payloads) + tuple(columns)


class BatchMaker:
    """Makes batches of a reader's rows as a view wants them.

    Args:
        reader: has loaded what the view's fields need.
        view: what to deliver.
        batched: False when samples are delivered one by one, so that sizes may differ.
        buffers: where batches lie.
    """

    def __init__(self, reader: Reader, view: View, batched: bool, buffers: Buffers) -> None:
        self.reader, self.view, self.batched, self.buffers = reader, view, batched, buffers
        schema = reader.manifest.schema
        self.names = view.outputs(schema)
        self.fields = {name: schema[name] for name in self.names if name != "key"}
        self.max_pixels = _max_pixels(reader.manifest)
        self.specs = self._specs()

    def _specs(self) -> dict[str, Spec]:
        out: dict[str, Spec] = {}
        for name in self.names:
            if name == "key":
                out[name] = Spec((), "string")
                continue
            field = self.fields[name]
            if field.is_image:
                dtype = self.view.dtype if field.kind == "image" else field.dtype
                out[name] = Spec((*self._size(field), self._n_channels(field)), dtype)
            elif field.kind == "label":
                out[name] = _label_spec(field, self.view.label_mode)
            elif field.is_payload:
                shape = list(field.shape)
                if isinstance(self.view.pad_to, int) and shape and shape[0] is None and self.batched:
                    shape[0] = self.view.pad_to
                out[name] = Spec(tuple(shape), field.dtype)
                if not field.fixed and self.batched and self.view.fields is None:
                    n = field.n_varying
                    out[f"{name}_length"] = Spec((), "int32") if n == 1 else Spec((n,), "int32")
            else:
                out[name] = Spec((), field.dtype)
        return out

    def _size(self, field: Field) -> tuple[int | None, int | None]:
        size = self.view.image_size or field.shape[:2]
        if self.batched and None in size:
            stats = self.reader.manifest.statistics.get("image", {})
            sizes = "x".join("-".join(map(str, stats[s])) for s in ("height", "width") if s in stats)
            raise UsageError(
                f"images differ in size ({sizes or 'see the index'}, height x width), so they do not stack",
                hint="Pass image_size=(height, width), or batch_size=None for single samples.",
            )
        return size[0], size[1]

    def _n_channels(self, field: Field) -> int:
        return 1 if field.kind == "mask" else COLOR_MODES[self.view.color_mode]

    def structure(self, batch: dict[str, Any]) -> Any:
        """The batch as the user gets it: an array, a tuple or a dict."""
        return structure(batch, self.view, self.reader.manifest.schema)

    def make(self, rows: Ints) -> dict[str, npt.NDArray[Any]]:
        """The batch of these rows: output name -> array with axis 0 the batch.

        Raises:
            DamagedError: a row's bytes are not what the index says, or do not decode.
        """
        out: dict[str, npt.NDArray[Any]] = {}
        for name in self.names:
            if name == "key":
                out[name] = np.array([self.reader.index.key(r) for r in rows.tolist()], object)
                continue
            field = self.fields[name]
            if field.is_image:
                out[name] = self._images(field, rows)
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

    def make_each(self, rows: Ints) -> list[dict[str, Any]]:
        """The samples of these rows, one dict each, without a batch axis; sizes may differ."""
        samples = []
        for row in rows:
            one = np.array([row])
            sample: dict[str, Any] = {}
            for name in self.names:
                field = self.fields.get(name)
                if field is not None and field.is_payload and not field.is_image and not field.fixed:
                    sample[name] = self._decoded(field, one)[0]
                elif field is not None and field.is_image:
                    sample[name] = self._single_image(field, one)
                else:
                    sample[name] = self._only(name, one)
            samples.append(sample)
        return samples

    def _only(self, name: str, one: Ints) -> Any:
        if name == "key":
            return self.reader.index.key(int(one[0]))
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
        return np.eye(len(field.class_names or ()), dtype=np.float32)[values]

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
            memory = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            views = [memory[start : start + nbytes] for start in range(0, len(rows) * nbytes, nbytes)] if nbytes else []
            if nbytes:
                self.reader.read(field.name, rows, views)
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
        memory = memoryview(np.empty(int(ends[-1]) if len(ends) else 0, np.uint8))  # type: ignore[arg-type]
        starts = (ends - lengths).tolist()
        views = [memory[a:b] for a, b in zip(starts, ends.tolist(), strict=True)]
        self.reader.read(field.name, rows, views)
        return views

    # Pictures

    def _images(self, field: Field, rows: Ints) -> npt.NDArray[Any]:
        height, width = self._size(field)
        shape = (len(rows), int(height or 0), int(width or 0), self._n_channels(field))
        out = self.buffers.empty(shape, np.uint8)
        if not field.is_encoded_image and field.fixed and field.shape == shape[1:]:
            self._raw_into(field, rows, out)
        else:
            for slot, pixels in zip(out, self._pixels(field, rows, out), strict=True):
                if pixels is not slot:
                    self._fit(field, pixels, slot)
        return self._converted(field, out)

    def _single_image(self, field: Field, one: Ints) -> npt.NDArray[Any]:
        if self.view.image_size is not None or field.fixed:
            return self._images(field, one)[0]
        pixels = next(iter(self._pixels(field, one, None)))
        return self._converted(field, pixels.copy())

    def _converted(self, field: Field, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        if field.kind == "mask" or self.view.dtype == "uint8":
            return pixels
        out = self.buffers.empty(pixels.shape, self.view.dtype)
        np.copyto(out, pixels)
        return out

    def _pixels(self, field: Field, rows: Ints, out: npt.NDArray[np.uint8] | None) -> Any:
        """Yield each row's picture in the channels wanted, at its own size or scaled down; `out[i]` where it fitted."""
        n_channels = self._n_channels(field)
        if not field.is_encoded_image:
            if field.chunk_rows is not None or (field.fixed and field.encoding == "raw"):
                stored: Any = np.empty((len(rows), *(int(d or 0) for d in field.shape)), np.uint8)
                self._raw_into(field, rows, stored)
            else:
                stored = self._decoded(field, rows)
            for pixels in stored:
                yield recolor(pixels, n_channels)
            return
        exact = out is not None and field.fixed and field.shape[:2] == out.shape[1:3]
        at_least = out.shape[1:3] if out is not None and field.kind == "image" else None
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
                    at_least=None if exact else at_least,
                    out=out[i] if exact and out is not None else None,
                    max_pixels=self.max_pixels,
                )
            except image.BadImage as error:
                raise self.reader.damaged(int(row), str(error)) from None

    def _fit(self, field: Field, pixels: npt.NDArray[np.uint8], slot: npt.NDArray[np.uint8]) -> None:
        """Crop where asked and resize into the batch's slot."""
        if self.view.crop_to_aspect_ratio:
            pixels = crop_to_aspect_ratio(pixels, slot.shape[0], slot.shape[1])
        if pixels.shape == slot.shape:
            slot[:] = pixels
        else:
            how = self.view.interpolation if field.kind == "image" else "nearest"
            resize(pixels, (slot.shape[0], slot.shape[1]), how, out=slot)


def _at(values: npt.NDArray[Any] | None, row: Any) -> int | None:
    return None if values is None else int(values[row])


def structure(batch: dict[str, Any], view: View, schema: Schema) -> Any:
    """One field -> bare; image or other single payload with its label -> (x, label); else the dict. `fields` decides first."""
    if isinstance(view.fields, str):
        return batch[view.fields]
    if view.fields is not None:
        return tuple(batch[name] for name in view.fields)
    names = list(batch)
    if len(names) == 1:
        return batch[names[0]]
    if len(names) == 2 and schema.label is not None and names[1] == schema.label.name:
        return batch[names[0]], batch[names[1]]
    return batch


def recolor(pixels: npt.NDArray[np.uint8], n_channels: int) -> npt.NDArray[np.uint8]:
    """uint8 (height, width, 1, 3 or 4) pixels in another number of channels; gray is ITU-R 601 luma, as in JPEG."""
    have = pixels.shape[2]
    if have == n_channels:
        return pixels
    import cv2

    codes = {
        (1, 3): cv2.COLOR_GRAY2RGB,
        (1, 4): cv2.COLOR_GRAY2RGBA,
        (3, 1): cv2.COLOR_RGB2GRAY,
        (3, 4): cv2.COLOR_RGB2RGBA,
        (4, 1): cv2.COLOR_RGBA2GRAY,
        (4, 3): cv2.COLOR_RGBA2RGB,
    }
    out = cv2.cvtColor(np.ascontiguousarray(pixels), codes[have, n_channels])
    return np.asarray(out, np.uint8).reshape(*pixels.shape[:2], n_channels)


def crop_to_aspect_ratio(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """The largest centred part of (h, w, c) pixels with the ratio height : width, as Keras' crop_to_aspect_ratio."""
    h, w = pixels.shape[:2]
    crop_h, crop_w = min(h, w * height // width), min(w, h * width // height)
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    return np.ascontiguousarray(pixels[top : top + crop_h, left : left + crop_w])


def _label_spec(field: Field, mode: str | None) -> Spec:
    if mode in (None, "int"):
        return Spec((), "int32")
    n = len(field.class_names or ())
    if mode == "binary":
        if n != 2:
            raise UsageError(f'label_mode="binary" needs 2 classes, there are {n}', hint='Use "int" or "categorical".')
        return Spec((1,), "float32")
    if not n:
        raise UsageError('label_mode="categorical" needs class names, and this label has none', hint='Use "int".')
    return Spec((n,), "float32")


def _max_pixels(manifest: Manifest) -> int:
    """Pixels of the largest picture there can be, which sizes the decode buffers."""
    sides = manifest.statistics.get("image", {})
    try:
        return min(image.MAX_PIXELS, int(sides["width"][1]) * int(sides["height"][1]))
    except (KeyError, TypeError, IndexError, ValueError):
        return image.MAX_PIXELS


def needed_extras(view: View, schema: Schema, names: Sequence[str]) -> tuple[str, ...]:
    """Index columns that decoding the named fields needs besides their ranges."""
    for name in names:
        field = schema[name] if name != "key" else None
        if field is not None and field.kind == "image" and field.is_encoded_image:
            return ("orientation", "channels") if field.shape[2] in (None, 4) else ("orientation",)
    return ()
