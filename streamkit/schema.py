"""What a sample is made of: named fields, each a payload or a column.

A payload field (image, mask, array, text, bytes) is stored as bytes that a range points at. A column field (label,
number, string) also stands in the index, so that it can be read without touching a payload.

    >>> schema = Schema((Field("image", "image", "uint8", (None, None, 3), "jpeg"),
    ...                  Field("label", "label", "int64", (), class_names=("cat", "dog"))))
    >>> schema.label.class_names, [f.name for f in schema.payloads], schema["image"].fixed
    (('cat', 'dog'), ['image'], False)
    >>> Schema.from_json(schema.to_json()) == schema
    True
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamkit.errors import DamagedError, RefusedError, UsageError, did_you_mean

PAYLOAD_KINDS = ("image", "mask", "array", "text", "bytes")
COLUMN_KINDS = ("label", "number", "string")
FILTERS = ("shuffle", "gzip", "fletcher32", "lzf", "zstd", "lz4", "blosc2")  # of chunked HDF5
MAX_FILTERS = 4
MAX_NDIM = 8
MAX_NAME_NBYTES = 1024
_DTYPE = re.compile(r"[<>=|]?[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Field:
    """A named part of every sample.

    Attributes:
        name: the field's name. "objects/xmin" is the part `xmin` of `objects`, as TFDS and HDF5 spell it.
        kind: one of PAYLOAD_KINDS or COLUMN_KINDS.
        dtype: NumPy name of the decoded values ("uint8", "float32", ...).
        shape: shape of one decoded sample, None for an axis that varies. Images are (height, width, channels).
        encoding: how payload bytes are stored: "raw" (little-endian, C order), "zlib", an image format ("jpeg", "png",
            "webp", ..., or "mixed"), or for chunked HDF5 the filters in the order applied ("shuffle+gzip").
        chunk_rows: samples a chunk, for chunked HDF5; else None.
        chunk_shape: for adopted HDF5 whose chunks split the sample axes: their extent along these; else None.
        fill: the value of a chunk that was never written, as the hex digits of its bytes; "" is zero.
        class_names: names of the classes 0, 1, ... that the values of a label, or of an array of classes, are; else None.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | None, ...] = ()
    encoding: str = "raw"
    chunk_rows: int | None = None
    class_names: tuple[str, ...] | None = None
    chunk_shape: tuple[int, ...] | None = None
    fill: str = ""

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or "\0" in self.name or len(self.name.encode()) > MAX_NAME_NBYTES:
            raise RefusedError(
                f"{self.name[:80]!r} is no field name",
                hint='Names are 1 to 1024 bytes, and so is each part between "/".',
            )
        if self.kind not in PAYLOAD_KINDS + COLUMN_KINDS:
            raise DamagedError(f"field {self.name!r} has the unknown kind {self.kind!r}")
        if self.dtype != "string":
            _check_numbers(self)
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise DamagedError(f"field {self.name!r} has {self.chunk_rows} samples a chunk")
        if self.chunk_shape is not None and (
            self.chunk_rows is None
            or not self.fixed
            or len(self.chunk_shape) != len(self.shape)
            or min(self.chunk_shape, default=1) < 1
        ):
            raise DamagedError(f"field {self.name!r} has chunks of {self.chunk_shape} in samples of {self.shape}")
        if self.fill and (self.chunk_rows is None or len(self.fill) != 2 * np.dtype(self.dtype).itemsize):
            raise DamagedError(f"field {self.name!r} has the fill value {self.fill[:40]!r}")
        if len(self.shape) > MAX_NDIM or any(d is not None and d < 0 for d in self.shape):
            raise RefusedError(f"field {self.name!r} has shape {self.shape}; at most {MAX_NDIM} axes of size >= 0")
        if self.is_image and 0 in self.shape:
            raise RefusedError(f"field {self.name!r} has pictures of shape {self.shape}")
        reason = _mismatch(self)
        if reason:
            raise DamagedError(f"field {self.name!r} is of kind {self.kind}, and {reason}")
        _check_encoding(self)

    @property
    def is_payload(self) -> bool:
        return self.kind in PAYLOAD_KINDS

    @property
    def is_image(self) -> bool:
        """True for pictures: image and mask."""
        return self.kind in ("image", "mask")

    @property
    def fixed(self) -> bool:
        """True when every sample has the same shape."""
        return None not in self.shape

    @property
    def is_encoded_image(self) -> bool:
        """True when the payload is an image file's bytes rather than raw pixels."""
        return self.is_image and self.encoding != "raw" and self.chunk_rows is None

    @property
    def n_varying(self) -> int:
        return sum(d is None for d in self.shape)

    @property
    def sample_nbytes(self) -> int:
        """Decoded size of one sample [B]; varying axes count as 1."""
        return math.prod(1 if d is None else d for d in self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """The field as the manifest holds it; absent facts are left out."""
        out: dict[str, Any] = {"kind": self.kind, "dtype": self.dtype, "shape": list(self.shape)}
        if self.is_payload:
            out["encoding"] = self.encoding
        if self.chunk_rows is not None:
            out["chunk_rows"] = self.chunk_rows
        if self.chunk_shape is not None:
            out["chunk_shape"] = list(self.chunk_shape)
        if self.fill:
            out["fill"] = self.fill
        if self.class_names is not None:
            out["class_names"] = list(self.class_names)
        return out


@dataclass(frozen=True)
class Schema:
    """The fields of a dataset, sorted by name. Iterates over them; `schema[name]` and `name in schema` look one up."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        if len(set(names)) != len(names):
            raise DamagedError(f"field names repeat: {sorted(names)}")
        object.__setattr__(self, "fields", tuple(sorted(self.fields, key=lambda f: f.name)))

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in self.fields)

    def __getitem__(self, name: str) -> Field:
        for f in self.fields:
            if f.name == name:
                return f
        names = [f.name for f in self.fields]
        raise UsageError(
            f"there is no field {name!r}", hint=f"{did_you_mean(name, names)}Fields are {', '.join(names)}."
        )

    @property
    def payloads(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if f.is_payload)

    @property
    def columns(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if not f.is_payload)

    @property
    def label(self) -> Field | None:
        """The label field, or None."""
        return next((f for f in self.fields if f.kind == "label"), None)

    def to_json(self) -> dict[str, Any]:
        return {f.name: f.to_json() for f in self.fields}

    @classmethod
    def from_json(cls, items: Any) -> Schema:
        """Parse what `to_json` made. Raises DamagedError on anything else."""
        if not isinstance(items, Mapping) or not all(isinstance(i, Mapping) for i in items.values()):
            raise DamagedError("the schema does not map field names to their facts")
        return cls(tuple(_field(name, items[name]) for name in sorted(items)))


def _check_numbers(field: Field) -> None:
    try:
        if not _DTYPE.fullmatch(field.dtype):  # a text with a comma, NumPy takes for several fields in Python's syntax
            raise TypeError
        dtype = np.dtype(field.dtype)
    except (TypeError, ValueError):
        raise DamagedError(f"field {field.name!r} has the unknown dtype {field.dtype!r}") from None
    if dtype.hasobject or dtype.kind not in "biufc":
        raise RefusedError(f"field {field.name!r} has dtype {dtype}, which is not plain numbers")


def _mismatch(field: Field) -> str:
    """Why dtype, shape and kind do not belong together; empty if they do."""
    is_text = field.kind in ("text", "string")
    if (field.dtype == "string") != is_text:
        return f"its dtype is {field.dtype}"
    if (is_text or not field.is_payload) and field.shape:
        return f"its shape is {field.shape}"
    if field.is_image and (field.dtype != "uint8" or len(field.shape) != 3 or field.shape[2] not in (None, 1, 2, 3, 4)):
        return f"it is {field.dtype} {field.shape}, expected uint8 (height, width, 1 to 4)"
    if (
        not is_text
        and not field.is_payload
        and np.dtype(field.dtype).kind not in ("iu" if field.kind == "label" else "iufb")
    ):
        return f"its dtype is {field.dtype}"
    holds = field.fixed and field.kind in ("image", "mask", "array") and 0 not in field.shape  # HDF5 has no empty chunk
    if field.chunk_rows is not None and not holds:
        return f"it is chunked, though its shape is {field.shape}"
    return ""


def _check_encoding(field: Field) -> None:
    """How stored bytes are to be decoded: what is known here, and not so many steps that undoing them takes long."""
    names = field.encoding.partition(":")[0].split("+")
    if field.chunk_rows is not None:
        filters = names[1:] if names[0] == "bigendian" else names
        known = field.encoding == "raw" or set(filters) <= set(FILTERS)
        if len(filters) > MAX_FILTERS:
            raise RefusedError(f"field {field.name!r} went through {len(filters)} filters; the limit is {MAX_FILTERS}")
    elif field.is_image:
        known = field.encoding.isalnum()  # of a picture file: the bytes themselves tell its format
    else:
        known = field.encoding in ("raw", *(() if field.dtype == "string" else ("zlib", "varint", "bigendian")))
    wants = {"varint": field.dtype == "int64", "bigendian": field.fixed}
    if not known or not wants.get(field.encoding, True):
        raise RefusedError(f"field {field.name!r} has the encoding {field.encoding[:40]!r}, which is not known here")


def _field(name: str, item: Mapping[str, Any]) -> Field:
    try:
        shape = item["shape"]
        names, chunk_shape = item.get("class_names"), item.get("chunk_shape")
        if not all(d is None or (isinstance(d, int) and not isinstance(d, bool)) for d in shape):
            raise TypeError
        if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise TypeError
        return Field(
            name=name,
            kind=str(item["kind"]),
            dtype=str(item["dtype"]),
            shape=tuple(shape),
            encoding=str(item.get("encoding", "raw")),
            chunk_rows=None if item.get("chunk_rows") is None else int(item["chunk_rows"]),
            class_names=None if names is None else tuple(names),
            chunk_shape=None if chunk_shape is None else tuple(int(d) for d in chunk_shape),
            fill=bytes.fromhex(item.get("fill", "")).hex(),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, (DamagedError, RefusedError)):
            raise
        raise DamagedError(f"field {name!r} of the schema is malformed: {str(dict(item))[:120]}") from None
