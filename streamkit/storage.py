"""Files: positional reads of checked ranges through few descriptors, and writes that appear whole or not at all.

>>> import tempfile, pathlib
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> write_atomic(folder / "a.bin", b"0123456789")
>>> buffer = memoryview(bytearray(4))
>>> Files(folder).read("a.bin", [2, 6], [buffer[:2], buffer[2:]], None)
>>> bytes(buffer)
b'2367'
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crc32c import crc32c

from streamkit.errors import DamagedError, ResourceError, StreamkitError

MAX_OPEN = 32  # descriptors held by one Files; a dataset of 10,000 shards must work under `ulimit -n 64`
_MAX_IOV = 512  # half of Linux's IOV_MAX, gaps included


class Files:
    """The open files of one folder: at most MAX_OPEN descriptors, the least recently used closed first.

    Safe in threads. A forked child drops what it inherited; pickle keeps the folder only.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._fds: OrderedDict[str, int] = OrderedDict()
        self._in_use: dict[str, int] = {}
        self._pid = os.getpid()

    def read(self, name: str, offsets: Sequence[int], views: Sequence[memoryview], crcs: Sequence[int] | None) -> None:
        """Fill `views[i]` with the bytes of file `name` from `offsets[i]` [B] on, and check each crc32c.

        Offsets must ascend; ranges that touch are read in one call.

        Raises:
            BadRange: a range is cut short or its crc32c differs; `.i` says which.
            DamagedError: the file is missing.
        """
        with self._lease(name) as fd:
            i, n = 0, len(offsets)
            while i < n:
                j, end = i + 1, offsets[i] + len(views[i])
                while j < n and offsets[j] == end and j - i < _MAX_IOV:
                    end += len(views[j])
                    j += 1
                wanted = end - offsets[i]
                if os.preadv(fd, views[i:j], offsets[i]) != wanted:
                    self._read_slowly(fd, offsets[i:j], views[i:j], i)
                if crcs is not None:
                    for k in range(i, j):
                        if (found := crc32c(views[k])) != crcs[k]:
                            raise BadRange(k, f"crc32c is {found:08x}, the index says {crcs[k]:08x}")
                i = j

    def _read_slowly(self, fd: int, offsets: Sequence[int], views: Sequence[memoryview], first: int) -> None:
        """Read range by range after a short read: a signal, a 2 GiB limit, or the end of the file."""
        for k, (offset, view) in enumerate(zip(offsets, views, strict=True)):
            done = 0
            while done < len(view):
                got = os.preadv(fd, [view[done:]], offset + done)
                if got == 0:
                    raise BadRange(first + k, f"the file ends {len(view) - done} bytes short")
                done += got

    @contextmanager
    def _lease(self, name: str) -> Iterator[int]:
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            fd = self._fds.pop(name, -1)
            if fd < 0:
                fd = _open(self.root / name)
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
        for name in list(self._fds)[: max(0, len(self._fds) - MAX_OPEN)]:
            if name not in self._in_use:
                os.close(self._fds.pop(name))

    def size(self, name: str) -> int:
        """Size of a file [B]; DamagedError when it is missing."""
        try:
            return os.stat(self.root / name, follow_symlinks=False).st_size
        except FileNotFoundError:
            raise DamagedError("this shard is missing", shard=name, hint="Run `streamkit verify`.") from None

    def close(self) -> None:
        with self._lock:
            for name in [n for n in self._fds if n not in self._in_use]:
                os.close(self._fds.pop(name))

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == os.getpid():
            for fd in self._fds.values():
                os.close(fd)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root = state["root"]
        self._reset()


class BadRange(Exception):
    """A range whose bytes are not what the index says. The reader turns it into a DamagedError with shard and key."""

    def __init__(self, i: int, reason: str) -> None:
        super().__init__(reason)
        self.i, self.reason = i, reason


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise DamagedError("this shard is missing", shard=path.name, hint="Run `streamkit verify`.") from None
    except OSError as error:
        raise os_error(error, path) from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name; on success fsync it and rename it to `path`, else remove it."""
    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        yield temporary
        fd = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, final)
        sync_folder(final.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise os_error(error, final) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_REASONS = {
    errno.ENOSPC: ("no space left on the device", "Free space, then run the same command again: it continues."),
    errno.EDQUOT: ("the disk quota is used up", "Free space, then run the same command again: it continues."),
    errno.EFBIG: ("the file would be larger than allowed", "Raise the limit (ulimit -f) or lower --shard-size."),
    errno.EACCES: ("permission denied", "Give this user access to it."),
    errno.EPERM: ("operation not permitted", "Give this user access to it."),
    errno.EROFS: ("the file system is read-only", "Choose another output folder."),
    errno.EMFILE: ("too many open files", "Raise the limit (ulimit -n)."),
}


def os_error(error: OSError, path: str | os.PathLike[str]) -> StreamkitError:
    """The ResourceError that says what the operating system refused, and what to do."""
    what, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), "Check the disk, then run it again."))
    return ResourceError(what, path=path, hint=hint)
