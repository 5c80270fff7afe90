"""Sizes and whole numbers as people write them.

>>> size("64MiB"), size("1.5GB"), size(10)
(67108864, 1500000000, 10)
"""

from __future__ import annotations

import operator
import re
from typing import Any

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


def whole(name: str, value: Any) -> int | None:
    """The argument `name` as Python's int; None stays. Raises UsageError for anything but a whole number."""
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is {value!r}, expected a whole number") from None


def flag(name: str, value: Any) -> None:
    """Raise UsageError where the argument `name` is neither True nor False.

    >>> flag("flip", "yes")
    Traceback (most recent call last):
        ...
    streamkit.errors.UsageError: flip is 'yes', expected True or False
    """
    if not (isinstance(value, (bool, int)) or type(value).__name__ in ("bool", "bool_")) or value not in (0, 1):
        raise UsageError(f"{name} is {value!r}, expected True or False")
