"""The right to write a dataset's folder: a lock on OUT/.streamkit/lock, which the system takes back from whoever dies.

It goes last of the work folder, so that who comes while its holder ends finds it held or finds nothing, never a part.

>>> import tempfile, pathlib
>>> out = pathlib.Path(tempfile.mkdtemp())
>>> with Lock(out) as lock:
...     lock.remove()
>>> list(out.iterdir())
[]
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import time
from pathlib import Path

from streamkit.atomic import os_error
from streamkit.errors import BusyError
from streamkit.manifest import WORK_FOLDER

_NAME = "lock"


class Lock:
    """Owns OUT/.streamkit and the lock in it, with its holder's process, host and start time inside.

    Raises (on entry):
        BusyError: another process holds it, or has just ended.
        ResourceError: it cannot be made.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / WORK_FOLDER
        self.before = ""  # who held it and did not end well

    def __enter__(self) -> Lock:
        path = self.folder / _NAME
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+")
        except (FileNotFoundError, FileExistsError):
            raise self._just_ended() from None
        except OSError as error:  # the work folder of a folder where nothing can be made was never there
            raise os_error(error, path if self.folder.exists() else self.out) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise BusyError(
                f"{holder} is converting into this folder",
                path=self.out,
                hint=f"Wait for it; if its machine is known to be dead, remove {path}.",
            ) from None
        if not self.is_here():
            self._file.close()
            raise self._just_ended()
        self._file.seek(0)
        self.before = self._file.read().strip()
        self._file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
        self._file.flush()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _just_ended(self) -> BusyError:
        return BusyError("another converter has just finished here", path=self.out, hint="Run it again.")

    def is_here(self) -> bool:
        """True while the lock lies where it was taken: with its folder it moves away, and another may come there."""
        path = self.folder / _NAME
        try:
            there = path.stat()
        except FileNotFoundError:  # a look whether it exists and another at it would leave a moment between them
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), there)

    def remove(self, out: Path | None = None) -> None:
        """Delete the work folder, which lies in `out` now if that is given: the dataset is published."""
        folder = self.folder if out is None else out / WORK_FOLDER
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _NAME:
                path.unlink()
        (folder / _NAME).unlink()
        try:
            folder.rmdir()
        except OSError as error:  # the next one is in it already
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
