"""A stream of batches: the batches of epochs, made ahead of use in threads.

A batch is pure in (epoch, number): `stream.batch(epoch, i)` gives it in any thread and process. Iterating is that, with
the next few batches made ahead; where one is, epochs.py knows. What the samples are and how they are made, a subclass says:
`loader.Loader` of one dataset, `mixing.Mixture` of several.

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

from streamkit.ahead import shared
from streamkit.batch import Maker
from streamkit.epochs import Epochs
from streamkit.errors import StreamkitError
from streamkit.order import Batches, Rows
from streamkit.shuffling import report
from streamkit.sizing import Sizing
from streamkit.skipping import Skips
from streamkit.view import Spec

Ints = npt.NDArray[np.int64]

_REPORTED = 1 << 20  # samples whose order is looked at


class Stream(Epochs, ABC):
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
        super().__init__(order, batches, fingerprint)
        self._skips = skips
        self.batch_size = batches.batch_size if batched else None
        self.num_workers, self.memory_budget, self.device = num_workers, memory_budget, device

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
    def specs(self) -> dict[str, Spec]:
        """Output name -> shape of a sample and dtype."""
        return self._maker.specs

    @property
    def bad(self) -> tuple[StreamkitError, ...]:
        """The bad samples met and left out so far, here and in worker processes, in storage order; each names its shard,
        record and key."""
        return () if self._skips is None else tuple(error for _, error in sorted(self._skips.bad.items()))

    def check_bad(self) -> None:
        """Raise DamagedError when more samples are bad than max_bad allows."""
        if self._skips is not None:
            self._skips.check()

    @property
    def skips_bad(self) -> bool:
        """True under on_corrupt="skip"."""
        return self._skips is not None

    def structure(self, values: Mapping[str, Any]) -> Any:
        """Arrange one value an output as batches are arranged: bare, tuple or dict."""
        return self._maker.structure(dict(values))

    def __repr__(self) -> str:
        mib = self.memory_bound / (1 << 20)
        return (
            f"<{type(self).__name__}: {self.n_samples} samples, {len(self)} batches, at most {mib:.0f} MiB of memory>"
        )

    # Batches

    def rows(self, epoch: int, batch: int) -> Ints:
        """Stored rows of batch `batch` of an epoch, int64, in order. What pads it comes last."""
        return self._rows(self.numbers(epoch, batch))

    def batch(self, epoch: int, i: int) -> Any:
        """Batch `i` of `epoch`. Pure: the same arguments give the same batch anywhere."""
        rows = self.rows(epoch, i)
        if self.batch_size is None:
            return self.structure(self._maker.make_each(rows, epoch)[0])
        made = self._good(rows, lambda rows: self._maker.make(rows, epoch), self._n_least(rows), epoch, i)
        return self._finished(epoch, i, made)

    def _n_least(self, rows: Ints) -> int:
        """Good samples that a batch of `rows` must have."""
        return len(rows) if self.drop_remainder else 1

    def _finished(self, epoch: int, i: int, made: dict[str, Any]) -> Any:
        """Batch `i` of `epoch` as it is delivered, from what the maker made."""
        if "padding" in made and (n := self.n_padding(i)):
            bad = () if self._skips is None else list(self._skips.bad)
            made["padding"][len(made["padding"]) - int((~np.isin(self.rows(epoch, i)[-n:], bad)).sum()) :] = True
        return self._maker.structure(made)

    def _good(self, rows: Ints, make: Callable[[Ints], Any], n_least: int, epoch: int, i: int) -> Any:
        """`make(rows)`; under on_corrupt="skip" without bad ones, filled up from the samples behind batch `i`."""
        if self._skips is None:
            return make(rows)
        return self._skips.make(rows, make, self._maker.row_of, n_least, self._behind(epoch, i))

    def _behind(self, epoch: int, i: int) -> Callable[[int], Ints]:
        """Gives the first n rows that come after batch `i`."""
        return lambda n: self._rows(self.numbers_behind(epoch, i, n))

    def __getitem__(self, i: int) -> Any:
        """Batch `i` of the current epoch; never advances it."""
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"batch {i} is outside the epoch's {n} batches")
        return self.batch(self.epoch, i % n)

    # Ahead of use

    def __iter__(self) -> Generator[Any, None, None]:
        """One epoch. The k-th iteration begun is epoch k."""
        epoch, start = self.begin_epoch()
        return self.stream(epoch, range(start, len(self)))

    def stream(self, epoch: int, numbers: range) -> Generator[Any, None, None]:
        """Batches `numbers` of an epoch, made ahead in threads, in order."""
        step = self._sizing.n_together
        groups = [numbers[i : i + step] for i in range(0, len(numbers), step)]
        tasks = ((group, place) for place, group in enumerate(groups))
        for lists in shared(lambda task: self._jobs(epoch, *task), tasks, self.num_workers, self.depth):
            made = [batch for some in reversed(lists) for batch in reversed(some)]
            lists.clear()
            while made:
                if isinstance(made[-1], _Failed):
                    raise made[-1].error
                yield made.pop()  # the batch is the caller's now; its buffer is free when they drop it

    def _jobs(self, epoch: int, numbers: range, place: int) -> list[Callable[[], list[Any]]]:
        """The task at this place as jobs for any thread each, which together give the batches of these numbers."""
        return [lambda: self._make(epoch, numbers)]

    def _make(self, epoch: int, numbers: range) -> list[Any]:
        """Batches of these numbers up to one that fails, so that those before it are delivered first."""
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

    # What it takes

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

    def within(self, memory_budget: int) -> Self:
        """A twin that makes fewer batches ahead, for one of several processes that share a memory budget."""
        twin = self._twin(memory_budget=memory_budget)
        twin.__dict__.pop("_sizing", None)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_maker", "_sizing")}

    # How well it is shuffled

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


class _Failed(NamedTuple):
    """Stands in a task's batches for the one that could not be made."""

    error: Exception
