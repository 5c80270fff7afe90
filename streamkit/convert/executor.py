"""Where jobs run: in this process, in worker processes, or on any executor. The plain one defines what the others must do.

>>> list(run_here(iter([]), None))
[]
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from typing import Any

from streamkit.convert.journal import Part
from streamkit.convert.work import Job, run_job
from streamkit.errors import ResourceError
from streamkit.manifest import WORK_FOLDER
from streamkit.sources import BadItem
from streamkit.version import __version__

_PR_SET_PDEATHSIG = 1  # Source: prctl(2)
Progress = Callable[[int], None]
Result = Part | tuple[BadItem, ...]
N_ELSEWHERE = 64  # shards handed out at a time where nobody says how many workers there are
_LIBRARIES = ("numpy", "pyarrow", "pillow", "simplejpeg", "opencv-python-headless", "imagecodecs", "h5py", "hdf5plugin")


def run_here(jobs: Iterator[Job], tick: Progress | None) -> Iterator[Result]:
    for job in jobs:
        yield run_job(job, tick)


def run_in(executor: Executor, jobs: Iterator[Job], n_at_once: int, tick: Progress | None) -> Iterator[Result]:
    """Jobs on any executor of the standard interface, whose workers may be other machines' processes."""
    here = libraries()
    running: dict[Future[Any], Job] = {}
    try:
        for job in jobs:
            running[executor.submit(run_elsewhere, job, here)] = job
            while len(running) >= n_at_once:
                yield from _collect(running, tick)
        while running:
            yield from _collect(running, tick)
    finally:
        for future in running:
            future.cancel()


def run_elsewhere(job: Job, libraries_there: Mapping[str, str]) -> Result:
    """`run_job` where nothing may be taken for granted: the same libraries, the same folders.

    Raises:
        ResourceError: this process would write other bytes, or somewhere else.
    """
    differs = [
        f"{name} {version} ({libraries_there.get(name)} at the converter)"
        for name, version in libraries().items()
        if libraries_there.get(name) != version
    ]
    host = socket.gethostname()
    if differs:
        raise ResourceError(
            f"the worker on {host} has {', '.join(differs)}", hint="Install the same libraries on all machines."
        )
    if not (job.out / WORK_FOLDER).is_dir():
        raise ResourceError(
            f"the worker on {host} does not see this output",
            path=job.out,
            hint="Choose a folder that all machines share.",
        )
    return run_job(job)


def libraries() -> dict[str, str]:
    """Versions of what the bytes of a shard hang on."""
    return {name: version(name) for name in _LIBRARIES} | {"streamkit": __version__}


def run_in_pool(jobs: Iterator[Job], n_workers: int, tick: Progress | None) -> Iterator[Result]:
    """Jobs in worker processes of this machine."""
    # fork costs no imports, but is safe only while this process has one thread; else workers start afresh.
    alone = threading.active_count() == 1 and sys.platform == "linux"
    context = multiprocessing.get_context("fork" if alone else "spawn")
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_die_with, initargs=(os.getpid(),))
    running: dict[Future[Any], Job] = {}
    processes: dict[int, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of NumPy's idle threads when forking
            for job in jobs:
                running[pool.submit(run_job, job)] = job
                processes |= pool._processes
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
        codes = {-process.exitcode for process in processes.values() if (process.exitcode or 0) < 0}
        by = f" by signal {min(codes)}" if codes else ""  # the pool ends the others with 15
        raise ResourceError(
            f"a worker process was killed{by} while writing {files}",
            hint="Out of memory? Lower --workers or --shard-size and run it again: it continues.",
        ) from None
    except (KeyboardInterrupt, SystemExit):
        for process in processes.values():  # shards under way are dropped; the next run writes them again
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_with(parent: int) -> None:
    """Workers end on a signal at once and without a word, what to say is the parent's business; and they end with it.

    One that outlived a killed parent would wait for work for ever, and hold the lock of the output with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # a collection that looked at what the parent had made would copy its pages
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)


def _collect(running: dict[Future[Any], Job], tick: Progress | None) -> Iterator[Result]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        job = running[future]
        result = future.result()
        del running[future]
        if tick is not None:
            tick(len(job.keys))
        yield result
