"""Magnitude pruning while training: small weights become zeros on a schedule, and zeros stay zeros.

Zeros shrink compressed files; they take as much memory and time as other numbers. What makes a smaller, faster model is
`unit="filter"`, which empties whole filters of a Sequential model, and then `streamkit.training.shrinking.shrink`, which
takes them out.

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
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError
from streamkit.terminal import say
from streamkit.training.schedules import ConstantSparsity, PolynomialDecay, Schedule

__all__ = ["ConstantSparsity", "PolynomialDecay", "Prune", "keep_zeros", "kept", "kernels", "prune", "sparsity"]

Array = npt.NDArray[Any]


def kept(weights: Sequence[Array], share: float, scope: str = "layer") -> list[Array]:
    """Which weights are not among the smallest: bool arrays of the same shapes, with exactly round(share * n) False.

    Of each array the largest stays: without it nothing would come through a layer, and never again.

    Args:
        weights: arrays of magnitudes, floating; signs do not matter.
        share: of zeros wanted.
        scope: "layer" counts each array for itself, "global" all together.
    """
    groups = [list(weights)] if scope == "global" else [[w] for w in weights]
    out: list[Array] = []
    for group in groups:
        parts = [np.abs(w).ravel() for w in group]
        for part in parts:
            part[part.argmax()] = np.inf
        flat = np.concatenate(parts)
        mask = np.ones(flat.size, bool)
        # A stable sort, so that among equals the same go each time.
        mask[np.argsort(flat, kind="stable")[: min(round(share * flat.size), flat.size - len(group))]] = False
        masks = np.split(mask, np.cumsum([w.size for w in group])[:-1])
        out += [part.reshape(w.shape) for part, w in zip(masks, group, strict=True)]
    return out


def kernels(model: Any, unit: str = "weight") -> list[Any]:
    """The variables that are pruned: kernels of Dense, convolutions and recurrent layers, not those of embeddings.

    Depthwise kernels are left: they are the few weights of a network that it can least do without. Of filters: kernels of
    Dense and convolutions, not the last one, whose are classes.

    Raises:
        UsageError: filters of another than a Sequential model, where what went with a filter could belong to a shortcut.
    """
    if unit == "weight":
        names = ("kernel", "pointwise_kernel", "recurrent_kernel")
        return [v for v in model.trainable_variables if v.name in names and len(v.shape) >= 2]
    if not isinstance(model, keras.Sequential):
        raise UsageError(
            f"pruning filters got a {type(model).__name__}, expected a Sequential model",
            hint='Prune weights (unit="weight"), or make the network less wide.',
        )
    found = [_filters(layer) for layer in model.layers]
    return [kernel for kernel in found if kernel is not None and kernel.trainable][:-1]


def _filters(layer: Any) -> Any:
    """The kernel whose last axis counts the outputs of the layer, or None."""
    layers = keras.layers
    if isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
        return layer.pointwise_kernel
    return layer.kernel if isinstance(layer, (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)) else None


def sparsity(model: Any) -> float:
    """Share of zeros among all weights of kernels; `Row.zeros` of comparing is that among all numbers of a model."""
    values = [_numpy(v) for v in kernels(model)]
    return float(sum((v == 0).sum() for v in values) / sum(v.size for v in values))


def prune(model: Any, share: float, scope: str = "layer", unit: str = "weight") -> None:
    """Set the smallest weights (or filters, by their L2 norm) to zero, at once and without training."""
    variables = kernels(model, unit)
    values = [_numpy(v) for v in variables]
    if unit == "filter":
        masks = kept([np.sqrt((v.reshape(-1, v.shape[-1]) ** 2).sum(axis=0)) for v in values], share, scope)
    else:
        masks = kept(values, share, scope)
    for variable, value, mask in zip(variables, values, masks, strict=True):
        variable.assign(np.where(mask, value, 0))
    for variable, kernel in followers(model, unit):
        variable.assign(_zeroed(variable, _alive(kernel, variable)))


def followers(model: Any, unit: str) -> list[tuple[Any, Any]]:
    """(variable, kernel): what must be zero where the kernel is.

    Averages that the optimizer keeps of weights (use_ema) take their places in the end. Of filters, biases and scales and
    shifts of the normalisation after them too, so that an empty filter puts out nothing but zeros.
    """
    out = _beside_filters(model) if unit == "filter" else []
    optimizer = _inner(model)
    if getattr(optimizer, "use_ema", False) and optimizer.built:
        averages, index_of = optimizer._model_variables_moving_average, optimizer._get_variable_index
        pairs = [(kernel, kernel) for kernel in kernels(model)] + [(v, k) for v, k in out if v.trainable]
        out += [(averages[index_of(variable)], kernel) for variable, kernel in pairs]
    return out


def _beside_filters(model: Any) -> list[tuple[Any, Any]]:
    pruned = {id(v) for v in kernels(model, "filter")}
    out, kernel = [], None
    for layer in model.layers:
        own = _filters(layer)
        vectors = [v for name in ("bias", "gamma", "beta") if (v := getattr(layer, name, None)) is not None]
        if own is not None:
            kernel = own if id(own) in pruned else None
        elif layer.weights and not vectors:
            kernel = None  # what comes out of this layer are no filters of the kernel any more
        out += [(v, kernel) for v in vectors if kernel is not None and v.shape == kernel.shape[-1:]]
    return out


def _alive(kernel: Any, variable: Any) -> Any:
    """Where the kernel is not zero; for a vector, where a filter is not empty. Shaped as the variable is."""
    ops = keras.ops
    found = ops.not_equal(ops.convert_to_tensor(kernel), 0)
    if len(variable.shape) < len(kernel.shape):
        found = ops.any(ops.reshape(found, (-1, kernel.shape[-1])), axis=0)
    return found


def _zeroed(variable: Any, alive: Any) -> Any:
    # Not a product, which makes negative zeros; those compress less well.
    return keras.ops.where(alive, keras.ops.convert_to_tensor(variable), 0)


class Prune(keras.callbacks.Callback):
    """Prunes on a schedule; in between, the compiled training step itself keeps zeros zero.

    Steps are updates of the optimizer, so accumulation, steps_per_execution and updates that loss scaling skipped count
    right, and a resumed run goes on in the schedule; what was due before a training began is pruned after its first batch.
    Needs nothing in a checkpoint: zeros are the mask. For that reason a kernel that is zero altogether at the beginning is
    refused. Averages that the optimizer keeps (use_ema) are pruned with the weights.

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
        self._step, self._n_batches = self._updates(), 0
        for variable in () if self._step else kernels(self.model, self.unit):
            if not _numpy(variable).any():
                raise UsageError(
                    f"{variable.path} is all zeros, and pruning keeps zeros", hint="Initialise it otherwise."
                )
        # A resumed run has seen the last event, which changes nothing a second time; another one has not.
        last = self.schedule.last_event(self._step)
        self._event = self.schedule.next_event(self._step) if last is None else last
        self._batches_an_update = _inner(self.model).gradient_accumulation_steps or 1

    def _updates(self) -> int:
        return int(_numpy(self.model.optimizer.iterations))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._n_batches += self._model.steps_per_execution
        event = self._event
        # Looking at the optimizer makes JAX write its state back to the model, so only when something may be due.
        if event is None or self._n_batches <= (event - self._step - 1) * self._batches_an_update:
            return
        step = self._updates()
        last = self.schedule.last_event(step)
        if last is not None and last >= event:
            # The share of the event, whatever the step: so a resumed run, however it is cut, comes to the same.
            prune(self.model, self.schedule.at(last), self.scope, self.unit)
            self._event = self.schedule.next_event(step)
        if step > self._step:
            self._step, self._n_batches = step, 0

    def on_train_end(self, logs: Any = None) -> None:
        del _inner(self.model).apply
        self.model.train_function = None
        if self._updates() < self.schedule.end:
            say(
                f"pruning ended with {sparsity(self.model):.1%} of the kernels zero: "
                f"training at update {self._updates()} of {self.schedule.end}"
            )


def keep_zeros(optimizer: Any, model: Any, unit: str = "weight") -> None:
    """Make every update of `optimizer` leave zeros of the kernels zero, whatever momentum or weight decay say."""
    vars(optimizer).pop("apply", None)  # left by a training that ended in an error
    apply = optimizer.apply

    def apply_and_keep(grads: Any, trainable_variables: Any = None) -> None:
        masks = [(variable, _alive(variable, variable)) for variable in kernels(model)]
        apply(grads, trainable_variables)
        _keep(optimizer, masks)
        _keep(optimizer, [(variable, _alive(kernel, variable)) for variable, kernel in followers(model, unit)])

    optimizer.apply = apply_and_keep


def _keep(optimizer: Any, masks: list[tuple[Any, Any]]) -> None:
    """Set each variable to zero where its mask is False, within a training step."""
    found = [(variable, _zeroed(variable, mask)) for variable, mask in masks]
    if keras.backend.backend() != "tensorflow":
        for variable, value in found:
            variable.assign(value)
        return
    import tensorflow as tf

    # As Keras' own optimizers do: under tf.distribute a replica may not assign a variable that all have a copy of.
    def update(strategy: Any, variables: Any, values: Any) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable, lambda v, new: v.assign(new), args=(value,), group=False)

    variables, values = [v.value for v, _ in found], [value for _, value in found]
    tf.__internal__.distribute.interim.maybe_merge_call(update, optimizer._distribution_strategy, variables, values)


def _inner(model: Any) -> Any:
    """The optimizer that updates weights: under loss scaling the inner one, the only one that JAX calls; or None."""
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def _numpy(variable: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(variable))
