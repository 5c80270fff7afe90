"""Memory while training: readings twice a second, and each epoch's peaks in Keras' logs.

What cannot be read is None, and `MemoryMonitor.missing` says why: without a GPU what remains is the host's memory.

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> monitor = MemoryMonitor()
    >>> history = model.fit(np.zeros((8, 2)), np.zeros((8, 1)), verbose=0, callbacks=[monitor]).history
    >>> history["host_mb"][0] > 10 and len(monitor.samples) >= 2
    True
"""

from __future__ import annotations

import csv
import threading
import time
import weakref
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import keras

from streamkit.training.refusing import refuse_unwritable
from streamkit.training.usage import Memory, gpu_handle, read_memory, reset_peak

_INTERVAL_S = 0.5
_MAX_SAMPLES = 4096
_ON_DEVICE = ("allocator_peak_nbytes", "process_nbytes", "device_nbytes")  # the most telling first


class MemoryMonitor(keras.callbacks.Callback):
    """Reads memory twice a second while training, and puts each epoch's peaks into Keras' logs.

    There History, CSVLogger, TensorBoard and the progress line find them, if they stand after this callback in the list:
    `host_mb`, and with a GPU `device_mb` (the allocator's peak, or what NVML says of this process or of the device) and
    `gpu_busy`, 0 to 1 [1 MB = 10**6 B]. The allocator's peak is set back when an epoch begins; JAX has no way to do that,
    and tells its peak so far.

    Keras tells callbacks nothing when training raises, so then call `close`, or let go of the monitor; streamkit's `fit`
    closes it.

    Args:
        path: CSV file for every single reading, with the seconds since training began; added to if it is there, and the
            seconds go on where it ended.
        live: also after every step, for Keras' own progress bar. It makes Keras wait for the device at each one.

    Attributes:
        samples: (seconds since training began, Memory) of this process's training; of a long one every second reading,
            every fourth, ..., so that there are never more than 4,096.
        missing: why nothing is known of a GPU; "" if something is.

    Raises (when training begins):
        UsageError: `path` is a folder, or in none.
    """

    def __init__(self, path: str | Path | None = None, live: bool = False) -> None:
        super().__init__()
        self.path, self.samples = path, list[tuple[float, Memory]]()
        self._n_read, self._stride = 0, 1
        self._peaks = Peaks()
        self._lock = threading.Lock()  # the thread and the epochs' ends read
        self._watch: _Watch | None = None
        if live:
            self.on_train_batch_end = self._put_now  # only then: Keras asks whether it is there

    @property
    def missing(self) -> str:
        return gpu_handle()[1] if self.samples and self.samples[-1][1].allocator_nbytes is None else ""

    def on_train_begin(self, logs: Any = None) -> None:
        self.close()  # after a training that raised
        self._begun = time.perf_counter()
        self._earlier_s, self._file = _opened(self.path)
        self._read()
        self._watch = _Watch(self)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        reset_peak()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._read()
        with self._lock:
            seen, self._peaks = self._peaks, Peaks()
        if logs is not None:
            logs.update(seen.logs())

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and close the file, if that has not happened yet."""
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def _put_now(self, batch: int, logs: Any = None) -> None:
        if logs is not None:
            logs.update(Peaks.of(read_memory()).logs())

    def _read(self) -> None:
        with self._lock:
            at, memory = time.perf_counter() - self._begun, read_memory()
            self._peaks.add(memory)
            if self._n_read % self._stride == 0:
                self.samples.append((at, memory))
            self._n_read += 1
            if len(self.samples) > _MAX_SAMPLES:
                del self.samples[1::2]
                self._stride *= 2
            if self._file is not None:  # at once, so that a kill leaves what was read
                row = [f"{self._earlier_s + at:.3f}", *(getattr(memory, field.name) for field in fields(Memory))]
                csv.writer(self._file).writerow(row)
                self._file.flush()


class _Watch:
    """The thread that reads, and the file. It holds the monitor by a weak reference, and ends when that is gone."""

    def __init__(self, monitor: MemoryMonitor) -> None:
        self._ended = threading.Event()
        self._close = weakref.finalize(monitor, _end, self._ended, monitor._file)
        arguments = (weakref.ref(monitor), self._ended)
        self._thread = threading.Thread(target=_keep_reading, args=arguments, name="memory", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._close()


def _keep_reading(monitor: weakref.ref[MemoryMonitor], ended: threading.Event) -> None:
    while not ended.wait(_INTERVAL_S) and (found := monitor()) is not None:
        found._read()
        del found


def _end(ended: threading.Event, file: IO[str] | None) -> None:
    ended.set()
    if file is not None:
        file.close()


def _opened(path: str | Path | None) -> tuple[float, IO[str] | None]:
    """(seconds of the last reading in a file, the file, open for more)."""
    if path is None:
        return 0.0, None
    refuse_unwritable(path)
    seconds, file = 0.0, Path(path).open("a+", newline="")  # noqa: SIM115  till training ends
    if not file.tell():
        csv.writer(file).writerow(["seconds", *(field.name for field in fields(Memory))])
    else:
        file.seek(max(0, file.tell() - 4096))
        *_, last = csv.reader(file)  # writing continues at the end, wherever was read
        seconds = float(last[0]) if last[0] != "seconds" else 0.0
    return seconds, file


class Peaks:
    """The peaks of readings, however many.

    >>> peaks = Peaks.of(Memory(5_000_000, utilisation=0.5))
    >>> peaks.add(Memory(3_000_000, device_nbytes=9_000_000, utilisation=0.0))
    >>> peaks.logs()
    {'host_mb': 5.0, 'device_mb': 9.0, 'gpu_busy': 0.25}
    """

    def __init__(self) -> None:
        self._most: dict[str, int] = {}
        self._n_busy, self._busy = 0, 0.0

    @classmethod
    def of(cls, memory: Memory) -> Peaks:
        """Of one."""
        peaks = cls()
        peaks.add(memory)
        return peaks

    def add(self, memory: Memory) -> None:
        """One more."""
        for name in ("host_nbytes", *_ON_DEVICE):
            nbytes = getattr(memory, name)
            if nbytes is not None:
                self._most[name] = max(nbytes, self._most.get(name, 0))
        if memory.utilisation is not None:
            self._n_busy, self._busy = self._n_busy + 1, self._busy + memory.utilisation

    def logs(self) -> dict[str, float]:
        """What the logs get: peaks, and the mean of the utilisation."""
        out = {"host_mb": self._most["host_nbytes"] / 1e6}
        known = next((name for name in _ON_DEVICE if name in self._most), None)
        if known is not None:
            out["device_mb"] = self._most[known] / 1e6
        return out | ({"gpu_busy": self._busy / self._n_busy} if self._n_busy else {})
