"""Files mapped into memory.

>>> import tempfile, pathlib
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> (folder / "a.bin").write_bytes(b"0123456789")
10
>>> memory, one = np.empty(2, np.uint8), np.ones(1, np.int64)
>>> if native.available():
...     Maps(Files(folder), ["a.bin"]).read(0 * one, 4 * one, 2 * one, memory, 0 * one, None)
...     assert bytes(memory) == b"45"
"""

from __future__ import annotations

import resource
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from streamkit import native
from streamkit.storage import Files

Ints = npt.NDArray[np.int64]


_FETCHED = 8  # one page in so many ranges that had to come from the disk is too many
_PAUSES = 16, 4096  # calls until maps are tried again: the first time, and at most


class Maps:
    """Files mapped into memory, for what lies in the page cache: no system call a range, and half the time.

    The kernel drops mapped pages whenever it needs the room; they are no part of the process's anonymous memory. What has
    to be fetched from the disk comes a page at a time, for which reading by position is better.

    Args:
        files: where they lie.
        names: the files, all mapped at once.
        watched: they may be more than the page cache holds, so it is seen to that they are in it.

    Raises:
        OSError: they cannot be mapped.
    """

    def __init__(self, files: Files, names: Sequence[str], watched: bool = False) -> None:
        self._watched, self._pause, self._n_left = watched, _PAUSES[0], 0
        self._lock = threading.Lock()
        self._sizes = np.array([files.size(name) for name in names], np.int64)
        self._bases = np.zeros(len(names), np.int64)
        for i in np.flatnonzero(self._sizes).tolist():
            with files.lease(names[i]) as fd:
                self._bases[i] = native.map_file(fd, int(self._sizes[i]))
        files.close()  # a map needs no descriptor
        weakref.finalize(self, _unmap, native.unmapper(), self._bases, self._sizes).atexit = False

    def skips(self) -> bool:
        """True, for some calls, after pages had to be fetched from the disk: this range is to be read by position."""
        if self._n_left == 0:
            return False
        with self._lock:
            self._n_left = max(0, self._n_left - 1)
        return True

    def read(
        self,
        numbers: Ints,
        offsets: Ints,
        lengths: Ints,
        memory: npt.NDArray[np.uint8],
        places: Ints,
        crcs: npt.NDArray[np.uint32] | None,
    ) -> None:
        """Read ranges of the files with these numbers; the other arguments as `native.read`. The caller has checked
        that no range leaves its file. Raises BadRange."""
        before = _n_fetched() if self._watched else 0
        native.copy(self._bases[numbers] + offsets, lengths, memory, places, crcs)
        if self._watched:
            self._learn(_FETCHED * (_n_fetched() - before) > len(numbers))

    def _learn(self, cold: bool) -> None:
        """What one call has met. Of threads that meet the same cold moment, the first alone makes the pause longer."""
        with self._lock:
            if not cold:
                self._pause = _PAUSES[0]
            elif self._n_left == 0:
                self._n_left, self._pause = self._pause, min(2 * self._pause, _PAUSES[1])


def _n_fetched() -> int:
    """Pages that this thread has waited for, for the disk."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def _unmap(unmap: Callable[[int, int], None], bases: Ints, sizes: Ints) -> None:
    for base, size in zip(bases.tolist(), sizes.tolist(), strict=True):
        if base:
            unmap(base, size)
