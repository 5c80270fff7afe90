"""What is fuzzed: parsers of bytes that anyone may have written. Whatever the bytes, only streamkit's own errors come out.

scripts/fuzz.py drives these with coverage; what it found runs as plain tests in test_fuzz.py.
"""

from __future__ import annotations

import atexit
import base64
import dataclasses
import functools
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3
import lying
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c

import streamkit
from streamkit.health.entries import open_entries
from streamkit.index import Index
from streamkit.manifest import Manifest
from streamkit.payloads import Payloads
from streamkit.reader import Reader
from streamkit.shards import example
from streamkit.shards.tfrecord import masked, read_records
from streamkit.sources.npy import BadNpy, read_header
from streamkit.strict import canonical

CORPUS = Path(__file__).parent / "corpus"


@functools.cache
def dataset() -> Path:
    """A small dataset of arrays with a label, in memory where that can be had."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="streamkit-fuzz-", dir=shm))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    np.savez(folder / "table.npz", x=np.arange(24, dtype=np.float32).reshape(8, 3), y=np.arange(8) % 2)
    streamkit.convert(folder / "table.npz", folder / "out", format="tfrecord", compression="none", workers=1)
    return folder / "out"


@functools.cache
def scratch(name: str) -> Path:
    return dataset().parent / name


def manifest(data: bytes) -> None:
    """As it is; and where it is JSON, with the digest that it should have, so that every fact is looked at."""
    for text in (data, _signed(data)):
        try:
            Manifest.parse(text).dump()
        except streamkit.StreamkitError as error:
            assert "\n" not in str(error)


def _signed(data: bytes) -> bytes:
    try:
        facts = json.loads(data)
        facts.pop("dataset_id", None)
        facts["dataset_id"] = blake3.blake3(canonical(facts).encode()).hexdigest()
        return canonical(facts).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def index(data: bytes) -> None:
    """As a Parquet file; and as the numbers in a good one, which the reader then believes."""
    path = scratch("bytes.parquet")
    path.write_bytes(data)
    try:
        found = Index(path, None)
        found.load(found.names)
    except streamkit.StreamkitError:
        pass
    _lying_index(data)


def _lying_index(data: bytes) -> None:
    whole = Manifest.load(dataset())
    split = whole.splits["train"]
    table = pq.read_table(dataset() / split.index)
    for i, (name, value) in enumerate(_numbers(data)):
        values = table.column(name).to_numpy().copy()
        values[i % len(values)] = value
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    path = scratch("lying.parquet")
    pq.write_table(table, path)
    lying = dataclasses.replace(split, index=path.name, index_digest=blake3.blake3(path.read_bytes()).hexdigest())
    open_entries(path.parent, whole, lying)
    link = path.parent / split.shards[0].file
    if not link.exists():
        os.link(dataset() / link.name, link)
    try:
        reader = Reader(path.parent, whole, lying, list(whole.schema))
        for row in range(lying.samples):
            try:
                Payloads(reader).decoded(whole.schema["x"], np.array([row]))
            except streamkit.StreamkitError:
                continue
    except streamkit.StreamkitError:
        pass


def _numbers(data: bytes) -> Iterator[tuple[str, Any]]:
    """(column, value) pairs: one byte of which, eight of what."""
    columns = {"x.offset": np.int64, "x.length": np.int64, "x.crc32c": np.uint32, "label": np.int64}
    for at in range(0, min(len(data), 180) - 8, 9):
        name = list(columns)[data[at] % 4]
        (value,) = struct.unpack("<q", data[at + 1 : at + 9])
        yield name, np.array(value).astype(columns[name])


@functools.cache
def liars() -> Path:
    """Datasets of every kind, and room for copies of them that lie."""
    return lying.make(scratch("liars"))


def tables(data: bytes) -> None:
    """Cells and columns of index and chunk table changed, of datasets of every kind; see `lying`."""
    lying.lie(lying.tables, data, liars())


def schema(data: bytes) -> None:
    """Facts of the schema changed, of the same."""
    lying.lie(lying.schema, data, liars())


def npy(data: bytes) -> None:
    """A header in a file of any size: the first 8 bytes say which."""
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    for n in (size, len(data) - 8):
        try:
            header = read_header(data[8:], n)
            assert header.offset + header.nbytes == n
        except BadNpy as error:
            assert "\n" not in str(error)


def framing(data: bytes) -> None:
    """A TFRecord file as it is; and with the right checksums, so that lengths are believed."""
    path = scratch("a.tfrecord")
    for content in (data, _with_crcs(data)):
        path.write_bytes(content)
        try:
            for _, record in read_records(path):
                _parse(bytes(record))
        except streamkit.StreamkitError as error:
            assert "\n" not in str(error)


def _with_crcs(data: bytes) -> bytes:
    out = bytearray()
    while len(data) >= 8:
        (length,) = struct.unpack("<Q", data[:8])
        record = data[8 : 8 + length]
        out += data[:8] + struct.pack("<I", masked(crc32c(data[:8]))) + record
        if len(record) == length:
            out += struct.pack("<I", masked(crc32c(record)))
        data = data[8 + length :]
    return bytes(out + data)


def parsing(data: bytes) -> None:
    """A tf.train.Example."""
    _parse(data)


def _parse(data: bytes) -> None:
    try:
        for feature in example.parse(data).values():
            assert -1 <= feature.start <= feature.stop <= len(data)
    except example.BadExample:
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest,
    "index": index,
    "tables": tables,
    "schema": schema,
    "npy": npy,
    "framing": framing,
    "example": parsing,
}


def seeds(target: str) -> list[bytes]:
    """Good inputs to begin with."""
    shard = next(dataset().glob("*.tfrecord")).read_bytes()
    buffer = (
        np.lib.format.magic(1, 0) + b"v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }".ljust(117)
    )
    return {
        "manifest": [(dataset() / "manifest.json").read_bytes()],
        "index": [(dataset() / "index-train.parquet").read_bytes(), bytes(range(180))],
        "tables": [bytes([name, 0, how, 3]) + bytes(8) for name in range(8) for how in range(9)],
        "schema": [bytes([name, name, fact, 18]) for name in range(8) for fact in range(8)],
        "npy": [struct.pack("<q", len(buffer) + 13) + buffer + b"\n"],
        "framing": [shard, struct.pack("<Q", 3) + b"abc"],
        "example": [bytes(record) for _, record in read_records(next(dataset().glob("*.tfrecord")))][:2],
    }[target]


def found(target: str) -> list[bytes]:
    """The corpus that fuzzing left: a line each, base64."""
    return [base64.b64decode(line) for line in (CORPUS / f"{target}.txt").read_text().split()]
