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
from dataclasses import dataclass
from typing import Any

import keras

from streamkit.errors import UsageError


@dataclass(frozen=True)
class Feed:
    """A loader and the way that its batches go to Keras: through tf.data, or through Python."""

    loader: Any
    through_tf: bool

    @classmethod
    def of(cls, source: Any) -> Feed:
        """The feed of a `streamkit.Loader` (the way that suits the backend), or of what as_tf() or as_keras() gave.

        Raises:
            UsageError: something else, or a loader of single samples.
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
        through_tf = not isinstance(source, keras.utils.PyDataset) and (
            source is not loader or keras.backend.backend() == "tensorflow"
        )
        return cls(loader, through_tf)

    def epoch(self, epoch: int, batch: int = 0) -> Any:
        """Batches `batch`, `batch` + 1, ... of an epoch, as often as they are iterated; their number is known."""
        held = self.loader.held(epoch, batch)
        if not self.through_tf:
            return Part(held, epoch, batch)
        import tensorflow as tf

        return held.as_tf().apply(tf.data.experimental.assert_cardinality(len(held) - batch))


class Part(keras.utils.PyDataset):
    """Batches of one epoch from `start` on, made ahead in the loader's own threads while they are asked for in turn."""

    def __init__(self, loader: Any, epoch: int, start: int) -> None:
        super().__init__()
        self.loader, self.part = loader, (epoch, start)
        self._lock = threading.Lock()
        self._stream: Iterator[Any] = iter(())
        self._next = -1

    def __len__(self) -> int:
        return len(self.loader) - self.part[1]

    def __getitem__(self, index: int) -> Any:
        epoch, start = self.part
        with self._lock:
            if index != self._next:  # the first one; or again, after Keras peeked
                self._stream = self.loader.stream(epoch, range(start + index, len(self.loader)))
            self._next = index + 1
            return next(self._stream)
