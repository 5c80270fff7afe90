"""Which requests bring which ranges: near ranges in one request, long ones in several. Pure.

Many requests are under way at once, so their round trips overlap; what a request costs is a third of a millisecond of this
process's time, in which 100 MB/s bring 32 KB: reading such a gap over is as cheap as asking twice.

    >>> plan = Requests.of(np.array([900, 0, 40]), np.array([50, 30, 10]), gap_nbytes=20, longest_nbytes=100)
    >>> list(zip(plan.starts.tolist(), plan.stops.tolist()))
    [(0, 50), (900, 950)]
    >>> plan.run_of.tolist()    # which run of bytes each range lies in
    [1, 0, 0]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

GAP_NBYTES = 32 << 10
LONGEST_NBYTES = 8 << 20
STRETCH_NBYTES = 256 << 10  # of a request ahead of need: its cost is a tenth of what its bytes take at 100 MB/s


@dataclass(frozen=True)
class Requests:
    """The requests for some ranges of one file, in ascending order.

    Attributes:
        starts, stops: of each request's bytes in the file [B], int64 (n_requests,). Requests of one run touch.
        run_of: number of the run that each range lies in whole, int64 (n_ranges,).
        run_starts, run_stops: of each run [B], int64 (n_runs,).
        first: the first request of each run, and the end, int64 (n_runs + 1,).
    """

    starts: Ints
    stops: Ints
    run_of: Ints
    run_starts: Ints
    run_stops: Ints
    first: Ints

    @classmethod
    def of(
        cls, offsets: Ints, lengths: Ints, gap_nbytes: int = GAP_NBYTES, longest_nbytes: int = LONGEST_NBYTES
    ) -> Requests:
        """Plan ranges given by offset and length [B], int64 (n,), in any order; they may overlap or be empty.

        A run ends where it would grow longer than `longest_nbytes`; a range that is longer by itself is cut.
        """
        order = np.argsort(offsets, kind="stable")
        run_of = np.zeros(len(offsets), np.int64)
        starts: list[int] = []
        stops: list[int] = []
        for i, start, length in zip(order.tolist(), offsets[order].tolist(), lengths[order].tolist(), strict=True):
            stop = start + length
            inside = bool(starts) and stop <= stops[-1]
            near = bool(starts) and start <= stops[-1] + gap_nbytes and stop - starts[-1] <= longest_nbytes
            if not (inside or near):
                starts.append(start)
                stops.append(stop)
            stops[-1] = max(stops[-1], stop)
            run_of[i] = len(starts) - 1
        run_starts, run_stops = np.array(starts, np.int64), np.array(stops, np.int64)
        n_parts = -(-(run_stops - run_starts) // longest_nbytes)
        first = np.concatenate([[0], np.cumsum(n_parts)]).astype(np.int64)
        number = np.arange(first[-1]) - np.repeat(first[:-1], n_parts)
        begins = np.repeat(run_starts, n_parts) + number * longest_nbytes
        ends = np.minimum(begins + longest_nbytes, np.repeat(run_stops, n_parts))
        return cls(begins, ends, run_of, run_starts, run_stops, first)
