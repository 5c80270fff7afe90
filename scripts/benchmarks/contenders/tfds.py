"""TensorFlow Datasets: a dataset written by its own writer, read through as_dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders import decoding
from benchmarks.data import arrays, classes, files, has_pictures
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = ("tensorflow==2.21.0", "tensorflow-datasets==4.9.10", "importlib_resources", "numpy")


def ways(task: Task) -> list[Way]:
    if task.kind == "write":
        return [Way("store_as_tfds_dataset", "one process")] if task.name in ("W1", "W2", "W3") else []
    if task.name not in ("R1", "R2", "R3", "R3b", "R4", "R6"):
        return []
    pictures = task.data in ("photos", "tiny")
    decoder = f"SkipDecoding, {decoding.IN_TENSORFLOW}" if pictures else "Tensor, Encoding.BYTES"
    return [Way("as_dataset", f"{decoder}, AUTOTUNE, shuffle buffer of all")]


def load() -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    assert tf and tfds


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    import tensorflow_datasets as tfds

    if has_pictures(source):
        payload: Any = tfds.features.Image(encoding_format="jpeg")
    else:
        x, _ = arrays(source)
        payload = tfds.features.Tensor(shape=x.shape[1:], dtype=x.dtype, encoding=tfds.features.Encoding.BYTES)
    n_classes = len(classes(source))
    tfds.dataset_builders.store_as_tfds_dataset(
        "bench",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"x": payload, "y": tfds.features.ClassLabel(num_classes=n_classes)}),
        split_datasets={"train": _samples(source)},
        data_dir=out,
        disable_shuffling=True,
    )


def _samples(source: Path) -> list[Any] | Iterator[Any]:
    if has_pictures(source):
        return [(str(i), {"x": str(file), "y": label}) for i, (file, label) in enumerate(files(source))]
    return ((str(i), {"x": x, "y": y}) for i, (x, y) in enumerate(zip(*arrays(source), strict=True)))


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[Any]]:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(next(out.rglob("dataset_info.json")).parent)
    pictures = has_pictures(source)
    dataset = builder.as_dataset(
        split="train",
        decoders={"x": tfds.decode.SkipDecoding()} if pictures else None,
    ).shuffle(sum(classes(source)))
    if pictures:
        decode = decoding.in_tensorflow(task)
        dataset = dataset.map(lambda s: (decode(s["x"]), s["y"]), tf.data.AUTOTUNE, deterministic=False)
    else:
        dataset = dataset.map(lambda s: (s["x"], s["y"]), tf.data.AUTOTUNE, deterministic=False)
    prefetched = dataset.batch(task.batch_size).prefetch(tf.data.AUTOTUNE)
    return lambda: prefetched
