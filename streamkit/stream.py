"""A stream of batches: an order cut into batches, made ahead of use in threads; epochs, and going on in the middle of one.

A batch is pure in (epoch, number): `stream.batch(epoch, i)` gives it in any thread and process. Iterating is that, with
the next few batches made ahead; the position to save is computed from the step, never from what was made ahead. What the
samples are and how they are made, a subclass says: `loader.Loader` of one dataset, `mixing.Mixture` of several.

    >>> import tempfile, streamkit
    >>> out = tempfile.mkdtemp() + "/out"
    >>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
    >>> loader = streamkit.Loader(out, split="train", batch_size=32)
    >>> isinstance(loader, Stream), len(loader.held(3, batch=2).rows(3, 2))
    (True, 32)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from streamkit.ahead import in_order
from streamkit.batch import Maker
from streamkit.errors import StreamkitError, UsageError
from streamkit.order import Batches, Cursor, Rows
from streamkit.shuffling import report
from streamkit.sizing import Sizing
from streamkit.skipping import Skips
from streamkit.units import whole
from streamkit.view import Spec

Ints = npt.NDArray[np.int64]

_REPORTED = 1 << 20  # samples whose order is looked at


class Stream(ABC):
    """Batches of samples in an order.

    Args:
        order: which sample comes when.
        batches: how the order is cut, and which part is delivered here.
        skips: the bad samples met; None where one is an error.
        fingerprint: what a cursor must be of.
        batched: False delivers single samples.
        num_workers: threads; 0 works in the caller's.
        memory_budget: for everything that is held while batches are made [B].
        device: where frontends put batches ahead of use.
    """

    def __init__(
        self,
        order: Rows,
        batches: Batches,
        skips: Skips | None,
        fingerprint: Mapping[str, Any],
        *,
        batched: bool,
        num_workers: int,
        memory_budget: int,
        device: Any,
    ) -> None:
        self.order, self.fingerprint = order, fingerprint
        self._batches, self._skips = batches, skips
        self.batch_size = batches.batch_size if batched else None
        self.num_workers, self.memory_budget, self.device = num_workers, memory_budget, device
        self._next_epoch, self._resume_at, self._held = 0, 0, False

    # What a subclass says

    @cached_property
    @abstractmethod
    def _maker(self) -> Maker: ...

    @abstractmethod
    def _rows(self, numbers: Ints) -> Ints:
        """Rows, as the maker counts them, of the order's numbers."""

    @cached_property
    @abstractmethod
    def _sizing(self) -> Sizing: ...

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes 0, 1, ..."""

    @property
    @abstractmethod
    def _window(self) -> tuple[int, int]:
        """Samples that are mixed with one another, and what they take at once [B]."""

    @abstractmethod
    def _labels(self, rows: Ints) -> Ints | None:
        """Classes of rows, if they have any."""

    # What it is

    @property
    def n_samples(self) -> int:
        """Samples in an epoch, over all shards."""
        return self.order.n

    @property
    def specs(self) -> dict[str, Spec]:
        """Output name -> shape of a sample and dtype."""
        return self._maker.specs

    @property
    def bad(self) -> tuple[StreamkitError, ...]:
        """The bad samples met and left out so far, in storage order; each names its shard, record and key."""
        return () if self._skips is None else tuple(error for _, error in sorted(self._skips.bad.items()))

    @property
    def skips_bad(self) -> bool:
        """True under on_corrupt="skip"."""
        return self._skips is not None

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

    def structure(self, values: Mapping[str, Any]) -> Any:
        """Arrange one value an output as batches are arranged: bare, tuple or dict."""
        return self._maker.structure(dict(values))

    def __repr__(self) -> str:
        mib = self.memory_bound / (1 << 20)
        return (
            f"<{type(self).__name__}: {self.n_samples} samples, {len(self)} batches, at most {mib:.0f} MiB of memory>"
        )

    def __len__(self) -> int:
        """Batches in a whole epoch (samples, with batch_size=None)."""
        return len(self._batches)

    # Batches

    def rows(self, epoch: int, batch: int) -> Ints:
        """Stored rows of batch `batch` of an epoch, int64, in order. What pads it comes last."""
        at, stop = self._batches.positions(batch)
        runs = []
        while at < stop:  # more than once only where a batch is padded: positions go round
            first = at % self.order.n
            last = min(self.order.n, first + stop - at)
            runs.append(self.order.rows(epoch, first, last))
            at += last - first
        return self._rows(runs[0] if len(runs) == 1 else np.concatenate([np.empty(0, np.int64), *runs]))

    def n_padding(self, batch: int) -> int:
        """Samples at the end of a batch that are there again, so that every shard has as many: leave them out of sums.

        Only in the last batch of several shards without shuffling. `fields=(..., "padding")` delivers it as a flag.
        """
        return self._batches.n_padding(batch)

    def batch(self, epoch: int, i: int) -> Any:
        """Batch `i` of `epoch`. Pure: the same arguments give the same batch anywhere."""
        rows = self.rows(epoch, i)
        if self.batch_size is None:
            return self.structure(self._maker.make_each(rows, epoch)[0])
        n_least = len(rows) if self.drop_remainder else 1
        made = self._good(rows, lambda rows: self._maker.make(rows, epoch), n_least, epoch, i)
        if "padding" in made and (padding := rows[len(rows) - self.n_padding(i) :]).size:
            bad = () if self._skips is None else list(self._skips.bad)
            made["padding"][len(made["padding"]) - int((~np.isin(padding, bad)).sum()) :] = True
        return self._maker.structure(made)

    def _good(self, rows: Ints, make: Callable[[Ints], Any], n_least: int, epoch: int, i: int) -> Any:
        """`make(rows)`; under on_corrupt="skip" without bad ones, filled up from the samples behind batch `i`."""
        if self._skips is None:
            return make(rows)

        def following(n: int) -> Ints:
            start = self._batches.positions(i)[1] % self.order.n
            return self._rows(np.concatenate([self.order.rows(epoch, *part) for part in self.order.around(start, n)]))

        return self._skips.make(rows, make, self._maker.row_of, n_least, following)

    def __getitem__(self, i: int) -> Any:
        """Batch `i` of the current epoch; never advances it."""
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"batch {i} is outside the epoch's {n} batches")
        return self.batch(self.epoch, i % n)

    # Epochs

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

    def within(self, memory_budget: int) -> Self:
        """A twin that makes fewer batches ahead, for one of several processes that share a memory budget."""
        twin = self._twin(memory_budget=memory_budget)
        twin.__dict__.pop("_sizing", None)
        return twin

    def _twin(self, **changed: Any) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__ | changed
        return twin

    def __iter__(self) -> Generator[Any, None, None]:
        """One epoch. The k-th iteration begun is epoch k."""
        epoch, start = self.begin_epoch()
        return self.stream(epoch, range(start, len(self)))

    def stream(self, epoch: int, numbers: range) -> Generator[Any, None, None]:
        """Batches `numbers` of an epoch, made ahead in threads, in order."""
        step = self._sizing.n_together
        groups = [numbers[i : i + step] for i in range(0, len(numbers), step)]
        for made in in_order(lambda group: self._make(epoch, group), groups, self.num_workers, self.depth):
            made.reverse()
            while made:
                if isinstance(made[-1], _Failed):
                    raise made[-1].error
                yield made.pop()  # the batch is the caller's now; its buffer is free when they drop it

    def _make(self, epoch: int, numbers: range) -> list[Any]:
        """One task: batches of these numbers up to one that fails, so that those before it are delivered first."""
        if self.batch_size is not None:
            made: list[Any] = []
            for i in numbers:
                try:
                    made.append(self.batch(epoch, i))
                except Exception as error:
                    return [*made, _Failed(error)]
            return made
        rows = np.concatenate([self.rows(epoch, i) for i in numbers])
        samples = self._good(rows, lambda rows: self._maker.make_each(rows, epoch), 0, epoch, numbers[-1])
        return [self._maker.structure(sample) for sample in samples]

    @property
    def sample_nbytes(self) -> int:
        """Size of a sample while it is made [B]; of axes that vary, the longest stored one counts."""
        return self._sizing.sample_nbytes

    @property
    def depth(self) -> int:
        """Tasks under way or waiting: as many as the budget holds, at least one."""
        return self._sizing.depth

    @property
    def memory_bound(self) -> int:
        """What batches, decoded chunks and decoding take at most [B], whatever the dataset's size."""
        return self._sizing.bound_nbytes

    def shuffle_report(self, epoch: int = 0) -> dict[str, Any]:
        """How well an epoch is shuffled, against a true permutation; of a long one, the first million samples.

        Returns:
            What `streamkit.shuffling.report` measures, and window_samples: how many are mixed with one another (all of them
            where rows are addressable), window_nbytes: what those take decoded at once [B], 0 where nothing is held.
        """
        rows = self._rows(self.order.rows(epoch, 0, min(self.order.n, _REPORTED)))
        window, nbytes = self._window
        return report(rows, self._labels(rows), self._batches.global_size) | {
            "window_samples": window,
            "window_nbytes": nbytes,
        }

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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_maker", "_sizing")}


class _Failed(NamedTuple):
    """Stands in a task's batches for the one that could not be made."""

    error: Exception
