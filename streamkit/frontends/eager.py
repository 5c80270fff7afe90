"""Iterating a dataset of TensorFlow outside of graphs: the loader's own batches as tensors, past tf.data.

tf.data takes 0.4 ms of CPU time a batch to run Python inside a graph and to come back, as long as it takes to copy 4 MB.
Where Python itself asks for the batches, as a loop of one's own does, none of that is needed. A graph that is given the
iterator (`Model.fit` compiles one) gets a real one of tf.data, which goes on where this one is.

    >>> tensor(np.float32([1, 2]))
    <tf.Tensor: shape=(2,), dtype=float32, numpy=array([1., 2.], dtype=float32)>
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any, Self

import numpy as np
import tensorflow as tf

from streamkit.buffers import ALIGNMENT, Buffers
from streamkit.errors import UsageError

_SHARED = "biuf"  # kinds of NumPy dtypes that DLPack and TensorFlow know alike
_ROOM = Buffers(keep=0)
_OwnedIterator: Any = tf.data.IteratorSpec(tf.TensorSpec(())).value_type
Iteration = Generator[Any, None, None]


def iterate_past(
    dataset: tf.data.Dataset, new: Callable[[], Iteration], rest: Callable[[Iteration, int], tf.data.Dataset]
) -> None:
    """Make loops over `dataset` outside of graphs take the loader's batches.

    Args:
        dataset: the same batches through tf.data.
        new: begins an iteration of the loader.
        rest: what is left of one as a dataset, after so many batches.
    """

    def __iter__(self: Any) -> Any:
        return Batches(self, new, rest) if tf.executing_eagerly() else in_graphs(self)

    in_graphs = type(dataset).__iter__
    dataset.__class__ = type("Dataset", (type(dataset),), {"__iter__": __iter__, "__module__": __name__})


def tensor(value: Any) -> tf.Tensor:
    """An array as a tensor of this machine's memory: the same bytes, where they are aligned as TensorFlow wants them."""
    array = np.asarray(value)
    if array.dtype.kind not in _SHARED:
        with tf.device("CPU:0"):
            return tf.constant(value)
    if not array.flags.carray or array.ctypes.data % ALIGNMENT:
        array = _ROOM.empty(array.shape, array.dtype)
        array[...] = value
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


class Batches(_OwnedIterator):
    """One iteration; it begins when the first batch is asked for. Once something of tf.data is asked of it (its resource,
    `get_next`), all that is left comes through tf.data. Arguments as `iterate_past`.
    """

    def __init__(
        self, dataset: tf.data.Dataset, new: Callable[[], Iteration], rest: Callable[[Iteration, int], tf.data.Dataset]
    ) -> None:
        self._dataset, self._element_spec = dataset, dataset.element_spec
        self._new, self._rest = new, rest
        self._begun: Iteration | None = None
        self._n_given = 0
        self._error: BaseException | None = None
        self._real: Any = None
        self._turn = threading.Lock()  # any thread may ask for the next batch

    def __next__(self) -> Any:
        if self._real is None and tf.executing_eagerly():
            with self._turn:
                if self._real is None:
                    return self._next()
        return next(self._in_graphs())

    def _next(self) -> Any:
        self._check()
        try:
            if self._begun is None:
                self._begun = self._new()
            made = tf.nest.map_structure(tensor, next(self._begun))
        except StopIteration:
            raise
        except BaseException as error:  # Ctrl-C, too, ends the loader's iteration
            self._error = error
            raise
        self._n_given += 1
        return made

    def _check(self) -> None:
        """Half an epoch must not pass for a whole one."""
        if self._error is not None:
            raise UsageError(
                f"this iteration ended at batch {self._n_given}, by {self._error!r}",
                hint="Begin another: iter(dataset).",
            ) from self._error

    def get_next(self) -> Any:
        return self._in_graphs().get_next()

    def get_next_as_optional(self) -> Any:
        return self._in_graphs().get_next_as_optional()

    @property
    def _iterator_resource(self) -> Any:
        """What a graph is given of an iterator."""
        return self._in_graphs()._iterator_resource

    def __copy__(self) -> Self:
        return self  # as those of tf.data, which share their place

    def _in_graphs(self) -> Any:
        """The iterator of tf.data that goes on with this one."""
        with self._turn, tf.init_scope(), tf.device("CPU:0"):
            if self._real is None:
                self._check()
                if not tf.executing_eagerly():  # what is made in a graph of TensorFlow 1 is lost with it
                    raise UsageError("this iterator is of no use in a tf.Graph", hint="Make one there.")
                dataset = self._dataset if self._begun is None else self._rest(self._begun, self._n_given)
                self._real = _OwnedIterator(dataset)
            return self._real
