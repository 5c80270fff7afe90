"""What the columns of an index and of a chunk table must be, by the schema. Told by the footer, before a column is read.

>>> from streamkit.schema import Field
>>> schema = Schema((Field("x", "array", "uint8", (None, None)), Field("label", "label", "int64")))
>>> wanted = index_columns(schema)
>>> sorted(wanted)
['key', 'label', 'shard', 'x.crc32c', 'x.length', 'x.offset', 'x.shape']
>>> wrong(pa.schema([("key", pa.string()), ("shard", pa.int64())]), {"key": TEXT, "shard": TEXT})
"column 'shard' is int64, expected text"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkit.schema import Field, Schema

RATIO = 1032  # of unpacked to stored bytes; zlib cannot do better
SIDES = ("width", "height", "channels", "orientation")  # of pictures, where the index has them
_KINDS = {
    "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "i": pa.types.is_signed_integer,
    "u": pa.types.is_unsigned_integer,
    "f": pa.types.is_floating,
    "b": pa.types.is_boolean,
    "whole numbers": pa.types.is_integer,
}


@dataclass(frozen=True)
class Column:
    """What a column holds: a kind of _KINDS, `width` of them a row (0: the one value itself). It may lack if not `needed`."""

    kind: str
    width: int = 0
    needed: bool = True

    def fits(self, kind: pa.DataType) -> bool:
        if self.width:
            return pa.types.is_fixed_size_list(kind) and kind.list_size == self.width and self._fits(kind.value_type)
        return self._fits(kind)

    def _fits(self, kind: pa.DataType) -> bool:
        return bool(_KINDS[self.kind](kind))

    def __str__(self) -> str:
        name = {"i": "whole numbers", "u": "whole numbers from 0", "f": "floats", "b": "truths"}.get(
            self.kind, self.kind
        )
        return f"{self.width} {name} a row" if self.width else name


TEXT, WHOLE, PERHAPS = Column("text"), Column("whole numbers"), Column("whole numbers", needed=False)
CHUNK_COLUMNS = {"shard": TEXT, "offset": WHOLE, "length": WHOLE, "crc32c": WHOLE, "skipped": PERHAPS}


def range_columns(field: Field) -> tuple[str, ...]:
    """The index columns that tell where the payloads of a field lie."""
    if field.chunk_rows is not None:
        return f"{field.name}.chunk", f"{field.name}.row"
    places = (f"{field.name}.offset", f"{field.name}.length", f"{field.name}.crc32c")
    return (*places, f"{field.name}.shape") if has_shapes(field) else places


def has_shapes(field: Field) -> bool:
    """True where stored bytes alone do not tell a sample's shape."""
    return field.n_varying > 1 and not field.is_encoded_image


def index_columns(schema: Schema) -> dict[str, Column]:
    """What an index of this schema holds: column -> what it must be."""
    out = {"key": TEXT, "shard": TEXT}
    for field in schema.payloads:
        out |= dict.fromkeys(range_columns(field), WHOLE)
        if has_shapes(field):
            out[f"{field.name}.shape"] = Column("whole numbers", len(field.shape))
    if any(field.is_image for field in schema):
        out |= dict.fromkeys(SIDES, PERHAPS)
    for field in schema.columns:
        out[field.name] = TEXT if field.dtype == "string" else Column(np.dtype(field.dtype).kind)
    return out


def wrong(schema: pa.Schema, wanted: Mapping[str, Column]) -> str:
    """Why a table of this Arrow schema is not what is wanted; empty if it is. More columns than wanted do no harm."""
    for name, column in wanted.items():
        found = schema.get_all_field_indices(name)
        if len(found) > 1:
            return f"column {name!r} is there {len(found)} times"
        if not found and column.needed:
            return f"the column {name!r} is missing"
        if found and not column.fits(schema.field(found[0]).type):
            return f"column {name!r} is {schema.field(found[0]).type}, expected {column}"
    return ""


def large_text(file: str, name: str, limit_nbytes: int) -> bool:
    """Whether the text of a column takes more than `limit_nbytes`, told without unpacking it: one long value may stand
    for every row. Values that lie one by one take what the footer says; of a dictionary's, each row's length counts."""
    stored = most = 0
    footer = pq.read_metadata(file)
    at = [footer.schema.column(i).path for i in range(footer.num_columns)].index(name)
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group).column(at)
        if any(encoding.startswith("DELTA") for encoding in chunk.encodings):
            return True  # values made of those before them, which no index has
        several = any("DICTIONARY" in encoding for encoding in chunk.encodings)
        stored += chunk.total_uncompressed_size
        most += chunk.total_uncompressed_size * (chunk.num_values if several else 1)
    if stored > limit_nbytes or most <= limit_nbytes:
        return stored > limit_nbytes
    import pyarrow.compute as pc  # here, as its 40 ms are of no use as a rule

    total = 0
    with pq.ParquetFile(file, read_dictionary=[name]) as parquet:
        for group in range(footer.num_row_groups):
            for values in parquet.read_row_group(group, columns=[name]).column(name).chunks:
                total += pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0
    return total > limit_nbytes
