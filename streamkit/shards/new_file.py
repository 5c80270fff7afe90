"""A new HDF5 file, written so that a disk which will not have it gives an OSError and nothing worse.

libhdf5 flushes what is left of a dataset when its last handle goes, where h5py can only drop an error; and a file that cannot
be closed takes the process down at exit. So libhdf5 is told that every write went well, and the first one that did not is
raised at the end.

>>> import tempfile
>>> with new_file(Path(tempfile.mkdtemp(), "a.h5")) as file:
...     file["x"] = [1, 2]
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


@contextmanager
def new_file(path: Path) -> Iterator[Any]:
    """Write an HDF5 file; OSError at the end where the disk did not have all of it."""
    disk = _Disk(path, "w+")
    try:
        with h5py.File(disk, "w", libver="earliest", track_order=False) as file:
            yield file
    except Exception:
        if disk.error is None:
            raise
    finally:
        disk.close()
    if disk.error is not None:
        raise disk.error


class _Disk(io.FileIO):
    """A file that notes its first error, and claims from then on to hold what it was given."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (got := super().readinto(view[done:])):
            done += got
        if self.error is not None:
            view[done:] = bytes(len(view) - done)
            return len(view)
        return done
