"""Magnitude pruning while training: small weights become zeros on a schedule, and zeros stay zeros.

Zeros shrink compressed files; they take as much memory and time as other numbers. What makes a smaller, faster model is
`unit="filter"`, which empties whole filters, and then `streamkit.training.shrinking.shrink`, which takes them out.

    >>> schedule = PolynomialDecay(final=0.9, begin=100, end=1100, every=100)
    >>> [round(schedule.at(step), 3) for step in (0, 100, 600, 1100, 5000)]
    [0.0, 0.0, 0.787, 0.9, 0.9]
    >>> schedule.next_event(250), schedule.next_event(1100)
    (300, None)
    >>> kept([np.array([[3.0, -1.0], [0.5, 2.0]])], 0.5)[0].tolist()
    [[True, False], [False, True]]

    >>> import keras
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    >>> model.compile("adam", "mse")
    >>> _ = model.fit(np.ones((16, 8)), np.ones((16, 2)), batch_size=4, verbose=0,
    ...               callbacks=[Prune(PolynomialDecay(0.75, end=3, every=1))])
    >>> sparsity(model)
    0.75
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError
from streamkit.terminal import say

Array = npt.NDArray[Any]


class Schedule(Protocol):
    """Which share of the weights is zero after so many updates of the optimizer."""

    @property
    def end(self) -> int: ...
    def at(self, step: int) -> float: ...
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


def kept(weights: Sequence[Array], share: float, scope: str = "layer") -> list[Array]:
    """Which weights are not among the smallest: bool arrays of the same shapes, with exactly round(share * n) False.

    Args:
        weights: arrays of magnitudes; signs do not matter.
        share: of zeros wanted.
        scope: "layer" counts each array for itself, "global" all together.
    """
    groups = [list(weights)] if scope == "global" else [[w] for w in weights]
    out: list[Array] = []
    for group in groups:
        flat = np.concatenate([np.abs(w).ravel() for w in group])
        mask = np.ones(flat.size, bool)
        # A stable sort, so that among equals the same go each time.
        mask[np.argsort(flat, kind="stable")[: round(share * flat.size)]] = False
        parts = np.split(mask, np.cumsum([w.size for w in group])[:-1])
        out += [part.reshape(w.shape) for part, w in zip(parts, group, strict=True)]
    return out


def kernels(model: Any, unit: str = "weight") -> list[Any]:
    """The variables that are pruned: kernels of Dense and convolutions; of filters, not the last one, whose are classes.

    Depthwise kernels are left: they are the few weights of a network that it can least do without.
    """
    names = ("kernel", "pointwise_kernel")
    found = [v for v in model.trainable_variables if v.name in names and len(v.shape) >= 2]
    return found[:-1] if unit == "filter" else found


def sparsity(model: Any) -> float:
    """Share of zeros among all weights of kernels."""
    values = [_numpy(v) for v in kernels(model)]
    return float(sum((v == 0).sum() for v in values) / sum(v.size for v in values))


def prune(model: Any, share: float, scope: str = "layer", unit: str = "weight") -> None:
    """Set the smallest weights (or filters, by their L2 norm) to zero, at once and without training."""
    variables = kernels(model, unit)
    values = [_numpy(v) for v in variables]
    if unit == "filter":
        norms = [np.sqrt((v.reshape(-1, v.shape[-1]) ** 2).sum(axis=0)) for v in values]
        masks = kept(norms, share, scope)
        for mask, norm in zip(masks, norms, strict=True):
            mask[int(norm.argmax())] = True  # a layer without filters would cut the network
    else:
        masks = kept(values, share, scope)
    for variable, value, mask in zip(variables, values, masks, strict=True):
        variable.assign(value * mask)
    if unit == "filter":
        for vector, kernel in tied(model):
            vector.assign(_numpy(vector) * (_numpy(kernel) != 0).reshape(-1, kernel.shape[-1]).any(axis=0))


def tied(model: Any) -> list[tuple[Any, Any]]:
    """(vector, kernel): biases and batch scales that must vanish with a filter, so that it puts out nothing but zeros."""
    owner = {id(v): v for v in kernels(model, "filter")}
    out, kernel = [], None
    for layer in model.layers:
        own = getattr(layer, "kernel", getattr(layer, "pointwise_kernel", None))
        if own is not None:
            kernel = owner.get(id(own))
        vectors = (getattr(layer, name, None) for name in ("bias", "gamma", "beta"))
        out += [(v, kernel) for v in vectors if v is not None and kernel is not None and v.shape == kernel.shape[-1:]]
    return out


class Prune(keras.callbacks.Callback):
    """Prunes on a schedule; in between, the compiled training step itself keeps zeros zero.

    Steps are updates of the optimizer, so accumulation, steps_per_execution and updates that loss scaling skipped count
    right, and a resumed run goes on in the schedule. Needs nothing in a checkpoint: zeros are the mask. For that reason a
    kernel that is zero altogether at the beginning is refused.

    Args:
        schedule: PolynomialDecay or ConstantSparsity.
        scope: "layer" (each to the same sparsity) or "global" (the smallest of all).
        unit: "weight", or "filter" for whole filters and units.
    """

    def __init__(self, schedule: Schedule, scope: str = "layer", unit: str = "weight") -> None:
        super().__init__()
        if scope not in ("layer", "global") or unit not in ("weight", "filter"):
            raise UsageError(f'scope, unit are {scope!r}, {unit!r}; expected "layer" or "global", "weight" or "filter"')
        self.schedule, self.scope, self.unit = schedule, scope, unit

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        keep_zeros(_inner(model), model, self.unit)
        model.train_function = None  # one compiled before knows nothing of it

    def on_train_begin(self, logs: Any = None) -> None:
        for variable in kernels(self.model, self.unit):
            if not _numpy(variable).any():
                raise UsageError(
                    f"{variable.path} is all zeros, and pruning keeps zeros", hint="Initialise it otherwise."
                )
        self._step, self._n_batches = self._updates() - 1, 0
        self._batches_an_update = _inner(self.model).gradient_accumulation_steps or 1

    def _updates(self) -> int:
        return int(self.model.optimizer.iterations)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._n_batches += self._model.steps_per_execution
        event = self.schedule.next_event(self._step)
        # Looking at the optimizer makes JAX write its state back to the model, so only when something may be due.
        if event is None or self._n_batches <= (event - self._step - 2) * self._batches_an_update:
            return
        step = self._updates()
        if step >= event:
            prune(self.model, self.schedule.at(step), self.scope, self.unit)
        if step > self._step:
            self._step, self._n_batches = step, 0

    def on_train_end(self, logs: Any = None) -> None:
        del _inner(self.model).apply
        self.model.train_function = None
        if self._updates() < self.schedule.end:
            say(
                f"pruning ended at {sparsity(self.model):.1%}: training at update {self._updates()} of {self.schedule.end}"
            )


def keep_zeros(optimizer: Any, model: Any, unit: str = "weight") -> None:
    """Make every update of `optimizer` leave zeros of the kernels zero, whatever momentum or weight decay say."""
    vars(optimizer).pop("apply", None)  # left by a training that ended in an error
    apply = optimizer.apply

    def apply_and_keep(grads: Any, trainable_variables: Any = None) -> None:
        ops = keras.ops
        variables = kernels(model)
        masks = [ops.cast(ops.not_equal(ops.convert_to_tensor(v), 0), v.dtype) for v in variables]
        apply(grads, trainable_variables)
        for variable, mask in zip(variables, masks, strict=True):
            variable.assign(ops.multiply(ops.convert_to_tensor(variable), mask))
        for vector, kernel in tied(model) if unit == "filter" else ():
            filters = ops.reshape(ops.not_equal(ops.convert_to_tensor(kernel), 0), (-1, kernel.shape[-1]))
            vector.assign(ops.multiply(ops.convert_to_tensor(vector), ops.cast(ops.any(filters, axis=0), vector.dtype)))

    optimizer.apply = apply_and_keep


def _inner(model: Any) -> Any:
    """The optimizer that updates weights: under loss scaling the inner one, the only one that JAX calls."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _numpy(variable: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(variable))
