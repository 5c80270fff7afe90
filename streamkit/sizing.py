"""How much is made ahead of use: arithmetic on the size of a sample, the memory budget and the number of threads.

>>> small = Sizing(sample_nbytes=3072, batch_size=256, n_batches=200, n_threads=2, budget_nbytes=1 << 30)
>>> small.n_together, small.depth, small.bound_nbytes >> 20
(8, 4, 32)
>>> Sizing(1 << 20, 256, 200, 2, 1 << 30).n_together
1
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError
from streamkit.remote.address import is_remote
from streamkit.remote.requests import GAP_NBYTES
from streamkit.schema import Field, Schema
from streamkit.units import whole
from streamkit.view import Spec

Ints = npt.NDArray[np.int64]

_SINGLES = 64  # samples made together when they are delivered one by one
_PREFETCH = 2  # tasks done ahead beyond those under way
_HANDED = 3  # batches that are no longer the loader's: the caller's last, and two that a framework holds ahead
_TOGETHER = 8  # small batches made by one task, at most: handing one over costs 0.1 ms, as much as making it
_TOGETHER_NBYTES = 16 << 20
_PART = 16  # samples of a batch that threads share, at least: a part costs 0.4 ms in which no other thread runs Python
_FAR_THREADS = 16
_USUAL_RATIO = {"zlib": 4, "varint": 8}  # on numbers; the index does not say the decoded size of ragged arrays


@dataclass(frozen=True)
class Sizing:
    """What a loader's threads do at once. A task makes several small batches, one large one, or some single samples. Threads
    share a batch of pictures that are decoded where the budget leaves fewer batches than threads, and the first ones.

    Attributes:
        sample_nbytes: of a sample while it is made [B].
        batch_size: samples a batch; None: single samples.
        n_batches: in an epoch.
        n_threads: that make them; 0: the caller's.
        budget_nbytes: for everything [B].
        scratch_nbytes: that a task takes besides while it is made: stored bytes [B].
        picture_nbytes: that a thread takes besides while it decodes: a picture before it fits [B].
        kept_nbytes: decoded chunks, or stretches from a server, kept [B].
        taken_nbytes: of those, of a sample in stretches [B]. What tasks under way take is half of them at most, so that none
            goes before it was used; 0 where nothing is taken from there.
        ragged: batches differ in size.
        decoding: pictures are, so that threads may share a batch.
    """

    sample_nbytes: int
    batch_size: int | None
    n_batches: int
    n_threads: int
    budget_nbytes: int
    scratch_nbytes: int = 0
    picture_nbytes: int = 0
    kept_nbytes: int = 0
    taken_nbytes: int = 0
    ragged: bool = False
    decoding: bool = False

    @cached_property
    def n_together(self) -> int:
        """Batches (or single samples) made by one task; every thread gets several tasks an epoch."""
        if self.batch_size is None:
            return _SINGLES
        if self.n_threads == 0:
            return 1  # nothing is handed over
        room = min(_TOGETHER_NBYTES, self._room // (self.n_threads + _PREFETCH + 1))
        fitting = room // max(1, self.sample_nbytes * self.batch_size)
        if self.taken_nbytes:
            fitting = min(fitting, self._n_fed // self.n_threads)
        return max(1, min(_TOGETHER, fitting, self.n_batches // (4 * max(1, self.n_threads))))

    @cached_property
    def task_nbytes(self) -> int:
        """What one task makes [B]."""
        return self.sample_nbytes * (self.batch_size or 1) * self.n_together

    @cached_property
    def n_parts(self) -> int:
        """Threads that make one batch, so that none is idle."""
        wanted = min(self._n_most, -(-self.n_threads // self._fitting))
        return max(1, wanted if self._all_may else min(wanted, self._n_allowed // self.depth))

    def n_parts_of(self, place: int) -> int:
        """Threads that make the batch that comes at this place, counted from where reading begins. All else waits for the
        first. Threads that then began one batch each would end them all at once, much later; so the next are shared by
        fewer and fewer, and each is there when those before it are used up."""
        if self._all_may:
            return max(self.n_parts, -(-3 * self._n_most // (3 + place)))
        return self.n_parts if place else max(1, min(self._n_most, self._n_allowed - self.depth + 1))

    @cached_property
    def _n_most(self) -> int:
        shared = self.decoding and self.batch_size is not None and self.n_together == 1
        return min(self.n_threads, (self.batch_size or 0) // _PART) if shared else 1

    @cached_property
    def _all_may(self) -> bool:
        return self._n_allowed == self.n_threads

    @cached_property
    def _n_allowed(self) -> int:
        """Threads that may be busy: one a task, and more as far as the budget holds what they decode."""
        spare = self.budget_nbytes - self._bound(self._n_alone)
        more = max(0, spare // self.picture_nbytes) if self.picture_nbytes else self.n_threads
        return min(self.n_threads, self._n_alone + more)

    @cached_property
    def depth(self) -> int:
        """Tasks under way or waiting: as many as the budget holds beside the one delivered, at least one."""
        wanted = self.n_threads + _PREFETCH
        return min(wanted, self._fitting, max(1, self._n_fed // self.n_together) if self.taken_nbytes else wanted)

    @cached_property
    def _n_fed(self) -> int:
        """Batches whose stretches may be in use at once."""
        return self.kept_nbytes // 2 // (self.taken_nbytes * (self.batch_size or 1))

    @cached_property
    def _fitting(self) -> int:
        return max(1, self._room // max(1, self.task_nbytes) - 1)

    @cached_property
    def n_buffers(self) -> int:
        """Arrays of one size worth keeping: two a batch may be under way, a picture's pixels and the same as floats."""
        return (2 * self.n_threads + _PREFETCH + 2) * self.n_together

    @cached_property
    def pool_nbytes(self) -> int:
        """Of buffers kept for use again [B]; those of other sizes than the batches under way have come on top of these."""
        return self.budget_nbytes // (8 if self.ragged else 2)

    @cached_property
    def bound_nbytes(self) -> int:
        """What all of it takes at most [B]: tasks, batches handed over, scratch, chunks, and buffers of other sizes."""
        busy = max(self.depth * self.n_parts, self.n_parts_of(0) + self.depth - 1)
        return self._bound(max(1, min(self.n_threads, busy)))

    @cached_property
    def _n_alone(self) -> int:
        """Threads that are busy where each makes a task of its own."""
        return max(1, min(self.n_threads, self.depth))

    def _bound(self, n_busy: int) -> int:
        n_tasks = self.depth + 1 if self.n_threads else 1
        return n_tasks * self.task_nbytes + self._besides(self._n_alone, n_busy)

    @cached_property
    def _room(self) -> int:
        """What the budget leaves for tasks [B]."""
        n = max(1, self.n_threads)
        return max(0, self.budget_nbytes - self._besides(n, n))

    def _besides(self, n_tasks: int, n_busy: int) -> int:
        handed = _HANDED * self.sample_nbytes * (self.batch_size or 1)
        making = n_tasks * self.scratch_nbytes + n_busy * self.picture_nbytes
        return handed + making + self.kept_nbytes + (self.pool_nbytes if self.ragged else 0)


def scratch_nbytes(
    fields: Iterable[Field], columns: Mapping[str, npt.NDArray[Any]], batch: int, far: bool = False
) -> int:
    """What making a batch takes besides the batch [B]: its stored bytes, and arrays that are decoded before they fit.

    Args:
        fields: payloads delivered.
        columns: of the index.
        batch: samples a batch.
        far: from a server: near ranges come together, with the gaps between them.
    """
    total = 0
    for field in fields:
        lengths = columns.get(f"{field.name}.length")
        stored = batch * int(lengths.max()) if lengths is not None and len(lengths) else 0
        if field.is_encoded_image:
            total += stored
        elif lengths is not None and (field.encoding != "raw" or not field.fixed):
            total += stored * (1 + _USUAL_RATIO.get(field.encoding, 1))
        if far:
            total += stored + batch * GAP_NBYTES
    return total


def n_threads(asked: Any, path: object) -> int:
    """Threads of a loader of `path`: those asked for, or one a core; with a server they mostly wait, and cost little."""
    n = whole("num_workers", asked)
    if n is not None and n < 0:
        raise UsageError(f"num_workers is {n}, expected 0 or more")
    n_cores = len(os.sched_getaffinity(0))
    return n if n is not None else max(_FAR_THREADS, n_cores) if is_remote(path) else n_cores


def sample_nbytes(specs: Mapping[str, Spec], schema: Schema, columns: Mapping[str, npt.NDArray[Any]]) -> int:
    """Size of a sample while it is made [B]; of axes that vary, the longest stored sample counts."""
    total = 0
    for name, spec in specs.items():
        known = int(np.prod([d for d in spec.shape if d is not None], dtype=np.int64))
        item = 16 if spec.dtype == "string" else np.dtype(spec.dtype).itemsize
        shapes, lengths = (columns.get(f"{name}.{kind}") for kind in ("shape", "length"))
        if name in schema and schema[name].is_image:
            item += spec.dtype != "uint8"  # the pixels themselves
        if spec.dtype == "string" and lengths is not None and len(lengths):
            total += item + 4 * int(lengths.max())  # a str takes up to 4 bytes a character
        elif None not in spec.shape:
            total += known * item
        elif shapes is not None and len(shapes):
            total += int(shapes.max(axis=0).astype(np.int64).prod()) * item
        elif lengths is not None and len(lengths):
            total += int(lengths.max()) * _USUAL_RATIO.get(schema[name].encoding, 1)
    return total


def chunk_windows(chunked: Sequence[Field], shard_starts: Ints, rows: Ints, budget_nbytes: int) -> tuple[Ints, int]:
    """How rows that share chunks are to be shuffled.

    Args:
        chunked: chunked fields, all of the dataset's.
        shard_starts: first row of each shard, and the end, int64 (n_shards + 1,).
        rows: the chosen rows, int64 (n,).
        budget_nbytes: the loader's memory budget [B].

    Returns:
        Where a new chunk of the field with the longest ones begins among the chosen rows, [0, ..., n], int64; and how
        many chunks are mixed at once.
    """
    widest = max(chunked, key=lambda f: f.chunk_rows or 0)
    begins = np.zeros(int(shard_starts[-1]), np.int64)
    for start, stop in itertools.pairwise(shard_starts.tolist()):
        begins[start : stop : widest.chunk_rows] = 1
    nbytes = sum(f.sample_nbytes for f in chunked) * int(widest.chunk_rows or 1)
    chosen = np.cumsum(begins)[rows]
    bounds = np.r_[0, np.flatnonzero(np.diff(chosen)) + 1, len(rows)].astype(np.int64)
    return bounds, window(nbytes, budget_nbytes)


def window(nbytes: int, budget_nbytes: int) -> int:
    """How many chunks of so many bytes [B] are mixed at once."""
    return max(1, budget_nbytes // 16 // max(1, nbytes))
