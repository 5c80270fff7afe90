"""Models for trials of batch sizes, in a module that the other process imports quickly: it needs no framework of its own."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np


class Hungry:
    """Stands for a model whose step of n samples takes n times 2 MB, and is killed or refused from some n on."""

    def __init__(self, killed_at: int = 10**9, refused_at: int = 10**9) -> None:
        self.killed_at, self.refused_at = killed_at, refused_at

    def train_on_batch(self, x: Any, y: Any) -> None:
        if len(x) >= self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does for lack of memory
        if len(x) >= self.refused_at:
            raise MemoryError
        np.ones(len(x) * 2_000_000, np.uint8)


def hungry(accumulate: int) -> Any:
    return Hungry()


def killed(accumulate: int) -> Any:
    return Hungry(killed_at=16)


def refused(accumulate: int) -> Any:
    return Hungry(refused_at=8)


def broken(accumulate: int) -> Any:
    raise ValueError(f"no model for {accumulate}")


def crashing(accumulate: int) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)
