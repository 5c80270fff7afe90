"""--cluster: shards written by the workers of a Dask cluster, on whatever it runs (SLURM, Kubernetes, machines by hand).

Dask gives a `concurrent.futures.Executor`, which is all that is used of it. Shards of a worker that is lost are given to
others; each is written under a temporary name and renamed, so that it never matters how often it was begun.

>>> with dask_executor("no address"):
...     pass
Traceback (most recent call last):
streamkit.errors.UsageError: the cluster is 'no address'. Write it like tcp://HOST:8786
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager

from streamkit.errors import RemoteError, ResourceError, UsageError

_CONNECT_S = 30


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """An executor whose jobs run on the workers of the Dask scheduler at `address`.

    Raises:
        UsageError: no address, or Dask is not installed.
        RemoteError: no scheduler answers there, or it was lost.
        ResourceError: a shard took down worker after worker.
    """
    if not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", address):
        raise UsageError(f"the cluster is {address!r}", hint="Write it like tcp://HOST:8786")
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UsageError("a cluster needs Dask", hint="Install it: pip install 'streamkit[cluster]'") from None
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RemoteError(f"no Dask scheduler answers: {error}", path=address, hint="Check that it runs.") from None
    with client:
        try:
            yield client.get_executor(pure=False)  # not pure: what a job does is write a file
        except KilledWorker as error:
            raise ResourceError(
                f"a shard took down one worker after another: {error}",
                path=address,
                hint="Out of memory? Lower --shard-size or give workers more, and run it again: it continues.",
            ) from None
        except CancelledError:
            raise RemoteError(
                "the scheduler was lost", path=address, hint="Run the same command again: it continues."
            ) from None
