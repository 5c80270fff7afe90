"""Every error that crosses streamkit's border, one class per exit code.

    StreamkitError            1  (our bug, when raised bare)
    ├── UsageError            2  a wrong argument, a path that does not exist
    ├── SourceError           3  bad source data
    ├── DamagedError          4  a dataset that is damaged or unfinished
    ├── ResourceError         5  disk, memory, descriptors, permission
    ├── RemoteError           6  a server, after retries
    ├── BusyError             7  another converter holds the output
    ├── FormatVersionError    8  a format_version this release does not know
    └── RefusedError          9  refused for safety

A message is one line: where, what (expected, found), the next step.

    >>> print(DamagedError("crc32c is 1, the index says 2", shard="train-00003.tfrecord", record=7,
    ...                    key="cats/1.jpg", hint="Convert again."))
    train-00003.tfrecord record 7 (cats/1.jpg): crc32c is 1, the index says 2. Convert again.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


def one_line(text: object) -> str:
    """`text` with control characters and undecodable bytes escaped, so that a name from a source cannot forge output."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def message(what: str, *, where: str = "", hint: str = "") -> str:
    """Compose "where: what. hint", the one form that every error has."""
    text = f"{where}: {what}" if where else what
    if hint:
        text = f"{text} {hint}" if text.endswith(("?", "!")) else f"{text.rstrip('.')}. {hint}"
    return one_line(redacted(text))


def redacted(text: str) -> str:
    """A text without what may be secret in the addresses that it holds: users, passwords, queries, AWS key ids.

    >>> redacted("GET sftp://me:pw@host/x failed for AKIAIOSFODNN7EXAMPLE, see https://h/x?sig=1")
    'GET sftp://***@host/x failed for ***, see https://h/x?***'
    """
    if "://" in text:
        text = _QUERY.sub(r"\1?***", _USER.sub("***@", text))
    return _KEY_ID.sub("***", text)


_USER = re.compile(r"(?<=://)[^/\s@]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\")\]>,]*[^\s'\")\]>,:;.]")
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names what `word` is nearly spelled like, or nothing.

    >>> did_you_mean("tarin", ["train", "val"])
    "Did you mean 'train'? "
    >>> did_you_mean("zebra", ["train", "val"])
    ''
    """
    near = difflib.get_close_matches(word, list(known), 1)
    return f"Did you mean {near[0]!r}? " if near else ""


class StreamkitError(Exception):
    """Base of every error that crosses the border.

    Attributes:
        path: file or folder concerned, without credentials, or None.
        shard: shard file name, or None.
        record: number of the record in its shard (from 0), or None.
        offset: position in the file [B], or None.
        key: key of the item, or None.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        path: str | os.PathLike[str] | None = None,
        shard: str | None = None,
        record: int | None = None,
        offset: int | None = None,
        key: str | None = None,
        hint: str = "",
    ) -> None:
        self.what, self.hint = what, hint
        self.path = None if path is None else redacted(os.fspath(path))
        self.shard, self.record, self.offset, self.key = shard, record, offset, key
        whole = shard is None or (self.path or "").endswith(f"/{shard}")  # of several datasets' shards, which
        where = (self.path if whole else shard) or ""
        if record is not None:
            where += f" record {record}"
        if offset is not None:
            where += f" at byte {offset}"
        if key is not None:
            where = f"{where} ({key})" if where else key
        super().__init__(message(what, where=where, hint=hint))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions travel between worker processes; the default would call __init__ with the composed text.
        return (_rebuild, (type(self), self.what, self.path, self.shard, self.record, self.offset, self.key, self.hint))


def _rebuild(cls, what, path, shard, record, offset, key, hint):  # type: ignore[no-untyped-def]
    return cls(what, path=path, shard=shard, record=record, offset=offset, key=key, hint=hint)


class UsageError(StreamkitError, ValueError):
    """A wrong argument, or a path that does not exist (exit code 2)."""

    exit_code = 2


class SourceError(StreamkitError):
    """Source data that cannot be converted (exit code 3). `bad` lists every bad item as (key, reason)."""

    exit_code = 3
    bad: tuple[tuple[str, str], ...] = ()


class DamagedError(StreamkitError):
    """A dataset that is damaged or was never finished (exit code 4)."""

    exit_code = 4


class ResourceError(StreamkitError):
    """Disk, memory, descriptors or permission (exit code 5)."""

    exit_code = 5


class RemoteError(StreamkitError):
    """A server failed after retries (exit code 6)."""

    exit_code = 6


class BusyError(StreamkitError):
    """Another converter is at work on the same output (exit code 7)."""

    exit_code = 7


class FormatVersionError(StreamkitError):
    """The dataset has a format_version that this release does not know (exit code 8)."""

    exit_code = 8


class RefusedError(StreamkitError):
    """Refused for safety: a limit was exceeded or a path leaves its root (exit code 9)."""

    exit_code = 9
