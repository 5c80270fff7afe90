"""Datasets whose tables or schema say something else than was written, with digests that agree: a writer who lies.

Bytes say what is changed. Whatever that is, reading and checking end in streamkit's own errors or in samples. Where only places
were changed, and no checksum, these are the samples that were stored.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3
import h5py
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

import streamkit
from streamkit.strict import canonical

N = 24
MAKE: dict[str, dict[str, Any]] = {
    "ragged-none": {"format": "tfrecord", "compression": "none", "shard_size": 800},
    "ragged-zlib": {"format": "tfrecord", "compression": "zlib", "shard_size": 800},
    "table-gzip": {"format": "hdf5", "compression": "gzip", "shard_size": 3000},
    "table-zlib": {"format": "tfrecord", "compression": "zlib", "shard_size": 3000},
    "table-none": {"format": "tfrecord", "compression": "none", "shard_size": 3000},
    "pictures": {"format": "hdf5", "shard_size": 300},
}
Samples = dict[str, dict[str, bytes]]


def make(root: Path) -> Path:
    """Every dataset of MAKE, below `root`."""
    for folder in ("ragged", "pictures/a", "pictures/b"):
        (root / "raw" / folder).mkdir(parents=True)
    for i in range(N):
        np.save(root / "raw" / "ragged" / f"{i:02d}.npy", np.full((i % 3, 1 + i % 4), i, np.int16))
    rows = np.arange(N * 60, dtype=np.float32).reshape(N, 10, 6)
    np.savez(root / "raw" / "table.npz", x=rows, z=rows[:, 0].astype(np.int64), y=np.arange(N) % 2)
    for i in range(6):
        pixels = np.full((5 + i, 7, 3), 40 * i, np.uint8)
        PIL.Image.fromarray(pixels).save(root / "raw" / "pictures" / "ab"[i % 2] / f"{i}.png")
    for name, options in MAKE.items():
        source = root / "raw" / name.partition("-")[0].replace("table", "table.npz")
        streamkit.convert(source, root / name, workers=1, **options)
    adopted = root / "adopted"
    with h5py.File(root / "raw" / "a.h5", "w") as file:
        file.create_dataset("x", data=rows, chunks=(5, 4, 6), compression="gzip")
        file.create_dataset("z", (N, 6), np.int64, chunks=(7, 6), fillvalue=-1)[:14] = 8
    streamkit.index(root / "raw" / "a.h5", adopted)
    shutil.copy(root / "raw" / "a.h5", adopted)
    streamkit.index(root / "raw" / "pictures", root / "loose")
    shutil.copytree(root / "raw" / "pictures", root / "loose", dirs_exist_ok=True)
    for name in ("adopted", "loose"):  # else only who adopted them may open what lies elsewhere
        sign(root / name, lambda facts: facts.update(root="."))
    return root


def samples(path: Path, **options: Any) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, the bytes of every field) until the first error."""
    schema = streamkit.open(path).schema
    names = ["key", *(field.name for field in schema)]
    size = {"image_size": (4, 4)} if any(field.is_image for field in schema) else {}
    loader = streamkit.Loader(path, fields=names, num_workers=0, max_pixels=1 << 20, **size, **options)
    for batch in loader:
        for one in zip(*batch, strict=True) if loader.batch_size else [batch]:
            yield str(one[0]), {name: np.asarray(v).tobytes() for name, v in zip(names[1:], one[1:], strict=True)}


# Reading in every way there is

WAYS: list[dict[str, Any]] = [
    {"batch_size": None, "shuffle": False},
    {"batch_size": 5},
    {"batch_size": 7, "on_corrupt": "skip", "max_bad": 1.0},
]


def read(path: Path, truth: Samples, vouched: set[str]) -> None:
    """Raises what is no StreamkitError, and AssertionError for a sample that is not the one stored, in the fields `vouched`.

    Padding shows in batches, so of ragged fields only single samples are looked at.
    """
    logging.disable(logging.WARNING)  # hundreds of samples are skipped
    try:
        _read(path, truth, vouched)
    finally:
        logging.disable(logging.NOTSET)


def _read(path: Path, truth: Samples, vouched: set[str]) -> None:
    for way in WAYS:
        try:
            for key, values in samples(path, **way):
                for name in vouched:
                    if way["batch_size"] is None or "ragged" not in path.name:
                        assert values[name] == truth[key][name], (key, name)
        except streamkit.StreamkitError as error:
            assert str(error).isprintable()
    try:
        streamkit.verify(path, full=True, workers=1, max_pixels=1 << 20)
    except streamkit.StreamkitError as error:
        assert str(error).isprintable()


def sign(path: Path, change: Callable[[dict[str, Any]], None] = lambda facts: None) -> None:
    """Give a manifest other facts, and its tables' digests."""
    facts = json.loads((path / "manifest.json").read_text())
    del facts["dataset_id"]
    for split in facts["splits"].values():
        for entry in [split["index"], *([split["chunks"]] if "chunks" in split else [])]:
            entry["digest"] = blake3.blake3((path / entry["file"]).read_bytes()).hexdigest()
    change(facts)
    facts["dataset_id"] = blake3.blake3(canonical(facts).encode()).hexdigest()
    (path / "manifest.json").write_text(canonical(facts))


# Tables

TYPES = (
    pa.int8(),
    pa.int64(),
    pa.uint64(),
    pa.float64(),
    pa.bool_(),
    pa.string(),
    pa.binary(),
    pa.list_(pa.int32(), 2),
)
OP_NBYTES = 11


def tables(data: bytes, good: Path, path: Path, truth: Samples) -> None:
    """Change up to eight cells or columns of a dataset's index and chunk table, then read it."""
    changed = set()
    for table in good.glob("*.parquet"):
        shutil.copy(table, path)
    files = sorted(path.glob("*.parquet"))
    for at in range(0, min(len(data), 8 * OP_NBYTES) - OP_NBYTES + 1, OP_NBYTES):
        file = files[data[at] % len(files)]
        table = pq.ParquetFile(file).read()
        number = data[at] // len(files) % max(1, table.num_columns)
        try:
            name = table.column_names[number]
            table = _changed(table, number, data[at + 1], data[at + 2 : at + OP_NBYTES])
        except (pa.ArrowException, ArithmeticError, ValueError, TypeError, IndexError):
            continue  # it cannot be written, so nobody can lie so
        changed.add(name)
        pq.write_table(table, file)
    sign(path)
    kinds = {name.rpartition(".")[2] for name in changed}
    vouched = set() if kinds & {"crc32c", "key", "skipped"} else set(next(iter(truth.values()))) - changed
    read(path, truth, vouched)


def _changed(table: pa.Table, at: int, how: int, what: bytes) -> pa.Table:
    name, column = table.column_names[at], table.column(at)
    row, number = what[0] % max(1, table.num_rows), int.from_bytes(what[1:], "little", signed=True)
    values = column.to_pylist()
    match how % 9:
        case 0:
            values[row] = [number, *values[row][1:]] if isinstance(values[row], list) else number
        case 1:
            values[row] = values[row][::-1] if isinstance(values[row], (list, str)) else values[row] + what[1] - 128
        case 2:
            values[row] = values[what[1] % len(values)]
        case 3:
            values[row] = None
        case 4:  # bytes that are no text
            texts = [str(v).encode() for v in values]
            texts[row] = what[1:]
            return table.set_column(at, name, pa.array(texts, pa.binary()).view(pa.string()))
        case 5:
            return table.set_column(at, name, column.cast(TYPES[what[0] % len(TYPES)]))
        case 6:
            return table.remove_column(at)
        case 7:
            return table.append_column(name, column)
        case _:
            return pa.concat_tables([table, table]) if what[0] % 2 else table.slice(0, row)
    return table.set_column(at, name, pa.array(values, column.type))


# Schema

FACTS = ("kind", "dtype", "shape", "encoding", "chunk_rows", "chunk_shape", "fill", "class_names")
VALUES: tuple[Any, ...] = (
    *(None, 0, -1, 1, 2, 3, 7, 24, 1 << 31, 1 << 62, 1e308, True, "", "00", "0000803f", {}, [], [0], [None], [1], [60]),
    *(
        [10, 6],
        [6, 10],
        [None, 6],
        [10, None],
        [None, None],
        [1 << 14],
        [1 << 27],
        [1 << 40],
        [-1, 6],
        [2] * 9,
        [1] * 8,
    ),
    *([5, 7, 3], [None, None, 3], [None, None, 4], [None, None, None], ["a"], ["a", "b"], ["a", "a"], ["a", "b", "c"]),
    *("float32", "float64", "int16", "int64", "uint8", "bool", "complex128", ">f4", "string", "object", "V8", "M8[ns]"),
    *(
        "array",
        "image",
        "mask",
        "text",
        "bytes",
        "label",
        "number",
        "raw",
        "zlib",
        "varint",
        "bigendian",
        "mixed",
        "png",
    ),
    *("jpeg", "gzip", "shuffle", "shuffle+gzip", "bigendian+gzip", "shuffle+shuffle", "lzf", "blosc2", "fletcher32"),
)


def schema(data: bytes, good: Path, path: Path, truth: Samples) -> None:
    """Change up to eight facts of a dataset's schema, then read it. What they say is believed: no sample is vouched for."""

    def change(facts: dict[str, Any]) -> None:
        for at in range(0, min(len(data), 24) - 2, 3):
            fields = facts["schema"]
            name = sorted(fields)[data[at] % len(fields)]
            if data[at] >= 250:
                facts["format"] = ("tfrecord", "hdf5", "folder")[data[at + 1] % 3]
            elif data[at] >= 245:
                _drop_shard(facts["splits"]["train"])
            elif data[at] >= 240:
                fields[("new", "a/b", "key", "padding")[data[at + 1] % 4]] = dict(fields[name])
            elif data[at + 2] == 255:
                fields[name].pop(FACTS[data[at + 1] % len(FACTS)], None)
            else:
                fields[name][FACTS[data[at + 1] % len(FACTS)]] = VALUES[data[at + 2] % len(VALUES)]

    sign(path, change)
    read(path, truth, set())


def _drop_shard(split: dict[str, Any]) -> None:
    for gone in split["shards"][-1:]:
        split["shards"].remove(gone)
        split["samples"] -= gone["samples"]
        split["bytes"] -= gone["bytes"]


def lie(what: Callable[[bytes, Path, Path, Samples], None], data: bytes, root: Path) -> None:
    """Tell the lies that all but the first byte of `data` stand for, of the dataset that this names."""
    names = [*MAKE, "adopted", "loose"]
    name = names[(data or b"\0")[0] % len(names)]
    path = root / "lying" / name
    if not path.exists():
        shutil.copytree(root / name, path)
    shutil.copy(root / name / "manifest.json", path)
    if what is schema:
        for table in (root / name).glob("*.parquet"):
            shutil.copy(table, path)
    what(data[1:], root / name, path, _truth(root / name))


_TRUTHS: dict[Path, Samples] = {}


def _truth(path: Path) -> Samples:
    if path not in _TRUTHS:
        _TRUTHS[path] = dict(samples(path, **WAYS[0]))
    return _TRUTHS[path]
