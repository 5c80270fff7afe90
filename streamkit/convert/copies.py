"""Copies of what a dataset has already, among items that are appended to it.

The index says the length and crc32c of every stored payload: who agrees in both is read and compared byte for byte. Equal
content is stored as equal bytes, because the options are the same; so no digest need be kept from one time to the next.

>>> by_facts([np.array([[4, 7], [0, 0]]), np.array([[4, 7]])])[np.array([4, 7]).tobytes()]
[(0, 0), (1, 0)]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streamkit import index
from streamkit.convert.append import Before
from streamkit.convert.duplicates import Duplicate
from streamkit.convert.journal import Journal, Part
from streamkit.convert.plan import Plan
from streamkit.schema import Schema
from streamkit.sources.listing import Ints


class _Rows(NamedTuple):
    """Rows of one shard's index: length and crc32c of what is compared, (n, 2 fields); and where it lies, (n, fields)."""

    split: str
    path: Path
    keys: pa.ChunkedArray
    facts: Ints
    offsets: Ints

    def stored(self, row: int) -> list[bytes]:
        """The stored bytes of what is compared."""
        out = []
        with open(self.path, "rb") as file:
            for offset, length in zip(self.offsets[row].tolist(), self.facts[row, ::2].tolist(), strict=True):
                file.seek(offset)
                out.append(file.read(length))
        return out


def known_copies(before: Before, plan: Plan, parts: Mapping[str, Part], journal: Journal) -> list[Duplicate]:
    """New samples whose stored image (or else all of whose payloads) a sample has that was there, by key. No sample that
    is there is ever the copy. Payloads in chunks are not compared: their index does not know single samples."""
    names = _compared(before.manifest.schema)
    if not names:
        return []
    new = [
        (_rows(shard.split, journal.out / shard.file, journal.tables(shard.file)[0], names), shard.file)
        for shard in plan.shards
        if parts[shard.file].shard.samples
    ]
    wanted = by_facts([rows.facts for rows, _ in new])
    found: dict[str, Duplicate] = {}
    for old in _there(before, names):
        for a in range(len(old.facts)):
            for number, b in wanted.get(old.facts[a].tobytes(), ()):
                rows, file = new[number]
                key = str(rows.keys[b])
                if key not in found and old.stored(a) == rows.stored(b):
                    found[key] = Duplicate(key, rows.split, str(old.keys[a]), old.split, file)
    return sorted(found.values())


def _compared(schema: Schema) -> list[str]:
    fields = [field for field in schema.payloads if field.name == "image"] or list(schema.payloads)
    return [] if any(field.chunk_rows is not None for field in fields) else [field.name for field in fields]


def _there(before: Before, names: list[str]) -> Iterator[_Rows]:
    for split in before.manifest.splits.values():
        for shard in split.shards:
            yield _rows(split.name, before.root / shard.file, before.tables(shard.file)[0], names)


def _rows(split: str, path: Path, table: pa.Table, names: list[str]) -> _Rows:
    columns = [f"{name}.{kind}" for name in names for kind in ("length", "crc32c")]
    facts = np.stack([index.numpy_of(table, column).astype(np.int64) for column in columns], axis=1)
    offsets = np.stack([index.numpy_of(table, f"{name}.offset").astype(np.int64) for name in names], axis=1)
    return _Rows(split, path, table.column("key"), facts, offsets)


def by_facts(shards: Sequence[Ints]) -> dict[bytes, list[tuple[int, int]]]:
    """The facts of a row, as bytes -> (shard, row) of all that have them; rows that hold nothing are left out."""
    out: dict[bytes, list[tuple[int, int]]] = {}
    for number, facts in enumerate(shards):
        for row in np.flatnonzero(facts[:, ::2].any(axis=1)).tolist():
            out.setdefault(facts[row].tobytes(), []).append((number, row))
    return out
