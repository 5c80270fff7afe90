"""Order as arithmetic: any position of any epoch is reachable at once, and the state is a cursor of a few integers.

A position is a sample's place in the global order of an epoch; `Order.rows` turns positions into rows by a keyed
bijection (an alternating Feistel network with cycle walking), so a full shuffle needs no memory. Rows that share
compressed chunks are shuffled chunk first, then row within a window of chunks; the interface is the same.

    >>> order = Order(10, seed=1)
    >>> rows = order.rows(epoch=0, start=0, stop=10)
    >>> sorted(rows.tolist()) == list(range(10)), (rows == order.rows(0, 0, 10)).all()
    (True, np.True_)
    >>> order.rows(0, 4, 6).tolist() == rows[4:6].tolist()
    True
    >>> Batches(n=10, batch_size=4).positions(2)
    (8, 10)
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamkit.bijection import permute, permute_each
from streamkit.errors import UsageError

Ints = npt.NDArray[np.int64]


class Rows(Protocol):
    """What is shuffled and sharded: positions of an epoch -> numbers of the chosen rows."""

    @property
    def n(self) -> int: ...
    def rows(self, epoch: int, start: int, stop: int) -> Ints: ...
    def around(self, start: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]: ...


def around(start: int, n: int, n_positions: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The `n` positions (or all) from `start` on, going round at the end, as two runs [start, stop)."""
    n = min(n, n_positions)
    first = min(n, n_positions - start)
    return (start, start + first), (0, n - first)


_PARTS = 32  # of a batch and of a window: as many replicas bring nothing twice
# Positions computed at once: spreads NumPy's cost per call over many batches, in arrays of 64 KiB. From 128 KiB on malloc maps
# them anew each time (once TensorFlow has set it so, always), which cost as much as computing them.
_BLOCK = 8_192


@dataclass(frozen=True, eq=False)  # compared by identity, as `bounds` is an array
class Order:
    """The order of `n` chosen rows in every epoch.

    Where rows come many at a time, in chunks, each part of a global batch draws from a part of the window of its own:
    whoever makes a share of every batch needs that share of the chunks, whatever the number of shares.

    Attributes:
        n: number of chosen rows; the order yields numbers in [0, n).
        seed: any integer.
        shuffle: False gives storage order in every epoch.
        bounds: where rows come in chunks, the numbers [0, ..., n] where a new one begins (int64, n_chunks + 1); else None.
        window: chunks whose rows are mixed with one another.
        global_batch: samples in a batch over all shards; 1 where batches draw from several orders.
    """

    n: int
    seed: int = 0
    shuffle: bool = True
    bounds: Any = None
    window: int = 1
    global_batch: int = 1

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        """Rows at positions [start, stop) of the epoch: int64, in the order they are to be delivered."""
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        first, last = start // _BLOCK, max(start, stop - 1) // _BLOCK
        parts = [_cached_block(self, epoch, b) for b in range(first, last + 1)]
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return block[start - first * _BLOCK : stop - first * _BLOCK]

    def around(self, start: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The `n` positions (or all) from `start` on, going round at the end, as two runs [start, stop)."""
        return around(start, n, self.n)

    def span(self, epoch: int, start: int, stop: int) -> Ints:
        """As `rows`, but nothing is kept for next time."""
        positions = np.arange(start, stop, dtype=np.int64)
        if not self.shuffle:
            return positions
        if self.bounds is None:
            return permute(positions, self.n, (self.seed, epoch))
        return self._windowed(epoch, positions)

    def _windowed(self, epoch: int, positions: Ints) -> Ints:
        chunks, starts, window_starts = _chunk_order(self, epoch)
        out = np.empty_like(positions)
        if not len(positions):
            return out
        at, last = int(positions[0]), int(positions[-1])
        w = int(np.searchsorted(window_starts, at, side="right")) - 1
        while at <= last:
            base, end = int(window_starts[w]), int(window_starts[w + 1])
            stop = min(end, last + 1)
            inside = self._within(epoch, w, base, end, np.arange(at, stop)) + base
            chunk = np.searchsorted(starts, inside, side="right") - 1
            out[at - positions[0] : stop - positions[0]] = self.bounds[chunks[chunk]] + (inside - starts[chunk])
            at, w = stop, w + 1
        return out

    @property
    def n_parts(self) -> int:
        """Parts of a global batch that draw from parts of the window of their own; one where one window holds all."""
        windows = self.bounds is not None and self.window < len(self.bounds) - 1
        return min(_PARTS, self.global_batch) if windows else 1

    def _within(self, epoch: int, w: int, base: int, end: int, positions: Ints) -> Ints:
        """Which of the rows of window `w`, [0, end - base), come at these positions of it, [base, end)."""
        if self.n_parts == 1:
            return permute(positions - base, end - base, (self.seed, epoch, w))
        # Places of a batch where its parts begin, rounded up.
        edges = -(-np.arange(self.n_parts + 1) * self.global_batch // self.n_parts)
        sizes = np.diff(edges)

        def before(position: Any, part: Any) -> Ints:
            """Positions of a part before this one."""
            batch, rest = np.divmod(position, self.global_batch)
            return np.asarray(batch * sizes[part] + np.clip(rest - edges[part], 0, sizes[part]))

        every = np.arange(self.n_parts)
        firsts = before(base, every)
        n_rows = before(end, every) - firsts
        part = np.searchsorted(edges, positions % self.global_batch, side="right") - 1
        number = before(positions, part) - firsts[part]
        keys = np.full_like(part, epoch), np.full_like(part, w), part
        return (np.cumsum(n_rows) - n_rows)[part] + permute_each(number, n_rows[part], self.seed, *keys)


@lru_cache(maxsize=16)
def _cached_block(order: Order, epoch: int, number: int) -> Ints:
    block = order.span(epoch, number * _BLOCK, min((number + 1) * _BLOCK, order.n))
    block.setflags(write=False)  # callers get views of it
    return block


@lru_cache(maxsize=64)  # a balanced order has one a class
def _chunk_order(order: Order, epoch: int) -> tuple[Ints, Ints, Ints]:
    """Chunks in this epoch's order, the position where each begins, and the positions [0, ..., n] where windows begin."""
    n_chunks = len(order.bounds) - 1
    chunks = permute(np.arange(n_chunks), n_chunks, (order.seed, epoch))
    starts = np.zeros(n_chunks + 1, np.int64)
    np.cumsum(np.diff(order.bounds)[chunks], out=starts[1:])
    window_starts = np.append(starts[:-1][:: order.window], starts[-1])
    return chunks, starts, window_starts


@dataclass(frozen=True)
class Batches:
    """How an epoch of `n` positions is cut into batches, and which part of each belongs to this shard.

    With S shards, global batch g is positions [g*B*S, (g+1)*B*S) and shard r takes the r-th slice. The last global batch
    is divided evenly; a rest smaller than S is dropped, or with `pad` filled up with positions from the beginning again.
    """

    n: int
    batch_size: int
    drop_remainder: bool = False
    shard_index: int = 0
    num_shards: int = 1
    pad: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}, expected at least 1, or None for single samples")
        if self.num_shards < 1:
            raise UsageError(f"num_shards is {self.num_shards}, expected at least 1")
        if not 0 <= self.shard_index < self.num_shards:
            raise UsageError(f"shard_index is {self.shard_index}, expected 0 to {self.num_shards - 1}")

    @property
    def global_size(self) -> int:
        """Samples in one global batch, over all shards."""
        return self.batch_size * self.num_shards

    def __len__(self) -> int:
        whole, rest = divmod(self.n, self.global_size)
        return whole + (not self.drop_remainder and rest >= (1 if self.pad else self.num_shards))

    def positions(self, batch: int) -> tuple[int, int]:
        """First and past-the-last position of this shard's part of global batch `batch`; beyond `n` it is padding."""
        if not 0 <= batch < len(self):
            raise IndexError(f"batch {batch} is outside the epoch's {len(self)} batches")
        start = batch * self.global_size
        rest = self.n - start
        part = min(self.batch_size, -(-rest // self.num_shards) if self.pad else rest // self.num_shards)
        first = start + self.shard_index * part
        return first, first + part

    def n_padding(self, batch: int) -> int:
        """Positions of this shard's part of global batch `batch` that are padding."""
        first, last = self.positions(batch)
        return max(0, last - max(first, self.n))


@dataclass(frozen=True)
class Cursor:
    """The resume state: which epoch, how many samples of its global order are done, and of what (`fingerprint`)."""

    epoch: int
    position: int
    fingerprint: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "fingerprint": dict(self.fingerprint)}

    @classmethod
    def parse(cls, data: Any, expected: Mapping[str, Any]) -> Cursor:
        """Check a cursor from outside against the fingerprint of the loader that is to resume from it.

        Raises:
            UsageError: not a cursor, or one of something else; the message says what differs.
        """
        try:
            epoch, position = operator.index(data["epoch"]), operator.index(data["position"])
            found = dict(data["fingerprint"])
        except (KeyError, TypeError, ValueError):
            raise UsageError("this is no cursor", hint="Pass what cursor_at() returned.") from None
        differs = [
            f"{name} (cursor {found.get(name)!r}, here {value!r})"
            for name, value in expected.items()
            if found.get(name) != value
        ]
        if differs:
            hint = (
                "A window hangs on memory_budget=, cache_dir= and where the data lie." if "window" in differs[0] else ""
            )
            raise UsageError(f"this cursor belongs to something else: {'; '.join(differs)}", hint=hint)
        if epoch < 0 or position < 0:
            raise UsageError(f"the cursor points at epoch {epoch}, position {position}; both must be >= 0")
        return cls(epoch, position, found)
