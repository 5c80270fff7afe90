"""How long a server is borne with: tries, time-outs, waits with jitter, and the error at the end.

>>> Patience(first_wait_s=0.5).wait_s(n_failed=3, chance=0.5)    # half of 0.5 * 2 * 2
1.0
>>> Patience(first_wait_s=0.5).wait_s(n_failed=1, chance=0.5, asked_s=7)    # who says when is not asked before
7.25
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from streamkit.errors import RemoteError
from streamkit.remote.address import Address
from streamkit.remote.failures import Failure, Missing, failure_of

Got = TypeVar("Got")


@dataclass(frozen=True)
class Patience:
    """Bounds of one request.

    Attributes:
        n_tries: at most so many.
        total_s: no new try after so long [s].
        answer_s: one try's time-out [s].
        first_wait_s: longest wait after the first failure [s]; it doubles each time.
        longest_wait_s: and grows no further than this [s].
    """

    n_tries: int = 8
    total_s: float = 120.0
    answer_s: float = 30.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0

    def wait_s(self, n_failed: int, chance: float, asked_s: float | None = None) -> float:
        """Seconds to wait after so many failures: full jitter, on top of what the server asked for.

        Source: Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
        """
        return (asked_s or 0.0) + chance * min(self.longest_wait_s, self.first_wait_s * 2.0 ** (n_failed - 1))


PATIENCE = Patience()

_CREDENTIALS = {
    "s3": "Credentials come from the AWS_* variables, ~/.aws or the machine's role: check them and their expiry.",
    "gs": "Credentials come from GOOGLE_APPLICATION_CREDENTIALS or gcloud: check them and their expiry.",
    "az": "Credentials come from the AZURE_STORAGE_* variables: check them and their expiry.",
    "sftp": "Credentials come from the address, the SSH agent or ~/.ssh: check them.",
}


async def persist(
    address: Address,
    ask: Callable[[], Awaitable[Got]],
    gate: asyncio.Semaphore,
    nbytes: int = 0,
    n_tries: int | None = None,
) -> Got:
    """What `ask` returns, tried until it works, within the bounds that `PATIENCE` is now.

    Args:
        address: what is asked for, for messages.
        ask: begins one try.
        gate: bounds the tries under way; waiting for it is no part of a time-out, and nobody holds it between tries.
        nbytes: what a try moves, and what comes beside it [B]; one time-out more for every 16 MB.
        n_tries: where it is of less use than usual to go on; None: those of `PATIENCE`.

    Raises:
        Missing: there is nothing.
        RemoteError: denied, refused, or failed until patience ran out.
    """
    bounds = PATIENCE
    started, n_failed = time.monotonic(), 0
    while True:
        try:
            async with gate, asyncio.timeout(bounds.answer_s * (1 + nbytes // 16_000_000)):
                return await ask()
        except Exception as error:
            failure = failure_of(error)
            if failure.kind == "bug":
                raise
            if failure.kind == "missing":
                raise Missing(str(address)) from None
            n_failed += 1
            wait_s = bounds.wait_s(n_failed, random.random(), failure.wait_s)
            spent = time.monotonic() - started
            if failure.kind != "again" or n_failed >= (n_tries or bounds.n_tries) or spent + wait_s > bounds.total_s:
                raise final_error(address, failure, n_failed, spent) from None
        await asyncio.sleep(wait_s)


def final_error(address: Address, failure: Failure, n_failed: int = 1, spent_s: float = 0.0) -> RemoteError:
    """The error that ends the tries."""
    if failure.kind == "denied":
        hint = _CREDENTIALS.get(_FAMILY.get(address.scheme, address.scheme), "Check the credentials and their expiry.")
        return RemoteError(failure.text, path=address, hint=hint)
    if failure.kind == "refused":
        return RemoteError(failure.text, path=address, hint="Check the address.")
    tried = f"; tried {n_failed} times in {spent_s:.0f} s" if n_failed > 1 else ""
    hint = failure.hint or "Check the network and the server, then try again."
    return RemoteError(f"{failure.text}{tried}", path=address, hint=hint)


_FAMILY = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az", "ssh": "sftp"}
