"""Small samples on a server, brought many in one request and kept while the order mixes them with others.

A stretch is a run of rows of one shard that take about 256 KiB there. One that is wanted is brought whole, by whoever
wants it first; the others wait. What is kept never takes more than it may: where stretches in use leave no room, rows are
read by themselves. What a stretch holds is believed only row by row, by the crc32c of what is taken from it; a wrong row
is read by itself, too, which is where it is asked for again, or named.

    >>> n_together(record_nbytes=16_400), n_together(200_000)
    (15, None)
    >>> bounds(np.array([0, 20, 35]), 15).tolist()
    [0, 15, 20, 35]
    >>> Spans.of({"a": (np.array([10, 60]), np.array([4, 4])), "b": (np.array([14, 64]), np.array([6, 6]))})
    Spans(runs=[(10, 70)], shifts={'a': -10, 'b': -10}, nbytes=60)
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from streamkit import native
from streamkit.errors import RemoteError
from streamkit.forking import anew_in_children
from streamkit.native import BadRange
from streamkit.storage import Files, Part

if TYPE_CHECKING:
    from streamkit.reader import Reader

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

STRETCH_NBYTES = 256 << 10
_SMALL_NBYTES = 64 << 10  # larger ones use a network's bandwidth one by one
_SPARSE = 4  # times the bytes that are wanted, in which they lie: a field spread wider is read by itself


def n_together(record_nbytes: int) -> int | None:
    """Rows of a stretch, where records of that mean size [B] should come in stretches."""
    return STRETCH_NBYTES // max(1, record_nbytes) if record_nbytes <= _SMALL_NBYTES else None


def bounds(shard_starts: Ints, n_rows: int) -> Ints:
    """First row of each stretch, and the end, int64; a stretch is `n_rows` long or ends with its shard."""
    parts = [
        np.arange(a, b, n_rows) for a, b in zip(shard_starts[:-1].tolist(), shard_starts[1:].tolist(), strict=True)
    ]
    return np.concatenate([*parts, shard_starts[-1:]]).astype(np.int64)


class Spans(NamedTuple):
    """Where the payloads of a stretch lie in its shard, and in memory that holds them one behind the other.

    Attributes:
        runs: [start, stop) in the shard [B].
        shifts: field -> what makes an offset in the shard one in memory [B].
        nbytes: of the memory.
    """

    runs: list[tuple[int, int]]
    shifts: dict[str, int]
    nbytes: int

    @classmethod
    def of(cls, ranges: Mapping[str, tuple[Ints, Ints]]) -> Spans:
        """Of the offsets and lengths [B] of some rows of each field. A field that lies too wide is left out."""
        found = []
        for name, (offsets, lengths) in ranges.items():
            start, stop = int(offsets.min()), int((offsets + lengths).max())
            if stop - start <= _SPARSE * max(int(lengths.sum()), STRETCH_NBYTES):
                found.append((start, stop, name))
        runs: list[tuple[int, int]] = []
        shifts, nbytes = {}, 0
        for start, stop, name in sorted(found):
            if runs and start <= runs[-1][1]:
                start, stop = runs[-1][0], max(stop, runs[-1][1])
                nbytes -= runs[-1][1] - runs[-1][0]
                runs.pop()
            runs.append((start, stop))
            shifts[name] = nbytes - start
            nbytes += stop - start
        return cls(runs, shifts, nbytes)


class _Stretch:
    """One stretch, under way or there.

    Attributes:
        n_users: calls that want something of it now, and who brings it; it stays while there are any.
        memory: what it holds; nothing until it has `ended`, nor if it could not be brought.
        error: why, where asking once more is of no use.
    """

    def __init__(self, shard: str, spans: Spans) -> None:
        self.shard, self.spans = shard, spans
        self.n_users = 0
        self.memory: Bytes | None = None
        self.error: RemoteError | None = None
        self.ended = threading.Event()


class Stretches:
    """Stretches of a split on a server, those used longest ago dropped first. Safe in threads; a forked child begins anew.

    Args:
        reader: whose rows, shards and files they are.
        n_rows: of a stretch.
        budget_nbytes: that they take at most [B].
    """

    def __init__(self, reader: Reader, n_rows: int, budget_nbytes: int) -> None:
        self.reader, self.budget = reader, budget_nbytes
        self.bounds = bounds(reader.shard_starts, n_rows)
        self.reset()
        anew_in_children(self)

    def reset(self) -> None:
        """Keep nothing."""
        self._lock = threading.Lock()
        self._held: OrderedDict[int, _Stretch] = OrderedDict()
        self._nbytes = 0

    def read(self, name: str, rows: Ints, memory: Bytes, places: Ints) -> Ints:
        """Bring the stored bytes of a field's rows into memory; arguments as `Reader.read`.

        Returns:
            Which of `rows` are to be read by themselves, int64, ascending.

        Raises:
            RemoteError: as `FarFiles.read_parts`.
        """
        numbers, which = np.unique(self._numbers(rows), return_inverse=True)
        used = self._use(numbers.tolist())
        try:
            for stretch in used:
                if stretch is not None:
                    stretch.ended.wait()
                    if stretch.error is not None:
                        raise stretch.error
            return self._copy(name, rows, [used[i] for i in which.tolist()], memory, places)
        finally:
            self._release(used)

    def expect(self, rows: Ints) -> None:
        """Begin to bring what these rows will need, as far as there is room."""
        self._release(self._use(np.unique(self._numbers(rows)).tolist()))

    def _numbers(self, rows: Ints) -> Ints:
        return np.searchsorted(self.bounds, rows, side="right") - 1

    def _use(self, numbers: Sequence[int]) -> list[_Stretch | None]:
        """The stretches of these numbers, there or under way; None where there is no room."""
        used: list[_Stretch | None] = []
        new: dict[int, _Stretch] = {}
        with self._lock:
            for number in numbers:
                stretch = self._held.get(number)
                if stretch is None:
                    stretch = self._planned(number)
                    if not self._make_room(stretch.spans.nbytes):
                        used.append(None)
                        continue
                    self._held[number] = new[number] = stretch
                    self._nbytes += stretch.spans.nbytes
                    stretch.n_users += 1  # who brings it
                self._held.move_to_end(number)
                stretch.n_users += 1
                used.append(stretch)
        if new:
            self._begin(new)
        return used

    def _release(self, used: Sequence[_Stretch | None]) -> None:
        with self._lock:
            for stretch in used:
                if stretch is not None:
                    stretch.n_users -= 1

    def _planned(self, number: int) -> _Stretch:
        reader, rows = self.reader, slice(int(self.bounds[number]), int(self.bounds[number + 1]))
        shard = int(np.searchsorted(reader.shard_starts, rows.start, side="right") - 1)
        columns = {f.name: (f"{f.name}.offset", f"{f.name}.length") for f in reader.fields if f.is_payload}
        ranges = {f: (reader.columns[at][rows], reader.columns[n][rows]) for f, (at, n) in columns.items()}
        return _Stretch(reader.split.shards[shard].file, Spans.of(ranges))

    def _make_room(self, nbytes: int) -> bool:
        """Drop what is not in use until `nbytes` more fit."""
        if self._nbytes + nbytes > self.budget:
            for number in [number for number, stretch in self._held.items() if stretch.n_users == 0]:
                self._drop(number)
                if self._nbytes + nbytes <= self.budget:
                    break
        return self._nbytes + nbytes <= self.budget

    def _drop(self, number: int) -> None:
        self._nbytes -= self._held.pop(number).spans.nbytes

    def _begin(self, new: Mapping[int, _Stretch]) -> None:
        """Ask for stretches, all at once."""
        numbers, stretches = list(new), list(new.values())
        memories = [np.empty(stretch.spans.nbytes, np.uint8) for stretch in stretches]

        def ended(i: int, error: BaseException | None) -> None:
            with self._lock:
                stretches[i].n_users -= 1
                if error is None:
                    stretches[i].memory = memories[i]
                else:  # what else went wrong is met again by the row, and said of it
                    stretches[i].error = error if isinstance(error, RemoteError) else None
                    self._drop(numbers[i])
            stretches[i].ended.set()

        assert not isinstance(self.reader.files, Files)  # they are on a server
        self.reader.files.begin([_part(stretch) for stretch in stretches], memories, ended)

    def _copy(self, name: str, rows: Ints, stretches: Sequence[_Stretch | None], memory: Bytes, places: Ints) -> Ints:
        there = [s is not None and s.memory is not None and name in s.spans.shifts for s in stretches]
        left, some = np.flatnonzero(np.logical_not(there)), np.flatnonzero(there)
        columns, own = self.reader.columns, [s for s, is_there in zip(stretches, there, strict=True) if is_there]
        offsets = columns[f"{name}.offset"][rows[some]] + np.array([s.spans.shifts[name] for s in own if s], np.int64)
        lengths, crcs = self.reader.lengths(name, rows[some]), columns[f"{name}.crc32c"][rows[some]]
        sources = [s.memory for s in own if s is not None and s.memory is not None]
        wrong = _copied(sources, offsets, lengths, memory, places[some], crcs)
        return np.sort(np.concatenate([left, some[wrong]]))


def _part(stretch: _Stretch) -> Part:
    """What is to be asked for."""
    starts, stops = np.array(stretch.spans.runs, np.int64).reshape(-1, 2).T
    lengths = stops - starts
    return Part(stretch.shard, starts, lengths, np.cumsum(lengths) - lengths, None)


def _copied(
    sources: Sequence[Bytes], offsets: Ints, lengths: Ints, memory: Bytes, places: Ints, crcs: npt.NDArray[np.uint32]
) -> list[int]:
    """Copy a range out of each source; the numbers of those whose sums are not `crcs`."""
    wrong: list[int] = []
    if not native.available():
        view = memoryview(memory)  # type: ignore[arg-type]
        ranges = zip(sources, offsets.tolist(), lengths.tolist(), places.tolist(), crcs.tolist(), strict=True)
        for i, (source, offset, length, place, crc) in enumerate(ranges):
            memory[place : place + length] = source[offset : offset + length]
            if crc32c(view[place : place + length]) != crc:
                wrong.append(i)
        return wrong
    addresses = offsets + np.array([native.address(source) for source in sources], np.int64)
    start = 0
    while start < len(sources):
        try:
            native.copy(addresses[start:], lengths[start:], memory, places[start:], crcs[start:])
            break
        except BadRange as bad:
            wrong.append(start + bad.i)
            start += bad.i + 1
    return wrong
