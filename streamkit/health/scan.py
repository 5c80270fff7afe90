"""One pass over a file: its BLAKE3 digest and the crc32c of every range in it. Each byte is read once.

A block is read and summed range by range, piece by piece, and then hashed while it lies in the core's own cache. BLAKE3 is
the slowest of the three (6 GB/s a core, where the page cache gives 8 and crc32c takes 15): with fewer shards than cores, a
thread of its own hashes a block while the next one is read.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> _ = file.write_bytes(b"head" + b"123456789")
    >>> found = scan(file, 13, np.array([4]), np.array([9]))
    >>> hex(found.crcs[0]), found.read.tolist(), found.digest == blake3.blake3(b"head123456789").hexdigest()
    ('0xe3069283', [True], True)
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt

from streamkit import native

BLOCK_NBYTES = 2 << 20
_mine = threading.local()  # the blocks of a thread that scans: fresh ones would be page faults again, file by file
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scan:
    """What one pass found: bytes read [B], their BLAKE3 digest (hex), the crc32c of each range, and which ranges were read."""

    nbytes: int
    digest: str
    crcs: npt.NDArray[np.uint32]
    read: npt.NDArray[np.bool_]
    error: str = ""


def scan(
    path: str | os.PathLike[str],
    nbytes: int,
    offsets: Ints,
    lengths: Ints,
    tick: Callable[[int], None] | None = None,
    beside: bool = False,
) -> Scan:
    """Read the first `nbytes` of a file.

    Args:
        path: the file; a link is not followed.
        nbytes: where to stop, whatever the file's size is [B].
        offsets, lengths: ranges in ascending order that do not overlap [B], int64 (n,).
        tick: told of each block's size [B].
        beside: hash in a thread of its own.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        unread = np.zeros(len(offsets))
        return Scan(0, "", unread.astype(np.uint32), unread.astype(np.bool_), disk_failed(error, 0))
    try:
        os.posix_fadvise(fd, 0, nbytes, os.POSIX_FADV_SEQUENTIAL)
        sums = native.Sums(offsets, lengths)
        if not beside:
            return _pass(fd, nbytes, sums, _now, tick)
        with ThreadPoolExecutor(1, thread_name_prefix="streamkit-hash") as pool:
            return _pass(fd, nbytes, sums, pool.submit, tick)
    finally:
        os.close(fd)


def disk_failed(error: OSError, at: int) -> str:
    """What is told of a file whose disk fails at a byte. What else the system refuses is raised again: it says nothing of
    the file."""
    if error.errno != errno.EIO:
        raise error
    return f"its disk failed at byte {at}: {os.strerror(errno.EIO).lower()}"


def _now(update: Callable[..., Any], data: Any) -> None:
    update(data)


def _pass(
    fd: int, nbytes: int, sums: native.Sums, submit: Callable[..., Any], tick: Callable[[int], None] | None
) -> Scan:
    hasher = blake3.blake3()
    blocks = _mine.__dict__.setdefault("blocks", [np.empty(BLOCK_NBYTES, np.uint8) for _ in range(2)])
    hashing: Future[Any] | None = None  # of the block before; stays None where hashing is done at once
    at, error = 0, ""
    while at < nbytes:
        block = blocks[0][: min(BLOCK_NBYTES, nbytes - at)]
        try:
            got = sums.read(fd, at, block)
        except OSError as failed:
            error = disk_failed(failed, at)
            break
        if got == 0:
            break
        if hashing is not None:
            hashing.result()
        hashing = submit(hasher.update, block[:got].data)
        if hashing is not None:  # it is at the block still
            blocks.reverse()
        at += got
        if tick is not None:
            tick(got)
    if hashing is not None:
        hashing.result()
    return Scan(at, hasher.hexdigest(), sums.crcs, np.arange(len(sums.crcs)) < sums.done, error)
