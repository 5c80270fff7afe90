"""Sizes as people write them.

>>> size("64MiB"), size("1.5GB"), size(10)
(67108864, 1500000000, 10)
"""

from __future__ import annotations

import re

from streamkit.errors import UsageError

_SUFFIX = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SUFFIX |= {f"{s}B": n for s, n in list(_SUFFIX.items()) if s and s != "B"}
_SUFFIX |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size(text: str | int) -> int:
    """Bytes of a size such as "128MB", "64MiB" or 1000000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text).strip())
    if match is None or match[2].upper() not in _SUFFIX:
        raise UsageError(f"{text!r} is no size", hint="Write it like 128MB or 64MiB.")
    return int(float(match[1]) * _SUFFIX[match[2].upper()])
