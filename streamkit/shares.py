"""Several orders in one, each with its exact share of the epoch: classes that are balanced, datasets that are mixed.

Time runs through the epoch in blocks. By the end of block b of B, part k has given quota_k * b // B draws: whole numbers,
so shares are exact over the epoch and within one at every block's border. Inside a block the c draws of a part fall one into
each c-th of the block's time, at random there, so every batch has its share too, within a draw or two. A part's draws go
through its own order pass after pass and from epoch to epoch: a large part is used whole before anything of it
repeats, and a small one as often as needed, each sample equally often.

    >>> order = Shares((Order(1000), Order(10)), quotas(1010, [1, 1]))
    >>> numbers = order.rows(epoch=0, start=0, stop=order.n)
    >>> int((numbers < 1000).sum()), int((numbers >= 1000).sum())
    (505, 505)
    >>> bool((order.rows(0, 30, 60) == numbers[30:60]).all())
    True
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from streamkit.bijection import permute_each, uniform
from streamkit.order import Order, Rows, around

Ints = npt.NDArray[np.int64]

_BLOCK = 16_384  # draws that are put in order together, about


def quotas(n: int, weights: Sequence[float]) -> tuple[int, ...]:
    """`n` divided in proportion to `weights`, by largest remainder: each within one of its exact share.

    >>> quotas(10, [1, 1, 1])
    (4, 3, 3)
    """
    exact = np.asarray(weights, np.float64) / float(sum(weights)) * n
    out = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - out), kind="stable")
    out[largest[: n - int(out.sum())]] += 1
    return tuple(out.tolist())


def derived(seed: int, part: int) -> int:
    """Another seed for each part, so that equally long parts do not go in step."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {part}".encode(), digest_size=7).digest(), "little")


@dataclass(frozen=True, eq=False)
class Shares:
    """Orders with a share each. Numbers of part k follow those of the parts before it.

    Attributes:
        parts: the orders.
        quotas: draws of each part in an epoch.
        seed: of the places of draws inside a block.
        shuffle: False spreads the draws of each part evenly, the same in every epoch.
    """

    parts: tuple[Rows, ...]
    quotas: tuple[int, ...]
    seed: int = 0
    shuffle: bool = True

    @cached_property
    def n(self) -> int:
        """Positions in an epoch."""
        return sum(self.quotas)

    @cached_property
    def firsts(self) -> Ints:
        """The number that each part's begin with, and the end: int64 (n_parts + 1,)."""
        return np.cumsum([0] + [part.n for part in self.parts])

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        """Numbers at positions [start, stop) of the epoch: int64, in the order they are to be delivered."""
        begins = self._begins
        first = max(0, int(np.searchsorted(begins, start, side="right")) - 1)
        last = max(first + 1, int(np.searchsorted(begins, stop, side="left")))
        blocks = [_block(self, epoch, b) for b in range(first, min(last, len(begins) - 1))]
        block = blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.int64), *blocks])
        return block[start - int(begins[first]) : stop - int(begins[first])]

    def around(self, start: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """See `Order.around`."""
        return around(start, n, self.n)

    @cached_property
    def _begins(self) -> Ints:
        """First position of each block, and the end."""
        n_blocks = max(1, self.n // _BLOCK)
        begins = np.zeros(n_blocks + 1, np.int64)
        for quota in self.quotas:
            begins += quota * np.arange(n_blocks + 1) // n_blocks
        return begins

    def _compute(self, epoch: int, b: int) -> Ints:
        n_blocks = len(self._begins) - 1
        each = np.array(self.quotas, np.int64)
        lows, highs = each * b // n_blocks, each * (b + 1) // n_blocks
        counts = highs - lows
        part = np.repeat(np.arange(len(each)), counts)
        inside = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
        draw = inside + lows[part]  # of its part, in this epoch
        chance: npt.NDArray[np.float64] | float = 0.5
        if self.shuffle:
            chance = uniform((self.seed, epoch, 2), draw + (np.cumsum(each) - each)[part])
            draw += each[part] * epoch
        when = np.argsort((inside + chance) / counts[part], kind="stable")
        return (self._drawn(part, draw) + self.firsts[part])[when]

    def _drawn(self, part: Ints, draw: Ints) -> Ints:
        """What the draws of parts give; each part's draws stand together and follow one another."""
        sizes = np.diff(self.firsts)
        turn, at = np.divmod(draw, sizes[part])
        plain = np.array([isinstance(p, Order) and (p.bounds is None or not p.shuffle) for p in self.parts])[part]
        if self.shuffle:
            # All at once: one class among many has few draws here, or a small one many passes.
            at[plain] = permute_each(at[plain], sizes[part[plain]], self.seed, part[plain], turn[plain])
        for k in np.unique(part[~plain]).tolist():
            which = np.flatnonzero(part == k)
            for several in np.split(which, np.flatnonzero(np.diff(turn[which])) + 1):
                first = int(at[several[0]])
                at[several] = self.parts[k].rows(int(turn[several[0]]), first, first + len(several))
        return at


@lru_cache(maxsize=16)
def _block(order: Shares, epoch: int, number: int) -> Ints:
    block = order._compute(epoch, number)
    block.setflags(write=False)  # callers get views of it
    return block
