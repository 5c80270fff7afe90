"""Chunked HDF5 outside libhdf5: each chunk read by its place, checked, decoded once by whichever threads want it, and kept.

A slab is a run of rows whose chunks are decoded together. Where chunks hold whole samples, a slab is one chunk. Where they
split the sample axes (h5py's own guess for (50000, 32, 32, 3) is chunks of (6250, 4, 4, 1)), it is all chunks that cover
the same rows: they stand one after the other in the chunk table, in C order of their places, so a place is a number.
Chunks at the far edges stick out of the sample; a chunk that was never written has no bytes, and holds the fill value.

Such a slab is laid out row by row as it is decoded, one band after the other: the chunks at one place of the sample's
first axis, which hold a piece of each row. A band's chunks are read side by side from front to end, while the cache has
them still: 1.0 us a picture of 32x32x3 in chunks of (6250, 4, 4, 1), and 0.9 us to copy its row when a batch wants it.
Putting rows together only then, from 192 places far apart, took 4.8 us.

    >>> field = Field("x", "array", "uint8", (5, 3), chunk_rows=10, chunk_shape=(2, 3))
    >>> grid(field), slab_nbytes(field), band_nbytes(field)
    ((3, 1), 180, 60)
    >>> starts, run_nbytes = runs(field)    # chunks of 60 bytes, of which a row has 6; of the last one, 3
    >>> starts.tolist(), run_nbytes
    ([0, 3, 60, 63, 120], 3)
    >>> piece, starts = band(field, 2)      # bytes of a row that the last chunk holds, and where it holds them
    >>> (piece.start, piece.stop), starts.tolist()
    ((12, 15), [0])
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamkit import native
from streamkit.codecs.array import BadArray, decode_chunk
from streamkit.errors import DamagedError
from streamkit.forking import anew_in_children
from streamkit.native import BadRange
from streamkit.schema import Field

if TYPE_CHECKING:
    from streamkit.reader import Reader

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def _axes(field: Field) -> list[tuple[int, int]]:
    """(extent of the sample, extent of a chunk) along each axis of the sample."""
    shape = [int(n or 0) for n in field.shape]
    return list(zip(shape, field.chunk_shape or shape, strict=True))


def grid(field: Field) -> tuple[int, ...]:
    """Chunks of a slab along each axis of the sample."""
    return tuple(-(-n // c) if c else 1 for n, c in _axes(field))


def row_nbytes(field: Field) -> int:
    """What one row takes in a chunk [B]."""
    return math.prod(c for _, c in _axes(field)) * np.dtype(field.dtype).itemsize


def chunk_nbytes(field: Field) -> int:
    """Decoded size of one chunk [B]."""
    return row_nbytes(field) * int(field.chunk_rows or 1)


def slab_nbytes(field: Field) -> int:
    """Decoded size of a slab [B], what sticks out of the sample included."""
    return chunk_nbytes(field) * math.prod(grid(field))


def band_nbytes(field: Field) -> int:
    """Decoded size of a band of chunks [B]."""
    return slab_nbytes(field) // (grid(field) or (1,))[0]


@lru_cache(maxsize=64)
def runs(field: Field) -> tuple[npt.NDArray[np.int32], int]:
    """Where the runs of bytes that make up a slab's first row begin in the slab [B], in the row's order; their length [B].

    The runs of row i begin i * row_nbytes later.
    """
    axes, itemsize = _axes(field), np.dtype(field.dtype).itemsize
    steps = [1] * len(axes)  # of values that stay together: whole axes from the last on, then what divides every piece
    for i, (n, c) in reversed(list(enumerate(axes))):
        steps[i] = max(1, math.gcd(n, c))
        if n != c:
            break
    starts = np.zeros(1, np.int64)
    for i, (n, c) in enumerate(axes):  # each axis adds its own: the chunk, and the place in it
        at = np.arange(0, n, steps[i])
        chunk, inside = np.divmod(at, max(1, c))
        chunk *= math.prod(grid(field)[i + 1 :]) * chunk_nbytes(field)
        inside *= math.prod(c for _, c in axes[i + 1 :]) * itemsize
        starts = (starts[:, None] + (chunk + inside)).ravel()
    return starts.astype(np.int32), math.prod(steps) * itemsize


def band(field: Field, number: int) -> tuple[slice, npt.NDArray[np.int32]]:
    """Which bytes of a row the chunks of band `number` hold, and where their runs begin in the band [B]; see `runs`."""
    starts, run_nbytes = runs(field)
    n, c = _axes(field)[0]
    line = field.sample_nbytes // n  # of a row, along the sample's first axis [B]
    piece = slice(number * c * line, min(n, (number + 1) * c) * line)
    return piece, starts[piece.start // run_nbytes : piece.stop // run_nbytes] - number * band_nbytes(field)


class _Slab:
    """One slab under way or done. Whoever wants it decodes chunks until none is left, then waits for the others'.

    Attributes:
        values: uint8 (chunk_rows, bytes of a row). Where the slab is one chunk, as that was decoded.
    """

    def __init__(self, field: Field) -> None:
        self._n = math.prod(grid(field))
        self.n_together = self._n // (grid(field) or (1,))[0]  # chunks of a band
        self.nbytes = slab_nbytes(field)
        self.values: Bytes = np.empty((int(field.chunk_rows or 1), field.sample_nbytes if self._n > 1 else 0), np.uint8)
        self._next, self._left = 0, self._n
        self._bands: dict[int, tuple[Bytes, list[int]]] = {}  # under way: memory, and the chunks that are in it
        self._lock, self._done = threading.Lock(), threading.Event()
        self._error: BaseException | None = None

    def complete(self, decode: Callable[[_Slab, int], None]) -> None:
        """Return when `decode` has been called for every chunk, here or in other threads. Raises what it raised."""
        while (i := self._take()) is not None:
            try:
                decode(self, i)
            except BaseException as error:
                with self._lock:
                    self._error = error
                    self._left -= self._n - self._next  # nobody need begin the rest
                    self._next = self._n
            finally:
                with self._lock:
                    self._left -= 1
                    if self._left == 0:
                        self._done.set()
        self._done.wait()
        if self._error is not None:
            raise self._error

    def band(self, number: int, make: Callable[[], Bytes]) -> Bytes:
        """Memory for the chunks of a band, made when the first of them comes."""
        with self._lock:
            if number not in self._bands:
                self._bands[number] = make(), []
            return self._bands[number][0]

    def is_whole(self, number: int, chunk: int) -> bool:
        """Note that a band's chunk is decoded; whether that was its last one, and its memory no longer wanted here."""
        with self._lock:
            there = self._bands[number][1]
            there.append(chunk)
            return len(there) == self.n_together and self._bands.pop(number) is not None

    @property
    def ready(self) -> bool:
        return self._left == 0 and self._error is None

    def _take(self) -> int | None:
        with self._lock:
            if self._next == self._n:
                return None
            self._next += 1
            return self._next - 1


class Slabs:
    """Decoded slabs, the least recently used dropped first. Safe in threads; a forked child begins anew.

    Args:
        reader: whose files, chunk table and errors they are.
        budget_nbytes: of slabs kept [B]; the one wanted last is always kept.
    """

    def __init__(self, reader: Reader, budget_nbytes: int) -> None:
        self.reader, self.budget = reader, budget_nbytes
        self.reset()
        anew_in_children(self)

    def reset(self) -> None:
        """Keep no slab: in a forked child, one may be waiting for a thread that is not there."""
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, int], _Slab] = OrderedDict()
        self._nbytes = 0
        self._spare: defaultdict[int, list[Bytes]] = defaultdict(list)

    def read(self, field: Field, rows: Ints, out: npt.NDArray[Any]) -> None:
        """Fill `out` (n, ...), contiguous, with the values of these rows."""
        firsts, some, which = np.unique(
            self.reader.columns[f"{field.name}.chunk"][rows], return_index=True, return_inverse=True
        )
        inside = self.reader.columns[f"{field.name}.row"][rows].astype(np.int64)
        slabs = []
        for first, row in zip(firsts.tolist(), rows[some].tolist(), strict=True):
            try:
                slabs.append(self._get(field, first))
            except DamagedError as error:  # each who wants the slab names a row of their own
                raise self.reader.damaged(row, error.what) from None
        memory = out.reshape(len(rows), math.prod(out.shape[1:])).view(np.uint8)
        if math.prod(grid(field)) > 1:
            starts, run_nbytes, pitch = np.zeros(1, np.int32), field.sample_nbytes, field.sample_nbytes
        else:
            (starts, run_nbytes), pitch = runs(field), row_nbytes(field)
        native.gather([s.values.reshape(-1) for s in slabs], which, inside * pitch, starts, run_nbytes, memory)

    def _get(self, field: Field, first: int) -> _Slab:
        """The slab whose first chunk is number `first` of the chunk table."""
        key = (field.name, first)
        with self._lock:
            slab = self._held.get(key)
            if slab is None:
                slab = self._held[key] = _Slab(field)
                self._nbytes += slab.nbytes
                while self._nbytes > self.budget and len(self._held) > 1:
                    self._nbytes -= self._held.popitem(last=False)[1].nbytes
            else:
                self._held.move_to_end(key)
        if slab.ready:
            return slab
        try:
            slab.complete(lambda slab, i: self._decode(field, slab, i, first + i))
        except BaseException:
            with self._lock:
                if self._held.get(key) is slab:
                    del self._held[key]
                    self._nbytes -= slab.nbytes
            raise
        return slab

    def _decode(self, field: Field, slab: _Slab, i: int, chunk: int) -> None:
        """Read and decode chunk number `chunk` into place `i` of a slab."""
        if math.prod(grid(field)) == 1:  # the whole slab
            slab.values = self._chunk(field, chunk)
            return
        number, place = divmod(i, slab.n_together)
        nbytes, memory = chunk_nbytes(field), slab.band(number, lambda: self._spare_band(band_nbytes(field)))
        room = memory[place * nbytes : (place + 1) * nbytes]
        values = self._chunk(field, chunk, room)
        if not np.may_share_memory(values, room):
            room[:] = values
        if slab.is_whole(number, i):
            piece, starts = band(field, number)
            every = np.arange(len(slab.values))
            out = slab.values[:, piece]
            native.gather([memory], np.zeros_like(every), every * row_nbytes(field), starts, runs(field)[1], out)
            with self._lock:
                self._spare[memory.nbytes].append(memory)

    def _spare_band(self, nbytes: int) -> Bytes:
        """Memory that an earlier band lay in, or new: that of many bands would cost a page fault for every 4 KiB of it."""
        with self._lock:
            spare = self._spare[nbytes]
            return spare.pop() if spare else np.empty(nbytes, np.uint8)

    def _chunk(self, field: Field, chunk: int, room: Bytes | None = None) -> Bytes:
        table = self.reader.chunk_table
        length, nbytes, itemsize = int(table["length"][chunk]), chunk_nbytes(field), np.dtype(field.dtype).itemsize
        if length == 0:
            fill = np.frombuffer(bytes.fromhex(field.fill) or bytes(itemsize), np.uint8)
            return np.resize(fill, nbytes)
        data = np.empty(length, np.uint8)
        one = slice(chunk, chunk + 1)
        file = self.reader.split.shards[int(table["shard"][chunk])].file
        try:
            self.reader.files.read(
                file, table["offset"][one], np.array([length]), data, np.zeros(1, np.int64), table["crc32c"][one]
            )
            skipped = int(table["skipped"][chunk]) if "skipped" in table else 0
            return decode_chunk(data.data, pipeline(field, skipped), itemsize, nbytes, room)
        except (BadRange, BadArray) as error:
            raise DamagedError(str(error), shard=file) from None


def pipeline(field: Field, skipped: int = 0) -> tuple[str, ...]:
    """Names of the filters that a chunk went through, in the order applied.

    Args:
        field: a chunked field; "raw" means none.
        skipped: HDF5's filter mask of the chunk: bit i is set where its filter i did not help and was left out.

    >>> pipeline(Field("x", "array", "int16", (4,), "bigendian+shuffle+gzip", 8), skipped=2)
    ('bigendian', 'shuffle')
    """
    names = tuple(name for name in field.encoding.partition(":")[0].split("+") if name != "raw")
    order = names[:1] if names[:1] == ("bigendian",) else ()
    filters = names[len(order) :]
    return order + tuple(name for i, name in enumerate(filters) if not skipped >> i & 1)
