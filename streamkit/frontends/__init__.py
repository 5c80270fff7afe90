"""Frontends: the loader as tf.data, Keras and PyTorch see it. One thin file each; a framework is imported only when used.

>>> sorted(name for name in dir(Loader) if name.startswith("as_"))
['as_keras', 'as_tf', 'as_torch']
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streamkit import loader, mixing
from streamkit.errors import UsageError
from streamkit.frontends.devices import ahead, is_of_jax, mover
from streamkit.stream import Stream
from streamkit.units import size

if TYPE_CHECKING:
    import keras
    import tensorflow as tf
    import torch.utils.data

__all__ = ["Loader", "Mixture", "dataset", "mix", "sequence"]


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Say which extra brings the framework that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed", hint=f"Install streamkit[{extra}].") from error


class _Frontends(Stream):
    """What a stream looks like to each framework."""

    def __iter__(self) -> Generator[Any, None, None]:
        """One epoch. The k-th iteration begun is epoch k. On a device of JAX, its arrays."""
        batches = super().__iter__()
        if self.device is None or not is_of_jax(self.device):
            return batches
        return ahead(mover("jax", self.device), batches)

    def as_tf(self) -> tf.data.Dataset:
        """A `tf.data.Dataset` of the batches; each iteration is an epoch of its own."""
        with _needs("tensorflow"):
            from streamkit.frontends.tensorflow import as_tf

        return as_tf(self)

    def as_keras(self, **options: Any) -> keras.utils.PyDataset:
        """A `keras.utils.PyDataset` of the batches; `options`: those of every PyDataset, which decide nothing: num_workers and
        memory_budget of the loader do."""
        with _needs("tensorflow"):
            from streamkit.frontends.keras import as_keras

        return as_keras(self, **options)

    def as_torch(self, **options: Any) -> torch.utils.data.DataLoader[Any]:
        """A `torch.utils.data.DataLoader` (batch_size=None) of the batches; `options` go to it (num_workers, ...)."""
        with _needs("torch"):
            from streamkit.frontends.torch import as_torch

        return as_torch(self, **options)


class Loader(_Frontends, loader.Loader):
    __doc__ = loader.Loader.__doc__


class Mixture(_Frontends, mixing.Mixture):
    __doc__ = mixing.Mixture.__doc__


def mix(weights: Mapping[str | os.PathLike[str], float], **options: Any) -> Mixture:
    """Several datasets in one stream: every batch holds each in its proportion, exact over an epoch to one sample.

    Args:
        weights: dataset's folder -> weight.
        **options: as `streamkit.Loader`, for each of them.

    Returns:
        What behaves as a `streamkit.Loader`: as_tf(), as_keras(), as_torch(), cursors. An epoch has as many samples as all
        have together. A dataset drawn less often than it has samples goes on in the next epoch, one drawn more often
        repeats, each sample equally often. `sources(epoch, batch)` tells which part each sample is from.

    Raises:
        UsageError: weights that are none, or datasets whose fields, shapes or classes differ.
    """
    if not isinstance(weights, Mapping):
        raise UsageError(
            f"the datasets are {weights!r}, expected their weights, too",
            hint='Pass {"a/": 1, "b/": 1} for equal shares.',
        )
    if not weights or not all(isinstance(w, (int, float)) and 0 < w < float("inf") for w in weights.values()):
        raise UsageError(f"the weights are {list(weights.values())}, expected numbers above 0, one a dataset")
    budget = options.pop("memory_budget", None)
    each = None if budget is None else max(1, size(budget) // len(weights))
    parts = [Loader(path, memory_budget=each, **options) for path in weights]
    return Mixture(parts, list(weights.values()), loader.DEFAULT_BUDGET if budget is None else size(budget))


def dataset(path: str | os.PathLike[str], *, engine: str = "python", **options: Any) -> tf.data.Dataset:
    """A dataset as `tf.data.Dataset`: static shapes, known cardinality, prefetched, another order in every epoch.

    Args:
        path: the dataset's folder.
        engine: "graph" reads a converted TFRecord dataset with TensorFlow's operations alone, so that it can be serialised
            (tf.data service, TPU hosts, tf.train.Checkpoint). It shuffles a buffer of records, half of the memory
            budget; chooses, crops, flips and skips nothing; and leaves the cardinality unknown (`n_batches` tells it).
        **options: as `streamkit.Loader`.

    Returns:
        Elements as `Loader` yields them, as tensors; `.class_names` stands on the dataset, as Keras sets it.
    """
    if engine == "python":
        return Loader(path, **options).as_tf()
    if engine != "graph":
        raise UsageError(f'engine is {engine!r}, expected "python" or "graph"')
    with _needs("tensorflow"):
        from streamkit.frontends.graph import as_graph

    return as_graph(Loader(path, **options))


_KERAS_OPTIONS = ("workers", "use_multiprocessing", "max_queue_size")


def sequence(path: str | os.PathLike[str], **options: Any) -> keras.utils.PyDataset:
    """A dataset as `keras.utils.PyDataset` (keras.utils.Sequence): pure in its index, another order in every epoch.

    Args:
        path: the dataset's folder.
        **options: as `streamkit.Loader`; workers, max_queue_size and use_multiprocessing of `keras.utils.PyDataset` are
            taken and decide nothing: num_workers and memory_budget do.

    Pass `shuffle=False` to `fit`: the order is shuffled already, and Keras would shuffle batches by its own random state.
    """
    keras_options = {name: options.pop(name) for name in _KERAS_OPTIONS if name in options}
    return Loader(path, **options).as_keras(**keras_options)
