"""Conversions from servers and to them: a real S3 by HTTP (moto's), and fsspec's file system in memory."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from converting import class_folders, python
from serving import AWS

import streamkit
from streamkit.errors import RemoteError, SourceError, StreamkitError, UsageError
from streamkit.remote.address import Address
from streamkit.remote.sending import upload
from streamkit.remote.transfer import listing, read


@pytest.fixture(autouse=True)
def _staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return tmp_path / "cache-home"


def put(folder: Path, address: str) -> str:
    """Copy a folder to a server."""
    for path in folder.rglob("*"):
        if path.is_file():
            upload(path, Address(f"{address}/{path.relative_to(folder).as_posix()}"))
    return address


def files_at(address: str) -> dict[str, bytes]:
    return {name: read(Address(address) / name, 1 << 30) for name in listing(Address(address))}


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def left(staging: Path) -> list[str]:
    """What conversions left behind, locks aside."""
    return [p.name for p in staging.rglob("*") if p.is_file() and p.name != "lock"]


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_from_s3_to_s3_gives_the_bytes_of_a_conversion_here(
    s3: str, tmp_path: Path, _staging: Path, format: str
) -> None:
    options: dict[str, Any] = {"format": format, "workers": 1, "shard_size": "4KB", "split": "train=0.75,val=0.25"}
    raw = class_folders(tmp_path / "raw", {"a": 8, "b/c d": 8})
    streamkit.convert(raw, tmp_path / "out", **options)
    source, out = put(raw, f"s3://data/raw-{format}"), f"s3://data/out-{format}"
    report = streamkit.convert(source, out, **options)
    assert (report.out, report.n_items, report.already_done) == (out, 16, False)
    assert files_at(out) == files_in(tmp_path / "out")
    assert streamkit.convert(source, out, **options).already_done
    assert left(_staging) == []
    here, there = (
        list(streamkit.Loader(p, split="train", image_size=(8, 8), seed=1, cache_dir=tmp_path / "cache"))
        for p in (tmp_path / "out", out)
    )
    assert all(np.array_equal(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True))
    assert streamkit.verify(out, full=True).ok
    with pytest.raises(UsageError, match="holds another dataset"):
        streamkit.convert(source, out, **options | {"seed": 9})


CONVERTING = """
import os, pathlib, signal, sys
import streamkit
from streamkit.convert import distant
send, left = distant.upload, int(sys.argv[3])
def upload(path, address, **options):
    global left
    left -= 1
    if left == 0 and path.name != "manifest.json":  # half of this file is there when the process dies
        half = pathlib.Path(sys.argv[4])
        half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        path = half
    done = send(path, address, **options)
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
distant.upload = upload
streamkit.convert(sys.argv[1], sys.argv[2], format="tfrecord", workers=1, shard_size="4KB")
"""


@pytest.mark.parametrize("n_sent", [1, 4, -1])
def test_killed_while_sending_and_run_again(s3: str, tmp_path: Path, _staging: Path, n_sent: int) -> None:
    """kill -9 in the first upload, a later one, and right behind the manifest: nobody sees a dataset before it is whole,
    and the next run ends with the bytes of an undisturbed one, whatever half a file lies there."""
    raw = class_folders(tmp_path / "raw", {"a": 16})
    streamkit.convert(raw, tmp_path / "whole", format="tfrecord", workers=1, shard_size="4KB")
    whole = files_in(tmp_path / "whole")
    out, n = f"s3://data/killed-{n_sent}", n_sent if n_sent > 0 else len(whole)
    run = python(CONVERTING, raw, out, n, tmp_path / "half")
    assert run.returncode == -signal.SIGKILL, run.stderr
    there = listing(Address(out))
    assert ("manifest.json" in there) == (n_sent < 0)
    streamkit.convert(raw, out, format="tfrecord", workers=1, shard_size="4KB")
    assert files_at(out) == whole
    assert not left(_staging)


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_append_and_overwrite_there(s3: str, tmp_path: Path, _staging: Path, format: str) -> None:
    first = class_folders(tmp_path / "first", {"a": 6, "b": 4})
    both = Path(shutil.copytree(first, tmp_path / "both"))
    class_folders(tmp_path / "both", {"c": 5})
    out, here = f"s3://data/grown-{format}", tmp_path / "here"
    for target in (here, out):
        streamkit.convert(first, target, format=format, workers=1)
        report = streamkit.convert(both, target, format=format, workers=1, append=True)
        assert report.manifest is not None and report.manifest.splits["train"].samples == 15
    assert files_at(out) == files_in(here)
    assert streamkit.convert(both, out, format=format, workers=1, append=True).already_done
    streamkit.convert(first, out, format=format, workers=1, overwrite=True)
    shutil.rmtree(here)
    streamkit.convert(first, here, format=format, workers=1)
    assert files_at(out) == files_in(here)  # nothing of the old one is left
    assert left(_staging) == []


@pytest.mark.fault(71)
def test_an_upload_that_was_stopped_is_continued(
    tmp_path: Path, many_photos: Path, _staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamkit.convert import distant

    options: dict[str, Any] = {"format": "tfrecord", "workers": 1, "shard_size": "20KB"}
    out, sent = "memory://stopped/out", []

    def failing(path: Path, address: Address, **rest: Any) -> bool:
        if len(sent) == 2:
            raise RemoteError("it went away", path=address)
        sent.append(path.name)
        return upload(path, address, **rest)

    monkeypatch.setattr(distant, "upload", failing)
    monkeypatch.setattr(distant, "_AT_ONCE", 1)
    with pytest.raises(RemoteError):
        streamkit.convert(many_photos, out, **options)
    assert "manifest.json" not in listing(Address(out))
    with pytest.raises(UsageError, match="no dataset"):
        streamkit.open(out)
    before, counting = list(sent), []
    monkeypatch.setattr(distant, "upload", lambda path, *a, **k: (counting.append(path.name), upload(path, *a, **k))[1])
    assert not streamkit.convert(many_photos, out, **options).already_done
    assert not set(before) & set(counting)
    assert counting[-1] == "manifest.json"
    streamkit.convert(many_photos, tmp_path / "out", **options)
    assert files_at(out) == files_in(tmp_path / "out")
    assert left(_staging) == []


def test_tables_labels_and_bad_items_at_a_distance(tmp_path: Path, _staging: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["x"], file["y"] = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    upload(tmp_path / "t.h5", Address("memory://tables/t.h5"))
    streamkit.convert("memory://tables/t.h5", tmp_path / "rows", format="tfrecord", workers=1)
    assert streamkit.open(tmp_path / "rows").index().column("key")[3].as_py().startswith("t.h5#")
    raw = class_folders(tmp_path / "raw", {"p": 4})
    (raw / "p" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    put(raw, "memory://raw/set")
    (tmp_path / "labels.csv").write_text("file,weight\n" + "".join(f"{k},1\n" for k in files_in(raw)))
    upload(tmp_path / "labels.csv", Address("memory://raw/labels.csv"))
    options: dict[str, Any] = {"format": "tfrecord", "workers": 1, "labels": "memory://raw/labels.csv"}
    with pytest.raises(SourceError) as caught:
        streamkit.convert("memory://raw/set", "memory://raw-out/a", **options)
    assert [key for key, _ in caught.value.bad] == ["p/broken.jpg"]
    report = streamkit.convert("memory://raw/set", "memory://raw-out/a", **options, on_bad="skip")
    assert len(report.skipped) == 1
    assert "skipped.jsonl" in listing(Address("memory://raw-out/a"))
    assert streamkit.open("memory://raw-out/a").schema["weight"].kind == "number"


def test_what_is_wrong_is_said_with_the_address(tmp_path: Path, many_photos: Path) -> None:
    wrong: list[tuple[type[StreamkitError], str, dict[str, Any]]] = [
        (UsageError, "memory://none/at/all: this source does not exist", {"source": "memory://none/at/all"}),
        (UsageError, "lie inside one another", {"source": "memory://w/a", "out": "memory://w/a/b"}),
        (UsageError, "http servers take no files", {"out": "http://127.0.0.1:1/x"}),
        (UsageError, "there is no dataset to append to", {"append": True}),
        (UsageError, "quarantine needs an output on this machine", {"on_bad": "quarantine"}),
    ]
    for kind, said, options in wrong:
        given = {"source": many_photos, "out": "memory://w/out", "format": "tfrecord", "workers": 1} | options
        with pytest.raises(kind, match=said):
            streamkit.convert(**given)
    put(many_photos / "bird", "memory://w/full")
    with pytest.raises(UsageError, match="memory://w/full: the output is not empty"):
        streamkit.convert(many_photos, "memory://w/full", format="tfrecord", workers=1)


@pytest.mark.fault(61)
def test_wrong_credentials_are_said_at_once_and_not_shown(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"s3://data/nothing: this folder is no dataset"):
        streamkit.open("s3://data/nothing")
    with pytest.raises(StreamkitError) as caught:
        streamkit.convert("sample_data/images", "s3://no-such-bucket-here/out", format="tfrecord", workers=1)
    assert not any(secret in str(caught.value) for secret in AWS.values())
