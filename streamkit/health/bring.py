"""Files that are checked where they lie, or, of a dataset on a server, copied to this machine for as long as that takes.

>>> from streamkit.remote.sending import write
>>> write(Address("memory://check/a"), b"12")
>>> with here(Address("memory://check/a"), 2, "") as path:
...     path.read_bytes()
b'12'
>>> size_of(Address("memory://check"), "a")
2
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from streamkit.guard import file_below, regular_file
from streamkit.remote.address import Address
from streamkit.remote.failures import Missing
from streamkit.remote.ranges import Wanted, read_ranges
from streamkit.remote.transfer import download, size


def size_of(folder: Path | Address, name: str) -> int:
    """Size of a file below a folder [B]. Raises FileNotFoundError; RefusedError of a link; RemoteError."""
    if isinstance(folder, Path):
        return regular_file(file_below(folder, name)).st_size
    try:
        return size(folder / name)
    except Missing:
        raise FileNotFoundError(str(folder / name)) from None


@contextmanager
def here(path: Path | Address, nbytes: int, digest: str) -> Iterator[Path]:
    """Where the file can be opened on this machine. One on a server that has not the digest is brought up to three times,
    so that the way it comes is not taken for damage. Raises RemoteError."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="streamkit-") as file:
        download(path, file.fileno(), nbytes, digest)
        yield Path(file.name)


def first_bytes(path: Path | Address, n: int) -> bytes:
    """The first `n` bytes of a file that has so many. Raises RemoteError."""
    if isinstance(path, Path):
        with open(path, "rb") as file:
            return file.read(n)
    memory, zero = np.empty(n, np.uint8), np.zeros(1, np.int64)
    read_ranges([Wanted(path, zero, zero + n, zero, memory)])
    return memory.tobytes()
