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

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from streamkit import native
from streamkit.storage import Files

Ints = npt.NDArray[np.int64]


class Maps:
    """Files mapped into memory, for splits that stay in the page cache: no system call a range, and half the time.

    The kernel drops mapped pages whenever it needs the room; they are no part of the process's anonymous memory.

    Args:
        files: where they lie.
        names: the files, all mapped at once.

    Raises:
        OSError: they cannot be mapped.
    """

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self._sizes = np.array([files.size(name) for name in names], np.int64)
        self._bases = np.zeros(len(names), np.int64)
        for i in np.flatnonzero(self._sizes).tolist():
            with files.lease(names[i]) as fd:
                self._bases[i] = native.map_file(fd, int(self._sizes[i]))
        files.close()  # a map needs no descriptor
        weakref.finalize(self, _unmap, native.unmapper(), self._bases, self._sizes).atexit = False

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
        native.copy(self._bases[numbers] + offsets, lengths, memory, places, crcs)


def _unmap(unmap: Callable[[int, int], None], bases: Ints, sizes: Ints) -> None:
    for base, size in zip(bases.tolist(), sizes.tolist(), strict=True):
        if base:
            unmap(base, size)
