"""Grain over ArrayRecord: a label and the payload a record, one record a group as Grain asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import decoding
from benchmarks.data import arrays, files, has_pictures
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = (
    "grain==0.2.18",
    "array-record==0.8.6",
    "simplejpeg==1.9.0",
    "opencv-python-headless==5.0.0.93",
    "numpy",
)


def ways(task: Task) -> list[Way]:
    if task.kind == "write":
        return [Way("ArrayRecordWriter", "group_size:1, one process")] if task.name in ("W1", "W2", "W3") else []
    if task.name not in ("R1", "R2", "R3", "R3b", "R4", "R6"):
        return []
    decoder = decoding.IN_PYTHON if task.data in ("photos", "tiny") else "np.frombuffer"
    return [Way("ArrayRecord", f"MapDataset, two read threads, {decoder}")]


def load() -> None:
    import grain
    from array_record.python import array_record_module

    assert grain and array_record_module


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    out.mkdir()
    writer = ArrayRecordWriter(str(out / "data.array_record"), "group_size:1,uncompressed")
    if has_pictures(source):
        samples = ((file.read_bytes(), label) for file, label in files(source))
    else:
        samples = ((x.tobytes(), y) for x, y in zip(*arrays(source), strict=True))
    for payload, label in samples:
        writer.write(int(label).to_bytes(4, "little") + payload)
    writer.close()


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[Any]]:
    import grain

    if has_pictures(source):
        decode = decoding.in_python(task)
    else:

        def decode(payload: bytes) -> Any:
            return np.frombuffer(payload, task.dtype).reshape(task.shape)

    def sample(record: bytes) -> tuple[Any, Any]:
        return decode(record[4:]), np.int32(int.from_bytes(record[:4], "little"))

    records = grain.sources.ArrayRecordDataSource([str(out / "data.array_record")])
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * task.batch_size)
    epochs = iter(range(1 << 30))

    def epoch() -> Iterable[Any]:
        shuffled = grain.MapDataset.source(records).shuffle(seed=next(epochs))
        return shuffled.map(sample).to_iter_dataset(options).batch(task.batch_size, drop_remainder=False)

    return epoch
