"""What may be opened of a dataset: plain files that lie in it. Links, pipes and devices are refused before that.

>>> import tempfile, pathlib
>>> file = pathlib.Path(tempfile.mkdtemp()) / "a"
>>> file.write_bytes(b"12")
2
>>> regular_file(file).st_size
2
>>> mend("my out")
"Run `streamkit verify 'my out'` for the full list, then `streamkit repair`."
"""

from __future__ import annotations

import os
import shlex
import stat
from functools import lru_cache
from pathlib import Path

from streamkit.errors import RefusedError


def regular_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Facts of a file, if it is one.

    Raises:
        RefusedError: a link, which may lead out of the dataset, or a pipe, device or folder.
        FileNotFoundError: there is nothing.
    """
    facts = os.lstat(path)
    if stat.S_ISLNK(facts.st_mode):
        raise RefusedError("this is a link, which may lead out of the dataset", path=path, hint="Put the file there.")
    if not stat.S_ISREG(facts.st_mode):
        raise RefusedError("this is no regular file", path=path, hint="Put the file itself there.")
    return facts


def file_below(root: Path, name: str) -> Path:
    """The place of file `name` below `root`, whose parts are those of `strict.name_below`, before it is opened.

    Raises:
        RefusedError: a folder on the way is a link that leads out of `root`.
    """
    folder = name.rpartition("/")[0]
    if folder and not _lies_below(root, folder):
        raise RefusedError(
            "a folder on the way is a link that leads out of the dataset",
            path=root / name,
            hint="Put the folder itself there.",
        )
    return root / name


@lru_cache(maxsize=4096)
def _lies_below(root: Path, folder: str) -> bool:
    """Looked at once a folder: a million files may be opened in it."""
    top = os.path.realpath(root)
    return os.path.commonpath([top, os.path.realpath(root / folder)]) == top


def mend(folder: str | os.PathLike[str]) -> str:
    """The next step after damage was met: what finds all of it, and what mends it."""
    return f"Run `streamkit verify {shlex.quote(os.fspath(folder))}` for the full list, then `streamkit repair`."
