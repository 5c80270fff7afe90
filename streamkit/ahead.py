"""Work done ahead of use, in threads, and delivered in order.

>>> list(in_order(str.upper, ["a", "b", "c"], n_threads=2, n_ahead=4))
['A', 'B', 'C']
"""

from __future__ import annotations

import collections
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Made = TypeVar("Made")


def in_order(make: Callable[[Task], Made], tasks: Iterable[Task], n_threads: int, n_ahead: int) -> Iterator[Made]:
    """`make(task)` for each task in turn, made by `n_threads` threads (0: by the caller's), `n_ahead` at most under way.

    Closing the iterator, or dropping it, ends the threads once they have done what they are at. What `make` raises is
    raised when its turn comes.
    """
    for (made,) in shared(lambda task: [functools.partial(make, task)], tasks, n_threads, n_ahead):
        yield made
        del made  # what the caller dropped is not held here


def shared(
    jobs_of: Callable[[Task], Sequence[Callable[[], Made]]], tasks: Iterable[Task], n_threads: int, n_ahead: int
) -> Iterator[list[Made]]:
    """As `in_order`, of tasks that are several jobs each: what its jobs give, in turn. Threads that are free take the next
    job, whichever task it belongs to, so that they are at the first task all together."""
    if n_threads == 0:
        for task in tasks:
            yield [job() for job in jobs_of(task)]
        return
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="streamkit")
    waiting: collections.deque[list[Future[Made]]] = collections.deque()
    try:
        todo = iter(tasks)
        for task in todo:
            waiting.append([pool.submit(job) for job in jobs_of(task)])
            if len(waiting) >= n_ahead:
                break
        while waiting:
            made = [future.result() for future in waiting.popleft()]
            for task in todo:
                waiting.append([pool.submit(job) for job in jobs_of(task)])
                break
            yield made
            del made
    finally:
        # At the interpreter's end the threads are gone, and half of the modules, this one's globals among them.
        if sys is not None and not sys.is_finalizing():
            pool.shutdown(wait=False, cancel_futures=True)
