"""What goes into a shard and what comes back: records in, the places of their bytes out.

>>> Record("a.jpg", {"image": b"..."}, {"label": 1}, {}).columns["label"]
1
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from streamkit.schema import Schema

MAX_RECORD_NBYTES = 1 << 30


class Record(NamedTuple):
    """The stored form of one sample.

    Attributes:
        key: the item's key.
        payloads: payload field -> stored bytes (bytes-like; for chunked HDF5 the decoded little-endian bytes).
        columns: column field -> value.
        facts: further index columns: width, height, channels, orientation, NAME.shape.
    """

    key: str
    payloads: dict[str, Any]
    columns: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where a shard's bytes lie.

    Attributes:
        n: number of records.
        ranges: `NAME.offset` [B], `NAME.length` [B], `NAME.crc32c` for each payload field; for chunked fields
            `NAME.chunk` (row of `chunks`) and `NAME.row` (row inside the chunk). Each (n,).
        chunks: `offset` [B], `length` [B], `crc32c` of every chunk, all fields in schema order; None without any.
        digest: BLAKE3 (hex) of the file, where it was written from its first byte to its last; else empty.
    """

    n: int
    ranges: dict[str, npt.NDArray[Any]]
    chunks: dict[str, npt.NDArray[Any]] | None = None
    digest: str = ""


class ShardFormat(Protocol):
    """The interface that each shard format implements; one conformance suite holds them all."""

    extension: str

    def write_shard(self, path: Path, schema: Schema, records: Iterable[Record]) -> Places:
        """Write all records to a new file at `path`; equal records give equal bytes."""
        ...

    def columns(self, path: Path, schema: Schema) -> dict[str, npt.NDArray[Any]]:
        """The values of every column field as the file holds them, (n,); text as an object array. Raises DamagedError."""
        ...

    def index_shard(self, path: Path, schema: Schema) -> Places:
        """Read the file back and find what `write_shard` returned. Raises DamagedError."""
        ...


def range_columns(name: str, offsets: Any, lengths: Any, crcs: Any) -> dict[str, npt.NDArray[Any]]:
    """The three index columns of an addressed payload field."""
    return {
        f"{name}.offset": np.asarray(offsets, np.int64),
        f"{name}.length": np.asarray(lengths, np.int64),
        f"{name}.crc32c": np.asarray(crcs, np.uint32),
    }
