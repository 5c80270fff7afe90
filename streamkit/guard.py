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


def mend(folder: str | os.PathLike[str]) -> str:
    """The next step after damage was met: what finds all of it, and what mends it."""
    return f"Run `streamkit verify {shlex.quote(os.fspath(folder))}` for the full list, then `streamkit repair`."
