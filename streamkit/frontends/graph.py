"""engine="graph": a converted TFRecord dataset through TensorFlow's operations alone. No Python runs in the pipeline.

So it can be serialised: it runs in a worker of the tf.data service and on a TPU's host, and `tf.train.Checkpoint` saves its
iterator. What that costs: it reads eight files side by side, in an order that hangs on the seed alone, and shuffles a buffer of
records, not all rows; decodes JPEG whole before resizing; and tells no cardinality (`n_batches` stands on the dataset),
because a part of it may run elsewhere. In the pipeline only a record's own crc32c is checked, which a shard of another
conversion has as well: so every shard is hashed before the pipeline gets it, once for each dataset that is made.
Pixels are those of the Python engine where nothing is resized, and near them otherwise.

    >>> import tempfile, streamkit
    >>> out = tempfile.mkdtemp() + "/out"
    >>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
    >>> dataset = as_graph(streamkit.Loader(out, split="val", batch_size=16))
    >>> next(iter(dataset))[0].shape, dataset.n_batches
    (TensorShape([16, 32, 32, 3]), 15)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from streamkit.bijection import permute
from streamkit.errors import UsageError
from streamkit.loader import Loader
from streamkit.schema import Field
from streamkit.view import COLOR_MODES

_FILES = 8  # read side by side
_METHODS = {"bilinear": ("bilinear", False), "nearest": ("nearest", False), "area": ("area", False)} | {
    "antialias": ("bilinear", True)
}
_UNSIGNED = {"uint32": tf.int32, "uint64": tf.int64}  # which TensorFlow cannot unpack, but can look at otherwise

Parse = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]


def as_graph(loader: Loader) -> tf.data.Dataset:
    """The samples of a loader, which itself is asked for its arguments only.

    Raises:
        UsageError: the dataset, or an argument, needs Python.
    """
    _check(loader)
    view, schema = loader.view, loader.schema
    names = [name for name in loader.specs if not (name.endswith("_length") and name not in schema)]
    fields = [schema[name] for name in names]
    n = loader.n_samples // loader.num_shards
    paths = loader.whole_shards()
    if loader.shuffle:  # here: after a shuffle in the pipeline, the service's dynamic sharding reads every file twice
        paths = [paths[i] for i in permute(np.arange(len(paths)), len(paths), (loader.seed, 0)).tolist()]
    records = tf.data.Dataset.from_tensor_slices(paths).interleave(tf.data.TFRecordDataset, cycle_length=_FILES)
    if loader.num_shards > 1:
        records = records.shard(loader.num_shards, loader.shard_index).take(n)
    if loader.shuffle:
        held = max(1, loader.memory_budget // 2 // loader.record_nbytes)
        records = records.shuffle(min(n, held), loader.seed, reshuffle_each_iteration=True)
    samples = records.map(_parser(fields, loader), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if loader.batch_size is not None:
        shapes = {name: spec.shape for name, spec in loader.specs.items()}
        samples = samples.padded_batch(loader.batch_size, shapes, drop_remainder=loader.drop_remainder)
    dataset = samples.map(lambda values: view.structure(dict(values), schema), num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    if loader.num_shards > 1:
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.prefetch(2).with_options(options)
    size = loader.batch_size or 1
    dataset.class_names, dataset.n_batches = loader.class_names, n // size if loader.drop_remainder else -(-n // size)
    return dataset


def _check(loader: Loader) -> None:
    view, manifest = loader.view, loader.manifest
    names = [name for name in view.outputs(loader.schema) if name not in loader.schema]
    reasons = {
        "the dataset is not TFRecord": manifest.format != "tfrecord",
        "the dataset's files were adopted": manifest.root is not None,
        "some pictures are turned by EXIF": loader.turned,
        "a part of the split is chosen": loader.n_samples != loader.n_stored or loader.balanced,
        f"{', '.join(names)} stands in the index": bool(names),
        "crop, flip and crop_to_aspect_ratio are computed in Python": view.crops or view.flip,
        f"interpolation={view.interpolation!r} is computed in Python": view.interpolation not in _METHODS,
        'color_mode="rgba" is decoded in Python': view.color_mode == "rgba",
        'on_corrupt="skip" looks into the index': loader.skips_bad,
        "device= is not for a pipeline that runs elsewhere": loader.device is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f'engine="graph" cannot do this: {reason}', hint='Leave it out, or use engine="python".')


def _parser(fields: list[Field], loader: Loader) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A serialised Example -> its outputs, by name."""
    wanted: dict[str, Any] = {}
    for field in fields:
        kind = tf.string if field.is_payload or field.kind == "string" else tf.int64
        if kind == tf.int64 and field.dtype.startswith("float"):
            kind = tf.float32
        several = field.is_payload and not field.is_encoded_image and field.n_varying > 1
        wanted[f"{field.name}/value" if several else field.name] = tf.io.FixedLenFeature((), kind)
        if several:
            wanted[f"{field.name}/shape"] = tf.io.FixedLenFeature((len(field.shape),), tf.int64)

    def parse(record: tf.Tensor) -> dict[str, tf.Tensor]:
        found = tf.io.parse_single_example(record, wanted)
        out: dict[str, tf.Tensor] = {}
        for field in fields:
            value = found.get(field.name, found.get(f"{field.name}/value"))
            if field.is_image:
                out[field.name] = _picture(field, value, loader)
            elif field.kind == "label":
                out[field.name] = _label(field, value, loader.view.label_mode)
            elif not field.is_payload:
                out[field.name] = value if field.kind == "string" else tf.cast(value, field.dtype)
            else:
                values, sizes = _array(field, value, found.get(f"{field.name}/shape"))
                out[field.name] = values
                if f"{field.name}_length" in loader.specs:
                    out[f"{field.name}_length"] = tf.cast(sizes[0] if len(sizes) == 1 else tf.stack(sizes), tf.int32)
        return {name: out[name] for name in loader.specs}

    return parse


def _picture(field: Field, data: tf.Tensor, loader: Loader) -> tf.Tensor:
    view = loader.view
    n_channels = 1 if field.kind == "mask" else COLOR_MODES[view.color_mode]
    if field.is_encoded_image:
        pixels = tf.io.decode_jpeg(data, n_channels, dct_method="INTEGER_FAST")  # decodes PNG as well
    else:
        pixels = _array(field, data, None)[0]
        if field.shape[-1] != n_channels:
            pixels = tf.image.grayscale_to_rgb(pixels) if n_channels == 3 else tf.image.rgb_to_grayscale(pixels)
    height, width = view.size(field)
    if view.image_size is not None and field.shape[:2] != (height, width):
        method, antialias = ("nearest", False) if field.kind == "mask" else _METHODS[view.interpolation]
        resized = tf.image.resize(pixels, (height, width), method, antialias=antialias)
        pixels = tf.cast(tf.clip_by_value(tf.round(tf.cast(resized, tf.float32)), 0, 255), tf.uint8)
    pixels = tf.ensure_shape(pixels, (height, width, n_channels))
    return pixels if field.kind == "mask" else tf.cast(pixels, view.dtype)


def _label(field: Field, value: tf.Tensor, mode: str | None) -> tf.Tensor:
    if mode == "categorical":
        return tf.one_hot(value, len(field.class_names or ()))
    return tf.cast(value, tf.int32) if mode in (None, "int") else tf.cast(value, tf.float32)[None]


def _array(field: Field, data: tf.Tensor, shape: tf.Tensor | None) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """An array, and its sizes along the axes that vary."""
    if field.dtype == "string":
        return data, []
    if field.encoding == "zlib":
        data = tf.io.decode_compressed(data, "ZLIB")
    flat = tf.io.decode_raw(data, _UNSIGNED.get(field.dtype, tf.as_dtype(field.dtype)))
    if field.dtype in _UNSIGNED:
        flat = tf.bitcast(flat, field.dtype)
    values = tf.reshape(flat, [-1 if d is None else d for d in field.shape] if shape is None else shape)
    values = tf.ensure_shape(values, field.shape)
    return values, [tf.shape(values)[axis] for axis, d in enumerate(field.shape) if d is None]
