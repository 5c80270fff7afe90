"""One large batch made by several threads: each makes the pictures of a run of its rows, and the last one finishes it.

So an epoch's first batch is there as soon as all threads can make it, and the next ones when they are wanted; and a few large
ones keep many threads busy where a batch a thread would take more memory than there is. Else a batch is one thread's: each
part costs what a batch costs.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> loader = streamkit.Loader(out, split="val")
>>> parted = Parted(loader._maker, lambda: np.arange(10), 0, 2, lambda made: made["image"].shape, lambda: [])
>>> [job() for job in parted.jobs()]
[[], [(10, 32, 32, 3)]]
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.batch import BatchMaker
from streamkit.errors import StreamkitError
from streamkit.pictures import Slots

Ints = npt.NDArray[np.int64]


class Parted:
    """A batch under way.

    Args:
        maker: makes its samples.
        choose: gives its rows; called once, by the thread that begins.
        epoch: of random crops and flips.
        n_parts: that threads make.
        finish: makes the batch of what the maker made.
        whole: makes it at once, in a list. It is asked where data are bad: it says what is wrong, or does without them.
    """

    def __init__(
        self,
        maker: BatchMaker,
        choose: Callable[[], Ints],
        epoch: int,
        n_parts: int,
        finish: Callable[[dict[str, Any]], Any],
        whole: Callable[[], list[Any]],
    ) -> None:
        self._maker, self._choose, self._epoch, self._n_parts = maker, choose, epoch, n_parts
        self._finish, self._whole = finish, whole
        self._lock = threading.Lock()
        self._begun: tuple[Ints, dict[str, Slots]] | None = None
        self._n_left, self._failed = n_parts, False

    def jobs(self) -> list[Callable[[], list[Any]]]:
        """A job a part, for any thread each. The one that ends last gives the batch, the others nothing."""
        return [partial(self._make, k) for k in range(self._n_parts)]

    def _make(self, part: int) -> list[Any]:
        try:
            self._fill(part)
        except StreamkitError:  # `whole` meets it again
            self._failed = True
        with self._lock:
            self._n_left -= 1
            if self._n_left:
                return []
        made = self._made()
        return self._whole() if made is None else [self._finish(made)]

    def _fill(self, part: int) -> None:
        begun = self._begin()
        if begun is None:
            return
        rows, slots = begun
        start, stop = (len(rows) * k // self._n_parts for k in (part, part + 1))
        if start < stop:
            own = {name: every.part(slice(start, stop)) for name, every in slots.items()}
            self._maker.fill(own, rows[start:stop], self._epoch)

    def _begin(self) -> tuple[Ints, dict[str, Slots]] | None:
        """The rows and where their pictures go; None once something failed."""
        with self._lock:
            if self._begun is None and not self._failed:
                try:
                    rows = self._choose()
                    self._begun = rows, self._maker.slots(len(rows))
                except StreamkitError:
                    self._failed = True
            return None if self._failed else self._begun

    def _made(self) -> dict[str, Any] | None:
        """What the maker made, which from now on is held by whom it is given; None where something failed."""
        begun, self._begun = self._begun, None
        if self._failed or begun is None:
            return None
        rows, slots = begun
        try:
            return self._maker.finish(slots, rows)
        except StreamkitError:
            return None
