"""What tells and saves memory while training: the monitor, the search for a batch size, rematerialisation, the report."""

from __future__ import annotations

import csv
import gc
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from converting import needs
from hungry import broken, crashing, hungry, killed, refused
from hypothesis import given

import streamkit
from streamkit.reports.training import facts_of, write_report
from streamkit.training import batching, fit, peaks, trials, usage
from streamkit.training import monitor as monitoring
from streamkit.training.batching import Batch, largest_batch
from streamkit.training.comparing import Row
from streamkit.training.memory import Estimate
from streamkit.training.monitor import MemoryMonitor, Peaks
from streamkit.training.networks import Design, network
from streamkit.training.rematerializing import Remat
from streamkit.training.trials import Killed
from streamkit.training.usage import Memory, read_memory

ROOT = Path(__file__).parents[1]
X, Y = np.zeros((8, 2), np.float32), np.zeros((8, 1), np.float32)


def tiny() -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


# The monitor


def test_peaks_reach_the_logs_and_every_reading_the_file(tmp_path: Path) -> None:
    monitor = MemoryMonitor(tmp_path / "memory.csv", live=True)
    lived: list[Any] = []
    see = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: lived.append(logs["host_mb"]))
    log = keras.callbacks.CSVLogger(tmp_path / "epochs.csv")
    history = tiny().fit(X, Y, epochs=3, batch_size=4, verbose=0, callbacks=[monitor, see, log]).history
    assert len(lived) == 6 and len(history["host_mb"]) == 3
    assert max(memory.host_nbytes for _, memory in monitor.samples) == max(history["host_mb"]) * 1e6
    with open(tmp_path / "memory.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["host_nbytes"]) for row in rows] == [memory.host_nbytes for _, memory in monitor.samples]
    assert "host_mb" in (tmp_path / "epochs.csv").read_text().splitlines()[0]


def test_a_file_in_no_folder_is_refused_before_the_first_step(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none" / "x.csv", "there is no folder"), (tmp_path, "this is a folder")):
        with pytest.raises(streamkit.UsageError, match=reason):
            tiny().fit(X, Y, verbose=0, callbacks=[MemoryMonitor(path)])
    assert not threads() and not any(tmp_path.iterdir())


class Broken(keras.callbacks.Callback):
    """Training that raises at the end of an epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        raise OSError("the disk is full")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "memory"]


def test_a_training_that_raises_leaves_no_thread_and_no_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed by hand, by streamkit's fit, by training again, or by letting go of the monitor."""
    monkeypatch.setattr(monitoring, "_INTERVAL_S", 0.01)
    monitor, model = MemoryMonitor(tmp_path / "memory.csv"), tiny()
    streamkit.convert(ROOT / "sample_data" / "series" / "val", tmp_path / "out", format="hdf5", workers=1)
    loader = streamkit.Loader(tmp_path / "out", batch_size=64)
    series = keras.Sequential([keras.Input(loader.specs["array"].shape), keras.layers.Flatten(), keras.layers.Dense(4)])
    series.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(OSError, match="full"):
        fit(series, loader, epochs=1, run_dir=tmp_path / "run", verbose=0, callbacks=[monitor, Broken()])
    assert not threads() and monitor._file is not None and monitor._file.closed

    with pytest.raises(OSError, match="full"):
        model.fit(X, Y, verbose=0, callbacks=[monitor, Broken()])
    (first,) = threads()
    with pytest.raises(OSError, match="full"):
        model.fit(X, Y, verbose=0, callbacks=[monitor, Broken()])
    (second,) = threads()
    assert first is not second and not first.is_alive()
    monitor.close()
    assert not threads() and monitor._file.closed

    with pytest.raises(OSError, match="full"):
        model.fit(X, Y, verbose=0, callbacks=[monitor, Broken()])
    (third,), file = threads(), monitor._file
    del monitor
    gc.collect()
    third.join(5)
    assert not third.is_alive() and file.closed


def test_a_run_that_goes_on_counts_its_seconds_on(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        monitor = MemoryMonitor(tmp_path / "memory.csv")
        tiny().fit(X, Y, epochs=n, verbose=0, callbacks=[monitor])
        assert monitor.samples[0][0] < 0.1
    with open(tmp_path / "memory.csv") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert len(seconds) >= 2 + 3 + 4 and seconds == sorted(seconds)
    assert seconds[-1] > monitor.samples[-1][0]


@given(st.integers(1, 200))
def test_samples_stay_few_and_evenly_spaced_and_peaks_miss_none(n: int) -> None:
    readings = [Memory(host_nbytes=1_000_000 * (7 * i % 97 + 1)) for i in range(n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitoring, "_MAX_SAMPLES", 16)
        patch.setattr(monitoring, "read_memory", iter(readings).__next__)
        patch.setattr(monitoring.time, "perf_counter", itertools.count().__next__)
        monitor, logs = MemoryMonitor(), dict[str, float]()
        monitor._begun, monitor._earlier_s, monitor._file = 0, 0.0, None
        for _ in readings[1:]:
            monitor._read()
        monitor.on_epoch_end(0, logs)
    assert 1 <= len(monitor.samples) <= 16
    at = [seconds for seconds, _ in monitor.samples]
    assert at == list(range(0, n, monitor._stride)) and [memory for _, memory in monitor.samples] == [
        readings[int(i)] for i in at
    ]
    assert logs == {"host_mb": max(memory.host_nbytes for memory in readings) / 1e6}


def test_two_threads_write_one_row_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> Memory:
        time.sleep(np.random.default_rng(threading.get_ident()).random() / 500)
        return Memory(1)

    monkeypatch.setattr(monitoring, "read_memory", slow)
    monitor = MemoryMonitor(tmp_path / "memory.csv")
    monitor.on_train_begin()
    reading = [threading.Thread(target=lambda: [monitor._read() for _ in range(20)]) for _ in range(4)]
    for thread in reading:
        thread.start()
    for thread in reading:
        thread.join()
    monitor.on_train_end()
    _, *rows = (tmp_path / "memory.csv").read_text().splitlines()
    seconds = [float(row.split(",")[0]) for row in rows]
    assert len(seconds) >= 81 and seconds == sorted(seconds) == [round(at, 3) for at, _ in monitor.samples]


def test_the_allocator_s_peak_is_that_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for PyTorch on a GPU: the first epoch takes 90 MB at most, the second 40."""
    cuda = SimpleNamespace(now=0, peak=0, is_available=lambda: True, memory_allocated=lambda: cuda.now)
    cuda.max_memory_allocated = lambda: cuda.peak
    cuda.reset_peak_memory_stats = lambda: setattr(cuda, "peak", cuda.now)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    monitor, found = MemoryMonitor(), []
    monitor.on_train_begin()
    for epoch, most in enumerate((90, 40)):
        monitor.on_epoch_begin(epoch)
        cuda.peak, cuda.now = max(cuda.peak, most * 1_000_000), 10_000_000
        logs: dict[str, float] = {}
        monitor.on_epoch_end(epoch, logs)
        found.append(logs["device_mb"])
    monitor.on_train_end()
    assert found == [90, 40]


def test_host_memory_grows_with_what_is_allocated() -> None:
    before = read_memory().host_nbytes
    block = np.ones(50_000_000, np.uint8)
    assert read_memory().host_nbytes - before > 0.9 * block.nbytes


class FakeNvml(SimpleNamespace):
    """Two GPUs of 100 and 200 MB; this process has 30 MB of the second."""

    class NVMLError(Exception):
        pass

    def __init__(self, refuses: bool = False) -> None:
        mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=30_000_000)
        processes = [SimpleNamespace(pid=1, usedGpuMemory=9), mine]
        super().__init__(
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByIndex=lambda number: number,
            nvmlDeviceGetHandleByUUID=lambda name: int(name[-1]),
            nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=100_000_000 * (gpu + 1)),
            nvmlDeviceGetComputeRunningProcesses=lambda gpu: self._refuse(refuses) or processes,
            nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=40),
        )

    def _refuse(self, refuses: bool) -> None:
        if refuses:
            raise self.NVMLError("not in a container")


@pytest.mark.parametrize(
    "visible, refuses, expected",
    [
        ("1,0", False, (200_000_000, 30_000_000, 0.4)),
        ("GPU-uuid-0", False, (100_000_000, 30_000_000, 0.4)),
        ("1", True, (200_000_000, None, None)),
        ("-1", False, (None, None, None)),
    ],
)
def test_a_gpu_is_read_through_nvml(
    monkeypatch: pytest.MonkeyPatch, visible: str, refuses: bool, expected: tuple[Any, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(refuses))
    usage.gpu_handle.cache_clear()
    try:
        now = read_memory()
        found = (now.device_nbytes, now.process_nbytes, now.utilisation)
        logs = Peaks.of(now).logs()
    finally:
        usage.gpu_handle.cache_clear()
    assert found == expected
    known = next((n for n in (expected[1], expected[0]) if n is not None), None)
    assert logs.get("device_mb") == (known and known / 1e6)
    assert logs.get("gpu_busy") == expected[2]


# The batch size


@given(st.integers(1, 5000))
def test_sizes_divide_the_update_and_double(update: int) -> None:
    found = peaks.sizes(update)
    assert found[-1] == update and all(update % n == 0 for n in found)
    assert all(b >= 2 * a for a, b in itertools.pairwise(found))
    assert not [n for n in range(1, found[0]) if update % n == 0 and 2 * n <= found[0]]


@given(st.integers(0, 12), st.integers(0, 13))
def test_the_largest_that_fits_is_found(n: int, fitting: int) -> None:
    asked: list[int] = []

    def fits(candidate: int) -> bool:
        asked.append(candidate)
        return candidate < fitting

    assert peaks.largest(list(range(n)), fits) == (min(n, fitting) - 1 if min(n, fitting) else None)
    assert len(asked) <= n.bit_length()


def test_failed_allocations_are_told_from_other_errors() -> None:
    exhausted = type("ResourceExhaustedError", (Exception,), {})
    for error in (MemoryError(), exhausted("OOM when allocating"), RuntimeError("RESOURCE_EXHAUSTED: 3 GB")):
        assert peaks.is_out_of_memory(error)
    assert not peaks.is_out_of_memory(ValueError("shapes differ"))


@given(st.integers(1, 5000))
def test_divisors_are_all_of_them(update: int) -> None:
    found = peaks.divisors(update)
    assert found == sorted(set(found)) and set(peaks.sizes(update)) <= set(found)
    assert len(found) == sum(1 + (n * n != update) for n in range(1, int(update**0.5) + 1) if update % n == 0)


@pytest.fixture
def quick_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other process is there soon: a light backend of Keras, without scikit-learn, which Keras imports if it can."""
    needs("jax")  # which Keras takes functions from on every backend
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    (tmp_path / "sklearn.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("build, limit, size", [(hungry, 100_000_000, 32), (killed, 10**12, 8), (refused, 10**12, 4)])
@pytest.mark.usefixtures("quick_process")
def test_batches_grow_in_another_process_until_one_does_not_fit(build: Any, limit: int, size: int) -> None:
    found = largest_batch(build, (X, Y), 64, limit)
    assert (found.size, found.how, found.size * found.accumulate) == (size, "ran", 64)
    assert 2_000_000 * size <= found.nbytes <= limit


@pytest.mark.usefixtures("quick_process")
def test_a_trial_that_crashes_is_no_lack_of_memory() -> None:
    with pytest.raises(streamkit.ResourceError, match="the trial ended with SIGSEGV"):
        largest_batch(crashing, (X, Y), 4, 10**9)


@pytest.mark.parametrize("error", [streamkit.UsageError("resnet takes images"), KeyError("x\ny"), None])
def test_a_trial_sends_what_it_found_and_how_it_ended(error: Exception | None) -> None:
    """In this process: an error of streamkit's comes as it is, another as one line."""

    def work(n: int) -> Iterator[int]:
        yield from range(n)
        if error is not None:
            raise error

    sent: list[tuple[str, Any]] = []
    trials._run(SimpleNamespace(send=sent.append), keras.config.dtype_policy().name, work, (2,))
    *found, (kind, last) = sent
    assert found == [("found", 0), ("found", 1)] and kind == ("end" if error is None else "error")
    if isinstance(error, KeyError):
        assert type(last) is streamkit.ResourceError and str(last) == r"the trial failed: KeyError: 'x\ny'"
    else:
        assert last is error


@pytest.mark.parametrize(
    "backend, reason", [("jax", "was killed while XLA compiled it"), ("torch", "not even one sample a step fits")]
)
def test_a_trial_that_is_killed_at_once(monkeypatch: pytest.MonkeyPatch, backend: str, reason: str) -> None:
    """Where steps are compiled only, that tells nothing of the batch."""

    def dying(*arguments: Any) -> Any:
        raise Killed("killed")

    monkeypatch.setattr(batching, "trial", dying)
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(streamkit.ResourceError, match=reason):
        largest_batch(hungry, (X, Y), 4, 10**9)


def test_a_batch_is_remembered_for_as_much_memory_as_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is empty, full, empty again, and half full; what was found on the empty one is not taken on the others."""
    searched: list[int] = []
    free = 0

    def search(build: Any, like: Any, update: int, limit: int | None, largest: int) -> Batch:
        searched.append(free)
        return Batch(min(largest, free // 10**9), update, free * 9 // 10, "ran")

    monkeypatch.setattr(batching, "_search", search)
    monkeypatch.setattr(peaks, "free_nbytes", lambda: free)
    facts: dict[str, Any] = {"remember": {"model": "of this test"}}
    sizes = []
    for free_gb in (64, 64, 1, 1, 60, 35, 35):
        free = free_gb * 10**9
        sizes.append(largest_batch(hungry, (X, Y), 64, None, **facts).size)
    assert sizes == [64, 64, 1, 1, 64, 35, 35]
    assert searched == [64 * 10**9, 10**9, 35 * 10**9]
    for _ in range(2):  # a limit that is given holds whatever is free
        largest_batch(hungry, (X, Y), 64, 40 * 10**9, **facts)
    assert len(searched) == 4


@pytest.mark.usefixtures("quick_process")
def test_a_model_that_cannot_be_made_is_no_lack_of_memory() -> None:
    with pytest.raises(streamkit.StreamkitError, match="ValueError: no model for 2"):
        largest_batch(broken, (X, Y), 4, 10**9)


def wide(accumulate: int) -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(5000), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(gradient_accumulation_steps=accumulate), "mse")
    return model


@pytest.mark.slow
def test_the_compiler_of_jax_is_asked_and_the_answer_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    limit, began = 8_000_000, time.perf_counter()
    found = largest_batch(wide, (X, Y), 1024, limit, remember={"model": "wide"})
    took, began = time.perf_counter() - began, time.perf_counter()
    assert found.how == "compiled" and found.size * found.accumulate == 1024
    assert found.nbytes <= limit and 2 * found.size * 5000 * 4 > limit / 4
    assert largest_batch(broken, (X, Y), 1024, limit, remember={"model": "wide"}) == found
    assert time.perf_counter() - began < took / 5
    with pytest.raises(streamkit.ResourceError, match="one sample a step takes"):
        largest_batch(wide, (X, Y), 4, 1000)


def test_the_peak_of_a_step_is_that_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other process does, done in this one."""
    model, seen = tiny(), []

    def stepped(copy: Any, like: Any, n: int, before_nbytes: int) -> int:
        seen.extend([copy.get_weights()[0].tolist(), type(copy.optimizer).__name__, [a.dtype for a in like], n])
        return before_nbytes

    monkeypatch.setattr(peaks, "trial", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(peaks, "stepped_nbytes", stepped)
    found = peaks.step_nbytes(model, (X, Y), 32)
    assert found == pytest.approx(read_memory().host_nbytes, rel=0.5)
    assert seen == [model.get_weights()[0].tolist(), "SGD", [X.dtype, Y.dtype], 32]


@pytest.mark.slow
def test_the_peak_of_a_step_is_seen_in_another_process() -> None:
    model = network(Design("small_cnn", norm="group", remat=True), (32, 32, 3), "uint8", 10)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = peaks.step_nbytes(model, (np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32)), 256)
    output_nbytes = 256 * 32 * 32 * 64 * 4  # of one of the larger layers
    assert output_nbytes < found < 100 * output_nbytes


# Rematerialisation


def in_order_of_creation(model: Any) -> list[np.ndarray]:
    """A model's weights; layers inside of others come at another place, but are numbered alike."""

    def number(variable: Any) -> tuple[str, int, str]:
        layer, name = variable.path.split("/")[-2:]
        kind, _, n = layer.rpartition("_")
        return (kind, int(n), name) if n.isdigit() else (layer, 0, name)

    return [np.asarray(variable) for variable in sorted(model.weights, key=number)]


@pytest.mark.parametrize("model", ["small_cnn", pytest.param("resnet", marks=pytest.mark.slow)])
def test_computing_again_changes_no_weight(model: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (16, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, 16)
    found = []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        twin = network(Design(model, width=0.25, norm="group", remat=remat), (8, 8, 3), "uint8", 3)
        twin.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        twin.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
        found.append(in_order_of_creation(twin))
    for plain, again in zip(*found, strict=True):
        np.testing.assert_allclose(plain, again, atol=1e-5)
    twin.save(tmp_path / "remat.keras")
    loaded = keras.models.load_model(tmp_path / "remat.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x), twin.predict_on_batch(x))


def test_layers_with_state_or_chance_are_refused() -> None:
    layers = keras.layers
    cases = [
        (layers.BatchNormalization(), "moving averages"),
        (layers.Dropout(0.1), "random numbers"),
        (layers.GaussianNoise(0.1), "random numbers"),
        (keras.Sequential([layers.Dense(2), layers.Dropout(0.5)]), r"dropout.* \(Dropout\)"),
        (layers.LSTM(2, dropout=0.5), "random numbers"),
        (layers.LSTM(2, stateful=True), "state"),
        (layers.TimeDistributed(layers.BatchNormalization()), "moving averages"),
    ]
    for layer, reason in cases:
        with pytest.raises(streamkit.UsageError, match=reason):
            Remat([layers.Dense(2), layer])
    Remat([layers.Dense(2), layers.LayerNormalization(), layers.LSTM(2)])


# The report


def test_the_report_holds_what_was_measured_and_nothing_from_outside(tmp_path: Path) -> None:
    monitor = MemoryMonitor()
    history = tiny().fit(X, Y, epochs=2, verbose=0, callbacks=[monitor]).history
    row = Row("</script><b>pruned", 10, 40, 20, 100.0, 0.5, step_nbytes=77)
    write_report(tmp_path / "r.html", {"dataset": "some/out"}, history, monitor, Estimate(1, 2, 3, 4), [row])
    text = (tmp_path / "r.html").read_text()
    assert "<title>out: training</title>" in text and "</script><b>" not in text and "src=" not in text
    assert re.search(r'\["together",\s*10\],\s*\["measured peak",\s*77\]', text)
    many = [(float(i), {"host_nbytes": i}) for i in range(5000)]
    found = facts_of({}, {"loss": [1.0]}, many, [], [])
    assert len(found["memory"]["host_nbytes"]) <= 1000 and found["seconds"] == 4999.0


def test_a_batch_says_how_many_make_an_update() -> None:
    assert Batch(32, 256, 1, "ran").accumulate == 8
