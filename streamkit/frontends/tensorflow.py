"""tf.data: the loader's iterations as a dataset with static shapes and known cardinality. TensorFlow is imported here.

A batch crosses once, as a whole, and without a copy: its buffers are aligned as TensorFlow wants them. How loops outside
of graphs get theirs, eager.py knows.

    >>> signature(Spec((4, None), "float32"), batch=8)
    TensorSpec(shape=(8, 4, None), dtype=tf.float32, name=None)
"""

from __future__ import annotations

import itertools
import pickle
import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tensorflow as tf

from streamkit.errors import UsageError
from streamkit.frontends.devices import mover
from streamkit.frontends.eager import Begun, iterated
from streamkit.view import Spec

if TYPE_CHECKING:
    from streamkit.stream import Stream


def signature(spec: Spec, batch: int | tuple[()] | None) -> tf.TensorSpec:
    """The tensor of one output; `batch` is its first axis, () for single samples."""
    first = () if batch == () else (batch,)
    dtype = tf.string if spec.dtype == "string" else tf.as_dtype(spec.dtype)
    return tf.TensorSpec((*first, *spec.shape), dtype)


def as_tf(loader: Stream) -> tf.data.Dataset:
    """See `Loader.as_tf`."""
    batch: Any = () if loader.batch_size is None else loader.batch_size if loader.drop_remainder else None
    signatures = loader.structure({name: signature(spec, batch) for name, spec in loader.specs.items()})
    known = not (loader.skips_bad and loader.batch_size is None)  # single samples that are bad are left out
    known &= loader.is_held or not loader.resumed  # a resumed first iteration is shorter than the others
    iterations = _Iterations(loader, known and not loader.is_held)
    dataset = _dataset(iterations, signatures)
    if known:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(loader.n_next))
    dataset = _ahead(dataset)
    if loader.device is not None:
        mover("tensorflow", loader.device)  # says what is wrong with it
        dataset = dataset.apply(tf.data.experimental.prefetch_to_device(loader.device))
    else:
        iterated(dataset, iterations.begun, lambda begun: _ahead(_dataset(_Rest(begun), signatures)))
    dataset.class_names, dataset.loader = loader.class_names, loader
    return dataset


def _ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset with the next batches handed over before they are asked for."""
    options = tf.data.Options()
    # Shards are chosen by the loader's own arithmetic; tf.distribute must not cut batches up again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # TensorFlow rewrites only graphs that it can serialise, which Python cannot be, and would warn of that.
    options.experimental_optimization.apply_default_optimizations = False
    # There is nothing to tune here, and TensorFlow ends an iteration only when its tuner wakes up: 10, 30, 70 ms and so on
    # after the beginning, always as long again as it has slept, so that an epoch of 2.7 s took 5.1.
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


class _Iterations:
    """The iterations of one dataset, by number.

    TensorFlow keeps what a graph may call for as long as the process lives, and this with it. So once the dataset is gone
    the loader is packed, with all that it had open; what still iterates, or a graph that was built with the dataset in
    it, goes on.
    """

    def __init__(self, loader: Stream, whole: bool) -> None:
        self._loader: Stream | bytes = loader
        self._whole = whole
        self._numbers = itertools.count()
        self._begun: dict[int, Begun] = {}

    def begun(self) -> Begun:
        """Begin one. Raises UsageError for a rest of an epoch where whole ones were promised."""
        loader = self._loader
        if isinstance(loader, bytes):
            loader = self._loader = cast("Stream", pickle.loads(loader))  # packed by `pack`, never read from anywhere
        if self._whole and loader.resumed:
            raise UsageError("resume the loader before as_tf(): this dataset has promised whole epochs")
        return loader.__iter__()

    def begin(self) -> np.int64:
        """Begin one for TensorFlow; its number."""
        number = next(self._numbers)
        self._begun[number] = self.begun()
        return np.int64(number)

    def proceed(self, number: np.int64) -> list[Any]:
        """The next batch, its parts in TensorFlow's order. Its StopIteration ends TensorFlow's iteration, too."""
        return tf.nest.flatten(next(self._begun[int(number)]))

    def end(self, number: np.int64) -> np.int64:
        """Close one."""
        self._begun.pop(int(number)).close()
        return number

    def pack(self) -> None:
        """Let go of what the loader holds."""
        if not isinstance(self._loader, bytes):
            self._loader = pickle.dumps(self._loader)


class _Rest(_Iterations):
    """The rest of one iteration that was begun outside of TensorFlow."""

    def __init__(self, rest: Begun) -> None:
        self._numbers, self._begun = itertools.count(), {}
        self._rest: Begun | None = rest

    def begun(self) -> Begun:
        assert self._rest is not None  # the one iterator that is made of it holds the dataset
        return self._rest

    def pack(self) -> None:
        self._rest = None


def _dataset(iterations: _Iterations, signatures: Any) -> tf.data.Dataset:
    """A dataset whose every iteration is one of these, ended when TensorFlow drops its own.

    `Dataset.from_generator` puts the same operation inside a flat_map, and TensorFlow instantiates all of that anew in
    every epoch: 30 ms of CPU time, which short epochs feel.
    """
    flat, state = tf.nest.flatten(signatures), tf.TensorSpec((), tf.int64)
    functions = {
        "init_func": _calling(iterations.begin, [], [state]),
        "next_func": _calling(iterations.proceed, [state], flat),
        "finalize_func": _calling(iterations.end, [state], [state]),
    }
    none: list[tf.Tensor] = []  # captured by none of the functions
    made = tf.raw_ops.GeneratorDataset(
        init_func_other_args=none,
        next_func_other_args=none,
        finalize_func_other_args=none,
        output_types=[spec.dtype for spec in flat],
        output_shapes=[spec.shape for spec in flat],
        **functions,
    )
    dataset = tf.data.experimental.from_variant(made, signatures)
    dataset.functions = functions  # TensorFlow forgets a function whose last reference is gone
    weakref.finalize(dataset, iterations.pack).atexit = False
    return dataset


def _calling(function: Any, arguments: list[tf.TensorSpec], results: list[tf.TensorSpec]) -> Any:
    """`function` of NumPy values as a TensorFlow function, its results promised to be of these shapes."""

    def call(*values: tf.Tensor) -> list[tf.Tensor]:
        made = tf.numpy_function(function, values, [spec.dtype for spec in results])
        return [tf.ensure_shape(value, spec.shape) for value, spec in zip(made, results, strict=True)]

    return tf.function(call, input_signature=arguments, autograph=False).get_concrete_function()
