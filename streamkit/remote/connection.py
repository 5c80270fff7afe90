"""The file system behind an address, and its event loop: how requests get to a server and out of its way.

fsspec's client libraries work in one event loop, in a thread of fsspec's own; whoever wants bytes hands it a coroutine
and waits. File systems that know no event loop (sftp, memory) are asked by one thread at a time, as their clients are
not all safe in threads.

    >>> connection = Connection.of(Address("memory://set/a"))
    >>> connection.path(Address("memory://set/a")), connection.width
    ('/set/a', 1)
"""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from streamkit.errors import UsageError
from streamkit.remote.address import Address
from streamkit.remote.failures import failure_of
from streamkit.remote.patience import final_error

Got = TypeVar("Got")

MAX_REQUESTS = 256  # under way at once, of all threads together, for each kind of server
BEGUN = 64  # of those, that bring what is not needed yet: 16 MiB at 50 ms are 335 MB/s, and 0.3 MB/s still end in time
_VARIABLE = "STREAMKIT_MAX_REQUESTS"

# What `pip install` makes of a scheme that is not known yet.
_PACKAGES = dict.fromkeys(("s3", "s3a"), "'streamkit[s3]'") | dict.fromkeys(("http", "https"), "'streamkit[remote]'")
_PACKAGES |= dict.fromkeys(("gs", "gcs"), "gcsfs") | dict.fromkeys(("az", "abfs", "abfss"), "adlfs")
_PACKAGES |= dict.fromkeys(("sftp", "ssh"), "'streamkit[remote]' paramiko")

_lock = threading.Lock()
_open: dict[str, Connection] = {}
_gates: dict[Any, tuple[asyncio.Semaphore, asyncio.Semaphore]] = {}


class Connection:
    """One server's file system. Use `Connection.of`; a forked child gets its own.

    Attributes:
        fs: fsspec's file system, asynchronous.
        wrapped: True where it is a synchronous one in threads.
        width: requests that may be under way at once, on all connections of one file system (fsspec shares it between
            buckets, and between hosts of HTTP).
        gate, begun: hold them to that; those ahead of need to BEGUN.

    Raises:
        UsageError: a package is missing, or nothing knows the scheme.
        RemoteError: it connects at once, and cannot.
    """

    def __init__(self, address: Address) -> None:
        try:
            from fsspec.core import url_to_fs
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            fs: Any = url_to_fs(address.url, **_options(address.scheme))[0]
        except ImportError:
            package = _PACKAGES.get(address.scheme, address.scheme)
            needs = f"{address.scheme}:// needs a package that is not installed"
            raise UsageError(needs, path=address, hint=f"Run `pip install {package}`.") from None
        except ValueError as error:
            if "rotocol" not in str(error):
                raise
            raise UsageError(f"{address.scheme}:// is no address that fsspec knows", path=address) from None
        except Exception as error:  # sftp connects here
            failure = failure_of(error)
            if failure.kind == "bug":
                raise
            raise final_error(address, failure) from None
        self.wrapped = not fs.async_impl
        self._plain = fs  # the wrapper knows no protocol of its own before fsspec 2026.9
        self.fs: Any = AsyncFileSystemWrapper(fs, asynchronous=True) if self.wrapped else fs
        self.width = 1 if self.wrapped else _width()
        self.gate, self.begun = _gates.setdefault(fs, (asyncio.Semaphore(self.width), asyncio.Semaphore(BEGUN)))

    @classmethod
    def of(cls, address: Address) -> Connection:
        """The connection to an address's server: made once a process and server."""
        key = f"{os.getpid()} {address.url.split('://')[0]}://{'/'.join(address.url.split('://')[1].split('/')[:1])}"
        with _lock:
            if key not in _open:
                _open[key] = cls(address)
            return _open[key]

    def path(self, address: Address) -> str:
        """The address as the file system names it."""
        return str(self._plain._strip_protocol(address.url))


def _width() -> int:
    """Requests under way at once: each needs a descriptor, and this process needs others."""
    said = os.environ.get(_VARIABLE, str(MAX_REQUESTS))
    if not said.isdecimal() or int(said) == 0:
        raise UsageError(f"{_VARIABLE} is {said!r}, expected a whole number above 0")
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return int(said) if allowed == resource.RLIM_INFINITY else min(int(said), max(8, allowed // 4))


def _options(scheme: str) -> dict[str, Any]:
    """What makes a client library hold as many connections as requests may be under way; by themselves they hold 100
    (aiohttp) or 10 (botocore). What the user's fsspec configuration says goes before."""
    from fsspec import get_filesystem_class
    from fsspec.config import apply_config

    if scheme not in ("http", "https", "s3", "s3a"):
        return {}
    said = apply_config(get_filesystem_class(scheme), {})
    if scheme in ("http", "https"):
        return {"get_client": said.get("get_client", _client)}
    return {"config_kwargs": {"max_pool_connections": _width(), **said.get("config_kwargs", {})}}


async def _client(**options: Any) -> Any:
    import aiohttp

    return aiohttp.ClientSession(**{"connector": aiohttp.TCPConnector(limit=_width()), **options})


def start(work: Coroutine[Any, Any, Got]) -> Future[Got]:
    """Run a coroutine in fsspec's event loop."""
    from fsspec.asyn import get_loop

    return asyncio.run_coroutine_threadsafe(work, get_loop())


def wait_for(work: Coroutine[Any, Any, Got]) -> Got:
    """The result of a coroutine that runs in fsspec's event loop; interrupting the wait cancels it."""
    future = start(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all. When one fails the others are ended first, so that none of them writes anywhere afterwards."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock(), _open={}, _gates={}))
