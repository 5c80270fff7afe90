"""Files that appear whole or not at all, and what the system says when they cannot.

>>> import tempfile, pathlib
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> write_atomic(folder / "a.bin", b"0123456789")
>>> [path.name for path in folder.iterdir()], (folder / "a.bin").read_bytes()
(['a.bin'], b'0123456789')
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamkit.errors import ResourceError, StreamkitError

_EARLY_NBYTES = 16 << 20
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and do not wait


class Early:
    """Has the disk begin with a file that is being written from front to end, so that its fsync is soon done.

    Args:
        fd: of the file.
        start: where writing begins [B].
    """

    def __init__(self, fd: int, start: int = 0) -> None:
        self._fd, self._begun = fd, start
        self._begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
        if self._begin is not None:
            self._begin.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

    def written(self, stop: int) -> None:
        """The file has its bytes up to `stop` now [B]."""
        if self._begin is not None and stop - self._begun >= _EARLY_NBYTES:
            self._begin(self._fd, self._begun, stop - self._begun, _WRITE)  # only advice: fsync says what went wrong
            self._begun = stop


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name; on success fsync it and rename it to `path`, else remove it."""
    final = Path(path)
    stem = os.fsdecode(os.fsencode(final.name)[:200])  # a name of 255 bytes leaves no room for more
    temporary = final.with_name(f".{stem}.tmp-{uuid.uuid4().hex[:12]}")
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
        _forget(temporary)
        raise os_error(error, final) from error
    except BaseException:
        _forget(temporary)
        raise


def _forget(temporary: Path) -> None:
    with suppress(OSError):  # it was never made, or what went wrong goes on: that is told already
        temporary.unlink()


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
    if error.errno == errno.EFBIG and (limit := resource.getrlimit(resource.RLIMIT_FSIZE)[0]) >= 0:
        what = f"{what} ({limit} bytes)"
    if error.errno == errno.ENOSPC:
        what = _full(Path(path)) or what
    return ResourceError(what, path=path, hint=hint)


def raise_refusal(error: BaseException, path: str | os.PathLike[str]) -> None:
    """Raise what the system refused: it tells nothing of the file. A file that is missing, a disk that fails and what Arrow
    says of contents, an OSError without a number, do; nothing is raised then.

    >>> for number in (errno.EIO, errno.EMFILE):
    ...     try:
    ...         raise_refusal(OSError(number, ""), "a.parquet")
    ...     except ResourceError as error:
    ...         print(error)
    a.parquet: too many open files. Raise the limit (ulimit -n).
    """
    if isinstance(error, OSError) and error.errno not in (None, 0, errno.ENOENT, errno.EIO):
        raise os_error(error, path) from error


def _full(path: Path) -> str | None:
    """What a full device lacks, and how much is left."""
    there = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if there is None:
        return None
    facts = os.statvfs(there)
    free, mount = device(there)
    if facts.f_files and not facts.f_favail:
        return f"no inodes left at {mount}, of which every file takes one"
    return f"no space left on the device: {free} bytes are free at {mount}"


def device(path: Path) -> tuple[int, Path]:
    """Bytes that this user may still write where `path` lies, and where that is mounted."""
    facts = os.statvfs(path)
    mount = path.absolute()
    while not mount.is_mount() and mount != mount.parent:
        mount = mount.parent
    return facts.f_bavail * facts.f_frsize, mount
