"""Samples of like length together, so that padding is little: an order over another, and where batches are padded to.

The other order is cut into windows of some global batches. Inside a window samples are sorted by length and cut into batches
again, whose order is by chance; so it is pure in the position, and every sample stays within its window.

>>> from streamkit.order import Order
>>> lengths = np.arange(64) % 8
>>> order = ByLength(Order(64, seed=1), lengths, global_batch=8, seed=1)
>>> batches = order.rows(epoch=0, start=0, stop=64).reshape(8, 8)
>>> sorted(int(lengths[rows].max()) for rows in batches)
[0, 1, 2, 3, 4, 5, 6, 7]
>>> sorted(batches.ravel().tolist()) == list(range(64)), padded_to((4, 16), 5)
(True, 16)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.bijection import permute
from streamkit.order import Rows, around

Ints = npt.NDArray[np.int64]

WINDOW = 64  # global batches that are sorted together


def padded_to(borders: Sequence[int], longest: int) -> int | None:
    """The smallest of `borders` that holds `longest`; None where none does."""
    return next((border for border in sorted(borders) if border >= longest), None)


@dataclass(frozen=True, eq=False)
class ByLength:
    """An order in which the samples of a global batch are of like length.

    Attributes:
        order: which samples are in which window.
        lengths: of the samples that the order's numbers stand for, int (n_numbers,).
        global_batch: samples in a batch over all shards.
        seed: of the order of batches in a window.
    """

    order: Rows
    lengths: Any
    global_batch: int
    seed: int

    @property
    def n(self) -> int:
        """Positions in an epoch."""
        return self.order.n

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        """Numbers at positions [start, stop) of the epoch: int64, in the order they are to be delivered."""
        size = WINDOW * self.global_batch
        first, last = start // size, max(start, stop - 1) // size
        parts = [_window(self, epoch, w) for w in range(first, last + 1)]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[start - first * size : stop - first * size]

    def around(self, start: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """See `Order.around`."""
        return around(start, n, self.n)


@lru_cache(maxsize=16)
def _window(order: ByLength, epoch: int, number: int) -> Ints:
    size = WINDOW * order.global_batch
    numbers = order.order.rows(epoch, number * size, min(order.n, (number + 1) * size))
    numbers = numbers[np.argsort(order.lengths[numbers], kind="stable")]
    n_whole = len(numbers) // order.global_batch  # what is left, the longest, stays the last batch
    whole = numbers[: n_whole * order.global_batch].reshape(n_whole, order.global_batch)
    whole = whole[permute(np.arange(n_whole), n_whole, (order.seed, epoch, number, 3))]
    out = np.concatenate([whole.ravel(), numbers[whole.size :]])
    out.setflags(write=False)  # callers get views of it
    return out
