"""h5py in its users' usual ways: a Sequence with sorted fancy indexing, and contiguous slices that do not shuffle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import arrays
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = ("h5py==3.14.0", "numpy==2.4.6")


def ways(task: Task) -> list[Way]:
    if task.name == "W3":
        return [Way("chunked writing", "chunks of 16 samples, in slices of 1,024")]
    if task.name not in ("R3b", "R4", "R5", "R5-guess"):
        return []
    form = None if task.data.startswith("gzip") else "data"
    few = {"R5": (8, None), "R5-guess": (2, 16)}.get(task.name, (None, None))
    kinds = (("sorted fancy indexing", "shuffled"), ("contiguous slices", "not shuffled"))
    return [
        Way(name, settings + (f", {n} batches an epoch" if n else ""), form, n)
        for (name, settings), n in zip(kinds, few, strict=True)
    ]


def load() -> None:
    import h5py

    assert h5py


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    import h5py

    x, y = arrays(source)
    out.mkdir()
    with h5py.File(out / "x.h5", "w") as file:
        # Chunks suit slices; without them (contiguous) fancy indexing is h5py's fastest, so reading tasks have none.
        chunks = (16, *x.shape[1:]) if task.kind == "write" else None
        dataset = file.create_dataset("image", x.shape, x.dtype, chunks=chunks)
        for start in range(0, len(x), 1024):
            dataset[start : start + 1024] = x[start : start + 1024]
        file.create_dataset("label", data=y)


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterator[tuple[Any, Any]]]:
    import h5py

    file = h5py.File((source if way.form is None else out) / "x.h5")
    x, y = file["image"], file["label"][:]
    random = np.random.default_rng(0)

    def epoch() -> Iterator[tuple[Any, Any]]:
        order = random.permutation(len(y))
        for start in range(0, len(y), task.batch_size):
            if way.name == "contiguous slices":
                yield x[start : start + task.batch_size], y[start : start + task.batch_size]
            else:
                rows = np.sort(order[start : start + task.batch_size])
                yield x[rows], y[rows]

    return epoch
