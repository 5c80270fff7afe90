"""What to read for some rows, shard by shard. Pure.

>>> plan = ReadPlan.of(np.array([5, 0, 7]), shard_starts=np.array([0, 4, 8]), offsets=np.array([90, 10, 20]))
>>> [(shard, slots.tolist()) for shard, slots in plan.shards]
[(0, [1]), (1, [2, 0])]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReadPlan:
    """What to read for some rows: per shard, the slots (places in the batch) in the order of their offsets."""

    shards: tuple[tuple[int, Ints], ...]

    @classmethod
    def of(cls, rows: Ints, shard_starts: Ints, offsets: Ints) -> ReadPlan:
        """Plan `rows` whose ranges begin at `offsets` [B]; `shard_starts`: first row of each shard, and the end."""
        if len(shard_starts) <= 2:
            return cls(((0, np.argsort(offsets)),) if len(rows) else ())
        shard = np.searchsorted(shard_starts, rows, side="right") - 1
        slots = np.lexsort((offsets, shard))
        cuts = np.flatnonzero(np.diff(shard[slots])) + 1
        return cls(tuple((int(shard[part[0]]), part) for part in np.split(slots, cuts)) if len(slots) else ())
