"""Bad samples left out: each counted and logged once, and too many of them an error. What on_corrupt="skip" does.

A batch without its bad samples is shorter. Where it must not be, the next good samples of the epoch's order stand in: under
drop_remainder=True as many as are missing, so that shapes stay static, and else one for a batch in which nothing is
good. That is a rule on the data alone, so a batch is the same on every frontend, in every process and after a resume.

They are counted in a ledger that processes share with those they start: PyTorch's workers count together, and what one met
the others know, and leave out unread.

    >>> skips = Skips(n_samples=10, max_bad=0.1)
    >>> skips.good(np.array([4, 7]), n_least=1, following=lambda n: np.arange(n)).tolist()
    [4, 7]
    >>> skips.note(7, DamagedError("crc32c is 1, the index says 2", shard="train-00000.h5", record=7))
    >>> skips.good(np.array([4, 7]), n_least=2, following=lambda n: np.array([8, 9])).tolist()
    [4, 8]
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import DamagedError, RefusedError, StreamkitError
from streamkit.ledger import Ledger

Ints = npt.NDArray[np.int64]
log = logging.getLogger("streamkit")

_KINDS: dict[str, type[StreamkitError]] = {kind.__name__: kind for kind in (DamagedError, RefusedError)}
_FACTS = ("what", "path", "shard", "record", "offset", "key", "hint")


class Skips:
    """The bad samples met so far, here and in child processes. Safe in threads and forks.

    Args:
        n_samples: samples in an epoch.
        max_bad: share of them that may be bad.
    """

    def __init__(self, n_samples: int, max_bad: float) -> None:
        self.n_samples, self.max_bad = n_samples, max_bad
        self._ledger, self._read = Ledger(), 0
        self._bad: dict[int, tuple[str, StreamkitError]] = {}

    @property
    def bad(self) -> dict[int, StreamkitError]:
        """Row -> its error, in the order in which they were met."""
        return {row: error for row, (_, error) in list(self._known().items())}

    def _known(self) -> dict[int, tuple[str, StreamkitError]]:
        """What the ledger says, by its first line of each row: row -> (who wrote it, error)."""
        end, lines = self._ledger.after(self._read)
        for line in lines:
            try:
                row, who, kind, facts = json.loads(line)
            except ValueError:
                continue  # whoever wrote it was killed meanwhile
            self._bad.setdefault(row, (who, _KINDS[kind](**facts)))
        self._read = end  # last, so that threads at the same lines do no more than read them twice
        return self._bad

    def note(self, row: int, error: StreamkitError) -> None:
        """Count and log a bad sample, once over all processes. Raises DamagedError above `max_bad`, see `check`."""
        if row not in self._known():
            who = secrets.token_hex(8)
            facts = {name: getattr(error, name) for name in _FACTS}
            self._ledger.append(json.dumps([row, who, type(error).__name__, facts]).encode())
            first, known = self._known()[row]
            if first == who:
                log.warning("skipped %s", known)  # not `error`, whose frames hold the reader, and its files stay open
        self.check()

    def check(self) -> None:
        """Raise DamagedError when more samples are bad than `max_bad` allows; in every process the same."""
        n = math.floor(self.max_bad * self.n_samples) + 1
        if len(self._known()) < n:
            return
        _, error = list(self._bad.values())[n - 1]
        raise DamagedError(
            f"{n} of {self.n_samples} samples are bad, more than max_bad={self.max_bad} allows; the last: {error.what}",
            path=error.path,
            shard=error.shard,
            record=error.record,
            key=error.key,
            hint=f"Pass max_bad={self._allowing(n)} to go on without them. {error.hint}",
        )

    def _allowing(self, n: int) -> float:
        """A round share that allows `n` bad samples and some more: of few samples, the default allows none."""
        return next((share for share in (0.01, 0.05, 0.1, 0.25, 0.5) if n <= share * self.n_samples), 1.0)

    def good(self, rows: Ints, n_least: int, following: Callable[[int], Ints]) -> Ints:
        """`rows` without those known to be bad, filled up to `n_least` with the first good ones that follow."""
        if not self._known():
            return rows
        bad = np.fromiter(list(self._bad), np.int64)
        kept = rows[~np.isin(rows, bad)]
        if len(kept) >= n_least:
            return kept
        n_missing = n_least - len(kept)
        others = following(n_missing + len(bad))
        return np.concatenate([kept, others[~np.isin(others, bad)][:n_missing]])

    def chosen(self, rows: Ints, n_least: int, following: Callable[[int], Ints]) -> Ints:
        """As `good`. Raises DamagedError above `max_bad`, and where not one sample of the epoch is good."""
        self.check()
        chosen = self.good(rows, n_least, following)
        if len(chosen) < min(1, n_least):
            raise self.bad[int(rows[0])]
        return chosen

    def make(
        self,
        rows: Ints,
        make: Callable[[Ints], Any],
        row_of: Callable[[StreamkitError], int | None],
        n_least: int,
        following: Callable[[int], Ints],
    ) -> Any:
        """`make` of the good ones among `rows`; see the module for `n_least` and `following`.

        Args:
            rows: rows of the index, int64.
            make: reads and decodes rows; raises DamagedError or RefusedError at the first bad one.
            row_of: the row that such an error is about; None when it is about more than one.
            n_least: rows to hand to `make` at least.
            following: the first n rows in the order in which they may stand in.

        Raises:
            DamagedError: more bad samples than allowed, or damage that is no single sample's.
        """
        while True:
            chosen = self.chosen(rows, n_least, following)
            try:
                return make(chosen)
            except (DamagedError, RefusedError) as error:
                row = row_of(error)
                if row is None or row not in chosen:
                    raise
                self.note(row, error)
