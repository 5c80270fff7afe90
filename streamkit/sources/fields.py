"""Columns of a label table -> fields of a dataset: one value an item is a column, a list an item is an array.

==========================  ==================================================================
whole numbers, booleans     number column of that type; with nulls float64, null is NaN
fractions                   number column, null is NaN
text, dates                 string column, null is ""
label, labels, y, class     the label: classes of texts are sorted, of numbers numbered
list of numbers             array field; of the shape that all have, else its first axis varies
list of text                array field of class numbers, with their names
list of {...}               one array field a member, NAME/MEMBER
==========================  ==================================================================

>>> columns, notices = columns_of(pa.table({"class": ["b", "a"], "boxes": [[[1, 2]], []]}), "labels.jsonl")
>>> [(c.field.name, c.field.kind, c.field.shape) for c in columns]
[('label', 'label', ()), ('boxes', 'array', (None, 2))]
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamkit.errors import SourceError
from streamkit.schema import MAX_NDIM, Field, Schema
from streamkit.sources.listing import Ints, Ragged
from streamkit.sources.table import LABEL_NAMES

MAX_CLASSES = 100_000
CLASS_NAMES = {*LABEL_NAMES, "class"}  # of columns that are the label, if they can be
INDEX_COLUMNS = ("width", "height", "channels", "orientation")  # that the index has of pictures


class Column(NamedTuple):
    """A field and its values, one an item. `missing`: items whose label is null, (n,) bool, or None."""

    field: Field
    values: npt.NDArray[Any] | Ragged
    missing: npt.NDArray[np.bool_] | None = None


class Left(ValueError):
    """A column that no field holds; the message is the reason."""


def columns_of(table: pa.Table, file: str) -> tuple[list[Column], list[str]]:
    """The fields of a table of one row an item, and remarks. `file` names it in remarks."""
    by_name = dict(flat(table))
    label = next((n for n in (*LABEL_NAMES, "class") if n in by_name and _is_class(by_name[n].type)), None)
    out, notices = [], []
    for name, values in by_name.items():
        try:
            if name == label:
                out.append(_label(values))
                continue
            if values.null_count and pa.types.is_integer(values.type):
                notices.append(f"{file}: {name} has {values.null_count} empty cells, so its numbers became float64")
            out.append(array_column(name, values) if is_list(values.type) else _column(name, values))
        except Left as reason:
            notices.append(f"{file}: {name} {reason}, and was left")
    return out, notices


def flat(table: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """Columns by name, members of {...} as NAME/MEMBER, dictionaries decoded."""
    import pyarrow.compute as pc  # here, as its 40 ms are of no use to a folder of pictures

    todo = [(name, table.column(name).combine_chunks()) for name in reversed(table.column_names)]
    while todo:
        name, values = todo.pop()
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_struct(values.type):
            members = [(f"{name}/{f.name}", pc.struct_field(values, f.name)) for f in values.type]
            todo += reversed(members)
        elif is_list(values.type) and pa.types.is_struct(values.type.value_type):
            offsets, inner = _unpacked(values)
            lists = [(f.name, pc.struct_field(inner, f.name)) for f in inner.type]
            todo += reversed([(f"{name}/{n}", pa.LargeListArray.from_arrays(offsets, one)) for n, one in lists])
        else:
            yield name, values


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_class(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_text(kind)


# One value an item


def _column(name: str, values: pa.Array) -> Column:
    kind = values.type
    if pa.types.is_null(kind):
        raise Left("is empty")
    if pa.types.is_temporal(kind):
        values = values.cast(pa.string())
    if is_text(values.type):
        return Column(Field(name, "string", "string"), _objects(values.fill_null("")))
    numbers = _numbers(values)
    return Column(Field(name, "number", numbers.dtype.name), numbers)


def _numbers(values: pa.Array) -> npt.NDArray[Any]:
    kind = values.type
    if pa.types.is_decimal(kind) or (values.null_count and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))):
        if pa.types.is_boolean(kind):
            values = values.cast(pa.int8())
        values = values.cast(pa.float64())
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise Left(f"is {kind}")
    if pa.types.is_floating(values.type) and values.null_count:
        values = values.fill_null(pa.scalar(float("nan"), values.type))
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _objects(values: pa.Array) -> npt.NDArray[Any]:
    out = np.empty(len(values), object)
    out[:] = values.to_pylist()
    return out


def _label(values: pa.Array) -> Column:
    import pyarrow.compute as pc  # here, as its 40 ms are of no use to a folder of pictures

    missing = np.asarray(values.is_null().to_numpy(zero_copy_only=False), bool)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.string())
    if is_text(values.type):
        missing |= np.asarray(pc.equal(values, "").fill_null(True).to_numpy(zero_copy_only=False), bool)
        numbers, names = _classes(pc.if_else(pa.array(missing), pa.scalar(None, values.type), values))
        return Column(Field("label", "label", "int64", class_names=names), numbers, missing)
    numbers = np.asarray(values.fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False))
    known = numbers[~missing]
    field = Field("label", "label", "int64")
    if known.size and known.min() >= 0 and known.max() < MAX_CLASSES:
        field = Field("label", "label", "int64", class_names=tuple(str(i) for i in range(int(known.max()) + 1)))
    return Column(field, numbers, missing)


def _classes(values: pa.Array) -> tuple[Ints, tuple[str, ...]]:
    """Texts as numbers of their sorted names; null is 0."""
    coded = values.dictionary_encode()
    names = coded.dictionary.to_pylist()
    if len(names) > MAX_CLASSES:
        raise Left(f"has {len(names)} different texts, more than the {MAX_CLASSES} classes there can be")
    ranked = sorted(range(len(names)), key=names.__getitem__)
    number = np.empty(max(1, len(names)), np.int64)
    number[ranked] = np.arange(len(names))
    indices = np.asarray(coded.indices.fill_null(0).to_numpy(zero_copy_only=False))
    return number[indices], tuple(names[i] for i in ranked)


# A list an item


def _unpacked(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Offsets (int64, n + 1, from 0) and the values of all lists; null is the empty list."""
    import pyarrow.compute as pc  # here, as its 40 ms are of no use to a folder of pictures

    lengths = np.asarray(pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_fixed_size_list(values.type) and values.null_count:
        raise Left("has nulls among lists of a fixed size")
    return pa.array(np.concatenate([[0], np.cumsum(lengths)])), values.flatten()


def array_column(name: str, values: pa.Array) -> Column:
    """Lists of any depth as an array field: only its first axis may vary."""
    first, inner = _unpacked(values)
    offsets = np.asarray(first)
    shape: list[int] = []
    while is_list(inner.type):
        inner_offsets, deeper = _unpacked(inner)
        lengths = np.diff(np.asarray(inner_offsets))
        if lengths.size and (lengths != lengths[0]).any():
            raise Left(f"holds lists of {lengths.min()} to {lengths.max()} values, and only the first axis may vary")
        shape.append(int(lengths[0]) if lengths.size else 0)
        inner = deeper
    if len(shape) + 1 > MAX_NDIM:
        raise Left(f"has over {MAX_NDIM} axes")
    names = None
    if pa.types.is_null(inner.type):
        inner = inner.cast(pa.float64())
    if is_text(inner.type):
        numbers, names = _classes(inner.fill_null(""))
    else:
        numbers = _numbers(inner)
    counts = np.diff(offsets)
    same = len(counts) and (counts == counts[0]).all() and not name.startswith("objects/")
    field = Field(
        name, "array", numbers.dtype.name, (int(counts[0]) if same else None, *shape), class_names=names or None
    )
    return Column(field, Ragged(numbers.reshape(-1, *shape), offsets))


# Several rows an item


def grouped(table: pa.Table, offsets: Ints, per_item: Sequence[str], files: Sequence[str], name: str) -> pa.Table:
    """One row an item: `per_item` columns that agree in an item's rows stay, others become lists `objects/NAME`.

    Args:
        table: an item's rows lie together.
        offsets: where each item's rows begin, and the end, int64 (n + 1,).
        per_item: columns said again in every row.
        files: what each item is called, for errors.
        name: of the label file, for errors.
    """
    out: dict[str, Any] = {}
    ends = pa.array(offsets)
    for column in table.column_names:
        values = table.column(column).combine_chunks()
        if is_list(values.type) or pa.types.is_struct(values.type):
            item = int(np.argmax(np.diff(offsets) > 1))
            raise SourceError(f"{files[item]} has several rows, and {column} is a list already", path=name)
        if column in per_item and _agree(values, offsets):
            out[column] = values.take(pa.array(offsets[:-1]))
        else:
            out[f"objects/{column}"] = pa.LargeListArray.from_arrays(ends, values)
    return pa.table(out)


def _agree(values: pa.Array, offsets: Ints) -> bool:
    """True when all rows of each item hold the same value."""
    codes = np.asarray(values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False))
    return bool((codes == np.repeat(codes[offsets[:-1]], np.diff(offsets))).all())


# Names


def reserved(schema: Schema) -> set[str]:
    """Names that a column cannot have: those of the index, of the fields there are, and of what is stored beside them."""
    taken = {"key", "shard"}
    for field in schema:
        taken |= {field.name, *(field.name[:i] for i, c in enumerate(field.name) if c == "/")}
        taken |= {f"{field.name}{end}" for end in ("_offsets", "_shapes", "_length", "_class_names")}
        taken |= {f"{field.name}.{end}" for end in ("offset", "length", "crc32c", "chunk", "row", "shape")}
    return taken


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of NAME_1, NAME_2, ... that is not taken."""
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
