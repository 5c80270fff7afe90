"""Take empty filters out: what `Prune(unit="filter")` made zero becomes a smaller and faster model, with the same output.

>>> import keras, numpy as np
>>> from streamkit.training.pruning import prune
>>> layers = keras.layers
>>> model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(16, 3), layers.BatchNormalization(), layers.ReLU(),
...                           layers.Flatten(), layers.Dense(32, activation="relu"), layers.Dense(10)])
>>> prune(model, 0.75, unit="filter")
>>> small = shrink(model)
>>> model.count_params(), small.count_params()
(19306, 1378)
>>> x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
>>> bool(np.allclose(model.predict(x, verbose=0), small.predict(x, verbose=0), atol=1e-5))
True
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError

# Layers that make zeros of zeros, channel by channel.
_KEEP_ZERO = ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "ReLU", "LeakyReLU", "Activation", "Flatten")
_POOLING = ("MaxPooling", "AveragePooling", "GlobalAveragePooling", "GlobalMaxPooling")
_ZERO_AT_ZERO = ("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "silu", "swish", "gelu", "tanh")


def shrink(model: Any) -> Any:
    """A new model, not compiled, without the filters and units of a Sequential model that are zero.

    A filter goes when its kernel, its bias and the scale and shift of the batch normalisation after it are zero, so that
    nothing but zeros comes out of it. Dense, Conv1D, Conv2D, BatchNormalization, pooling, Dropout, Flatten and activations
    with f(0) = 0 may stand in the model.

    Raises:
        UsageError: another model or layer, named.
    """
    if not isinstance(model, keras.Sequential):
        raise UsageError(f"shrinking got a {type(model).__name__}, expected a Sequential model")
    alive = np.ones(model.input_shape[-1], bool)  # channels that come into the layer
    layers, weights = [], []
    for i, layer in enumerate(model.layers):
        config, values = layer.get_config(), layer.get_weights()
        kind = type(layer).__name__
        if kind in ("Dense", "Conv1D", "Conv2D") and getattr(layer, "groups", 1) == 1:
            out = _alive(model.layers[i:], values)
            config["filters" if kind != "Dense" else "units"] = int(out.sum())
            values = [values[0][..., alive, :][..., out], *(bias[out] for bias in values[1:])]
            alive = out
        elif kind == "BatchNormalization" and not any(
            keras.ops.convert_to_numpy(v)[~alive].any() for v in (layer.gamma, layer.beta) if v is not None
        ):
            values = [value[alive] for value in values]
        elif kind == "Flatten":
            alive = np.tile(alive, int(np.prod(layer.input.shape[1:-1])))
        elif not values and not alive.all() and not _keeps_zero(layer):
            raise UsageError(f"{layer.name} ({kind}) may make other numbers of zeros, so filters before it must stay")
        elif values:
            raise UsageError(f"{layer.name} ({kind}) is no layer that filters can be taken out before or of")
        layers.append(type(layer).from_config(config))
        weights.append(values)
    small = keras.Sequential(
        [keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype), *layers], name=model.name
    )
    for layer, values in zip(small.layers, weights, strict=True):
        layer.set_weights(values)
    return small


def _alive(layers: list[Any], values: list[npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Which outputs of the first of `layers` matter to what follows; at least one."""
    first, *rest = layers
    out = np.asarray((values[0] != 0).reshape(-1, values[0].shape[-1]).any(axis=0))
    for vector in values[1:]:
        out |= vector != 0
    if rest and type(rest[0]).__name__ == "BatchNormalization":
        for vector in (rest[0].gamma, rest[0].beta):
            if vector is not None:
                out |= keras.ops.convert_to_numpy(vector) != 0
    if getattr(first.activation, "__name__", "") not in _ZERO_AT_ZERO or not any(hasattr(x, "kernel") for x in rest):
        out[:] = True  # its zeros mean something, or it is the last one
    if not out.any():
        out[0] = True
    return out


def _keeps_zero(layer: Any) -> bool:
    kind = type(layer).__name__
    if kind == "Activation" and getattr(layer.activation, "__name__", "") not in _ZERO_AT_ZERO:
        return False
    return kind in _KEEP_ZERO or kind.startswith(_POOLING)
