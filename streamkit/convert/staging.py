"""Folders on this machine for what comes from a server or goes to one, each held by one process at a time.

They lie below $XDG_CACHE_HOME/streamkit (~/.cache/streamkit), private to the user, and are found again by the address: so
the same command continues an interrupted conversion.

>>> import tempfile, unittest.mock
>>> with unittest.mock.patch.dict(os.environ, XDG_CACHE_HOME=tempfile.mkdtemp()):
...     with held("outputs", Address("s3://bucket/sets/photos")) as folder:
...         folder.is_dir(), folder.parent.name
(True, 'outputs')
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import blake3

from streamkit.atomic import os_error
from streamkit.errors import BusyError, UsageError
from streamkit.remote.address import Address
from streamkit.remote.failures import Missing
from streamkit.remote.http import HTTP
from streamkit.remote.transfer import download, listing, size

_AT_ONCE = 16  # files on their way


@contextmanager
def held(kind: str, address: Address) -> Iterator[Path]:
    """The folder for an address.

    Raises (on entry):
        BusyError: another process holds it.
        ResourceError: it cannot be made.
    """
    top = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(top, "streamkit", kind, blake3.blake3(address.url.partition("?")[0].encode()).hexdigest()[:32])
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise os_error(error, folder) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("another converter of this machine is at work here", path=address, hint="Wait.") from None
        yield folder
    finally:
        os.close(lock)


def bring(address: Address, below: Path) -> Path:
    """Copy a file or folder from a server to this machine; where it lies then.

    Args:
        address: what to copy.
        below: the folder it comes to, at the path that it has on its server: so things keep their places to one another.

    Raises:
        UsageError: there is nothing.
        RemoteError: a server that does not give it.
    """
    host, _, path = address.url.partition("?")[0].partition("://")[2].partition("/")
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    target = below.joinpath(address.scheme, host.rpartition("@")[2], *parts)
    try:
        names = {} if _is_file(address) else listing(address)
        if not names:
            _copy(address, target)
            return target
    except Missing:
        hint = "Give a folder of images or arrays, or a file."
        raise UsageError("this source does not exist", path=address, hint=hint) from None
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="streamkit") as pool:
        for _ in pool.map(lambda name: _copy(address / name, target / name, names[name]), names):
            pass
    return target


def _is_file(address: Address) -> bool:
    if address.scheme in HTTP:  # their folders are pages, which cannot be told from files
        return "." in address.name
    try:
        size(address)
    except Missing:
        return False
    return True


def _copy(address: Address, target: Path, nbytes: int | None = None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        download(address, file.fileno(), nbytes)
