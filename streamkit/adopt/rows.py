"""Where the rows of one HDF5 dataset lie: a range each, or the chunks and the place in them.

>>> filter_names([(2, "shuffle"), (1, "deflate")])
('shuffle', 'gzip')
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from streamkit.chunks import chunk_nbytes, grid, slab_nbytes
from streamkit.codecs.array import FILTERS
from streamkit.schema import Field
from streamkit.shards.chunked import FILTER_IDS
from streamkit.shards.record import range_columns

MAX_CHUNK_NBYTES = 256 << 20
_BLOCK_NBYTES = 16 << 20


class Left(Exception):
    """A dataset that cannot be adopted; the message is the reason."""


@dataclass(frozen=True)
class Stored:
    """A payload dataset of one file: its field, and what the index needs of it. `chunks`: columns of the chunk table."""

    field: Field
    ranges: dict[str, npt.NDArray[Any]]
    chunks: dict[str, npt.NDArray[Any]] | None = None


def filter_names(filters: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """Our names of HDF5 filters given as (id, name). Raises `Left` for one that is not known."""
    for number, name in filters:
        if FILTER_IDS.get(number) not in FILTERS:
            raise Left(f"went through the filter {name or '?'} ({number}), which is not known here")
    return tuple(FILTER_IDS[number] for number, _ in filters)


def find_rows(name: str, dataset: Any, wish: str | None, fd: int) -> Stored:
    """The field of a dataset of two axes or more, and the places of its rows."""
    dtype = dataset.dtype
    swapped = dtype.newbyteorder("<") != dtype and dtype.itemsize > 1
    if (swapped and dtype.kind == "c") or dtype.itemsize > 16:
        raise Left(f"is {dtype}, which is not read here")
    field = Field(name, "array", dtype.newbyteorder("=").name, tuple(map(int, dataset.shape[1:])))
    if swapped:
        field = replace(field, encoding="bigendian")
    if field.sample_nbytes == 0:
        raise Left("has rows without values")
    layout = dataset.id.get_create_plist().get_layout()
    if layout == h5py.h5d.COMPACT:
        raise Left("lies in the file's header (compact), where rows have no addresses")
    stored = (_chunked if layout == h5py.h5d.CHUNKED else _contiguous)(field, dataset, fd)
    return replace(stored, field=_as_image(stored.field)) if wish == "image" else stored


def _as_image(field: Field) -> Field:
    """The same pixels as a picture: (height, width) gets one channel."""
    if (
        field.dtype != "uint8"
        or len(field.shape) not in (2, 3)
        or (len(field.shape) == 3 and field.shape[2] not in (1, 3, 4))
    ):
        raise Left(
            f"is {field.dtype} {field.shape}, and pictures are uint8 (height, width) or (height, width, 1, 3 or 4)"
        )
    if len(field.shape) == 3:
        return replace(field, kind="image")
    chunk_shape = None if field.chunk_shape is None else (*field.chunk_shape, 1)
    return replace(field, kind="image", shape=(*field.shape, 1), chunk_shape=chunk_shape)


def _contiguous(field: Field, dataset: Any, fd: int) -> Stored:
    offset, nbytes = dataset.id.get_offset(), field.sample_nbytes
    if offset is None:
        raise Left("was never written")
    if offset + dataset.shape[0] * nbytes > os.fstat(fd).st_size:
        raise Left("leaves its file")
    return _ranges(field, offset + np.arange(dataset.shape[0], dtype=np.int64) * nbytes, fd)


def _ranges(field: Field, offsets: npt.NDArray[np.int64], fd: int) -> Stored:
    """A range for each row; rows that lie one behind the other are read together for their crc32c."""
    nbytes = field.sample_nbytes
    crcs = np.empty(len(offsets), np.uint32)
    cuts = np.flatnonzero(np.diff(offsets) != nbytes) + 1
    step = max(1, _BLOCK_NBYTES // nbytes)
    for run in np.split(np.arange(len(offsets)), cuts):
        for start in range(0, len(run), step):
            rows = run[start : start + step]
            block = memoryview(_read(fd, int(offsets[rows[0]]), len(rows) * nbytes))
            crcs[rows] = [crc32c(block[at : at + nbytes]) for at in range(0, len(rows) * nbytes, nbytes)]
    return Stored(field, range_columns(field.name, offsets, np.full(len(offsets), nbytes), crcs))


def _read(fd: int, offset: int, nbytes: int) -> bytes:
    data = os.pread(fd, nbytes, offset)
    while len(data) < nbytes:
        more = os.pread(fd, nbytes - len(data), offset + len(data))
        if not more:
            raise Left(f"leaves its file at byte {offset}")
        data += more
    return data


def _chunked(field: Field, dataset: Any, fd: int) -> Stored:
    plist = dataset.id.get_create_plist()
    filters = filter_names([(f[0], f[3].decode()) for f in map(plist.get_filter, range(plist.get_nfilters()))])
    rows, *inner = dataset.chunks
    swapped = (field.encoding,) if field.encoding == "bigendian" else ()
    chunked = replace(
        field,
        encoding="+".join((*swapped, *filters)) or "raw",
        chunk_rows=int(rows),
        chunk_shape=None if tuple(inner) == field.shape else tuple(map(int, inner)),
        fill=_fill(dataset),
    )
    if max(chunk_nbytes(chunked), slab_nbytes(chunked) // 4) > MAX_CHUNK_NBYTES:
        raise Left(f"has chunks of {dataset.chunks}, which take too much memory to read row by row")
    table = _chunk_table(chunked, dataset, fd)
    row = np.arange(dataset.shape[0], dtype=np.int64)
    if not filters and chunked.chunk_shape is None and table["length"].all():
        offsets = table["offset"][row // rows] + row % rows * field.sample_nbytes
        return _ranges(field, offsets, fd)
    n_grid = int(np.prod(grid(chunked), dtype=np.int64))
    ranges = {f"{field.name}.chunk": row // rows * n_grid, f"{field.name}.row": row % rows}
    return Stored(chunked, ranges, table)


def _fill(dataset: Any) -> str:
    fill = np.asarray(dataset.fillvalue, dataset.dtype.newbyteorder("<"))
    return fill.tobytes().hex() if any(fill.tobytes()) else ""


def _chunk_table(field: Field, dataset: Any, fd: int) -> dict[str, npt.NDArray[Any]]:
    """All chunks, slab by slab, in C order of their places in it; those never written have length 0."""
    shape = (dataset.shape[0], *dataset.shape[1:])
    counts = [-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True)]
    n = int(np.prod(counts, dtype=object))
    if n > (1 << 20) + 16 * dataset.id.get_num_chunks():
        raise Left(f"has places for {n} chunks, of which {dataset.id.get_num_chunks()} were written")
    table: dict[str, npt.NDArray[Any]] = {
        "offset": np.zeros(n, np.int64),
        "length": np.zeros(n, np.int64),
        "crc32c": np.zeros(n, np.uint32),
        "skipped": np.zeros(n, np.uint8),
    }

    def note(info: Any) -> None:
        numbers = [at // c for at, c in zip(info.chunk_offset, dataset.chunks, strict=True)]
        i = int(np.ravel_multi_index(numbers, counts))
        table["offset"][i], table["length"][i], table["skipped"][i] = info.byte_offset, info.size, info.filter_mask

    dataset.id.chunk_iter(note)
    if (table["length"] > 2 * MAX_CHUNK_NBYTES).any():
        raise Left(f"has a chunk of {table['length'].max()} bytes")
    for i in np.flatnonzero(table["length"]).tolist():
        table["crc32c"][i] = crc32c(_read(fd, int(table["offset"][i]), int(table["length"][i])))
    return table
