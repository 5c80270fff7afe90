"""Files of a folder: positional reads of checked ranges through few descriptors.

>>> import tempfile, pathlib
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> (folder / "a.bin").write_bytes(b"0123456789")
10
>>> memory = np.empty(4, np.uint8)
>>> Files(folder).read("a.bin", np.array([2, 6]), np.array([2, 2]), memory, np.array([0, 2]), None)
>>> bytes(memory)
b'2367'
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit import native
from streamkit.atomic import os_error
from streamkit.digest import file_digest
from streamkit.errors import DamagedError, RefusedError, StreamkitError
from streamkit.forking import anew_in_children
from streamkit.guard import file_below, mend, regular_file
from streamkit.native import BadRange

# Descriptors held by one Files: FEW_OPEN, more while the process has half of `ulimit -n` to spare, never over a quarter of it
# (10,000 shards must work under `ulimit -n 64`). A range of a file that must be opened again costs 40 us more.
FEW_OPEN, MAX_OPEN = 32, 1024
Ints = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Ranges of one file: name, offsets, lengths and places in memory [B], int64 (n,); sums, uint32 (n,), or None."""

    name: str
    offsets: Ints
    lengths: Ints
    places: Ints
    crcs: npt.NDArray[np.uint32] | None


class Files:
    """The files of one folder by positional reads, through few descriptors: the least recently used is closed first.

    Safe in threads. A forked child drops what it inherited; pickle keeps the folder only.

    Args:
        root: the folder.
        missing: what an error about a file that is not there advises; None: to verify the folder.
    """

    def __init__(self, root: str | os.PathLike[str], missing: str | None = None) -> None:
        self.root, self.missing = Path(root), missing
        self.reset()
        anew_in_children(self)

    def reset(self) -> None:
        """Forget all descriptors without closing them: in a forked child they are the parent's."""
        self._lock = threading.Lock()
        self._fds: OrderedDict[str, int] = OrderedDict()
        self._in_use: dict[str, int] = {}
        self._n_most = min(FEW_OPEN, _quarter())

    def read(
        self,
        name: str,
        offsets: Ints,
        lengths: Ints,
        memory: npt.NDArray[np.uint8],
        places: Ints,
        crcs: npt.NDArray[np.uint32] | None,
    ) -> None:
        """Read ranges of file `name`; arguments as `native.read`.

        Raises:
            BadRange: a range is cut short or its crc32c differs.
            DamagedError: the file is missing.
            ResourceError: the system refused to read it.
        """
        with self.lease(name) as fd:
            try:
                native.read(np.full(len(offsets), fd), offsets, lengths, memory, places, crcs)
            except OSError as error:
                raise os_error(error, self.root / name) from error

    def read_parts(self, parts: Sequence[Part], memory: npt.NDArray[np.uint8]) -> None:
        """Read ranges of several files; `BadRange.i` counts over all parts.

        Raises:
            BadRange: a range is cut short or its crc32c differs, or its file is missing.
            ResourceError: the system refused to read it.
        """
        first = done = 0
        while done < len(parts):
            fds = self._take_some(parts[done:], first)
            some = parts[done : done + len(fds)]
            try:
                _read_together(fds, some, memory)
            except BadRange as bad:
                raise BadRange(first + bad.i, bad.reason) from None
            except OSError as error:
                raise os_error(error, self.root / some[0].name if len(some) == 1 else self.root) from error
            finally:
                for part in some:
                    self._give_back(part.name)
            first += sum(len(part.offsets) for part in some)
            done += len(some)

    def _take_some(self, parts: Sequence[Part], first: int) -> list[int]:
        """Descriptors of the first parts' files, as many as may be in use at once; of one at least. `first`: its number
        in the BadRange for a file that is missing."""
        fds: list[int] = []
        for part in parts:
            if fds and len(self._in_use) >= self._n_most:
                break
            try:
                fds.append(self._take(part.name))
            except StreamkitError as error:
                if fds:  # its turn comes after theirs
                    break
                if isinstance(error, DamagedError):
                    raise BadRange(first, error.what) from None
                raise
        return fds

    @contextmanager
    def lease(self, name: str) -> Iterator[int]:
        """The descriptor of a file, open as long as the context is. Raises as `read` for one that cannot be opened."""
        fd = self._take(name)
        try:
            yield fd
        finally:
            self._give_back(name)

    def _take(self, name: str) -> int:
        """The descriptor of a file, which stays open until it is given back."""
        with self._lock:
            fd = self._fds.pop(name, -1)
            if fd < 0:
                fd = open_for_reading(file_below(self.root, name), self.missing)
            self._fds[name] = fd
            self._in_use[name] = self._in_use.get(name, 0) + 1
            self._evict()
            return fd

    def _give_back(self, name: str) -> None:
        with self._lock:
            if self._in_use[name] == 1:
                del self._in_use[name]
            else:
                self._in_use[name] -= 1

    def _evict(self) -> None:
        """Close what is over the share, which grows while the process has descriptors to spare."""
        if len(self._fds) <= self._n_most:
            return
        most = min(MAX_OPEN, _quarter())
        if self._n_most < most and n_descriptors() + self._n_most <= 2 * _quarter():
            self._n_most *= 2
        self._n_most = min(self._n_most, most)
        for name in list(islice(self._fds, max(0, len(self._fds) - self._n_most))):
            if name not in self._in_use:
                os.close(self._fds.pop(name))

    def size(self, name: str) -> int:
        """Size of a file [B].

        Raises:
            DamagedError: it is missing.
            RefusedError: it is a link, a pipe or a device.
        """
        try:
            return regular_file(file_below(self.root, name)).st_size
        except FileNotFoundError:
            raise _missing(self.root / name, self.missing) from None
        except OSError as error:
            raise os_error(error, self.root / name) from error

    def digest(self, name: str) -> str:
        """BLAKE3 digest (hex) of a whole file.

        Raises:
            DamagedError: it is missing.
            RefusedError: it is a link.
            ResourceError: the system refused to read it.
        """
        with self.lease(name) as fd:
            try:
                return file_digest(fd)
            except OSError as error:
                raise os_error(error, self.root / name) from error

    def close(self) -> None:
        with self._lock:
            for name in [n for n in self._fds if n not in self._in_use]:
                os.close(self._fds.pop(name))

    def __del__(self) -> None:
        if os is None:
            return  # the interpreter's end, which closes them all
        for fd in getattr(self, "_fds", {}).values():
            os.close(fd)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "missing": self.missing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root, self.missing = state["root"], state["missing"]
        self.reset()
        anew_in_children(self)


def _read_together(fds: Sequence[int], parts: Sequence[Part], memory: npt.NDArray[np.uint8]) -> None:
    """Read ranges of open files in one call: a batch has a row or two of each of hundreds of shards."""
    of_ranges = np.repeat(np.array(fds, np.int32), [len(part.offsets) for part in parts])
    offsets, lengths, places = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    crcs = None if parts[0].crcs is None else np.concatenate([part.crcs for part in parts])
    native.read(of_ranges, offsets, lengths, memory, places, crcs)


def _quarter() -> int:
    """Of the descriptors that the process may have, at least one."""
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def n_descriptors() -> int:
    """How many the process has open; more than it may have, where there is none left to look with."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return sys.maxsize


def available_memory() -> int:
    """Memory that can be had without swapping [B]. Source: MemAvailable of proc(5)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def open_for_reading(path: Path, missing: str | None = None) -> int:
    """A descriptor of a file, which is no link. DamagedError with the advice `missing`; ResourceError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _missing(path, missing) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedError("this shard is a link, which may lead out of the dataset", shard=path.name) from None
        raise os_error(error, path) from error


def _missing(path: Path, hint: str | None) -> DamagedError:
    return DamagedError("this shard is missing", path=path, shard=path.name, hint=hint or mend(path.parent))
