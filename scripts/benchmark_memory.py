#!/usr/bin/env python3
"""What each training technique saves: the peak of a step as XLA plans it on this machine, and the size of the trained model.

Steps are compiled and never run, so nothing here needs much memory. Sizes and accuracies are of scikit-learn's digits. On
a CPU XLA computes half precision in float32, so what mixed precision saves on a GPU does not show here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from streamkit.training.comparing import Row, compare, compare_model
from streamkit.training.factoring import low_rank, separable
from streamkit.training.memory import estimate
from streamkit.training.networks import Design, network
from streamkit.training.peaks import compiled_nbytes
from streamkit.training.pruning import PolynomialDecay, Prune
from streamkit.training.quantizing import int8
from streamkit.training.shrinking import shrink

RESULTS = Path(__file__).parent / "benchmark_results" / "memory.json"
SHAPE, BATCH = (32, 32, 3), 128
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TFLITE = """
import sys, keras, numpy as np
from streamkit.training.quantizing import tflite, tflite_call
x, model = np.load(sys.argv[1]), keras.models.load_model(sys.argv[2])
content = tflite(model, [x["train"][:256]])
open(sys.argv[3], "wb").write(content)
np.save(sys.argv[4], tflite_call(content)(x["val"]))
"""


# XLA on a CPU merges what is computed again with what was computed before, so PyTorch's allocator has to tell about remat.
ALLOCATED = """
import sys, torch, keras, numpy as np
from streamkit.training.networks import Design, network
for remat in (False, True):
    model = network(Design("resnet", norm="group", remat=remat), (32, 32, 3), "uint8", 10)
    x, y = torch.zeros((16, 32, 32, 3), dtype=torch.uint8), torch.zeros(16, dtype=torch.int64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model(x, training=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(y, model(x, training=True)).backward()
    events = sorted((e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    print(max(np.cumsum([n for _, n in events])))
"""


def step(design: Design, batch: int = BATCH, accumulate: int | None = None, policy: str = "float32") -> dict[str, Any]:
    """Peak of a training step [B], as compiled and as counted."""
    keras.config.set_dtype_policy(policy)
    model = network(design, SHAPE, "uint8", 10)
    model.compile(keras.optimizers.Adam(gradient_accumulation_steps=accumulate), LOSS)
    keras.config.set_dtype_policy("float32")
    return peak(model, batch)


def peak(model: Any, batch: int) -> dict[str, Any]:
    like = np.zeros((1, *model.input_shape[1:]), "uint8"), np.zeros(1, "int32")
    return {
        "peak_nbytes": compiled_nbytes(model, like, batch),
        "estimate_nbytes": estimate(model, batch).total_nbytes,
        "parameters": model.count_params(),
    }


def activation(layer: Any) -> dict[str, Any]:
    """Peak of a step of three convolutions with batch normalisation and an activation after each."""
    layers = keras.layers
    stack = [keras.Input(SHAPE, dtype="uint8"), layers.Rescaling(1 / 255)]
    for filters in (32, 64, 64):
        stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False), layers.BatchNormalization(), layer()]
    model = keras.Sequential([*stack, layers.GlobalAveragePooling2D(), layers.Dense(10)])
    model.compile("adam", LOSS)
    return peak(model, BATCH)


def with_heads(names: Iterable[str], only: str) -> list[str]:
    """The names that hold `only`, each after the first of its group, which it is to be compared with."""
    head, out = "", []
    for name in names:
        head = head if name.startswith("-") else name
        if only in name:
            out += [head, name]
    return list(dict.fromkeys(out))


def steps(only: str = "") -> dict[str, dict[str, Any]]:
    """Technique -> what a step takes. Each is to be compared with the first of its group."""
    small, deep = Design("small_cnn"), Design("resnet", norm="group")
    layers = keras.layers
    out: dict[str, Any] = {
        "small_cnn, batch 128": lambda: step(small),
        "- batch 32, accumulated 4 times": lambda: step(small, BATCH // 4, 4),
        "- mixed_bfloat16": lambda: step(small, policy="mixed_bfloat16"),
        "- mixed_float16": lambda: step(small, policy="mixed_float16"),
        "- separable convolutions": lambda: step(Design("separable_cnn")),
        "- half the width": lambda: step(Design("small_cnn", width=0.5)),
        "resnet with group normalisation, batch 128": lambda: step(deep),
        "- rematerialised": lambda: step(Design("resnet", norm="group", remat=True)),
        "three convolutions with ReLU, batch 128": lambda: activation(layers.ReLU),
        "- LeakyReLU": lambda: activation(layers.LeakyReLU),
        "- ELU": lambda: activation(layers.ELU),
        "- SiLU": lambda: activation(lambda: layers.Activation("silu")),
        "- GELU": lambda: activation(lambda: layers.Activation("gelu")),
    }
    found = {}
    for name in with_heads(out, only):
        found[name] = out[name]()
        print(f"{name}: {found[name]['peak_nbytes'] / 1e6:.1f} MB", file=sys.stderr, flush=True)
    return found


def allocated() -> dict[str, dict[str, Any]]:
    """Peak of what PyTorch allocates on the CPU for a forward and a backward pass of 16 samples."""
    names = ("resnet with group normalisation, batch 16, PyTorch", "- rematerialised, PyTorch")
    return {name: {"peak_nbytes": int(n)} for name, n in zip(names, child("torch", ALLOCATED).split(), strict=True)}


def child(backend: str, script: str, *arguments: str) -> str:
    """What a script prints on another backend, in a process of its own; ends this one with its last words if it fails."""
    env = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run([sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"benchmark_memory: the part on {backend} ended with {run.returncode}\n{run.stderr[-4000:]}")
    return run.stdout


# Trained models


def digits() -> dict[str, Any]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x.reshape(-1, 8, 8, 1).astype(np.float32)[order], y[order]
    n = len(x) * 4 // 5 // 64 * 64
    return {"train": x[:n], "y": y[:n], "val": x[n:], "val_y": y[n:]}


def trained(model: Any, data: dict[str, Any], epochs: int, rate: float, callbacks: Any = ()) -> Any:
    model.compile(keras.optimizers.Adam(rate, weight_decay=1e-3), LOSS)
    model.fit(data["train"], data["y"], batch_size=64, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def digits_network() -> Any:
    layers = keras.layers
    stack = [keras.Input((8, 8, 1)), layers.Rescaling(1 / 16)]
    for filters, strides in ((24, 1), (48, 2)):
        stack += [layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)]
        stack += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)])


def copy_of(model: Any) -> Any:
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


def models(work: Path) -> list[Row]:
    """A row for each smaller form of one trained network; two epochs of fine-tuning where it says nothing else."""
    keras.utils.set_random_seed(0)
    data = digits()
    batches = [(data["val"], data["val_y"])] * 3
    dense = trained(digits_network(), data, 8, 3e-3)
    n = 8 * len(data["train"]) // 64  # updates in 8 epochs

    def pruned(epochs: int, share: float, scope: str = "layer", unit: str = "weight") -> Any:
        schedule = PolynomialDecay(share, end=n * epochs // 16, every=4)
        return trained(copy_of(dense), data, epochs, 3e-3, [Prune(schedule, scope, unit)])

    out: list[Row] = []

    def row(name: str, model: Any) -> None:
        out.append(compare_model(name, model, batches))
        print(out[-1], file=sys.stderr, flush=True)

    row("dense", dense)
    row("90 % zeros, over all layers, 8 epochs", pruned(8, 0.9, "global"))
    row("90 % zeros in every layer, 8 epochs", pruned(8, 0.9))
    row("90 % zeros in every layer, 30 epochs", pruned(30, 0.9))
    row("half of the filters out, 8 epochs", shrink(pruned(8, 0.5, unit="filter")))
    row("low rank, energy 0.9", trained(low_rank(dense, energy=0.9), data, 2, 1e-3))
    row("separable, depth 1", trained(separable(dense, 1), data, 2, 3e-3))
    row("separable, depth 2", trained(separable(dense, 2), data, 2, 3e-3))
    row("separable, depth 4", trained(separable(dense, 4), data, 2, 1e-3))
    small, left = int8(dense)
    row(f"int8 (Keras; leaves {len(left)} convolutions)", small)
    files = [work / name for name in ("data.npz", "dense.keras", "int8.tflite", "found.npy")]
    np.savez(files[0], **data)
    dense.save(files[1])
    child("tensorflow", TFLITE, *map(str, files))
    found = np.load(files[3])
    content = files[2].read_bytes()
    out.append(compare("int8 (TFLite)", lambda x: found, batches[:1], dense.count_params(), content))
    print(out[-1], file=sys.stderr, flush=True)
    return out


def table(result: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    lines = ["| a training step | parameters | peak (XLA on a CPU) | of the first |", "|---|---|---|---|"]
    first = 1
    for name, found in result["steps"].items():
        first = first if name.startswith("-") else found["peak_nbytes"]
        share = "" if not name.startswith("-") else f"{found['peak_nbytes'] / first:.2f}"
        counted = f"{found['parameters']:,}" if "parameters" in found else ""
        lines.append(f"| {name} | {counted} | {found['peak_nbytes'] / 1e6:.1f} MB | {share} |")
    if "models" not in result:
        return "\n".join(lines)
    lines += ["", "| a trained model | parameters | size | deflated | accuracy |", "|---|---|---|---|---|"]
    for row in result["models"]:
        sizes = f"{row['nbytes'] / 1e3:.0f} KB | {row['deflated_nbytes'] / 1e3:.0f} KB"
        lines.append(f"| {row['name']} | {row['parameters']:,} | {sizes} | {row['accuracy']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    import dataclasses
    import tempfile

    import jax

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"keep the result in {RESULTS.parent.name}/{RESULTS.name}")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of the result that was kept, measure nothing"
    )
    parser.add_argument("--only", metavar="TEXT", help="measure no more than steps whose name holds this")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RESULTS.read_text())))
        return
    if args.only is not None and args.save:
        parser.error("--save keeps everything, so it does not go with --only")
    if keras.backend.backend() != "jax":
        parser.error("only JAX tells the peak of a step before it runs; set KERAS_BACKEND=jax")
    if args.only is not None:
        print(table({"steps": steps(args.only)}))
        return
    result: dict[str, Any] = {
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"keras": keras.__version__, "jax": jax.__version__, "python": platform.python_version()},
        "steps": steps() | allocated(),
    }
    with tempfile.TemporaryDirectory() as work:
        rows = [dataclasses.asdict(row) for row in models(Path(work))]
    for row in rows:
        del row["images_per_second"], row["step_nbytes"]  # on a busy CPU, and of other models
    result["models"] = rows
    print(table(result))
    if args.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
