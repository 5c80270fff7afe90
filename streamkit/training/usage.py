"""What memory is in use now: of the device through NVML, of the framework's allocator, of this process on the host.

What cannot be read is None; without a GPU what remains is the host's memory.

    >>> now = read_memory()
    >>> now.host_nbytes > 10_000_000
    True
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras


@dataclass(frozen=True)
class Memory:
    """What was in use at one moment; None where it cannot be read.

    Attributes:
        host_nbytes: resident memory of this process, its mapped files included [B].
        device_nbytes: used on the GPU by everybody [B].
        process_nbytes: used on the GPU by this process [B].
        utilisation: share of the last moments in which the GPU computed, 0 to 1.
        allocator_nbytes: handed out by the framework's allocator [B], which usually holds more of the device than that.
        allocator_peak_nbytes: the most of it, so far or since `reset_peak` [B].
    """

    host_nbytes: int
    device_nbytes: int | None = None
    process_nbytes: int | None = None
    utilisation: float | None = None
    allocator_nbytes: int | None = None
    allocator_peak_nbytes: int | None = None

    @property
    def nbytes(self) -> int:
        """The most telling number: of the allocator, else of the process on the GPU, else of the host [B]."""
        found = (self.allocator_nbytes, self.process_nbytes, self.host_nbytes)
        return next(n for n in found if n is not None)


def read_memory() -> Memory:
    """What is in use now, of the first GPU that this process may use."""
    return Memory(host_nbytes(), *_gpu(), *allocator_nbytes())


def host_nbytes() -> int:
    """Resident memory of this process [B]. Source: proc(5), statm; elsewhere than on Linux its peak, getrusage(2)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def allocator_nbytes() -> tuple[int | None, int | None]:
    """(now, peak) of the framework's allocator on its first GPU [B]; CPUs' allocators keep no count."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        found = jax.local_devices()[0].memory_stats() or {}
        return found.get("bytes_in_use"), found.get("peak_bytes_in_use")
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_logical_devices("GPU"):
            info = tf.config.experimental.get_memory_info("GPU:0")
            return info["current"], info["peak"]
    return None, None


def reset_peak() -> None:
    """Let the allocator's peak on the first GPU begin anew, at what is in use now; JAX's cannot."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_logical_devices("GPU"):
            tf.config.experimental.reset_memory_stats("GPU:0")


@cache
def gpu_handle() -> tuple[Any, str]:
    """(NVML's handle of the first GPU that this process may use or None, why there is none)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None, f"CUDA_VISIBLE_DEVICES is {visible!r}"
    try:
        import pynvml
    except ImportError:
        return None, "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        first = (visible or "0").split(",")[0].strip()
        by_number = first.isdecimal()
        get = pynvml.nvmlDeviceGetHandleByIndex if by_number else pynvml.nvmlDeviceGetHandleByUUID
        return get(int(first) if by_number else first), ""
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"


def _gpu() -> tuple[int | None, int | None, float | None]:
    handle, _ = gpu_handle()
    if handle is None:
        return None, None, None
    import pynvml

    used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except pynvml.NVMLError:  # a part of a GPU (MIG), or a driver in a container, may not tell
        return used, None, None
    mine = [p.usedGpuMemory for p in processes if p.pid == os.getpid()]
    return used, mine[0] if mine else None, busy
