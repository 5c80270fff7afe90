#!/usr/bin/env python3
"""Trains a network on a streamkit dataset, with every technique of streamkit.training: a reference for a loop of your own.

What the network looks like, the sizes and the number of classes all come from the dataset's schema. Prints one line per
epoch, and one for each form of the trained model. Flags are in streamkit.training.flags; everything here is a call of the
library, so copy what you need.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamkit
from streamkit.errors import UsageError
from streamkit.training.failures import streamkit_error
from streamkit.training.flags import parse_arguments
from streamkit.training.refusing import refuse_foreign, refuse_unwritable
from streamkit.training.task import Task, task_of, tokens_of

# Modules of streamkit.training that load Keras are imported where they are used: --backend has to be set before, and a
# mistake in the arguments is told at once.


def loaders(args: argparse.Namespace, task: Task, batch_size: int, **options: Any) -> tuple[Any, Any, Any]:
    """Training batches, all of one size, so that the step is compiled once; validation batches or None; those to judge by."""
    options |= {"fields": (task.field.name, task.label.name), "image_size": args.image_size, "dtype": "uint8"}

    def whole(split: str | None) -> Any:
        part = split and part_of(args, split)
        return part and streamkit.Loader(args.out, split=part, batch_size=batch_size, shuffle=False, **options)

    train, val = task.splits
    options_of_train = {"batch_size": batch_size, "drop_remainder": True, "seed": args.seed}
    return streamkit.Loader(args.out, split=train, **options_of_train, **options), whole(val), whole(task.judged)


def part_of(args: argparse.Namespace, split: str) -> str:
    """A split without the last samples that --devices cannot share."""
    from streamkit.training.devices import shared

    n_samples = streamkit.open(args.out).split(split).samples
    kept = shared(n_samples * args.devices, n_samples, args.devices)
    return split if kept == n_samples else f"{split}[:{kept}]"


def batch_of(args: argparse.Namespace, task: Task, job: Any, **options: Any) -> tuple[int, int]:
    """(samples a step, steps an update); `options` are of loaders whose batches are as large as they get."""
    from streamkit.training.devices import shared

    n_samples, n = streamkit.open(args.out).split(task.splits[0]).samples, args.devices
    if isinstance(args.batch_size, int):
        return shared(args.batch_size, n_samples, n), args.accumulate
    from streamkit.training.batching import largest_batch
    from streamkit.training.job import built

    update = args.batch_size.update
    found = largest_batch(
        functools.partial(built, job),
        next(iter(loaders(args, task, 1, **options)[0])),
        update // n,  # what one device does of it
        args.memory_limit,
        largest=min(shared(update, n_samples, n), update // args.accumulate) // n,
        remember={"job": repr(replace(job, n_updates=0))},
    )
    limit = "what is free" if args.memory_limit is None else f"{args.memory_limit / 1e6:.0f} MB"
    print(
        f"batch size {found.size * n} x {found.accumulate} = {update}: "
        f"a step takes {found.nbytes / 1e6:.0f} MB of {limit}{f' on each of {n} devices' if n > 1 else ''}",
        file=sys.stderr,
    )
    return found.size * n, found.accumulate


def watchers(args: argparse.Namespace, monitor: str, memory: Any, prune: Any) -> list[Any]:
    """The callbacks that the arguments ask for; those that write logs come after those that put something into them."""
    import keras

    from streamkit.training.timing import EpochReport

    if args.log_dir is not None:
        args.log_dir.mkdir(parents=True, exist_ok=True)
    out: list[Any] = [memory, EpochReport(), *([prune] if prune else [])]
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
    for callback in out:
        if isinstance(callback, (keras.callbacks.ModelCheckpoint, keras.callbacks.TensorBoard)):
            callback.async_safe = True  # they do nothing after a step here, so Keras need not wait for the device
    return out


def run(args: argparse.Namespace, ways: Any, model: Any, folder: Path | None, settings: Any, **options: Any) -> Any:
    """Train; with a folder for the run, go on exactly where it was stopped. Returns the history."""
    data, val = ways
    if folder is None:
        # shuffle=False: the loader shuffles already, over the whole split; fit would shuffle its batches once more.
        return model.fit(data, validation_data=val, shuffle=False, verbose=0, **options).history
    from streamkit.training import fit

    begun = epochs_of(folder)
    if begun not in (None, options["epochs"]):
        text = "learning rate and pruning follow the new number from here on"
        print(f"{folder} was begun for {begun} epochs, now {options['epochs']}: {text}", file=sys.stderr)
    where = {"run_dir": folder, "every_steps": args.save_every or 1000, "settings": settings}
    return fit(model, data, validation=val, verbose=0, **where, **options).history


def epochs_of(folder: Path | None) -> int | None:
    """How many epochs the run in `folder` was begun for; None if there is none yet."""
    from streamkit.training.state import FILE_NAME, saved_facts

    file = folder and folder / FILE_NAME
    return saved_facts(file).get("epochs") if file and file.exists() else None


def tuned(args: argparse.Namespace, job: Any, ways: Any, accumulate: int, class_weight: Any) -> Any:
    """The best choice of a search; a run that has begun goes on with the choice that it began with."""
    from streamkit.training.job import built, chosen
    from streamkit.training.searching import search

    facts = {"dataset": streamkit.open(args.out).dataset_id, "job": repr(replace(job, n_updates=0))}
    facts |= {"accumulate": accumulate, "precision": args.precision, "class weights": args.class_weights}
    best, trials = search(
        lambda choice: built(chosen(job, choice), accumulate),
        *ways,
        steps=len(ways[0]) / accumulate,
        folder=(args.resume or args.log_dir) / "tune",
        epochs=epochs_of(args.resume) or args.epochs,
        price=args.tune_price,
        seed=args.seed,
        fit={"class_weight": class_weight},
        facts=facts,
    )
    for trial in trials[:10]:
        print("trial " + " ".join(f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in trial.items()))
    return best


def smaller_forms(
    args: argparse.Namespace, model: Any, job: Any, accumulate: int, data: Any, judged: Any, again: Callable[..., Any]
) -> Iterator[Any]:
    """A row for the trained model and each form that was asked for, measured on `judged`; `again` trains."""
    from streamkit.training import peaks
    from streamkit.training.forms import Forms
    from streamkit.training.job import compiled, n_updates

    def fine_tune(model: Any) -> None:
        compiled(model, job.rate / 3, n_updates(args.fine_tune, len(data), accumulate), accumulate)
        # Its weights come from those after so many epochs: after more of them it is another run.
        folder = args.resume and args.resume / f"low-rank-{args.low_rank}-after-{args.epochs}"
        again(model, folder, epochs=args.fine_tune)

    def step_nbytes(model: Any) -> int | None:
        if args.report is None:
            return None
        try:
            return peaks.step_nbytes(model, data[0], data.batch_size // args.devices)
        except streamkit.ResourceError as error:
            print(f"the peak of a step is not known: {error}", file=sys.stderr)
            return None

    return Forms(
        batches=judged,
        energy=args.low_rank,
        fine_tune=fine_tune,
        quantize=args.quantize,
        calibration=(data[i] for i in range(min(len(data), 1 + 256 // data.batch_size))),
        step_nbytes=step_nbytes,
        folder=args.resume or args.log_dir,
    ).rows(model)


def train(args: argparse.Namespace) -> None:
    task = task_of(streamkit.open(args.out), args.image_size)
    for folder in filter(None, (args.resume, args.log_dir)):
        refuse_foreign(folder)
    if args.report is not None:
        refuse_unwritable(args.report)
    # Only looked for, never imported: with KERAS_BACKEND=jax or torch the rest works without TensorFlow.
    if args.loader == "tf" and importlib.util.find_spec("tensorflow") is None:
        raise UsageError("--loader tf needs TensorFlow, which is not installed", hint="Pass --loader keras.")
    if args.tune and task.splits[1] is None:
        raise UsageError("--tune needs a split val to judge by", hint="Convert with --split train=0.9,val=0.1.")
    if args.backend is not None:
        os.environ["KERAS_BACKEND"] = args.backend

    import keras  # picks the device by itself

    from streamkit.training.devices import Devices
    from streamkit.training.job import Job
    from streamkit.training.networks import Design, default_model, refuse_misfit

    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    backend = keras.backend.backend()
    if args.quantize == "tflite" and backend != "tensorflow":
        raise UsageError(f"--quantize tflite needs TensorFlow, this is {backend}", hint="Pass --backend tensorflow.")
    if backend == "jax" and task.field.dtype.endswith("64"):  # networks here compute in 32 bits on any backend
        warnings.filterwarnings(
            "ignore", message="Explicitly requested dtype .*64 requested in asarray is not available"
        )
    devices = Devices(args.devices)
    options, longest = {}, {}
    model_name = args.model or default_model(task.shape)
    design = Design(model_name, args.conv, args.width, args.norm, args.remat, augment=args.augment)
    refuse_misfit(design, task.shape)
    if len(task.shape) == 1:
        vocabulary, longest["pad_to"] = tokens_of(args.out, task)
        design = replace(design, vocabulary=vocabulary)
        options = longest if backend == "jax" else {}  # JAX compiles each length anew
    job = Job(design, task.shape, task.field.dtype, len(task.label.class_names), args.rate, 1)
    batch = batch_of(args, task, job, **longest)  # in another process: this one is not to hold the devices yet
    devices.refuse_unsafe(args.precision, batch[1])
    with devices.scope():
        train_job(args, task, job, batch, options | {"device": devices.target})


def train_job(args: argparse.Namespace, task: Task, job: Any, batch: tuple[int, int], options: dict[str, Any]) -> None:
    """Train, make the smaller forms, write the report; `batch` is of `batch_of`, `options` are the loaders'."""
    import keras

    from streamkit.training.job import built, chosen, n_updates, settings
    from streamkit.training.monitor import MemoryMonitor
    from streamkit.training.searching import Choice

    class_weight = streamkit.open(args.out).class_weights(task.splits[0]) if args.class_weights else None
    batch_size, accumulate = batch
    data, val, judged = loaders(args, task, batch_size, **options)
    for split in sorted({task.splits[1] or task.judged, task.judged}):
        if (part := part_of(args, split)) != split:
            print(f"{part} instead of {split}, so that {args.devices} devices share every batch", file=sys.stderr)
    n = streamkit.open(args.out).split(task.splits[0]).samples
    if n % batch_size:
        text = (
            f"an epoch leaves out {n % batch_size} of {n} samples, others each time: they fill no batch of {batch_size}"
        )
        print(text, file=sys.stderr)
    way = args.loader or ("tf" if keras.backend.backend() == "tensorflow" else "keras")
    ways = tuple(None if source is None else getattr(source, f"as_{way}")() for source in (data, val))
    job = replace(job, n_updates=n_updates(args.epochs, len(data), accumulate))
    if args.low_rank is not None:  # told now, and not when the model is trained
        n_updates(args.fine_tune, len(data), accumulate)
    choice = Choice(args.rate, args.width, args.prune or 0.0)
    if args.tune:
        choice = tuned(args, job, ways, accumulate, class_weight)
    job = chosen(job, choice)
    model = built(job, accumulate)
    memory = MemoryMonitor(args.log_dir and args.log_dir / "memory.csv")
    callbacks = watchers(args, "loss" if val is None else "val_loss", memory, choice.prune(job.n_updates))
    same = {"image_size": args.image_size, "precision": args.precision, "class_weights": args.class_weights}
    same = settings(job, choice, accumulate=accumulate, **same)
    training = functools.partial(run, args, ways, settings=same, class_weight=class_weight)
    history = training(model, args.resume, epochs=args.epochs, callbacks=callbacks)
    rows = []
    if choice.sparsity or args.low_rank or args.quantize or args.report:
        for row in smaller_forms(args, model, job, accumulate, data, judged, training):
            print(f"{row}, on {task.judged}", flush=True)
            rows.append(row)
    if args.report is not None:
        from streamkit.reports.training import write_report
        from streamkit.training import estimate

        facts = {"dataset": args.out, "model": job.design.model, "backend": keras.backend.backend()}
        facts |= {"precision": args.precision, "samples a step": batch_size, "steps an update": accumulate}
        facts["accuracy of the table"] = f"split {task.judged}"
        write_report(args.report, facts, history, memory, estimate(model, batch_size), rows)


def main() -> int:
    args = parse_arguments()
    try:
        train(args)
    except KeyboardInterrupt:
        if args.resume is not None:
            print("interrupted; the same command goes on where it was", file=sys.stderr)
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
