"""Facts of files that a stranger may have written: JSON within bounds, counts, names that lead nowhere else. Pure.

>>> parse('{"a": [1, 2]}'), canonical({"b": 1, "a": 2})
({'a': [1, 2]}, '{\\n "a": 2,\\n "b": 1\\n}\\n')
>>> name_below("a/b.jpg"), count(3, "samples", "train")
('a/b.jpg', 3)
>>> plain_name("../a")
Traceback (most recent call last):
streamkit.errors.RefusedError: '../a' is not a plain file name. The manifest was tampered with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from streamkit.errors import DamagedError, RefusedError

MAX_DEPTH = 16


def canonical(data: Any) -> str:
    """JSON with sorted keys, ASCII only, one fact a line: equal data gives equal text."""
    return json.dumps(data, sort_keys=True, ensure_ascii=True, indent=1, allow_nan=False) + "\n"


def parse(text: str | bytes) -> Any:
    """JSON, nested at most `MAX_DEPTH` deep, every key of an object once.

    Raises:
        RefusedError: nested deeper.
        ValueError: no JSON.
    """
    too_deep = RefusedError(f"it is nested deeper than {MAX_DEPTH}")
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise too_deep from None
    if _is_deep(data, MAX_DEPTH):
        raise too_deep
    return data


def plain_name(name: Any) -> str:
    """`name` if it names a file directly inside the dataset folder; RefusedError otherwise."""
    bad = not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\:%\0")
    if bad or len(name) > 255 or not name.isprintable():
        raise RefusedError(f"{str(name)[:80]!r} is not a plain file name", hint="The manifest was tampered with.")
    return str(name)


def name_below(name: Any) -> str:
    """`name` if it is a relative path, with "/", that stays below where it begins; RefusedError otherwise."""
    parts = name.split("/") if isinstance(name, str) else [""]
    bad = any(part in ("", ".", "..") or len(part) > 255 or not part.isprintable() for part in parts)
    if bad or "\\" in name:
        raise RefusedError(f"{str(name)[:80]!r} is no path below a folder", hint="The manifest was tampered with.")
    return str(name)


def count(value: Any, what: str, where: str) -> int:
    """`value` if it is a whole number from 0 on that 63 bits hold; DamagedError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise DamagedError(f"{what} of {where} is {str(value)[:40]!r}, expected a count")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is an object; TypeError otherwise."""
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:40]!r} is no object")
    return value


def statistics(value: Any) -> dict[str, Any]:
    """`value` if what it says of classes, pictures and arrays can be shown; TypeError or DamagedError otherwise."""
    out = mapping(value)
    for split, counts in mapping(out.get("class_counts", {})).items():
        for name, n in mapping(counts).items():
            count(n, f"the samples of class {name[:40]!r}", split[:40])
    picture = mapping(out.get("image", {}))
    for name in {"pixels", "std_of"} & picture.keys():
        count(picture[name], name, "statistics")
    for name, n_least in {"width": 2, "height": 2, "mean": 1, "std": 1}.items():
        numbers = picture.get(name, [0, 0])
        if not isinstance(numbers, list) or len(numbers) < n_least or not all(type(n) in (int, float) for n in numbers):
            raise TypeError(f"{name} is {str(numbers)[:40]!r}")
    for name, facts in mapping(out.get("arrays", {})).items():
        for kind in ("nan", "inf"):
            count(mapping(mapping(facts)["not_finite"])[kind], kind, name[:40])
    return out


def unknown(data: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What objects in `data` hold beyond those in `known`, however deep; see `with_unknown`.

    >>> rest = unknown({"a": {"b": 1, "new": 2}, "c": 3}, {"a": {"b": 1}})
    >>> rest, with_unknown({"a": {"b": 4}}, rest)
    ({'a': {'new': 2}, 'c': 3}, {'a': {'b': 4, 'new': 2}, 'c': 3})
    """
    out: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            out[name] = value
        elif isinstance(value, Mapping) and isinstance(known[name], Mapping) and (rest := unknown(value, known[name])):
            out[name] = rest
    return out


def with_unknown(known: Mapping[str, Any], rest: Mapping[str, Any], named: bool = False) -> dict[str, Any]:
    """`known` with what `unknown` found; where its objects are `named`, those that are gone stay so."""
    out = dict(known)
    for name, value in rest.items():
        if name not in known:
            out |= {} if named or name in _OF_NAMES else {name: value}
        else:
            out[name] = with_unknown(known[name], value, named=name in _OF_NAMES)
    return out


_OF_NAMES = ("splits", "schema", "files")  # of a manifest: objects whose names are the dataset's own


def _is_deep(value: Any, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_is_deep(item, left - 1) for item in inner if isinstance(item, (dict, list)))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands twice")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
