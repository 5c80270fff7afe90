"""Lines that several processes write and all of them read, in one order: memory that goes with its last process.

A child that is forked, or to which the ledger is passed as an argument when it is started (spawn, forkserver), shares it;
pickled otherwise it is copied. Nothing is locked: the kernel puts appended lines one after the other, so whose line comes
first is the same for everyone. There is no name that could be left behind, whoever is killed.

    >>> ledger = Ledger()
    >>> ledger.append(b"a")
    >>> if (child := os.fork()) == 0:
    ...     ledger.append(b"b")
    ...     os._exit(0)
    >>> _ = os.waitpid(child, 0)
    >>> ledger.after(0)
    (6, [b'a', b'b'])
    >>> ledger.after(6)
    (6, [])
"""

from __future__ import annotations

import fcntl
import os
import weakref
from multiprocessing import context, reduction
from typing import Any


class Ledger:
    """Lines in memory. Safe in threads, forks and kills.

    Args:
        data: lines of another one.
    """

    def __init__(self, data: bytes = b"") -> None:
        self._own(os.memfd_create("streamkit"))
        fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(self._fd, data)

    def _own(self, fd: int) -> None:
        self._fd = fd
        # A loop that breaks off may still have threads at work when the process ends.
        weakref.finalize(self, os.close, fd).atexit = False

    def append(self, line: bytes) -> None:
        """Write a line."""
        os.write(self._fd, b"\n" + line + b"\n")  # the first ends what a process wrote that was killed in mid-line

    def after(self, at: int) -> tuple[int, list[bytes]]:
        """The whole lines after byte `at`, and where they end."""
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, size - at, at) if size > at else b""
        end = data.rfind(b"\n") + 1
        return at + end, [line for line in data[:end].split(b"\n") if line]

    def __getstate__(self) -> Any:
        if context.get_spawning_popen() is not None:  # a process is being started, and this is for it
            return reduction.DupFd(self._fd)
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, bytes):
            self.__init__(state)  # type: ignore[misc]
        else:
            self._own(state.detach())
