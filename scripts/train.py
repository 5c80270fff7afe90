#!/usr/bin/env python3
"""Trains a network on a streamkit dataset, with every technique of streamkit.training: a reference for a loop of your own.

What the network looks like, the sizes and the number of classes all come from the dataset's schema. Prints one line per
epoch, and one for each form of the trained model. Everything here but the flags is a call of the library; copy what you need.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamkit
from streamkit.training.failures import streamkit_error
from streamkit.units import size


class TrainError(streamkit.UsageError):
    """A dataset or an option that this script cannot train with."""


# Options


@dataclass(frozen=True)
class Auto:
    """--batch-size auto: as many samples an update, in the largest steps that fit."""

    update: int = 256


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


def number(low: float, high: float) -> Callable[[str], float]:
    """A parser of numbers between two, which are left out."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", text) or not low < float(text) < high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number between {low:g} and {high:g}")
        return float(text)

    return parse


def batch_size(text: str) -> int | Auto:
    """Parse a number, "auto" or "auto:SAMPLES"."""
    kind, colon, update = text.partition(":")
    if kind == "auto" and (not colon or update):
        return Auto(at_least(1)(update)) if colon else Auto()
    return at_least(1)(text)


def memory(text: str) -> int:
    """Parse a size such as 2GB."""
    try:
        return size(text)
    except streamkit.UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a network on a streamkit dataset.",
        epilog="example: train.py out/ --epochs 15 --image-size 96x96",
    )
    add = parser.add_argument
    add("out", metavar="OUT", help="folder that `streamkit convert` made")
    add("--epochs", type=at_least(1), default=10, metavar="N", help="default: 10")
    add("--image-size", type=image_size, metavar="HxW", help="resize images; needed if sizes differ")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of weights and order, default: 0")
    add("--backend", choices=("tensorflow", "jax", "torch"), help="default: what Keras is set to")
    add("--loader", choices=("tf", "keras"), help="default: what suits the backend of Keras")
    add("--devices", type=at_least(1), default=1, metavar="N", help="GPUs to train on, default: 1")
    add("--class-weights", action="store_true", help="weigh classes by how rare they are")

    add = parser.add_argument_group("the network").add_argument
    models = ("small_cnn", "separable_cnn", "resnet", "lstm", "text_cnn")
    add("--model", choices=models, help="default: separable_cnn of images, small_cnn of series, text_cnn of tokens")
    add("--conv", choices=("standard", "separable"), help="kind of convolutions, default: as the model's name says")
    add("--width", type=number(0, 100), default=1.0, metavar="X", help="this many times the usual filters, default: 1")
    add("--norm", choices=("batch", "group"), default="batch", help="normalisation, default: batch")
    add("--rate", type=number(0, 100), default=3e-3, metavar="X", help="highest learning rate, default: 0.003")

    add = parser.add_argument_group("memory").add_argument
    text = "samples a step, default: 32; auto: the largest batch that fits, N samples an update (default: 256)"
    add("--batch-size", type=batch_size, default=32, metavar="N|auto[:N]", help=text)
    add("--memory-limit", type=memory, metavar="SIZE", help="what auto may use, such as 2GB; default: what is free")
    add(
        "--accumulate",
        type=at_least(1),
        default=1,
        metavar="N",
        help="steps whose gradients make one update, default: 1",
    )
    add("--precision", default="float32", choices=("float32", "mixed_float16", "mixed_bfloat16"))
    add("--remat", action="store_true", help="compute stages again in the backward pass; needs --norm group")

    add = parser.add_argument_group("smaller models").add_argument
    add(
        "--prune",
        type=number(0, 1),
        metavar="SHARE",
        help="make this share of the weights zero while training, such as 0.8",
    )
    add(
        "--low-rank", type=number(0, 1), metavar="ENERGY", help="factor the trained layers, such as 0.95, and fine-tune"
    )
    add("--fine-tune", type=at_least(1), default=2, metavar="N", help="epochs after --low-rank, default: 2")
    add(
        "--quantize",
        choices=("int8", "tflite"),
        help="of the trained model: layers that Keras can, or all through TFLite",
    )
    add(
        "--tune",
        action="store_true",
        help="search rate, width and sparsity first (Hyperband); needs a folder to go on in",
    )
    add(
        "--tune-price", type=number(-1, 1), default=0.01, metavar="X", help="accuracy that half the size is worth: 0.01"
    )

    add = parser.add_argument_group("the run").add_argument
    add("--patience", type=at_least(1), metavar="N", help="stop after N epochs without a lower loss (of val, if any)")
    text = "folder of a run: begin it there, or go on exactly where it was interrupted; holds best.keras and last.keras"
    add("--resume", type=Path, metavar="RUN", help=text)
    add("--log-dir", type=Path, metavar="DIR", help="write epochs.csv, memory.csv and TensorBoard's files there")
    add("--profile", action="store_true", help="record steps 5 to 9 below --log-dir")
    add("--report", type=Path, metavar="FILE", help="write a page of curves, memory and a table of what techniques did")
    args = parser.parse_args()
    if args.profile and args.log_dir is None:
        parser.error("--profile needs --log-dir")
    if args.tune and args.resume is None and args.log_dir is None:
        parser.error("--tune needs --resume or --log-dir, where its trials are kept")
    if args.memory_limit is not None and isinstance(args.batch_size, int):
        parser.error("--memory-limit is for --batch-size auto")
    return args


# What to learn from what


@dataclass(frozen=True)
class Task:
    """What the dataset asks for; all of it is known before a framework is loaded.

    Attributes:
        field, label: of the schema.
        shape: of one sample as it comes.
        splits: to train on, and to validate on or None.
    """

    field: Any
    label: Any
    shape: tuple[int | None, ...]
    splits: tuple[str, str | None]


def task_of(manifest: Any, size: tuple[int, int] | None) -> Task:
    label = manifest.schema.label
    if label is None or not label.class_names:
        raise TrainError("this dataset has no label with classes, so there is nothing to learn")
    payloads = manifest.schema.payloads
    if len(payloads) != 1 or payloads[0].kind not in ("image", "array"):
        kinds = ", ".join(f"{field.name} ({field.kind})" for field in payloads)
        raise TrainError(f"a sample holds {kinds}, expected one image or one array")
    field = payloads[0]
    if field.kind == "image":
        if size is None and None in field.shape[:2]:
            raise TrainError("images differ in size, so they do not stack", hint="Pass --image-size HxW.")
        return Task(field, label, (*(size or field.shape[:2]), 3), split_names(manifest))
    if size is not None:
        raise TrainError("--image-size is for images, and this dataset holds arrays")
    tokens = len(field.shape) == 1 and field.dtype.lstrip("u").startswith("int")
    if not tokens and (len(field.shape) != 2 or None in field.shape):
        what = "a fixed (time, channels), or whole numbers of shape (time,)"
        raise TrainError(f"arrays have shape {field.shape}, expected {what}")
    return Task(field, label, (None,) if tokens else field.shape, split_names(manifest))


def split_names(manifest: Any) -> tuple[str, str | None]:
    """Which split to train on and which to validate on, if there is one."""
    names = [name for name, split in manifest.splits.items() if split.samples]
    if len(names) == 1:
        return names[0], None
    if "train" not in names:
        raise TrainError(f"there is no split train with samples; splits are {', '.join(manifest.splits)}")
    return "train", next((name for name in ("val", "test") if name in names), None)


def loaders(args: argparse.Namespace, task: Task, batch_size: int, **options: Any) -> tuple[Any, Any]:
    """Training batches, all of one size, so that the step is compiled once; and validation batches or None."""
    options |= {"fields": (task.field.name, task.label.name), "image_size": args.image_size, "dtype": "uint8"}
    train, val = task.splits
    data = streamkit.Loader(
        args.out, split=train, batch_size=batch_size, drop_remainder=True, seed=args.seed, **options
    )
    if val is None:
        return data, None
    return data, streamkit.Loader(args.out, split=val, batch_size=batch_size, shuffle=False, **options)


def tokens_of(args: argparse.Namespace, task: Task) -> tuple[int, int]:
    """(largest token + 1, length of the longest text), from one pass over all of them."""
    largest = longest = 0
    for split in filter(None, task.splits):
        for x in streamkit.Loader(args.out, split=split, batch_size=256, shuffle=False, fields=task.field.name):
            tokens = x[task.field.name] if isinstance(x, dict) else x
            if tokens.size and tokens.min() < 0:
                raise TrainError(f"there is a token {tokens.min()}, expected whole numbers from 0 on")
            largest, longest = max(largest, int(tokens.max(initial=0))), max(longest, tokens.shape[1])
    return largest + 1, longest


# The model


@dataclass(frozen=True)
class Job:
    """All that the model depends on; another process can build it too, to try how large a batch may be."""

    design: Any
    shape: tuple[int | None, ...]
    dtype: str
    n_classes: int
    rate: float
    n_updates: int


def built(job: Job, accumulate: int) -> Any:
    """The compiled model, with a learning rate that rises for the first twentieth of its updates and falls along a cosine."""
    from streamkit.training.networks import network

    return compiled(network(job.design, job.shape, job.dtype, job.n_classes), job.rate, job.n_updates, accumulate)


def compiled(model: Any, rate: float, n_updates: int, accumulate: int) -> Any:
    import keras

    n_warm_up = n_updates // 20
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_updates - n_warm_up), warmup_target=rate, warmup_steps=n_warm_up
    )
    if not n_warm_up:
        schedule = keras.optimizers.schedules.CosineDecay(rate, n_updates)
    steps = accumulate if accumulate > 1 else None
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.05, gradient_accumulation_steps=steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def batch_of(args: argparse.Namespace, task: Task, job: Job) -> tuple[int, int]:
    """(samples a step, steps an update)."""
    n_samples = streamkit.open(args.out).split(task.splits[0]).samples
    if isinstance(args.batch_size, int):
        return min(args.batch_size, n_samples), args.accumulate
    from streamkit.training.batching import largest_batch

    update = args.batch_size.update
    like = next(iter(loaders(args, task, 1)[0]))
    found = largest_batch(
        functools.partial(built, job),
        like,
        update,
        args.memory_limit,
        largest=min(n_samples, update // args.accumulate),
        remember={"job": repr(replace(job, n_updates=0))},
    )
    limit = "what is free" if args.memory_limit is None else f"{args.memory_limit / 1e6:.0f} MB"
    print(
        f"batch size {found.size} x {found.accumulate} = {update}: a step takes {found.nbytes / 1e6:.0f} MB of {limit}",
        file=sys.stderr,
    )
    return found.size, found.accumulate


def on_devices(n: int) -> Any:
    """A context in which models are made that train on `n` devices, each on its part of every batch."""
    import keras

    backend = keras.backend.backend()
    if n == 1:
        return contextlib.nullcontext()
    if backend == "torch":
        raise TrainError(
            f"--devices {n}: Keras on PyTorch trains on one device",
            hint="Pass --backend jax, or start a process a device (README, Train on several GPUs).",
        )
    if backend == "jax":
        devices = keras.distribution.list_devices()
        if len(devices) >= n:
            return keras.distribution.DataParallel(devices=devices[:n], auto_shard_dataset=False).scope()
    else:
        import tensorflow as tf

        devices = [device.name for device in tf.config.list_logical_devices("GPU")]
        if len(devices) >= n:
            return tf.distribute.MirroredStrategy(devices[:n]).scope()
    raise TrainError(f"--devices {n}: {backend} finds {len(devices)}")


# The loop


def watchers(args: argparse.Namespace, monitor: str, n_updates: int) -> list[Any]:
    """The callbacks that the arguments ask for; those that write logs come after those that put something into them."""
    import keras

    from streamkit.training.monitor import MemoryMonitor
    from streamkit.training.timing import EpochReport

    if args.log_dir is not None:
        args.log_dir.mkdir(parents=True, exist_ok=True)
    out: list[Any] = [MemoryMonitor(args.log_dir and args.log_dir / "memory.csv"), EpochReport()]
    if args.prune is not None:
        from streamkit.training.pruning import PolynomialDecay, Prune

        # Learn first, prune in the middle, recover in the last third.
        begin, end = n_updates // 6, n_updates * 2 // 3
        schedule = PolynomialDecay(args.prune, begin=begin, end=end, every=max(1, (end - begin) // 20))
        out.append(Prune(schedule, scope="global"))
    if args.patience is not None:
        out.append(keras.callbacks.EarlyStopping(monitor, patience=args.patience))
    if args.resume is not None:
        best = args.resume / "best.keras"
        out.append(keras.callbacks.ModelCheckpoint(best, monitor=monitor, save_best_only=True))
        out.append(keras.callbacks.ModelCheckpoint(args.resume / "last.keras"))
    if args.log_dir is not None:
        out.append(keras.callbacks.CSVLogger(args.log_dir / "epochs.csv", append=True))
        if importlib.util.find_spec("tensorflow") is not None:  # which Keras writes TensorBoard's files with
            out.append(keras.callbacks.TensorBoard(args.log_dir, write_graph=False))
    if args.profile:
        from streamkit.training.profiling import Profile

        out.append(Profile(args.log_dir / "profile"))
    return out


def run(model: Any, data: Any, val_data: Any, run_dir: Path | None, **options: Any) -> dict[str, list[float]]:
    """Train; with a folder for the run, go on exactly where it was stopped. Returns the history."""
    if run_dir is None:
        # shuffle=False: the loader shuffles already, over the whole split; fit would shuffle its batches once more.
        return model.fit(data, validation_data=val_data, shuffle=False, verbose=0, **options).history
    from streamkit.training import fit

    return fit(model, data, validation=val_data, run_dir=run_dir, verbose=0, **options).history


def tuned(args: argparse.Namespace, task: Task, job: Job, ways: tuple[Any, Any], accumulate: int, n_steps: int) -> Job:
    """The job with the best learning rate and width of a search; --prune becomes the best sparsity."""
    from streamkit.training.searching import Choice, search

    def build(choice: Choice) -> Any:
        design = replace(job.design, width=choice.width)
        return built(replace(job, design=design, rate=choice.rate), accumulate)

    folder = (args.resume or args.log_dir) / "tune"
    updates = n_steps // accumulate
    best, trials = search(build, *ways, updates, folder, args.epochs, price=args.tune_price, seed=args.seed)
    for trial in trials[:10]:
        print("trial " + " ".join(f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in trial.items()))
    args.prune = best.sparsity or None
    return replace(job, rate=best.rate, design=replace(job.design, width=best.width))


# Smaller forms of the trained model


def smaller_forms(
    args: argparse.Namespace, model: Any, job: Job, data: Any, val: Any, ways: tuple[Any, Any]
) -> list[Any]:
    """A row for the trained model and each form that was asked for, measured on the validation batches."""
    from streamkit.training.comparing import compare, compare_model

    judged_by = val or data
    step = None
    if args.report is not None:
        import keras

        from streamkit.training.peaks import compiled_nbytes

        def step(model: Any) -> int | None:
            if keras.backend.backend() != "jax":
                return None
            return compiled_nbytes(model, data[0], data.batch_size)

    def told(row: Any) -> Any:
        print(row, flush=True)
        return row

    def of(name: str, model: Any, trains: bool = True) -> Any:
        return told(compare_model(name, model, judged_by, step(model) if step and trains else None))

    asked = args.low_rank or args.quantize or args.report
    rows = [of("trained", model)] if asked else []
    if args.low_rank is not None:
        from streamkit.training.factoring import low_rank

        n_updates = args.fine_tune * len(data)
        model = compiled(low_rank(model, energy=args.low_rank), job.rate / 3, n_updates, 1)
        run_dir = args.resume and args.resume / "low-rank"
        run(model, *ways, run_dir, epochs=args.fine_tune)
        rows.append(of(f"low rank {args.low_rank}", model))
    folder = args.resume or args.log_dir
    if args.quantize == "int8":
        from streamkit.training.quantizing import int8

        small, left = int8(model)
        print(f"int8: Keras leaves {', '.join(left) or 'no layer'}", file=sys.stderr)
        rows.append(of("int8 (Keras)", small, trains=False))
        if folder is not None:
            small.save(folder / "int8.keras")
    if args.quantize == "tflite":
        from streamkit.training.quantizing import tflite, tflite_call

        content = tflite(model, (data[i][0] for i in range(min(len(data), 1 + 256 // data.batch_size))))
        rows.append(told(compare("int8 (TFLite)", tflite_call(content), judged_by, model.count_params(), content)))
        if folder is not None:
            (folder / "int8.tflite").write_bytes(content)
    return rows


def train(args: argparse.Namespace) -> None:
    manifest = streamkit.open(args.out)
    task = task_of(manifest, args.image_size)
    class_weight = manifest.class_weights(task.splits[0]) if args.class_weights else None
    # Only looked for, never imported: with KERAS_BACKEND=jax or torch the rest works without TensorFlow.
    if args.loader == "tf" and importlib.util.find_spec("tensorflow") is None:
        raise TrainError("--loader tf needs TensorFlow, which is not installed", hint="Pass --loader keras.")
    if args.tune and task.splits[1] is None:
        raise TrainError("--tune needs a split val to judge by", hint="Convert with --split train=0.9,val=0.1.")
    if args.backend is not None:
        os.environ["KERAS_BACKEND"] = args.backend

    import keras  # here, so that a mistake in the arguments is told at once; picks the device by itself

    from streamkit.training.networks import Design, default_model

    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    backend = keras.backend.backend()
    if args.quantize == "tflite" and backend != "tensorflow":
        raise TrainError(f"--quantize tflite needs TensorFlow, this is {backend}", hint="Pass --backend tensorflow.")
    options = {}
    design = Design(args.model or default_model(task.shape), args.conv, args.width, args.norm, args.remat)
    if len(task.shape) == 1:
        vocabulary, longest = tokens_of(args, task)
        design = replace(design, vocabulary=vocabulary)
        options["pad_to"] = longest if backend == "jax" else "batch"  # JAX compiles each length anew
    job = Job(design, task.shape, task.field.dtype, len(task.label.class_names), args.rate, 1)
    with on_devices(args.devices):
        batch_size, accumulate = batch_of(args, task, job)
        data, val = loaders(args, task, batch_size, **options)
        way = args.loader or ("tf" if backend == "tensorflow" else "keras")
        ways = tuple(None if source is None else getattr(source, f"as_{way}")() for source in (data, val))
        job = replace(job, n_updates=max(1, args.epochs * len(data) // accumulate))
        if args.tune:
            job = tuned(args, task, job, ways, accumulate, len(data))
        model = built(job, accumulate)
    callbacks = watchers(args, "loss" if val is None else "val_loss", job.n_updates)
    history = run(model, *ways, args.resume, epochs=args.epochs, class_weight=class_weight, callbacks=callbacks)
    rows = smaller_forms(args, model, job, data, val, ways)
    if args.report is not None:
        from streamkit.reports.training import write_report
        from streamkit.training import estimate

        facts = {"dataset": args.out, "model": design.model, "backend": backend, "precision": args.precision}
        facts |= {"samples a step": batch_size, "steps an update": accumulate}
        write_report(args.report, facts, history, callbacks[0], estimate(model, batch_size), rows)


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
