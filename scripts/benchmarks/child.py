"""The process of one contender: `python -m benchmarks.child CONTENDER TASK WAY VERB SOURCE OUT`.

Verbs: `write` makes the contender's files in OUT; `first` delivers one batch; `serve` obeys lines on stdin (open, check,
epoch) and answers each with one line of JSON. Only answers reach stdout: whatever libraries print goes to stderr.
CPU time is that of this process and its descendants, the dead and the living, in nanoseconds of the scheduler.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import TASKS


def descendants(pid: int) -> list[int]:
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended while we looked
    return found


def cpu() -> float:
    """CPU-seconds of this process and all its descendants so far."""
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + waited.ru_utime + waited.ru_stime
    for pid in descendants(os.getpid()):
        try:
            total += time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3): the process's CPU clock
        except OSError:
            pass  # it ended while we looked
    return total


def drain(batches: Iterable[Any]) -> int:
    return sum(len(y) for _, y in batches)


def check(batches: Iterable[Any]) -> dict[str, Any]:
    """What an epoch delivers, for the contract: shapes, dtype, samples of each class, the mean of x."""
    counts = np.zeros(1, np.int64)
    shapes, total, mixed = [], 0.0, []
    for x, y in batches:
        x, y = np.asarray(x), np.asarray(y).reshape(-1).astype(np.int64)
        found = np.bincount(y, minlength=len(counts))
        counts = np.pad(counts, (0, len(found) - len(counts))) + found
        shapes.append(list(x.shape))
        dtype = str(x.dtype)
        total += float(x.mean(dtype=np.float64)) * len(x)
        mixed.append(int((found > 0).sum()))
    return {
        "shape": max(shapes),
        "rest": min(shapes),  # of the one batch that is not full; it need not come last
        "dtype": dtype,
        "classes": counts.tolist(),
        "mean": total / counts.sum(),
        "classes_a_batch": float(np.mean(mixed)),
    }


def versions(requirements: Iterable[str]) -> dict[str, str]:
    names = (re.split("[=<>]", requirement)[0] for requirement in requirements)
    return {name: metadata.version(name) for name in names}


def serve(epoch: Callable[[], Callable[[], Iterable[Any]]], requirements: Iterable[str], answer: Any) -> None:
    ended = 0.0
    for line in sys.stdin:
        verb = line.strip()
        if verb == "open":
            batches = epoch()
            answer({"versions": versions(requirements)})
        elif verb == "check":
            found = check(batches())
            ended = cpu()
            answer(found)
        else:
            started = time.perf_counter()
            samples = drain(batches())
            wall = time.perf_counter() - started
            spent, ended = cpu() - ended, cpu()  # what was read ahead between two epochs counts too
            answer({"wall": wall, "cpu": spent, "samples": samples})


def main() -> None:
    contender, task_name, way_name, verb, source, out = sys.argv[1:]
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=channel, flush=True)

    module = importlib.import_module(f"benchmarks.contenders.{contender}")
    task = TASKS[task_name]
    way = next(way for way in module.ways(task) if way.name == way_name)

    def epoch() -> Callable[[], Iterable[Any]]:
        batches = module.open(task, way, Path(source), Path(out))
        return lambda: itertools.islice(batches(), way.n_batches)

    if verb == "write":
        module.load()
        startup = cpu()
        module.write(task, way, Path(source), Path(out))
        answer({"startup": startup, "versions": versions(module.REQUIREMENTS)})
    elif verb == "first":
        next(iter(epoch()()))
        answer({})
        os._exit(0)  # what is read ahead is not asked for
    else:
        module.load()
        answer({})
        serve(epoch, module.REQUIREMENTS, answer)


if __name__ == "__main__":
    main()
