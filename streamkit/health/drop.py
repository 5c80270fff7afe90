"""`repair --drop`: the same dataset without its damaged records, made beside the old one and put in its place by renames.

Whole shards are linked, not copied. A damaged one is written again of the records whose stored bytes still have their
crc32c, and decode; everything else about them stands in the index. What is lost is listed in skipped.jsonl.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> with open(out + "/val-00000.tfrecord", "r+b") as file:
...     _ = file.seek(30_000), file.write(b"?????")
>>> done = streamkit.repair(out, drop=True)
>>> len(done.lost), done.n_samples, streamkit.verify(out).ok
(1, 1839, True)
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streamkit import index
from streamkit.atomic import replacing, sync_folder, write_atomic
from streamkit.codecs.array import to_bytes
from streamkit.convert import skipped
from streamkit.convert.journal import chunk_table
from streamkit.convert.lock import Lock
from streamkit.convert.publish import write_side_files
from streamkit.convert.swap import swap
from streamkit.digest import file_digest
from streamkit.errors import DamagedError
from streamkit.health.check import Check
from streamkit.health.decode import with_undecodable
from streamkit.health.mending import damaged_tables
from streamkit.health.report import Problem
from streamkit.manifest import FILE_NAME, WORK_FOLDER, Manifest
from streamkit.payloads import Payloads
from streamkit.reader import Reader
from streamkit.schema import Schema
from streamkit.shards import Record, shard_format
from streamkit.sources.listing import BadItem
from streamkit.splits import Shard, Split

Ints = npt.NDArray[np.int64]


def without_damaged(
    root: Path, manifest: Manifest, check: Check, damaged: set[str], undecoded: Sequence[Problem] = ()
) -> tuple[Manifest, tuple[Problem, ...]]:
    """Put a dataset without the records that `check` found damaged, and those `undecoded`, in the place of the
    one at `root`.

    Returns:
        Its manifest, and what was lost.

    Raises:
        DamagedError: a split's tables are damaged, which alone know keys and places; or nothing is left of it.
    """
    new = root / WORK_FOLDER / "drop"
    if new.exists():
        shutil.rmtree(new)
    new.mkdir()
    with Lock(new) as lock:
        rest, lost = _write_rest(root, new, manifest, check, damaged, undecoded)
        swap(new, root)
        lock.remove(root)
    sync_folder(root)
    return rest, lost


def _write_rest(
    root: Path, new: Path, manifest: Manifest, check: Check, damaged: set[str], undecoded: Sequence[Problem]
) -> tuple[Manifest, tuple[Problem, ...]]:
    """Write the dataset without its damaged records, the manifest last."""
    splits: dict[str, Split] = {}
    lost: list[Problem] = []
    lost_rows = with_undecodable(manifest, check.lost, undecoded)
    reasons = {(p.file, p.record): skipped.undecodable_in(p.file, p.reason) for p in undecoded}
    for name, split in manifest.splits.items():
        tables = damaged_tables(split, damaged)
        if tables or check.entries[name] is None:
            raise DamagedError(
                f"{tables or 'the index'} of {name} cannot be used, and without that nobody knows the samples' keys and places",
                path=root,
                hint="Pass --source SRC: it can be made again from the source.",
            )
        writer = _Rest(root, new, manifest, split, lost_rows, reasons)
        splits[name] = writer.write(damaged)
        lost += writer.lost
    statistics = _statistics(new, manifest, splits)
    # Of a list that is damaged itself, nothing is known any more, not even how many it named.
    before = skipped.read(root) if manifest.skipped and skipped.FILE_NAME not in damaged else []
    bad = [*before, *(BadItem(str(p.key), p.reason) for p in lost)]
    rest = replace(manifest, splits=splits, statistics=statistics, skipped=len(bad), files={})
    rest = replace(rest, files=write_side_files(new, rest, bad))
    write_atomic(new / FILE_NAME, rest.dump().encode())
    return rest, tuple(lost)


def _statistics(new: Path, manifest: Manifest, splits: dict[str, Split]) -> dict[str, Any]:
    """The statistics that hang on single samples, counted again."""
    out = {name: facts for name, facts in manifest.statistics.items() if name != "arrays"}
    label = manifest.schema.label
    tables = {name: pq.ParquetFile(new / split.index) for name, split in splits.items()}
    if label is not None and "class_counts" in out:
        out["class_counts"] = {}
        for name, file in tables.items():
            counts = Counter(index.numpy_of(file.read([label.name]), label.name).tolist())
            names = label.class_names
            out["class_counts"][name] = {str(i) if names is None else names[i]: n for i, n in sorted(counts.items())}
    if "image" in out:
        sides = {
            side: [index.numpy_of(f.read([side]), side).astype(np.int64) for f in tables.values()] for side in _SIDES
        }
        out["image"] = {side: [int(min(map(np.min, v))), int(max(map(np.max, v)))] for side, v in sides.items()}
        pairs = zip(sides["width"], sides["height"], strict=True)
        out["image"]["pixels"] = sum(int((width * height).sum()) for width, height in pairs)
    return out


_SIDES = ("width", "height")


@dataclass(frozen=True)
class _Kept:
    """A shard of the new dataset with its rows of the index and of the chunk table."""

    shard: Shard
    rows: pa.Table
    chunks: pa.Table | None


class _Rest:
    """Writes what is left of one split into the new folder."""

    def __init__(
        self,
        root: Path,
        new: Path,
        manifest: Manifest,
        split: Split,
        lost_rows: Mapping[str, Ints],
        reasons: Mapping[tuple[str, int | None], str],
    ) -> None:
        self.root, self.new, self.manifest, self.split = root, new, manifest, split
        self.lost_rows, self.reasons = lost_rows, reasons
        self.format = shard_format(manifest.format)
        self.reader = Reader(root, manifest, split, manifest.schema.payloads, lenient=True)
        self.payloads = Payloads(self.reader)
        self.table = pq.read_table(root / split.index)
        self.chunks = None if split.chunks is None else pq.read_table(root / split.chunks)
        self.lost: list[Problem] = []

    def write(self, damaged: set[str]) -> Split:
        """Link or write every shard, then the tables."""
        kept: list[_Kept] = []
        for number, shard in enumerate(self.split.shards):
            file = f"{self.split.name}-{len(kept):05d}.{self.format.extension}"
            found = self._damaged(number, file) if shard.file in damaged else self._whole(number, file)
            if found is not None:
                kept.append(found)
        self.reader.files.close()
        if not kept:
            raise DamagedError(
                f"nothing is left of split {self.split.name!r}",
                path=self.root,
                hint="Pass --source SRC instead, or convert again.",
            )
        with replacing(self.new / self.split.index) as path:
            index.write(path, self._tables(kept))
        if self.split.chunks is not None:
            with replacing(self.new / self.split.chunks) as path:
                index.write(path, (one.chunks for one in kept))
        shards = tuple(one.shard for one in kept)
        return replace(
            self.split,
            samples=sum(s.samples for s in shards),
            nbytes=sum(s.nbytes for s in shards),
            shards=shards,
            index_digest=file_digest(self.new / self.split.index),
            chunks_digest=None if self.split.chunks is None else file_digest(self.new / self.split.chunks),
        )

    def _rows(self, number: int) -> pa.Table:
        """Rows of the index that tell of shard `number`."""
        start, stop = (int(n) for n in self.reader.shard_starts[number : number + 2])
        return self.table.slice(start, stop - start).combine_chunks()

    def _whole(self, number: int, file: str) -> _Kept:
        shard = self.split.shards[number]
        try:
            os.link(self.root / shard.file, self.new / file)
        except OSError:  # a file system without hard links
            with replacing(self.new / file) as path:
                shutil.copyfile(self.root / shard.file, path)
        rows, chunks = self._rows(number), None
        if self.chunks is not None:
            mine = np.asarray(self.chunks.column("shard").to_pylist(), object) == shard.file
            chunks = _named(self.chunks.filter(pa.array(mine.tolist())), file)
            first = int(np.argmax(mine))
            for name in _chunk_columns(self.manifest.schema):
                rows = _with(rows, name, index.numpy_of(rows, name) - first)
        return _Kept(replace(shard, file=file), _named(rows, file), chunks)

    def _damaged(self, number: int, file: str) -> _Kept | None:
        """What is left of a shard, written again; None when nothing is."""
        old = self.split.shards[number]
        first, stop = (int(n) for n in self.reader.shard_starts[number : number + 2])
        lost = np.isin(np.arange(first, stop), self.lost_rows.get(old.file, np.empty(0, np.int64)))
        for row in (np.flatnonzero(lost) + first).tolist():
            reason = self.reasons.get((old.file, row - first), skipped.dropped_from(old.file))
            self.lost.append(Problem(old.file, reason, row - first, self.reader.index.key(row)))
        if lost.all():
            return None
        rows = self._rows(number).filter(pa.array((~lost).tolist()))
        with replacing(self.new / file) as path:
            places = self.format.write_shard(
                path, self.manifest.schema, self._records(rows, np.flatnonzero(~lost) + first)
            )
            shard = Shard(file, places.n, path.stat().st_size, places.digest or file_digest(path))
        for name, values in places.ranges.items():
            rows = _with(rows, name, values)
        return _Kept(shard, _named(rows, file), chunk_table(places, file))

    def _records(self, table: pa.Table, rows: Ints) -> Iterator[Record]:
        schema = self.manifest.schema
        shapes = [f"{f.name}.shape" for f in schema.payloads if f"{f.name}.shape" in table.column_names]
        columns = table.select(["key", *(f.name for f in schema.columns), *shapes]).to_pylist()
        for row, facts in zip(rows.tolist(), columns, strict=True):
            one = np.array([row])
            payloads: dict[str, Any] = {}
            for field in schema.payloads:
                if field.chunk_rows is None:
                    payloads[field.name] = self.payloads.stored(field, one)[0]
                else:
                    out = np.empty((1, *(int(d or 0) for d in field.shape)), field.dtype)
                    self.reader.read_chunked(field, one, out)
                    payloads[field.name] = to_bytes(out)
            yield Record(facts["key"], payloads, {f.name: facts[f.name] for f in schema.columns}, facts)

    def _tables(self, kept: list[_Kept]) -> Iterator[pa.Table]:
        n_chunks = 0
        for one in kept:
            rows = one.rows
            for name in _chunk_columns(self.manifest.schema):
                rows = _with(rows, name, index.numpy_of(rows, name) + n_chunks)
            n_chunks += 0 if one.chunks is None else one.chunks.num_rows
            yield rows


def _chunk_columns(schema: Schema) -> list[str]:
    return [f"{field.name}.chunk" for field in schema.payloads if field.chunk_rows is not None]


def _with(table: pa.Table, name: str, values: npt.NDArray[Any]) -> pa.Table:
    """The table with other numbers in a column, of the type that it has."""
    at = table.column_names.index(name)
    return table.set_column(at, name, index.column(values).cast(table.schema.field(name).type))


def _named(table: pa.Table, file: str) -> pa.Table:
    """The table with another shard's name."""
    at = table.column_names.index("shard")
    return table.set_column(at, "shard", index.strings([file] * table.num_rows))
