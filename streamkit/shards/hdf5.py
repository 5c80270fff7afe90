"""HDF5 shards: natural datasets for fixed shapes, flat bytes plus offsets for the rest. h5py alone reads them.

    fixed, not compressed    NAME, contiguous (N, ...)
    fixed, compressed        NAME, chunked over whole samples, standard filters
    encoded or varying       NAME, contiguous uint8; NAME_offsets (N + 1) int64; NAME_shapes (N, axes) int32 where
                             several axes vary
    columns                  NAME (N,); strings as flat bytes plus offsets

"objects/xmin" is the dataset `xmin` of the group `objects`.

h5py lays out the file; payload bytes of contiguous datasets are then written at their addresses, past libhdf5's lock.

    >>> is_flat(Field("text", "text", "string")), is_flat(Field("x", "array", "float32", (3,)))
    (True, False)
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from streamkit.atomic import Early
from streamkit.errors import DamagedError
from streamkit.schema import Field, Schema
from streamkit.shards.chunked import chunk_places, own_dataset, write_chunked
from streamkit.shards.new_file import new_file
from streamkit.shards.record import Places, Record, range_columns

_MAX_ATTRIBUTE_NBYTES = 60_000
_WRITE_NBYTES = 1 << 20  # a call
_MAX_PARTS = 1024  # IOV_MAX
Ints = npt.NDArray[np.int64]


def is_flat(field: Field) -> bool:
    """True when the payload is stored as flat bytes plus offsets."""
    return field.is_payload and (field.is_encoded_image or not field.fixed or field.kind in ("text", "bytes"))


class HDF5:
    """`ShardFormat` for HDF5."""

    extension = "h5"

    def write_shard(self, path: Path, schema: Schema, records: Iterable[Record]) -> Places:
        plain = [f.name for f in schema.payloads if f.chunk_rows is None]
        crcs: dict[str, list[int]] = {name: [] for name in plain}
        rows: list[Record] = []
        for row in records:
            rows.append(row)
            for name in plain:  # now, as the bytes lie in the core's own cache
                crcs[name].append(crc32c(row.payloads[name]))
        n = len(rows)
        with new_file(path) as file:
            addresses = {f.name: _create(file, f, rows) for f in schema.payloads}
            for field in schema.columns:
                _write_column(file, field, [row.columns[field.name] for row in rows])
        ranges: dict[str, npt.NDArray[Any]] = {}
        fd = os.open(path, os.O_RDWR)
        try:
            for name in plain:
                offsets, lengths = _write_payloads(fd, addresses[name], [row.payloads[name] for row in rows])
                ranges |= range_columns(name, offsets, lengths, crcs[name])
        finally:
            os.close(fd)
        chunk_ranges, chunks = chunk_places(path, schema, n)
        return Places(n, ranges | chunk_ranges, chunks)

    def columns(self, path: Path, schema: Schema) -> dict[str, npt.NDArray[Any]]:
        out: dict[str, npt.NDArray[Any]] = {}
        try:
            with h5py.File(path, "r") as file:
                size = os.path.getsize(path)
                for field in schema.columns:
                    out[field.name] = _read_column(file, field, size)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DamagedError(f"its columns cannot be read: {error}", shard=path.name) from None
        return out

    def index_shard(self, path: Path, schema: Schema) -> Places:
        ranges: dict[str, npt.NDArray[Any]] = {}
        n = 0
        try:
            with h5py.File(path, "r") as file, open(path, "rb") as raw:
                size = os.fstat(raw.fileno()).st_size
                for field in schema.payloads:
                    n, base, offsets = _layout(file, field, size)
                    if field.chunk_rows is not None:
                        continue
                    lengths = np.diff(offsets)
                    crcs = []
                    for offset, length in zip(offsets[:-1].tolist(), lengths.tolist(), strict=True):
                        raw.seek(base + offset)
                        crcs.append(crc32c(raw.read(length)))
                    ranges |= range_columns(field.name, base + offsets[:-1], lengths, crcs)
            chunk_ranges, chunks = chunk_places(path, schema, n)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise DamagedError(f"cannot be read as a shard: {reason}", shard=path.name) from None
        return Places(n, ranges | chunk_ranges, chunks)


def _create(file: Any, field: Field, rows: Sequence[Record]) -> int:
    """Create the datasets of one payload field; return the address [B] of its values, or -1 for chunked ones."""
    n = len(rows)
    make_group(file, field.name)
    if field.chunk_rows is not None:
        write_chunked(file, field, [row.payloads[field.name] for row in rows])
        return -1
    if is_flat(field):
        lengths = [len(row.payloads[field.name]) for row in rows]
        file.create_dataset(f"{field.name}_offsets", data=np.array([0, *accumulate(lengths)], np.int64))
        if field.n_varying > 1 and not field.is_encoded_image:
            shapes = np.array([row.facts[f"{field.name}.shape"] for row in rows], np.int32).reshape(n, len(field.shape))
            file.create_dataset(f"{field.name}_shapes", data=shapes)
        shape: tuple[int, ...] = (sum(lengths),)
        dtype = np.dtype(np.uint8)
    else:
        shape = (n, *(int(d) for d in field.shape if d is not None))
        dtype = np.dtype(field.dtype).newbyteorder("<")
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # gives the address now; the values follow past libhdf5
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(dtype, logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, field.name.encode(), kind, space, dcpl=plist))
    if is_flat(field):
        described = {"dtype": field.dtype, "shape": [-1 if d is None else d for d in field.shape]}
        dataset.attrs["streamkit"] = np.bytes_(json.dumps(described | {"encoding": field.encoding}, sort_keys=True))
    write_class_names(file, field, dataset)
    offset = dataset.id.get_offset()
    return -1 if offset is None else int(offset)


def make_group(file: Any, name: str) -> None:
    """Make the group that a field named "objects/xmin" lies in."""
    group, _, _ = name.rpartition("/")
    if group:
        file.require_group(group)


def _write_column(file: Any, field: Field, values: Sequence[Any]) -> None:
    if field.kind == "string":
        data = [str(v).encode() for v in values]
        file.create_dataset(field.name, data=np.frombuffer(b"".join(data), np.uint8))
        file.create_dataset(f"{field.name}_offsets", data=np.array([0, *accumulate(map(len, data))], np.int64))
        return
    dataset = file.create_dataset(field.name, data=np.array(values, np.dtype(field.dtype).newbyteorder("<")))
    write_class_names(file, field, dataset)


def _read_column(file: Any, field: Field, size: int) -> npt.NDArray[Any]:
    """What `_write_column` wrote. `size`: of the file [B], which is more than a column takes."""
    dataset = own_dataset(file, field.name)
    kind = np.dtype(np.uint8 if field.kind == "string" else field.dtype)
    if dataset.dtype != kind or dataset.ndim != 1 or dataset.size * kind.itemsize > size:
        raise ValueError(f"{field.name!r} is {dataset.dtype} {dataset.shape}")
    values: npt.NDArray[Any] = dataset[:]
    if field.kind != "string":
        return values
    data, ends = values.tobytes(), flat_offsets(file, field.name, size)
    texts = [str(data[a:b], "utf-8") for a, b in itertools.pairwise(ends.tolist())]
    out = np.empty(len(texts), object)
    out[:] = texts
    return out


def write_class_names(file: Any, field: Field, dataset: Any) -> None:
    """As an attribute of the labels; as a dataset beside them where they are more than an attribute holds (64 KB)."""
    if not field.class_names:
        return
    names = np.array([name.encode() for name in field.class_names], "S")
    if names.nbytes <= _MAX_ATTRIBUTE_NBYTES:
        dataset.attrs["class_names"] = names
    else:
        file.create_dataset(f"{field.name}_class_names", data=names)


def _write_payloads(fd: int, base: int, payloads: Sequence[Any]) -> tuple[Ints, Ints]:
    """Write payloads one behind the other from byte `base` on; where each begins [B] and its length [B], int64 (n,)."""
    lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
    offsets = max(base, 0) + np.cumsum(lengths) - lengths
    at, some, wanted = base, [], 0
    early = Early(fd, base)
    for i, payload in enumerate(payloads, 1):
        some.append(payload)
        wanted += len(payload)
        if wanted >= _WRITE_NBYTES or len(some) == _MAX_PARTS or i == len(payloads):
            done = os.pwritev(fd, some, at) if wanted else 0
            while done < wanted:  # a short write: when the disk is full, the next one shows it
                done += os.pwrite(fd, memoryview(b"".join(some))[done:], at + done)
            at, some, wanted = at + wanted, [], 0
            early.written(at)
    return offsets, lengths


def flat_offsets(file: Any, name: str, size: int) -> Ints:
    """Where the values of a flat field begin, and the end [B], int64 (n + 1,). ValueError for what cannot be. `size`: of
    the file [B], looked at before anything is read."""
    stored = own_dataset(file, f"{name}_offsets")
    if stored.dtype != np.int64 or stored.ndim != 1 or not 0 < stored.size * 8 <= size:
        raise ValueError(f"the offsets of {name!r} are no int64 (n + 1,)")
    offsets = np.asarray(stored[:])
    if offsets[0] != 0 or np.diff(offsets).min(initial=0) < 0 or offsets[-1] > size:
        raise ValueError(f"the offsets of {name!r} lead out of the file")
    return offsets


def _layout(file: Any, field: Field, size: int) -> tuple[int, int, Ints]:
    """Samples, address of the values [B] and their offsets from it [B] (n + 1). `size`: of the file [B]."""
    dataset = own_dataset(file, field.name)
    base = int(dataset.id.get_offset() or 0)
    if is_flat(field):
        offsets = flat_offsets(file, field.name, size)
    else:
        n, nbytes = dataset.shape[0], field.sample_nbytes
        if dataset.shape[1:] != field.shape or dataset.dtype != field.dtype:
            raise ValueError(f"{field.name!r} is {dataset.dtype} {dataset.shape[1:]}")
        if field.chunk_rows is not None:
            return n, base, np.empty(0, np.int64)
        if n * max(1, nbytes) > max(n, size):
            raise ValueError(f"{field.name!r} has more samples than the file has bytes")
        offsets = np.arange(n + 1, dtype=np.int64) * nbytes
    if base + offsets[-1] > size:
        raise ValueError(f"the offsets of {field.name!r} lead out of the file")
    return len(offsets) - 1, base, offsets
