#!/usr/bin/env python3
"""Trains a network on a streamkit dataset, with every technique of streamkit.training: a reference for a loop of your own.

What the network looks like, the sizes and the number of classes all come from the dataset's schema. Prints one line per
epoch, and one for each form of the trained model. Flags are in streamkit.training.flags; everything here is a call of the
library, so copy what you need.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamkit
from streamkit.errors import UsageError
from streamkit.training.failures import streamkit_error
from streamkit.training.flags import parse_arguments
from streamkit.training.task import Task, task_of, tokens_of

# Modules of streamkit.training that load Keras are imported where they are used: --backend has to be set before, and a
# mistake in the arguments is told at once.


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


def batch_of(args: argparse.Namespace, task: Task, job: Any) -> tuple[int, int]:
    """(samples a step, steps an update)."""
    n_samples = streamkit.open(args.out).split(task.splits[0]).samples
    if isinstance(args.batch_size, int):
        return min(args.batch_size, n_samples), args.accumulate
    from streamkit.training.batching import largest_batch
    from streamkit.training.job import built

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
        raise UsageError(
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
    raise UsageError(f"--devices {n}: {backend} finds {len(devices)}")


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


def tuned(args: argparse.Namespace, job: Any, ways: tuple[Any, Any], accumulate: int, n_steps: int) -> Any:
    """The job with the best learning rate and width of a search; --prune becomes the best sparsity."""
    from streamkit.training.job import built
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


def smaller_forms(args: argparse.Namespace, model: Any, job: Any, data: Any, val: Any, ways: Any) -> list[Any]:
    """A row for the trained model and each form that was asked for, measured on the validation batches."""
    import keras

    from streamkit.training.forms import Forms
    from streamkit.training.job import compiled
    from streamkit.training.peaks import compiled_nbytes

    if not (args.low_rank or args.quantize or args.report):
        return []

    def fine_tune(model: Any) -> None:
        compiled(model, job.rate / 3, args.fine_tune * len(data), 1)
        run(model, *ways, args.resume and args.resume / "low-rank", epochs=args.fine_tune)

    def step_nbytes(model: Any) -> int | None:
        if args.report is None or keras.backend.backend() != "jax":
            return None
        return compiled_nbytes(model, data[0], data.batch_size)

    forms = Forms(
        batches=val or data,
        energy=args.low_rank,
        fine_tune=fine_tune,
        quantize=args.quantize,
        calibration=(data[i] for i in range(min(len(data), 1 + 256 // data.batch_size))),
        step_nbytes=step_nbytes,
        folder=args.resume or args.log_dir,
    )
    rows = []
    for row in forms.rows(model):
        print(row, flush=True)
        rows.append(row)
    return rows


def train(args: argparse.Namespace) -> None:
    manifest = streamkit.open(args.out)
    task = task_of(manifest, args.image_size)
    class_weight = manifest.class_weights(task.splits[0]) if args.class_weights else None
    # Only looked for, never imported: with KERAS_BACKEND=jax or torch the rest works without TensorFlow.
    if args.loader == "tf" and importlib.util.find_spec("tensorflow") is None:
        raise UsageError("--loader tf needs TensorFlow, which is not installed", hint="Pass --loader keras.")
    if args.tune and task.splits[1] is None:
        raise UsageError("--tune needs a split val to judge by", hint="Convert with --split train=0.9,val=0.1.")
    if args.backend is not None:
        os.environ["KERAS_BACKEND"] = args.backend

    import keras  # picks the device by itself

    from streamkit.training.job import Job, built
    from streamkit.training.networks import Design, default_model, refuse_misfit

    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    backend = keras.backend.backend()
    if args.quantize == "tflite" and backend != "tensorflow":
        raise UsageError(f"--quantize tflite needs TensorFlow, this is {backend}", hint="Pass --backend tensorflow.")
    options = {}
    model_name = args.model or default_model(task.shape)
    design = Design(model_name, args.conv, args.width, args.norm, args.remat, augment=args.augment)
    refuse_misfit(design, task.shape)
    if len(task.shape) == 1:
        vocabulary, longest = tokens_of(args.out, task)
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
            job = tuned(args, job, ways, accumulate, len(data))
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
        print(f"train: {known}", file=sys.stderr)
        return known.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
