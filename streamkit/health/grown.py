"""Repair of a dataset that was grown by --append: what lies where, only its index tells, not its source.

>>> plan_there.__name__
'plan_there'
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from streamkit.convert.append import Before
from streamkit.convert.plan import Plan, ShardPlan
from streamkit.errors import DamagedError, SourceError
from streamkit.manifest import Manifest
from streamkit.sources import Listing


def check_tables(root: Path, manifest: Manifest, damaged: Collection[str]) -> None:
    """Raise DamagedError where a file is damaged that cannot be made again from the source."""
    tables = {str(name) for split in manifest.splits.values() for name in (split.index, split.chunks)}
    for file in sorted({*tables, "skipped.jsonl"} & set(damaged)):
        raise DamagedError(
            "this dataset was grown by --append, so this file cannot be made again from its source",
            path=root / file,
            hint="Use --drop." if file == "skipped.jsonl" else "Convert again with --overwrite.",
        )


def plan_there(before: Before, listing: Listing, damaged: Collection[str]) -> Plan:
    """The damaged shards, of the items that the index says they hold.

    Args:
        before: the dataset; its indexes are whole.
        listing: the items of the source, which may hold others as well.
        damaged: names of damaged files.

    Raises:
        SourceError: items are not in the source.
    """
    rows = {key: row for row, key in enumerate(listing.keys)}
    shards = []
    for split in before.manifest.splits.values():
        keys, start = before.keys_of(split.name), 0
        for shard in split.shards:
            mine = keys[start : start + shard.samples]
            start += shard.samples
            if shard.file not in damaged:
                continue
            gone = [key for key in mine if key not in rows]
            if gone:
                raise SourceError(
                    f"{len(gone)} of the {len(mine)} items of {shard.file} are not in this source, such as {gone[0]}",
                    path=before.root,
                    hint="Give one that holds all items, those appended too, or use --drop.",
                )
            shards.append(ShardPlan(split.name, shard.file, np.array([rows[key] for key in mine], np.int64)))
    return Plan((), tuple(shards))
