"""tf.data: the loader's iterations as a dataset with static shapes and known cardinality. TensorFlow is imported here.

A batch crosses once, as a whole, and without a copy: its buffers are aligned as TensorFlow wants them.

    >>> signature(Spec((4, None), "float32"), batch=8)
    TensorSpec(shape=(8, 4, None), dtype=tf.float32, name=None)
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

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
    dataset = _iterations(loader, signatures)
    known = not (loader.skips_bad and loader.batch_size is None)  # single samples that are bad are left out
    if known and not loader.resumed:  # a resumed first iteration is shorter than the others
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(loader)))
    options = tf.data.Options()
    # Shards are chosen by the loader's own arithmetic; tf.distribute must not cut batches up again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # TensorFlow rewrites only graphs that it can serialise, which Python cannot be, and would warn of that.
    options.experimental_optimization.apply_default_optimizations = False
    dataset = dataset.prefetch(2).with_options(options)
    dataset.class_names, dataset.loader = loader.class_names, loader
    return dataset


def _iterations(loader: Stream, signatures: Any) -> tf.data.Dataset:
    """A dataset whose every iteration is one of the loader's, closed when TensorFlow drops its own.

    `Dataset.from_generator` puts the same operation inside a flat_map, and TensorFlow instantiates all of that anew in
    every epoch: 30 ms of CPU time, which short epochs feel.
    """
    begun: dict[int, Generator[Any, None, None]] = {}
    numbers = itertools.count()

    def begin() -> np.int64:
        number = next(numbers)
        begun[number] = iter(loader)
        return np.int64(number)

    def proceed(number: np.int64) -> list[Any]:
        return tf.nest.flatten(next(begun[int(number)]))  # its StopIteration ends TensorFlow's iteration, too

    def end(number: np.int64) -> np.int64:
        begun.pop(int(number)).close()
        return number

    flat, state = tf.nest.flatten(signatures), tf.TensorSpec((), tf.int64)
    functions = {
        "init_func": _calling(begin, [], [state]),
        "next_func": _calling(proceed, [state], flat),
        "finalize_func": _calling(end, [state], [state]),
    }
    types, shapes = [spec.dtype for spec in flat], [spec.shape for spec in flat]
    none: list[tf.Tensor] = []  # captured by none of the functions
    made = tf.raw_ops.GeneratorDataset(
        init_func_other_args=none,
        next_func_other_args=none,
        finalize_func_other_args=none,
        output_types=types,
        output_shapes=shapes,
        **functions,
    )
    dataset = tf.data.experimental.from_variant(made, signatures)
    dataset.functions = functions  # TensorFlow forgets a function whose last reference is gone
    return dataset


def _calling(function: Any, arguments: list[tf.TensorSpec], results: list[tf.TensorSpec]) -> Any:
    """`function` of NumPy values as a TensorFlow function, its results promised to be of these shapes."""

    def call(*values: tf.Tensor) -> list[tf.Tensor]:
        made = tf.numpy_function(function, values, [spec.dtype for spec in results])
        return [tf.ensure_shape(value, spec.shape) for value, spec in zip(made, results, strict=True)]

    return tf.function(call, input_signature=arguments, autograph=False).get_concrete_function()
