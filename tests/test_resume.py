"""`streamkit.training.fit` goes on exactly where it was killed, and refuses to go on with something else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import python
from reading import convert

import streamkit
from streamkit.training import fit
from streamkit.training.interrupting import held
from streamkit.training.state import FILE_NAME

N = 76
ROOT = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """76 rows of 6 floats in 3 classes; x[i, 0] is i."""
    folder = tmp_path_factory.mktemp("resume")
    x = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    x[:, 0] = np.arange(N)
    np.savez(folder / "table.npz", x=x, y=np.arange(N) % 3)
    return convert(folder / "table.npz", folder / "out")


@pytest.mark.fault(78)
@pytest.mark.parametrize(
    "backend", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensorflow", "jax"))]
)
def test_a_killed_run_ends_as_one_that_was_not(out: Path, tmp_path: Path, backend: str) -> None:
    """In float32 while pruning, and in mixed_float16 with accumulation.

    After three kills the pruned run has gone on from steps 6, 12 and 18; after 6 and after 12 it was pruned.
    """
    n_kills = 3
    pytest.importorskip(backend)
    script = f"import runpy; runpy.run_path({str(ROOT / 'resuming.py')!r}, run_name='__main__')"
    run = python(script, out, tmp_path, n_kills, env={"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found == {"float32, pruned": [n_kills, 0.0], "mixed_float16, accumulated": [n_kills, 0.0]}


class Stopped(Exception):
    """Stands for the kill where one process is enough."""


def callback(**methods: Any) -> Any:
    import keras

    return type("Probe", (keras.callbacks.Callback,), {name: staticmethod(f) for name, f in methods.items()})()


def stop_after(n_steps: int) -> Any:
    left = [n_steps]

    def on_train_batch_end(batch: int, logs: Any = None) -> None:
        left[0] -= 1
        if not left[0]:
            raise Stopped

    return callback(on_train_batch_end=on_train_batch_end)


def recorder(seen: list[list[int]], **options: Any) -> Any:
    """A compiled model that notes the rows of each batch that it is trained on."""
    import keras

    class Recorder(keras.Sequential):
        def train_step(self, *state_and_data: Any) -> Any:
            seen.append([int(v) for v in keras.ops.convert_to_numpy(state_and_data[-1][0])[:, 0]])
            return super().train_step(*state_and_data)

    model = Recorder([keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True, **options)
    return model


def batches_of(out: Path, n_epochs: int, **options: Any) -> list[list[int]]:
    loader = streamkit.Loader(out, **options)
    return [[int(v) for v in x[:, 0]] for _ in range(n_epochs) for x, _ in loader]


@pytest.mark.parametrize("way", ["", "as_tf", "as_keras"])
def test_batches_follow_one_another_and_callbacks_see_one_run(out: Path, tmp_path: Path, way: str) -> None:
    """10 batches an epoch; saved at 3, 6 and 9 of every epoch's course, stopped at 17, so continued from 15."""
    seen: list[list[int]] = []
    calls: list[Any] = []

    def source() -> Any:
        loader = streamkit.Loader(out, batch_size=8, seed=1)
        return getattr(loader, way)() if way else loader

    options = {"epochs": 3, "run_dir": tmp_path / "run", "every_steps": 3, "verbose": 0}
    with pytest.raises(Stopped):
        fit(recorder(seen), source(), callbacks=[stop_after(17)], **options)
    expected = batches_of(out, 3, batch_size=8, seed=1)
    assert seen == expected[:17]
    seen.clear()
    probe = callback(
        on_train_begin=lambda logs=None: calls.append("begin"),
        on_epoch_begin=lambda epoch, logs=None: calls.append(epoch),
        on_train_batch_begin=lambda batch, logs=None: calls.append(f"batch {batch}"),
        on_train_end=lambda logs=None: calls.append("end"),
    )
    history = fit(recorder(seen), source(), callbacks=[probe], **options)
    assert seen == expected[15:]
    assert calls[:3] == ["begin", 1, "batch 5"]
    assert [call for call in calls if not str(call).startswith("batch")] == ["begin", 1, 2, "end"]
    assert len(history.history["loss"]) == 3
    seen.clear()
    assert fit(recorder(seen), source(), **options).history == history.history  # nothing is left to do
    assert seen == []


@pytest.mark.parametrize("stop", [11, 17])
def test_the_history_is_that_of_an_undisturbed_run(out: Path, tmp_path: Path, stop: int) -> None:
    """Continued at the border between two epochs, and in the middle of one, with validation between them."""
    import keras

    histories = []
    for callbacks in ([], [stop_after(stop)]):
        options: dict[str, Any] = {
            "epochs": 2,
            "every_steps": 15,
            "run_dir": tmp_path / str(len(callbacks)),
            "verbose": 0,
        }
        for more in (callbacks, []):
            keras.utils.set_random_seed(1)
            model = recorder([], metrics=["accuracy"])
            try:
                loader = streamkit.Loader(out, batch_size=8)
                history = fit(model, loader, validation=loader, callbacks=more, **options).history
            except Stopped:
                pass
        histories.append(history)
    assert histories[0] == histories[1]
    assert sorted(histories[0]) == ["accuracy", "loss", "val_accuracy", "val_loss"]


@pytest.mark.fault(78)
def test_a_run_that_is_pruned_goes_on_exactly_around_every_event(out: Path, tmp_path: Path) -> None:
    """Pruned at 2, 5 and 6 of 10 updates, saved after each and stopped in the one after it."""
    import keras

    from streamkit.training.pruning import PolynomialDecay, Prune

    def weights(run: Path, *more: Any) -> Any:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01, use_ema=True), loss, run_eagerly=True)
        callbacks = [Prune(PolynomialDecay(0.75, begin=2, end=6, every=3), scope="global"), *more]
        options: dict[str, Any] = {"epochs": 1, "every_steps": 1, "verbose": 0}
        fit(model, streamkit.Loader(out, batch_size=8, num_workers=1), run_dir=run, callbacks=callbacks, **options)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    expected = weights(tmp_path / "whole")
    assert (expected == 0).sum() >= round(0.75 * (6 * 16 + 16 * 3))
    for _ in range(8):
        with pytest.raises(Stopped):
            weights(tmp_path / "broken", stop_after(2))
    assert (weights(tmp_path / "broken") == expected).all()


def test_executions_of_several_steps_keep_their_borders(out: Path, tmp_path: Path) -> None:
    """The last execution of an epoch holds 2 of its 4 steps."""
    import keras

    results = []
    for stop in (None, 2):
        keras.utils.set_random_seed(0)
        losses: list[float] = []
        options: dict[str, Any] = {"epochs": 2, "run_dir": tmp_path / str(stop), "every_steps": 1, "verbose": 0}
        for callbacks in ([stop_after(stop)], []) if stop else ([],):
            model = keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("adam", loss, steps_per_execution=4)
            try:
                history = fit(model, streamkit.Loader(out, batch_size=8), callbacks=callbacks, **options)
                losses = history.history["loss"]
            except Stopped:
                pass
        results.append((losses, int(model.optimizer.iterations), model.get_weights()[0].tolist()))
    assert results[0][1] == 20
    assert results[0][0] == results[1][0] and results[0][2] == results[1][2]


def test_another_number_of_replicas_continues_with_the_same_global_batches(out: Path, tmp_path: Path) -> None:
    options = {"epochs": 2, "every_steps": 2, "verbose": 0}
    one: list[list[int]] = []
    with pytest.raises(Stopped):
        loader = streamkit.Loader(out, batch_size=8, seed=1)
        fit(recorder(one), loader, run_dir=tmp_path / "run", callbacks=[stop_after(5)], **options)
    parts: list[list[list[int]]] = []
    for shard in (1, 0):  # 0 writes the end of the run, so it comes last
        parts.append([])
        loader = streamkit.Loader(out, batch_size=4, seed=1, shard_index=shard, num_shards=2)
        fit(recorder(parts[-1]), loader, run_dir=tmp_path / "run", **options)
    together = [a + b for a, b in zip(parts[1], parts[0], strict=True)]
    assert together == batches_of(out, 2, batch_size=8, seed=1)[4:]


@pytest.mark.fault(77)
def test_a_run_of_something_else_is_refused(out: Path, tmp_path: Path) -> None:
    import keras

    run = tmp_path / "run"
    options: dict[str, Any] = {"epochs": 1, "run_dir": run, "verbose": 0}
    fit(recorder([]), streamkit.Loader(out, batch_size=8), **options)

    def refused(pattern: str, kind: type[Exception] = streamkit.UsageError, model: Any = None, **loader: Any) -> None:
        with pytest.raises(kind, match=pattern) as caught:
            fit(
                model or recorder([]),
                streamkit.Loader(loader.pop("path", out), **{"batch_size": 8} | loader),
                **options,
            )
        assert str(run) in str(caught.value) and "\n" not in str(caught.value)

    refused(r"seed \(cursor 0, here 4\)", seed=4)
    refused("global_batch", batch_size=4)
    refused("choosing", rows=range(50))
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((N, 6), np.float32), y=np.arange(N) % 3)
    refused("dataset", path=convert(other, tmp_path / "other"))
    wider = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    wider.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    refused(r"model/0 is shape \(6, 3\) there, .* of shape \(6, 4\) here", model=wider)
    adam = recorder([])
    adam.compile("adam", wider.loss, run_eagerly=True)
    refused("optimizer/2 is nothing there", model=adam)
    shutil.copytree(run, tmp_path / "whole")
    state = (run / FILE_NAME).read_bytes()
    for damaged in (state[: len(state) // 2], b"", state.replace(b"}", b"{", 1)):
        (run / FILE_NAME).write_bytes(damaged)
        refused("no whole state", streamkit.DamagedError)
    (run / FILE_NAME).write_bytes(state)
    assert sorted(os.listdir(run)) == [FILE_NAME]


def test_what_cannot_be_continued_is_refused_at_once(out: Path, tmp_path: Path) -> None:
    import keras

    stopping = keras.callbacks.EarlyStopping(restore_best_weights=True)
    options: dict[str, Any] = {"epochs": 1, "run_dir": tmp_path, "verbose": 0}
    with pytest.raises(streamkit.UsageError, match="ModelCheckpoint"):
        fit(recorder([]), streamkit.Loader(out), callbacks=[stopping], **options)
    with pytest.raises(streamkit.UsageError, match="batch_size"):
        fit(recorder([]), streamkit.Loader(out, batch_size=None), **options)
    with pytest.raises(streamkit.UsageError, match="no batch"):
        fit(recorder([]), streamkit.Loader(out, batch_size=N + 1, drop_remainder=True), **options)
    for unknown, hint in (
        ({"every_step": 5}, "Did you mean 'every_steps'? See help(streamkit.training.fit)."),
        ({"validation_data": None}, "Pass validation=."),
    ):
        with pytest.raises(TypeError, match=re.escape(hint)) as caught:
            fit(recorder([]), streamkit.Loader(out), **options, **unknown)
        assert isinstance(caught.value, streamkit.UsageError)
    for steps, reason in ((0, "at least 1"), (-1, "at least 1"), (2.5, "a whole number")):
        with pytest.raises(streamkit.UsageError, match=f"every_steps is {steps}, expected {reason}"):
            fit(recorder([]), streamkit.Loader(out), every_steps=steps, **options)
    with pytest.raises(streamkit.UsageError, match=r"is not compiled.* Call model\.compile"):
        fit(keras.Sequential([keras.layers.Dense(3)]), streamkit.Loader(out), **options)
    before = sorted(out.iterdir())
    with pytest.raises(streamkit.UsageError, match="a dataset lies here"):
        fit(recorder([]), streamkit.Loader(out), **options | {"run_dir": out})
    assert sorted(out.iterdir()) == before
    (tmp_path / "mem.csv").touch()
    with pytest.raises(streamkit.UsageError, match=r"mem\.csv: this is a file, and a run is kept in a folder"):
        fit(recorder([]), streamkit.Loader(out), **options | {"run_dir": tmp_path / "mem.csv"})
    with pytest.raises(streamkit.UsageError, match="got a tuple, expected"):
        fit(recorder([]), (np.zeros((4, 6)), np.zeros(4)), **options)


def test_early_stopping_counts_on_and_ends_the_run_for_good(out: Path, tmp_path: Path) -> None:
    import keras

    def run(*more: Any) -> Any:
        stopping = keras.callbacks.EarlyStopping("loss", patience=2, min_delta=1e9)
        fit(model, streamkit.Loader(out), epochs=9, run_dir=tmp_path, verbose=0, callbacks=[stopping, *more])
        return model.history.epoch

    model = recorder([])
    with pytest.raises(Stopped):
        run(stop_after(2 * 3))
    assert run() == [0, 1, 2]
    assert run() == [0, 1, 2]
    assert int(model.optimizer.iterations) == 3 * 3


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop", [pytest.param(7, id="in an epoch"), pytest.param(10, id="at its end")])
def test_a_signal_is_let_through_when_the_step_is_saved(
    out: Path, tmp_path: Path, number: signal.Signals, stop: int
) -> None:
    """10 batches an epoch, and no save is due for a long time."""

    class Ended(Exception):
        """Stands for the end of the process."""

    def end(*arguments: Any) -> None:
        raise Ended

    def signal_at(n_steps: int) -> Any:
        return callback(
            on_train_batch_end=lambda batch, logs=None: batch == n_steps - 1 and signal.raise_signal(number)
        )

    seen: list[list[int]] = []
    options = {"epochs": 2, "run_dir": tmp_path / "run", "verbose": 0}
    before = signal.signal(number, end)
    try:
        with pytest.raises(Ended):
            fit(recorder(seen), streamkit.Loader(out, batch_size=8), callbacks=[signal_at(stop)], **options)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    fit(recorder(seen), streamkit.Loader(out, batch_size=8), **options)
    assert seen == batches_of(out, 2, batch_size=8)


def test_a_second_signal_does_not_wait() -> None:
    def both() -> None:
        with held() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.came is signal.SIGINT
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        both()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_is_not_continued_with_other_settings(out: Path, tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        loader = streamkit.Loader(out, batch_size=8)
        return fit(recorder([]), loader, run_dir=tmp_path / "run", verbose=0, **options)

    settings = {"--rate": 0.003, "--image-size": (8, 8), "--prune": None}
    run(epochs=1, settings=settings)
    others = settings | {"--rate": 0.1, "--prune": 0.5}
    with pytest.raises(streamkit.UsageError) as refused:
        run(epochs=2, settings=others)
    assert "this run was begun with --rate 0.003, now 0.1, --prune none, now 0.5. " in str(refused.value)
    with pytest.raises(streamkit.UsageError, match=r"--image-size \[8, 8\], now none"):
        run(epochs=2)
    assert len(run(epochs=2, settings=settings).history["loss"]) == 2


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of Keras, which pytest.warns lets out
def test_another_learning_rate_is_a_warning_unless_a_callback_set_it(out: Path, tmp_path: Path) -> None:
    import keras

    def run(model: Any, epochs: int, run_dir: str = "run", **options: Any) -> Any:
        where = {"run_dir": tmp_path / run_dir, "verbose": 0}
        return fit(model, streamkit.Loader(out, batch_size=38), epochs=epochs, **where, **options)

    model = recorder([])
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    run(model, 1, callbacks=[halve])  # 0.01 -> 0.005
    run(model, 2, callbacks=[halve])  # the same model, as it is now
    run(recorder([]), 3, callbacks=[halve])  # made and compiled as before
    other = recorder([])
    other.optimizer.learning_rate = 0.5
    told = "begun with learning rate 0.01 and goes on with 0.00125, not 0.5 as compiled"
    with pytest.warns(UserWarning, match=told):
        run(other, 4)
    assert float(other.optimizer.learning_rate.numpy()) == pytest.approx(0.00125)

    for rate in (0.1, 0.2):  # of a schedule nothing is known
        scheduled = recorder([])
        decay = keras.optimizers.schedules.ExponentialDecay(rate, 10, 0.9)
        scheduled.compile(keras.optimizers.SGD(decay), scheduled.loss, run_eagerly=True)
        run(scheduled, 1, "scheduled")


def test_a_handler_that_lets_training_go_on_is_called_each_time() -> None:
    seen: list[int] = []
    own = {signal.SIGTERM: lambda number, frame: seen.append(number), signal.SIGINT: signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    try:
        with held() as signals:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
                assert signals.came is signal.SIGTERM
                signals.let_through()
            signal.raise_signal(signal.SIGINT)
            assert signals.came is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [signal.SIGTERM] * 2
