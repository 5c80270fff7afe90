"""Identical content: which samples are the same bytes, in which splits, and what is done about it.

Shards note a digest of every sample's content while it is read anyway; what is equal is found once all are written.

    >>> contents = np.array([[1, 1], [2, 2], [1, 1], [0, 0], [0, 0]], np.uint64)
    >>> [rows.tolist() for rows in equal_rows(contents)]     # 0 was not looked at
    [[0, 2]]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import blake3
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamkit.codecs.array import to_bytes
from streamkit.convert import skipped
from streamkit.convert.journal import Journal, Part
from streamkit.convert.plan import Plan
from streamkit.sources.listing import BadItem, Ints, Picture, Sample

COLUMN = "content"  # of a part's index rows; the published index does not have it
NBYTES = 16
UNKNOWN = bytes(NBYTES)


class Duplicate(NamedTuple):
    """A sample and an earlier one, by key, of the same content; the names of their splits; the copy's shard."""

    key: str
    split: str
    first: str
    first_split: str
    file: str

    @property
    def leaks(self) -> bool:
        """True when the two are in different splits."""
        return self.split != self.first_split

    def __str__(self) -> str:
        return f"{self.first} ({self.first_split}) and {self.key} ({self.split})"

    def as_bad(self) -> BadItem:
        """The copy as an item that is left out."""
        return BadItem(self.key, skipped.copy_of(self.first, self.first_split))


def content_digest(sample: Sample) -> bytes:
    """Digest of what a sample shows: its image, or else all its payloads. What the source says itself goes first."""
    if sample.content is not None:
        return sample.content
    payloads = sample.payloads
    shown = {"image": payloads["image"]} if "image" in payloads else payloads
    hasher = blake3.blake3()
    for name, value in sorted(shown.items()):
        if isinstance(value, Picture):
            value = value.pixels
        if isinstance(value, np.ndarray):
            hasher.update(f"{name} {value.dtype} {value.shape}\0".encode())
            value = to_bytes(value)
        hasher.update(value)
    return hasher.digest(NBYTES)


def content_column(digests: Sequence[bytes]) -> pa.Array:
    """Digests as a column of a part's index rows."""
    buffers = [None, pa.py_buffer(b"".join(digests))]
    return pa.Array.from_buffers(pa.binary(NBYTES), len(digests), buffers)


def equal_rows(contents: npt.NDArray[np.uint64]) -> Iterator[Ints]:
    """Runs of rows of equal content, two or more each; rows of UNKNOWN content are equal to none. `contents`: (n, 2)."""
    order = np.lexsort((contents[:, 1], contents[:, 0]))
    ordered = contents[order]
    starts = (
        np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]) if len(ordered) else np.empty(0, int)
    )
    ends = np.r_[starts[1:], len(ordered)]
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        if ordered[start].any():
            yield np.sort(order[start:end])


def find_duplicates(plan: Plan, parts: Mapping[str, Part], journal: Journal) -> list[Duplicate]:
    """Every sample whose content an earlier key has too, sorted by key."""
    files = [shard for shard in plan.shards if parts[shard.file].shard.samples]
    tables = {shard.file: journal.tables(shard.file)[0].select(["key", COLUMN]) for shard in files}
    contents = [_numbers(table) for table in tables.values()]
    if not contents:
        return []
    starts = np.cumsum([0, *map(len, contents)])
    out = []
    for rows in equal_rows(np.concatenate(contents)):
        at = np.searchsorted(starts, rows, side="right") - 1
        same = sorted(
            (str(tables[files[i].file].column("key")[int(row - starts[i])]), files[i].split, files[i].file)
            for i, row in zip(at.tolist(), rows.tolist(), strict=True)
        )
        out += [Duplicate(key, split, same[0][0], same[0][1], file) for key, split, file in same[1:]]
    return sorted(out)


def _numbers(table: pa.Table) -> npt.NDArray[np.uint64]:
    chunks: list[Any] = [
        np.frombuffer(c.buffers()[1], np.uint64).reshape(-1, 2)[c.offset : c.offset + len(c)]
        for c in table.column(COLUMN).chunks
    ]
    return np.concatenate(chunks)
