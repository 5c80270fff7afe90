"""How much memory a training step needs, counted from the model alone: nothing runs and nothing is allocated.

>>> import keras
>>> model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(50), keras.layers.Dense(10)])
>>> model.compile("adam", "mse")
>>> need = estimate(model, batch_size=32)
>>> n_weights = 101 * 50 + 51 * 10
>>> need.parameters_nbytes == need.gradients_nbytes == 4 * n_weights < need.optimizer_nbytes // 2
True
>>> need.activations_nbytes == 32 * 4 * (100 + 50 + 10)
True
>>> repr(need).endswith(f", activations 20,480 B, together {need.total_nbytes:,} B>")
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np

from streamkit.errors import UsageError
from streamkit.training.refusing import refuse_uncompiled
from streamkit.units import whole


@dataclass(frozen=True)
class Estimate:
    """Memory of one training step, by what it is for [B].

    Attributes:
        parameters_nbytes: trainable and other variables of the model.
        gradients_nbytes: one number a trainable weight, and the sums of accumulated ones.
        optimizer_nbytes: its moments and the like.
        activations_nbytes: the input and every layer's output, kept for the backward pass.
    """

    parameters_nbytes: int
    gradients_nbytes: int
    optimizer_nbytes: int
    activations_nbytes: int

    def __repr__(self) -> str:
        parts = (f"{field.name.removesuffix('_nbytes')} {getattr(self, field.name):,} B" for field in fields(self))
        return f"<Estimate: {', '.join(parts)}, together {self.total_nbytes:,} B>"

    @property
    def total_nbytes(self) -> int:
        """The sum. What a compiler adds for its own buffers is not in it, nor what it saves by fusing layers."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate(model: Any, batch_size: int) -> Estimate:
    """What a step of `batch_size` samples takes, to the order of magnitude: neither a lower nor an upper bound.

    Compilers keep copies and workspaces, which are not counted, and fuse layers or let go of outputs, which are. With XLA
    on a CPU peaks were 0.64 times (a residual network) to 2.05 times (separable convolutions) the estimate in float32; see
    scripts/benchmark_memory. Mixed precision counts outputs at two bytes, and weights, gradients and moments at four, as it
    keeps them; XLA on a CPU computes it in float32, and took up to 3.7 times that.

    Args:
        model: a built and compiled Sequential or functional model; axes of its inputs that vary count as 1.
        batch_size: samples a (micro-)batch.

    Raises:
        UsageError: the model is not built, so shapes are not known; or not compiled; or `batch_size` is below 1.
    """
    if (whole("batch_size", batch_size) or 0) < 1:
        raise UsageError(f"batch_size is {batch_size}, expected at least 1")
    refuse_uncompiled(model)
    if not model.built or not getattr(model, "inputs", None):
        raise UsageError("the model's shapes are not known yet", hint="Give it an Input, or build it.")
    optimizer = model.optimizer
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    outputs = list(keras.tree.flatten(model.inputs))
    # Layers inside a layer put their own outputs out; a layer that is used twice puts out twice.
    outputs += [tensor for layer in _leaves(model) for node in layer._inbound_nodes for tensor in node.output_tensors]
    seen = {id(tensor): tensor for tensor in outputs}
    trainable = sum(_nbytes(v) for v in model.trainable_variables)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    accumulated = trainable if inner.gradient_accumulation_steps else 0
    return Estimate(
        sum(_nbytes(v) for v in model.variables),
        trainable + accumulated,
        sum(_nbytes(v) for v in optimizer.variables) - accumulated,
        sum(batch_size * _nbytes(tensor, 1) for tensor in seen.values()),
    )


def _leaves(model: Any) -> list[Any]:
    return [leaf for layer in model.layers for leaf in (_leaves(layer) if hasattr(layer, "layers") else [layer])]


def _nbytes(thing: Any, skip: int = 0) -> int:
    dtype = keras.backend.standardize_dtype(thing.dtype)
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return math.prod(d or 1 for d in thing.shape[skip:]) * itemsize
