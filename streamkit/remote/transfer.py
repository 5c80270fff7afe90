"""Whole files on servers: read, downloaded, measured, listed; every request is borne with (`patience`).

>>> from streamkit.remote.sending import write
>>> write(Address("memory://doc/a.bin"), b"0123456789")
>>> read(Address("memory://doc/a.bin"), 100), listing(Address("memory://doc"))
(b'0123456789', {'a.bin': 10})
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from streamkit.digest import file_digest
from streamkit.errors import RefusedError, RemoteError
from streamkit.remote import http, patience
from streamkit.remote.address import Address
from streamkit.remote.connection import Connection, together, wait_for
from streamkit.remote.failures import BadAnswer
from streamkit.remote.ranges import request
from streamkit.remote.requests import LONGEST_NBYTES


def read(address: Address, limit_nbytes: int, check: Callable[[bytes], str] | None = None) -> bytes:
    """A small file whole.

    Args:
        address: the file.
        limit_nbytes: larger ones are refused [B].
        check: says what is wrong with an answer, so that it is asked for again; "" where nothing is.

    Raises:
        Missing, RemoteError: as `read_ranges`.
        RefusedError: it is larger.
    """
    connection = Connection.of(address)

    async def ask() -> bytes:
        data = await _whole(connection, address, limit_nbytes)
        wrong = "" if check is None or len(data) > limit_nbytes else check(data)
        if wrong:
            raise BadAnswer(wrong)
        return data

    data = wait_for(patience.persist(address, ask, connection.gate))
    if len(data) > limit_nbytes:
        raise RefusedError(f"it is larger than {limit_nbytes} bytes", path=address)
    return data


async def _whole(connection: Connection, address: Address, limit_nbytes: int) -> bytes:
    """The file, or one byte more than the limit."""
    if address.scheme not in http.HTTP:
        return bytes(await connection.fs._cat_file(connection.path(address), start=0, end=limit_nbytes + 1))
    parts, total = [], 0
    async with await http.get(connection, address, {}) as answer:
        async for data in answer.content.iter_any():
            parts.append(data)
            total += len(data)
            if total > limit_nbytes:
                break
    return b"".join(parts)[: limit_nbytes + 1]


def download(address: Address, file: int, nbytes: int | None = None, digest: str | None = None) -> int:
    """Write a file from a server to an open descriptor; its size [B].

    Args:
        address: the file.
        file: descriptor, written from its start.
        nbytes: its size where that is known.
        digest: BLAKE3 (hex) that it should have: with another one it is brought again, twice. The caller judges what it
            has in the end.

    Raises:
        Missing, RemoteError: as `read_ranges`.
    """
    for _ in range(3):
        total = _download(address, file, nbytes)
        if digest is None or file_digest(file) == digest:
            break
    return total


def _download(address: Address, file: int, nbytes: int | None) -> int:
    connection = Connection.of(address)
    total, ranged = (nbytes, True) if nbytes is not None and address.scheme not in http.HTTP else _facts(address)
    if total is None or not ranged:
        ask = _stream(connection, address, file)
        return wait_for(patience.persist(address, ask, connection.gate, total or nbytes or 1 << 30))

    async def part(start: int) -> None:
        memory = bytearray(min(LONGEST_NBYTES, total - start))
        await request(connection, address, start, start + len(memory), memoryview(memory))
        os.pwrite(file, memory, start)

    starts = range(0, total, LONGEST_NBYTES)
    for i in range(0, len(starts), 8):  # so many parts are in memory at once
        wait_for(together(part(start) for start in starts[i : i + 8]))
    return total


def _stream(connection: Connection, address: Address, file: int) -> Callable[[], Awaitable[int]]:
    async def ask() -> int:
        os.ftruncate(file, 0)
        at = 0
        async with await http.get(connection, address, {}) as answer:
            async for data in answer.content.iter_any():
                os.pwrite(file, data, at)
                at += len(data)
        return at

    return ask


def size(address: Address) -> int:
    """Size of a file [B]. Raises Missing; RemoteError, also where the server does not say it."""
    nbytes = _facts(address)[0]
    if nbytes is None:
        raise RemoteError("the server does not say how large it is", path=address)
    return nbytes


def _facts(address: Address) -> tuple[int | None, bool]:
    """Size of a file [B], if the server says it, and whether it gives parts of it."""
    connection = Connection.of(address)

    async def ask() -> tuple[int | None, bool]:
        facts = await connection.fs._info(connection.path(address))
        if facts.get("type") == "directory":
            raise FileNotFoundError(address.url)
        return facts.get("size"), address.scheme not in http.HTTP or bool(facts.get("partial"))

    return wait_for(patience.persist(address, ask, connection.gate))


def listing(address: Address) -> dict[str, int | None]:
    """Files below a folder: relative path -> size [B], sorted; None where the server does not say it. Names that would
    lead out of the folder are left out.

    Raises:
        Missing: there is nothing.
        RemoteError: as `read_ranges`.
    """
    connection = Connection.of(address)
    top = connection.path(address).partition("?")[0].rstrip("/") + "/"

    async def ask() -> dict[str, int | None]:
        connection.fs.invalidate_cache()
        found = await connection.fs._find(connection.path(address), detail=True)
        below = {
            name.removeprefix(top): facts.get("size") for name, facts in found.items() if name.startswith(top) and facts
        }
        return {name: n for name, n in sorted(below.items()) if _stays_below(name)}

    return wait_for(patience.persist(address, ask, connection.gate))


def _stays_below(name: str) -> bool:
    parts = name.split("/")
    return all(part not in ("", ".", "..") and "\0" not in part for part in parts)
