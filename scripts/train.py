#!/usr/bin/env python3
"""Trains a small convolutional network on a streamkit dataset, as a reference for a loop of your own.

Images get depthwise-separable 2-D convolutions, arrays of shape (time, channels) 1-D ones; which it is, the sizes and
the number of classes all come from the dataset's schema. Prints one line per epoch.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamkit
from streamkit.training.failures import streamkit_error


class TrainError(streamkit.UsageError):
    """A dataset or an option that this script cannot train with."""


def image_size(text: str) -> tuple[int, int]:
    """Parse "HxW"."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 96x96")
    return int(match[1]), int(match[2])


def at_least(low: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` on."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} on")
        return int(text)

    return parse


def share(text: str) -> float:
    """Parse a number from 0 to below 1."""
    if not re.fullmatch(r"0?\.\d{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 0.8")
    return float(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small network on a streamkit dataset.",
        epilog="example: train.py out/ --epochs 15 --image-size 96x96",
    )
    parser.add_argument("out", metavar="OUT", help="folder that `streamkit convert` made")
    parser.add_argument("--epochs", type=at_least(1), default=10, metavar="N", help="default: 10")
    parser.add_argument("--batch-size", type=at_least(1), default=32, metavar="N", help="samples a step, default: 32")
    parser.add_argument("--image-size", type=image_size, metavar="HxW", help="resize images; needed if sizes differ")
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_float16", "mixed_bfloat16"))
    parser.add_argument(
        "--accumulate",
        type=at_least(1),
        default=1,
        metavar="N",
        help="batches whose gradients make one update, default: 1",
    )
    parser.add_argument(
        "--prune", type=share, metavar="SHARE", help="make this share of the weights zero while training, such as 0.8"
    )
    parser.add_argument("--class-weights", action="store_true", help="weigh classes by how rare they are")
    parser.add_argument(
        "--patience", type=at_least(1), metavar="N", help="stop after N epochs without a lower loss (of val, if any)"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="folder of a run: begin it there, or go on exactly where it was interrupted; holds best.keras and last.keras",
    )
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), help="default: what Keras is set to")
    parser.add_argument("--loader", choices=("tf", "keras"), help="default: what suits the backend of Keras")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of weights and order, default: 0")
    return parser.parse_args()


# What to learn from what


def input_and_label(schema: Any, size: tuple[int, int] | None) -> tuple[Any, Any]:
    """The field to learn from and the label; says what is wrong before a framework is loaded."""
    label = schema.label
    if label is None or not label.class_names:
        raise TrainError("this dataset has no label with classes, so there is nothing to learn")
    if len(schema.payloads) != 1 or schema.payloads[0].kind not in ("image", "array"):
        kinds = ", ".join(f"{field.name} ({field.kind})" for field in schema.payloads)
        raise TrainError(f"a sample holds {kinds}, expected one image or one array")
    field = schema.payloads[0]
    if field.kind == "image" and size is None and None in field.shape[:2]:
        raise TrainError("images differ in size, so they do not stack", hint="Pass --image-size HxW.")
    if field.kind == "array" and size is not None:
        raise TrainError("--image-size is for images, and this dataset holds arrays")
    if field.kind == "array" and (len(field.shape) != 2 or None in field.shape):
        raise TrainError(f"arrays have shape {field.shape}, expected a fixed (time, channels)")
    return field, label


def split_names(manifest: Any) -> tuple[str, str | None]:
    """Which split to train on and which to validate on, if there is one."""
    names = [name for name, split in manifest.splits.items() if split.samples]
    if len(names) == 1:
        return names[0], None
    if "train" not in names:
        raise TrainError(f"there is no split train with samples; splits are {', '.join(manifest.splits)}")
    return "train", next((name for name in ("val", "test") if name in names), None)


# The model


def image_layers(shape: tuple[int, int, int]) -> list[Any]:
    """uint8 images -> features: separable convolutions, halving the map until its short side is at most 2."""
    from keras import layers

    large = min(shape[:2]) >= 64
    side, filters = min(shape[:2]) // (2 if large else 1), 64
    # Images arrive as uint8, a quarter of float32's bytes to read, queue and copy to the device; scaling costs nothing.
    stack = [layers.Input(shape, dtype="uint8"), layers.Rescaling(1 / 127.5, offset=-1)]
    if large:
        stack += [layers.RandomFlip("horizontal"), layers.RandomTranslation(0.1, 0.1), layers.RandomZoom(0.1)]
    stack += normalised(layers.Conv2D(32, 3, strides=2 if large else 1, padding="same", use_bias=False))
    while side > 2:
        stack += [layers.MaxPooling2D(padding="same")]
        stack += normalised(layers.SeparableConv2D(filters, 3, padding="same", use_bias=False))
        side, filters = (side + 1) // 2, min(2 * filters, 256)
    return [*stack, layers.GlobalAveragePooling2D()]


def array_layers(shape: tuple[int, int], dtype: str) -> list[Any]:
    """(time, channels) arrays -> features; the first normalisation learns the scale of the data."""
    from keras import layers

    # float32 up to the first normalisation: numbers as they were measured may exceed what half precision holds.
    stack = [layers.Input(shape, dtype=dtype), layers.Rescaling(1.0, dtype="float32")]
    stack += [layers.BatchNormalization(momentum=0.9, dtype="float32")]
    for filters in (32, 64, 64):
        stack += normalised(layers.Conv1D(filters, 5, padding="same", use_bias=False))
        stack += [layers.MaxPooling1D(padding="same")]
    return [*stack, layers.GlobalAveragePooling1D()]


def normalised(convolution: Any) -> list[Any]:
    from keras import layers

    # Keras' own momentum of 0.99 follows the data over hundreds of steps, and small datasets have a few an epoch.
    return [convolution, layers.BatchNormalization(momentum=0.9), layers.ReLU()]


# The loop


def datasets(args: argparse.Namespace, manifest: Any, field: Any, label: Any, through_tf: bool) -> tuple[Any, Any]:
    """Training batches, and validation batches or None."""
    load = streamkit.dataset if through_tf else streamkit.sequence
    train_split, val_split = split_names(manifest)
    options = {"fields": (field.name, label.name), "image_size": args.image_size, "dtype": "uint8"}
    # Batches of one size only, so that the step is compiled once.
    batch_size = min(args.batch_size, manifest.split(train_split).samples)
    data = load(args.out, split=train_split, batch_size=batch_size, drop_remainder=True, seed=args.seed, **options)
    if val_split is None:
        return data, None
    return data, load(args.out, split=val_split, batch_size=args.batch_size, shuffle=False, **options)


def compiled(stack: list[Any], n_classes: int, n_updates: int, accumulate: int) -> Any:
    """The model with a learning rate that rises for the first twentieth of its updates and falls along a cosine."""
    import keras

    # The last layer is float32 whatever the precision: a softmax in half precision overflows and loses differences.
    model = keras.Sequential([*stack, keras.layers.Dropout(0.2), keras.layers.Dense(n_classes, dtype="float32")])
    n_warm_up = n_updates // 20
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_updates - n_warm_up), warmup_target=3e-3, warmup_steps=n_warm_up
    )
    if not n_warm_up:
        rate = keras.optimizers.schedules.CosineDecay(3e-3, n_updates)
    steps = accumulate if accumulate > 1 else None
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=0.05, gradient_accumulation_steps=steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def watchers(args: argparse.Namespace, monitor: str, n_updates: int) -> list[Any]:
    """The callbacks that the arguments ask for."""
    import keras

    from streamkit.training.timing import EpochReport

    out: list[Any] = [EpochReport()]
    if args.prune is not None:
        from streamkit.training.pruning import PolynomialDecay, Prune

        # Learn first, prune in the middle, recover in the last third.
        begin, end = n_updates // 6, n_updates * 2 // 3
        out.append(Prune(PolynomialDecay(args.prune, begin=begin, end=end, every=max(1, (end - begin) // 20))))
    if args.patience is not None:
        out.append(keras.callbacks.EarlyStopping(monitor, patience=args.patience))
    if args.resume is not None:
        best = args.resume / "best.keras"
        out.append(keras.callbacks.ModelCheckpoint(best, monitor=monitor, save_best_only=True))
        out.append(keras.callbacks.ModelCheckpoint(args.resume / "last.keras"))
    return out


def train(args: argparse.Namespace) -> None:
    manifest = streamkit.open(args.out)
    field, label = input_and_label(manifest.schema, args.image_size)
    class_weight = manifest.class_weights(split_names(manifest)[0]) if args.class_weights else None
    # Only looked for, never imported: with KERAS_BACKEND=jax or torch the rest works without TensorFlow.
    if args.loader == "tf" and importlib.util.find_spec("tensorflow") is None:
        raise TrainError("--loader tf needs TensorFlow, which is not installed", hint="Pass --loader keras.")
    if args.backend is not None:
        os.environ["KERAS_BACKEND"] = args.backend

    import keras  # here, so that a mistake in the arguments is told at once; picks the device by itself

    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    loader = args.loader or ("tf" if keras.backend.backend() == "tensorflow" else "keras")
    data, val_data = datasets(args, manifest, field, label, loader == "tf")
    if field.kind == "image":
        stack = image_layers((*(args.image_size or field.shape[:2]), 3))
    else:
        stack = array_layers(field.shape, field.dtype)
    n_updates = max(1, args.epochs * len(data) // args.accumulate)
    model = compiled(stack, len(label.class_names), n_updates, args.accumulate)

    options = {"epochs": args.epochs, "class_weight": class_weight, "verbose": 0}
    options["callbacks"] = watchers(args, "loss" if val_data is None else "val_loss", n_updates)
    if args.resume is None:
        # shuffle=False: the loader shuffles already, over the whole split; fit would shuffle its batches once more.
        model.fit(data, validation_data=val_data, shuffle=False, **options)
        return
    from streamkit.training import fit

    fit(model, data, validation=val_data, run_dir=args.resume, **options)


def main() -> int:
    try:
        train(parse_arguments())
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        known = streamkit_error(error)
        if known is None:
            raise
        print(f"{'train' if isinstance(error, TrainError) else 'streamkit'}: {known}", file=sys.stderr)
        return known.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
