"""What an error of a server means: try again, or not. Texts carry no secrets.

>>> failure_of(TimeoutError())
Failure(kind='again', text='it did not answer in time', wait_s=None, hint='')
>>> failure_of(PermissionError("no")).kind, failure_of(FileNotFoundError("x")).kind
('denied', 'missing')
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from streamkit.errors import redacted

_AGAIN_STATUS = (408, 425, 429)
_LONGEST_WAIT_S = 60.0  # what a server may ask for
_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "s3fs", "gcsfs", "google", "azure", "adlfs", "paramiko", "ssl")


@dataclass(frozen=True)
class Failure:
    """One try that failed.

    Attributes:
        kind: "again", "missing", "denied", "refused" (the request itself is wrong), or "bug" (no server's doing).
        text: what happened, for a message.
        wait_s: how long the server asks to wait [s].
        hint: what to do when it goes on so, if that is known.
    """

    kind: str
    text: str
    wait_s: float | None = None
    hint: str = ""


class BadAnswer(Exception):
    """An answer that is not what was asked for: too short, another range, a page of text. To be asked for again; `hint`: what
    to do when it is always so."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


class Missing(Exception):
    """There is nothing at an address. The caller knows what that means."""


def failure_of(error: BaseException) -> Failure:
    """What to make of an error that fsspec or a client library of it raised."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        cause = failure_of(error.__cause__)  # fsspec says so of whatever went wrong when it asked for a file's size
        return cause if cause.kind in ("again", "denied") else Failure("missing", "there is no such file")
    status, headers = _answer(error)
    if isinstance(error, BadAnswer):
        return Failure("again", str(error), hint=error.hint)
    if status is not None:
        return _of_status(status, headers)
    if isinstance(error, FileNotFoundError):
        return Failure("missing", "there is no such file")
    if isinstance(error, PermissionError) or any(
        word in type(error).__name__ for word in ("Credential", "Authentication")
    ):
        return Failure("denied", "access was denied")
    if isinstance(error, TimeoutError):
        return Failure("again", "it did not answer in time")
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, (OSError, EOFError)) or library in _CLIENTS:
        return Failure("again", _text(error))
    return Failure("bug", _text(error))


def _of_status(status: int, headers: Mapping[str, str]) -> Failure:
    try:
        text = f"the answer was {status} {HTTPStatus(status).phrase}"
    except ValueError:
        text = f"the answer was {status}"
    if status in (404, 410):
        return Failure("missing", text)
    if status in (401, 403, 407):
        return Failure("denied", f"access was denied ({status})")
    if status >= 500 or status in _AGAIN_STATUS:
        return Failure(
            "again", text, retry_after(next((v for k, v in headers.items() if k.lower() == "retry-after"), ""))
        )
    return Failure("refused", text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _answer(error: BaseException) -> tuple[int | None, Mapping[str, str]]:
    """HTTP status and headers, where the error has an answer: aiohttp, botocore, gcsfs and azure each keep it elsewhere."""
    if any(type(one).__module__ == "aiohttp.http_exceptions" for one in _chain(error)):
        return None, {}  # an answer that broke off; aiohttp itself says 400 of those
    for one in _chain(error):
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):
            facts = response.get("ResponseMetadata", {})
            if isinstance(facts.get("HTTPStatusCode"), int):
                return facts["HTTPStatusCode"], facts.get("HTTPHeaders", {})
        for name in ("status", "status_code", "code"):
            status = getattr(one, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status, getattr(one, "headers", None) or {}
    return None, {}


def _text(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    inner = next((e for e in _chain(error) if isinstance(e, OSError) and e.errno), error)
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number).lower()
    said = redacted(str(inner)).split("\n")[0][:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def retry_after(text: str, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header: a number or a date; at most 60. Source: RFC 9110, section 10.2.3.

    >>> retry_after("3"), retry_after("Thu, 01 Jan 1970 00:00:10 GMT", now=4.0), retry_after("soon")
    (3.0, 6.0, None)
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            from email.utils import parsedate_to_datetime  # rarely needed

            seconds = parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
        except ValueError:
            return None
    return min(max(0.0, seconds), _LONGEST_WAIT_S) if seconds == seconds else None
