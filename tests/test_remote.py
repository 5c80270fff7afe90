"""Datasets on servers: the same batches as from disk, whatever the server does in between, and never a wrong byte."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from serving import Served, served

import streamkit
from streamkit.errors import RemoteError
from streamkit.remote import patience
from streamkit.remote.address import Address
from streamkit.remote.sending import upload


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of a test: the same rules, in tenths of seconds."""
    quick = patience.Patience(n_tries=5, total_s=6.0, answer_s=0.5, first_wait_s=0.01, longest_wait_s=0.05)
    monkeypatch.setattr(patience, "PATIENCE", quick)


@pytest.fixture(scope="session")
def photo_set(tmp_path_factory: pytest.TempPathFactory, many_photos: Path) -> Path:
    """60 JPEGs in several TFRecord shards."""
    out = tmp_path_factory.mktemp("far") / "photos"
    streamkit.convert(many_photos, out, format="tfrecord", workers=1, shard_size="20KB")
    return out


@pytest.fixture(scope="session")
def array_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows of chunked, compressed HDF5, in several shards."""
    root = tmp_path_factory.mktemp("far-arrays")
    rows = np.cumsum(np.random.default_rng(0).integers(-1, 2, (200, 40, 2)), axis=1).astype(np.float32)
    np.savez(root / "rows.npz", signal=rows, y=np.arange(200) % 3)
    streamkit.convert(root / "rows.npz", root / "out", format="hdf5", compression="gzip", workers=1, shard_size="16KB")
    return root / "out"


@pytest.fixture
def server(photo_set: Path) -> Iterator[Served]:
    with served(photo_set) as there:
        yield there


def in_memory(folder: Path, name: str) -> str:
    """The dataset on fsspec's file system in memory."""
    for path in folder.iterdir():
        upload(path, Address(f"memory://{name}") / path.name)
    return f"memory://{name}"


def batches(path: Any, **options: Any) -> list[Any]:
    return list(streamkit.Loader(path, batch_size=16, seed=3, **options))


def same(a: Any, b: Any) -> bool:
    """Whether two lists of batches are equal, bit for bit."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and np.array_equal(a, b)


# The same batches


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_dataset_by_http_gives_the_batches_of_the_one_on_disk(server: Served, photo_set: Path, shuffle: bool) -> None:
    here, there = (batches(p, image_size=(16, 16), shuffle=shuffle) for p in (photo_set, server.url))
    assert same(here, there)


def test_chunked_arrays_in_memory_give_the_batches_of_those_on_disk(array_set: Path) -> None:
    assert same(batches(array_set), batches(in_memory(array_set, "arrays")))


def test_choosing_opening_and_resuming_work_at_a_distance(server: Served, photo_set: Path) -> None:
    man = streamkit.open(server.url)
    assert man.index().equals(streamkit.open(photo_set).index())
    expression = pc.field("label") == 1
    assert streamkit.Loader(server.url, where=expression, image_size=(8, 8)).n_samples == 30
    loader = streamkit.Loader(server.url, image_size=(8, 8), batch_size=16, seed=3)
    loader.resume(streamkit.Loader(photo_set, image_size=(8, 8), batch_size=16, seed=3).cursor_at(2))
    assert same(list(loader), batches(photo_set, image_size=(8, 8))[2:])
    again = pickle.loads(pickle.dumps(loader))
    again.epoch = 0
    assert same(list(again), batches(photo_set, image_size=(8, 8)))


# A server with a bad day: the answer is asked for again, and nobody notices

PASSING = ["503", "500", "429:0", "reset", "cut", "short", "flip", "flips", "html", "hang", "slow", "ignore", "502"]


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_not_noticed(server: Served, photo_set: Path, fault: str) -> None:
    for path in photo_set.iterdir():
        if path.suffix == ".tfrecord" or fault not in (
            "flip",
            "flips",
        ):  # nothing but sums tells a flip, and a manifest's
            server.faults[path.name] = [fault, fault]
    assert same(batches(photo_set, image_size=(8, 8)), batches(server.url, image_size=(8, 8)))


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "short", "flips", "html", "hang", "slow", "ignore"])
def test_a_server_that_never_answers_right_ends_in_a_remote_error(server: Served, fault: str) -> None:
    loader = streamkit.Loader(server.url, image_size=(8, 8), num_workers=2, shuffle=False)
    server.always["train-00000.tfrecord"] = fault
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"train-00000\.tfrecord: .*tried 5 times") as caught:
        list(loader)
    assert time.monotonic() - started < 8
    assert caught.value.exit_code == 6
