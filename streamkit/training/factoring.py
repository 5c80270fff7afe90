"""Smaller layers from trained ones: two thin layers for a thick one (low rank), separable convolutions for full ones.

Both start from the trained weights by singular value decomposition, so a short fine-tuning brings the accuracy back.
They return a new model, not compiled; layers that would not become smaller are taken over as they are, and so are those
with a constraint, which speaks of the whole kernel. Layers inside `Remat` and inside models within the model are factored
too; both factors get the regularizer of their kernel. Parameters shrink; the memory for activations does not, as a thick
layer's output is as large as before.

    >>> import keras
    >>> thin = np.random.default_rng(0).normal(size=(64, 3)) @ np.random.default_rng(1).normal(size=(3, 64))
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    >>> model.layers[0].set_weights([thin, np.ones(64)])
    >>> small = low_rank(model, energy=0.999)
    >>> model.count_params(), small.count_params()
    (4160, 448)
    >>> x = np.ones((1, 64), "float32")
    >>> bool(np.allclose(model.predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-3, atol=1e-3))
    True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError
from streamkit.training.rematerializing import Remat

Array = npt.NDArray[Any]
# What a layer becomes, and the weights of that: (replacement, its weights); None leaves it as it is.
Rule = Callable[[Any], tuple[Any, list[Array]] | None]
# What is said of a layer's output and bias, and so holds of the last factor.
_OUTPUT = ("activation", "use_bias", "bias_regularizer", "bias_constraint", "activity_regularizer")


def low_rank(model: Any, energy: float | None = None, rank: int | None = None) -> Any:
    """A model whose Dense, Conv1D and Conv2D layers are products of two thin ones, where that makes them smaller.

    Args:
        model: a built Sequential or functional model.
        energy: share of the squared singular values to keep, 0 to 1; or
        rank: how many of them.

    Raises:
        UsageError: neither or both are given.
    """
    if (energy is None) == (rank is None) or not (rank is None or rank >= 1) or not (energy is None or 0 < energy <= 1):
        raise UsageError(f"energy, rank are {energy}, {rank}; expected one of them, energy in (0, 1] or rank from 1 on")
    return _rebuilt(model, lambda layer: _thin(layer, energy, rank))


def separable(model: Any, depth_multiplier: int = 1) -> Any:
    """A model whose Conv2D layers are SeparableConv2D, where that makes them smaller.

    Each input channel's filters (height x width, outputs) are approximated by `depth_multiplier` spatial ones: their
    leading singular vectors.
    """
    return _rebuilt(model, lambda layer: _separated(layer, depth_multiplier))


def _rebuilt(model: Any, rule: Rule) -> Any:
    made: list[tuple[Any, list[Array]]] = []

    def clone(layer: Any) -> Any:
        if isinstance(layer, Remat):
            config = {**layer.get_config(), "layers": [clone(part) for part in layer.stretch]}
            return Remat(**config)
        replaced = rule(layer)
        new, weights = replaced or (layer.__class__.from_config(layer.get_config()), layer.get_weights())
        new.trainable = layer.trainable
        made.append((new, weights))
        return new

    out = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for layer, weights in made:
        layer.set_weights(weights)
    return out


def _is_plain(layer: Any, kinds: tuple[type, ...]) -> bool:
    # Exactly these classes: separable and transposed convolutions inherit from them, or look alike.
    return type(layer) in kinds and getattr(layer, "groups", 1) == 1 and layer.kernel_constraint is None


def _thin(layer: Any, energy: float | None, rank: int | None) -> tuple[Any, list[Array]] | None:
    layers = keras.layers
    if not _is_plain(layer, (layers.Dense, layers.Conv1D, layers.Conv2D)):
        return None
    kernel, *bias = layer.get_weights()
    flat = kernel.reshape(-1, kernel.shape[-1])
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    kept = np.cumsum(s**2) / max(float((s**2).sum()), 1e-30)
    # Rounding makes the last of the cumulated shares a little less than 1.
    r = rank or min(len(s), int(np.searchsorted(kept, (energy or 1.0) - 1e-7)) + 1)
    if r * sum(flat.shape) >= flat.size:
        return None
    root = np.sqrt(s[:r])
    first, second = (u[:, :r] * root).reshape(*kernel.shape[:-1], r), root[:, None] * v[:r]
    config = layer.get_config()
    both = {"kernel_regularizer": layer.kernel_regularizer, "dtype": layer.dtype_policy}
    last = {**both, **{name: getattr(layer, name) for name in _OUTPUT}}
    if isinstance(layer, layers.Dense):
        parts = [layers.Dense(r, use_bias=False, **both), layers.Dense(flat.shape[1], **last)]
    else:
        place = {name: config[name] for name in ("strides", "padding", "dilation_rate", "data_format")}
        parts = [
            type(layer)(r, layer.kernel_size, use_bias=False, **place, **both),
            type(layer)(flat.shape[1], 1, data_format=config["data_format"], **last),
        ]
        second = second.reshape(*(1 for _ in layer.kernel_size), *second.shape)
    return keras.Sequential(parts, name=layer.name), [first, second, *bias]


def _separated(layer: Any, depth: int) -> tuple[Any, list[Array]] | None:
    if not _is_plain(layer, (keras.layers.Conv2D,)) or len(set(layer.strides)) > 1:
        return None  # depthwise convolutions want equal strides
    kernel, *bias = layer.get_weights()
    height, width, n_in, n_out = kernel.shape
    d = min(depth, height * width, n_out)
    if n_in * d * (height * width + n_out) >= kernel.size:
        return None
    u, s, v = np.linalg.svd(kernel.transpose(2, 0, 1, 3).reshape(n_in, height * width, n_out), full_matrices=False)
    root = np.sqrt(s[:, :d])
    spatial = (u[:, :, :d] * root[:, None]).transpose(1, 0, 2).reshape(height, width, n_in, d)
    mixing = (root[:, :, None] * v[:, :d]).reshape(1, 1, n_in * d, n_out)
    config = layer.get_config()
    kept = ("name", "filters", "kernel_size", "strides", "padding", "dilation_rate", "data_format")
    new = keras.layers.SeparableConv2D(
        depth_multiplier=d,
        depthwise_regularizer=layer.kernel_regularizer,
        pointwise_regularizer=layer.kernel_regularizer,
        dtype=layer.dtype_policy,
        **{name: config[name] for name in kept},
        **{name: getattr(layer, name) for name in _OUTPUT},
    )
    return new, [spatial, mixing, *bias]
