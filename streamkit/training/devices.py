"""The devices that train one model, each on its part of every batch; and where batches go ahead of use.

>>> shared(33, n_samples=1000, n_devices=1), shared(32, n_samples=31, n_devices=2)
(33, 30)
>>> shared(33, n_samples=1000, n_devices=2)
Traceback (most recent call last):
streamkit.errors.UsageError: a batch of 33 samples does not divide among 2 devices. Take 32 or 34.
>>> with Devices(1).scope():
...     Devices(1).strategy is None
True
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras

from streamkit.errors import UsageError


def shared(batch_size: int, n_samples: int, n_devices: int) -> int:
    """Samples of a step that `n_devices` share evenly: `batch_size`, or of fewer samples as many as divide.

    Raises:
        UsageError: `batch_size` does not divide, or there is no sample for some device.
    """
    below = batch_size - batch_size % n_devices
    if below != batch_size:
        sizes = " or ".join(str(size) for size in (below, below + n_devices) if size)
        raise UsageError(
            f"a batch of {batch_size} samples does not divide among {n_devices} devices", hint=f"Take {sizes}."
        )
    size = min(batch_size, n_samples - n_samples % n_devices)
    if not size:
        raise UsageError(f"there are {n_samples} samples for {n_devices} devices")
    return size


@dataclass(frozen=True)
class Devices:
    """What one model is trained on: GPUs (or TPUs) where there are some, else CPUs.

    No device is looked for before `strategy` or `scope` is asked for: looking takes hold of their memory.

    Attributes:
        n: how many.

    Raises:
        UsageError: more than one, and the backend trains on one only.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n > 1 and keras.backend.backend() == "torch":
            raise UsageError(
                f"{self.n} devices: Keras on PyTorch trains on one",
                hint="Pass --backend jax, or start a process a device (README, Train on several GPUs).",
            )

    @cached_property
    def strategy(self) -> Any:
        """Of keras.distribution (JAX) or tf.distribute; None of one device, which the backend picks.

        Raises:
            UsageError: there are fewer.
        """
        if self.n == 1:
            return None
        backend = keras.backend.backend()
        names = keras.distribution.list_devices() if backend == "jax" else _names_in_tensorflow()
        if len(names) < self.n:
            of_one = f"XLA_FLAGS=--xla_force_host_platform_device_count={self.n} makes {self.n} of a CPU, to try it."
            hint = of_one if backend == "jax" and names[0].startswith("cpu") else "Ask for no more than there are."
            raise UsageError(f"{self.n} devices: {backend} finds {len(names)}", hint=hint)
        if backend == "jax":
            return keras.distribution.DataParallel(devices=names[: self.n], auto_shard_dataset=False)
        import tensorflow as tf

        return tf.distribute.MirroredStrategy(names[: self.n])

    def refuse_unsafe(self, precision: str, accumulate: int) -> None:
        """Say what several replicas of TensorFlow cannot do in Keras 3, before it ends in NaN or in an error of its own.

        Raises:
            UsageError: loss scaling, which looks for overflow in the gradients of the first replica only; or accumulation.
        """
        if self.n == 1 or keras.backend.backend() != "tensorflow":
            return
        hint = "Pass --backend jax, or take one device."
        if precision == "mixed_float16":
            raise UsageError(
                f"mixed_float16 on {self.n} devices: an overflow on one but the first is not seen", hint=hint
            )
        if accumulate > 1:
            raise UsageError(f"{self.n} devices cannot accumulate gradients in TensorFlow", hint=hint)

    def scope(self) -> AbstractContextManager[Any]:
        """Where models are made, trained and used; Keras on JAX divides batches nowhere else."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    @property
    def target(self) -> Any:
        """What a loader's `device` is to be, so that batches go there ahead of use; None where that saves nothing.

        On TensorFlow None: nothing may come behind `prefetch_to_device`, and Keras puts class weights and strategies there.
        """
        backend = keras.backend.backend()
        if backend == "jax":
            import jax

            if self.strategy is not None:
                mesh = self.strategy.device_mesh.backend_mesh
                return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(self.strategy.batch_dim_name))
            device = jax.local_devices()[0]
            return None if device.platform == "cpu" else device
        if backend == "torch":
            device = keras.ops.zeros(()).device  # where Keras puts what it makes
            return None if device.type == "cpu" else device
        return None


def _names_in_tensorflow() -> list[str]:
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in found]


def refuse_indivisible(loader: Any) -> None:
    """Say which batch of a loader Keras' data parallelism on JAX cannot divide, before it meets it at an epoch's end.

    Raises:
        UsageError: the first or the last batch has samples left over.
    """
    strategy = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if not isinstance(strategy, keras.distribution.DataParallel):
        return
    import jax

    n = int(strategy.device_mesh.shape[0]) // jax.process_count()
    for number in {0, len(loader) - 1}:
        size = len(loader.rows(0, number))
        if size % n:
            raise UsageError(
                f"batch {number} has {size} samples, which do not divide among {n} devices",
                hint=f"Pass a batch_size that {n} divides, and drop_remainder=True.",
            )
