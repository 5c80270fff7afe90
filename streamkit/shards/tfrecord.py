"""TFRecord shards: standard framing, tf.train.Example, the file itself not compressed, so that offsets stay valid.

    record = length (8 bytes) + masked crc32c of these (4) + Example + masked crc32c of the Example (4), little-endian

A payload is a bytes feature of the field's name. With two or more varying axes TFDS's spelling is used: `NAME/value` and
`NAME/shape`. Ranges point at the payload inside the Example.

Source: tensorflow/core/lib/io/record_writer.h; tensorflow_datasets features.Tensor.

    >>> masked(0)
    2726488792
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from crc32c import crc32c

from streamkit.atomic import Early
from streamkit.errors import DamagedError
from streamkit.schema import Field, Schema
from streamkit.shards import example
from streamkit.shards.record import MAX_RECORD_NBYTES, Places, Record, range_columns

_FLUSH_NBYTES = 1 << 20
_MAX_PARTS = 1024  # IOV_MAX
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
# A payload's field and what stands before so many bytes of it; or None and all that a record has to say.
_Entry = tuple[str | None, Callable[[Any], bytes]]


def masked(crc: int) -> int:
    """The form in which TFRecord stores a crc32c. Source: tensorflow/core/lib/hash/crc32c.h."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def feature_name(field: Field) -> str:
    """Name of the feature that holds a payload."""
    return f"{field.name}/value" if _has_shape(field) else field.name


def _has_shape(field: Field) -> bool:
    return field.is_payload and not field.is_encoded_image and field.n_varying > 1


class TFRecord:
    """`ShardFormat` for TFRecord."""

    extension = "tfrecord"

    def write_shard(self, path: Path, schema: Schema, records: Iterable[Record]) -> Places:
        found: dict[str, tuple[list[int], list[int], list[int]]] = {f.name: ([], [], []) for f in schema.payloads}
        entries = _entries(schema)
        order = [found[payload] for payload, _ in entries if payload is not None]
        n = at = pending = 0
        parts: list[Any] = []
        hasher = blake3()  # of bytes that are in the core's own cache still; read again, they cost a half more
        with open(path, "wb", buffering=0) as file:
            early = Early(file.fileno())
            for record in records:
                pieces = _pieces(entries, record)
                pieces[0] = example.frame(sum(map(len, pieces))) + pieces[0]
                crc = crc32c(pieces[0])
                place = at + 12 + len(pieces[0])
                for (offsets, lengths, crcs), payload, between in zip(order, pieces[1::2], pieces[2::2], strict=True):
                    offsets.append(place)
                    lengths.append(len(payload))
                    crcs.append(crc32c(payload))
                    crc = crc32c(between, crc32c(payload, crc))
                    place += len(payload) + len(between)
                pieces[0] = _head(place - at - 12) + pieces[0]
                pieces[-1] += _CRC.pack(masked(crc))
                parts += pieces
                pending += place + 4 - at
                at = place + 4
                n += 1
                if pending >= _FLUSH_NBYTES:
                    _write(file.fileno(), parts, hasher)
                    early.written(at)
                    parts, pending = [], 0
            _write(file.fileno(), parts, hasher)
        ranges: dict[str, Any] = {}
        for name, columns in found.items():
            ranges |= range_columns(name, *columns)
        return Places(n, ranges, digest=hasher.hexdigest())

    def columns(self, path: Path, schema: Schema) -> dict[str, npt.NDArray[Any]]:
        found: dict[str, list[Any]] = {f.name: [] for f in schema.columns}
        for n, (_, data) in enumerate(read_records(path)):
            try:
                features = example.parse(data)
                for field in schema.columns:
                    (value,) = features[field.name].values
                    found[field.name].append(str(value, "utf-8") if field.kind == "string" else value)
            except (example.BadExample, KeyError, ValueError, TypeError) as error:
                raise DamagedError(f"its columns cannot be read: {error}", shard=path.name, record=n) from None
        kinds = {f.name: object if f.kind == "string" else _kind(f) for f in schema.columns}
        return {name: np.array(values, kinds[name]) for name, values in found.items()}

    def index_shard(self, path: Path, schema: Schema) -> Places:
        found: dict[str, tuple[list[int], list[int], list[int]]] = {f.name: ([], [], []) for f in schema.payloads}
        n = 0
        for n, (start, data) in enumerate(read_records(path), 1):
            try:
                features = example.parse(data)
            except example.BadExample as error:
                raise DamagedError(f"no tf.train.Example: {error}", shard=path.name, record=n - 1) from None
            for field in schema.payloads:
                feature = features.get(feature_name(field))
                if feature is None or feature.kind != "bytes" or len(feature.values) != 1:
                    raise DamagedError(f"no single bytes value {field.name!r}", shard=path.name, record=n - 1)
                offsets, lengths, crcs = found[field.name]
                offsets.append(start + feature.start)
                lengths.append(feature.stop - feature.start)
                crcs.append(crc32c(feature.values[0]))
        ranges: dict[str, Any] = {}
        for name, columns in found.items():
            ranges |= range_columns(name, *columns)
        return Places(n, ranges)


@lru_cache(maxsize=4096)
def _head(length: int) -> bytes:
    """What stands before a record's Example of so many bytes."""
    packed = _LENGTH.pack(length)
    return packed + _CRC.pack(masked(crc32c(packed)))


def _pieces(entries: Sequence[_Entry], record: Record) -> list[Any]:
    """The map entries of a record's Example: bytes between payloads and payloads, in turns."""
    pieces: list[Any] = []
    between = b""
    for payload, entry in entries:
        if payload is None:
            between += entry(record)
        else:
            data = record.payloads[payload]
            pieces += between + entry(len(data)), data
            between = b""
    pieces.append(between)
    return pieces


def _write(fd: int, parts: list[Any], hasher: blake3) -> None:
    """Hash bytes-likes and write them one behind the other: joined, unless they are so large that a copy is dear."""
    if sum(map(len, parts)) <= 2 * _FLUSH_NBYTES:
        parts = [b"".join(parts)]
    for part in parts:
        hasher.update(part)
    for start in range(0, len(parts), _MAX_PARTS):
        some = parts[start : start + _MAX_PARTS]
        done = os.writev(fd, some)
        rest = memoryview(b"".join(some))[done:] if done < sum(map(len, some)) else b""
        while rest:  # a short write: when the disk is full, the next one raises
            rest = rest[os.write(fd, rest) :]


def _entries(schema: Schema) -> list[_Entry]:
    """How the map entries are made, in the order of their names, as protobuf's deterministic maps are."""
    named: list[tuple[bytes, _Entry]] = []
    for field in schema:
        name = feature_name(field).encode()
        payload = (field.name, partial(example.bytes_entry, name))
        named.append((name, payload if field.is_payload else (None, _column(field))))
        if _has_shape(field):
            named.append((f"{field.name}/shape".encode(), (None, _shape(field))))
    return [entry for _, entry in sorted(named, key=lambda pair: pair[0])]


def _shape(field: Field) -> Callable[[Record], bytes]:
    """TFDS's entry for the shape of a payload with several varying axes."""
    name, fact = f"{field.name}/shape".encode(), f"{field.name}.shape"
    return lambda record: example.int64_entry(name, tuple(map(int, record.facts[fact])))


def _kind(field: Field) -> Any:
    """What an Example makes of a column's numbers."""
    return np.float32 if field.dtype.startswith("float") else np.int64


def _column(field: Field) -> Callable[[Record], bytes]:
    """The entry of a column's value."""
    column, name = field.name, field.name.encode()
    if field.kind == "string":

        def text(record: Record) -> bytes:
            data = str(record.columns[column]).encode()
            return example.bytes_entry(name, len(data)) + data

        return text
    if _kind(field) == np.float32:
        return lambda record: example.float_entry(name, (float(record.columns[column]),))
    return lambda record: example.int64_entry(name, (int(record.columns[column]),))


def begins_a_record(head: bytes) -> bool:
    """True where bytes begin with a record's length and the right crc of it.

    >>> begins_a_record(b"no TFRecord")
    False
    """
    return len(head) >= 12 and masked(crc32c(head[:8])) == _CRC.unpack(head[8:12])[0]


def read_records(path: Path) -> Iterator[tuple[int, memoryview]]:
    """(offset [B], bytes) of every record's data, crcs checked.

    Raises:
        DamagedError: the file is missing, a crc differs, or it ends inside a record.
    """
    at = n = 0
    if not path.is_file():
        raise DamagedError("this shard is missing", shard=path.name)
    with open(path, "rb") as file:
        while head := file.read(12):
            if not begins_a_record(head):
                raise DamagedError("the record's length is damaged", shard=path.name, record=n, offset=at)
            (length,) = _LENGTH.unpack(head[:8])
            if length > MAX_RECORD_NBYTES:
                raise DamagedError(f"a record of {length} bytes, the limit is {MAX_RECORD_NBYTES}", shard=path.name)
            data = file.read(length + 4)
            if len(data) != length + 4:
                raise DamagedError("the file ends inside this record", shard=path.name, record=n, offset=at)
            if masked(crc32c(memoryview(data)[:-4])) != _CRC.unpack(data[-4:])[0]:
                raise DamagedError("the record's crc32c is wrong", shard=path.name, record=n, offset=at)
            yield at + 12, memoryview(data)[:-4]
            at += 16 + length
            n += 1


def first_broken(path: Path) -> str:
    """Which record of a file is the first whose own sums fail, and how; empty when none does."""
    try:
        for _ in read_records(path):
            pass
    except DamagedError as error:
        return f"record {error.record}: {error.what}"
    return ""
