"""tf.data: the loader's iterations as a dataset with static shapes and known cardinality. TensorFlow is imported here.

A batch crosses once, as a whole, and without a copy: its buffers are aligned as TensorFlow wants them.

    >>> signature(Spec((4, None), "float32"), batch=8)
    TensorSpec(shape=(8, 4, None), dtype=tf.float32, name=None)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from streamkit.view import Spec

if TYPE_CHECKING:
    from streamkit.frontends import Loader


def signature(spec: Spec, batch: int | tuple[()] | None) -> tf.TensorSpec:
    """The tensor of one output; `batch` is its first axis, () for single samples."""
    first = () if batch == () else (batch,)
    dtype = tf.string if spec.dtype == "string" else tf.as_dtype(spec.dtype)
    return tf.TensorSpec((*first, *spec.shape), dtype)


def as_tf(loader: Loader) -> tf.data.Dataset:
    """See `Loader.as_tf`."""
    batch: Any = () if loader.batch_size is None else loader.batch_size if loader.drop_remainder else None
    signatures = loader.structure({name: signature(spec, batch) for name, spec in loader.specs.items()})

    def epoch() -> Iterator[Any]:
        yield from loader

    dataset = tf.data.Dataset.from_generator(epoch, output_signature=signatures)
    known = not (loader.skips_bad and loader.batch_size is None)  # single samples that are bad are left out
    if known and not loader.resumed:  # a resumed first iteration is shorter than the others
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(loader)))
    options = tf.data.Options()
    # Shards are chosen by the loader's own arithmetic; tf.distribute must not cut batches up again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.prefetch(2).with_options(options)
    dataset.class_names, dataset.loader = loader.class_names, loader
    return dataset
