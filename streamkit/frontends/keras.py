"""Keras: the loader as a `keras.utils.PyDataset`, pure in its index, reading ahead in its own threads.

Keras' own workers are not used, whatever `workers` and `use_multiprocessing` say: its enqueuer keeps batches that were
made ahead when an epoch ends early and delivers them in the next one (keras 3.15: on JAX and PyTorch, fit's peek at the
first batch is such an end), so samples would repeat and others go missing. Threads of the loader decode outside Python's
lock, so processes would gain nothing.

    >>> epochs = EpochCounter()
    >>> epochs.begin(); epochs.ask(0); epochs.end(n_batches=5); epochs.current    # fit's peek is no epoch
    0
    >>> epochs.begin(); epochs.ask(0); epochs.ask(1); epochs.end(n_batches=5); epochs.current
    1
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from streamkit.ahead import in_order
from streamkit.errors import UsageError
from streamkit.frontends.devices import Move, mover
from streamkit.replicas import refuse_workers_of_keras

if TYPE_CHECKING:
    from streamkit.stream import Stream


class EpochCounter:
    """The number of the epoch under way.

    An epoch is a completed on_epoch_begin/on_epoch_end pair; but on TensorFlow fit ends one that never began while it
    builds the model, and on JAX and PyTorch one of which it asked the first batch only.
    """

    def __init__(self, first: int = 0) -> None:
        self.current = first
        self.begun = False
        self._furthest = -1

    def begin(self) -> None:
        self.begun, self._furthest = True, -1

    def ask(self, batch: int) -> None:
        self._furthest = max(self._furthest, batch)

    def end(self, n_batches: int) -> None:
        if self.begun and self._furthest >= min(1, n_batches - 1):
            self.current += 1
        self.begun = False


class Batches(keras.utils.PyDataset):
    """Batches of a loader by number, in the order of the epoch under way; made ahead while they are asked for in turn.

    `workers`, `use_multiprocessing` and `max_queue_size` are taken as every PyDataset takes them, and say nothing: the
    loader's num_workers and memory_budget do.

    Attributes:
        loader: the engine behind it.
        class_names: names of the classes.
    """

    def __init__(
        self, loader: Stream, workers: int = 1, use_multiprocessing: bool = False, max_queue_size: int = 10
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=max_queue_size)
        self.loader = loader
        self.class_names = loader.class_names
        self._epochs = EpochCounter(loader.epoch)
        self._previous = -1
        self._warned = False
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._stream: Iterator[Any] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __getitem__(self, index: int) -> Any:
        index = int(index)
        with self._lock:
            self._epochs.ask(index)
            in_turn, self._previous = index == self._previous + 1, index
            epoch = self._epochs.current
            if self._epochs.begun and in_turn and index < len(self):
                return _with_texts(self._ahead(epoch, index))
            self._warn_of_shuffling()
            self._stream = None  # what it makes ahead is not what is asked for
        batch = self.loader.batch(epoch, range(len(self))[index])
        return _with_texts(batch if (move := self._mover()) is None else move(batch))

    def _ahead(self, epoch: int, index: int) -> Any:
        if self._stream is None:
            stream, move = self.loader.stream(epoch, range(index, len(self))), self._mover()
            # Moved in a thread, two ahead: what is made ahead of those waits in the host's memory.
            self._stream = stream if move is None else in_order(move, stream, n_threads=1, n_ahead=2)
        try:
            return next(self._stream)
        except BaseException:
            self._stream = None  # it has ended, and whoever asks for more begins a new one
            raise

    def _mover(self) -> Move | None:
        return None if self.loader.device is None else mover(keras.backend.backend(), self.loader.device)

    def _warn_of_shuffling(self) -> None:
        if self._epochs.begun and not self._warned:
            self._warned = True
            warnings.warn(
                "Batches are asked for out of order: pass shuffle=False to fit(); the order is shuffled already.",
                stacklevel=3,
            )

    @property
    def epoch(self) -> int:
        """The epoch that batches come from now."""
        return self._epochs.current

    def on_epoch_begin(self) -> None:
        with self._lock:
            self._previous, self._stream = -1, None
            self._epochs.begin()

    def on_epoch_end(self) -> None:
        with self._lock:
            self._epochs.end(len(self))
            self._stream = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_stream")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def as_keras(loader: Stream, **options: Any) -> Batches:
    """See `Loader.as_keras`."""
    refuse_workers_of_keras()
    if loader.batch_size is None:
        raise UsageError("a Sequence delivers batches", hint="Pass batch_size=.")
    if loader.resumed:
        raise UsageError(
            "a Sequence cannot begin in the middle of an epoch: Keras counts its batches from 0",
            hint="Iterate the loader or loader.as_tf() instead.",
        )
    return Batches(loader, **options)


def _with_texts(batch: Any) -> Any:
    """The batch; on TensorFlow its texts as tensors, because Keras takes no NumPy array of texts."""
    if keras.backend.backend() != "tensorflow":
        return batch
    return keras.tree.map_structure(_text, batch)


def _text(values: Any) -> Any:
    return (
        keras.ops.convert_to_tensor(values, "string") if getattr(values, "dtype", None) == np.dtype(object) else values
    )
