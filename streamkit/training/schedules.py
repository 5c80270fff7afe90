"""How many of the weights are zero, and when: schedules in updates of the optimizer, for `Prune`.

>>> schedule = PolynomialDecay(final=0.9, begin=100, end=1100, every=100)
>>> [round(schedule.at(step), 3) for step in (0, 100, 600, 1100, 5000)]
[0.0, 0.0, 0.787, 0.9, 0.9]
>>> schedule.last_event(250), schedule.next_event(250), schedule.next_event(1100)
(200, 300, None)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from streamkit.errors import UsageError


class Schedule(Protocol):
    """Which share of the weights is zero after so many updates of the optimizer."""

    @property
    def end(self) -> int: ...
    def at(self, step: int) -> float: ...
    def last_event(self, step: int) -> int | None: ...
    def next_event(self, step: int) -> int | None: ...


@dataclass(frozen=True)
class PolynomialDecay:
    """Sparsity rises from `initial` to `final`, fast at first: final + (initial - final) * (1 - progress) ** power.

    Attributes:
        final, initial: shares of zeros, 0 to below 1.
        begin, end: updates of the optimizer between which it rises.
        every: updates between two prunings, in which the others recover.

    Source: Zhu and Gupta, "To prune, or not to prune" (2017), equation 1.
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    end: int = 1000
    every: int = 100
    power: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise UsageError(f"sparsity goes from {self.initial} to {self.final}, expected 0 <= initial <= final < 1")
        if not (0 <= self.begin <= self.end and self.every >= 1):
            raise UsageError(
                f"begin, end, every are {self.begin}, {self.end}, {self.every}; expected begin <= end, every > 0"
            )

    def at(self, step: int) -> float:
        """Sparsity after `step` updates."""
        if step < self.begin:
            return 0.0
        progress = min(1.0, (step - self.begin) / max(1, self.end - self.begin))
        return (
            self.final + (self.initial - self.final) * (1 - progress) ** self.power if step < self.end else self.final
        )

    def last_event(self, step: int) -> int | None:
        """The last update up to `step` at which something is pruned; None before the first."""
        if step < self.begin:
            return None
        return self.end if step >= self.end else step - (step - self.begin) % self.every

    def next_event(self, step: int) -> int | None:
        """The first update after `step` at which something is pruned; None after the last."""
        if step < self.begin:
            return self.begin
        if step >= self.end:
            return None
        return min(self.end, self.begin + ((step - self.begin) // self.every + 1) * self.every)


def ConstantSparsity(target: float, begin: int = 0, end: int | None = None, every: int = 100) -> PolynomialDecay:
    """The same sparsity from `begin` on; `end` is when the last pruning happens (default: at once)."""
    return PolynomialDecay(target, initial=target, begin=begin, end=begin if end is None else end, every=every)
