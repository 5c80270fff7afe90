"""Where jobs run: in this process, or in a pool of worker processes. The plain one defines what the other must do.

>>> list(run_here(iter([]), None))
[]
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from streamkit.convert.journal import Part
from streamkit.convert.work import Job, run_job
from streamkit.errors import ResourceError
from streamkit.sources import BadItem

Progress = Callable[[int], None]
Result = Part | tuple[BadItem, ...]


def run_here(jobs: Iterator[Job], tick: Progress | None) -> Iterator[Result]:
    for job in jobs:
        yield run_job(job, tick)


def run_in_pool(jobs: Iterator[Job], n_workers: int, tick: Progress | None) -> Iterator[Result]:
    # fork costs no imports, but is safe only while this process has one thread; else workers start afresh.
    alone = threading.active_count() == 1 and sys.platform == "linux"
    context = multiprocessing.get_context("fork" if alone else "spawn")
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_die_quietly)
    running: dict[Future[Any], Job] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of NumPy's idle threads when forking
            for job in jobs:
                running[pool.submit(run_job, job)] = job
                while len(running) >= 2 * n_workers:
                    yield from _collect(running, tick)
            while running:
                yield from _collect(running, tick)
    except BrokenProcessPool:
        files = ", ".join(job.file for job in list(running.values())[:n_workers])
        if not alone:
            raise ResourceError(
                f"worker processes ended while writing {files}",
                hint='In a script, put the call under `if __name__ == "__main__":`, or pass workers=1.',
            ) from None
        raise ResourceError(
            f"a worker process was killed while writing {files}",
            hint="Out of memory? Lower --workers or --shard-size and run it again: it continues.",
        ) from None
    except (KeyboardInterrupt, SystemExit):
        for process in list(pool._processes.values()):  # shards under way are dropped; the next run writes them again
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_quietly() -> None:
    """Workers end on a signal at once and without a word; what to say is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collect(running: dict[Future[Any], Job], tick: Progress | None) -> Iterator[Result]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        job = running[future]
        result = future.result()
        del running[future]
        if tick is not None:
            tick(len(job.keys))
        yield result
