"""Blocks of files from a server, kept on local disk: shared by all processes of a user, never stale, never over the limit.

A block is named by the digest of the file it belongs to and by its number, so that another version of a file has other
blocks: nothing has to be compared or expired. What a block holds is believed only range by range, by the crc32c of what
is taken from it; a wrong one is brought again.

    CACHE/streamkit-1000/ab/ab12..ef-4096-7       block 7 of that file, of 4096 bytes; 1000 is the user's number
    CACHE/streamkit-1000/ab/ab12..ef-4096-7.part  being brought; locked by who brings it, so that others wait for it

Processes that end anywhere leave whole blocks or unlocked parts, which the next one brings. Removing a block that somebody
reads takes nothing from them: they have it open. Over the limit, those go first that were not used for longest.

    >>> import tempfile
    >>> blocks = Blocks(tempfile.mkdtemp(), limit_nbytes=1 << 20)
    >>> with blocks.claim(BlockName("ab" * 32, 0)) as claim:
    ...     claim.fill(b"0123456789")
    >>> with blocks.open(BlockName("ab" * 32, 0)) as file:
    ...     os.pread(file, 3, 4)
    b'456'
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from streamkit.errors import UsageError
from streamkit.units import size

BLOCK_NBYTES = 1 << 20
LIMIT_NBYTES = 32 << 30  # without cache_limit

_log = logging.getLogger("streamkit")


class BlockName(NamedTuple):
    """BLAKE3 digest (hex) of a file, and the number of one of its blocks."""

    digest: str
    number: int


class Blocks:
    """The blocks below one folder. Safe in threads and processes; pickles small.

    Args:
        folder: any folder of the user's; a folder of its own is made in it, for this user alone.
        limit_nbytes: of all blocks there together [B].

    Raises:
        UsageError: a limit below 0.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_nbytes: int = LIMIT_NBYTES) -> None:
        if limit_nbytes < 0:
            raise UsageError(f"cache_limit is {limit_nbytes} bytes, expected more")
        self.parent, self.limit_nbytes = Path(folder), limit_nbytes
        self.folder = self.parent / f"streamkit-{os.getuid()}"
        self._below = f"{self.folder}/"
        self._lock = threading.Lock()
        self._added = limit_nbytes  # bytes added since the folder was last measured; measured before the first is
        self.usable = True
        self._make()

    @classmethod
    def of(cls, folder: str | os.PathLike[str] | None, limit: int | str | None) -> Blocks | None:
        """As a user names them: None for no cache, or for the usual limit; "100GB". UsageError: a limit without a cache."""
        if folder is None:
            if limit is not None:
                raise UsageError("cache_limit needs a folder to hold to it", hint="Pass cache_dir= as well.")
            return None
        return cls(folder, LIMIT_NBYTES if limit is None else size(limit))

    def _make(self) -> None:
        """Make the folder; where that is not possible or it is another user's, it is not usable."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            facts = os.lstat(self.folder)
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and os.access(self.folder, os.W_OK):
                return
            reason = "it is not this user's"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """Cache nothing from now on, with one warning, however many threads find out at once."""
        with self._lock:
            known, self.usable = not self.usable, False
        if not known:
            _log.warning("%s: nothing is cached there: %s", self.parent, reason)

    def _path(self, name: BlockName) -> str:
        # A Path would take as long to make as the system call that it is for.
        return f"{self._below}{name.digest[:2]}/{name.digest}-{BLOCK_NBYTES}-{name.number}"

    @contextlib.contextmanager
    def open(self, name: BlockName) -> Iterator[int]:
        """A descriptor of a block. Raises FileNotFoundError when it is not there."""
        fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            with contextlib.suppress(OSError):  # another process may just have removed it
                os.utime(fd)
            yield fd
        finally:
            os.close(fd)

    def has(self, name: BlockName) -> bool:
        """True when the block is there."""
        return os.path.exists(self._path(name))

    def drop(self, name: BlockName) -> None:
        """Remove a block that turned out wrong."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def claim(self, name: BlockName) -> Claim:
        """A try to be the one who brings a block."""
        return Claim(self, name)

    def added(self, nbytes: int) -> None:
        """Note that a block came in. What is there is measured after every hundredth of the limit, and cut to nine tenths:
        so ten processes that fill at once keep it."""
        with self._lock:
            self._added += nbytes
            if self._added <= self.limit_nbytes // 100:
                return
            self._added = 0
            self._evict()

    def _evict(self) -> None:
        found = []
        for folder in self._folders():
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        found.append((facts.st_mtime_ns, facts.st_size, entry.path))
        total = sum(nbytes for _, nbytes, _ in found)
        room = self.limit_nbytes - self.limit_nbytes // 10
        for _, nbytes, path in sorted(found):
            if total <= room:
                break
            if path.endswith(".part") and _is_locked(path):
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= nbytes

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.parent, "limit_nbytes": self.limit_nbytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Claim:
    """The right to bring one block, held by a lock on its part; it ends with the process that holds it.

    Attributes:
        mine: False where another holds it, or the block is there already.
    """

    def __init__(self, blocks: Blocks, name: BlockName) -> None:
        self.blocks, self.name = blocks, name
        self.path = blocks._path(name)
        self.mine = False
        self._fd = -1

    def __enter__(self) -> Claim:
        self.take()
        return self

    def take(self) -> bool:
        """Try to hold it; False where another does, or the block is there by now."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(self.path), 0o700)
            fd = os.open(f"{self.path}.part", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            self.blocks._give_up((error.strerror or str(error)).lower())
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(fd), os.stat(f"{self.path}.part"))  # else its holder has just renamed it
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same or self.blocks.has(self.name):
            if same:
                os.unlink(f"{self.path}.part")
            os.close(fd)
            return False
        self._fd, self.mine = fd, True
        return True

    def fill(self, data: bytes | memoryview) -> None:
        """Write the block whole and let it be seen. Where the disk does not take it, nothing is cached from now on."""
        try:
            os.ftruncate(self._fd, 0)
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], done)
            os.rename(f"{self.path}.part", self.path)
        except FileNotFoundError:
            return  # over the limit, what another brought last may have put this out before it was there
        except OSError as error:
            self.blocks._give_up((error.strerror or str(error)).lower())
            return
        self.blocks.added(len(data))

    def __exit__(self, *exc: object) -> None:
        if not self.mine:
            return
        self.mine = False
        if not self.blocks.has(self.name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}.part")
        os.close(self._fd)


def _is_locked(path: str) -> bool:
    """True while somebody brings this part."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def wait_until(ready: Any, seconds: float) -> bool:
    """Look every hundredth of a second whether `ready()`; False when it took longer than so many seconds."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
