"""What the columns of a table's rows are: the first pass over files of rows, which keeps what the index holds and no more.

=====================================  =======================================================================
numbers, booleans, short text          column; `label`, `labels`, `y` or `class` is the label (fields.py)
text named `text`, or over 255 bytes   payload `text` of its own name
list of numbers, of any depth          payload array; its first axis varies unless all are of one length
{bytes, path} or bytes of a picture    payload `image`; of a second one named like a mask, `mask`
=====================================  =======================================================================

>>> kinds = RowKinds()
>>> _ = kinds.add(pa.table({"text": ["a", "bcd"], "ids": [[1, 2], [3]], "y": [0, 1]}), "a.jsonl")
>>> [(name, field.kind, field.shape) for name, field in kinds.payloads()], kinds.columns().column_names
([('ids', 'array', (None,)), ('text', 'text', ())], ['y'])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from streamkit.codecs.image import looks_like_image
from streamkit.errors import SourceError
from streamkit.schema import Field
from streamkit.sources.fields import Left, array_column, flat, is_list, is_text
from streamkit.sources.listing import Ints

MAX_COLUMN_NBYTES = 255  # of a text that still is a column
IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "png")
MASK_NAMES = ("mask", "annotation", "segmentation", "label", "label_mask")


class RowKinds:
    """What is known of the columns so far. Add every piece of every file, in the order of rows."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.texts: set[str] = set()
        self.pictures: list[str] = []
        self.left: dict[str, str] = {}
        self._lists: dict[str, _Lists] = {}
        self._pieces: list[pa.Table] = []

    def add(self, table: pa.Table, file: str) -> Ints:
        """Take note of a piece: the payload bytes of each of its rows, int64 (rows,), pictures not counted.

        Raises:
            SourceError: a column that holds lists in one row and single values in another, or lists that do not stack.
        """
        sizes = np.zeros(table.num_rows, np.int64)
        kept: dict[str, pa.Array] = {}
        for name in [n for n in table.column_names if is_binary(table.schema.field(n).type)]:
            self._picture(name, table.column(name))
            table = table.drop_columns([name])
        for name, values in flat(table):
            if not name or name in self.left:
                continue
            if is_list(values.type):
                sizes += self._add_list(name, values, file)
            elif is_text(values.type) and (name in self.texts or _is_long(name, values)):
                self.texts.add(name)
                sizes += _lengths(values)
            elif not (pa.types.is_null(values.type) and (name in self.texts or name in self._lists)):
                kept[name] = values
        self._pieces.append(pa.table(kept) if kept else pa.table({"": pa.nulls(table.num_rows)}))
        self.n_rows += table.num_rows
        return sizes

    def _picture(self, name: str, values: pa.ChunkedArray) -> None:
        if name in self.pictures or name in self.left:
            return
        first = next((v for chunk in values.chunks for v in map(bytes_of, chunk) if v is not None), None)
        if first is None:
            return  # nothing here tells what it is
        if looks_like_image(first):
            self.pictures.append(name)
        else:
            self.left[name] = "holds bytes that are no pictures"

    def _add_list(self, name: str, values: pa.Array, file: str) -> Ints:
        try:
            column = array_column(name, values)
        except Left as reason:
            self.left[name] = str(reason)
            return np.zeros(len(values), np.int64)
        if column.field.class_names is not None:
            self.left[name] = "holds lists of text"
            return np.zeros(len(values), np.int64)
        counts = np.diff(column.values.offsets)  # type: ignore[union-attr]
        width = int(np.prod([d or 0 for d in column.field.shape[1:]], dtype=np.int64))
        seen = self._lists.setdefault(name, _Lists())
        if not seen.add(column.field, counts):
            raise SourceError(f"{name} is {column.field.dtype} {column.field.shape[1:]} in some rows only", path=file)
        return counts * width * np.dtype(column.field.dtype).itemsize

    @property
    def unread(self) -> set[str]:
        """Columns of which nothing more has to be seen."""
        return {*self.pictures, *self.texts, *self.left}

    def payloads(self) -> Iterator[tuple[str, Field]]:
        """(column, field) of each payload but the pictures, sorted. SourceError for one that is a list here, text there."""
        singles = {name for piece in self._pieces for name in piece.column_names if not _is_empty(piece, name)}
        for name, lists in sorted(self._lists.items()):
            if name in singles or name in self.texts:
                raise SourceError(f"{name} is a list in one row and a single value in another")
            yield name, Field(name, "array", lists.dtype, lists.shape)
        for name in sorted(self.texts):
            if any(name in p.column_names and not _may_be_text(p.column(name).type) for p in self._pieces):
                raise SourceError(f"{name} is text in one row and a number in another")
            yield name, Field(name, "text", "string")

    def image_columns(self) -> Iterator[tuple[str, Field]]:
        """(column, field) of the pictures: the image, and its mask; others come to `left`."""
        image = next((n for n in IMAGE_NAMES if n in self.pictures), next(iter(self.pictures), None))
        mask = next((n for n in MASK_NAMES if n in self.pictures and n != image), None)
        if image is not None:
            yield image, Field("image", "image", "uint8", (None, None, None), "mixed")
        if mask is not None:
            yield mask, Field("mask", "mask", "uint8", (None, None, 1), "mixed")
        self.left |= {n: "is a further picture" for n in self.pictures if n not in (image, mask)}

    def columns(self) -> pa.Table:
        """The columns that are no payload, all rows. Raises SourceError where their types do not go together."""
        without = {*self.texts, *self._lists, ""}
        pieces = []
        for piece in self._pieces:
            names = [n for n in piece.column_names if n not in without]
            # Without columns, a table has no rows: one that is all null keeps them.
            pieces.append(piece.select(names) if names else pa.table({"": pa.nulls(piece.num_rows)}))
        try:
            table = pa.concat_tables(pieces, promote_options="permissive")
        except (pa.ArrowException, TypeError) as error:
            raise SourceError(f"a column changes its kind: {str(error).splitlines()[0]}") from None
        return table.select([n for n in table.column_names if n])


class _Lists:
    """The lists of one column so far."""

    def __init__(self) -> None:
        self.dtype = ""
        self.inner: tuple[int | None, ...] = ()
        self.n_least, self.n_most = 1 << 62, 0

    def add(self, field: Field, counts: Ints) -> bool:
        """False where these do not stack with those before."""
        if not counts.any() and (self.dtype or field.dtype == "float64"):  # empty lists say nothing of what they hold
            self.n_least = 0
            return True
        if self.dtype and self.inner != field.shape[1:]:
            return False
        self.dtype = np.result_type(self.dtype or field.dtype, field.dtype).name
        self.inner = field.shape[1:]
        self.n_least, self.n_most = min(self.n_least, int(counts.min())), max(self.n_most, int(counts.max()))
        return True

    @property
    def shape(self) -> tuple[int | None, ...]:
        return (self.n_most if self.n_least == self.n_most else None, *self.inner)


def is_binary(kind: pa.DataType) -> bool:
    """True for bytes, and for {bytes, path}, which is how Hugging Face's datasets write a picture."""
    if pa.types.is_struct(kind):
        return {f.name for f in kind} == {"bytes", "path"} and is_binary(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def bytes_of(value: Any) -> bytes | None:
    """The bytes of one value of such a column."""
    if isinstance(value, pa.StructScalar):
        value = value["bytes"] if value.is_valid else None
    return value.as_py() if value is not None and value.is_valid else None


def _lengths(values: pa.Array) -> Ints:
    import pyarrow.compute as pc  # here, as its 40 ms are of no use to a folder of pictures

    return np.asarray(pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False), np.int64)


def _is_long(name: str, values: pa.Array) -> bool:
    return name == "text" or (len(values) > 0 and int(_lengths(values).max()) > MAX_COLUMN_NBYTES)


def _may_be_text(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_null(kind))


def _is_empty(piece: pa.Table, name: str) -> bool:
    return pa.types.is_null(piece.column(name).type)
