"""Training on several devices, of which each gets its part of every batch; and batches that are there ahead of use."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import keras
import numpy as np
import pytest
from converting import needs, python
from hypothesis import given
from hypothesis import strategies as st
from reading import all_same, convert

import streamkit
from streamkit.frontends.devices import mover
from streamkit.training import feeding, fit
from streamkit.training.devices import Devices, shared
from streamkit.training.feeding import Feed

N = 76


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """76 rows of 6 floats in 3 classes."""
    folder = tmp_path_factory.mktemp("devices")
    x = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
    np.savez(folder / "table.npz", x=x, y=np.arange(N) % 3)
    return convert(folder / "table.npz", folder / "out")


# Ahead of use


def check_that_batches_are_moved_ahead(out: Path, backend: str) -> None:
    """A loader's device holds in `fit`, whichever way the loader came; each batch is moved before the one before is used."""
    module = importlib.import_module(backend)
    device = module.device("meta") if backend == "torch" else module.devices("cpu")[0]
    truth = streamkit.Loader(out, batch_size=8)
    loader = streamkit.Loader(out, batch_size=8, device=device)
    for source in (loader, loader.as_keras()):
        move = mock.Mock(wraps=feeding.mover(backend, device))
        with (
            mock.patch.object(feeding, "mover", lambda *_, move=move: move),
            mock.patch.object(keras.backend, "backend", lambda: backend),
        ):
            rest = Feed.of(source).epoch(1, 2)
            assert len(rest) == 8
            for i in range(len(rest)):
                x, y = rest[i]
                assert move.call_count == min(i + 2, len(rest))
                if backend == "torch":
                    assert x.device == y.device == device
                else:
                    assert x.devices() == y.devices() == {device}
                    assert all_same([(np.asarray(x), np.asarray(y))], [truth.batch(1, 2 + i)])


def test_tensorflow_is_not_left_to_take_another_device() -> None:
    needs("tensorflow")
    assert callable(mover("tensorflow", "CPU:0")) and callable(mover("tensorflow", "/cpu:0"))
    for device in ("CPU:7", "nonsense"):
        with pytest.raises(streamkit.UsageError, match="which tensorflow does not know"):
            mover("tensorflow", device)


def test_batches_are_on_the_device_before_they_are_asked_for_on_pytorch(out: Path) -> None:
    needs("torch")
    check_that_batches_are_moved_ahead(out, "torch")


def test_batches_are_on_the_device_before_they_are_asked_for_on_jax(out: Path) -> None:
    """In a process of its own: JAX, once loaded, minds every fork."""
    needs("jax")
    script = (
        "import pathlib, sys, test_devices as t; t.check_that_batches_are_moved_ahead(pathlib.Path(sys.argv[1]), 'jax')"
    )
    run = python(script, out, env={"KERAS_BACKEND": "jax"})
    assert run.returncode == 0, run.stderr


def test_tensorflow_moves_batches_last_of_all(out: Path, tmp_path: Path) -> None:
    """Nothing may come behind its move to a device, which loses count; Keras is told then how many there are."""
    tf = pytest.importorskip("tensorflow")
    loader = streamkit.Loader(out, batch_size=8)
    assert int(loader.held(1, 2).as_tf().cardinality()) == len(list(loader.held(1, 2).as_tf())) == 8
    loader.resume(loader.cursor_at(3))
    assert int(loader.as_tf().cardinality()) == tf.data.UNKNOWN_CARDINALITY  # 7, then 10
    moving = streamkit.Loader(out, batch_size=8, device="CPU:0")
    assert "Prefetch" in type(Feed.of(moving).epoch(1)).__name__
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, moving, epochs=2, run_dir=tmp_path, validation=moving, verbose=0)  # a warning would be an error
    assert int(model.optimizer.iterations) == 20


# Several devices


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 8))
def test_devices_share_a_step_evenly_or_it_is_refused(batch_size: int, n_samples: int, n: int) -> None:
    if batch_size % n or n_samples < n:
        with pytest.raises(streamkit.UsageError, match=f"{n} devices"):
            shared(batch_size, n_samples, n)
        return
    size = shared(batch_size, n_samples, n)
    assert 0 < size <= batch_size and size % n == 0 and size <= n_samples
    assert size == batch_size or size + n > n_samples


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow")
    with pytest.raises(
        streamkit.UsageError, match=r"64 devices: tensorflow finds \d+\. Ask for no more than there are\."
    ):
        Devices(64).scope()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"])
    with pytest.raises(
        streamkit.UsageError, match=r"jax finds 1\. XLA_FLAGS=--xla_force_host_platform_device_count=2 "
    ):
        Devices(2).scope()
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    with pytest.raises(streamkit.UsageError, match=r"jax finds 1\. Ask for no more than there are\."):
        Devices(2).scope()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(streamkit.UsageError, match="Keras on PyTorch trains on one"):
        Devices(2)


def test_batches_go_to_an_accelerator_ahead_of_use_and_stay_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Devices(1).target is None
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    cuda = SimpleNamespace(type="cuda")
    monkeypatch.setattr(keras.ops, "zeros", lambda shape: SimpleNamespace(device=cuda))
    assert Devices(1).target is cuda


def test_what_replicas_of_tensorflow_get_wrong_is_refused() -> None:
    Devices(1).refuse_unsafe("mixed_float16", 4)
    Devices(2).refuse_unsafe("mixed_bfloat16", 1)
    for precision, accumulate, reason in (("mixed_float16", 1, "overflow"), ("float32", 2, "cannot accumulate")):
        with pytest.raises(streamkit.UsageError, match=reason):
            Devices(2).refuse_unsafe(precision, accumulate)


# Two devices that XLA makes of one CPU: weights after `fit` on one and on both, and how each batch lay.
JAX = """
import json, sys
import jax, keras, numpy as np
import streamkit
from streamkit.training import fit
from streamkit.training.devices import Devices
from streamkit.training.timing import EpochReport

parts = []
count = EpochReport._n_samples
def n_samples(self, batch):
    lie = [getattr(x, "addressable_shards", None) for x in jax.tree.leaves(batch)]
    parts.append([len(x) if where is None else [shard.data.shape[0] for shard in where]
                  for x, where in zip(jax.tree.leaves(batch), lie, strict=True)])
    return count(self, batch)
EpochReport._n_samples = n_samples
weights, refused = [], []
for n in (1, 2):
    devices = Devices(n)
    with devices.scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        options = {"batch_size": 8, "seed": 1, "device": devices.target}
        loader = streamkit.Loader(sys.argv[1], drop_remainder=True, **options)
        for _ in range(2):  # the second goes on
            fit(model, loader, epochs=1 + _, run_dir=f"{sys.argv[2]}/{n}", verbose=0, callbacks=[EpochReport()])
        weights.append([float(w) for v in model.get_weights() for w in v.ravel()])
        if n == 2:
            for wrong in ({"split": "all[:75]"}, {"batch_size": 5}):
                try:
                    fit(model, loader, epochs=3, run_dir=f"{sys.argv[2]}/{n}", verbose=0,
                        validation=streamkit.Loader(sys.argv[1], **options | wrong))
                except streamkit.UsageError as error:
                    refused.append(str(error))
print(json.dumps([weights, parts, refused]))
"""


@pytest.mark.slow
def test_jax_divides_every_batch_among_devices(out: Path, tmp_path: Path) -> None:
    needs("jax")
    (split,) = streamkit.open(out).splits
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    run = python(JAX.replace("all[", f"{split}["), out, tmp_path, env={"KERAS_BACKEND": "jax", "XLA_FLAGS": flags})
    assert run.returncode == 0, run.stderr[-3000:]
    (one, two), parts, refused = json.loads(run.stdout.splitlines()[-1])
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    n_steps = 2 * (N // 8)
    assert parts == [[8, 8]] * n_steps + [[[4, 4], [4, 4]]] * n_steps  # of x, and of y
    hint = "Pass a batch_size that 2 divides, and drop_remainder=True."
    left = "which do not divide among 2 devices"
    assert refused == [f"batch {i} has {n} samples, {left}. {hint}" for i, n in ((9, 3), (0, 5))]
