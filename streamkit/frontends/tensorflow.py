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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tensorflow as tf

from streamkit.errors import UsageError
from streamkit.frontends.devices import mover
from streamkit.frontends.eager import Iteration, iterate_past
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
    n_batches = loader.n_next if known else None
    epochs = _Epochs(loader, known and not loader.is_held)
    dataset = _dataset(epochs, signatures, n_batches)
    if loader.device is not None:
        mover("tensorflow", loader.device)  # says what is wrong with it
        dataset = dataset.apply(tf.data.experimental.prefetch_to_device(loader.device))
    else:

        def rest(begun: Iteration, n_given: int) -> tf.data.Dataset:
            return _dataset(_Rest(begun), signatures, None if n_batches is None else n_batches - n_given)

        iterate_past(dataset, epochs.new, rest)
    dataset.class_names, dataset.loader = loader.class_names, loader
    return dataset


class _Epochs:
    """The epochs of a loader.

    TensorFlow keeps what a graph may call for as long as the process lives, and this with it. So once the dataset is gone
    the loader is packed, with all that it had open; what still iterates, or a graph that was built with the dataset in
    it, goes on.
    """

    def __init__(self, loader: Stream, whole: bool) -> None:
        self._loader: Stream | bytes = loader
        self._whole = whole

    def new(self) -> Iteration:
        """Begin one. Raises UsageError for a rest of an epoch where whole ones were promised."""
        loader = self._loader
        if isinstance(loader, bytes):
            loader = self._loader = cast("Stream", pickle.loads(loader))  # packed by `pack`, never read from anywhere
        if self._whole and loader.resumed:
            raise UsageError("resume the loader before as_tf(): this dataset has promised whole epochs")
        return loader.__iter__()

    def pack(self) -> None:
        """Let go of what the loader holds."""
        if not isinstance(self._loader, bytes):
            self._loader = pickle.dumps(self._loader)


class _Rest:
    """The rest of an epoch that a loop has begun; the one iterator over it is made with the dataset."""

    def __init__(self, begun: Iteration) -> None:
        self._begun = [begun]

    def new(self) -> Iteration:
        return self._begun.pop()

    def pack(self) -> None:
        self._begun.clear()


class _Iterations:
    """The iterations of one dataset, by number."""

    def __init__(self, new: Callable[[], Iteration]) -> None:
        self._new = new
        self._numbers = itertools.count()
        self._begun: dict[int, Iteration] = {}

    def begin(self) -> np.int64:
        """Begin one; its number."""
        number = next(self._numbers)
        self._begun[number] = self._new()
        return np.int64(number)

    def proceed(self, number: np.int64) -> list[Any]:
        """The next batch, its parts in TensorFlow's order. Its StopIteration ends TensorFlow's iteration, too."""
        parts = tf.nest.flatten(next(self._begun[int(number)]))
        # NumPy's own text ends before its last NULs
        return [np.array(part.encode(), object) if isinstance(part, str) else part for part in parts]

    def end(self, number: np.int64) -> np.int64:
        """Close one."""
        self._begun.pop(int(number)).close()
        return number


def _dataset(of: _Epochs | _Rest, signatures: Any, n_batches: int | None) -> tf.data.Dataset:
    """A dataset whose every iteration is one of these, ended when TensorFlow drops its own; the next batches are handed over
    before they are asked for.

    `Dataset.from_generator` puts the same operation inside a flat_map, and TensorFlow instantiates all of that anew in
    every epoch: 30 ms of CPU time, which short epochs feel.
    """
    iterations = _Iterations(of.new)
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
    weakref.finalize(dataset, of.pack).atexit = False
    if n_batches is not None:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(n_batches))
    options = tf.data.Options()
    # Shards are chosen by the loader's own arithmetic; tf.distribute must not cut batches up again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # TensorFlow rewrites only graphs that it can serialise, which Python cannot be, and would warn of that.
    options.experimental_optimization.apply_default_optimizations = False
    # There is nothing to tune here, and TensorFlow ends an iteration only when its tuner wakes up: 10, 30, 70 ms and so on
    # after the beginning, always as long again as it has slept, so that an epoch of 2.7 s took 5.1.
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def _calling(function: Any, arguments: list[tf.TensorSpec], results: list[tf.TensorSpec]) -> Any:
    """`function` of NumPy values as a TensorFlow function, its results promised to be of these shapes."""

    def call(*values: tf.Tensor) -> list[tf.Tensor]:
        made = tf.numpy_function(function, values, [spec.dtype for spec in results])
        return [tf.ensure_shape(value, spec.shape) for value, spec in zip(made, results, strict=True)]

    return tf.function(call, input_signature=arguments, autograph=False).get_concrete_function()
