"""Keras: the loader as a `keras.utils.PyDataset`, pure in its index and right in threads and processes.

Keras fires on_epoch_end once while it builds a model, so an epoch counts only when on_epoch_begin came before; and a
worker's copy of the dataset never hears of epochs, so the number travels in shared memory.

    >>> EpochCounter().current
    0
"""

from __future__ import annotations

import multiprocessing
import warnings
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from streamkit.frontends import Loader


class EpochCounter:
    """The number of the epoch under way, shared with forked and spawned workers."""

    def __init__(self, first: int = 0) -> None:
        self._value = multiprocessing.Value("q", first)
        self._begun = False

    @property
    def current(self) -> int:
        return int(self._value.value)

    def begin(self) -> None:
        self._begun = True

    def end(self) -> None:
        """Count the epoch if it was begun; Keras' building of a model ends one that never was."""
        if self._begun:
            self._value.value += 1
        self._begun = False


class Batches(keras.utils.PyDataset):
    """Batches of a loader by number. An epoch is a completed on_epoch_begin/on_epoch_end pair.

    Attributes:
        loader: the engine behind it.
        class_names: names of the classes.
    """

    def __init__(self, loader: Loader, **options: Any) -> None:
        super().__init__(**options)
        self.loader = loader
        self.class_names = loader.class_names
        self._epochs = EpochCounter(loader.epoch)
        self._last = -1
        self._warned = False

    def __len__(self) -> int:
        return len(self.loader)

    def __getitem__(self, index: int) -> Any:
        epoch = self._epochs.current
        if not self._warned and self.workers <= 1 and self._last not in (-1, len(self) - 1) and index > self._last + 1:
            self._warned = True
            warnings.warn(
                "Batches are asked for out of order: pass shuffle=False to fit(); the order is shuffled already.",
                stacklevel=2,
            )
        self._last = index
        return self.loader.batch(epoch, int(index))

    @property
    def epoch(self) -> int:
        """The epoch that batches come from now."""
        return self._epochs.current

    def on_epoch_begin(self) -> None:
        self._epochs.begin()

    def on_epoch_end(self) -> None:
        self._epochs.end()


def as_keras(loader: Loader, **options: Any) -> Batches:
    """See `Loader.as_keras`."""
    if loader.batch_size is None:
        from streamkit.errors import UsageError

        raise UsageError("a Sequence delivers batches", hint="Pass batch_size=.")
    return Batches(loader, **options)
