"""What a forked child must not take over: locks held by threads that it does not have, descriptors with shared offsets.

>>> class Owner:
...     def __init__(self) -> None:
...         self.reset()
...         anew_in_children(self)
...     def reset(self) -> None:
...         self.pid = os.getpid()
>>> owner = Owner()
>>> if (child := os.fork()) == 0:
...     os._exit(owner.pid != os.getpid())
>>> os.waitpid(child, 0)[1]
0
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Resettable(Protocol):
    def reset(self) -> None:
        """Own nothing yet."""


_owners: weakref.WeakSet[Resettable] = weakref.WeakSet()


def anew_in_children(owner: Resettable) -> None:
    """Call `owner.reset()` in every child forked from now on, before anything else there runs."""
    _owners.add(owner)


def _reset_all() -> None:
    for owner in list(_owners):
        owner.reset()


os.register_at_fork(after_in_child=_reset_all)
