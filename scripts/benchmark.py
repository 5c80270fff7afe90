"""Measure streamkit beside the machine's own limit for each task, in one interleaved run.

Figures are CPU-seconds of all threads and processes, medians over rounds in which all ways take turns: on a shared
machine wall time says little, and the best of a few rounds is luck. A limit is the bare operation (decode, gather) on the
same data with as many threads as the loader has; a share is the median of each round's own limit over what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0))


def interleaved(rounds: int, **functions: Callable[[], None]) -> dict[str, list[float]]:
    """CPU-seconds of each function, round by round; the first round warms up and does not count."""
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            started = time.process_time()
            function()
            if number:
                spent[name].append(time.process_time() - started)
    return spent


def shares(task: str, n: int, spent: dict[str, list[float]], target: float) -> list[dict[str, Any]]:
    """One row a way, beside the way called limit."""
    limit = spent.pop("limit")
    rows = []
    for way, seconds in spent.items():
        found = row(task, way, n / float(np.median(seconds)), "samples/CPU-s", n / float(np.median(limit)), target)
        found["share"] = float(np.median(np.divide(limit, seconds)))
        rows.append(found)
    return rows


def in_threads(function: Callable[[Any], Any], parts: list[Any]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(function, parts):
            pass


def drain(batches: Any) -> None:
    for _ in batches:
        pass


def cli(*arguments: str | Path) -> float:
    """CPU-seconds of a streamkit command, start-up and workers included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "streamkit", *map(str, arguments), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def small_jpegs(data: Path | None, work: Path) -> Path:
    """10,000 JPEGs of 32x32: unpacked from DATA/small_jpegs.tar, else drawn."""
    folder = work / "small"
    if folder.exists():
        return folder
    if data is not None and (data / "small_jpegs.tar").exists():
        shutil.unpack_archive(data / "small_jpegs.tar", folder)
        return folder / "test" if (folder / "test").exists() else folder
    return draw_jpegs(folder, 10_000, 32, 10)


def photos(data: Path | None, work: Path) -> Path:
    """JPEGs of about 500x375: DATA/photos, else drawn."""
    if data is not None and (data / "photos").exists():
        return data / "photos"
    return draw_jpegs(work / "photos", 200, 400, 10)


def draw_jpegs(folder: Path, n: int, side: int, n_classes: int) -> Path:
    import PIL.Image

    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
        target = folder / f"class{i % n_classes}" / f"{i:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((side * 4 // 3 if side > 32 else side, side), PIL.Image.Resampling.BICUBIC).save(
            target, quality=90
        )
    return folder


def task_convert_small(data: Path | None, work: Path, rounds: int) -> list[dict[str, Any]]:
    source = small_jpegs(data, work)
    n = sum(1 for _ in source.rglob("*.jpg"))
    spent: dict[str, list[float]] = {"decode": [], "header": []}
    for _ in range(rounds):
        for check, seconds in spent.items():
            shutil.rmtree(work / "out", ignore_errors=True)
            seconds.append(
                cli("convert", source, work / "out", "--format", "tfrecord", "--check", check, "--workers", "1")
            )
    return [
        row(
            "convert 10,000 tiny JPEGs, keep",
            f"--check {check}",
            n / np.median(spent[check]),
            "files/CPU-s",
            None,
            target,
        )
        for check, target in (("decode", 6000), ("header", None))
    ]


def task_read_small(data: Path | None, work: Path, rounds: int) -> list[dict[str, Any]]:
    import simplejpeg

    import streamkit

    source = small_jpegs(data, work)
    out = fresh(source, work / "small-out", "tfrecord")
    files = [path.read_bytes() for path in sorted(source.rglob("*.jpg"))]
    parts = [files[i : i + 256] for i in range(0, len(files), 256)]

    def bare(part: list[bytes]) -> None:
        for jpeg in part:
            simplejpeg.decode_jpeg(jpeg, "RGB")

    ways = {f"NumPy {d}": streamkit.Loader(out, batch_size=256, dtype=d) for d in ("uint8", "float32")}
    functions: dict[str, Callable[[], None]] = {"limit": lambda: in_threads(bare, parts)}
    functions |= {way: lambda loader=loader: drain(loader) for way, loader in ways.items()}
    return shares("read 10,000 tiny JPEGs, batch 256", len(files), interleaved(4 * rounds, **functions), 0.65)


def task_rows(data: Path | None, work: Path, rounds: int) -> list[dict[str, Any]]:
    return row_ways(work, rounds, "NumPy", 0.7)


def task_rows_tf(data: Path | None, work: Path, rounds: int) -> list[dict[str, Any]]:
    return row_ways(work, rounds, "tf.data", 0.3)


def row_ways(work: Path, rounds: int, way: str, target: float) -> list[dict[str, Any]]:
    """NumPy and tf.data in a process each: with TensorFlow loaded, the gather pays page faults and costs twice as much."""
    import streamkit

    n = 20_000
    source = work / "rows.npy"
    if not source.exists():
        np.save(source, np.random.default_rng(0).standard_normal((n, 64, 64), dtype=np.float32))
    rows = np.load(source)
    order = np.random.default_rng(1).permutation(n)
    functions: dict[str, Callable[[], None]] = {
        "limit": lambda: in_threads(lambda i: rows[order[i : i + 256]].shape, list(range(0, n, 256)))
    }
    for format in ("tfrecord", "hdf5"):
        out = fresh(source, work / f"rows-{format}", format, "--compression", "none")
        made = streamkit.Loader(out, batch_size=256) if way == "NumPy" else streamkit.dataset(out, batch_size=256)
        functions[f"{format} {way}"] = lambda made=made: drain(made)
    return shares("read 20,000 float32 (64, 64), batch 256", n, interleaved(4 * rounds, **functions), target)


def task_photos(data: Path | None, work: Path, rounds: int) -> list[dict[str, Any]]:
    import simplejpeg

    import streamkit

    source = photos(data, work)
    out = fresh(source, work / "photos-out", "tfrecord")
    files = [p.read_bytes() for p in sorted(source.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    dataset = streamkit.dataset(out, batch_size=64, image_size=(224, 224), dtype="uint8")
    loader = streamkit.Loader(out, batch_size=64, image_size=(224, 224), dtype="uint8")
    parts = [files[i : i + 64] for i in range(0, len(files), 64)]

    def bare(part: list[bytes]) -> None:
        for jpeg in part:
            simplejpeg.decode_jpeg(jpeg, "RGB")

    ways = {
        "limit": lambda: in_threads(bare, parts),
        "tf.data": lambda: drain(dataset),
        "NumPy": lambda: drain(loader),
    }
    return shares("photos to 224x224 uint8, batch 64", len(files), interleaved(rounds, **ways), 0.8)


_MEMORY = """
import sys, streamkit
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("RssAnon"))
loader = streamkit.Loader(sys.argv[1], batch_size=256)
peak = 0
for epoch in range(2):
    for batch in loader:
        peak = max(peak, anonymous())
print(peak)
"""


def task_memory(data: Path | None, work: Path, rounds: int) -> list[dict[str, Any]]:
    peaks = []
    for n in (5_000, 20_000, 80_000):
        source = work / f"memory-{n}.npy"
        array = np.lib.format.open_memmap(source, "w+", np.float32, (n, 64, 64))
        for start in range(0, n, 5_000):
            array[start : start + 5_000] = start
        del array
        out = fresh(source, work / f"memory-{n}", "hdf5", "--compression", "none")
        source.unlink()
        found = subprocess.run([sys.executable, "-c", _MEMORY, str(out)], check=True, capture_output=True, text=True)
        shutil.rmtree(out)
        peaks.append(int(found.stdout) / 1024)
    return [
        row("peak anonymous memory of two epochs", f"{n} rows of 16 KiB", mib, "MiB", None, None)
        for n, mib in zip((5_000, 20_000, 80_000), peaks, strict=True)
    ]


def fresh(source: Path, out: Path, format: str, *options: str) -> Path:
    if not out.exists():
        cli("convert", source, out, "--format", format, *options)
    return out


def row(task: str, way: str, value: float, unit: str, limit: float | None, target: float | None) -> dict[str, Any]:
    share = None if limit is None else value / limit
    return {"task": task, "way": way, "value": value, "unit": unit, "limit": limit, "share": share, "target": target}


TASKS: dict[str, Callable[[Path | None, Path, int], list[dict[str, Any]]]] = {
    "convert-small": task_convert_small,
    "read-small": task_read_small,
    "rows": task_rows,
    "rows-tf": task_rows_tf,
    "photos": task_photos,
    "memory": task_memory,
}


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| task | way | measured | limit | share | target |", "|---|---|---|---|---|---|"]
    for r in results:
        limit = "" if r["limit"] is None else f"{r['limit']:,.0f}"
        share = "" if r["share"] is None else f"{r['share']:.2f}"
        target = "" if r["target"] is None else f">= {r['target']:,}"
        lines.append(f"| {r['task']} | {r['way']} | {r['value']:,.0f} {r['unit']} | {limit} | {share} | {target} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: scripts/benchmark --tasks rows,photos --data DIR"
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of {','.join(TASKS)}")
    parser.add_argument("--data", type=Path, help="folder with small_jpegs.tar and photos/; without it data is drawn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", type=Path, help="write the results there as JSON as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = Path(tempfile.gettempdir()) / f"streamkit-benchmark-{os.getuid()}"
    work.mkdir(exist_ok=True)
    if args.child:
        json.dump(TASKS[args.child](args.data, work, args.rounds), sys.stdout)
        return
    results: list[dict[str, Any]] = []
    for task in args.tasks.split(","):
        # Each in a process of its own, so that no task warms or burdens the next.
        command = [sys.executable, __file__, "--child", task, "--rounds", str(args.rounds)]
        command += ["--data", str(args.data)] if args.data else []
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results += json.loads(found.stdout)
    shutil.rmtree(work)
    facts = {
        "machine": platform.machine(),
        "cores": THREADS,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "results": results,
    }
    text = json.dumps(facts, indent=1)
    if args.save:
        args.save.write_text(text + "\n")
    print(text if args.json else table(results))


if __name__ == "__main__":
    main()
