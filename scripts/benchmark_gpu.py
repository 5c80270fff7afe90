#!/usr/bin/env python3
"""Training on a GPU: is ResNet-50 kept busy, what does each memory technique save on the device, does a killed run end alike.

Every measurement runs in a process of its own, on JAX and on PyTorch; TensorFlow is not needed. Photographs are converted
first, each under as many names as --samples asks for. What takes room and no time (memory, killed runs) is measured
several at a time, what takes time alone. See README, "On a GPU".

Example: python scripts/benchmark_gpu.py --photos photos/ --save
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# The allocator's peak counts, not what it set aside; and several processes share the GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import numpy as np

import streamkit

BACKEND = os.environ.get("KERAS_BACKEND", "")  # of a child
RESULTS = Path(__file__).parent / "benchmark_results" / "gpu.json"
SIDE, N_CLASSES = 224, 1000
DEVICE = {"jax": "gpu:0", "torch": "cuda:0"}
PARTS = ("memory", "resume", "feed", "auto")


# Data


def write_datasets(photos: Path, n_samples: int, folder: Path) -> None:
    """Datasets in `folder`: "photos" as they are, "small", their short side 256, and "pixels", uint8 rows of 224 x 224."""
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"there is no JPEG file below {photos}")
    for i in range(n_samples):
        file = files[i % len(files)]
        to = folder / "raw" / file.parent.name / f"{i:06d}.jpg"
        to.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, to) if file.stat().st_dev == folder.stat().st_dev else shutil.copyfile(file, to)
    streamkit.convert(folder / "raw", folder / "photos", format="tfrecord")
    streamkit.convert(folder / "raw", folder / "small", format="tfrecord", resize=256, encode="jpeg:90")
    options = {"batch_size": 64, "shuffle": False, "image_size": (SIDE, SIDE), "dtype": "uint8"}
    x, y = zip(*streamkit.Loader(folder / "photos", **options), strict=True)
    rows = folder / "rows.npz"
    np.savez(rows, x=np.concatenate(x), y=np.concatenate(y))
    streamkit.convert(rows, folder / "pixels", format="tfrecord", compression="none")
    rows.unlink()


def loader(folder: Path, name: str, batch: int) -> Any:
    crops = {"image_size": (SIDE, SIDE), "crop": "random", "flip": True} if name != "pixels" else {}
    options: dict[str, Any] = {**crops, "batch_size": batch, "drop_remainder": True, "device": DEVICE[BACKEND]}
    return streamkit.Loader(folder / name, dtype="uint8", memory_budget="4GiB", **options)


# Is the GPU kept busy


def resnet50(policy: str, accumulate: int | None = None) -> Any:
    """Of Keras, from uint8 pixels, float32 logits; compiled."""
    import keras

    keras.config.set_dtype_policy(policy)
    x = inputs = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(SIDE, SIDE, 3))(x)
    model = keras.Model(inputs, keras.layers.Dense(N_CLASSES, dtype="float32")(x))
    compile_with_sgd(model, accumulate)
    return model


def compile_with_sgd(model: Any, accumulate: int | None = None) -> None:
    import keras

    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=accumulate)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def held_on_device(batches: list[Any], n_steps: int) -> Any:
    """A dataset of `n_steps` batches that are on the device already."""
    import keras

    class Held(keras.utils.PyDataset):
        def __len__(self) -> int:
            return n_steps

        def __getitem__(self, i: int) -> Any:
            return batches[i % len(batches)]

    return Held()


def feed(folder: Path, policy: str, batch: int, n_rounds: int) -> dict[str, Any]:
    """Images a second and share of the time that training waited, by where batches come from.

    Only mixed_bfloat16 is fed; of the other policies nothing but the speed from device memory is of interest.
    """
    from streamkit.frontends.devices import mover
    from streamkit.training.timing import EpochReport

    model = resnet50(policy)
    move = mover(BACKEND, DEVICE[BACKEND])
    there = [move(streamkit.Loader(folder / "pixels", batch_size=batch).batch(0, i)) for i in range(4)]
    for _ in range(2):  # compiles; on JAX once more for a state that training left behind
        model.fit(held_on_device(there, 8), verbose=0)
    names = ("pixels", "small", "photos") if policy == "mixed_bfloat16" else ()
    loaders = {name: loader(folder, name, batch) for name in names}
    n_steps = len(loader(folder, "pixels", batch))
    ways = {"device memory": held_on_device(there, n_steps)} | {name: way.as_keras() for name, way in loaders.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, way in ways.items():  # in turns
            report = EpochReport()
            cpu = time.process_time()
            model.fit(way, shuffle=False, verbose=0, callbacks=[report])
            facts = {"images_per_second": report.images_per_second, "data_wait": report.data_wait}
            found[name].append(facts | {"cpu_s": time.process_time() - cpu})
    medians = {
        name: {fact: statistics.median(each[fact] for each in rounds) for fact in rounds[0]}
        for name, rounds in found.items()
    }
    for name, source in loaders.items():
        medians[name]["loader_alone"] = alone_per_second(source)
        pairs = zip(found[name], found["device memory"], strict=True)
        shares = [mine["images_per_second"] / best["images_per_second"] for mine, best in pairs]
        medians[name]["of_device_memory"] = statistics.median(shares)
    return {"batch": batch, "steps": n_steps, "ways": medians, "rounds": found}


def alone_per_second(source: Any) -> float:
    """Images a second of a loader that nobody keeps waiting."""
    begun = time.perf_counter()
    n = sum(source.batch_size for _ in source)
    return n / (time.perf_counter() - begun)


# Device memory


def techniques() -> dict[str, Callable[[], tuple[Any, int]]]:
    """Name -> (compiled model, samples a step). Each is to be compared with the first of its group."""
    import keras

    from streamkit.training.networks import Design, network

    def ours(design: Design, policy: str = "float32") -> Any:
        keras.config.set_dtype_policy(policy)
        model = network(design, (SIDE, SIDE, 3), "uint8", N_CLASSES)
        compile_with_sgd(model)
        return model

    def stack(layer: Any) -> Any:
        layers: list[Any] = [keras.Input((SIDE, SIDE, 3), dtype="uint8"), keras.layers.Rescaling(1 / 255)]
        for filters in (32, 64, 64):
            layers += [keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)]
            layers += [keras.layers.BatchNormalization(), layer()]
        model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(N_CLASSES)])
        compile_with_sgd(model)
        return model

    group, remat = (Design("resnet", norm="group", augment=False, remat=r) for r in (False, True))
    activation = keras.layers.Activation
    return {
        "ResNet-50, float32, batch 64": lambda: (resnet50("float32"), 64),
        "- mixed_float16": lambda: (resnet50("mixed_float16"), 64),
        "- mixed_bfloat16": lambda: (resnet50("mixed_bfloat16"), 64),
        "- batch 16, accumulated 4 times": lambda: (resnet50("float32", 4), 16),
        "- batch 16, accumulated 4 times, mixed_bfloat16": lambda: (resnet50("mixed_bfloat16", 4), 16),
        "resnet with group normalisation, batch 64": lambda: (ours(group), 64),
        "- rematerialised": lambda: (ours(remat), 64),
        "- rematerialised, mixed_bfloat16": lambda: (ours(remat, "mixed_bfloat16"), 64),
        "three convolutions with ReLU, batch 64": lambda: (stack(keras.layers.ReLU), 64),
        "- LeakyReLU": lambda: (stack(keras.layers.LeakyReLU), 64),
        "- SiLU": lambda: (stack(lambda: activation("silu")), 64),
        "- GELU": lambda: (stack(lambda: activation("gelu")), 64),
    }


def memory(name: str) -> dict[str, Any]:
    """Peak of a training step [B]: as PyTorch's allocator saw it, as XLA planned it, as counted."""
    from streamkit.frontends.devices import mover
    from streamkit.training.memory import estimate
    from streamkit.training.peaks import compiled_nbytes, zeros
    from streamkit.training.usage import allocator_nbytes, read_memory

    model, batch = techniques()[name]()
    like = np.zeros((1, SIDE, SIDE, 3), np.uint8), np.zeros(1, np.int32)
    found: dict[str, Any] = {"estimate_nbytes": estimate(model, batch).total_nbytes}
    there = [mover(BACKEND, DEVICE[BACKEND])(zeros(like, batch))]
    model.fit(held_on_device(there, 4), verbose=0)
    found["process_nbytes"] = read_memory().process_nbytes
    if BACKEND == "torch":
        return found | {"peak_nbytes": allocator_nbytes()[1]}
    # The allocator's peak is that of XLA trying out kernels.
    found["peak_with_compiling_nbytes"] = allocator_nbytes()[1]
    return found | {"planned_nbytes": compiled_nbytes(model, like, batch)}


# A run that is killed

CASES = {"float32": [], "mixed_float16, accumulated": ["--precision", "mixed_float16", "--accumulate", "4"]}
RUN = ["--image-size", "64x64", "--model", "small_cnn", "--batch-size", "16", "--save-every", "7"]


def resume(folder: Path, case: str, deterministic: bool) -> dict[str, Any]:
    """Train to the end; and again, killed with SIGKILL in the first epoch and continued. How far apart are they?"""
    work = folder / f"resume-{BACKEND}-{case}-{deterministic}".replace(" ", "-")
    out = work / "out"
    work.mkdir()
    pictures = sorted((folder / "raw").glob("*"))[:20]
    for source in pictures:
        shutil.copytree(source, work / "raw" / source.name)
    streamkit.convert(work / "raw", out, format="tfrecord", workers=2)
    lives = [("whole", False), ("broken", True), ("broken", False)]
    codes = [train(out, work / run, CASES[case], deterministic, kill) for run, kill in lives]
    if codes != [0, -signal.SIGKILL, 0]:
        raise SystemExit(f"the runs ended with {codes}: none was killed in its middle")
    apart = np.abs(saved_numbers(work / "broken") - saved_numbers(work / "whole"))
    return {"killed": True, "largest_difference": float(apart.max())}


def train(out: Path, run: Path, flags: list[str], deterministic: bool, kill: bool) -> int:
    """Exit code of scripts/train.py; with `kill`, SIGKILL soon after its run was saved once more."""
    from streamkit.training.state import FILE_NAME

    file, env = run / FILE_NAME, dict(os.environ)
    script = str(Path(__file__).with_name("train.py"))
    code = "import runpy, sys; sys.argv = sys.argv[1:]; "
    if deterministic and BACKEND == "torch":
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        code += "import torch; torch.use_deterministic_algorithms(True); "
    if deterministic and BACKEND == "jax":
        flags_before = env.get("XLA_FLAGS", "")
        env["XLA_FLAGS"] = f"{flags_before} --xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_autotune_level=0"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    before = file.stat().st_mtime_ns if file.exists() else 0
    command = [sys.executable, "-c", code, script, str(out), "--epochs", "3", "--resume", str(run), *RUN, *flags]
    with open(run.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        while kill and process.poll() is None:
            if file.exists() and file.stat().st_mtime_ns > before:
                time.sleep(0.05)
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        code_found = process.wait()
    if code_found not in (0, -signal.SIGKILL):
        raise SystemExit(f"train.py ended with {code_found}\n{run.with_suffix('.log').read_text()[-3000:]}")
    return code_found


def saved_numbers(run: Path) -> Any:
    """All variables of a run as it ended, one array of float64."""
    from streamkit.training.state import FILE_NAME

    with np.load(run / FILE_NAME) as state:
        names = sorted(name for name in state.files if name.startswith(("model/", "optimizer/")))
        return np.concatenate([np.asarray(state[name], np.float64).ravel() for name in names])


def auto(folder: Path) -> dict[str, Any]:
    """What scripts/train.py prints when it looks for the largest batch on this device."""
    script = str(Path(__file__).with_name("train.py"))
    flags = ["--epochs", "2", "--image-size", "128x128", "--model", "resnet", "--precision", "mixed_bfloat16"]
    flags += ["--batch-size", "auto:8192", "--log-dir", str(folder / f"log-{BACKEND}")]
    env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "true", "XDG_STATE_HOME": str(folder / "state")}
    run = subprocess.run(
        [sys.executable, script, str(folder / "photos"), *flags], env=env, capture_output=True, text=True
    )
    told = [line for line in run.stderr.splitlines() if line.startswith(("batch size", "train:"))]
    return {"exit_code": run.returncode, "stdout": run.stdout.splitlines(), "stderr": told or [run.stderr[-2000:]]}


# Tables


def memory_table(kept: dict[str, Any]) -> list[str]:
    """A row a technique, each beside the first of its group: what XLA plans on JAX, what PyTorch's allocator saw."""
    lines = ["| a training step | JAX, as XLA plans it | of the first | PyTorch, allocator's peak | of the first |"]
    lines += ["|---|---|---|---|---|"]
    first: dict[str, int | None] = {}
    columns = {"jax": "planned_nbytes", "torch": "peak_nbytes"}
    for name in dict.fromkeys(name for found in kept.values() for name in found.get("memory", {})):
        row = [name]
        for backend, column in columns.items():
            nbytes = (
                kept.get(backend, {}).get("memory", {}).get(name, {}).get(column)
            )  # None: not measured, or it failed
            if not name.startswith("-"):
                first[backend] = nbytes
            share = f"{nbytes / first[backend]:.2f}" if name.startswith("-") and nbytes and first[backend] else ""
            row += [f"{nbytes / 1e9:.2f} GB" if nbytes else "", share]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def feed_table(kept: dict[str, Any]) -> list[str]:
    lines = [
        "| batches from | backend | images/s | of device memory | data wait | the loader alone, to the host |",
        "|---|---|---|---|---|---|",
    ]
    for backend, found in kept.items():
        for name, way in found.get("feed", {}).get("mixed_bfloat16", {}).get("ways", {}).items():
            share, alone = way.get("of_device_memory"), way.get("loader_alone")
            row = [name, backend, f"{way['images_per_second']:,.0f}", f"{share:.3f}" if share else ""]
            row += [f"{way['data_wait']:.1%}", f"{alone:,.0f}" if alone else ""]
            lines.append(f"| {' | '.join(row)} |")
    return lines


# All of it


def child(backend: str, part: str, *arguments: str) -> Any:
    """One measurement in a process of its own; what failed is told, and the others go on."""
    command = [sys.executable, __file__, "--child", part, *arguments]
    begun = time.perf_counter()
    run = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": backend}, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    print(f"{backend} {part} {' '.join(arguments[-2:])}: {seconds:.0f} s", file=sys.stderr, flush=True)
    if run.returncode:
        print(run.stderr[-3000:], file=sys.stderr, flush=True)
        return {"failed": run.stderr.strip().splitlines()[-1:]}
    return json.loads(run.stdout.splitlines()[-1])


def run_child(part: str, arguments: list[str]) -> Any:
    if part == "feed":
        folder, policy, batch, n_rounds = arguments
        return feed(Path(folder), policy, int(batch), int(n_rounds))
    if part == "memory":
        return memory(arguments[0])
    if part == "resume":
        return resume(Path(arguments[0]), arguments[1], arguments[2] == "deterministic")
    if part == "auto":
        return auto(Path(arguments[0]))
    return list(techniques()) if part == "techniques" else machine()


def machine() -> dict[str, Any]:
    import keras

    framework = __import__(BACKEND)
    name = framework.devices()[0].device_kind if BACKEND == "jax" else framework.cuda.get_device_name(0)
    versions = {"keras": keras.__version__, BACKEND: framework.__version__, "python": platform.python_version()}
    return {"machine": f"{name}, {os.cpu_count()} CPU cores", "versions": versions, "streamkit": streamkit.__version__}


def measure(args: argparse.Namespace, folder: Path, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Backend -> part -> what was found; `keep` gets it as it grows."""
    where = str(folder)
    result: dict[str, Any] = {name: child(name, "machine") for name in args.backends}
    write_datasets(args.photos, args.samples, folder)
    print("datasets are written", file=sys.stderr, flush=True)
    together = [
        (backend, part, case) for part in args.parts for backend in args.backends for case in cases_of(backend, part)
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {
            (backend, part, *case): pool.submit(child, backend, part, *([where] if part == "resume" else []), *case)
            for backend, part, case in together
        }
        for (backend, part, *case), run in runs.items():
            result[backend].setdefault(part, {})[", ".join(case)] = run.result()
            keep(result)
    for backend in args.backends:
        if "feed" in args.parts:
            for policy in args.policies:
                found = child(backend, "feed", where, policy, str(args.batch), str(args.rounds))
                result[backend].setdefault("feed", {})[policy] = found
                keep(result)
        if "auto" in args.parts:
            result[backend]["auto"] = child(backend, "auto", where)
            keep(result)
    return result


def cases_of(backend: str, part: str) -> list[list[str]]:
    """What is measured several at a time."""
    if part == "memory":
        names = child(backend, "techniques")
        if "failed" in names:
            raise SystemExit(f"{backend} does not start: {names['failed']}")
        return [[name] for name in names]
    return [[case, d] for case in CASES for d in ("as it is", "deterministic")] if part == "resume" else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    comma: Callable[[str], list[str]] = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="class folders of JPEG files")
    parser.add_argument("--samples", type=int, default=16000, help="photographs in the dataset; default: 16000")
    parser.add_argument("--backends", default=["jax", "torch"], type=comma, help="default: jax,torch")
    parser.add_argument("--parts", default=PARTS, type=comma, help="default: all")
    parser.add_argument("--policies", default=["mixed_bfloat16", "mixed_float16", "float32"], type=comma)
    parser.add_argument("--batch", type=int, default=256, help="of what is fed; default: 256")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--jobs", type=int, default=4, help="measurements of memory and resume at a time; default: 4")
    parser.add_argument("--out", type=Path, help="write the result there")
    parser.add_argument("--save", action="store_true", help=f"keep the result in {RESULTS.parent.name}/{RESULTS.name}")
    parser.add_argument(
        "--table", action="store_true", help="measure nothing, print tables of the result that was kept"
    )
    args = parser.parse_args()
    if args.table:
        kept = json.loads(RESULTS.read_text())
        print("\n".join([*feed_table(kept), "", *memory_table(kept)]))
        return
    if args.child:
        print(json.dumps(run_child(args.child[0], args.child[1:])))
        return
    if args.photos is None:
        parser.error("--photos is needed")
    path = RESULTS if args.save else args.out

    kept = json.loads(RESULTS.read_text()) if args.save and RESULTS.exists() else {}

    def keep(result: dict[str, Any]) -> None:
        """Parts that were not asked for stay as they were."""
        if path is not None:
            both = kept | {backend: kept.get(backend, {}) | found for backend, found in result.items()}
            path.write_text(json.dumps(both, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder), keep)
    print(json.dumps(result, indent=1))
    keep(result)


if __name__ == "__main__":
    main()
