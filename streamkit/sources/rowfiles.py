"""Files of rows: CSV, TSV and JSON Lines as blocks of bytes, Parquet as row groups; one block at a time becomes a table.

A block is what is read together. Of text, blocks end where a record does: a line break inside quotes ends none.

>>> import tempfile
>>> path = tempfile.mkdtemp() + "/a.csv"
>>> _ = Path(path).write_text('id,note\\n1,"two\\nlines"\\n2,x\\n')
>>> rows = open_rows(path)
>>> [piece.table.to_pydict() for block in rows.blocks() for piece in rows.read(block)]
[{'id': ['1', '2'], 'note': ['two\\nlines', 'x']}]
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from streamkit.errors import RefusedError, SourceError

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
BLOCK_NBYTES = 8 << 20
MAX_LINE_NBYTES = 64 << 20
_BATCH_ROWS = 1024
_BATCH_NBYTES = 1 << 30


class Block(NamedTuple):
    """Rows that are read together: a range of bytes [at, stop), or row group `at`. `n_rows`: 0 for not known yet."""

    at: int
    stop: int
    n_rows: int = 0


class Piece(NamedTuple):
    """Neighbouring rows, and those of them that could not be parsed: number in the piece -> reason."""

    table: pa.Table
    bad: Mapping[int, str] = {}


class RowFile(Protocol):
    """What every kind of file of rows gives."""

    def blocks(self) -> Iterator[Block]:
        """Its blocks, in the order of rows."""
        ...

    def read(self, block: Block, only: Collection[str] | None = None, but: Collection[str] = ()) -> Iterator[Piece]:
        """The rows of a block: all columns, or `only` these, and `but` those may be left out."""
        ...


def open_rows(path: str) -> RowFile:
    """The reader of a file, by its suffix.

    Raises:
        SourceError: it is not what its suffix says.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return ParquetRows(path)
    if suffix in (".jsonl", ".ndjson"):
        return JsonRows(path)
    return CsvRows(path, "\t" if suffix == ".tsv" else ",")


def spans(path: str, start: int, quoted: bool) -> Iterator[Block]:
    """Ranges of about BLOCK_NBYTES that end behind a line. `quoted`: line breaks between quotes are text."""
    with open(path, "rb") as file:
        at = start
        size = file.seek(0, io.SEEK_END)
        while at < size:
            length = 0
            end = -1
            while end < 0 and at + length < size:
                length += BLOCK_NBYTES
                if length > MAX_LINE_NBYTES + BLOCK_NBYTES:
                    raise RefusedError(f"a row of over {MAX_LINE_NBYTES} bytes at byte {at}", path=path)
                file.seek(at)
                end = _last_end(file.read(length), quoted)
            stop = size if at + length >= size else at + end + 1
            yield Block(at, stop)
            at = stop


def _last_end(data: bytes, quoted: bool) -> int:
    """Where the last whole line of `data` ends; -1 without one."""
    if not quoted or b'"' not in data:
        return data.rfind(b"\n")
    values = np.frombuffer(data, np.uint8)
    inside = np.cumsum(values == ord('"'), dtype=np.uint32) & 1
    ends = np.flatnonzero((values == ord("\n")) & (inside == 0))
    return int(ends[-1]) if ends.size else -1


def _bytes_of(path: str, block: Block) -> bytes:
    with open(path, "rb") as file:
        file.seek(block.at)
        return file.read(block.stop - block.at)


@dataclass(frozen=True)
class CsvRows:
    """CSV or TSV with a header line; every cell is text here."""

    path: str
    delimiter: str

    def _header(self) -> tuple[list[str], int]:
        with open(self.path, "rb") as file:
            head = file.read(MAX_LINE_NBYTES)
        skip = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        end = head.find(b"\n")
        while end >= 0 and head.count(b'"', 0, end) % 2:
            end = head.find(b"\n", end + 1)
        end = len(head) if end < 0 else end + 1
        try:
            names = next(csv.reader(io.StringIO(head[skip:end].decode()), delimiter=self.delimiter), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"the header line cannot be read: {error}", path=self.path) from None
        if len(set(names)) != len(names):
            raise SourceError(f"column names repeat: {', '.join(names)[:200]}", path=self.path)
        if len(names) == 1 and (odd := next((c for c in ";\t,|" if c in names[0]), None)):
            hint = "Columns of a .csv are parted by ',', those of a .tsv by tabs."
            raise SourceError(
                f"its one column is {names[0][:200]!r}, so the separator may be {odd!r}", path=self.path, hint=hint
            )
        return names, end

    def blocks(self) -> Iterator[Block]:
        return spans(self.path, self._header()[1], quoted=True)

    def read(self, block: Block, only: Collection[str] | None = None, but: Collection[str] = ()) -> Iterator[Piece]:
        from pyarrow import csv as arrow_csv

        names, _ = self._header()
        wanted = [name for name in names if name and (only is None or name in only)]
        if not wanted:
            raise SourceError("this table has no named column", path=self.path)
        try:
            table = arrow_csv.read_csv(
                io.BytesIO(_bytes_of(self.path, block)),
                read_options=arrow_csv.ReadOptions(column_names=names, use_threads=False),
                parse_options=arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=wanted
                ),
            )
        except pa.ArrowException as error:
            raise SourceError(f"behind byte {block.at}: {str(error).splitlines()[0]}", path=self.path) from None
        yield Piece(table)


@dataclass(frozen=True)
class JsonRows:
    """JSON Lines: one object a line; a line that is none is a bad row."""

    path: str

    def blocks(self) -> Iterator[Block]:
        return spans(self.path, 0, quoted=False)

    def read(self, block: Block, only: Collection[str] | None = None, but: Collection[str] = ()) -> Iterator[Piece]:
        rows: list[dict[str, Any]] = []
        bad: dict[int, str] = {}
        data = _bytes_of(self.path, block)
        for line in (data.removeprefix(b"\xef\xbb\xbf") if block.at == 0 else data).split(b"\n"):
            if not line.strip():
                continue
            row = parse_row(line)
            if isinstance(row, str):
                bad[len(rows)] = row
            rows.append({} if isinstance(row, str) else row)
        names = [n for n in dict.fromkeys(name for row in rows for name in row) if only is None or n in only]
        yield Piece(_table({name: [row.get(name) for row in rows] for name in names}, len(rows), self.path), bad)


def parse_row(data: bytes) -> dict[str, Any] | str:
    """The JSON object that these bytes are, or why they are none."""
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        return f"is no JSON: {error or 'nested too deep'}"
    return row if isinstance(row, dict) else f"is JSON, but no object {{...}}: {str(row)[:40]}"


def _table(columns: Mapping[str, list[Any]], n_rows: int, path: str) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            raise SourceError(f"column {name!r} holds values of several kinds: {error}", path=path) from None
    return pa.table(arrays) if arrays else pa.table({"": pa.nulls(n_rows)})


@dataclass(frozen=True)
class ParquetRows:
    """Parquet: a block is a row group, read some rows at a time."""

    path: str
    _open: list[Any] = field(default_factory=list, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_open": []}

    @property
    def file(self) -> Any:
        """The opened file. SourceError if it is none."""
        import pyarrow.parquet as pq

        if not self._open:
            try:
                self._open.append(pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20))
            except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
                raise SourceError(f"cannot be read as Parquet: {str(error).splitlines()[0]}", path=self.path) from None
        return self._open[0]

    def blocks(self) -> Iterator[Block]:
        metadata = self.file.metadata
        for number in range(metadata.num_row_groups):
            n_rows = metadata.row_group(number).num_rows
            if n_rows:
                yield Block(number, number + 1, n_rows)

    def read(self, block: Block, only: Collection[str] | None = None, but: Collection[str] = ()) -> Iterator[Piece]:
        names = [n for n in self.file.schema_arrow.names if (only is None or n in only) and n not in but]
        if not names:
            yield Piece(pa.table({"": pa.nulls(block.n_rows)}))
            return
        n_read = 0
        try:
            for batch in self.file.iter_batches(self._batch_rows(block), [block.at], names, use_threads=False):
                n_read += batch.num_rows
                yield Piece(pa.Table.from_batches([batch]))
        except (pa.ArrowException, OSError, MemoryError) as error:
            reason = f"row group {block.at} cannot be read: {str(error).splitlines()[0]}"
            raise SourceError(reason, path=self.path, hint="Check that the file is whole.") from None
        if n_read != block.n_rows:
            raise SourceError(f"row group {block.at} has {n_read} rows, not {block.n_rows}", path=self.path)

    def _batch_rows(self, block: Block) -> int:
        """So few rows that a batch stays small, even if every row were the largest value of a dictionary."""
        group = self.file.metadata.row_group(block.at)
        total = 0
        for i in range(group.num_columns):
            column = group.column(i)
            packed = any("DICTIONARY" in encoding for encoding in column.encodings)
            nbytes = max(1, column.total_uncompressed_size)
            total += nbytes if packed else math.ceil(nbytes / max(1, block.n_rows))
        return max(1, min(_BATCH_ROWS, _BATCH_NBYTES // max(1, total)))

    def row_nbytes(self, block: Block, name: str) -> int:
        """Mean size of a value of this column [B], as the file says, before it is read."""
        group = self.file.metadata.row_group(block.at)
        columns = (group.column(i) for i in range(group.num_columns))
        nbytes = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == name)
        return int(nbytes // max(1, block.n_rows))
