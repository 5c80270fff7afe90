"""Plain-text tables and sizes.

>>> print(table([("split", "samples"), ("train", "10")]))
split  samples
train  10
"""

from __future__ import annotations

from collections.abc import Sequence


def human(nbytes: float) -> str:
    """A size in bytes as people read it."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
