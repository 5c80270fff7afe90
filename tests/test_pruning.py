"""What pruning promises on every backend: exactly the smallest go, when the schedule says so, and zeros stay zero."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from converting import python
from hypothesis import given

import streamkit
from streamkit.training.networks import Design, network
from streamkit.training.pruning import ConstantSparsity, PolynomialDecay, Prune, kept, kernels, prune, sparsity

layers = keras.layers


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, -3.0]), min_size=1, max_size=9), min_size=1, max_size=4),
    st.floats(0, 0.99),
    st.sampled_from(["layer", "global"]),
)
def test_exactly_the_smallest_go_and_one_of_each_array_stays(
    values: list[list[float]], share: float, scope: str
) -> None:
    weights = [np.array(row) for row in values]
    masks = kept(weights, share, scope)
    assert all(np.abs(w[mask]).max() == np.abs(w).max() for w, mask in zip(weights, masks, strict=True))
    groups = [list(zip(weights, masks, strict=True))]
    for group in groups if scope == "global" else [[pair] for pair in groups[0]]:
        gone = np.concatenate([np.abs(w[~mask]) for w, mask in group])
        rest = np.concatenate([np.sort(np.abs(w[mask]))[:-1] for w, mask in group])  # but the one that has to stay
        n = sum(w.size for w, _ in group)
        assert gone.size == min(round(share * n), n - len(group))
        assert gone.max(initial=0) <= rest.min(initial=np.inf)


@given(st.integers(0, 50), st.integers(0, 200), st.integers(1, 60), st.floats(0, 0.5), st.floats(0.5, 0.99))
def test_a_schedule_rises_from_initial_to_final(begin: int, length: int, every: int, low: float, high: float) -> None:
    schedule = PolynomialDecay(high, low, begin, begin + length, every)
    events, step = [], -1
    while (event := schedule.next_event(step)) is not None:
        assert schedule.last_event(event) == event and schedule.last_event(event - 1) == (events or [None])[-1]
        events.append(event)
        step = event
    assert events[0] == begin and events[-1] == begin + length == schedule.last_event(begin + length + 9)
    shares = [schedule.at(event) for event in events]
    assert shares == sorted(shares) and shares[-1] == high
    assert schedule.at(begin - 1) == 0


CASES: dict[str, dict[str, Any]] = {
    "global, compiled before": {"scope": "global", "before": True},
    "several steps an execution, loss scaling": {"steps_per_execution": 4, "policy": "mixed_float16"},
    "accumulated, loss scaling": {"accumulate": 4, "policy": "mixed_float16"},
    "filters": {"unit": "filter"},
    "averaged until the last update": {"use_ema": True, "end": 48},
    "averaged, loss scaling, filters": {"use_ema": True, "policy": "mixed_float16", "unit": "filter"},
}


def trained(
    scope: str = "layer",
    unit: str = "weight",
    accumulate: int | None = None,
    steps_per_execution: int = 1,
    policy: str = "float32",
    use_ema: bool = False,
    before: bool = False,
    end: int = 8,
) -> Any:
    """A network that was pruned to 0.75 in `end` of 48 batches of 8; its weights decay, so that zeros would not last."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(192, 12)).astype(np.float32), rng.integers(0, 2, 192)
    hidden = [layers.Dense(16, activation="relu"), layers.Dense(16), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(2, dtype="float32")])
    optimizer = keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=accumulate, weight_decay=1e-3, use_ema=use_ema, ema_momentum=0.9
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, steps_per_execution=steps_per_execution)
    begin = 0
    if before:
        model.fit(x, y, batch_size=8, verbose=0)
        begin = int(model.optimizer.iterations)
    schedule = PolynomialDecay(0.75, begin=begin, end=begin + end, every=3)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[Prune(schedule, scope, unit)])
    return model


@pytest.mark.parametrize("case", CASES)
def test_final_sparsity_is_exact(case: str, request: pytest.FixtureRequest) -> None:
    options = CASES[case]
    if "steps_per_execution" in options and keras.backend.backend() == "torch":
        pytest.skip("Keras on PyTorch executes one step at a time")
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    model = trained(**options)
    pruned = [keras.ops.convert_to_numpy(v) for v in kernels(model, options.get("unit", "weight"))]
    shares = [float((v == 0).mean()) for v in pruned]
    if "unit" in options:
        assert [(~v.any(axis=0)).sum() for v in pruned] == [12, 12]
        gamma = keras.ops.convert_to_numpy(model.layers[2].gamma)
        assert [(gamma == 0).sum(), (gamma != 0).sum()] == [12, 4]
    elif "scope" in options:
        assert sum(int((v == 0).sum()) for v in pruned) == round(0.75 * sum(v.size for v in pruned))
        assert len(set(shares)) > 1
    else:
        assert shares == [0.75] * 3


def test_pruning_at_once_happens_also_where_the_optimizer_has_been_on_its_way() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8)])
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    model.fit(x, np.tile(x, 2), verbose=0)
    model.fit(x, np.tile(x, 2), verbose=0, callbacks=[Prune(ConstantSparsity(0.5))])
    assert sparsity(model) == 0.5


def test_recurrent_kernels_are_pruned_and_no_kernel_vanishes() -> None:
    model = network(Design("lstm", width=0.25), (16, 3), "float32", 4)
    assert {v.name for v in kernels(model)} == {"kernel", "recurrent_kernel"}
    n = sum(int(np.prod(v.shape)) for v in kernels(model))
    prune(model, 0.999, scope="global")
    assert all(keras.ops.convert_to_numpy(v).any() for v in kernels(model))
    assert sparsity(model) == pytest.approx(min(round(0.999 * n), n - len(kernels(model))) / n)


def test_pruning_says_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_initializer="zeros")])
    model.compile("sgd", "mse")
    x = np.ones((8, 4), np.float32)
    with pytest.raises(streamkit.UsageError, match="all zeros"):
        model.fit(x, x[:, :3], verbose=0, callbacks=[Prune(ConstantSparsity(0.5))])
    model.set_weights([np.ones((4, 3)), np.zeros(3)])
    model.fit(x, x[:, :3], verbose=0, callbacks=[Prune(PolynomialDecay(0.9, end=500))])
    assert "training at update 1 of 500" in capsys.readouterr().err
    for wrong in ({"final": 1.0}, {"final": 0.5, "initial": 0.6}, {"final": 0.5, "begin": 9, "end": 3}):
        with pytest.raises(streamkit.UsageError):
            PolynomialDecay(**wrong)
    # What comes beside a filter, over a shortcut, would go with it.
    residual = network(Design("resnet"), (8, 8, 3), "uint8", 2)
    before = residual.get_weights()
    with pytest.raises(streamkit.UsageError, match="expected a Sequential"):
        prune(residual, 0.5, unit="filter")
    assert all((a == b).all() for a, b in zip(before, residual.get_weights(), strict=True))
    residual.compile("sgd", "mse")
    with pytest.raises(streamkit.UsageError, match="expected a Sequential"):
        residual.fit(
            np.zeros((2, 8, 8, 3)), np.zeros((2, 2)), verbose=0, callbacks=[Prune(PolynomialDecay(0.5), unit="filter")]
        )


def test_filters_go_with_their_own_normalisation_only() -> None:
    """After the LSTM stands one of as many channels as the convolution before it has."""
    parts = [layers.Conv1D(8, 3), layers.BatchNormalization(), layers.LSTM(8, return_sequences=True)]
    parts += [layers.BatchNormalization(), layers.GlobalAveragePooling1D(), layers.Dense(4), layers.Dense(2)]
    model = keras.Sequential([keras.Input((16, 3)), *parts])
    prune(model, 0.5, unit="filter")
    assert [int((keras.ops.convert_to_numpy(parts[i].gamma) == 0).sum()) for i in (1, 3)] == [4, 0]
    assert [v.shape[-1] for v in kernels(model, "filter")] == [8, 4]


def in_a_process(backend: str, case: str, setup: str, around: str) -> list[list[list[float]]]:
    """The share of zeros in each copy of each kernel after `trained`, in a process of its own."""
    pytest.importorskip(backend)
    script = f"""{setup}
from test_pruning import *
with {around}:
    model = trained(**CASES.get({case!r}, {{}}))
copies = [getattr(v.value, "values", [v]) for v in kernels(model)]  # under tf.distribute
print([[float((np.asarray(keras.ops.convert_to_numpy(copy)) == 0).mean()) for copy in both] for both in copies])
"""
    run = python(script, env={"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_pruning_holds_on_two_devices_of_tensorflow() -> None:
    setup = """
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
    mirrored = 'tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()'
    assert in_a_process("tensorflow", "float32", setup, mirrored) == [[0.75, 0.75]] * 3


@pytest.mark.slow
def test_pruning_holds_on_jax_which_never_calls_the_loss_scaling_optimizer() -> None:
    # Without TensorFlow as where it is not installed; and it takes seconds.
    setup = "import contextlib, sys; sys.modules['tensorflow'] = None"
    assert in_a_process("jax", "accumulated, loss scaling", setup, "contextlib.nullcontext()") == [[0.75]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_techniques_hold_on_each_backend(backend: str) -> None:
    """The tests of this module and of test_techniques.py again, in a process of their own."""
    pytest.importorskip(backend)
    words = "not holds_on"
    if backend == "torch":  # where two epochs end at 0.954 and 0.938 of 0.979 instead of within 0.02
        words += " and not as_good_after_two_epochs"
    files = [str(Path(__file__).with_name(name)) for name in ("test_pruning.py", "test_techniques.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", words, *files],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
