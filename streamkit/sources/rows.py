"""Rows of CSV, TSV, JSON Lines and Parquet files: one sample a row, one field a column. Payloads are read a block at a time.

The first pass (rowkinds.py) keeps the columns that the index holds; text, lists and pictures stay where they are until their
shard is written. Rows of one block lie near each other in the shards, so that a block is read once or twice, not once a row.

>>> import pathlib, tempfile
>>> path = tempfile.mkdtemp() + "/a.jsonl"
>>> _ = pathlib.Path(path).write_text('{"text": "good", "label": "pos"}\\n{"text": "", "label": "neg"}\\n')
>>> source = row_table("", [(path, "a.jsonl")])
>>> [sample.payloads["text"] for sample in source.samples(["a.jsonl#1", "a.jsonl#0"])]
[b'', b'good']
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamkit.errors import RefusedError, SourceError
from streamkit.schema import Field, Schema
from streamkit.sources.fields import array_column, columns_of, flat, free_name, reserved
from streamkit.sources.huggingface import described, file_splits, named
from streamkit.sources.labelled import with_columns
from streamkit.sources.labels import typed
from streamkit.sources.listing import BadItem, Ints, Listing, Packed, Ragged, Sample
from streamkit.sources.rowfiles import Block, CsvRows, ParquetRows, open_rows
from streamkit.sources.rowkinds import RowKinds, bytes_of, is_binary

_MAX_RATIO = 1032  # of what comes out of a file to its size: what deflate packs at best
_MAX_BOMB_NBYTES = 64 << 20


@dataclass(frozen=True)
class Payload:
    """A payload field, and the column that holds it."""

    column: str
    field: Field


@dataclass(frozen=True)
class RowTable(Packed):
    """Rows of several files, one behind the other.

    Attributes:
        blocks: of each file, its blocks with their numbers of rows.
        payloads: what is read of a row.
    """

    blocks: tuple[tuple[Block, ...], ...]
    payloads: tuple[Payload, ...]

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        starts = [list(itertools.accumulate((b.n_rows for b in blocks), initial=0)) for blocks in self.blocks]

        def place(key: str) -> tuple[int, int, int]:
            name, _, row = key.rpartition("#")
            number = self.names.index(name)
            block = bisect.bisect_right(starts[number], int(row)) - 1
            return number, block, int(row) - starts[number][block]

        places = map(place, keys)
        for (file, block), run in itertools.groupby(places, key=lambda p: p[:2]):
            rows = [row for _, _, row in run]
            samples = self._samples(file, self.blocks[file][block], rows)
            for row, sample in zip(rows, samples, strict=True):
                if isinstance(sample, BadItem):
                    sample = sample._replace(key=f"{self.names[file]}#{starts[file][block] + row}")
                yield sample

    def _samples(self, number: int, block: Block, rows: Sequence[int]) -> Iterator[Sample | BadItem]:
        """Samples of rows of one block; those of the shard under way are held, not the block."""
        if not self.payloads:
            yield from (Sample({}) for _ in rows)
            return
        wanted = sorted(set(rows))
        held: dict[int, Sample | BadItem] = {}
        limit = max(_MAX_BOMB_NBYTES, _MAX_RATIO * os.path.getsize(self.paths[number]))
        at = total = 0
        columns = {payload.column.split("/")[0] for payload in self.payloads}
        for piece in open_rows(self.paths[number]).read(block, columns):
            here = wanted[bisect.bisect_left(wanted, at) : bisect.bisect_left(wanted, at + piece.table.num_rows)]
            for row, sample in self._taken(piece.table, [row - at for row in here]):
                held[row + at] = sample
                if isinstance(sample, Sample):
                    total += sum(len(memoryview(value).cast("B")) for value in sample.payloads.values() if len(value))
            if total > limit:
                raise RefusedError(f"over {limit} bytes come out of one block", path=self.paths[number])
            at += piece.table.num_rows
        missing = BadItem("", "the file has fewer rows now than when it was listed")
        yield from (held.get(row, missing) for row in rows)

    def _taken(self, table: pa.Table, rows: list[int]) -> Iterator[tuple[int, Sample | BadItem]]:
        """(row, sample) of some rows of a piece."""
        if not rows:
            return
        table = table.take(pa.array(rows))
        values: dict[str, Sequence[Any]] = {}
        binary = [n for n in table.column_names if is_binary(table.schema.field(n).type)]
        for name in binary:
            values[name] = [bytes_of(value) for value in table.column(name)]
        for name, column in flat(table.drop_columns(binary)):
            wanted = next((p.field for p in self.payloads if p.column == name), None)
            if wanted is not None:
                values[name] = _texts(column) if wanted.kind == "text" else _arrays(column, wanted)
        for i, row in enumerate(rows):
            payloads: dict[str, Any] = {}
            for payload in self.payloads:
                value = values[payload.column][i] if payload.column in values else _nothing(payload.field)
                if value is None:
                    yield row, BadItem("", f"{payload.column} is null or only the path of a picture")
                    break
                payloads[payload.field.name] = value
            else:
                yield row, Sample(payloads)


def _nothing(wanted: Field) -> Any:
    """What a row holds that has no such column: JSON Lines leave out what is null."""
    if wanted.is_image:
        return None
    return b"" if wanted.kind == "text" else np.empty((0, *(int(d or 0) for d in wanted.shape[1:])), wanted.dtype)


def _texts(values: pa.Array) -> list[bytes]:
    if pa.types.is_null(values.type):
        return [b""] * len(values)
    return [value or b"" for value in values.cast(pa.large_binary()).to_pylist()]


def _arrays(values: pa.Array, wanted: Field) -> Sequence[npt.NDArray[Any]]:
    if pa.types.is_null(values.type):
        return [_nothing(wanted)] * len(values)
    made = array_column(wanted.name, values).values
    assert isinstance(made, Ragged)
    if not len(made.values):
        return [_nothing(wanted)] * len(values)
    return [made[i].astype(wanted.dtype, copy=False) for i in range(len(made))]


# Opening


def row_table(root: str, files: Sequence[tuple[str, str]]) -> RowTable:
    """Read through files of rows once.

    Args:
        root: of the source, for messages.
        files: path and key of each, sorted by key.

    Raises:
        SourceError: no rows, rows that do not go together, or a file that cannot be read.
        RefusedError: more rows than a file of that size can hold.
    """
    walk = _Walk(RowKinds())
    for path, name in files:
        walk.through(path, name)
    kinds = walk.kinds
    if not kinds.n_rows:
        raise SourceError("there are no rows", path=root or files[0][0])
    payloads: list[Payload] = []
    fields: list[Field] = []
    for column, wanted in (*kinds.image_columns(), *kinds.payloads()):
        name = free_name(wanted.name, reserved(Schema(tuple(fields))))
        fields.append(replace(wanted, name=name))
        payloads.append(Payload(column, fields[-1]))
    paths, names = zip(*files, strict=True)
    listing = _listing(walk, fields, paths, names)
    return RowTable(paths, names, tuple(walk.blocks), tuple(payloads), found=listing)


class _Walk:
    """The first pass over all files."""

    def __init__(self, kinds: RowKinds) -> None:
        self.kinds = kinds
        self.blocks: list[tuple[Block, ...]] = []
        self.sizes: list[Ints] = []
        self.bad: dict[int, str] = {}

    def through(self, path: str, name: str) -> None:
        rows, own, kinds = open_rows(path), [], self.kinds
        for block in rows.blocks():
            if block.n_rows > _MAX_RATIO * os.path.getsize(path):
                raise RefusedError(f"{block.n_rows} rows in a file of {os.path.getsize(path)} bytes", path=path)
            start = kinds.n_rows
            unread = kinds.unread if isinstance(rows, ParquetRows) else set()
            sizes = []
            for piece in rows.read(block, but=unread):
                self.bad |= {kinds.n_rows + row: reason for row, reason in piece.bad.items()}
                sizes.append(kinds.add(piece.table, path))
            self.sizes += sizes
            if isinstance(rows, ParquetRows):  # what was not read, the file says about
                estimate = sum(rows.row_nbytes(block, one) for one in {*unread, *kinds.pictures})
                for one in sizes:
                    one += estimate
            own.append(block._replace(n_rows=kinds.n_rows - start))
        self.blocks.append(tuple(own))


def _listing(walk: _Walk, fields: Sequence[Field], paths: Sequence[str], names: Sequence[str]) -> Listing:
    kinds = walk.kinds
    shown = names[0] if len(names) == 1 else f"{len(names)} files"
    table = kinds.columns()
    if isinstance(open_rows(paths[0]), CsvRows):
        table = pa.table({n: typed(table.column(n).combine_chunks()) for n in table.column_names})
    class_names: tuple[str, ...] | None = None
    if isinstance(open_rows(paths[0]), ParquetRows):
        table, class_names = described(paths[0], table)
    if not fields and not table.num_columns:
        left = "; ".join(f"{name} {why}" for name, why in kinds.left.items())
        raise SourceError(f"no column that can be a field ({left or 'there are none'})", path=paths[0])
    counts = [[block.n_rows for block in blocks] for blocks in walk.blocks]
    split_names, split_of = file_splits(names, [sum(own) for own in counts])
    listing = Listing(
        keys=_Keys(tuple(names), tuple(sum(own) for own in counts)),
        sizes=np.concatenate(walk.sizes) + 8 * table.num_columns,
        schema=Schema(tuple(fields)),
        split_names=split_names,
        split_of=split_of,
        blocks=np.repeat(np.arange(sum(map(len, counts))), np.concatenate([np.array(own, int) for own in counts])),
        notices=tuple(f"{shown}: {name} {why}, and was left" for name, why in sorted(kinds.left.items())),
    )
    if walk.bad:
        bad = tuple(BadItem(listing.keys[row], reason) for row, reason in walk.bad.items())
        good = np.setdiff1d(np.arange(len(listing)), list(walk.bad))
        listing, table = replace(listing.take(good), bad=bad), table.take(pa.array(good))
    columns, notices = columns_of(table, shown)
    if class_names is not None:
        columns = [named(column, class_names) for column in columns]
    return with_columns(replace(listing, notices=(*listing.notices, *notices)), columns, shown)


@dataclass(frozen=True)
class _Keys(Sequence[str]):
    """Keys `name#row` of all files, made when asked for."""

    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[one] for one in range(*i.indices(len(self)))]
        row = range(len(self))[i]
        for name, n in zip(self.names, self.counts, strict=True):
            if row < n:
                return f"{name}#{row}"
            row -= n
        raise IndexError(i)
