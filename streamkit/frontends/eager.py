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
from typing import Any

import numpy as np
import tensorflow as tf

from streamkit.buffers import ALIGNMENT, Buffers

_SHARED = "biuf"  # kinds of NumPy dtypes that DLPack and TensorFlow know alike
# What an iterator of tf.data has of its own, and Batches only when a graph asks for it.
_OF_TF_DATA = ("_iterator_resource", "_flat_output_types", "_flat_output_shapes", "_components")
_ROOM = Buffers(keep=0)
_OwnedIterator: Any = tf.data.IteratorSpec(tf.TensorSpec(())).value_type
Begun = Generator[Any, None, None]


def iterated(dataset: tf.data.Dataset, begin: Callable[[], Begun], rest: Callable[[Begun], tf.data.Dataset]) -> None:
    """Make iterating `dataset` outside of graphs give the loader's batches.

    Args:
        dataset: the same batches through tf.data.
        begin: begins an iteration of the loader.
        rest: what is left of one as a dataset.
    """

    def __iter__(self: Any) -> Any:
        return Batches(self, begin, rest) if tf.executing_eagerly() else inside(self)

    inside = type(dataset).__iter__
    dataset.__class__ = type("Dataset", (type(dataset),), {"__iter__": __iter__})


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
    """One iteration. It begins when the first batch is asked for. Arguments as `iterated`."""

    def __init__(self, dataset: tf.data.Dataset, begin: Callable[[], Begun], rest: Callable[[Begun], Any]) -> None:
        self._dataset, self._element_spec = dataset, dataset.element_spec
        self._begin, self._rest = begin, rest
        self._begun: Begun | None = None
        self._real: Any = None
        self._get_next_call_count = 0
        self._turn = threading.Lock()  # any thread may ask for the next batch

    def __next__(self) -> Any:
        if self._real is None and tf.executing_eagerly():
            with self._turn:
                if self._real is None:
                    if self._begun is None:
                        self._begun = self._begin()
                    return tf.nest.map_structure(tensor, next(self._begun))
        return next(self._in_graphs())

    def get_next(self) -> Any:
        return self._in_graphs().get_next()

    def get_next_as_optional(self) -> Any:
        return self._in_graphs().get_next_as_optional()

    def __getattr__(self, name: str) -> Any:
        if name in _OF_TF_DATA:
            return getattr(self._in_graphs(), name)
        raise AttributeError(name)

    def _in_graphs(self) -> Any:
        """The iterator of tf.data that goes on with this one."""
        with self._turn:
            if self._real is None:
                with tf.init_scope():
                    dataset = self._dataset if self._begun is None else self._rest(self._begun)
                    self._real = _OwnedIterator(dataset)
            return self._real
