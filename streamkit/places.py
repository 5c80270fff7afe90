"""Places that an index names, held against the files that they lie in, before one byte is read or allocated for them.

Vectorised, in blocks of rows: the columns are there anyway, and nothing of their size is made besides.

    >>> starts = np.array([0, 2])
    >>> apart(np.array([10, 20]), np.array([10, 10]), starts), apart(np.array([10, 19]), np.array([10, 10]), starts)
    (True, False)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.chunks import grid, slab_nbytes
from streamkit.errors import DamagedError, RefusedError, UsageError
from streamkit.guard import mend
from streamkit.index import Index
from streamkit.remote.address import Address
from streamkit.schema import Field
from streamkit.splits import Split
from streamkit.tables import CHUNK_COLUMNS, RATIO, SIDES, has_shapes

MAX_RANGE_NBYTES = 1 << 30
_BLOCK = 1 << 18  # rows looked at together
_LARGEST = {"orientation": 8, "channels": 4}
Ints = npt.NDArray[np.int64]
_NONE: Ints = np.empty(0, np.int64)
Columns = Mapping[str, npt.NDArray[Any]]


def load_chunks(root: Path | Address, split: Split) -> dict[str, npt.NDArray[Any]]:
    """The chunk table of a split; "shard" holds the number of each chunk's shard, ascending.

    Raises:
        DamagedError: missing, altered, or not what a chunk table is.
    """
    table = Index(root / str(split.chunks), None, split.chunks_digest, CHUNK_COLUMNS, "the chunk table")
    columns = table.load([name for name in CHUNK_COLUMNS if name in table])
    number = {shard.file: i for i, shard in enumerate(split.shards)}
    strangers = set(columns["shard"]) - set(number)
    if strangers:
        raise DamagedError(f"the chunk table names {min(strangers)!r}, which is no shard", path=table.path)
    columns["shard"] = np.fromiter((number[name] for name in columns["shard"]), np.int64, table.n_rows)
    if (np.diff(columns["shard"]) < 0).any():
        raise DamagedError("the chunk table is not in the order of the shards", path=table.path)
    return columns


def check(
    fields: Iterable[Field], split: Split, columns: Columns, chunks: Columns, path: Path | Address, loose: bool = False
) -> None:
    """Hold what was loaded of a split's tables against the manifest.

    Args:
        fields: those whose columns were loaded.
        split: their split.
        columns: of the index.
        chunks: of the chunk table, as `load_chunks` gives it; empty where no field is chunked.
        path: the index, for messages.
        loose: every range is a file of its own.

    Raises:
        DamagedError: a range or chunk that is not there, a shape or label that cannot be.
        RefusedError: ranges that overlap, or are larger than the limit.
    """
    starts = np.cumsum([0] + [shard.samples for shard in split.shards])
    ends = np.array([shard.nbytes for shard in split.shards], np.int64)
    _check_sides(columns, path)
    of_shards, extents = np.searchsorted(chunks.get("shard", _NONE), np.arange(len(ends) + 1)), []
    if len(chunks):
        _check_ranges("the chunk table", chunks["offset"], chunks["length"], of_shards, ends, path)
        if (chunks["crc32c"][chunks["length"] == 0] != 0).any():  # a chunk of no bytes is one that was never written
            raise DamagedError("a chunk of no bytes has a checksum", path=path, hint=mend(path.parent))
    for field in fields:
        if not field.is_payload:
            _check_column(field, columns[field.name], path)
            continue
        largest = max(field.sample_nbytes, slab_nbytes(field)) if field.dtype != "string" else 0
        if largest > MAX_RANGE_NBYTES:
            what = f"a sample or chunk of {field.name!r} would take {largest} bytes; the limit is {MAX_RANGE_NBYTES}"
            raise RefusedError(what, path=path)
        if field.chunk_rows is not None:
            extents.append(_check_chunks(field, columns, starts, of_shards, path))
            continue
        lengths = columns[f"{field.name}.length"]
        _check_ranges(f"field {field.name!r}", columns[f"{field.name}.offset"], lengths, starts, ends, path, loose)
        if has_shapes(field):
            _check_shapes(field, columns[f"{field.name}.shape"], lengths, path)
    if extents:
        _check_apart(np.stack(extents), path)


def _check_column(field: Field, values: npt.NDArray[Any], path: Path | Address) -> None:
    """A label must be a class that there is.

    Raises:
        DamagedError: it is not.
        UsageError: labels beyond the int32 of batches.
    """
    if field.kind == "label" and len(values) and int(values.max()) > 2**31 - 1:
        raise UsageError(
            f"labels go up to {values.max()}, beyond the int32 of batches", hint="Pass label_mode=None, or fields=."
        )
    if field.class_names is not None and len(values):
        low, high = values.min(), values.max()
        if low < 0 or high >= len(field.class_names):
            raise DamagedError(f"labels go from {low} to {high}, there are {len(field.class_names)} classes", path=path)


def _check_ranges(
    of: str, offsets: Ints, lengths: Ints, starts: Ints, ends: Ints, path: Path | Address, loose: bool = False
) -> None:
    for rows in _blocks(len(offsets)):
        some, counts = (offsets[rows], lengths[rows]), _counts(starts, rows)
        if some[0].min() < 0 or some[1].min() < 0 or (some[0] > np.repeat(ends, counts) - some[1]).any():
            raise DamagedError(f"a range of {of} leaves its shard", path=path, hint=mend(path.parent))
        if some[1].max() > MAX_RANGE_NBYTES:
            raise RefusedError(f"a range of {some[1].max()} bytes; the limit is {MAX_RANGE_NBYTES}", path=path)
    if not loose and not apart(offsets, lengths, starts):
        raise RefusedError(f"ranges of {of} overlap", path=path, hint=mend(path.parent))


def _counts(starts: Ints, rows: slice) -> Ints:
    """How many of these rows lie in each file."""
    return np.asarray(np.diff(np.clip(starts, rows.start, rows.stop)), np.int64)


def apart(offsets: Ints, lengths: Ints, starts: Ints) -> bool:
    """Whether no ranges overlap that lie in one file: those of file i are the rows from starts[i] to starts[i + 1].

    As a rule they stand in the order of the file, which one look tells; only those of a file that do not are sorted.
    """
    unordered: set[int] = set()
    for rows in _blocks(len(offsets) - 1):
        late = offsets[rows] + lengths[rows] > offsets[rows.start + 1 : rows.stop + 1]
        if late.any():
            late[starts[(starts > rows.start) & (starts <= rows.stop)] - 1 - rows.start] = False  # in different files
            unordered |= set((np.searchsorted(starts, np.flatnonzero(late) + rows.start, side="right") - 1).tolist())
    for file in unordered:
        at, sizes = offsets[starts[file] : starts[file + 1]], lengths[starts[file] : starts[file + 1]]
        order = np.lexsort((sizes, at))  # an empty range before the one that begins where it lies
        if (at[order[:-1]] + sizes[order[:-1]] > at[order[1:]]).any():
            return False
    return True


def _check_chunks(field: Field, columns: Columns, starts: Ints, of_shards: Ints, path: Path | Address) -> Ints:
    """Record i of a shard lies in row i % chunk_rows of its slab i // chunk_rows: HDF5 leaves no other place.

    Returns:
        The first of each shard's chunks, and the end, in the chunk table: int64 (n_shards, 2).
    """
    chunk, row, n_together = columns[f"{field.name}.chunk"], columns[f"{field.name}.row"], math.prod(grid(field))
    longest = max(1, int(np.diff(starts).max(initial=1)))
    n_rows = min(longest, int(field.chunk_rows or 1))
    slabs = np.arange(max(1, min(longest, _BLOCK) // n_rows))
    chunk_of, row_of = np.repeat(slabs * n_together, n_rows), np.tile(np.arange(n_rows, dtype=row.dtype), len(slabs))
    extents = np.repeat(of_shards[:-1, None], 2, axis=1)
    for shard, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
        first = int(chunk[start]) if start < stop else int(of_shards[shard])
        end = first + -(-(stop - start) // n_rows) * n_together
        if first < of_shards[shard] or end > of_shards[shard + 1]:
            raise DamagedError(f"field {field.name!r} points outside the chunks of its shard", path=path)
        extents[shard] = first, end
        for at in range(start, stop, len(row_of)):
            some, n = slice(at, min(stop, at + len(row_of))), min(len(row_of), stop - at)
            passed = first + (at - start) // n_rows * n_together
            if (row[some] != row_of[:n]).any() or (chunk[some] - passed != chunk_of[:n]).any():
                what = f"field {field.name!r} says of a record that it lies elsewhere than its number tells"
                raise DamagedError(what, path=path, hint=mend(path.parent))
    return extents


def _check_apart(extents: Ints, path: Path | Address) -> None:
    """No chunk holds two fields; `extents` (n_fields, n_shards, 2)."""
    ordered = np.take_along_axis(extents, np.argsort(extents[..., :1], axis=0), axis=0)
    if (ordered[:-1, :, 1] > ordered[1:, :, 0]).any():
        raise DamagedError("fields share chunks", path=path, hint=mend(path.parent))


def _check_shapes(field: Field, shapes: Ints, lengths: Ints, path: Path | Address) -> None:
    """A shape must have the axes of the schema, and as many values as there are bytes (compressed: as there can be)."""
    fixed = [(axis, n) for axis, n in enumerate(field.shape) if n is not None]
    for rows in _blocks(len(shapes)):
        some, stored = shapes[rows], lengths[rows].astype(np.float64)
        nbytes = some.prod(axis=1, dtype=np.float64) * np.dtype(field.dtype).itemsize  # no overflow, and whole to 2**53
        wrong = nbytes > RATIO * stored + 64 if field.encoding == "zlib" else nbytes != stored
        wrong |= (some < 0).any(axis=1)
        for axis, n in fixed:
            wrong |= some[:, axis] != n
        if wrong.any():
            i = int(np.argmax(wrong))
            what = f"{field.name}.shape of row {rows.start + i} is {some[i].tolist()}, of {int(stored[i])} stored bytes"
            raise DamagedError(what, path=path, hint=mend(path.parent))


def _check_sides(columns: Columns, path: Path | Address) -> None:
    for name in SIDES:
        values = columns.get(name)
        if (
            values is None or not len(values) or values.dtype.kind not in "iu"
        ):  # a column of the user's may be called so
            continue
        if values.min() < 1 or values.max() > _LARGEST.get(name, 2**31 - 1):
            what = f"column {name!r} goes from {values.min()} to {values.max()}, which no picture does"
            raise DamagedError(what, path=path, hint=mend(path.parent))


def _blocks(n: int) -> Iterator[slice]:
    return (slice(at, min(at + _BLOCK, n)) for at in range(0, n, _BLOCK))
