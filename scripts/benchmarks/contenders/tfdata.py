"""tf.data over TFRecord files, written with TFRecordWriter: the way of TensorFlow's guide, with its fast options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.contenders import decoding
from benchmarks.data import arrays, classes, files, has_pictures
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = ("tensorflow==2.21.0", "numpy")
N_FILES = 4


def ways(task: Task) -> list[Way]:
    if task.kind == "write":
        return [Way("TFRecordWriter", "one process")] if task.name in ("W1", "W2", "W3") else []
    if task.name not in ("R1", "R2", "R3", "R3b", "R4", "R6", "R7"):
        return []
    decoder = "parse_example and decode_raw a batch"
    if task.data in ("photos", "tiny"):
        decoder = decoding.IN_TENSORFLOW + (", partial decode" if task.augment else "")
    return [Way("TFRecord", f"{decoder}, AUTOTUNE, shuffle buffer of all")]


def load() -> None:
    import tensorflow as tf

    assert tf


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    import tensorflow as tf

    out.mkdir()
    writers = [tf.io.TFRecordWriter(str(out / f"data-{i}.tfrecord")) for i in range(N_FILES)]
    if has_pictures(source):
        samples = ((file.read_bytes(), label) for file, label in files(source))
    else:
        x, y = arrays(source)
        samples = ((row.tobytes(), int(label)) for row, label in zip(x, y, strict=True))
    for i, (payload, label) in enumerate(samples):
        features = {
            "x": tf.train.Feature(bytes_list=tf.train.BytesList(value=[payload])),
            "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        writers[i % N_FILES].write(example.SerializeToString())
    for writer in writers:
        writer.close()


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[Any]]:
    import tensorflow as tf

    records = tf.data.TFRecordDataset([str(p) for p in sorted(out.iterdir())], num_parallel_reads=tf.data.AUTOTUNE)
    shuffled = records.shuffle(sum(classes(source)))
    features = {"x": tf.io.FixedLenFeature([], tf.string), "y": tf.io.FixedLenFeature([], tf.int64)}
    if has_pictures(source):
        decode = decoding.in_tensorflow(task)

        def one(record: Any) -> Any:
            found = tf.io.parse_single_example(record, features)
            return decode(found["x"]), found["y"]

        batches = shuffled.map(one, tf.data.AUTOTUNE, deterministic=False).batch(task.batch_size)
    else:

        def many(parts: Any) -> Any:
            found = tf.io.parse_example(parts, features)
            return tf.reshape(tf.io.decode_raw(found["x"], task.dtype), (-1, *task.shape)), found["y"]

        batches = shuffled.batch(task.batch_size).map(many, tf.data.AUTOTUNE, deterministic=False)
    prefetched = batches.prefetch(tf.data.AUTOTUNE)
    return lambda: prefetched
