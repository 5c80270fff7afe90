"""Datasets on servers: the same batches as from disk, whatever the server does in between, and never a wrong byte."""

from __future__ import annotations

import json
import logging
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.compute as pc
import pytest
from converting import class_folders, python
from serving import Served, served

import streamkit
from streamkit.blocks import wait_until
from streamkit.errors import DamagedError, RefusedError, RemoteError, UsageError
from streamkit.remote import patience
from streamkit.remote.address import Address, place
from streamkit.remote.connection import Connection
from streamkit.remote.ranges import Wanted, read_ranges
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
@pytest.mark.fault(53, 54, 55, 56, 57, 58, 59, 60)
def test_passing_faults_are_not_noticed(server: Served, photo_set: Path, fault: str) -> None:
    for path in photo_set.iterdir():
        if path.suffix == ".tfrecord" or fault not in (
            "flip",
            "flips",
        ):  # nothing but sums tells a flip, and a manifest's
            server.faults[path.name] = [fault, fault]
    assert same(batches(photo_set, image_size=(8, 8)), batches(server.url, image_size=(8, 8)))


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "short", "flips", "html", "hang", "slow", "ignore"])
@pytest.mark.fault(53, 60)
def test_a_server_that_never_answers_right_ends_in_a_remote_error(server: Served, fault: str) -> None:
    loader = streamkit.Loader(server.url, image_size=(8, 8), num_workers=2, shuffle=False)
    server.always["train-00000.tfrecord"] = fault
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"train-00000\.tfrecord: .*tried 5 times") as caught:
        list(loader)
    assert time.monotonic() - started < 8
    assert caught.value.exit_code == 6
    assert ("byte ranges" in caught.value.hint) == (fault in ("html", "ignore"))


@pytest.mark.parametrize("status", ["401", "403"])
@pytest.mark.fault(61)
def test_a_refusal_is_not_tried_again_and_holds_no_secret(server: Served, status: str) -> None:
    url = server.url.replace("//", "//ann:s3cret@") + "?X-Amz-Signature=1f2e3d&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE"
    server.always["manifest.json"] = status
    with pytest.raises(RemoteError, match=r"\*\*\*@127\.0\.0\.1.*/manifest\.json\?\*\*\*: access was denied") as caught:
        streamkit.open(url)
    assert len(server.asked) == 1
    for secret in ("s3cret", "1f2e3d", "AKIAIOSF", "ann"):
        assert secret not in str(caught.value) + repr(caught.value) + str(caught.value.path)


def test_a_scheme_may_be_in_capitals(server: Served) -> None:
    assert str(place("S3://Bucket/Out")) == "s3://Bucket/Out"
    assert streamkit.open(server.url.replace("http://", "HTTP://")) == streamkit.open(server.url)


def test_no_secret_shows_when_reading_works(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    from streamkit.cli import main

    url = server.url + "?sig=1f2e3d"
    loader = streamkit.Loader(url, image_size=(8, 8))
    assert "1f2e3d" not in json.dumps(loader.cursor_at(1)) + repr(loader.manifest)
    assert main(["info", url, "--json"]) == main(["verify", url, "--quick"]) == main(["verify", url, "--full"]) == 0
    server.always["train-00000.tfrecord"] = "403"
    assert main(["verify", url]) == 6
    server.always["train-00000.tfrecord"] = "404"
    assert main(["verify", url]) == 4
    shown = "".join(capsys.readouterr())
    assert "?***" in shown
    assert "1f2e3d" not in shown


def test_bytes_that_are_wrong_at_rest_name_their_record(tmp_path: Path, photo_set: Path) -> None:
    shutil.copytree(photo_set, tmp_path / "ds")
    places = streamkit.open(tmp_path / "ds").index().slice(3, 1).to_pylist()[0]
    with open(tmp_path / "ds" / places["shard"], "r+b") as file:
        file.seek(places["image.offset"] + 9)
        file.write(b"?")
    with served(tmp_path / "ds") as server:
        with pytest.raises(DamagedError, match="record 3") as caught:
            batches(server.url, image_size=(8, 8))
        assert caught.value.key == places["key"]
        loader = streamkit.Loader(server.url, image_size=(8, 8), on_corrupt="skip", max_bad=0.1)
        assert sum(len(labels) for _, labels in loader) == 59
        report = streamkit.verify(server.url)
        assert [(p.file, p.record) for p in report.problems] == [(places["shard"], 3)]


@pytest.mark.fault(62)
def test_a_missing_shard_is_damage(server: Served) -> None:
    loader = streamkit.Loader(server.url, image_size=(8, 8))
    server.always["train-00001.tfrecord"] = "404"
    with pytest.raises(DamagedError, match=r"train-00001\.tfrecord record .*this shard is missing"):
        list(loader)


@pytest.mark.parametrize("how", ["rewritten", "removed"])
@pytest.mark.fault(64)
def test_a_dataset_replaced_in_between_is_not_mixed(tmp_path: Path, photo_set: Path, how: str) -> None:
    folder = Path(shutil.copytree(photo_set, tmp_path / "ds"))
    with served(folder) as server:
        loader = streamkit.Loader(server.url, image_size=(8, 8), shuffle=False)
        shutil.rmtree(folder)
        if how == "rewritten":
            streamkit.convert(class_folders(tmp_path / "new", {"a": 40}), folder, format="tfrecord", workers=1)
        with pytest.raises(RemoteError, match="the dataset has changed since it was opened"):
            list(loader)


def test_what_is_no_dataset_is_said_without_waiting(server: Served, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/no/such: this folder is no dataset"):
        streamkit.open(server.url + "/no/such")
    with pytest.raises(RefusedError, match="chained"):
        streamkit.open("simplecache::" + server.url)
    with pytest.raises(UsageError, match="no address that fsspec knows"):
        streamkit.open("nosuch://somewhere/x")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:1/x/manifest\.json"):
        streamkit.open("http://127.0.0.1:1/x")


@pytest.mark.parametrize(
    ("name", "said"),
    [("AuthenticationException", "access was denied. Check the credentials"), ("SSHException", "SSHException: no")],
)
def test_a_client_that_cannot_connect_is_a_remote_error(name: str, said: str) -> None:
    """sftp connects when its file system is made."""
    failure = type(name, (Exception,), {"__module__": "paramiko.ssh_exception"})

    class Connecting(fsspec.AbstractFileSystem):
        def __init__(self, **_: Any) -> None:
            raise failure("no")

    fsspec.register_implementation("connecting", Connecting, clobber=True)
    with pytest.raises(RemoteError, match=rf"connecting://\*\*\*@host/x/manifest\.json: {said}") as caught:
        streamkit.open("connecting://me:secret@host/x")
    assert "secret" not in str(caught.value)


def test_what_needs_a_folder_here_says_so(server: Served) -> None:
    from streamkit.cli import main

    with pytest.raises(UsageError, match='engine="graph" needs a folder on this machine'):
        _ = streamkit.Loader(server.url, image_size=(8, 8)).whole_shards()
    for words in (["repair", "--drop"], ["bench"], ["preview", "--html", "x.html"], ["info", "--croissant"]):
        assert main([words[0], server.url, *words[1:], "--quiet"]) == 2


FORKING = """
import os, sys, streamkit
loader = streamkit.Loader(sys.argv[1], image_size=(8, 8))
def total(): return sum(int(images.sum()) for images, _ in loader)
loader.epoch = 0
here = total()
child = os.fork()
if child == 0:
    loader.epoch = 0
    os._exit(0 if total() == here else 1)
assert os.waitpid(child, 0)[1] == 0
loader.epoch = 0
assert total() == here
"""


def test_a_forked_child_reads_and_so_does_its_parent(server: Served) -> None:
    run = python(FORKING, server.url)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1000, reason="few descriptors are allowed here")
def test_requests_do_not_wait_for_each_other_s_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp keeps 100 connections unless it is told."""
    monkeypatch.setattr(patience, "PATIENCE", patience.Patience())
    n, zero, ten = 120, np.zeros(1, np.int64), np.full(1, 10)
    for i in range(n):
        (tmp_path / f"{i}").write_bytes(b"%10d" % i)
    memory = np.zeros(10 * n, np.uint8)
    with served(tmp_path) as there:
        there.together = threading.Barrier(n)
        read_ranges([Wanted(Address(f"{there.url}/{i}"), zero, ten, 10 * i + zero, memory) for i in range(n)])
    assert bytes(memory) == b"".join(b"%10d" % i for i in range(n))


def test_s3_has_a_connection_for_every_request() -> None:
    """botocore keeps 10 unless it is told."""
    pytest.importorskip("s3fs")
    there = Connection.of(Address("s3://bucket/x"))
    assert there.fs.config_kwargs["max_pool_connections"] == there.width >= 8
    assert Connection.of(Address("s3://other/x")).gate is there.gate, "they share the connections"


def test_what_the_user_configured_and_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    from fsspec.config import conf

    style = {"s3": {"addressing_style": "path"}}
    monkeypatch.setitem(conf, "s3", {"config_kwargs": style})
    monkeypatch.setenv("STREAMKIT_MAX_REQUESTS", "20")
    for scheme in ("s3", "s3a"):
        there = Connection(Address(f"{scheme}://mine/x"))
        assert there.fs.config_kwargs == {"max_pool_connections": 20} | style and there.width == 20
    monkeypatch.setenv("STREAMKIT_MAX_REQUESTS", "many")
    with pytest.raises(UsageError, match="STREAMKIT_MAX_REQUESTS is 'many', expected a whole number"):
        Connection(Address("s3://mine/x"))


WITHOUT = """
import sys, streamkit
sys.modules[sys.argv[1]] = None
try:
    streamkit.open(sys.argv[2])
except streamkit.UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "package, address, install",
    [
        ("fsspec", "http://h/x", "'streamkit[remote]'"),
        ("s3fs", "s3://b/x", "'streamkit[s3]'"),
        ("gcsfs", "gs://b/x", "gcsfs"),
    ],
)
def test_a_package_that_is_missing_is_named(package: str, address: str, install: str) -> None:
    run = python(WITHOUT, package, address)
    assert run.stdout.endswith(f"needs a package that is not installed. Run `pip install {install}`.\n"), run.stderr


# The cache


@pytest.mark.fault(65)
def test_the_cache_serves_the_next_run_without_the_server(server: Served, photo_set: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": (8, 8), "cache_dir": tmp_path / "cache"}
    expected = batches(photo_set, image_size=(8, 8))
    assert same(batches(server.url, **options), expected)
    shards = {s.file for s in streamkit.open(photo_set).split().shards}
    n_asked = [name for name, _ in server.asked if name in shards]
    assert len(n_asked) == len(set(n_asked)) == len(shards)  # each once: a block holds them whole
    server.asked.clear()
    assert same(batches(server.url, **options), expected)
    assert not shards & {name for name, _ in server.asked}


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
@pytest.mark.fault(66)
def test_a_poisoned_block_is_brought_again(server: Served, photo_set: Path, tmp_path: Path, harm: str) -> None:
    options: dict[str, Any] = {"image_size": (8, 8), "cache_dir": tmp_path / "cache"}
    expected = batches(server.url, **options)
    for block in (p for p in tmp_path.rglob("*") if p.is_file()):
        data = bytearray(block.read_bytes())
        data[len(data) // 2] ^= 1
        block.write_bytes({"flip": data, "cut": data[:100], "empty": b""}[harm])
    assert same(batches(server.url, **options), expected)


def test_the_cache_keeps_its_limit(server: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    n_shards = len(streamkit.open(server.url).split().shards)
    assert n_shards >= 3
    expected = batches(server.url, image_size=(8, 8))
    options = {"image_size": (8, 8), "cache_dir": cache, "cache_limit": 50_000}
    assert same(batches(server.url, shuffle=False, **options), batches(server.url, image_size=(8, 8), shuffle=False))
    sizes = [p.stat().st_size for p in cache.rglob("*") if p.is_file()]
    assert 0 < sum(sizes) <= 50_000
    assert not list(cache.rglob("*.part"))
    with caplog.at_level(logging.WARNING, "streamkit"):
        assert same(
            batches(server.url, **options), expected
        )  # in random order each block would go before it is wanted again
    assert "cache_limit is less than what an epoch brings" in caplog.text


@pytest.mark.fault(70)
def test_no_room_for_a_cache_is_one_warning(
    server: Served, photo_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert same(
        batches(server.url, image_size=(8, 8), cache_dir=tmp_path / "file"), batches(photo_set, image_size=(8, 8))
    )
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == ["nothing is cached there: not a directory"]


FULL = """
import logging, subprocess, sys, numpy as np, streamkit
logging.basicConfig(format="%(message)s", stream=sys.stdout)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", sys.argv[3]], check=True)
here, there = (
    [images for images, _ in streamkit.Loader(path, image_size=(8, 8), **options)]
    for path, options in ((sys.argv[1], {}), (sys.argv[2], {"cache_dir": sys.argv[3], "num_workers": 8}))
)
print(all(np.array_equal(a, b) for a, b in zip(here, there, strict=True)))
"""


def alone(kind: str, script: str, *args: Any) -> str:
    """What a script prints in a namespace of its own: "m" for mounts, "n" for the network."""
    if subprocess.run(["unshare", f"-r{kind}", "true"], capture_output=True).returncode:
        pytest.skip("namespaces need a kernel that lets this user make them")
    run = subprocess.run(
        ["unshare", f"-r{kind}", sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.fault(69)
def test_a_full_disk_under_the_cache_is_one_warning(server: Served, photo_set: Path, tmp_path: Path) -> None:
    """24 KB hold a part of the shards; eight threads find out about the others."""
    said = alone("m", FULL, photo_set, server.url, tmp_path).splitlines()
    assert said == [f"{tmp_path}: nothing is cached there: no space left on device", "True"]


LOST = """
import json, sys, time, streamkit
from streamkit.remote import patience
patience.PATIENCE = patience.Patience(n_tries=4, total_s=6.0, answer_s=2.0, first_wait_s=0.01, longest_wait_s=0.05)
for address in sys.argv[1:]:
    started = time.monotonic()
    try:
        streamkit.open(address)
    except streamkit.StreamkitError as error:
        print(json.dumps([error.exit_code, str(error), time.monotonic() - started]))
"""


@pytest.mark.fault(63)
def test_without_a_network_the_address_and_the_tries_are_said() -> None:
    """No name server answers, and no host does."""
    addresses = ["http://streamkit.invalid/set", "http://192.0.2.1/set"]
    found = [json.loads(line) for line in alone("n", LOST, *addresses).splitlines()]
    assert [code for code, _, _ in found] == [6, 6]
    for address, (_, said, seconds) in zip(addresses, found, strict=True):
        assert said.startswith(f"{address}/manifest.json: ") and "tried 4 times" in said and seconds < 15


FILLING = """
import os, sys
import aiohttp, cv2, fsspec.implementations.http, simplejpeg, streamkit, streamkit.cached, streamkit.loader  # once for all

def fill(seed):
    loader = streamkit.Loader(sys.argv[1], image_size=(8, 8), batch_size=8, seed=seed, cache_dir=sys.argv[2])
    os.write(1, b"%d\\n" % sum(int(images.sum()) for images, _ in loader))  # as one, where print may write in two parts

def fill_in_a_child(seed):
    try:
        fill(seed)
        os._exit(0)
    finally:
        os._exit(1)

n = int(sys.argv[3])
if n == 1:
    fill(0)
else:
    for seed in range(n):
        os.fork() or fill_in_a_child(seed)
    sys.exit(any([os.wait()[1] for _ in range(n)]))
"""


@pytest.mark.fault(67, 68)
def test_processes_share_one_cache_and_survive_each_other(server: Served, tmp_path: Path) -> None:
    """Eight at once, after one that was killed while it held a block: the same pictures, each shard asked for once."""
    victim = subprocess.Popen([sys.executable, "-c", FILLING, server.url, tmp_path, "1"])
    shards = {s.file for s in streamkit.open(server.url).split().shards}
    server.always |= dict.fromkeys(shards, "hang")
    assert wait_until(lambda: bool(list(tmp_path.rglob("*.part"))), 20)
    victim.kill()
    victim.wait()
    server.always.clear()
    server.asked.clear()
    run = subprocess.run(
        [sys.executable, "-c", FILLING, server.url, tmp_path, "8"], stdout=subprocess.PIPE, timeout=120
    )
    assert run.returncode == 0
    sums = run.stdout.split()
    assert len(sums) == 8 and len(set(sums)) == 1
    asked = Counter(name for name, _ in server.asked if name in shards)
    assert set(asked) == shards and max(asked.values()) == 1
    assert not list(tmp_path.rglob("*.part"))
