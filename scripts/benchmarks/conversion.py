"""What a conversion costs beside `tar`, on two workers, when it is run again, and in memory up to a million files.

CPU-seconds of whole process trees, every way in every round; on a shared machine wall time (two workers beside one) says
little, which is why the load stands beside the result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import data, measure
from benchmarks.environments import ROOT
from benchmarks.session import Peaks, environment

TITLE = "what a conversion costs: tar, workers, run again, memory"
AGAIN = 100_000
ITEMS = (10_000, 100_000, 1_000_000)
# factor, of what: bounds of CPU-seconds, of wall seconds, and of memory.
TAR_FACTOR, CORES_FACTOR, AGAIN_LIMIT_S = 1.5, 1.7, 10.0

_NOTHING = "import streamkit.convert, streamkit.shards.tfrecord"
_MORE = 4  # times the photos of W1: a user's half a second of start-up is spread over them
# One decode of every picture at JPEG's cheapest scale: in colour, as the statistics of a conversion want it, or not.
_DECODE = """
import sys, pathlib, simplejpeg
for file in pathlib.Path(sys.argv[1]).rglob("*.jpg"):
    simplejpeg.decode_jpeg(file.read_bytes(), sys.argv[2], fastdct=True, min_height=1, min_width=1, min_factor=8)
"""


def run(folder: Path | None, work: Path, rounds: int, scale: float) -> dict[str, Any]:
    """The result, as it is saved: seconds a way and round, and memory by number of files."""
    begun = os.getloadavg()[0]
    photos = data.make("many-photos", folder, work / "more", _MORE * scale)
    tiny = data.make("tiny", folder, work, scale)
    target = work / "conversion"
    target.mkdir()
    out = target / "out"
    ways = {
        "import": [sys.executable, "-c", _NOTHING],
        "tar": ["tar", "--hard-dereference", "-cf", str(out), str(photos)],
        "cheapest decode": [sys.executable, "-c", _DECODE, str(photos), "RGB"],
        "cheapest decode, gray": [sys.executable, "-c", _DECODE, str(photos), "GRAY"],
        "check header": _convert(photos, out, 1, "--check", "header"),
        "check decode": _convert(photos, out, 1),
        "check decode, 2 workers": _convert(photos, out, 2),
    }
    found: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in ways}
    for _ in range(rounds):
        for name, command in ways.items():
            for key, value in zip(("cpu", "wall"), _cost(command), strict=True):
                found[name][key].append(value)
            _remove(out)
    memory = []
    for n in (int(n * scale) for n in ITEMS):
        source = _links(tiny, target / f"src-{n}", n)
        with_peaks = _cost(_convert(source, out, 2, "--check", "header"), peak := [])
        memory.append([n, with_peaks[0], *peak])
        if n == int(AGAIN * scale):
            again = [_cost(_convert(source, out, 2, "--check", "header")) for _ in range(rounds)]
            found["again"] = {"cpu": [cpu for cpu, _ in again], "wall": [wall for _, wall in again]}
        _remove(out)
        _remove(source)
    shutil.rmtree(target)
    facts = measure.facts() | {"load": [begun, os.getloadavg()[0]], "rounds": rounds}
    n_photos = len(data.files(photos))
    return {"task": "conversion", "facts": facts, "photos": n_photos, "ways": found, "memory": memory}


def _convert(source: Path, out: Path, n_workers: int, *more: str) -> list[str]:
    words = ["convert", str(source), str(out), "--format", "tfrecord", "--quiet", "--workers", str(n_workers)]
    return [sys.executable, "-m", "streamkit", *words, *more]


def _cost(command: Sequence[str], peak: list[float] | None = None) -> tuple[float, float]:
    """CPU and wall seconds of a command and its children; `peak` gets the highest sum of their anonymous memory [MiB]."""
    os.sync()  # what others wrote is not written back on this one's time
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment()
    )
    with Peaks(process.pid) as peaks:
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    if peak is not None:
        peak.append(peaks.anonymous)
    return used.ru_utime + used.ru_stime, time.perf_counter() - started


def _links(tiny: Path, target: Path, n: int) -> Path:
    """n names in 100 class folders for a few hundred files: the cost of a name is what grows, and disks are small."""
    seeds = [file for file, _ in data.files(tiny)][:400]
    for c in range(100):
        (target / f"c{c:02d}").mkdir(parents=True)
    for i in range(n):
        os.link(seeds[i % len(seeds)], target / f"c{i % 100:02d}" / f"{i:07d}.jpg")
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def bounds(result: Mapping[str, Any]) -> list[tuple[str, float, float, bool]]:
    """(what, found, wanted, whether it is met), each the median over the rounds."""
    cpu = {name: median(way["cpu"]) for name, way in result["ways"].items()}
    wall = {name: median(way["wall"]) for name, way in result["ways"].items()}
    start = cpu["import"]
    header = cpu["check header"] / cpu["tar"]
    beyond = (cpu["check header"] - start) / cpu["tar"]
    decode, gray = (
        cpu["check decode"] / (TAR_FACTOR * cpu["tar"] + cpu[f"cheapest decode{what}"]) for what in ("", ", gray")
    )
    cores = wall["check decode"] / wall["check decode, 2 workers"]
    lines = [
        ("--check header, CPU over tar's", header, TAR_FACTOR, header <= TAR_FACTOR),
        ("the same without start-up", beyond, TAR_FACTOR, beyond <= TAR_FACTOR),
        ("--check decode, CPU over 1.5 x tar and one cheapest decode a picture", decode, 1.0, decode <= 1),
        ("the same, had the statistics no colour", gray, 1.0, gray <= 1),
        ("two workers, times as fast as one", cores, CORES_FACTOR, cores >= CORES_FACTOR),
    ]
    if "again" in wall:
        lines.append(("100,000 files again, seconds", wall["again"], AGAIN_LIMIT_S, wall["again"] <= AGAIN_LIMIT_S))
    return lines


def table(result: Mapping[str, Any]) -> str:
    """The ways, the bounds, and memory by number of files."""
    load = " to ".join(f"{value:.1f}" for value in result["facts"]["load"])
    head = f"**conversion.** {result['photos']:,} photos, median of {result['facts']['rounds']} rounds; load {load}."
    lines = [head, "", "| way | CPU-seconds | wall seconds |", "|---|---|---|"]
    lines += [f"| {name} | {median(w['cpu']):.2f} | {median(w['wall']):.2f} |" for name, w in result["ways"].items()]
    lines += ["", "| bound | found | wanted | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {found:.2f} | {wanted:g} | {'met' if met else 'missed'} |"
        for what, found, wanted, met in bounds(result)
    ]
    lines += ["", "| files | CPU-seconds | anonymous memory |", "|---|---|---|"]
    lines += [f"| {n:,} | {cpu:.1f} | {mib:.0f} MiB |" for n, cpu, mib in result["memory"]]
    return "\n".join(lines)
