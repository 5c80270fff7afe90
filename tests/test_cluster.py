"""Many machines: a real Dask scheduler and workers on TCP, one of them killed; and any other executor."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from converting import ROOT, class_folders, cli, digests, encoded, one_quickly, picture, write_files

import streamkit
from streamkit import RemoteError, ResourceError, SourceError, UsageError
from streamkit.convert import executor as execution

pytest.importorskip("distributed")

N_WORKERS = 3


class Cluster:
    """A scheduler and its workers, each a process of its own, on the loopback device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contact = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self._wait(self.contact.exists)
        self.workers = [self._start("worker", *_WORKER, "--name", str(i)) for i in range(N_WORKERS)]
        import json

        self.address = str(json.loads(self.contact.read_text())["address"])
        self._wait(lambda: self._n_workers() == N_WORKERS)

    def _start(self, kind: str, *args: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self.contact), *args]
        (self.folder / kind).mkdir(exist_ok=True)  # relative paths of the converter lead nowhere here
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__WORKER__DAEMON": "false"}
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(command, cwd=self.folder / kind, env=environment, stdout=log, stderr=log)

    def _n_workers(self) -> int:
        from distributed import Client

        with Client(self.address, timeout=30, set_as_default=False) as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])

    def _wait(self, ready: Any) -> None:
        until = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.05)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


_WORKER = ("--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that take seconds to convert, in 24 shards."""
    root = tmp_path_factory.mktemp("slow")
    data = encoded(picture(240, 300), "JPEG", quality=90)
    return write_files(root, {f"{c}/{i:03d}.jpg": data + b"%03d" % i for i in range(12) for c in "ab"})


SLOWLY = ("--encode", "png", "--shard-size", "40KB", "--split", "train=0.75,val=0.25", "--quiet")


@pytest.mark.fault(14)
@one_quickly
def test_a_killed_worker_s_shards_are_done_again(
    cluster: Cluster, slow_source: Path, tmp_path: Path, format: str
) -> None:
    """And the dataset is byte for byte that of this process alone; also from a relative path, which workers have not."""
    shutil.copytree(slow_source, tmp_path / "src")
    args = ("--format", format, *SLOWLY)
    command = [sys.executable, "-m", "streamkit", "convert", "src", "out", *args, "--cluster", cluster.address]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list((tmp_path / "out").glob("*-0*")):
        time.sleep(0.01)
    victim = cluster.workers.pop()
    victim.send_signal(signal.SIGKILL)
    n_done = len(list((tmp_path / "out" / ".streamkit").glob("*.part")))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert n_done < 24 and victim.wait() == -signal.SIGKILL
    assert cli("convert", tmp_path / "src", tmp_path / "here", *args, "--workers", 1).returncode == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "here")


def test_bad_items_come_back_from_workers(cluster: Cluster, tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 4, "b": 4})
    (source / "a" / "0001.jpg").write_bytes(b"no picture")
    with pytest.raises(SourceError) as caught:
        streamkit.convert(source, tmp_path / "out", format="tfrecord", shard_size=900, cluster=cluster.address)
    assert [key for key, _ in caught.value.bad] == ["a/0001.jpg"]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_cluster_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folders(tmp_path / "src", {"a": 2})
    monkeypatch.setattr("streamkit.convert.cluster._CONNECT_S", 0.2)
    with pytest.raises(RemoteError, match="no Dask scheduler answers"):
        streamkit.convert(source, tmp_path / "out", format="tfrecord", cluster="tcp://127.0.0.1:9")
    assert not (tmp_path / "out").exists()
    for wrong in ("127.0.0.1:8786", "http://127.0.0.1:8786", "tcp://127.0.0.1"):
        with pytest.raises(UsageError, match="tcp://HOST:8786"):
            streamkit.convert(source, tmp_path / "out", format="tfrecord", cluster=wrong)
    with ThreadPoolExecutor() as pool, pytest.raises(UsageError, match="both a cluster and an executor"):
        streamkit.convert(source, tmp_path / "out", format="tfrecord", cluster="tcp://127.0.0.1:9", executor=pool)


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_any_executor_writes_the_same_bytes(tmp_path: Path, format: str) -> None:
    source = class_folders(tmp_path / "src", {"a": 9, "b": 9})
    options: dict[str, Any] = {"format": format, "shard_size": 1500, "split": {"train": 0.7, "val": 0.3}}
    streamkit.convert(source, tmp_path / "here", workers=1, **options)
    pools: dict[str, Executor] = {"threads": ThreadPoolExecutor(3)}
    import multiprocessing

    pools["processes"] = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    for name, pool in pools.items():
        with pool:
            streamkit.convert(source, tmp_path / name, executor=pool, workers=2, **options)
        assert digests(tmp_path / name) == digests(tmp_path / "here")


def test_workers_of_other_libraries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They might write other bytes: the law that they do not is kept by looking, not by hoping."""
    source = class_folders(tmp_path / "src", {"a": 3})
    there = iter([execution.libraries() | {"h5py": "2.0"}])
    monkeypatch.setattr(execution, "libraries", lambda: next(there, {"h5py": "3.0"}))
    with ThreadPoolExecutor(1) as pool, pytest.raises(ResourceError, match="has h5py 3") as caught:
        streamkit.convert(source, tmp_path / "out", format="tfrecord", executor=pool)
    assert "same libraries" in str(caught.value)


def test_workers_that_do_not_see_the_output_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folders(tmp_path / "src", {"a": 3})
    monkeypatch.setattr(execution, "WORK_FOLDER", "elsewhere")
    with ThreadPoolExecutor(1) as pool, pytest.raises(ResourceError, match="does not see this output"):
        streamkit.convert(source, tmp_path / "out", format="tfrecord", executor=pool)
