"""Members of a tar that is not compressed: names and where their bytes lie, from the headers alone. Nothing is extracted.

Links, devices and names that lead out are refused; so are headers that lie.

Source: POSIX ustar and pax interchange formats; GNU tar's long names.

>>> import io, tarfile, tempfile
>>> path = tempfile.mkdtemp() + "/a.tar"
>>> with tarfile.open(path, "w") as file:
...     info = tarfile.TarInfo("cat/1.cls"); info.size = 1; file.addfile(info, io.BytesIO(b"7"))
>>> list(members(path))
[Member(name='cat/1.cls', offset=512, nbytes=1, wrong='', refused=False)]
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from streamkit.errors import SourceError

_BLOCK = 512
_MAX_NAME_NBYTES = 64 << 10
MAX_MEMBER_NBYTES = 1 << 30
_KINDS = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Member(NamedTuple):
    """A file in a tar: where its bytes lie [B], or what is `wrong` with it."""

    name: str
    offset: int
    nbytes: int
    wrong: str = ""
    refused: bool = False


def members(path: str) -> Iterator[Member]:
    """The files of a tar, in its order. A tar that breaks off, or is damaged, ends with a member that says so.

    Raises:
        SourceError: this is no tar, or one that is compressed as a whole.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        _check_begin(path, os.pread(fd, _BLOCK, 0))
        at, long_name, long_size = 0, None, None
        while at + _BLOCK <= size:
            head = os.pread(fd, _BLOCK, at)
            if not any(head):
                return
            nbytes = _number(head[124:136])
            if not _is_header(head) or nbytes is None:
                yield Member("", at, 0, f"the header at byte {at} is damaged; what follows it was left")
                return
            kind, start = head[156:157], at + _BLOCK
            if kind in b"xgLK" and kind != b"":
                if nbytes > _MAX_NAME_NBYTES:
                    yield Member("", at, 0, f"a header of {nbytes} bytes at byte {at}; what follows it was left", True)
                    return
                data = os.pread(fd, nbytes, start)
                if kind == b"L":
                    long_name = data.rstrip(b"\0")
                elif kind == b"x":
                    long_name, long_size = _pax(data)
            else:
                name = long_name if long_name is not None else _name(head)
                nbytes = nbytes if long_size is None else long_size
                long_name = long_size = None
                if kind != b"5":
                    yield _member(name.decode(errors="surrogateescape"), kind, start, nbytes, size)
            at = start + -(-nbytes // _BLOCK) * _BLOCK
    finally:
        os.close(fd)


def _check_begin(path: str, head: bytes) -> None:
    if len(head) == _BLOCK and (_is_header(head) or not any(head)):
        return
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        raise SourceError(
            f"this tar is compressed as a whole ({packed}), so that nothing in it has a place",
            path=path,
            hint="Unpack it to a plain .tar first; pictures in it are compressed already.",
        )
    raise SourceError("this is no tar" if head else "empty file", path=path)


def _member(name: str, kind: bytes, start: int, nbytes: int, size: int) -> Member:
    if kind not in (b"0", b"\0", b"7"):
        return Member(name, start, 0, f"is {_KINDS.get(kind, 'no plain file')} in the tar", refused=True)
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or not name:
        return Member(name, start, 0, "has a name that leads out of the tar", refused=True)
    if nbytes > MAX_MEMBER_NBYTES:
        return Member(name, start, 0, f"has {nbytes} bytes, the limit is {MAX_MEMBER_NBYTES}", refused=True)
    if start + nbytes > size:
        return Member(name, start, 0, f"the tar ends {start + nbytes - size} bytes before it does")
    return Member(name, start, nbytes)


def _is_header(head: bytes) -> bool:
    return _number(head[148:156]) == sum(head[:148]) + 8 * 32 + sum(head[156:])


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's base 256 with the first bit set; None for neither, or below 0."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        value = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    return value if value >= 0 else None


def _name(head: bytes) -> bytes:
    name, prefix = head[:100].split(b"\0")[0], b""
    if head[257:263] == b"ustar\0":
        prefix = head[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def _pax(data: bytes) -> tuple[bytes | None, int | None]:
    """Path and size that a pax header gives, if it does; each record is `LENGTH NAME=VALUE` and a line break."""
    name, size = None, None
    while data:
        digits = data.split(b" ", 1)[0]
        if not digits.isdigit() or not len(digits) < int(digits[:8]) <= len(data):
            break
        record, data = data[len(digits) + 1 : int(digits) - 1], data[int(digits) :]
        key, _, value = record.partition(b"=")
        if key == b"path":
            name = value
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
    return name, size
