"""The machine's own limit: the bare operation on the same data, with as many threads as a loader has.

Results are dropped by the thread that made them, as nothing bare would keep them; labels come with a stand-in for x.
"""

from __future__ import annotations

import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import decoding
from benchmarks.data import arrays, files, has_pictures
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = ()
THREADS = 2


def ways(task: Task) -> list[Way]:
    if task.name.startswith("cores") and task.kind == "read":
        return [Way(f"{n} thread{'s' * (n > 1)}", "bare decode and resize", None) for n in (1, 2)]
    if task.figure == "memory" or task.name in ("convert-small", "cores-W", "R1s"):
        return []
    if task.kind == "start":
        return [Way("import tensorflow + 0.4 s", "", None)]
    if task.kind == "write":
        return [Way("copy" if task.data == "rows" else "tar", "", None)]
    if task.data.startswith("gzip"):
        return [Way("bare inflate", "zlib, the same chunks", None)]
    if task.shape[0] == 64 or task.data == "raw":
        loaded = " with TensorFlow loaded" if task.name == "rows-tf" else ""
        return [Way(f"NumPy gather{loaded}", "x.npy in memory", None)]
    bare = task.name in ("photos", "read-small", "read-small-float")
    return [Way("bare decode" if bare else "bare decode and resize", decoding.IN_PYTHON, None)]


def load() -> None:
    import cv2
    import simplejpeg

    assert cv2 and simplejpeg


def command(way: Way, source: Path, out: Path) -> list[str]:
    """Commands instead of this module's process, where the limit is a whole process."""
    if way.name == "tar":
        return ["tar", "--hard-dereference", "-cf", str(out), str(source)]  # else it stores a repeated file once
    if way.name == "copy":
        return ["cp", str(source / "x.npy"), str(out)]
    return [sys.executable, "-c", "import tensorflow, os, time; time.sleep(0.4); os._exit(0)"]


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[tuple[Any, Any]]]:
    if has_pictures(source):
        return _decode(task, way, source)
    if way.name == "bare inflate":
        return _inflate(task, source)
    if "TensorFlow" in way.name:
        import tensorflow as tf

        assert tf
    mapped, y = arrays(source)
    x = np.array(mapped)

    def gather(rows: Any) -> tuple[Any, Any]:
        assert len(x[rows]) == len(rows)
        return _stand_in(task, y[rows])

    return lambda: _threads(gather, _parts(len(y), task.batch_size))


def _decode(task: Task, way: Way, source: Path) -> Callable[[], Iterable[tuple[Any, Any]]]:
    import simplejpeg

    found = [(file.read_bytes(), label) for file, label in files(source)]
    decode = decoding.in_python(task)

    def batch(rows: Any) -> tuple[Any, Any]:
        chosen = [found[row] for row in rows]
        x = np.empty((len(rows), *task.shape), task.dtype)
        for slot, (jpeg, _) in zip(x, chosen, strict=True):
            if way.name == "bare decode":
                simplejpeg.decode_jpeg(jpeg, "RGB")
            else:
                slot[:] = decode(jpeg)
        return _stand_in(task, np.array([label for _, label in chosen]))

    n_threads = 1 if way.name == "1 thread" else THREADS
    return lambda: _threads(batch, _parts(len(found), task.batch_size), n_threads)


def _inflate(task: Task, source: Path) -> Callable[[], Iterable[tuple[Any, Any]]]:
    """Every chunk once."""
    import h5py

    with h5py.File(source / "x.h5") as file:
        dataset, y = file["image"], file["label"][:]
        where = [dataset.id.get_chunk_info(i).chunk_offset for i in range(dataset.id.get_num_chunks())]
        chunks = [dataset.id.read_direct_chunk(at)[1] for at in where]

    def epoch() -> Iterator[tuple[Any, Any]]:
        for _ in _threads(lambda i: len(zlib.decompress(chunks[i])), range(len(chunks))):
            pass
        for start in range(0, len(y), task.batch_size):
            yield _stand_in(task, y[start : start + task.batch_size])

    return epoch


def _stand_in(task: Task, labels: Any) -> tuple[Any, Any]:
    return np.broadcast_to(np.zeros((), task.dtype), (len(labels), *task.shape)), labels


def _parts(n: int, batch_size: int) -> list[Any]:
    order = np.random.default_rng(1).permutation(n)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]


def _threads(function: Callable[[Any], Any], parts: Iterable[Any], n: int = THREADS) -> Iterator[Any]:
    """Results in order, few at a time."""
    with ThreadPoolExecutor(n) as pool:
        waiting: list[Any] = []
        for part in parts:
            waiting.append(pool.submit(function, part))
            if len(waiting) > 2 * n:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    shutil.copy(source / "x.npy", out)
