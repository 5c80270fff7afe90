"""Label files: a table with one column that names the item. CSV, TSV, JSON Lines and Parquet here; COCO and VOC next door.

The item's column is `file`, or else the first. Text becomes numbers where every value of its column is one; an empty cell
is null. Nothing is known here of the items themselves.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels.csv"
    >>> _ = path.write_text("file,weight,code\\na.jpg,1.5,007\\nb.jpg,,12\\n")
    >>> table = read_labels(path).table
    >>> table.column("weight").to_pylist(), table.column("code").to_pylist()
    ([1.5, None], ['007', '12'])
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamkit.errors import SourceError, UsageError
from streamkit.sources.annotations import read_coco, read_voc

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".json", ".xml")
_NULLS = ("", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None")
_ROWS_AT_ONCE = 50_000
_MAX_LINE = 1 << 26  # characters of one line of JSON


@dataclass(frozen=True)
class Labels:
    """What a label file says.

    Attributes:
        name: the file's name, for messages.
        files: the item that each row names, as written there.
        table: the other columns. Columns of lists hold many values an item.
        notices: columns left out and why.
        column: the one that names the items.
    """

    name: str
    files: list[str]
    table: pa.Table
    notices: tuple[str, ...] = ()
    column: str = "file"


def read_labels(path: Path) -> Labels:
    """Read a label file of any known kind, or a folder of Pascal VOC files.

    Raises:
        UsageError: there is no such file, or its kind is unknown.
        SourceError: it cannot be read as what its name says.
    """
    if not path.exists():
        raise UsageError("this label file does not exist", path=path)
    suffix = path.suffix.lower()
    notices: list[str] = []
    rows: Iterable[dict[str, Any]]
    try:
        if path.is_dir() or suffix == ".xml":
            rows = read_voc(path)
        elif suffix == ".json":
            rows, notices = read_coco(path)
        elif suffix in (".csv", ".tsv"):
            return _split_off(path, _read_text(path, "\t" if suffix == ".tsv" else ","))
        elif suffix == ".parquet":
            import pyarrow.parquet as pq

            return _split_off(path, pq.ParquetFile(path).read())
        elif suffix in (".jsonl", ".ndjson"):
            rows = _read_lines(path)
        else:
            raise UsageError(f"labels are read from {', '.join(EXTENSIONS)} and folders of .xml", path=path)
        return _split_off(path, table_of(rows), notices)
    except UnicodeDecodeError as error:
        raise SourceError(f"this is no UTF-8: {error.reason}", path=path, hint="Save it as UTF-8.") from None
    except (pa.ArrowException, OverflowError) as error:
        raise SourceError(f"cannot be read: {str(error).splitlines()[0]}", path=path) from None


def _split_off(path: Path, table: pa.Table, notices: list[str] | None = None) -> Labels:
    """Take the column that names the items out of the table."""
    notices = notices or []
    names = [n for n in table.column_names if n and not n.startswith("__index_level_")]
    if len(names) < len(table.column_names):
        notices.append(f"{path.name}: columns without a name were left")
    if not names or table.num_rows == 0:
        raise SourceError("there are no rows of labels", path=path)
    name = "file" if "file" in names else names[0]
    files = table.column(name).combine_chunks()
    if not (pa.types.is_string(files.type) or pa.types.is_large_string(files.type)):
        if not pa.types.is_integer(files.type):
            raise SourceError(f"column {name!r} is {files.type}, expected names of files", path=path)
        files = files.cast(pa.string())
    if files.null_count:
        row = files.is_null().to_pylist().index(True)
        raise SourceError(f"row {row + 1} names no file in column {name!r}", path=path)
    table = _without_repeats(table.select(names).set_column(names.index(name), name, files), name)
    if len(table) < len(files):
        notices.append(f"{path.name}: {len(files) - len(table)} rows that repeat another were left")
    rest = table.select([n for n in names if n != name])
    return Labels(path.name, table.column(name).to_pylist(), rest, tuple(notices), name)


def _without_repeats(table: pa.Table, name: str) -> pa.Table:
    """Rows without those that repeat another word for word, if then each item has one; else several are meant, and stay."""
    n_items = len(table.column(name).unique())
    if n_items == table.num_rows or any(pa.types.is_nested(field.type) for field in table.schema):
        return table
    rows = table.append_column("", pa.array(range(len(table))))
    firsts = rows.group_by(table.column_names, use_threads=False).aggregate([("", "min")])
    return table.take(firsts.column("_min")) if len(firsts) == n_items else table


# CSV and TSV


def _read_text(path: Path, delimiter: str) -> pa.Table:
    from pyarrow import csv as arrow_csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    if len(set(header)) != len(header):
        raise SourceError(f"column names repeat: {', '.join(header)[:200]}", path=path)
    table = arrow_csv.read_csv(
        path,
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # All as text first: else "007" and dates would be something else already, the names of files too.
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )
    file_column = "file" if "file" in header else next((n for n in header if n), None)
    columns = {
        name: table.column(name) if name == file_column else typed(table.column(name).combine_chunks())
        for name in table.column_names
    }
    return pa.table(columns)


def typed(values: pa.Array) -> pa.Array:
    """Text as whole numbers, numbers or booleans, if every value is one; numbers with leading zeros are codes, so text."""
    import pyarrow.compute as pc  # here, as its 40 ms are of no use to a folder of pictures

    missing = pc.is_in(values, pa.array(_NULLS))
    with_nulls = pc.if_else(missing, pa.scalar(None, pa.string()), values)
    if with_nulls.null_count == len(values) or pc.any(pc.match_substring_regex(with_nulls, r"^[+-]?0\d")).as_py():
        return values
    for kind in (pa.int64(), pa.float64(), pa.bool_()):
        try:
            return with_nulls.cast(kind)
        except pa.ArrowInvalid:
            continue
    return values


# JSON


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"line {number} is no JSON ({error})", path=path) from None
            if not isinstance(row, dict):
                raise SourceError(f"line {number} is no object", path=path, hint="Write one {...} a line.")
            yield row


def table_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as a table, some at a time, because as Python's objects they are large; what a row lacks is null there."""
    rows = iter(rows)
    tables = []
    while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        names = list(dict.fromkeys(name for row in some for name in row))
        tables.append(pa.table({name: pa.array([row.get(name) for row in some]) for name in names}))
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
