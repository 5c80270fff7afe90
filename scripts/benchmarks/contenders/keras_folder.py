"""Keras on the folder itself: image_dataset_from_directory, and a hand-made PyDataset with a fast decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import decoding
from benchmarks.data import files
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = (
    "tensorflow==2.21.0",
    "keras==3.15.1",
    "simplejpeg==1.9.0",
    "opencv-python-headless==5.0.0.93",
    "numpy",
)


def ways(task: Task) -> list[Way]:
    if task.name not in ("R1", "R3", "R6"):
        return []
    return [
        Way("image_dataset_from_directory", "shuffle=True, cast to uint8, prefetch", None),
        Way("PyDataset", f"two workers, {decoding.IN_PYTHON}", None),
    ]


def load() -> None:
    import keras
    import tensorflow as tf

    assert keras and tf


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[Any]]:
    import keras
    import tensorflow as tf

    if way.name == "PyDataset":
        return _py_dataset(task, source)
    dataset = keras.utils.image_dataset_from_directory(
        source, batch_size=task.batch_size, image_size=task.shape[:2], shuffle=True, seed=0, verbose=False
    )
    batches = dataset.map(lambda x, y: (tf.cast(x, tf.uint8), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda: batches


def _py_dataset(task: Task, source: Path) -> Callable[[], Iterable[Any]]:
    import keras
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter  # as fit drives it

    found = files(source)
    decode = decoding.in_python(task)

    class Folder(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__(workers=2, use_multiprocessing=False, max_queue_size=8)
            self.order = np.random.default_rng(0).permutation(len(found))

        def __len__(self) -> int:
            return -(-len(found) // task.batch_size)

        def __getitem__(self, i: int) -> Any:
            rows = self.order[i * task.batch_size : (i + 1) * task.batch_size]
            x = np.stack([decode(found[row][0].read_bytes()) for row in rows])
            return x, np.array([found[row][1] for row in rows])

        def on_epoch_end(self) -> None:
            np.random.default_rng().shuffle(self.order)

    adapter = PyDatasetAdapter(Folder(), shuffle=False)

    def epoch() -> Iterable[Any]:
        adapter.on_epoch_begin()
        yield from adapter.get_numpy_iterator()
        adapter.on_epoch_end()

    return epoch
