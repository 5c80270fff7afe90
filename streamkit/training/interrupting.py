"""Ctrl-C and SIGTERM while training: held back until the step under way is saved, then let through.

>>> with held() as signals:
...     signal.raise_signal(signal.SIGINT)
...     signals.came
<Signals.SIGINT: 2>
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM)  # a terminal's Ctrl-C, and what schedulers send before they kill


class Held:
    """The signal that came, if one did, and what would have happened.

    Attributes:
        came: the signal that waits, or None.
    """

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def hold(self) -> None:
        """Begin to hold signals back, but those that are ignored.

        Python hands them to its main thread only, so in others nothing is held.
        """
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in _HELD}
            self._before = {n: handler for n, handler in found.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        again, self.came = self.came is not None, signal.Signals(number)
        if again:  # somebody is in a hurry
            self.let_through()

    def let_through(self) -> None:
        """Do what the signal did before: end the process, or raise KeyboardInterrupt. Nothing if none came."""
        number, self.came = self.came, None
        if number is not None:
            self.release()
            signal.raise_signal(number)
            self.hold()  # a handler of the caller's own may let the training go on

    def release(self) -> None:
        """Hold nothing back any more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def held() -> Iterator[Held]:
    """Hold signals back within; what waits at the end is dropped, so let it through before."""
    signals = Held()
    signals.hold()
    try:
        yield signals
    finally:
        signals.release()
