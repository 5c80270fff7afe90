"""One epoch of a loader, or the rest of one, as Keras takes it: a tf.data.Dataset or a keras.utils.PyDataset.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/series/val", out, format="hdf5", workers=1)
>>> loader = streamkit.Loader(out, batch_size=8)
>>> rest = Feed.of(loader.as_keras()).epoch(3, batch=2)
>>> len(loader) - len(rest)
2
>>> (rest[0][0] == loader.batch(3, 2)[0]).all()
np.True_
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

from streamkit.errors import UsageError
from streamkit.frontends.devices import ahead, mover
from streamkit.training.devices import refuse_indivisible


@dataclass(frozen=True)
class Feed:
    """A loader and the way that its batches go to Keras: through tf.data, or through Python."""

    loader: Any
    through_tf: bool

    @classmethod
    def of(cls, source: Any) -> Feed:
        """The feed of a `streamkit.Loader` (the way that suits the backend), or of what as_tf() or as_keras() gave.

        Raises:
            UsageError: something else, a loader of single samples, or batches that several devices cannot share.
        """
        loader = getattr(source, "loader", source)
        if not hasattr(loader, "cursor_at"):
            raise UsageError(
                f"training got a {type(source).__name__}, expected a streamkit.Loader or what its as_tf() or as_keras() gave",
                hint="Put what you do to batches (map, cache, ...) into the model.",
            )
        if loader.batch_size is None:
            raise UsageError("training needs batches", hint="Pass batch_size= to the loader.")
        if not len(loader):
            raise UsageError("this split has no batch", hint="Pass a smaller batch_size or drop_remainder=False.")
        refuse_indivisible(loader)
        through_tf = not isinstance(source, keras.utils.PyDataset) and (
            source is not loader or keras.backend.backend() == "tensorflow"
        )
        return cls(loader, through_tf)

    def epoch(self, epoch: int, batch: int = 0) -> Any:
        """Batches `batch`, `batch` + 1, ... of an epoch, as often as they are iterated."""
        held = self.loader.held(epoch, batch)
        return held.as_tf() if self.through_tf else Part(held, epoch, batch)

    @contextmanager
    def open(self, epoch: int, batch: int = 0) -> Iterator[Any]:
        """The same; no thread is left of them, though TensorFlow keeps a PyDataset that it once had for good."""
        batches = self.epoch(epoch, batch)
        try:
            yield batches
        finally:
            if isinstance(batches, Part):
                batches.close()

    def steps(self, batch: int = 0) -> int | None:
        """How many that are, where Keras has to be told: TensorFlow loses count of what it moves to a device."""
        return len(self.loader) - batch if self.through_tf and self.loader.device is not None else None


class Part(keras.utils.PyDataset):
    """Batches of one epoch from `start` on, made ahead in the loader's own threads while they are asked for in turn.

    On JAX and PyTorch each is on the loader's device, if it has one, before it is asked for: its way there begins with the
    step before. TensorFlow takes a PyDataset's batches from the host, so there they stay.
    """

    def __init__(self, loader: Any, epoch: int, start: int) -> None:
        super().__init__()
        self.loader, self.part = loader, (epoch, start)
        backend = keras.backend.backend()
        there = loader.device is None or backend == "tensorflow"
        self._move = None if there else mover(backend, loader.device)
        self._lock = threading.Lock()
        self._stream: Iterator[Any] = iter(())
        self._next = -1

    def __len__(self) -> int:
        return len(self.loader) - self.part[1]

    def __getitem__(self, index: int) -> Any:
        epoch, start = self.part
        with self._lock:
            if index != self._next:  # the first one; or again, after Keras peeked
                stream = self.loader.stream(epoch, range(start + index, len(self.loader)))
                self._stream = stream if self._move is None else ahead(self._move, stream)
            self._next = index + 1
            batch = next(self._stream)
            if self._next == len(self):
                self._stream = iter(())
            return batch

    def close(self) -> None:
        """End the threads that make batches."""
        with self._lock:
            self._stream, self._next = iter(()), -1
