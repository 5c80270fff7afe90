"""Addresses: where something lies on a server. They print without secrets, so that no message or log can hold one.

>>> ds = Address("https://ann:secret@example.org/sets/out?X-Amz-Signature=1f")
>>> ds, (ds / "train-00000.h5").url
(Address('https://***@example.org/sets/out?***'), 'https://ann:secret@example.org/sets/out/train-00000.h5?X-Amz-Signature=1f')
>>> place("s3://bucket/out/"), place("out").as_posix()
(Address('s3://bucket/out'), 'out')
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from streamkit.errors import RefusedError, UsageError, redacted

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = re.compile(r"(?<=://)[^/\s@]*@")
_HTTP = ("http", "https")


@dataclass(frozen=True, repr=False)
class Address:
    """A file or folder on a server, as fsspec takes it. `str` and `os.fspath` leave credentials out; `url` has them."""

    url: str

    @property
    def scheme(self) -> str:
        """What stands before "://": s3, gs, az, https, sftp, memory, ..."""
        return self.url.partition("://")[0].lower()

    def _parts(self) -> tuple[str, str]:
        """Path and query; only http(s) addresses have a query."""
        if self.scheme not in _HTTP:
            return self.url, ""
        path, mark, query = self.url.partition("?")
        return path, mark + query

    def __truediv__(self, name: str) -> Address:
        path, query = self._parts()
        return Address(f"{path}/{quote(name) if self.scheme in _HTTP else name}{query}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._parts()[0].rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """The folder that it lies in."""
        path, query = self._parts()
        return Address(path.rpartition("/")[0] + query)

    @property
    def server(self) -> str:
        """Scheme and host (bucket, container), without a user."""
        return _USER.sub("", "/".join(self.url.split("/")[:3]))

    def __str__(self) -> str:
        return redacted(self.url)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def __fspath__(self) -> str:
        return str(self)


def is_remote(path: object) -> bool:
    """True of an address on a server: SCHEME://... but not file://..."""
    found = _SCHEME.match(str(path)) if isinstance(path, str) else None
    return isinstance(path, Address) or (found is not None and found[1].lower() not in ("file", "local"))


def place(path: str | os.PathLike[str] | Address) -> Path | Address:
    """A path or an address, whichever the user gave.

    Raises:
        RefusedError: chained addresses (`simplecache::s3://...`).
        UsageError: an address that names no place.
    """
    if isinstance(path, Address):
        return path
    text = os.fspath(path)
    if re.match(r"[A-Za-z0-9+.-]+::", text):
        raise RefusedError("chained addresses are not followed", path=redacted(text), hint="Give a plain one.")
    found = _SCHEME.match(text)
    if found is not None and not is_remote(text):
        return Path(unquote(text[found.end() :]))
    if found is None:
        return Path(text)
    text = found[1].lower() + text[found.end(1) :]  # schemes are the same in capitals, but fsspec knows small ones only
    head, query = text.split("?", 1) if found[1].lower() in _HTTP and "?" in text else (text, "")
    if not head[found.end() :].strip("/"):
        raise UsageError("this address names no folder", path=redacted(text), hint="Write it like s3://bucket/folder.")
    return Address(head.rstrip("/") + (f"?{query}" if query else ""))


def local_only(path: str | os.PathLike[str] | Address, what: str) -> Path:
    """The path, where only a local one will do. Raises UsageError of an address."""
    where = place(path)
    if isinstance(where, Address):
        raise UsageError(f"{what} needs a folder on this machine", path=where, hint="Copy it there first.")
    return where
