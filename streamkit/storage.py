"""Files of a folder: positional reads of checked ranges through few descriptors, or from where they are mapped.

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
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit import native
from streamkit.atomic import os_error
from streamkit.digest import file_digest
from streamkit.errors import DamagedError, RefusedError
from streamkit.forking import anew_in_children
from streamkit.guard import file_below, mend, regular_file
from streamkit.native import BadRange

MAX_OPEN = 32  # descriptors held by one Files; a dataset of 10,000 shards must work under `ulimit -n 64`
Ints = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Ranges of one file: name, offsets, lengths and places in memory [B], int64 (n,); sums, uint32 (n,), or None."""

    name: str
    offsets: Ints
    lengths: Ints
    places: Ints
    crcs: npt.NDArray[np.uint32] | None


class Files:
    """The files of one folder by positional reads: at most MAX_OPEN descriptors, the least recently used closed first.

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
        with self._lease(name) as fd:
            try:
                native.read(fd, offsets, lengths, memory, places, crcs)
            except OSError as error:
                raise os_error(error, self.root / name) from error

    def read_parts(self, parts: Sequence[Part], memory: npt.NDArray[np.uint8]) -> None:
        """Read ranges of several files; `BadRange.i` counts over all parts.

        Raises:
            BadRange: a range is cut short or its crc32c differs, or its file is missing.
            ResourceError: the system refused to read it.
        """
        first = 0
        for part in parts:
            try:
                self.read(part.name, part.offsets, part.lengths, memory, part.places, part.crcs)
            except BadRange as bad:
                raise BadRange(first + bad.i, bad.reason) from None
            except DamagedError as error:
                raise BadRange(first, error.what) from None
            first += len(part.offsets)

    @contextmanager
    def _lease(self, name: str) -> Iterator[int]:
        with self._lock:
            fd = self._fds.pop(name, -1)
            if fd < 0:
                fd = open_for_reading(file_below(self.root, name), self.missing)
            self._fds[name] = fd
            self._in_use[name] = self._in_use.get(name, 0) + 1
            self._evict()
        try:
            yield fd
        finally:
            with self._lock:
                if self._in_use[name] == 1:
                    del self._in_use[name]
                else:
                    self._in_use[name] -= 1

    def _evict(self) -> None:
        n_most = min(MAX_OPEN, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))  # several loaders at once
        for name in list(self._fds)[: max(0, len(self._fds) - n_most)]:
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
        with self._lease(name) as fd:
            try:
                return file_digest(fd)
            except OSError as error:
                raise os_error(error, self.root / name) from error

    def close(self) -> None:
        with self._lock:
            for name in [n for n in self._fds if n not in self._in_use]:
                os.close(self._fds.pop(name))

    def __del__(self) -> None:
        for fd in getattr(self, "_fds", {}).values():
            os.close(fd)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "missing": self.missing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root, self.missing = state["root"], state["missing"]
        self.reset()
        anew_in_children(self)


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
            with files._lease(names[i]) as fd:
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
