"""Whether streamkit stays flat: time a sample over rows, shards and classes, and how long opening takes.

A synthetic index costs minutes less than a conversion of 10 million rows and asks the same of the reader: rows lie in one
real shard of many names, shards are copies of one. Classes are converted as they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import measure, plot
from benchmarks.environments import ROOT

TITLE = "time a sample over rows, shards and classes; time to open"
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
SHARDS = (1, 10, 100, 1_000, 10_000)
CLASSES = (1, 10, 100, 1_000)
N_REAL = 10_000  # rows of the shard that is repeated
N_FIXED = 30_000  # rows where shards and classes vary; one shard holds 32,768 at most
OPEN_LIMIT_S = 2.0  # at 10 million rows

# Prints seconds to open and to the first batch, and CPU-seconds a sample of batches in shuffled order. The epoch before maps
# every page for the first time, which takes about as long again.
_CHILD = """
import itertools, json, sys, time
import streamkit.frontends
started = time.perf_counter()
loader = streamkit.frontends.Loader(sys.argv[1], batch_size=256, num_workers=2)
opened = time.perf_counter()
batches = itertools.chain.from_iterable(itertools.repeat(loader))
next(batches)
first = time.perf_counter()
for _ in itertools.islice(batches, max(2_000, len(loader))):
    pass
spent, n = time.process_time(), 0
for x, _ in itertools.islice(batches, 500):
    n += len(x)
print(json.dumps([opened - started, first - started, (time.process_time() - spent) / n]))
"""


def run(work: Path, rounds: int, scale: float) -> dict[str, Any]:
    """The result, as it is saved: for each axis [size, microseconds of CPU a sample], and for open [rows, seconds]."""
    begun = os.getloadavg()[0]
    made = {
        "rows": [(n, repeated(work, n)) for n in _sizes(ROWS, scale, N_REAL)],
        "shards": [(n, _shards(work, n, int(N_FIXED * max(scale, 0.1)))) for n in _sizes(SHARDS, scale, 1)],
        "classes": [(n, _classes(work, n, int(N_FIXED * max(scale, 0.1)))) for n in CLASSES],
    }
    found: dict[str, list[list[float]]] = {name: [] for name in (*made, "open", "first batch")}
    times = {(axis, n): [] for axis, points in made.items() for n, _ in points}
    for _ in range(rounds):
        for axis, points in made.items():
            for n, out in points:
                times[axis, n].append(_child(out))
    for (axis, n), seconds in times.items():
        opened, first, sample = (median(column) for column in zip(*seconds, strict=True))
        found[axis].append([n, sample * 1e6])
        if axis == "rows":
            found["open"].append([n, opened])
            found["first batch"].append([n, first])
    facts = measure.facts() | {"load": [begun, os.getloadavg()[0]], "rounds": rounds}
    shutil.rmtree(work / "growth")
    return {"task": "growth", "facts": facts, "points": found}


def _sizes(sizes: tuple[int, ...], scale: float, least: int) -> list[int]:
    return [n for n in sizes if n <= max(least, max(sizes) * scale)]


def _child(out: Path) -> list[float]:
    command = [sys.executable, "-c", _CHILD, str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return list(json.loads(done.stdout))


def converted(work: Path, name: str, n: int, n_classes: int = 10) -> Path:
    """A TFRecord dataset of n rows float32 (32, 32) in one or few shards."""
    import streamkit

    source, out = work / "growth" / f"{name}-raw", work / "growth" / name
    source.mkdir(parents=True)
    np.save(source / "x.npy", np.random.default_rng(0).random((n, 32, 32), np.float32))
    np.save(source / "y.npy", np.arange(n) % n_classes)
    streamkit.convert(source, out, format="tfrecord", compression="none", check="header", workers=1, shard_size="1GB")
    shutil.rmtree(source)
    return out


def repeated(work: Path, n: int) -> Path:
    """n rows in shards of N_REAL, which are one file by many names."""
    return _alike(converted(work, f"rows-{n}", N_REAL), n // N_REAL, os.link)


def _shards(work: Path, n: int, n_rows: int) -> Path:
    """n copies of one shard of n_rows / n rows."""
    return _alike(converted(work, f"shards-{n}", n_rows // n), n, shutil.copy)


def _alike(out: Path, n: int, put: Callable[[Path, Path], object]) -> Path:
    """A dataset of one shard as one of n that are alike."""
    import pyarrow as pa

    split = _split(out)
    table, first = _index(out, split), split.shards[0]
    at = table.column_names.index("shard")
    names = [f"train-{i:05d}.tfrecord" for i in range(n)]
    for name in names[1:]:
        put(out / first.file, out / name)
    tables = (table.set_column(at, "shard", pa.array([name] * len(table), pa.string())) for name in names)
    _replace(out, split, tables, [dataclasses.replace(first, file=name) for name in names])
    return out


def _classes(work: Path, n: int, n_rows: int) -> Path:
    return converted(work, f"classes-{n}", n_rows, n)


def _split(out: Path) -> Any:
    from streamkit.manifest import Manifest

    return Manifest.load(out).split()


def _index(out: Path, split: Any) -> Any:
    from streamkit.index import Index

    return Index(out / split.index, split.samples).table()


def _replace(out: Path, split: Any, tables: Any, shards: list[Any]) -> None:
    """Other index and shards for the one split of a dataset."""
    import blake3

    from streamkit import index
    from streamkit.manifest import FILE_NAME, Manifest

    index.write(out / split.index, tables)
    digest = blake3.blake3((out / split.index).read_bytes()).hexdigest()
    samples, nbytes = sum(s.samples for s in shards), sum(s.nbytes for s in shards)
    changed = dataclasses.replace(split, samples=samples, nbytes=nbytes, index_digest=digest, shards=tuple(shards))
    manifest = dataclasses.replace(Manifest.load(out), splits={split.name: changed})
    (out / FILE_NAME).write_text(manifest.dump())


def table(result: Mapping[str, Any]) -> str:
    """Every axis with its sizes, and how far from flat it is."""
    lines = [
        "**growth.** CPU microseconds a sample of float32 (32, 32); seconds to open a Loader and to its first batch.",
        "",
    ]
    lines += ["| over | size: figure | largest / smallest size |", "|---|---|---|"]
    for axis, points in result["points"].items():
        figures = ", ".join(f"{n:,}: {value:.3g}" for n, value in points)
        lines.append(f"| {axis} | {figures} | {points[-1][1] / points[0][1]:.2f} |")
    return "\n".join([*lines, "", sentence(result)])


def sentence(result: Mapping[str, Any]) -> str:
    """How flat it is, in one sentence."""
    points = result["points"]
    n, seconds = points["open"][-1]
    spans = (
        f"from {points[axis][0][0]:,} to {points[axis][-1][0]:,} {axis} {points[axis][-1][1] / points[axis][0][1]:.2f} times"
        for axis in ("rows", "shards", "classes")
    )
    opening = f"opening {n:,} rows takes {seconds:.2f} s (wanted: < {OPEN_LIMIT_S:g} s)"
    return f"A sample's CPU time grows {', '.join(spans)}; {opening}."


def picture(result: Mapping[str, Any]) -> str:
    """One SVG: time a sample by rows, shards and classes beside the time to open by rows."""
    points = result["points"]
    return plot.svg(
        [
            (
                "CPU microseconds a sample",
                "rows, shards or classes",
                {k: points[k] for k in ("rows", "shards", "classes")},
            ),
            ("seconds", "rows", {k: points[k] for k in ("open", "first batch")}),
        ]
    )
