"""A trace of some steps, for TensorBoard's profiler or Perfetto: where a step's time goes on the device.

>>> Profile("logs", first=5, last=9).steps
(5, 9)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras


class Profile(keras.callbacks.Callback):
    """Records the steps `first` to `last` of the training into `folder`, once.

    TensorFlow and JAX write what TensorBoard's profile plugin reads, PyTorch a trace for Perfetto (ui.perfetto.dev).

    Args:
        folder: made if it is missing.
        first, last: steps, counted from 0 through all epochs of this process. The first ones compile, so leave them out.
    """

    def __init__(self, folder: str | Path, first: int = 5, last: int = 9) -> None:
        super().__init__()
        self.folder, self.steps = Path(folder), (first, last)
        self._step = -1
        self._stop: Any = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        if self._step == self.steps[0]:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stop = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()](self.folder)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._step >= self.steps[1]:
            self._end()

    def on_train_end(self, logs: Any = None) -> None:
        self._end()  # fewer steps than that

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None


def _tensorflow(folder: Path) -> Any:
    import tensorflow as tf

    tf.profiler.experimental.start(str(folder))
    return tf.profiler.experimental.stop


def _jax(folder: Path) -> Any:
    import jax

    jax.profiler.start_trace(str(folder))
    return jax.profiler.stop_trace


def _torch(folder: Path) -> Any:
    import torch

    profiler = torch.profiler.profile()
    profiler.start()

    def stop() -> None:
        profiler.stop()
        profiler.export_chrome_trace(str(folder / "trace.json"))

    return stop
