"""Small samples on a server, many to a request: which rows come together, and where their bytes lie. Pure.

A stretch is a run of rows of one shard that take about 256 KiB there.

    >>> bounds(np.array([0, 20, 35]), np.array([15, 10])).tolist()
    [0, 15, 20, 30, 35]
    >>> Spans.of({"a": (np.array([10, 60]), np.array([40, 40])), "b": (np.array([50, 100]), np.array([6, 6]))})
    Spans(runs=[(10, 106)], shifts={'a': -10, 'b': -10}, nbytes=96)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.remote.requests import GAP_NBYTES, STRETCH_NBYTES

if TYPE_CHECKING:
    from streamkit.manifest import Manifest
    from streamkit.splits import Split

Ints = npt.NDArray[np.int64]

_SMALL_NBYTES = 64 << 10  # larger ones use a network's bandwidth one by one
_DENSE = 4  # times the bytes that are wanted, in which they lie; of a field spread wider its rows are asked for


def n_together(manifest: Manifest, split: Split) -> Ints | None:
    """Rows of a stretch of each shard, int64 (n_shards,); None where samples of a split are no small records in shards."""
    chunked = any(field.chunk_rows is not None for field in manifest.schema.payloads)
    if manifest.format == "folder" or chunked or not split.samples or split.nbytes > split.samples * _SMALL_NBYTES:
        return None
    return np.array([max(1, STRETCH_NBYTES * s.samples // max(1, s.nbytes)) for s in split.shards], np.int64)


def bounds(shard_starts: Ints, n_rows: Ints) -> Ints:
    """First row of each stretch, and the end, int64; a stretch has its shard's number of rows, or ends with the shard."""
    shards = zip(shard_starts[:-1].tolist(), shard_starts[1:].tolist(), n_rows.tolist(), strict=True)
    return np.concatenate([*(np.arange(a, b, n) for a, b, n in shards), shard_starts[-1:]]).astype(np.int64)


def touched(
    split: Split, shard_starts: Ints, n_rows: Ints, rows: Ints | tuple[int, int]
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Which stretches rows lie in, going through them in order.

    Args:
        split: what they are of.
        shard_starts: first row of each shard, and the end, int64 (n_shards + 1,).
        n_rows: see `n_together`.
        rows: a run (first, past-the-last), or int64 (n,).

    Returns:
        Where another stretch begins among the rows, [0, ..., n], int64 (n_stretches + 1,); and what each of them takes in
        its shard [B], float64 (n_stretches,).
    """
    firsts = bounds(shard_starts, n_rows)
    if isinstance(rows, tuple):  # as many rows as there are need no numbers of their own here
        start, stop = np.searchsorted(firsts, [rows[0] + 1, rows[1]])
        borders = np.r_[rows[0], firsts[start:stop], rows[1]] - rows[0]
        numbers = np.arange(start - 1, stop)
    else:
        numbers = np.searchsorted(firsts, rows, side="right") - 1
        borders = np.r_[0, np.flatnonzero(np.diff(numbers)) + 1, len(rows)].astype(np.int64)
        numbers = numbers[borders[:-1]]
    shard = np.searchsorted(shard_starts, firsts[numbers], side="right") - 1
    means = np.array([s.nbytes / max(1, s.samples) for s in split.shards])
    return borders, (firsts[numbers + 1] - firsts[numbers]) * means[shard]


class Spans(NamedTuple):
    """Where the payloads of a stretch lie in its shard, and in memory that holds them one behind the other.

    Attributes:
        runs: [start, stop) in the shard [B].
        shifts: field -> what makes an offset in the shard one in memory [B].
        nbytes: of the memory.
    """

    runs: list[tuple[int, int]]
    shifts: dict[str, int]
    nbytes: int

    @classmethod
    def of(cls, ranges: Mapping[str, tuple[Ints, Ints]]) -> Spans:
        """Of the offsets and lengths [B] of some rows of each field. A field that is a small part of where it lies comes
        along where another brings it, and is left out elsewhere."""
        spans = {n: (int(at.min()), int((at + length).max())) for n, (at, length) in ranges.items() if len(at)}
        dense = {n for n, (a, b) in spans.items() if b - a <= _DENSE * max(1, int(ranges[n][1].sum()))}
        runs: list[tuple[int, int]] = []
        for start, stop in sorted(spans[name] for name in dense):
            if runs and start <= runs[-1][1] + GAP_NBYTES:
                runs[-1] = runs[-1][0], max(stop, runs[-1][1])
            else:
                runs.append((start, stop))
        shifts: dict[str, int] = {}
        nbytes = 0
        for i, (start, stop) in enumerate(runs):
            inside = {
                n: ends for n, ends in spans.items() if start - GAP_NBYTES <= ends[0] and ends[1] <= stop + GAP_NBYTES
            }
            start, stop = min(a for a, _ in inside.values()), max(b for _, b in inside.values())
            runs[i] = start, stop
            shifts |= dict.fromkeys(inside, nbytes - start)
            nbytes += stop - start
        return cls(runs, shifts, nbytes)
