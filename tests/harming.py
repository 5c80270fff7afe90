"""What the tests of verify, repair and skipping share: datasets of every format and codec, and ways to harm files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import reading

N = 60
KINDS: dict[str, dict[str, Any]] = {
    "pictures-tfrecord": {"format": "tfrecord", "shard_size": "6KB"},
    "pictures-hdf5": {"format": "hdf5", "shard_size": "6KB"},
    "table-tfrecord": {"format": "tfrecord", "compression": "none", "shard_size": 1500},
    "table-zlib": {"format": "tfrecord", "compression": "zlib", "shard_size": 1500},
    "table-hdf5": {"format": "hdf5", "compression": "none", "shard_size": 1500},
    "ragged-tfrecord": {"format": "tfrecord", "shard_size": 300},
    "ragged-hdf5": {"format": "hdf5", "shard_size": 300},
} | {
    f"table-{codec}": {"format": "hdf5", "compression": codec, "shard_size": 1500, "split": {"train": 0.8, "val": 0.2}}
    for codec in reading.CODECS
}


def raw_of(root: Path, name: str) -> Path:
    """The source of dataset `name`, below the folder that `make_sources` filled."""
    kind = name.partition("-")[0]
    return root / kind / "table.npz" if kind == "table" else root / kind


def make_sources(root: Path) -> Path:
    """A table, pictures and ragged arrays of N samples each."""
    reading.numbered(root / "table", N)
    reading.picture_folder(root / "pictures", [(20 + i % 7, 30 - i % 5) for i in range(N)])
    reading.ragged_folder(root / "ragged", [i % 6 for i in range(N)])
    return root


def make_all(root: Path, sources: Path) -> Path:
    """One dataset a name of KINDS."""
    for name, options in KINDS.items():
        reading.convert(raw_of(sources, name), root / name, **options)
    return root


# Harm


def cut(path: Path, name: str) -> None:
    os.truncate(path / name, (path / name).stat().st_size * 2 // 3)


def extend(path: Path, name: str) -> None:
    with open(path / name, "ab") as file:
        file.write(b"more")


def link(path: Path, name: str) -> None:
    shutil.move(path / name, path / "elsewhere")
    (path / name).symlink_to(path / "elsewhere")


def pipe(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)


HARM = {
    "missing": lambda path, name: (path / name).unlink(),
    "empty": lambda path, name: os.truncate(path / name, 0),
    "cut": cut,
    "trailing bytes": extend,
    "a link": link,
    "a pipe": pipe,
    "a folder": lambda path, name: ((path / name).unlink(), (path / name).mkdir()),
}
FILES = {
    "table-gzip": ["train-00001.h5", "index-val.parquet", "chunks-train.parquet", "train.h5"],
    "pictures-tfrecord": ["train-00001.tfrecord", "index-train.parquet", "features.json", "label.labels.txt"],
}
