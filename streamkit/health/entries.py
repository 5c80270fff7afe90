"""What the index says of each shard: every range in it, in the order of the file, and which row each belongs to.

>>> ranges = ShardRanges.of([("x", np.array([20, 10]), np.array([5, 10]), np.array([1, 2], np.uint32), np.array([0, 1]))])
>>> ranges.offsets.tolist(), ranges.items.tolist(), ranges.trouble(25), ranges.trouble(24)
([10, 20], [1, 0], '', 'a range of x leaves the file: bytes 20 to 25 of 24')
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streamkit.atomic import raise_refusal
from streamkit.errors import DamagedError, RefusedError, RemoteError, ResourceError, StreamkitError, UsageError
from streamkit.health.report import Problem
from streamkit.index import Index
from streamkit.manifest import Manifest
from streamkit.places import check, load_chunks
from streamkit.remote.address import Address
from streamkit.splits import Split
from streamkit.tables import SIDES, index_columns, range_columns

Ints = npt.NDArray[np.int64]
_KINDS = ("offset", "length", "crc32c")
CHUNKS = "the chunk table/"  # no field has such a name
# field, offsets [B], lengths [B], crc32c, and the row (or for chunks the row of the chunk table) of each
Part = tuple[str, Any, Any, Any, Any]


@dataclass(frozen=True)
class ShardRanges:
    """The ranges of one shard, ascending. `items`: row of each, or row of the chunk table where `chunked`."""

    offsets: Ints
    lengths: Ints
    crcs: npt.NDArray[np.uint32]
    items: Ints
    fields: npt.NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> ShardRanges:
        """Put the ranges of several fields in the order of the file."""
        numbers = [np.full(len(part[1]), i, np.int64) for i, part in enumerate(parts)]
        if not parts:
            empty = np.empty(0, np.int64)
            return cls(empty, empty, np.empty(0, np.uint32), empty, empty, ())
        offsets, lengths = (np.concatenate([np.asarray(part[i], np.int64) for part in parts]) for i in (1, 2))
        order = np.lexsort((lengths, offsets))  # an empty range before the one that begins where it lies
        crcs, items = (np.concatenate([part[i] for part in parts])[order] for i in (3, 4))
        names = tuple(part[0] for part in parts)
        return cls(offsets[order], lengths[order], crcs, items, np.concatenate(numbers)[order], names)

    def trouble(self, nbytes: int) -> str:
        """Why these cannot be the ranges of a file of `nbytes`; empty when they can."""
        ends = self.offsets + self.lengths
        outside = (self.offsets < 0) | (self.lengths < 0) | (self.offsets > nbytes - self.lengths)
        overlap = np.r_[False, self.offsets[1:] < ends[:-1]]
        for bad, what in ((outside, "leaves the file"), (overlap, "overlaps the one before it")):
            if bad.any():
                i = int(np.argmax(bad))
                name = self.names[self.fields[i]]
                return f"a range of {name} {what}: bytes {self.offsets[i]} to {ends[i]} of {nbytes}"
        return ""


class Entries:
    """The index of a split, and its chunk table where there is one, as checks want them.

    Args:
        root: the dataset's folder.
        manifest: its manifest.
        split: the split.

    Raises:
        StreamkitError: a table is missing or not what the manifest says; `.path` names it.
    """

    def __init__(self, root: Path | Address, manifest: Manifest, split: Split) -> None:
        self.root, self.split = root, split
        self.index = Index(root / split.index, split.samples, split.index_digest, index_columns(manifest.schema))
        self.fields = list(manifest.schema.payloads)
        self.starts = np.cumsum([0] + [s.samples for s in split.shards])
        self.chunked = any(f.chunk_rows is not None for f in self.fields)
        self.columns = self.index.load([name for f in self.fields for name in range_columns(f)])
        self.chunks = load_chunks(root, split) if self.chunked else {}
        self._keys: Any = None

    def ranges(self, number: int) -> ShardRanges:
        """The ranges of shard `number`."""
        rows = slice(int(self.starts[number]), int(self.starts[number + 1]))
        items = np.arange(rows.start, rows.stop)
        parts: list[Part] = []
        for field in self.fields:
            if field.chunk_rows is None:
                offsets, lengths, crcs = (self.columns[f"{field.name}.{kind}"][rows] for kind in _KINDS)
                parts.append((field.name, offsets, lengths, crcs, items))
        if self.chunked:
            mine = np.flatnonzero(self.chunks["shard"] == number)
            offsets, lengths, crcs = (self.chunks[kind][mine] for kind in _KINDS)
            parts.append((CHUNKS, offsets, lengths, crcs, mine))
        return ShardRanges.of(parts)

    def rows_of(self, number: int, ranges: ShardRanges, bad: npt.NDArray[np.bool_]) -> Ints:
        """Rows that the ranges marked `bad` belong to, ascending, each once."""
        is_chunk = np.array([name == CHUNKS for name in ranges.names], np.bool_)[ranges.fields]
        if not self.chunked:
            return np.unique(ranges.items[bad])
        first, stop = int(self.starts[number]), int(self.starts[number + 1])
        chunks = ranges.items[bad & is_chunk]
        hit = np.zeros(stop - first, np.bool_)
        for field in self.fields:
            if field.chunk_rows is not None:
                hit |= np.isin(self.columns[f"{field.name}.chunk"][first:stop], chunks)
        return np.union1d(ranges.items[bad & ~is_chunk], np.flatnonzero(hit) + first)

    def key(self, row: int) -> str | None:
        """Key of a row; None where the keys cannot be read, which `problems_of_texts` tells once for all rows."""
        if self._keys is None:
            try:
                self._keys = self.index.table(["key"]).column("key")
            except (DamagedError, RefusedError):
                self._keys = pa.nulls(self.index.n_rows)
        key: str | None = self._keys[row].as_py()
        return key

    def problems(self, manifest: Manifest) -> list[Problem]:
        """What in the tables contradicts the manifest or itself, though their digests are right."""
        found: list[Problem] = []
        try:
            sides = self.index.load([name for name in SIDES if name in self.index and name not in manifest.schema])
            loose = manifest.format == "folder"
            check(self.fields, self.split, self.columns | sides, self.chunks, self.index.path, loose)
            for field in manifest.schema.columns:  # one at a time, and texts not at all: nobody must trust them
                if field.kind != "string":
                    check([field], self.split, self.index.load([field.name]), {}, self.index.path)
        except UsageError:
            pass  # labels that do not fit into a batch may be stored
        except (DamagedError, RefusedError) as error:
            found.append(Problem(self.split.index, error.what, refused=isinstance(error, RefusedError)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise_refusal(error, self.root / self.split.index)
            found.append(Problem(self.split.index, f"cannot be read: {error}"))
        return found

    def _shards_named(self) -> list[Problem]:
        column = pq.ParquetFile(self.index.file, read_dictionary=["shard"]).read(["shard"]).column("shard")
        for shard, start in zip(self.split.shards, self.starts.tolist(), strict=False):
            named = column.slice(start, shard.samples).unique().to_pylist()
            if shard.samples and named != [shard.file]:
                return [Problem(self.split.index, f"rows of {shard.file} name the shard {named[:3]}")]
        return []

    def problems_of_texts(self) -> list[Problem]:
        """Whether rows name the shard they lie in, and every key is there once; beside the shards, as it says nothing of
        their bytes."""
        try:
            return self._shards_named() + self._repeated_keys()
        except (RemoteError, ResourceError):
            raise
        except StreamkitError as error:
            return [Problem(self.split.index, error.what, refused=isinstance(error, RefusedError))]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise_refusal(error, self.root / self.split.index)
            return [Problem(self.split.index, f"cannot be read: {error}")]

    def _repeated_keys(self) -> list[Problem]:
        """Told by hashes: 8 bytes a key, where a set of ten million takes 2 GB."""
        ordered = np.sort(np.concatenate([_hashes(keys) for keys in self.index.texts("key")] or [_NO_HASH]))
        suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not suspects.size:
            return []
        counts: Counter[str] = Counter()
        for keys in self.index.texts("key"):
            counts.update(keys.filter(pa.array(np.isin(_hashes(keys), suspects).tolist())).to_pylist())
        twice = sorted(key for key, n in counts.items() if n > 1)
        reason = f"{len(twice)} keys are there more than once"
        return [Problem(self.split.index, reason, key=twice[0])] if twice else []


_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_NO_HASH = np.empty(0, np.uint64)
_AT_ONCE_NBYTES = 1 << 16  # of text: with what is reckoned from it, it stays in the core's own cache


def _hashes(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """A hash of each text, equal for equal ones: its bytes as the digits of a number to the base _BASE, modulo 2**64.

    All of an array at once: sums of digits from the array's first byte on, of which two differ by a text.

    >>> one, two, three = _hashes(pa.array(["a/1.jpg", "b/1.jpg", "a/1.jpg"])).tolist()
    >>> one == three, one == two
    (True, False)
    """
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, places, data = texts.buffers()
    if not len(texts) or data is None:
        return np.zeros(len(texts), np.uint64)
    ends = np.frombuffer(places, width, len(texts) + 1, texts.offset * np.dtype(width).itemsize).astype(np.int64)
    if ends[-1] - ends[0] > _AT_ONCE_NBYTES:
        if len(texts) == 1:
            return np.array([hash(texts[0].as_py())], np.int64).view(np.uint64)
        half = len(texts) // 2
        return np.concatenate([_hashes(texts.slice(0, half)), _hashes(texts.slice(half))])
    digits = np.frombuffer(data, np.uint8, int(ends[-1] - ends[0]), int(ends[0])).astype(np.uint64) + np.uint64(1)
    ends -= ends[0]
    sums = np.zeros(len(digits) + 1, np.uint64)
    np.cumsum(digits * _powers(_BASE, len(digits)), out=sums[1:])
    return (sums[ends[1:]] - sums[ends[:-1]]) * _powers(pow(_BASE, -1, 1 << 64), len(digits) + 1)[ends[:-1]]


def _powers(base: int, n: int) -> npt.NDArray[np.uint64]:
    """The first `n` powers."""
    return _all_powers(base)[:n]


@lru_cache(maxsize=2)
def _all_powers(base: int) -> npt.NDArray[np.uint64]:
    out = np.full(_AT_ONCE_NBYTES + 1, base, np.uint64)
    out[:1] = 1
    return np.cumprod(out, out=out)


def open_entries(root: Path | Address, manifest: Manifest, split: Split) -> tuple[Entries | None, list[Problem]]:
    """The entries of a split if its tables are what the manifest says, else the problem."""
    try:
        entries = Entries(root, manifest, split)
    except (RemoteError, ResourceError):
        raise  # whether the table is damaged, nobody knows
    except StreamkitError as error:
        refused = isinstance(error, RefusedError)
        return None, [Problem(Path(error.path or split.index).name, error.what, refused=refused)]
    problems = entries.problems(manifest)
    return (entries if not problems else None), problems
