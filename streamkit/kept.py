"""Stretches of small samples, brought from a server and kept while the order mixes them with others.

A stretch that is wanted is brought whole, by whoever wants it first; the others wait. What is kept never takes more than it
may: where stretches in use leave no room, rows are read by themselves. So are those of a stretch that could not be
brought, and of a field that is a small part of it. What a stretch holds is believed only row by row, by the crc32c of what
is taken from it; a wrong row is read by itself, too, which is where it is asked for again, or named.

>>> _copied([np.arange(9, dtype=np.uint8)], *np.array([[0], [2], [3]]), np.zeros(3, np.uint8), *np.array([[0], [7]]))
[0]
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from streamkit import native
from streamkit.forking import anew_in_children
from streamkit.native import BadRange
from streamkit.storage import Files, Part
from streamkit.stretches import Spans, bounds

if TYPE_CHECKING:
    from streamkit.reader import Reader

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_AGAIN_S = 60.0  # until a stretch that could not be brought is tried again
_NOTHING, _NONE = Spans([], {}, 0), np.empty(0, np.uint8)


class _Stretch:
    """One stretch, under way or there.

    Attributes:
        n_users: calls that want something of it now, and who brings it; it stays while there are any.
        memory: what it holds; nothing until it has `ended`, nor if it could not be brought.
        again_at: when to try that again [s]; 0 where it did not fail.
    """

    def __init__(self, shard: str, spans: Spans) -> None:
        self.shard, self.spans = shard, spans
        self.n_users = 0
        self.memory: Bytes | None = None
        self.again_at = 0.0
        self.ended = threading.Event()


class Stretches:
    """Stretches of a split on a server, those used longest ago dropped first. Safe in threads; a forked child begins anew.

    Args:
        reader: whose rows, shards and files they are.
        n_rows: see `n_together`.
        budget_nbytes: that they take at most [B], those under way included.
    """

    def __init__(self, reader: Reader, n_rows: Ints, budget_nbytes: int) -> None:
        self.reader, self.budget = reader, budget_nbytes
        self.bounds = bounds(reader.shard_starts, n_rows)
        self.reset()
        anew_in_children(self)

    def reset(self) -> None:
        """Keep nothing."""
        self._lock = threading.Lock()
        self._held: dict[int, _Stretch] = {}
        # Idle are those that nobody uses, the one used last at the end; busy are the others.
        self._idle: OrderedDict[int, _Stretch] = OrderedDict()
        self._nbytes = self._busy_nbytes = 0

    def shrink(self, budget_nbytes: int) -> None:
        """Take no more than so much from now on [B]; what is in use goes when it is used."""
        with self._lock:
            self.budget = budget_nbytes
            self._make_room(0)

    def bring_any(self) -> bool:
        """Whether any field asked for is enough of where it lies to be brought so, by what the first stretch says."""
        return bool(self._planned(0).spans.runs)

    def read(self, name: str, rows: Ints, memory: Bytes, places: Ints) -> Ints:
        """Bring the stored bytes of a field's rows into memory; arguments as `Reader.read`.

        Returns:
            Which of `rows` are to be read by themselves, int64, ascending.
        """
        numbers, which = np.unique(self._numbers(rows), return_inverse=True)
        used = self._use(numbers.tolist())
        try:
            for stretch in used.values():
                stretch.ended.wait()
            return self._copy(name, rows, [used.get(number) for number in numbers.tolist()], which, memory, places)
        finally:
            self._release(used)

    def expect(self, rows: Ints) -> None:
        """Begin to bring what these rows will need, as far as there is room."""
        self._release(self._use(np.unique(self._numbers(rows)).tolist()))

    def _numbers(self, rows: Ints) -> Ints:
        return np.searchsorted(self.bounds, rows, side="right") - 1

    def _use(self, numbers: Sequence[int]) -> dict[int, _Stretch]:
        """The stretches of these numbers, there or under way, but those for which there is no room."""
        used: dict[int, _Stretch] = {}
        new: dict[int, _Stretch] = {}
        try:
            with self._lock:
                due = [number for number in numbers if self._is_due(number)]
                for number in set(numbers).difference(due):  # first, so that none of them makes room for the others
                    self._join(number, self._held[number])
                    used[number] = self._held[number]
                for number, planned in [(number, self._planned(number)) for number in due]:
                    new[number] = planned
                    if self._took_in(number, planned):
                        self._join(number, planned)
                        used[number] = planned
                    else:
                        del new[number]
            self._begin(new)
        except BaseException:  # nobody is to wait for what will not come
            for number, stretch in new.items():
                self._end(number, stretch, None)
            self._release(used)
            raise
        return used

    def _is_due(self, number: int) -> bool:
        """Whether a stretch is to be brought; one that failed long enough ago is forgotten."""
        stretch = self._held.get(number)
        if stretch is not None and number in self._idle and 0 < stretch.again_at < time.monotonic():
            self._drop(number)
            stretch = None
        return stretch is None

    def _planned(self, number: int) -> _Stretch:
        reader, rows = self.reader, slice(int(self.bounds[number]), int(self.bounds[number + 1]))
        shard = int(np.searchsorted(reader.shard_starts, rows.start, side="right") - 1)
        columns = {f.name: (f"{f.name}.offset", f"{f.name}.length") for f in reader.fields if f.is_payload}
        ranges = {f: (reader.columns[at][rows], reader.columns[n][rows]) for f, (at, n) in columns.items()}
        return _Stretch(reader.split.shards[shard].file, Spans.of(ranges))

    def _took_in(self, number: int, stretch: _Stretch) -> bool:
        """Make room for a stretch and hold it; False where those in use leave none, or where it would bring nothing."""
        nbytes = stretch.spans.nbytes
        if not nbytes or self._busy_nbytes + nbytes > self.budget:
            return False
        self._make_room(nbytes)
        stretch.n_users = 1  # who brings it
        self._held[number] = stretch
        self._nbytes += nbytes
        self._busy_nbytes += nbytes
        return True

    def _make_room(self, nbytes: int) -> None:
        while self._idle and self._nbytes + nbytes > self.budget:
            self._drop(next(iter(self._idle)))

    def _drop(self, number: int) -> None:
        del self._idle[number]
        self._nbytes -= self._held.pop(number).spans.nbytes

    def _join(self, number: int, stretch: _Stretch) -> None:
        if stretch.n_users == 0:
            self._idle.pop(number, None)
            self._busy_nbytes += stretch.spans.nbytes
        stretch.n_users += 1

    def _leave(self, number: int, stretch: _Stretch) -> None:
        stretch.n_users -= 1
        if stretch.n_users == 0:
            self._idle[number] = stretch
            self._busy_nbytes -= stretch.spans.nbytes

    def _release(self, used: Mapping[int, _Stretch]) -> None:
        with self._lock:
            for number, stretch in used.items():
                self._leave(number, stretch)

    def _begin(self, new: Mapping[int, _Stretch]) -> None:
        """Ask for stretches, all at once."""
        under_way: list[tuple[int, _Stretch, Bytes] | None] = [
            (number, stretch, np.empty(stretch.spans.nbytes, np.uint8)) for number, stretch in new.items()
        ]

        def ended(i: int, error: BaseException | None) -> None:
            one, under_way[i] = under_way[i], None  # the memory of one is not held until all have ended
            if one is not None:
                self._end(one[0], one[1], one[2] if error is None else None)

        if under_way:
            assert not isinstance(self.reader.files, Files)  # they are on a server
            self.reader.files.begin([(_part(stretch), memory) for _, stretch, memory in filter(None, under_way)], ended)

    def _end(self, number: int, stretch: _Stretch, memory: Bytes | None) -> None:
        """Note that a stretch is there; or that it failed, for a reason that its rows meet again, and name, when they are
        read by themselves."""
        with self._lock:
            if stretch.ended.is_set() or self._held.get(number) is not stretch:
                return
            stretch.memory = memory
            if memory is None:
                self._nbytes -= stretch.spans.nbytes
                self._busy_nbytes -= stretch.spans.nbytes
                stretch.spans, stretch.again_at = _NOTHING, time.monotonic() + _AGAIN_S
            self._leave(number, stretch)
            stretch.ended.set()

    def _copy(
        self, name: str, rows: Ints, stretches: Sequence[_Stretch | None], which: Ints, memory: Bytes, places: Ints
    ) -> Ints:
        """Copy rows out of the stretches that they lie in, `stretches[which[i]]` of `rows[i]`; see `read`."""
        sources, shifts = [_NONE] * len(stretches), np.zeros(len(stretches), np.int64)
        for i, stretch in enumerate(stretches):
            if stretch is not None and stretch.memory is not None and name in stretch.spans.shifts:
                sources[i], shifts[i] = stretch.memory, stretch.spans.shifts[name]
        there = np.array([source is not _NONE for source in sources], bool)[which]
        left, some = np.flatnonzero(~there), np.flatnonzero(there)
        which, columns = which[some], self.reader.columns
        offsets = columns[f"{name}.offset"][rows[some]] + shifts[which]
        lengths, crcs = self.reader.lengths(name, rows[some]), columns[f"{name}.crc32c"][rows[some]]
        wrong = _copied(sources, which, offsets, lengths, memory, places[some], crcs)
        return np.sort(np.concatenate([left, some[wrong]])) if wrong else left


def _part(stretch: _Stretch) -> Part:
    """What is to be asked for."""
    starts, stops = np.array(stretch.spans.runs, np.int64).T
    lengths = stops - starts
    return Part(stretch.shard, starts, lengths, np.cumsum(lengths) - lengths, None)


def _copied(
    sources: Sequence[Bytes],
    which: Ints,
    offsets: Ints,
    lengths: Ints,
    memory: Bytes,
    places: Ints,
    crcs: npt.NDArray[np.uint32],
) -> list[int]:
    """Copy ranges, each out of the source of its number in `which`; the numbers of those whose sums are not `crcs`."""
    wrong: list[int] = []
    if not native.available():
        view = memoryview(memory)  # type: ignore[arg-type]
        numbers = (values.tolist() for values in (which, offsets, lengths, places, crcs))
        for i, (source, offset, length, place, crc) in enumerate(zip(*numbers, strict=True)):
            memory[place : place + length] = sources[source][offset : offset + length]
            if crc32c(view[place : place + length]) != crc:
                wrong.append(i)
        return wrong
    addresses = offsets + np.array([native.address(source) for source in sources], np.int64)[which]
    start = 0
    while start < len(addresses):
        try:
            native.copy(addresses[start:], lengths[start:], memory, places[start:], crcs[start:])
            break
        except BadRange as bad:
            wrong.append(start + bad.i)
            start += bad.i + 1
    return wrong
