#!/usr/bin/env python3
"""Trains a small convolutional network on a streamkit dataset, as a reference for a loop of your own.

Images get depthwise-separable 2-D convolutions, arrays of shape (time, channels) 1-D ones; which it is, the sizes and
the number of classes all come from the dataset's schema. Prints one line per epoch.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from typing import Any

import streamkit


class TrainError(streamkit.UsageError):
    """A dataset or an option that this script cannot train with."""


def image_size(text: str) -> tuple[int, int]:
    """Parse "HxW"."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 96x96")
    return int(match[1]), int(match[2])


def positive(text: str) -> int:
    """Parse a count of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small network on a streamkit dataset.",
        epilog="example: train.py out/ --epochs 15 --image-size 96x96 --precision mixed_bfloat16",
    )
    parser.add_argument("out", metavar="OUT", help="folder that `streamkit convert` made")
    parser.add_argument("--epochs", type=positive, default=10, metavar="N", help="default: 10")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="samples a step, default: 32")
    parser.add_argument("--image-size", type=image_size, metavar="HxW", help="resize images; needed if sizes differ")
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_float16", "mixed_bfloat16"))
    parser.add_argument("--loader", choices=("tf", "keras"), help="tf.data or Sequence; default: what is installed")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, dropout and order, default: 0")
    return parser.parse_args()


# What the dataset holds


def input_and_label(schema: Any) -> tuple[Any, Any]:
    """The one field to learn from and the label to learn."""
    label = schema.label
    if label is None or not label.class_names:
        raise TrainError("this dataset has no label with classes, so there is nothing to learn")
    payloads = schema.payloads
    if len(payloads) != 1 or payloads[0].kind not in ("image", "array"):
        kinds = ", ".join(f"{field.name} ({field.kind})" for field in payloads)
        raise TrainError(f"a sample holds {kinds}, expected one image or one array")
    return payloads[0], label


def check_shape(field: Any, size: tuple[int, int] | None) -> None:
    """Say what is missing before a framework is loaded: samples of a batch must have the same shape."""
    if field.kind == "image":
        if size is None and None in field.shape[:2]:
            raise TrainError("images differ in size, so they do not stack", hint="Pass --image-size HxW.")
    elif size is not None:
        raise TrainError("--image-size is for images, and this dataset holds arrays")
    elif None in field.shape or len(field.shape) != 2:
        raise TrainError(f"arrays have shape {field.shape}, expected a fixed (time, channels)")


def split_names(manifest: Any) -> tuple[str, str | None]:
    """Which split to train on and which to validate on, if there is one."""
    names = list(manifest.splits)
    train = "train" if "train" in names else names[0]
    if train != "train" and len(names) > 1:
        raise TrainError(f"there is no split train; splits are {', '.join(names)}")
    return train, next((name for name in ("val", "test") if name in names and name != train), None)


# The model


def image_model(shape: tuple[int, int, int], n_classes: int) -> Any:
    """uint8 images -> logits: separable convolutions, halving the map until its short side is at most 8."""
    from keras import Sequential, layers

    large = min(shape[:2]) >= 64
    # Images arrive as uint8, a quarter of float32's bytes to read, queue and copy to the device; scaling costs nothing.
    stack = [layers.Input(shape, dtype="uint8"), layers.Rescaling(1 / 127.5, offset=-1)]
    if large:
        stack += [layers.RandomFlip("horizontal"), layers.RandomTranslation(0.1, 0.1), layers.RandomZoom(0.1)]
    stack += convolution(layers.Conv2D, 32, strides=2 if large else 1)
    side, filters = min(shape[:2]) // (2 if large else 1), 64
    while side > 8:
        stack += [layers.MaxPooling2D(padding="same"), *convolution(layers.SeparableConv2D, filters)]
        side, filters = (side + 1) // 2, min(2 * filters, 256)
    return Sequential([*stack, layers.GlobalAveragePooling2D(), *head(n_classes)])


def array_model(shape: tuple[int, int], dtype: str, n_classes: int) -> Any:
    """(time, channels) arrays -> logits; the first normalisation learns the scale of the data."""
    from keras import Sequential, layers

    stack = [
        layers.Input(shape, dtype=dtype),
        layers.Rescaling(1.0, dtype="float32"),
        layers.BatchNormalization(momentum=0.9),
    ]
    for filters in (32, 64, 64):
        stack += [*convolution(layers.Conv1D, filters, 5), layers.MaxPooling1D(padding="same")]
    return Sequential([*stack, layers.GlobalAveragePooling1D(), *head(n_classes)])


def convolution(kind: Any, filters: int, width: int = 3, **options: Any) -> list[Any]:
    from keras import layers

    # No bias: the normalisation that follows has one.
    return [
        kind(filters, width, padding="same", use_bias=False, **options),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
    ]


def head(n_classes: int) -> list[Any]:
    from keras import layers

    # float32 whatever the precision: a softmax over half-precision logits loses small differences and overflows.
    return [layers.Dropout(0.2), layers.Dense(n_classes, dtype="float32")]


# The loop


def train(args: argparse.Namespace) -> None:
    manifest = streamkit.open(args.out)
    field, label = input_and_label(manifest.schema)
    check_shape(field, args.image_size)
    train_split, val_split = split_names(manifest)
    # Only looked for: with KERAS_BACKEND=jax or torch everything below works without TensorFlow.
    with_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if args.loader == "tf" and not with_tensorflow:
        raise TrainError("--loader tf needs TensorFlow, which is not installed", hint="Pass --loader keras.")

    import keras

    from streamkit.training.timing import EpochReport

    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)

    load = streamkit.dataset if args.loader == "tf" else streamkit.sequence
    options: dict[str, Any] = {"fields": (field.name, label.name), "image_size": args.image_size, "dtype": "uint8"}
    # Batches of one size only, so that the step is compiled once.
    batch_size = min(args.batch_size, manifest.split(train_split).samples)
    data = load(args.out, split=train_split, batch_size=batch_size, seed=args.seed, drop_remainder=True, **options)
    val_data = None
    if val_split is not None:
        val_data = load(args.out, split=val_split, batch_size=args.batch_size, shuffle=False, **options)
    n_classes = len(label.class_names)
    if field.kind == "image":
        model = image_model((*(args.image_size or field.shape[:2]), 3), n_classes)
    else:
        model = array_model(field.shape, field.dtype, n_classes)

    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, args.epochs * len(data))),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # shuffle=False: the loader shuffles already, over the whole split; fit would only shuffle batches.
    model.fit(data, validation_data=val_data, epochs=args.epochs, shuffle=False, verbose=0, callbacks=[EpochReport()])


def main() -> int:
    try:
        train(parse_arguments())
    except streamkit.StreamkitError as error:
        print(f"{'train' if isinstance(error, TrainError) else 'streamkit'}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
