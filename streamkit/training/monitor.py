"""Memory while training: of the device through NVML, of the framework's allocator, of this process on the host.

What cannot be read is None, and `MemoryMonitor.missing` says why: without a GPU what remains is the host's memory.

    >>> now = read_memory()
    >>> now.host_nbytes > 10_000_000
    True

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> monitor = MemoryMonitor()
    >>> history = model.fit(np.zeros((8, 2)), np.zeros((8, 1)), verbose=0, callbacks=[monitor]).history
    >>> history["host_mb"][0] > 10 and len(monitor.samples) >= 2
    True
"""

from __future__ import annotations

import csv
import os
import threading
import time
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Memory:
    """What was in use at one moment; None where it cannot be read.

    Attributes:
        host_nbytes: resident memory of this process, its mapped files included [B].
        device_nbytes: used on the GPU by everybody [B].
        process_nbytes: used on the GPU by this process [B].
        utilisation: share of the last moments in which the GPU computed, 0 to 1.
        allocator_nbytes: handed out by the framework's allocator [B], which usually holds more of the device than that.
        allocator_peak_nbytes: the most of it so far [B].
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


class MemoryMonitor(keras.callbacks.Callback):
    """Reads memory twice a second while training, and puts each epoch's peaks into Keras' logs.

    There History, CSVLogger, TensorBoard and the progress line find them, if they stand after this callback in the list:
    `host_mb`, and with a GPU `device_mb` (the allocator's peak so far, or what NVML says of this process or of the device) and
    `gpu_busy`, 0 to 1 [1 MB = 10**6 B].

    Args:
        path: CSV file for every single reading, with the seconds since training began; added to if it is there.
        live: also after every step, for Keras' own progress bar. It makes Keras wait for the device at each one.

    Attributes:
        samples: (seconds since training began, Memory) of this process's training.
        missing: why nothing is known of a GPU; "" if something is.
    """

    def __init__(self, path: str | Path | None = None, live: bool = False) -> None:
        super().__init__()
        self.path, self.samples = path, list[tuple[float, Memory]]()
        if live:
            self.on_train_batch_end = self._put_now  # only then: Keras asks whether it is there

    @property
    def missing(self) -> str:
        return gpu_handle()[1] if self.samples and self.samples[-1][1].allocator_nbytes is None else ""

    def on_train_begin(self, logs: Any = None) -> None:
        self._begun, self._epoch_at = time.perf_counter(), len(self.samples)
        self._file = None if self.path is None else Path(self.path).open("a", newline="")  # noqa: SIM115  till the end
        if self._file is not None and not self._file.tell():
            csv.writer(self._file).writerow(["seconds", *(field.name for field in fields(Memory))])
        self._ended = threading.Event()
        self._read()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._read()
        seen = [memory for _, memory in self.samples[self._epoch_at :]]
        self._epoch_at = len(self.samples)
        if logs is not None:
            logs.update(_summary(seen))

    def on_train_end(self, logs: Any = None) -> None:
        self._ended.set()
        self._thread.join()
        if self._file is not None:
            self._file.close()

    def _put_now(self, batch: int, logs: Any = None) -> None:
        if logs is not None:
            logs.update(_summary([read_memory()]))

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            self._read()

    def _read(self) -> None:
        at, memory = time.perf_counter() - self._begun, read_memory()
        self.samples.append((at, memory))
        if self._file is not None:  # at once, so that a kill leaves what was read
            csv.writer(self._file).writerow([f"{at:.3f}", *(getattr(memory, field.name) for field in fields(Memory))])
            self._file.flush()


def _summary(seen: list[Memory]) -> dict[str, float]:
    """What the logs get of some readings: peaks, and the mean of the utilisation."""
    out = {"host_mb": max(m.host_nbytes for m in seen) / 1e6}
    for name in ("allocator_peak_nbytes", "process_nbytes", "device_nbytes"):
        known = [n for m in seen if (n := getattr(m, name)) is not None]
        if known:
            out["device_mb"] = max(known) / 1e6
            break
    busy = [m.utilisation for m in seen if m.utilisation is not None]
    return out | ({"gpu_busy": float(np.mean(busy))} if busy else {})
