"""What shuffling, resuming, opening and random crops cost. Run as `python -m benchmarks.streaming WORK` from scripts/.

Every pair takes turns in one process, so that a busy machine is busy for both; the figure is the median of the rounds.
Wanted: shuffle < 5 %, resume < 0.5 s, open < 2 s and <= 24 bytes a row, random crop no dearer than the plain resize.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.growth import N_REAL, _convert, _rows

ROWS = 10_000_000
ROUNDS = 7


def cpu_s(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def in_turns(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """CPU seconds of both, and the median of the rounds' ratios second / first."""
    times = [(cpu_s(first), cpu_s(second)) for _ in range(rounds + 1)][1:]
    return median(a for a, _ in times), median(b for _, b in times), median(b / a for a, b in times)


def anonymous() -> int:
    """Anonymous memory of this process [B]."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def epoch(loader: Any) -> Callable[[], None]:
    def run() -> None:
        for _ in loader:
            pass

    return run


def opening(out: Path) -> dict[str, Any]:
    """Seconds to open 10 million rows, bytes a row, and how much later the first batch comes at 90 % of an epoch."""
    import streamkit.frontends

    streamkit.Loader(out, batch_size=256, rows=range(256))[0]  # what is imported once is not the dataset's
    before, started, spent = anonymous(), time.perf_counter(), time.process_time()
    loader = streamkit.Loader(out, batch_size=256)
    opened, spent = time.perf_counter() - started, time.process_time() - spent
    held = anonymous() - before

    def first(step: int) -> float:
        fresh = loader.held(0)
        fresh.resume(loader.cursor_at(step))
        begun = time.perf_counter()
        next(iter(fresh))
        return time.perf_counter() - begun

    steps = [0, int(0.9 * len(loader))]
    times = [[first(step + 64 * i) for step in steps] for i in range(5)]
    late = median(b - a for a, b in times)
    size = held / loader.n_samples
    return {
        "rows": loader.n_samples,
        "open_s": opened,
        "open_cpu_s": spent,
        "bytes_a_row": size,
        "resume_later_s": late,
    }


def crops(folder: Path, work: Path) -> dict[str, Any]:
    import streamkit

    out = work / "photos"
    streamkit.convert(folder, out, format="tfrecord", check="header", workers=1)
    split = next(iter(streamkit.open(out).splits))
    options = {"split": split, "batch_size": 64, "image_size": (224, 224), "dtype": "uint8", "num_workers": 0}
    options["rows"] = range(min(512, streamkit.open(out).splits[split].samples))
    plain, random = (streamkit.Loader(out, crop=crop, **options) for crop in (None, "random"))
    still = streamkit.Loader(out, shuffle=False, **options)
    a, b, ratio = in_turns(epoch(plain), epoch(random), 3)
    shuffled = in_turns(epoch(still), epoch(plain), 3)[2]
    n, more = plain.n_samples, {"shuffled_over_storage": shuffled}
    return {"photos": n, "plain_per_cpu_s": n / a, "random_crop_per_cpu_s": n / b, "crop_over_plain": ratio} | more


def main(work: Path, photos: str | None) -> None:
    import streamkit

    small = _convert(work, "shuffle", 3 * N_REAL)
    loaders = [streamkit.Loader(small, batch_size=256, shuffle=shuffle, num_workers=0) for shuffle in (False, True)]
    a, b, ratio = in_turns(epoch(loaders[0]), epoch(loaders[1]), ROUNDS)
    print(json.dumps({"storage_s": a, "shuffled_s": b, "shuffled_over_storage": ratio}), flush=True)
    print(json.dumps(opening(_rows(work, ROWS))), flush=True)
    if photos is not None:
        print(json.dumps(crops(Path(photos), work)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
