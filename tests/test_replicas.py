"""Several processes or devices that train together: each finds its shard, all get as many batches, together one epoch."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reading
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit import Loader, UsageError
from streamkit.order import Batches
from streamkit.replicas import place, tf_config

N = 22
SCRIPT = Path(__file__).with_name("replicas.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 rows whose values are their numbers; two global batches of 8 and a rest of 6."""
    folder = tmp_path_factory.mktemp("replicas")
    return reading.convert(reading.numbered(folder / "in", N), folder / "out")


def together(kind: str, out: Path, n_ranks: int = 2) -> list[dict[str, Any]]:
    """What each of `n_ranks` processes was given."""
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.socket()) for _ in range(n_ranks)]
        for each in free:
            each.bind(("localhost", 0))
        ports = ",".join(str(each.getsockname()[1]) for each in free)
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, str(out), ports, str(rank), str(n_ranks)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n_ranks)
    ]
    try:
        said = [rank.communicate(timeout=280) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), [errors[-2000:] for _, errors in said]
    return [json.loads(text.splitlines()[-1]) for text, _ in said]


def check_one_epoch_together(found: list[dict[str, Any]], out: Path, n_epochs: int) -> None:
    whole = Loader(out, batch_size=8, seed=1, shard_index=0, num_shards=1)
    expected = [[int(v) for v in x[:, 0]] for _ in range(n_epochs) for x, _ in whole]
    assert [a + b for a, b in zip(*(rank["seen"] for rank in found), strict=True)] == expected
    assert [len(batch) for batch in found[0]["seen"]] == [4, 4, 3] * n_epochs


@pytest.mark.slow
def test_tensorflow_s_workers_with_a_step_of_one_s_own(out: Path) -> None:
    """Two processes of MultiWorkerMirroredStrategy. Keras 3's fit is refused there; that it fails itself is checked, too."""
    found = together("tensorflow", out)
    check_one_epoch_together(found, out, 2)
    sums = [float(sum(a) + sum(b)) for a, b in zip(*(rank["seen"] for rank in found), strict=True)]
    assert all(rank["sums"] == sums for rank in found)
    for rank in found:
        fit, sequence, keras = rank["refused"]
        assert fit.startswith("UsageError: model.fit of Keras 3 fails under MultiWorkerMirroredStrategy")
        assert sequence == fit
        assert "PerReplica" in keras, "Keras 3 can do it now: refuse_workers_of_keras is no longer needed"


@pytest.mark.slow
def test_two_devices_of_one_process_train_as_one(out: Path) -> None:
    """MirroredStrategy divides each batch between two devices; `fit` ends with the weights of one device."""
    (found,) = together("mirrored", out, 1)
    one, one_of_ours, two, two_of_ours = found["weights"]
    assert one[-1] == one_of_ours[-1] == two[-1] == two_of_ours[-1] == 6  # steps
    np.testing.assert_allclose(two, one, rtol=1e-5)  # Keras alone peeks into an epoch before it trains on the next
    np.testing.assert_allclose(two_of_ours, one_of_ours, rtol=1e-5)
    whole = [[int(v) for v in x[:, 0]] for x, _ in Loader(out, batch_size=8, seed=1)]
    assert found["moved"] == [["device:CPU:1", batch] for batch in whole]


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_processes_of_torch_and_jax(out: Path, kind: str) -> None:
    pytest.importorskip(kind)
    found = together(kind, out)
    check_one_epoch_together(found, out, len(found[0]["seen"]) // 3)
    if kind == "torch":
        assert found[0]["sums"] == found[1]["sums"]
    else:
        assert all(rank["there"] and rank["moved"] == rank["seen"] for rank in found)


# How the place is found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("", None),
        ("{}", None),
        ('{"cluster": {"worker": ["a", "b", "c"]}, "task": {"type": "worker", "index": 2}}', (2, 3)),
        ('{"cluster": {"worker": ["a", "b"], "chief": ["c"]}, "task": {"type": "chief", "index": 0}}', (0, 3)),
        ('{"cluster": {"worker": ["a", "b"], "chief": ["c"]}, "task": {"type": "worker", "index": 1}}', (2, 3)),
        ('{"cluster": {"worker": ["a", "b"]}, "task": {"type": "evaluator", "index": 0}}', None),
        ('{"cluster": {"worker": ["a", "b"], "ps": ["c"]}, "task": {"type": "worker", "index": 1}}', None),
    ],
)
def test_tf_config(config: str, expected: tuple[int, int] | None) -> None:
    assert tf_config(config) == expected


@pytest.mark.parametrize("config", ["[", "[1]", '{"cluster": 1, "task": {"type": "worker", "index": "x"}}'])
def test_a_tf_config_that_is_none_is_refused(config: str) -> None:
    with pytest.raises(UsageError, match="TF_CONFIG"):
        tf_config(config)


def test_arguments_come_before_the_environment_and_frameworks_must_agree(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = '{"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 1}}'
    monkeypatch.setenv("TF_CONFIG", workers)
    assert (Loader(out).shard_index, Loader(out).num_shards) == (1, 2)
    assert place(0, 1) == (0, 1)
    monkeypatch.setattr(
        "streamkit.replicas._ASKED", (lambda: ("torch.distributed", (0, 2)), lambda: ("TF_CONFIG", (1, 2)))
    )
    with pytest.raises(UsageError, match=r"torch.distributed says 0 of 2, TF_CONFIG says 1 of 2.*shard_index="):
        Loader(out)


def test_finding_the_place_imports_no_framework(out: Path) -> None:
    code = """if True:
        import json, sys, streamkit
        loader = streamkit.Loader(sys.argv[1])
        next(iter(loader))
        print(json.dumps([loader.num_shards, sorted({"tensorflow", "torch", "jax", "keras"} & set(sys.modules))]))
    """
    assert reading.run_python(code, out) == [1, []]


# What is left of an epoch


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 7), st.booleans())
def test_without_shuffling_every_shard_has_as_many_and_nothing_is_lost(
    n: int, batch_size: int, num_shards: int, drop: bool
) -> None:
    shards = [Batches(n, batch_size, drop, r, num_shards, pad=True) for r in range(num_shards)]
    assert len({len(shard) for shard in shards}) == 1
    positions = []
    for batch in range(len(shards[0])):
        spans = [shard.positions(batch) for shard in shards]
        assert len({stop - start for start, stop in spans}) == 1
        for shard, (start, stop) in zip(shards, spans, strict=True):
            assert 0 < stop - start <= batch_size
            real = range(start, stop - shard.n_padding(batch))
            assert all(p < n for p in real) and (shard.n_padding(batch) == 0 or real.stop >= n)
            positions += list(real)
    lost = n % (batch_size * num_shards) if drop else 0
    assert sorted(positions) == list(range(n - lost))


@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
def test_padding_comes_from_the_beginning_and_is_flagged(out: Path, on_corrupt: str) -> None:
    """22 rows over 4 shards of 5: 5 each, and of the rest of 2 one sample each, of which the last two are padding."""
    stored = [reading.row_of(key) for key in reading.keys_of(out)]
    options: dict[str, Any] = {"shuffle": False, "batch_size": 5, "num_shards": 4, "on_corrupt": on_corrupt}
    shards = [Loader(out, shard_index=r, fields=("x", "padding"), **options) for r in range(4)]
    batches = [list(shard) for shard in shards]
    assert [[len(x) for x, _ in shard] for shard in batches] == [[5, 1]] * 4
    flags = [[flag for _, flags in shard for flag in flags] for shard in batches]
    assert np.array(flags).sum() == 2 and [shard.n_padding(1) for shard in shards] == [0, 0, 1, 1]
    last = [int(shard[1][0][0, 0]) for shard in batches]
    assert last == [stored[20], stored[21], stored[0], stored[1]]
    real = [
        int(x[0]) for shard in batches for xs, flags in shard for x, flag in zip(xs, flags, strict=True) if not flag
    ]
    assert sorted(real) == list(range(N))
    shuffled = [Loader(out, shard_index=r, **{**options, "shuffle": True}) for r in range(4)]
    assert [len(list(itertools.chain(shard))) for shard in shuffled] == [1] * 4


def test_the_flag_is_there_in_every_frontend(out: Path) -> None:
    pytest.importorskip("torch")
    options: dict[str, Any] = {"shuffle": False, "batch_size": 5, "shard_index": 3, "num_shards": 4}
    loader = streamkit.Loader(out, fields=("x", "padding"), **options)
    truth = list(loader)
    assert truth[1][1].tolist() == [True]
    assert reading.all_same([tuple(t.numpy() for t in batch) for batch in loader.as_tf()], truth)
    assert reading.all_same([tuple(t.numpy() for t in batch) for batch in loader.as_torch()], truth)
