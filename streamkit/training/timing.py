"""What an epoch of `fit` cost: one line with the metrics, images per second and how long training waited for data.

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> _ = model.fit(np.zeros((8, 2)), np.zeros((8, 1)), verbose=0, callbacks=[EpochReport()])  # doctest: +ELLIPSIS
    epoch 1/1 loss: 0.0000 images/s: ... data_wait: ...% step: ...ms

Pass `verbose=0`, or Keras' own progress bar is printed between the lines.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import keras

_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
_MEMORY = ("host_mb", "device_mb")


class EpochReport(keras.callbacks.Callback):
    """Prints a line per epoch: metrics, training images per second, share of the time spent waiting for batches.

    TensorFlow and JAX fetch a batch inside their train function, between on_train_batch_begin and on_train_batch_end;
    PyTorch fetches it before on_train_batch_begin. So the train function is wrapped to fetch on its own clock, and a
    batch that was there already is charged the gap since the last step. A device may still compute a step while the
    next batches are fetched: of a fetch counts what is left once the step before has ended, as only then something waits.

    When a step has ended is seen in on_train_batch_end, which Keras calls with the metrics as numbers. On JAX and PyTorch it
    calls it in a thread of its own, because `async_safe` says that it may, so nothing waits for the device that need not;
    on TensorFlow it always waits.

    Validation counts in neither number; the first epoch's include tracing and compiling the step.

    What callbacks before this one in the list put into the logs as `host_mb` and `device_mb` is printed too.

    Attributes:
        images_per_second: of the last epoch.
        data_wait: of the last epoch, 0 to 1.
        step_s: mean time of a batch in the last epoch, waiting included [s].
    """

    async_safe = True
    images_per_second = 0.0
    data_wait = 0.0
    step_s = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        # Asking for self.model in the middle of an epoch makes JAX write its state back to the model.
        self._step, self._n_batches = self.model.train_function, self.model.steps_per_execution
        self._strategy = getattr(self.model, "distribute_strategy", None)  # of TensorFlow
        self.model.train_function = self._timed_step

    def on_train_end(self, logs: Any = None) -> None:
        self.model.train_function = self._step

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._n_images, self._n_fetched = 0, 0
        self._fetches: list[tuple[float, float]] = []
        self._ends: list[float] = []
        self._begun = self._returned = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._there = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ends.append(time.perf_counter())

    def _timed_step(self, *arguments: Any) -> Any:
        """Calls the train function, whose last argument is an iterator, or a list of the batches that are fetched."""
        *state, source = arguments
        if isinstance(source, list):
            batches, fetch = source, (self._returned, self._there)
        else:
            asked = time.perf_counter()
            batches = list(itertools.islice(source, self._n_batches))
            fetch = asked, time.perf_counter()
            if not batches:
                raise StopIteration
            source = iter(batches)
        self._fetches.append(fetch)
        self._n_fetched += len(batches)
        self._n_images += sum(self._n_samples(batch) for batch in batches)
        found = self._step(*state, source)
        self._returned = time.perf_counter()
        return found

    def _n_samples(self, batch: Any) -> int:
        first = keras.tree.flatten(batch)[0]
        parts = (first,) if self._strategy is None else self._strategy.experimental_local_results(first)
        return sum(int(part.shape[0]) for part in parts)  # one a replica

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        ends = sorted(self._ends)  # threads of Keras may have noted them out of turn
        idle_from = [self._begun, *ends]
        waited = sum(
            max(0.0, got - max(asked, idle)) for (asked, got), idle in zip(self._fetches, idle_from, strict=False)
        )
        seconds = max(idle_from[-1] - self._begun, 1e-9)
        self.images_per_second, self.data_wait = self._n_images / seconds, waited / seconds
        self.step_s = seconds / max(1, self._n_fetched)
        logs = logs or {}
        metrics = "".join(f"{name}: {logs[name]:.4f} " for name in _METRICS if name in logs)
        memory = "".join(f" {name.removesuffix('_mb')}: {logs[name]:.0f}MB" for name in _MEMORY if name in logs)
        cost = f"images/s: {self.images_per_second:.0f} data_wait: {self.data_wait:.1%} step: {self.step_s * 1e3:.1f}ms"
        print(f"epoch {epoch + 1}/{self.params['epochs']} {metrics}{cost}{memory}", flush=True)
