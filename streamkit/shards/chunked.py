"""Chunked HDF5 datasets: whole samples a chunk, standard filters; and where the chunks lie in a finished file.

>>> FILTERS["gzip"]
('shuffle', 'gzip')
>>> values = np.zeros(10_000, "<f4")
>>> len(packed(values, "shuffle+gzip")) < 100
True
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from streamkit.schema import Field, Schema
from streamkit.shards.record import range_columns

# --compression name -> HDF5 filters in the order applied.
FILTERS = {
    "gzip": ("shuffle", "gzip"),
    "lzf": ("shuffle", "lzf"),
    "zstd": ("shuffle", "zstd"),
    "lz4": ("shuffle", "lz4"),
    "blosc2": ("blosc2",),
}
FILTER_IDS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf", 32015: "zstd", 32004: "lz4", 32026: "blosc2"}
_CHUNK_NBYTES = 64 << 10


def chunk_rows(sample_nbytes: int) -> int:
    """Samples a chunk: the fewest that make 64 KB, because a shuffled read decodes whole chunks."""
    return max(1, -(-_CHUNK_NBYTES // max(1, sample_nbytes)))


def write_chunked(file: Any, field: Field, payloads: Sequence[Any]) -> None:
    shape = tuple(int(d) for d in field.shape if d is not None)
    dtype = np.dtype(field.dtype).newbyteorder("<")
    rows = int(field.chunk_rows or 1)
    dataset = file.create_dataset(
        field.name,
        (len(payloads), *shape),
        dtype,
        maxshape=(max(len(payloads), rows), *shape),  # a chunk may be larger than a small shard only in what can grow
        chunks=(rows, *shape),
        **_filter_options(field.encoding),
    )
    for start in range(0, len(payloads), rows):
        block = b"".join(payloads[start : start + rows])
        dataset[start : start + rows] = np.frombuffer(block, dtype).reshape(-1, *shape)


def _filter_options(encoding: str) -> dict[str, Any]:
    """h5py's arguments for a pipeline named like "shuffle+gzip:4"."""
    pipeline, _, level = encoding.partition(":")
    *_, codec = pipeline.split("+")
    options: dict[str, Any] = {"shuffle": pipeline.startswith("shuffle+")}
    if codec in ("gzip", "lzf"):
        options["compression"] = codec
        if level:
            options["compression_opts"] = int(level)
        return options
    import hdf5plugin

    codecs = {
        "zstd": lambda: hdf5plugin.Zstd(clevel=int(level or 3)),
        "lz4": hdf5plugin.LZ4,
        "blosc2": lambda: hdf5plugin.Blosc2(cname="zstd", clevel=int(level or 5), filters=hdf5plugin.Blosc2.SHUFFLE),
    }
    return options | dict(codecs[codec]())


def packed(values: npt.NDArray[Any], encoding: str) -> bytes:
    """Values as one chunk of a dataset stored through a pipeline of filters."""
    with h5py.File("packed", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=values, chunks=values.shape, **_filter_options(encoding))
        file.flush()
        return bytes(dataset.id.read_direct_chunk((0,) * values.ndim)[1])


def chunk_places(path: Path, schema: Schema, n: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]] | None]:
    """Places of all chunks of a finished file: the chunk table, and each row's chunk in it."""
    fields = [f for f in schema.payloads if f.chunk_rows is not None]
    if not fields:
        return {}, None
    ranges: dict[str, Any] = {}
    offsets: list[int] = []
    lengths: list[int] = []
    with h5py.File(path, "r") as file:
        for field in fields:
            dataset = own_dataset(file, field.name).id
            found = [dataset.get_chunk_info(i) for i in range(dataset.get_num_chunks())]
            if len(found) != -(-n // int(field.chunk_rows or 1)):
                raise ValueError(f"{field.name!r} has {len(found)} chunks for {n} samples")
            rows = np.arange(n)
            ranges[f"{field.name}.chunk"] = len(offsets) + rows // int(field.chunk_rows or 1)
            ranges[f"{field.name}.row"] = rows % int(field.chunk_rows or 1)
            for info in sorted(found, key=lambda info: info.chunk_offset):
                offsets.append(info.byte_offset)
                lengths.append(info.size)
    crcs = []
    with open(path, "rb") as raw:
        for offset, length in zip(offsets, lengths, strict=True):
            raw.seek(offset)
            crcs.append(crc32c(raw.read(length)))
    chunks = range_columns("c", offsets, lengths, crcs)
    return ranges, {name.removeprefix("c."): values for name, values in chunks.items()}


def own_dataset(file: Any, name: str) -> Any:
    """A dataset that lies in this file itself. ValueError for links and for values that other files hold."""
    parts = name.split("/")
    for i in range(len(parts)):  # a link on the way leads out of the file as well
        if not isinstance(file.get("/".join(parts[: i + 1]), getlink=True), h5py.HardLink):
            raise ValueError(f"{name!r} is missing or a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"{name!r} is no dataset of this file's own")
    return dataset
