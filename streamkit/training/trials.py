"""Work that may fail for lack of memory, or be killed for it, in a process of its own: all that it took is free afterwards.

>>> def largest(sizes):      # of a module that the other process can import
...     yield from (n for n in sizes if n < 5)
>>> list(trial(largest, [2, 4, 8]))  # doctest: +SKIP
[2, 4]
>>> Killed("the trial was killed").exit_code
5
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras

from streamkit.errors import ResourceError, StreamkitError

T = TypeVar("T")


class Killed(ResourceError):
    """The process was killed by SIGKILL, as the kernel does for lack of memory; what it gave until then holds."""


def trial(work: Callable[..., Iterator[T]], *arguments: Any) -> Iterator[T]:
    """What `work(*arguments)` yields, one by one, from a new process with this one's backend and dtype policy.

    Args:
        work: a generator that another process can import, so one of a module; it yields what can be pickled.

    Raises:
        Killed: in the middle, most likely for lack of memory.
        StreamkitError: as `work` raised it.
        ResourceError: it raised anything else, or the process ended in another way.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    policy = keras.config.dtype_policy().name
    process = context.Process(target=_run, args=(sender, policy, work, arguments))
    process.start()
    sender.close()  # ours, so that the pipe ends when the other process does
    try:
        while True:
            kind, message = receiver.recv()
            if kind == "end":
                return
            if kind == "error":
                raise message
            yield message
    except EOFError:
        process.join()
        code = process.exitcode or 0
        if code == -signal.SIGKILL:
            raise Killed("the trial was killed, most likely for lack of memory") from None
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        raise ResourceError(f"the trial ended with {how}") from None
    finally:
        receiver.close()  # it stops at the next thing that it gives, if nobody wants that
        process.join()


def _run(sender: Any, policy: str, work: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    try:
        keras.config.set_dtype_policy(policy)
        for found in work(*arguments):
            sender.send(("found", found))
        sender.send(("end", None))
    except BrokenPipeError:  # nobody wants more
        return
    except StreamkitError as error:
        sender.send(("error", error))
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        sender.send(("error", ResourceError(f"the trial failed: {line}")))
