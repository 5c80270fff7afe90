"""Boxes of objects, moved with their pictures: cut into tiles, scaled with --resize. Pure.

A box goes to every tile that it shares some area with, cut off at the tile's edges, in pixels of the tile; where it shares
none, the object is left out. What else is said of an object stays what it was of the whole.

>>> from streamkit.schema import Field, Schema
>>> arrays = {f"objects/{side}": Ragged(np.array([at]), np.array([0, 1])) for side, at in zip(SIDES, (8, 2, 14, 6))}
>>> fields = tuple(Field(name, "array", "int64", (None,)) for name in arrays)
>>> columns = {"tile_y": np.array([0]), "tile_x": np.array([10])}
>>> tile = Listing(["a.jpg#0,10"], np.array([1]), Schema(fields), columns, arrays)
>>> cut = in_tiles(tile, [Info("png", 10, 10, 3, 1)])
>>> {name: values[0].tolist() for name, values in cut.arrays.items()}
{'objects/xmin': [0], 'objects/ymin': [2], 'objects/xmax': [4], 'objects/ymax': [6]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.codecs.image import Info
from streamkit.errors import UsageError
from streamkit.schema import Schema
from streamkit.sources.annotations import SIDES
from streamkit.sources.cuts import origin_of
from streamkit.sources.listing import Listing, Ragged

_GROUP = "objects/"
_NAMES = tuple(_GROUP + side for side in SIDES)


def has_boxes(listing: Listing) -> bool:
    """True where items have boxes: xmin, ymin, xmax and ymax of objects."""
    return all(name in listing.arrays for name in _NAMES)


def in_tiles(listing: Listing, tiles: Sequence[Info]) -> Listing:
    """The listing of tiles with each one's objects. Raises UsageError for objects of which no box says where they are.

    Args:
        listing: of tiles, with the objects of the whole pictures.
        tiles: how large each is.
    """
    names = [name for name in listing.arrays if name.startswith(_GROUP)]
    if not names:
        return listing
    if not has_boxes(listing):
        raise UsageError(
            f"tiles do not cut {names[0]}: there are no boxes, {', '.join(_NAMES)}",
            hint="Leave --tile or --labels out.",
        )
    offsets = listing.arrays[_NAMES[0]].offsets
    item = np.repeat(np.arange(len(listing)), np.diff(offsets))
    origins = np.array([origin_of(key) for key in listing.keys], np.int64).reshape(-1, 2)
    most = {"x": np.array([t.width for t in tiles])[item], "y": np.array([t.height for t in tiles])[item]}
    start = {"x": origins[item, 1], "y": origins[item, 0]}
    moved: dict[str, npt.NDArray[Any]] = {}
    for name in _NAMES:
        axis, values = name[len(_GROUP)], listing.arrays[name].values
        values = values.astype(np.int64) if values.dtype.kind in "biu" else values
        moved[name] = np.clip(values - start[axis], 0, most[axis])
    xmin, ymin, xmax, ymax = (moved[name] for name in _NAMES)
    kept = (xmax > xmin) & (ymax > ymin)
    ends = np.concatenate([[0], np.cumsum(np.bincount(item[kept], minlength=len(listing)))])
    arrays = dict(listing.arrays)
    for name in names:
        arrays[name] = Ragged(moved.get(name, listing.arrays[name].values)[kept], ends)
    return _typed(listing, arrays)


def scaled(listing: Listing, factors: npt.NDArray[np.float64]) -> Listing:
    """The listing with boxes in pixels of pictures that are `factors` (n, 2) times as (high, wide); they become float64."""
    arrays = dict(listing.arrays)
    for name in _NAMES:
        axis = 1 if name[len(_GROUP)] == "x" else 0
        factor = np.repeat(factors[:, axis], np.diff(arrays[name].offsets))
        arrays[name] = Ragged(arrays[name].values * factor, arrays[name].offsets)
    return _typed(listing, arrays)


def _typed(listing: Listing, arrays: dict[str, Ragged]) -> Listing:
    """The listing with these arrays, whose dtypes may be others."""
    fields = (replace(f, dtype=arrays[f.name].values.dtype.name) if f.name in _NAMES else f for f in listing.schema)
    return replace(listing, schema=Schema(tuple(fields)), arrays=arrays)
