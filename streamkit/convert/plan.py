"""The plan of a conversion: which item goes to which split, shard and place in it. Pure: no file is touched.

Items are ordered by a hash of their keys (salted by the seed), so a shard is a fair sample of its split, and which split
an item belongs to hardly changes when items are added. Rows that the source stores compressed together share one hash;
those that are read with a block of a table lie together by the block's.

    >>> import numpy as np
    >>> from streamkit.schema import Field, Schema
    >>> listing = Listing(keys=[f"{i}.jpg" for i in range(10)], sizes=np.full(10, 100),
    ...                   schema=Schema((Field("image", "image", "uint8", (None, None, None), "mixed"),)))
    >>> plan = make_plan(listing, Options(format="tfrecord", split={"train": 0.8, "val": 0.2}, shard_size=400), "tfrecord")
    >>> [(shard.file, len(shard.rows)) for shard in plan.shards]
    [('train-00000.tfrecord', 4), ('train-00001.tfrecord', 4), ('val-00000.tfrecord', 2)]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamkit.convert.assign import NOTHING, There, assign_splits, item_hashes
from streamkit.convert.options import Options
from streamkit.errors import UsageError
from streamkit.sources.listing import Ints, Listing

MAX_SHARD_SAMPLES = 32_768  # a record under way costs about 2 KB of memory besides its bytes


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: its split, file name, and rows of the listing in record order."""

    split: str
    file: str
    rows: Ints


@dataclass(frozen=True)
class Plan:
    """All shards, in the order of the manifest; `splits` names every split, in the user's order."""

    splits: tuple[str, ...]
    shards: tuple[ShardPlan, ...]


def make_plan(
    listing: Listing, options: Options, extension: str, sizes: Ints | None = None, there: There = NOTHING
) -> Plan:
    """Assign every item to a split and a shard.

    Args:
        listing: the source's items.
        options: split, seed and shard size are used.
        extension: of the shard files.
        sizes: expected stored bytes of each item, int64 (n,); the listing's own if None.
        there: what the dataset has already; new shards are numbered on, and splits without a new item are left out.

    Raises:
        UsageError: fractions given for a source that has split folders, or a split that would be empty.
    """
    hashes = item_hashes(listing, options.seed)
    names, split_of = assign_splits(listing, options, hashes, there)
    sizes = listing.sizes if sizes is None else sizes
    order = np.lexsort((np.arange(len(listing)), hashes, _places(listing, hashes)))
    shards = []
    for number, name in enumerate(names):
        rows = order[split_of[order] == number]
        if not rows.size and there.samples.get(name):
            continue
        if not rows.size:
            raise UsageError(f"split {name!r} would be empty", hint="Give it a larger fraction, or leave it out.")
        for i, part in enumerate(cut(rows, sizes[rows], options.shard_nbytes), there.shards.get(name, 0)):
            shards.append(ShardPlan(name, f"{name}-{i:05d}.{extension}", part))
    used = {shard.split for shard in shards}
    return Plan(tuple(name for name in names if name in used), tuple(shards))


def _places(listing: Listing, hashes: Ints) -> Ints:
    """What rows are ordered by first: the hash of the block that they are read with, so that it is read once for many."""
    if listing.blocks is None:
        return hashes
    _, first, number = np.unique(listing.blocks, return_index=True, return_inverse=True)
    return hashes[first][number.reshape(-1)]


def cut(rows: Ints, sizes: Ints, shard_nbytes: int) -> list[Ints]:
    """Cut rows into the fewest shards of about equal bytes that stay near `shard_nbytes` and MAX_SHARD_SAMPLES; none empty."""
    ends = np.cumsum(sizes)
    wanted = max(-(-int(ends[-1]) // shard_nbytes), -(-len(rows) // MAX_SHARD_SAMPLES), 1)
    n_shards = min(wanted, len(rows))
    middle = ends - sizes / 2
    number = np.minimum((middle * n_shards // max(1, int(ends[-1]))).astype(np.int64), n_shards - 1)
    return [part for part in np.split(rows, np.flatnonzero(np.diff(number)) + 1) if part.size]
