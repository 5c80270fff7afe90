"""Small networks to begin with, for images, time series and tokens; `scripts/train.py` trains them.

Batch normalisation everywhere with a momentum of 0.9: Keras' own 0.99 follows the data over hundreds of steps, and
small datasets have few an epoch. The last layer is float32 whatever the precision: a softmax in half precision overflows
and loses differences.

    >>> network(Design("small_cnn"), (32, 32, 3), "uint8", 4).output_shape
    (None, 4)
    >>> full, apart = (network(Design("resnet", conv=c), (32, 32, 3), "uint8", 4) for c in ("standard", "separable"))
    >>> full.count_params() > 4 * apart.count_params()
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from streamkit.errors import UsageError
from streamkit.training.rematerializing import Remat

Shape = tuple[int | None, ...]
# What each takes: images (height, width, channels or bands), series (time, channels), tokens (time,).
TAKES = {
    "small_cnn": ("images", "series"),
    "separable_cnn": ("images", "series"),
    "resnet": ("images",),
    "lstm": ("series",),
    "text_cnn": ("tokens",),
}
KINDS = {3: "images", 2: "series", 1: "tokens"}


@dataclass(frozen=True)
class Design:
    """Which network.

    Attributes:
        model: a name of TAKES.
        conv: "standard" or "separable" convolutions; None: as the name says.
        width: filters and units are this many times the usual.
        norm: "batch" or "group" normalisation; only the latter may be computed twice, see `Remat`.
        remat: compute the insides of each stage again in the backward pass.
        vocabulary: of text_cnn, the number of different tokens; 0 is padding.
        augment: flip, shift and zoom images at random while training; None: those of 64 pixels a side and more.
    """

    model: str
    conv: str | None = None
    width: float = 1.0
    norm: str = "batch"
    remat: bool = False
    vocabulary: int = 0
    augment: bool | None = None

    @property
    def separable(self) -> bool:
        return self.conv == "separable" or (self.conv is None and self.model == "separable_cnn")

    def filters(self, n: int) -> int:
        """`n` times the width, in eights, so that groups divide it."""
        return max(8, round(n * self.width / 8) * 8)


def default_model(shape: Shape) -> str:
    """The network for samples of this shape, when none is asked for."""
    return {"images": "separable_cnn", "series": "small_cnn", "tokens": "text_cnn"}[KINDS[len(shape)]]


def refuse_misfit(design: Design, shape: Shape) -> None:
    """Tell before anything is built whether the design suits samples of `shape`.

    Raises:
        UsageError: this network is for samples of another kind, or what is asked for does nothing to it.
    """
    kind = KINDS.get(len(shape))
    if kind not in TAKES[design.model]:
        fitting = ", ".join(name for name, kinds in TAKES.items() if kind in kinds) or "none"
        takes = " or ".join(TAKES[design.model])
        raise UsageError(f"{design.model} takes {takes}; samples have shape {shape}", hint=f"What fits: {fitting}.")
    if design.model in ("lstm", "text_cnn") and (design.remat or design.conv is not None):
        raise UsageError(f"{design.model} has no stages of convolutions, so conv and remat do nothing to it")
    if design.remat and design.norm == "batch":
        raise UsageError(
            "batch normalisation keeps moving averages, which remat would move twice a step",
            hint="Pass --norm group.",
        )
    if design.augment and kind != "images":
        raise UsageError(f"samples have shape {shape}, and only images are augmented")


def network(design: Design, shape: Shape, dtype: str, n_classes: int) -> Any:
    """A network from samples of `shape` to `n_classes` logits, float32; not compiled.

    Raises:
        UsageError: see `refuse_misfit`.
    """
    refuse_misfit(design, shape)
    kind = KINDS[len(shape)]
    made = {"images": _images, "series": _series, "tokens": _tokens}[kind](design, shape, dtype)
    made += [layers.Dropout(0.2), layers.Dense(n_classes, dtype="float32")]
    inputs = keras.Input(shape, dtype="int32" if kind == "tokens" else dtype)  # JAX has no 64 bits unless told
    if design.model != "resnet":  # Sequential, which is what filters can be taken out of
        return keras.Sequential([inputs, *made], name=design.model)
    x = inputs
    for part in made:
        x = part(x)
    return keras.Model(inputs, x, name=design.model)


def _normalised(design: Design, convolution: Any) -> list[Any]:
    return [convolution, _norm(design), layers.ReLU()]


def _norm(design: Design) -> Any:
    return layers.GroupNormalization(8) if design.norm == "group" else layers.BatchNormalization(momentum=0.9)


def _stage(design: Design, stage: list[Any]) -> list[Any]:
    return [Remat(stage)] if design.remat else stage


def _learnt_scale() -> list[Any]:
    """Reflectances, volts, counts -> numbers around 0, of about 1, whatever range they have: it is learnt.

    In float32, as numbers as they were measured may exceed what half precision holds.
    """
    return [layers.Rescaling(1.0, dtype="float32"), layers.BatchNormalization(momentum=0.9, dtype="float32")]


def _images(design: Design, shape: Any, dtype: str) -> list[Any]:
    """(height, width, channels) -> features: convolutions, halving the map until its short side is at most 2."""
    large = min(shape[:2]) >= 64
    # Images arrive as uint8, a quarter of float32's bytes to read, queue and copy to the device; scaling costs nothing.
    stack = [layers.Rescaling(1 / 127.5, offset=-1)] if dtype == "uint8" else _learnt_scale()
    if large if design.augment is None else design.augment:
        stack += [layers.RandomFlip("horizontal"), layers.RandomTranslation(0.1, 0.1), layers.RandomZoom(0.1)]
    first = layers.Conv2D(design.filters(32), 3, strides=2 if large else 1, padding="same", use_bias=False)
    stack += _normalised(design, first)
    side, filters = min(shape[:2]) // (2 if large else 1), 64
    if design.model == "resnet":
        return [*stack, *_residual_stages(design, side), layers.GlobalAveragePooling2D()]
    kind = layers.SeparableConv2D if design.separable else layers.Conv2D
    while side > 2:
        convolution = kind(design.filters(filters), 3, padding="same", use_bias=False)
        stack += _stage(design, [layers.MaxPooling2D(padding="same"), *_normalised(design, convolution)])
        side, filters = (side + 1) // 2, min(2 * filters, 256)
    return [*stack, layers.GlobalAveragePooling2D()]


def _residual_stages(design: Design, side: int) -> list[Any]:
    out: list[Any] = [layers.MaxPooling2D(padding="same")] if side > 32 else []
    before = design.filters(32)
    for filters, strides in ((32, 1), (64, 2), (128, 2)):
        for first in (True, False):
            now = design.filters(filters)
            out.append(_Block(design, before, now, strides if first else 1))
            before = now
    return [*out, _norm(design), layers.ReLU()]


@dataclass(frozen=True)
class _Block:
    """Normalisation, ReLU and convolution twice, beside what came in. Source: He et al., "Identity Mappings" (2016)."""

    design: Design
    n_in: int
    n_out: int
    strides: int

    def __call__(self, x: Any) -> Any:
        kind = layers.SeparableConv2D if self.design.separable else layers.Conv2D
        y = x
        for part in _stage(
            self.design,
            [
                *(_norm(self.design), layers.ReLU()),
                kind(self.n_out, 3, strides=self.strides, padding="same", use_bias=False),
                *(_norm(self.design), layers.ReLU()),
                kind(self.n_out, 3, padding="same", use_bias=False),
            ],
        ):
            y = part(y)
        if self.strides > 1 or self.n_in != self.n_out:
            x = layers.Conv2D(self.n_out, 1, strides=self.strides, padding="same", use_bias=False)(x)
        return layers.Add()([x, y])


def _series(design: Design, shape: Any, dtype: str) -> list[Any]:
    """(time, channels) -> features."""
    stack = _learnt_scale()
    if design.model == "lstm":
        return [*stack, layers.LSTM(design.filters(64), return_sequences=True), layers.LSTM(design.filters(64))]
    kind = layers.SeparableConv1D if design.separable else layers.Conv1D
    for filters in (32, 64, 64):
        convolution = kind(design.filters(filters), 5, padding="same", use_bias=False)
        stack += _stage(design, [*_normalised(design, convolution), layers.MaxPooling1D(padding="same")])
    return [*stack, layers.GlobalAveragePooling1D()]


def _tokens(design: Design, shape: Any, dtype: str) -> list[Any]:
    """Tokens, 0 after the end -> features: the strongest answer of each filter, which more padding does not change."""
    n = design.filters(64)
    return [
        layers.Embedding(design.vocabulary, n),
        layers.Conv1D(n, 5, padding="same", activation="relu"),
        layers.GlobalMaxPooling1D(),
    ]
