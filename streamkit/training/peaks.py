"""The peak of a training step: as the compiler reports it (JAX), or as it was seen when the step ran.

A compiled step allocates nothing, so asking XLA is safe for any batch; elsewhere the step has to run once, best in a
process of its own (`streamkit.training.batching` does both).

    >>> largest([1, 2, 4, 8, 16], lambda n: n <= 5)
    4
    >>> largest([1, 2, 4], lambda n: False) is None
    True
    >>> sizes(48), divisors(48)
    ([1, 3, 6, 12, 24, 48], [1, 2, 3, 4, 6, 8, 12, 16, 24, 48])
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from streamkit.storage import available_memory
from streamkit.training.state import build
from streamkit.training.trials import trial
from streamkit.training.usage import allocator_nbytes, gpu_handle, host_nbytes

# Left to others: a framework's own workspaces, what is not counted, fragments.
_SHARE_OF_GPU = 0.9
_SHARE_OF_HOST = 0.8


def sizes(update: int) -> list[int]:
    """Batch sizes that divide `update`, each at least twice the one before, the last `update` itself."""
    out: list[int] = [update]
    for n in range(update // 2, 0, -1):
        if update % n == 0 and 2 * n <= out[-1]:
            out.append(n)
    return out[::-1]


def divisors(update: int) -> list[int]:
    """All batch sizes that divide `update`, ascending."""
    return [n for n in range(1, update + 1) if update % n == 0]


def largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending candidates that fits, asking about log2 of them; None if not even the first does."""
    low, high = -1, len(candidates)  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(candidates[middle]) else (low, middle)
    return candidates[low] if low >= 0 else None


def zeros(like: Any, n: int) -> Any:
    """A batch of `n` zeros with the shapes and dtypes of the samples in the batch `like`."""
    return keras.tree.map_structure(lambda a: np.zeros((n, *a.shape[1:]), a.dtype), like)


def limit_nbytes() -> int:
    """What may be used: `free_nbytes`, or on JAX nine tenths of what it has set aside of the GPU [B]."""
    if keras.backend.backend() == "jax":
        import jax

        found = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" in found:
            return int(_SHARE_OF_GPU * found["bytes_limit"])
    return free_nbytes()


def free_nbytes() -> int:
    """Nine tenths of the GPU's free memory, or four fifths of the host's [B]; no framework takes hold of a device for it."""
    handle, _ = gpu_handle()
    if handle is None:
        return int(_SHARE_OF_HOST * available_memory())
    import pynvml

    return int(_SHARE_OF_GPU * pynvml.nvmlDeviceGetMemoryInfo(handle).free)


def compiled_nbytes(model: Any, like: Any, n: int) -> int:
    """Peak of a step of `n` samples on JAX, as XLA plans it: weights, optimizer, batch and everything in between [B].

    Args:
        model: compiled; on the JAX backend.
        like: a batch (x, y), of whatever length.
        n: samples.
    """
    import jax

    model = getattr(model, "_model", model)
    build(model, zeros(like, 1))
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([jax.ShapeDtypeStruct(v.shape, v.dtype) for v in group] for group in groups)
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), like
    )
    found = jax.jit(model.train_step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    # What is donated is counted as an argument and as a result, and lies in one place.
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(kept + found.temp_size_in_bytes)


def stepped_nbytes(model: Any, like: Any, n: int, before_nbytes: int) -> int:
    """Peak of two steps of `n` zeros that really run [B]: of the GPU's allocator, else what the process grew.

    Args:
        before_nbytes: the process before the model was made; it counts as nothing.
    """
    x, y = zeros(like, n)
    for _ in range(2):
        model.train_on_batch(x, y)
    _, peak = allocator_nbytes()
    return peak if peak is not None else _host_peak_nbytes() - before_nbytes


def step_nbytes(model: Any, like: Any, n: int) -> int:
    """Peak of a training step of `n` samples of a model that is trained here [B].

    On JAX XLA is asked; elsewhere a copy of the model runs two steps in a process of its own, as what this process has held
    so far hides the peak of one step.

    Args:
        model: compiled; it can be saved.
        like: a batch (x, y), of whatever length.
        n: samples.

    Raises:
        ResourceError: the other process failed, for lack of memory for one.
    """
    if keras.backend.backend() == "jax":
        return compiled_nbytes(model, like, n)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        (found,) = trial(_stepped, Path(folder, "model.keras"), zeros(like, 1), n)
    return found


def _stepped(file: Path, like: Any, n: int) -> Iterator[int]:
    from streamkit.training import rematerializing  # noqa: F401  so that Keras knows the layers that a file may hold

    before = host_nbytes()
    yield stepped_nbytes(keras.models.load_model(file), like, n, before)


def _host_peak_nbytes() -> int:
    """The most that this process ever held. Source: VmHWM of proc(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return host_nbytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a framework says that an allocation failed."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}) or (
        "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    )
