"""Sample -> record: check what the source gave, re-encode it where asked, and note the facts for the index.

`storage_schema` decides how each field will be stored before anything is written; `Encoder` does it sample by sample;
`final_schema` fills in at the end what only the items could tell (sizes, channels, image formats).

    >>> from streamkit.codecs import image
    >>> import numpy as np
    >>> encoder = Encoder(Schema((Field("image", "image", "uint8", (None, None, None), "mixed"),)), Options("tfrecord"))
    >>> png = image.encode(np.zeros((2, 3, 3), np.uint8), "png")
    >>> encoder.record("a.png", {"image": png}, {}).facts
    {'mean': (0.0, 0.0, 0.0), 'width': 3, 'height': 2, 'channels': 3, 'orientation': 1, 'format': 'png'}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from streamkit.codecs import array as arrays
from streamkit.codecs import image
from streamkit.codecs.resize import recolor, resize
from streamkit.convert import moments
from streamkit.convert.options import Options
from streamkit.schema import Field, Schema
from streamkit.shards.record import MAX_RECORD_NBYTES, Record
from streamkit.sources.listing import BadItem, Picture

IMAGE_FACTS = ("width", "height", "channels", "orientation")
_SIZE = "size"  # of the image in the source, upright; among the facts only while its record is made


def storage_schema(schema: Schema, options: Options, compression: str, plain: Container[str] = ()) -> Schema:
    """How each field will be stored.

    Args:
        schema: the source's.
        options: the user's.
        compression: what --compression auto came to, or what was asked for: "none" or a codec.
        plain: fields that are never compressed, because their samples are a few numbers.
    """
    return Schema(tuple(f if f.name in plain else _stored(f, options, compression) for f in schema))


def _stored(field: Field, options: Options, compression: str) -> Field:
    if field.is_image and options.encode != "raw":
        encoding = options.encode.partition(":")[0]
        if field.kind == "mask" and encoding != "keep":
            encoding = "png"  # class numbers must not be lossy
        return dataclasses.replace(field, encoding="mixed" if encoding == "keep" else encoding)
    if field.is_image:
        field = dataclasses.replace(field, encoding="raw")
    elif field.kind != "array":
        return field
    if compression == "none" or field.sample_nbytes == 0:
        return field
    if options.format == "tfrecord":
        return dataclasses.replace(field, encoding="zlib")
    if not field.fixed:
        return field  # a flat dataset holds samples of many sizes, and HDF5 filters need equal chunks
    from streamkit.shards.chunked import FILTERS, chunk_rows

    codec, _, level = compression.partition(":")
    pipeline = "+".join(FILTERS[codec]) + (f":{level}" if level else "")
    return dataclasses.replace(field, encoding=pipeline, chunk_rows=chunk_rows(field.sample_nbytes))


class Encoder:
    """Makes records of samples for one storage schema. The first `n_whole` pictures are measured whole."""

    def __init__(self, schema: Schema, options: Options, n_whole: int = 0) -> None:
        self.schema, self.options, self.n_whole = schema, options, n_whole
        _, _, level = options.compression.partition(":")
        self.level = int(level or 6)
        ways: dict[str, Callable[..., Any]] = {"image": self._image, "mask": self._mask, "text": self._text}
        self._ways: dict[str, tuple[Field, Callable[..., Any]]]
        self._ways = {field.name: (field, ways.get(field.kind, self._array)) for field in schema.payloads}
        self._kept = not options.reencodes

    def record(self, key: str, payloads: Mapping[str, Any], columns: dict[str, Any]) -> Record | BadItem:
        """Encode one sample, which takes over `columns`; a BadItem when it cannot become one."""
        stored: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        try:
            for name, value in payloads.items():
                field, encode = self._ways[name]
                stored[name] = encode(field, value, facts)
        except image.BadImage as error:
            return BadItem(key, str(error), error.refused)
        except arrays.BadArray as error:
            return BadItem(key, str(error))
        facts.pop(_SIZE, None)
        self.n_whole -= 1
        return Record(key, stored, columns, facts)

    def _image(self, field: Field, data: Any, facts: dict[str, Any]) -> Any:
        options = self.options
        if self._kept and not isinstance(data, Picture):
            info = self._checked(data, facts) if options.check == "decode" else image.probe(data, options.max_pixels)
            _, facts["width"], facts["height"], facts["channels"], facts["orientation"] = info
            facts["format"], facts[_SIZE] = info.format, (info.height, info.width)
            return data
        pixels, format = self._pixels(field, data, facts)
        height, width = facts[_SIZE]
        target = target_size(height, width, options)
        if pixels.shape[:2] != target:
            pixels = resize(pixels, target, "area" if target[0] < pixels.shape[0] else "bilinear")
        self._measure(pixels, facts)
        name, _, quality = options.encode.partition(":")
        if name == "keep":
            name = "jpeg" if format == "jpeg" else "png"
        n_channels = min(pixels.shape[2], 3) if name == "jpeg" else pixels.shape[2]
        facts.update(zip(IMAGE_FACTS, (target[1], target[0], n_channels, 1), strict=True))
        facts["format"] = name
        if name == "raw":
            return self._raw(field, pixels, facts)
        try:
            return image.encode(pixels, name, int(quality or (90 if name == "jpeg" else 100)))
        except ValueError as error:  # every format has a largest side: JPEG 65500 pixels, WebP 16383
            raise image.BadImage(f"{target[1]}x{target[0]} pixels cannot be stored as {name}: {error}") from None

    def _checked(self, data: Any, facts: dict[str, Any]) -> image.Info:
        """Decode once, and take the mean of what comes out; some pictures are decoded whole besides."""
        info, pixels = image.checked(data, self.options.max_pixels)
        facts["mean"] = moments.mean_of(pixels)
        if self.n_whole > 0:
            if info.format == "jpeg" and info.channels != 4:
                limit, channels = self.options.max_pixels, min(info.channels, 3)
                pixels = image.decode(data, channels=channels, orientation=1, max_pixels=limit)
            facts["whole"] = moments.of_pixels(pixels)
        return info

    def _measure(self, pixels: Any, facts: dict[str, Any]) -> None:
        """As `_checked`, of pixels that are decoded anyway."""
        facts["mean"] = moments.mean_of(pixels)
        if self.n_whole > 0:
            facts["whole"] = moments.of_pixels(pixels)

    def _pixels(self, field: Field, data: Any, facts: dict[str, Any]) -> tuple[Any, str]:
        """Pixels, decoded at the smallest scale that suffices, and the format that they came in."""
        options = self.options
        if isinstance(data, Picture):
            facts[_SIZE] = data.pixels.shape[:2]
            if options.encode == "raw" and field.shape[-1] is not None:
                return recolor(data.pixels, field.shape[-1]), data.format
            return data
        info = image.probe(data, options.max_pixels)
        image.check_crcs(data)
        facts[_SIZE] = (info.height, info.width)
        n_channels = image.pixel_channels(info)
        if options.encode == "raw" and field.shape[-1] is not None:
            n_channels = field.shape[-1]
        resized = target_size(info.height, info.width, options) != (info.height, info.width)
        pixels = image.decode(
            data,
            channels=n_channels,
            orientation=info.orientation,
            n_stored=info.channels,
            accurate=resized,  # done once, seen in every epoch: whole, and the mean of all its pixels
            max_pixels=options.max_pixels,
        )
        return pixels, info.format

    def _mask(self, field: Field, data: Any, facts: dict[str, Any]) -> Any:
        """A mask is as large as its image, which came before it, and is never lossy."""
        options = self.options
        if isinstance(data, Picture):
            pixels, size, format = data.pixels, data.pixels.shape[:2], data.format
        else:
            check = options.check == "decode" or options.reencodes
            info = image.check(data, options.max_pixels, mask=True) if check else image.probe(data, options.max_pixels)
            size, format = (info.height, info.width), info.format
        if size != facts[_SIZE]:
            raise image.BadImage(
                "its mask is {}x{} pixels, the image {}x{} (height x width)".format(*size, *facts[_SIZE])
            )
        if not isinstance(data, Picture):
            if not options.reencodes:
                facts[f"{field.name}.format"] = format
                return data
            pixels = image.decode(data, channels=1, max_pixels=options.max_pixels, mask=True)
        target = target_size(size[0], size[1], options)
        if size != target:
            pixels = resize(pixels, target, "nearest")
        if options.encode == "raw":
            return self._raw(field, pixels, facts)
        facts[f"{field.name}.format"] = "png"
        return image.encode(pixels, "png")

    def _raw(self, field: Field, pixels: Any, facts: dict[str, Any]) -> Any:
        facts[f"{field.name}.shape"] = pixels.shape
        return self._stored(field, arrays.to_bytes(pixels.copy()))

    def _array(self, field: Field, value: Any, facts: dict[str, Any]) -> Any:
        if value.dtype != field.dtype and value.dtype.newbyteorder("=") != field.dtype:
            raise arrays.BadArray(f"dtype is {value.dtype}, expected {field.dtype}")
        if value.shape != field.shape and (
            len(value.shape) != len(field.shape)
            or any(a is not None and a != b for a, b in zip(field.shape, value.shape, strict=True))
        ):
            raise arrays.BadArray(f"shape is {value.shape}, expected {field.shape}")
        facts[f"{field.name}.shape"] = value.shape
        facts[f"{field.name}.not_finite"] = moments.not_finite(value)
        return self._stored(field, arrays.to_bytes(value))

    def _text(self, field: Field, value: bytes | memoryview, facts: dict[str, Any]) -> bytes | memoryview:
        if len(value) > MAX_RECORD_NBYTES:
            raise arrays.BadArray(f"{len(value)} bytes are more than a record's {MAX_RECORD_NBYTES}")
        try:
            str(value, "utf-8")
        except UnicodeDecodeError as error:
            raise arrays.BadArray(f"{field.name} is no UTF-8 ({error.reason} at byte {error.start})") from None
        return value

    def _stored(self, field: Field, data: memoryview) -> Any:
        if len(data) > MAX_RECORD_NBYTES:
            raise arrays.BadArray(f"{len(data)} bytes are more than a record's {MAX_RECORD_NBYTES}")
        return arrays.compress(data, self.level) if field.encoding == "zlib" else data


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """(height, width) that --resize asks for; a short side is never enlarged."""
    if options.exact_size is not None:
        return options.exact_size
    short = min(height, width)
    if options.short_side is None or options.short_side >= short:
        return height, width
    scale = options.short_side / short
    return max(1, round(height * scale)), max(1, round(width * scale))


def raw_image_field(field: Field, infos: Iterable[image.Info], options: Options) -> Field:
    """The field of pictures stored as raw pixels, from all their headers: one number of channels for all."""
    sizes: set[tuple[int, int]] = set()
    n_channels = 1
    for info in infos:
        sizes.add(target_size(info.height, info.width, options))
        n_channels = max(n_channels, image.pixel_channels(info))
    heights, widths = {h for h, _ in sizes}, {w for _, w in sizes}
    n_channels = 1 if field.kind == "mask" else n_channels
    shape = (heights.pop() if len(heights) == 1 else None, widths.pop() if len(widths) == 1 else None, n_channels)
    return dataclasses.replace(field, shape=shape)


def final_schema(schema: Schema, facts: Sequence[Mapping[str, Any]]) -> Schema:
    """Fill in the shape and encoding of encoded pictures from the facts of all shards (see `journal.summarise`)."""
    fields = []
    for field in schema:
        if field.is_encoded_image:
            own = "format" if field.kind == "image" else f"{field.name}.format"
            formats = sorted({name for fact in facts for name in fact.get(own, ())})
            shape = tuple(_one({v for fact in facts for v in fact.get(n, ())}) for n in ("height", "width", "channels"))
            if field.kind == "mask":
                shape = (*shape[:2], 1)
            field = dataclasses.replace(field, shape=shape, encoding=formats[0] if len(formats) == 1 else "mixed")
        fields.append(field)
    return Schema(tuple(fields))


def _one(values: set[int]) -> int | None:
    return values.pop() if len(values) == 1 else None
