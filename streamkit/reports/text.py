"""Plain-text tables, sizes and bars.

>>> print(table([("split", "samples"), ("train", "10")]))
split  samples
train  10
>>> width("猫 cat")
6
>>> bar(3, 4, width=8)
'██████'
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from streamkit.errors import one_line


def human(nbytes: float) -> str:
    """A size in bytes as people read it."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as aligned columns."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c + " " * (w - width(c)) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def width(text: str) -> int:
    """Columns of a terminal that a text takes. Source: Unicode Standard Annex 11 (East Asian Width)."""
    return sum((unicodedata.east_asian_width(c) in "WF") + 1 for c in text if not unicodedata.combining(c))


def bar(value: float, largest: float, width: int = 24) -> str:
    """`value` as a bar of at most `width` characters; what is there at all is seen."""
    if value <= 0 or largest <= 0:
        return ""
    return "█" * max(1, round(width * value / largest))


def schema_table(fields: Mapping[str, Mapping[str, Any]]) -> str:
    """The fields of a dataset, as `Schema.to_json` gives them."""
    rows = [("field", "kind", "dtype", "shape", "encoding")]
    for name, f in fields.items():
        shape = "x".join("?" if d is None else str(d) for d in f["shape"]) or "scalar"
        rows.append((one_line(name), f["kind"], f["dtype"], shape, one_line(f.get("encoding", "-"))))
    return table(rows)
