"""What shuffling, resuming, opening and random crops cost.

Every pair takes turns in one process, so that a busy machine is busy for both; the figure is the median of the rounds'
ratios. Beside the shuffle of arrays stands what shuffling costs a bare NumPy gather of the same rows in memory: random
places miss the caches where neighbouring ones do not, whoever reads them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import data, growth, measure

TITLE = "what shuffling, resuming, opening and random crops cost"
ROWS = 10_000_000
BATCH = 256
PHOTO = {"batch_size": 64, "image_size": (224, 224), "dtype": "uint8", "num_workers": 0}
# Bounds: CPU time over that of storage order; seconds; bytes; CPU time over that of the plain resize.
SHUFFLE, OPEN_S, ROW_NBYTES, RESUME_S, CROP = 1.05, 2.0, 24.0, 0.5, 1.0


def run(folder: Path | None, work: Path, rounds: int, scale: float) -> dict[str, Any]:
    """The result, as it is saved: CPU time in shuffled over that in storage order, and what else is bounded."""
    import streamkit

    begun, rounds = os.getloadavg()[0], 2 * rounds + 1
    target = work / "streaming"
    shuffled: dict[str, float] = {}
    photos, tiny, rows = (data.make(name, folder, work, scale) for name in ("photos", "tiny", "rows"))
    for name, source in (("photos", photos), ("tiny", tiny), ("rows", rows)):
        streamkit.convert(source, target / name, format="tfrecord", compression="none", check="header", workers=1)
    small = growth.converted(work, "shuffle", int(30_000 * scale))
    plain = {"batch_size": BATCH, "num_workers": 0}
    for title, out, options in (
        ("photos to 224x224", target / "photos", PHOTO),
        ("tiny JPEGs", target / "tiny", plain),
        ("float32 (64, 64), 16 KiB", target / "rows", plain),
        ("float32 (32, 32), 4 KiB", small, plain),
    ):
        still, mixed = (streamkit.Loader(out, shuffle=shuffle, **options) for shuffle in (False, True))
        shuffled[title] = _in_turns(_epoch(still), _epoch(mixed), rounds)
    bare = {}
    for title, shape in (("float32 (64, 64), 16 KiB", (64, 64)), ("float32 (32, 32), 4 KiB", (32, 32))):
        x = np.random.default_rng(0).random((int(20_000 * scale), *shape), np.float32)
        orders = np.arange(len(x)), np.random.default_rng(1).permutation(len(x))
        bare[title] = _in_turns(*(_gathered(x, order) for order in orders), rounds)
    plain_resize, random_crop = (streamkit.Loader(target / "photos", crop=crop, **PHOTO) for crop in (None, "random"))
    found = {
        "shuffled": shuffled,
        "bare": bare,
        "crop": _in_turns(_epoch(plain_resize), _epoch(random_crop), rounds),
        **_opening(growth.repeated(work, int(ROWS * scale) // growth.N_REAL * growth.N_REAL)),
    }
    shutil.rmtree(target)
    shutil.rmtree(work / "growth")
    facts = measure.facts() | {"load": [begun, os.getloadavg()[0]], "rounds": rounds}
    return {"task": "streaming", "facts": facts, **found}


def _cpu_s(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> float:
    """CPU time of the second over that of the first, the median of the rounds; the first round warms up."""
    return median([_cpu_s(second) / _cpu_s(first) for _ in range(rounds + 1)][1:])


def _epoch(loader: Any) -> Callable[[], None]:
    def run() -> None:
        for _ in loader:
            pass

    return run


def _gathered(x: Any, order: Any) -> Callable[[], None]:
    def run() -> None:
        for i in range(0, len(x), BATCH):
            x[order[i : i + BATCH]]

    return run


def _opening(out: Path) -> dict[str, Any]:
    """Seconds to open many rows, bytes a row, and how much later the first batch comes at 90 % of an epoch."""
    import streamkit

    _ = streamkit.Loader(out, batch_size=BATCH, rows=range(BATCH))[0]  # what is imported once is not the dataset's
    before, started = _anonymous(), time.perf_counter()
    loader = streamkit.Loader(out, batch_size=BATCH)
    opened = time.perf_counter() - started
    held = _anonymous() - before

    def first(step: int) -> float:
        fresh = loader.held(0)
        fresh.resume(loader.cursor_at(step))
        begun = time.perf_counter()
        next(iter(fresh))
        return time.perf_counter() - begun

    steps = [0, int(0.9 * len(loader))]
    times = [[first(step + i) for step in steps] for i in range(5)]
    later = median(b - a for a, b in times)
    n = loader.n_samples
    return {"rows": n, "open_s": opened, "nbytes_a_row": held / n, "resume_later_s": later}


def _anonymous() -> int:
    """Anonymous memory of this process [B]."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def table(result: Mapping[str, Any]) -> str:
    """Each figure beside its bound."""
    bounds = [
        *((f"{name}: shuffled over storage order, CPU", x, SHUFFLE) for name, x in result["shuffled"].items()),
        ("random crop over plain resize, CPU", result["crop"], CROP),
        (f"open {result['rows']:,} rows, seconds", result["open_s"], OPEN_S),
        ("the same, bytes a row", result["nbytes_a_row"], ROW_NBYTES),
        ("first batch at 90 % of its epoch, seconds later than at 0 %", result["resume_later_s"], RESUME_S),
    ]
    load = " to ".join(f"{value:.1f}" for value in result["facts"]["load"])
    lines = [f"**streaming.** Medians of {result['facts']['rounds']} rounds; load {load}.", ""]
    lines += ["| | found | wanted | |", "|---|---|---|---|"]
    for what, found, wanted in bounds:
        lines.append(f"| {what} | {found:.2f} | <= {wanted:g} | {'met' if found <= wanted else 'missed'} |")
    told = ", ".join(f"{name} {x:.2f}" for name, x in result["bare"].items())
    return "\n".join([*lines, "", f"A bare NumPy gather, shuffled over in order: {told}."])
