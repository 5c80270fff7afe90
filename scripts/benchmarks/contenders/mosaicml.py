"""MosaicML Streaming: MDS shards through a torch DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import decoding
from benchmarks.data import arrays, files, has_pictures
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = (
    "mosaicml-streaming==0.13.0",
    "torch==2.14.1",
    "torchvision==0.29.1",
    "simplejpeg==1.9.0",
    "opencv-python-headless==5.0.0.93",
    "numpy",
)


def ways(task: Task) -> list[Way]:
    if task.kind == "write":
        return [Way("MDSWriter", "one process")] if task.name in ("W1", "W2", "W3") else []
    if task.name not in ("R1", "R2", "R3", "R3b", "R4", "R6"):
        return []
    decoder = decoding.IN_PYTHON if task.data in ("photos", "tiny") else "ndarray"
    return [Way("StreamingDataset", f"naive (full) shuffle, two persistent workers, {decoder}")]


def load() -> None:
    import streaming
    import torch

    assert streaming and torch


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    from streaming import MDSWriter

    if has_pictures(source):
        columns = {"x": "bytes", "y": "int"}
        samples = ({"x": file.read_bytes(), "y": label} for file, label in files(source))
    else:
        x, y = arrays(source)
        columns = {"x": f"ndarray:{x.dtype}:{','.join(map(str, x.shape[1:]))}", "y": "int"}
        samples = ({"x": np.asarray(row), "y": int(label)} for row, label in zip(x, y, strict=True))
    with MDSWriter(out=str(out), columns=columns) as writer:
        for sample in samples:
            writer.write(sample)


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[Any]]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    decode = decoding.in_python(task) if has_pictures(source) else np.copy

    class Samples(StreamingDataset):
        def __getitem__(self, i: int) -> Any:
            found = super().__getitem__(i)
            return decode(found["x"]), found["y"]

    clean_stale_shared_memory()
    samples = Samples(local=str(out), shuffle=True, shuffle_algo="naive", batch_size=task.batch_size)
    loader = DataLoader(samples, batch_size=task.batch_size, num_workers=2, persistent_workers=True)
    return lambda: loader
