"""Layers whose outputs are computed again in the backward pass instead of being kept: less memory, more time.

Only where that changes nothing. A layer that updates its own state or draws random numbers would do so twice: batch
normalisation counts a batch's statistics twice, and Dropout drops other units backward than forward, so that gradients
are silently wrong (measured with Keras 3.15 on TensorFlow and PyTorch; JAX stops with an error). Such layers are refused.

    >>> x = np.ones((2, 4), "float32")
    >>> stretch = Remat([keras.layers.Dense(8, activation="gelu"), keras.layers.Dense(4)])
    >>> stretch(x).shape == (2, 4)
    True
    >>> Remat([keras.layers.Dense(8), keras.layers.Dropout(0.5, name="drop")])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    streamkit.errors.UsageError: drop (Dropout) draws random numbers, ... Leave it outside the stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np  # noqa: F401  for the example

from streamkit.errors import UsageError


@keras.saving.register_keras_serializable("streamkit")
class Remat(keras.layers.Layer):
    """Layers in a row of which only the input is kept for the backward pass.

    Give it stretches of several layers, such as normalisation, activation and convolution: of one layer alone nothing is
    saved, as its output is the next one's input and its input is kept anyway.

    Args:
        layers: at least one; without state of their own and without chance.

    Raises:
        UsageError: a layer that must not be run twice; the message says why.
    """

    def __init__(self, layers: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for layer in layers:
            refuse_state(layer)
        self.stretch = list(layers)

    def build(self, input_shape: Any) -> None:
        for layer in self.stretch:
            if not layer.built:
                layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return keras.remat(self._run)(x)

    def _run(self, x: Any) -> Any:
        for layer in self.stretch:
            x = layer(x)
        return x

    def compute_output_shape(self, input_shape: Any) -> Any:
        for layer in self.stretch:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.stretch]
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Remat:
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})


def refuse_state(layer: Any) -> None:
    """Raise UsageError if running `layer` twice a step is not the same as running it once."""
    for part in _parts(layer):
        where, hint = f"{part.name} ({type(part).__name__})", "Leave it outside the stretch."
        if isinstance(part, keras.layers.BatchNormalization):
            raise UsageError(
                f"{where} keeps moving averages, which a second pass over the same batch would move again",
                hint="Leave it outside the stretch, or use GroupNormalization or LayerNormalization.",
            )
        if getattr(part, "stateful", False):
            raise UsageError(f"{where} keeps a state from batch to batch, which a second pass would move on", hint=hint)
        if getattr(part, "seed_generator", None) is not None and _draws(part):
            raise UsageError(
                f"{where} draws random numbers, and others in the backward pass than in the forward pass", hint=hint
            )


def _draws(layer: Any) -> bool:
    """Recurrent cells have a generator whether they drop anything or not."""
    rates = [getattr(layer, name) for name in ("rate", "dropout", "recurrent_dropout") if hasattr(layer, name)]
    return any(rates) if rates else True


def _parts(layer: Any) -> Iterator[Any]:
    yield layer
    inner = [*getattr(layer, "layers", ()), *getattr(layer, "stretch", ())]
    for name in ("layer", "cell", "forward_layer", "backward_layer"):
        part = getattr(layer, name, None)
        inner += [part] if isinstance(part, keras.layers.Layer) else []
    for part in inner:
        yield from _parts(part)
