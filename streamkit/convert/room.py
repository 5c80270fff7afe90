"""Whether the output can hold what is planned, asked before an hour's work and not after it.

>>> need_room(Path("/tmp/no/such/out"), 1)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from streamkit.atomic import device
from streamkit.errors import ResourceError


def need_writable(out: Path) -> None:
    """Raise ResourceError where nothing can be written to `out`, or nothing made."""
    there = _existing(out)
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise ResourceError("the file system is read-only", path=out, hint="Choose another output folder.")
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise ResourceError(
            "permission denied", path=there, hint="Give this user write access, or choose another output."
        )


def need_room(out: Path, nbytes: int) -> None:
    """Raise ResourceError where the device of `out` has less than `nbytes` free."""
    free, mount = device(_existing(out))
    if nbytes > free:
        raise ResourceError(
            f"this needs {nbytes} bytes more, and {free} are free at {mount}",
            path=out,
            hint="Free space or choose another output, then run it again: it continues.",
        )


def lying_there(out: Path, files: Iterable[str]) -> int:
    """Bytes of those files that are there already, of an interrupted conversion."""
    return sum(path.stat().st_size for file in files if (path := out / file).exists())


def _existing(path: Path) -> Path:
    """The path, or what of it is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
