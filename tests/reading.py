"""What the reading side's tests share: small sources whose payloads say which row they are, and ways to harm a dataset."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

import streamkit
from streamkit.manifest import Manifest
from streamkit.reader import Reader

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("tfrecord", "hdf5")
CODECS = ("gzip", "lzf", "zstd", "lz4", "blosc2")


# Sources


def numbered(folder: Path, n: int, width: int = 16, n_classes: int = 3, **more: np.ndarray) -> Path:
    """An .npz of `n` rows: every value of x[i] is i, its label is i % n_classes; `more` are further arrays of n rows."""
    folder.mkdir(parents=True, exist_ok=True)
    x = np.repeat(np.arange(n, dtype=np.float32)[:, None], width, 1)
    np.savez(folder / "table.npz", x=x, y=np.arange(n) % n_classes, **more)
    return folder / "table.npz"


def row_of(key: str) -> int:
    """Row of the source table that a key names."""
    return int(key.rpartition("#")[2])


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth random colour picture, uint8 (height, width, 3), as photographs are."""
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """Bytes of a picture file, written by Pillow and not by streamkit."""
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(buffer, format, **options)
    return buffer.getvalue()


def picture_folder(folder: Path, sizes: Sequence[tuple[int, int]], n_classes: int = 3, format: str = "JPEG") -> Path:
    """One picture a size (height, width), in class folders c0, c1, ...; flat with n_classes=0."""
    for i, (height, width) in enumerate(sizes):
        place = folder / f"c{i % n_classes}" if n_classes else folder
        place.mkdir(parents=True, exist_ok=True)
        name = f"{i:04d}.{'jpg' if format == 'JPEG' else 'png'}"
        (place / name).write_bytes(encoded(photo(height, width, i), format, **JPEG_OPTIONS.get(format, {})))
    return folder


JPEG_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 90}}


def ragged_folder(folder: Path, lengths: Sequence[int], n_classes: int = 2) -> Path:
    """One .npy a length: float32 (length, 3) whose values are i + 1, so that padding shows; labels as class folders."""
    for i, length in enumerate(lengths):
        place = folder / f"c{i % n_classes}"
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{i:04d}.npy", np.full((length, 3), i + 1, np.float32))
    return folder


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> Path:
    """Convert in this process; returns the dataset's folder."""
    streamkit.convert(source, out, format=format, workers=1, **options)
    return out


# Reading


def reader_of(path: Path, split: str = "train") -> Reader:
    """A reader of every field of a split."""
    manifest = Manifest.load(path)
    return Reader(path, manifest, manifest.split(split), list(manifest.schema))


def stored(reader: Reader, name: str, rows: Sequence[int] | np.ndarray) -> list[bytes]:
    """Stored bytes of an addressed payload field's rows."""
    rows = np.asarray(rows, np.int64)
    ends = np.cumsum(reader.lengths(name, rows))
    starts = ends - reader.lengths(name, rows)
    memory = np.full(int(ends[-1]) if len(ends) else 0, 0xEE, np.uint8)
    reader.read(name, rows, memory, starts)
    return [memory[a:b].tobytes() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def keys_of(path: Path, split: str = "train") -> list[str]:
    """Keys of a split in storage order."""
    return list(streamkit.open(path).index(split).column("key").to_pylist())


def same(a: Any, b: Any) -> bool:
    """True when two batches are equal to the bit: structure, names, dtypes, shapes and values."""
    if isinstance(a, dict) or isinstance(b, dict):
        return isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple) or isinstance(b, tuple):
        return isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


def all_same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """True when two runs of batches are equal to the bit."""
    return len(a) == len(b) and all(map(same, a, b))


# Harm


def flip(path: Path, offset: int, bits: int = 0x40) -> None:
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bits]))


def alter_index(path: Path, change: Callable[[pa.Table], pa.Table], split: str = "train", chunks: bool = False) -> None:
    """Rewrite an index (or chunk table) and the manifest's digests, as someone would who wants the reader to believe it."""
    manifest = Manifest.load(path)
    old = manifest.splits[split]
    file = path / str(old.chunks if chunks else old.index)
    pq.write_table(change(pq.read_table(file)), file)
    digest = blake3.blake3(file.read_bytes()).hexdigest()
    new = dataclasses.replace(old, **{"chunks_digest" if chunks else "index_digest": digest})
    changed = dataclasses.replace(manifest, splits={**manifest.splits, split: new})
    (path / "manifest.json").write_text(changed.dump())


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    """A change for `alter_index`: one column replaced; `values` may be a function of the old NumPy values."""

    def change(table: pa.Table) -> pa.Table:
        new = values(table.column(name).to_numpy().copy()) if callable(values) else values
        return table.set_column(table.column_names.index(name), name, pa.array(new))

    return change


# What is left behind


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def descriptors_in(folder: Path) -> list[str]:
    """Files below `folder` that this process holds open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith(f"{os.path.realpath(folder)}/"):
            found.append(target)
    return found


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("streamkit")]


def settles(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """True when the condition comes true within `seconds`; threads need a moment to end."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        gc.collect()
        time.sleep(0.01)
    return True


# Other processes


def run_python(code: str, *args: object, quiet: bool = False, **env: str) -> Any:
    """Run code in a fresh interpreter; what it prints last is JSON. `quiet`: it must say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"} | env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not quiet or not done.stderr, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
