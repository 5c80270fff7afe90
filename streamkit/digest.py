"""The digest of a file's bytes: BLAKE3, hex.

>>> import tempfile
>>> with tempfile.NamedTemporaryFile() as file:
...     file_digest(file.name)[:16]
'af1349b9f5f9a1a6'
"""

from __future__ import annotations

import os

import blake3

_BLOCK_NBYTES = 1 << 20


def file_digest(file: str | os.PathLike[str] | int) -> str:
    """BLAKE3 digest (hex) of a file, by its path or by a descriptor of it, whose position stays.

    It is read, not mapped: a disk that fails then is an OSError, and not the end of the process (SIGBUS).

    Raises:
        OSError: it cannot be read.
    """
    if not isinstance(file, int):
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return file_digest(fd)
        finally:
            os.close(fd)
    hasher, at = blake3.blake3(), 0
    block = memoryview(bytearray(min(_BLOCK_NBYTES, os.fstat(file).st_size or 1)))
    while got := os.preadv(file, [block], at):
        hasher.update(block[:got])
        at += got
    return hasher.hexdigest()
