"""Epochs: an order cut into batches, where one is in it, and going on in the middle of it. Arithmetic; nothing is read here.

What is delivered next is an epoch and a batch in it, nothing more. The position to save is computed from the step, never from
what was made ahead of use.

    >>> from streamkit.order import Order
    >>> epochs = Epochs(Order(10, seed=1), Batches(10, 4), {"seed": 1})
    >>> len(epochs), epochs.begin_epoch(), epochs.begin_epoch(), epochs.epoch
    (3, (0, 0), (1, 0), 2)
    >>> epochs.resume(epochs.cursor_at(step=4))
    >>> epochs.begin_epoch(), len(epochs.numbers(epoch=1, batch=2))
    ((1, 1), 2)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError
from streamkit.order import Batches, Cursor, Rows
from streamkit.units import whole

Ints = npt.NDArray[np.int64]


class Epochs:
    """Epochs of batches.

    Args:
        order: which sample comes when.
        batches: how the order is cut, and which part is delivered here.
        fingerprint: what a cursor must be of.
    """

    def __init__(self, order: Rows, batches: Batches, fingerprint: Mapping[str, Any]) -> None:
        self.order, self.fingerprint, self._batches = order, fingerprint, batches
        self._next_epoch, self._resume_at, self._held = 0, 0, False

    @property
    def n_samples(self) -> int:
        """Samples in an epoch, over all shards."""
        return self.order.n

    @property
    def shard_index(self) -> int:
        """Which part of every global batch is delivered."""
        return self._batches.shard_index

    @property
    def num_shards(self) -> int:
        """In how many parts every global batch is cut."""
        return self._batches.num_shards

    @property
    def drop_remainder(self) -> bool:
        """True when every batch is full."""
        return self._batches.drop_remainder

    def __len__(self) -> int:
        """Batches in a whole epoch (samples, with batch_size=None)."""
        return len(self._batches)

    # Batches

    def numbers(self, epoch: int, batch: int) -> Ints:
        """The order's numbers for batch `batch` of an epoch, int64. What pads it comes last."""
        at, stop = self._batches.positions(batch)
        runs = []
        while at < stop:  # more than once only where a batch is padded: positions go round
            first = at % self.order.n
            last = min(self.order.n, first + stop - at)
            runs.append(self.order.rows(epoch, first, last))
            at += last - first
        return runs[0] if len(runs) == 1 else np.concatenate([np.empty(0, np.int64), *runs])

    def numbers_behind(self, epoch: int, batch: int, n: int) -> Ints:
        """The order's numbers for the `n` samples that come after a batch; after the epoch's last comes its first."""
        start = self._batches.positions(batch)[1] % self.order.n
        return np.concatenate([self.order.rows(epoch, *part) for part in self.order.around(start, n)])

    def n_padding(self, batch: int) -> int:
        """Samples at the end of a batch that are there again, so that every shard has as many: leave them out of sums.

        Only in the last batch of several shards without shuffling. `fields=(..., "padding")` delivers it as a flag.
        """
        return self._batches.n_padding(batch)

    # Where one is

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration delivers; may be set."""
        return self._next_epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        number = whole("epoch", epoch) or 0
        if number < 0:
            raise UsageError(f"epoch is {number}, expected 0 or more")
        self._next_epoch, self._resume_at = number, 0

    @property
    def resumed(self) -> bool:
        """True while the next iteration delivers the rest of an epoch only."""
        return self._resume_at > 0

    @property
    def n_next(self) -> int:
        """Batches that the next iteration delivers (samples, with batch_size=None)."""
        return len(self) - self._resume_at

    @property
    def is_held(self) -> bool:
        """True for what `held` made: all iterations are alike."""
        return self._held

    def begin_epoch(self) -> tuple[int, int]:
        """Take the next epoch: its number, and the batch that it begins with (not 0 after `resume` only)."""
        taken = self._next_epoch, self._resume_at
        if not self._held:
            self._next_epoch, self._resume_at = taken[0] + 1, 0
        return taken

    def held(self, epoch: int, batch: int = 0) -> Self:
        """A twin whose every iteration is this epoch from this batch on: whoever peeks into it moves nothing."""
        return self._twin(_next_epoch=epoch, _resume_at=batch, _held=True)

    def _twin(self, **changed: Any) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__ | changed
        return twin

    # Resume

    def cursor_at(self, step: int) -> dict[str, Any]:
        """The resume state after `step` global batches since epoch 0, also when this loader itself was resumed.

        Returns:
            A JSON-able dict of a few integers.
        """
        n_steps = whole("step", step) or 0
        if n_steps < 0:
            raise UsageError(f"step is {step}, expected 0 or more")
        epoch, batch = divmod(n_steps, max(1, len(self)))
        return Cursor(epoch, batch * self._batches.global_size, self.fingerprint).to_json()

    def resume(self, cursor: Mapping[str, Any]) -> None:
        """Continue from a cursor: the next iteration yields the rest of its epoch, later ones whole epochs.

        Raises:
            UsageError: a cursor of another dataset, split, seed, choice or global batch; the message says which differ.
        """
        parsed = Cursor.parse(cursor, self.fingerprint)
        batch, rest = divmod(parsed.position, self._batches.global_size)
        if rest or batch > len(self):
            raise UsageError(f"the cursor's position {parsed.position} is no batch border of this epoch")
        ended = batch == len(self)
        self._next_epoch, self._resume_at = (parsed.epoch + 1, 0) if ended else (parsed.epoch, batch)
