"""Ranges of files on servers, brought into memory: planned (`requests`), asked for all at once, each with patience.

An answer of another length than was asked for is asked for again; what the bytes are, the caller checks by their sums.

    >>> from streamkit.remote.sending import write
    >>> write(Address("memory://doc/a.bin"), b"0123456789")
    >>> memory = np.zeros(5, np.uint8)
    >>> read_ranges([Wanted(Address("memory://doc/a.bin"), *np.array([[7, 1], [3, 2], [0, 3]]), memory)])
    >>> bytes(memory)
    b'78912'
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.remote import http, patience
from streamkit.remote.address import Address
from streamkit.remote.connection import BEGUN, Connection, start, together, wait_for
from streamkit.remote.failures import BadAnswer
from streamkit.remote.requests import STRETCH_NBYTES, Ints, Requests

Bytes = npt.NDArray[np.uint8]


class Wanted(NamedTuple):
    """Ranges of one file: where they lie in it and where they go in memory [B], int64 (n,) each; memory: uint8, contiguous."""

    address: Address
    offsets: Ints
    lengths: Ints
    places: Ints
    memory: Bytes


def read_ranges(parts: Sequence[Wanted]) -> None:
    """Bring ranges of any files into memory, all requests at once as far as each server's bound allows.

    Raises:
        Missing: a file is not there.
        RemoteError: denied, or failed until patience ran out.
        ValueError: a range would leave the memory.
    """
    for part in parts:
        if len(part.places) and ((part.places < 0) | (part.places > part.memory.nbytes - part.lengths)).any():
            raise ValueError("a range would leave the memory it is read into")
    wait_for(together(work for part in parts for work in _runs(part)))


def begin_ranges(parts: Sequence[Wanted], ended: Callable[[int, BaseException | None], None]) -> None:
    """Begin to bring ranges of about STRETCH_NBYTES a part, as many parts at once as BEGUN, in their order.

    When part `i` is there, or has failed, the event loop's thread calls `ended(i, error)`. It fails sooner than
    `read_ranges` would: this is work ahead of need.
    """

    async def bring(i: int, part: Wanted) -> None:
        try:
            async with Connection.of(part.address).begun:
                await together(_runs(part, n_tries=_FEW_TRIES, beside_nbytes=_BEGUN_NBYTES))
        except asyncio.CancelledError as error:
            ended(i, error)
            raise
        except BaseException as error:
            ended(i, error)
        else:
            ended(i, None)

    works = [bring(i, part) for i, part in enumerate(parts)]  # no iterator, which would hold the last part's memory
    work = together(works)
    try:
        start(work)
    except BaseException:
        for one in (work, *works):
            with contextlib.suppress(ValueError):  # it runs already
                one.close()
        raise


_FEW_TRIES = 3
_BEGUN_NBYTES = BEGUN * STRETCH_NBYTES


def _runs(part: Wanted, **patient: int) -> Iterator[Coroutine[Any, Any, None]]:
    """One coroutine a run of requests that touch; `patient` as `request` has it."""
    if not len(part.offsets):
        return
    plan = Requests.of(part.offsets, part.lengths)
    members = np.split(np.argsort(plan.run_of, kind="stable"), np.cumsum(np.bincount(plan.run_of))[:-1])
    connection = Connection.of(part.address)
    for run, inside in enumerate(members):
        pieces = range(int(plan.first[run]), int(plan.first[run + 1]))
        if len(pieces):
            ends = [(int(plan.starts[i]), int(plan.stops[i])) for i in pieces]
            yield _run(connection, part, inside, ends, patient)


async def _run(
    connection: Connection, part: Wanted, inside: Ints, ends: Sequence[tuple[int, int]], patient: Mapping[str, int]
) -> None:
    memory, begin, end = part.memory, ends[0][0], ends[-1][1]
    alone = len(inside) == 1  # goes where it belongs at once
    at = int(part.places[inside[0]])
    target = memory[at : at + end - begin] if alone else np.empty(end - begin, np.uint8)
    view = memoryview(target)  # type: ignore[arg-type]
    if len(ends) == 1:
        await request(connection, part.address, begin, end, view, **patient)
    else:
        await together(request(connection, part.address, a, b, view[a - begin : b - begin], **patient) for a, b in ends)
    if not alone:
        for i in inside.tolist():
            place, length, start = int(part.places[i]), int(part.lengths[i]), int(part.offsets[i]) - begin
            memory[place : place + length] = target[start : start + length]


async def request(
    connection: Connection,
    address: Address,
    start: int,
    stop: int,
    view: memoryview,
    n_tries: int | None = None,
    beside_nbytes: int = 0,
) -> None:
    """Bytes [start, stop) of a file into `view`, with patience; `beside_nbytes`: that share the way with them."""

    async def ask() -> None:
        if address.scheme in http.HTTP:
            await http.read_into(connection, address, view, start)
            return
        data = await connection.fs._cat_file(connection.path(address), start=start, end=stop)
        if len(data) != stop - start:
            raise BadAnswer(f"{len(data)} bytes came, {stop - start} were asked for")
        view[:] = data

    await patience.persist(address, ask, connection.gate, stop - start + beside_nbytes, n_tries)
