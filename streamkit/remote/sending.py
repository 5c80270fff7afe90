"""Files to servers. A store that takes large files in parts shows them when all parts are there, or never.

>>> write(Address("memory://sent/a.bin"), b"01")
>>> remove(Address("memory://sent/a.bin"))
>>> remove(Address("memory://sent/a.bin"))
"""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from streamkit.errors import UsageError
from streamkit.remote import patience
from streamkit.remote.address import Address
from streamkit.remote.connection import Connection, wait_for
from streamkit.remote.failures import Missing, failure_of
from streamkit.remote.http import HTTP

Got = TypeVar("Got")


def write(address: Address, data: bytes) -> None:
    """Write a small file. Raises UsageError where the server takes none; RemoteError."""
    connection = writable(address)

    async def ask() -> None:
        await _make_folder(connection, address)
        await connection.fs._pipe_file(connection.path(address), data)

    _sent(patience.persist(address, ask, connection.gate), address)


def upload(path: Path, address: Address, only_new: bool = False) -> bool:
    """Send a file; large ones in parts that appear together or not at all, where the store knows that (S3, GCS, Azure).

    Args:
        path: the file here.
        address: the file there.
        only_new: never replace one that is there, where the store can promise that (S3).

    Returns:
        False when `only_new` and there is one.

    Raises:
        UsageError, RemoteError: as `write`.
    """
    connection = writable(address)
    careful = only_new and address.scheme in ("s3", "s3a")

    async def ask() -> bool:
        await _make_folder(connection, address)
        options = {"mode": "create"} if careful else {}
        try:
            await connection.fs._put_file(str(path), connection.path(address), **options)
        except FileExistsError:
            return False
        return True

    return _sent(patience.persist(address, ask, connection.gate, path.stat().st_size), address)


def _sent(work: Coroutine[Any, Any, Got], address: Address) -> Got:
    try:
        return wait_for(work)
    except Missing:
        raise UsageError("this bucket or folder does not exist", path=address.parent, hint="Make it first.") from None


async def _make_folder(connection: Connection, address: Address) -> None:
    if connection.wrapped:  # object stores have no folders
        await connection.fs._makedirs(connection.path(address.parent), exist_ok=True)


def remove(address: Address) -> None:
    """Delete a file; nothing happens where there is none. Raises UsageError, RemoteError as `write`."""
    connection = writable(address)

    async def ask() -> None:
        try:
            await connection.fs._rm_file(connection.path(address))
        except Exception as error:
            if failure_of(error).kind != "missing":
                raise

    try:
        wait_for(patience.persist(address, ask, connection.gate))
    except Missing:
        pass  # that is what was wanted


def writable(address: Address) -> Connection:
    """The connection for writing to an address. Raises UsageError where the server takes no files."""
    if address.scheme in HTTP:
        raise UsageError("http servers take no files", path=address, hint="Use the store's own address, such as s3://.")
    return Connection.of(address)
