"""The largest batch that fits into memory, with gradients accumulated so that an update sees as many samples as before.

    >>> Batch(16, 256, 5_000_000, "compiled").accumulate
    16

The search runs in a process of its own. What is tried there may fail for lack of memory, or be killed for it, and all
that it took is free afterwards; the answer is remembered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blake3
import keras

from streamkit.atomic import replacing
from streamkit.errors import ResourceError
from streamkit.training import peaks
from streamkit.training.trials import Killed, trial
from streamkit.training.usage import gpu_handle, host_nbytes

Build = Callable[[int], Any]
_LESS = "Make model or samples smaller."


@dataclass(frozen=True)
class Batch:
    """How many samples a step takes, and an update.

    Attributes:
        size: samples a step.
        update: samples an update, size x accumulate.
        nbytes: peak of a step [B].
        how: "compiled": XLA said so; "ran": a step ran, and this was seen.
    """

    size: int
    update: int
    nbytes: int
    how: str

    @property
    def accumulate(self) -> int:
        """Steps an update."""
        return self.update // self.size


def largest_batch(
    build: Build,
    like: Any,
    update: int,
    limit_nbytes: int | None = None,
    largest: int | None = None,
    remember: Mapping[str, Any] | None = None,
) -> Batch:
    """Find the largest batch size that divides `update` and whose step stays within the limit.

    On JAX sizes are compiled, and XLA says how much they take; elsewhere growing batches, each at least twice the one
    before, run until one does not fit. There, without a GPU, the numbers include what the framework takes for itself.

    Args:
        build: makes the compiled model, given how many steps accumulate; importable by another process, so a function of
            a module or a `functools.partial` of one. Called there with 2 if `update` is more than 1.
        like: one batch (x, y) of NumPy arrays; only shapes and dtypes of its samples matter.
        update: samples an update of the weights.
        limit_nbytes: memory to stay within; None: what the device has free, or the host.
        largest: no larger batch than that.
        remember: JSON-able facts that the answer depends on (model, precision, ...), under which it is kept for the next
            time, with the limit, the shapes and the device; None: not kept. Without a limit it is for then only as much
            memory is free as now, to a factor of two, and is taken if it fits into that.

    Raises:
        ResourceError: not even a batch of 1 fits, or the trial ended in another way.
        StreamkitError: as `build` raised it.
    """
    free = peaks.free_nbytes() if limit_nbytes is None else limit_nbytes
    limit = f"about 2**{free.bit_length()} free" if limit_nbytes is None else limit_nbytes
    facts = {"remember": remember, "update": update, "limit": limit, "largest": largest, "like": _specs(like)}
    known = None if remember is None else _recall(facts)
    if known is not None and known.nbytes <= free:
        return known
    found = _search(build, like, update, limit_nbytes, largest or update)
    if remember is not None:
        _remember(facts, found)
    return found


def _search(build: Build, like: Any, update: int, limit: int | None, largest: int) -> Batch:
    found = None
    try:
        for found in trial(_fitting, build, like, update, limit, largest):  # noqa: B007  each larger than the one before
            pass
    except Killed as error:
        if found is None and keras.backend.backend() == "jax":  # where nothing has run
            raise ResourceError("the trial for a batch size was killed while XLA compiled it", hint=_LESS) from error
        if found is None:
            raise ResourceError("not even one sample a step fits into memory", hint=_LESS) from error
    assert found is not None  # or there would have been another error
    return found


def _fitting(build: Build, like: Any, update: int, limit: int | None, largest: int) -> Iterator[Batch]:
    """In the other process: batches that fit, each larger than the one before."""
    before = host_nbytes()
    limit = peaks.limit_nbytes() if limit is None else limit
    model = build(min(2, update))
    if keras.backend.backend() == "jax":
        yield _as_compiled(model, like, update, limit, [n for n in peaks.divisors(update) if n <= largest])
    else:
        yield from _as_run(model, like, update, limit, [n for n in peaks.sizes(update) if n <= largest], before)


def _as_compiled(model: Any, like: Any, update: int, limit: int, candidates: list[int]) -> Batch:
    seen: dict[int, int] = {}

    def fits(n: int) -> bool:
        seen[n] = peaks.compiled_nbytes(model, like, n)
        return seen[n] <= limit

    size = peaks.largest(candidates, fits)
    if size is None:
        raise _too_small(min(seen.values()), limit)
    return Batch(size, update, seen[size], "compiled")


def _as_run(model: Any, like: Any, update: int, limit: int, candidates: list[int], before: int) -> Iterator[Batch]:
    for n in candidates:
        try:
            nbytes = peaks.stepped_nbytes(model, like, n, before)
        except Exception as error:
            if not peaks.is_out_of_memory(error):
                raise
            nbytes = limit + 1
        if nbytes > limit:
            if n == candidates[0]:
                raise _too_small(nbytes, limit)
            return
        yield Batch(n, update, nbytes, "ran")


def _too_small(nbytes: int, limit: int) -> ResourceError:
    what = f"one sample a step takes {nbytes / 1e6:.0f} MB, the limit is {limit / 1e6:.0f} MB"
    return ResourceError(what, hint=_LESS)


# What was found before


def _specs(like: Any) -> list[str]:
    return [f"{a.dtype}{list(a.shape[1:])}" for a in keras.tree.flatten(like)]


def _notes() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state, "streamkit", "batch-sizes.json")


def _digest(facts: Mapping[str, Any]) -> str:
    handle, _ = gpu_handle()
    device = "cpu"
    if handle is not None:
        import pynvml

        device = str(pynvml.nvmlDeviceGetName(handle))
    here = {"backend": keras.backend.backend(), "keras": keras.__version__, "device": device}
    here["precision"] = keras.config.dtype_policy().name
    return blake3.blake3(json.dumps([facts, here], sort_keys=True).encode()).hexdigest()


def _read_notes() -> dict[str, Any]:
    try:
        notes = json.loads(_notes().read_text())
    except (OSError, ValueError):  # none yet, or not ours: then it is found again
        return {}
    return notes if isinstance(notes, dict) else {}


def _recall(facts: Mapping[str, Any]) -> Batch | None:
    note = _read_notes().get(_digest(facts))
    return Batch(**note) if isinstance(note, dict) and set(note) == {"size", "update", "nbytes", "how"} else None


def _remember(facts: Mapping[str, Any], batch: Batch) -> None:
    notes = _read_notes() | {_digest(facts): asdict(batch)}
    _notes().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(_notes()) as temporary:
        temporary.write_text(json.dumps(notes, indent=1, sort_keys=True))
