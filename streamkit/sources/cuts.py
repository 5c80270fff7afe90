"""Where things are cut: tiles of a picture, windows of an array. Pure.

>>> starts(10, 4, 3), starts(11, 4, 4), starts(3, 4, 4)
([0, 3, 6], [0, 4, 7], [0])
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from streamkit.schema import Field, Schema
from streamkit.sources.fields import free_name, reserved
from streamkit.sources.listing import BadItem, Ints, Listing


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where pieces of `size` begin in `length`, `stride` apart; the last one is shifted inwards so that it ends with it."""
    if length <= size:
        return [0]
    out = list(range(0, length - size + 1, stride))
    if out[-1] + size < length:
        out.append(length - size)
    return out


def cut_listing(found: Listing, origins: Sequence[Ints | BadItem], names: Sequence[str]) -> Listing:
    """The listing of all pieces of all items: keys `key#origin`, columns repeated, the origin as columns of its own.

    Args:
        found: the items.
        origins: of each item, where its pieces begin, int64 (pieces, axes); or why it has none.
        names: of the columns that the origins become, one an axis.
    """
    bad = tuple(o for o in origins if isinstance(o, BadItem))
    counts = np.array([0 if isinstance(o, BadItem) else len(o) for o in origins], np.int64)
    rows = np.repeat(np.arange(len(found)), counts)
    good = [o for o in origins if not isinstance(o, BadItem)]
    at = np.concatenate(good) if good else np.empty((0, len(names)), np.int64)
    pieces = found.take(rows)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    # What an item weighs is spread over its pieces without a rest, so that sums stay what they are.
    sizes = pieces.sizes // counts[rows] + (number < pieces.sizes % counts[rows])
    fields, columns = list(found.schema), dict(pieces.columns)
    for axis, name in enumerate(names):
        free = free_name(name, reserved(Schema(tuple(fields))))
        fields.append(Field(free, "number", "int64"))
        columns[free] = np.ascontiguousarray(at[:, axis])
    keys = [f"{key}#{','.join(map(str, origin))}" for key, origin in zip(pieces.keys, at.tolist(), strict=True)]
    return replace(
        pieces,
        keys=keys,
        sizes=sizes,
        schema=Schema(tuple(fields)),
        columns=columns,
        parent=np.unique(rows, return_inverse=True)[1].reshape(-1),
        block=1,
        bad=(*found.bad, *bad),
    )


def parents_of(listing: Listing) -> Ints:
    """The number of what each row was cut from; its own where nothing was."""
    return np.arange(len(listing)) if listing.parent is None else listing.parent


def by_parent(keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Neighbouring keys of pieces by what they were cut from."""
    for parent, pieces in itertools.groupby(keys, key=whole_of):
        yield parent, list(pieces)


def whole_of(key: str) -> str:
    """The key of what a piece was cut from; a key that is no piece's stays as it is.

    >>> whole_of("a#1.jpg#0,512"), whole_of("a#1.jpg")
    ('a#1.jpg', 'a#1.jpg')
    """
    return re.sub(r"#\d+(,\d+)*\Z", "", key)


def origin_of(key: str) -> list[int]:
    """Where the piece of this key begins."""
    return [int(number) for number in key.rpartition("#")[2].split(",")]


def as_bad(keys: Sequence[str], bad: BadItem) -> list[BadItem]:
    """What is wrong with the whole is wrong with every piece."""
    return [bad._replace(key=key) for key in keys]


def with_shape(schema: Schema, name: str, shape: tuple[int | None, ...]) -> Schema:
    """The schema with another shape of one field."""
    changes: Mapping[str, Any] = {"shape": shape}
    return Schema(tuple(replace(f, **changes) if f.name == name else f for f in schema))
