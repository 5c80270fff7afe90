"""--append: new items become new shards, and nothing that was there moves, whoever reads it meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from converting import (
    FORMATS,
    ROOT,
    arrays,
    both,
    class_folders,
    columns,
    digests,
    encoded,
    index_rows,
    noise,
    one_quickly,
    payloads,
    picture,
    rotated,
    write_files,
)

import streamkit
from streamkit.cli import main
from streamkit.convert import Report
from streamkit.errors import SourceError, UsageError

SPLIT = {"train": 0.75, "val": 0.25}


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> Report:
    return streamkit.convert(source, out, format=format, **{"workers": 1, **options})


def files(first: int, last: int) -> dict[str, bytes]:
    """Pictures of two classes; their number is in their name."""
    return {f"{'ab'[i % 2]}/{i:02d}.png": encoded(noise(6, 8, seed=i)) for i in range(first, last)}


def check_whole(out: Path, expected: dict[str, bytes]) -> None:
    """Every item is there once, with its bytes and its label, by index, Loader and manifest."""
    manifest = streamkit.open(out)
    found: dict[str, bytes] = {}
    for split in manifest.splits:
        part = payloads(out, split)
        assert len(part) == manifest.splits[split].samples
        assert not set(part) & set(found)
        found |= part
        for row in index_rows(out, split):
            assert manifest.class_names[row["label"]] == row["key"].split("/")[0]
        loader = streamkit.Loader(out, split=split, batch_size=None, fields=("key", "label"))
        assert {key for key, _ in loader} == set(part)
        counts = manifest.statistics["class_counts"][split]
        assert sum(counts.values()) == len(part)
    assert found == expected


@both
def test_new_items_become_new_shards(tmp_path: Path, format: str) -> None:
    source = write_files(tmp_path / "src", files(0, 24))
    out = tmp_path / "out"
    convert(source, out, format, split=SPLIT, shard_size=600)
    before, old = digests(out), streamkit.open(out)
    reader = streamkit.Loader(out, split="train", batch_size=4, fields=("key", "image"))
    batches = [reader.batch(0, i) for i in range(len(reader))]
    write_files(source, files(24, 40))
    report = convert(source, out, format, split=SPLIT, shard_size=600, append=True)
    assert (report.n_items, report.n_added, report.already_done) == (16, 16, False)
    check_whole(out, files(0, 40))
    after, new = digests(out), streamkit.open(out)
    untouched = [name for name in before if name.startswith(("train-", "val-", "index-"))]
    assert untouched and all(after[name] == before[name] for name in untouched)
    assert {split: s.samples for split, s in new.splits.items()} == {"train": 30, "val": 10}
    for name in SPLIT:
        shards = [shard.file for shard in new.splits[name].shards]
        assert shards[: len(old.splits[name].shards)] == [shard.file for shard in old.splits[name].shards]
        assert [int(file.split("-")[1].split(".")[0]) for file in shards] == list(range(len(shards)))
        assert new.splits[name].index == f"index-{name}.2.parquet"
        keys = [row["key"] for row in index_rows(out, name)]
        assert (
            keys[: old.splits[name].samples] == pq.read_table(out / f"index-{name}.parquet").column("key").to_pylist()
        )
    for i, (keys_, images) in enumerate(batches):  # a reader of the old manifest goes on as if nothing had been
        again = reader.batch(0, i)
        assert again[0].tolist() == keys_.tolist() and (again[1] == images).all()
    assert not list(out.glob(".*"))


@one_quickly
def test_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_files(tmp_path / "src", files(0, 12))
    args = ("--format", format, "--shard-size", "600", "--split", "train=0.75,val=0.25")
    convert(source, tmp_path / "0", format, shard_size="600", split="train=0.75,val=0.25")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    write_files(source, files(12, 30))
    for i, workers in enumerate(("1", "3")):
        command = ["convert", str(source), str(tmp_path / str(i)), *args, "--append"]
        assert main([*command, "--workers", workers]) == 0
        assert capsys.readouterr().out.endswith("\n18 of these samples were added\n")
        assert main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["added"] == 0
    assert digests(tmp_path / "0") == digests(tmp_path / "1")


@both
def test_again_and_again(tmp_path: Path, format: str) -> None:
    """From folders that hold the new items only; one at a time they still come near the fractions."""
    convert(write_files(tmp_path / "src", files(0, 8)), tmp_path / "out", format, split=SPLIT)
    for i in range(8, 16):
        new = write_files(tmp_path / f"new{i}", files(i, i + 1))
        convert(new, tmp_path / "out", format, split=SPLIT, append=True)
    manifest = streamkit.open(tmp_path / "out")
    check_whole(tmp_path / "out", files(0, 16))
    assert manifest.splits["val"].samples == 4
    assert manifest.source["items"] == 16
    assert "index-train.9.parquet" in digests(tmp_path / "out")


def test_nothing_new(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", files(0, 8))
    convert(source, tmp_path / "out")
    before = digests(tmp_path / "out")
    assert convert(source, tmp_path / "out", append=True).already_done
    write_files(source, files(8, 10))
    convert(source, tmp_path / "out", append=True)
    assert convert(source, tmp_path / "out").already_done  # the grown source is what the dataset holds
    assert convert(source, tmp_path / "out", append=True).already_done
    assert set(before) < set(digests(tmp_path / "out"))


@both
def test_new_classes_leave_the_old_numbers(tmp_path: Path, format: str) -> None:
    source = write_files(tmp_path / "src", {f"m{name}": data for name, data in files(0, 6).items()})
    convert(source, tmp_path / "out", format)
    old = columns(tmp_path / "out", "label")
    more = {f"{c}/{i}.png": encoded(noise(6, 8, seed=90 + i)) for i, c in enumerate(["a", "z", "mb"])}
    write_files(source, more)
    convert(source, tmp_path / "out", format, append=True)
    manifest = streamkit.open(tmp_path / "out")
    assert manifest.class_names == ["ma", "mb", "a", "z"]
    found = columns(tmp_path / "out", "label")
    assert {key: found[key] for key in old} == old
    assert all(manifest.class_names[label] == key.split("/")[0] for key, label in found.items())
    if format == "tfrecord":
        assert (tmp_path / "out" / "label.labels.txt").read_text().split() == ["ma", "mb", "a", "z"]


@both
def test_boxes_and_their_classes(tmp_path: Path, format: str) -> None:
    source = write_files(tmp_path / "src", {f"{i}.png": encoded(noise(6, 8, seed=i)) for i in range(3)})
    labels = tmp_path / "x.csv"
    rows = ["file,class,xmin", *(f"{i}.png,dog,{j}" for i in range(3) for j in range(2))]
    labels.write_text("\n".join(rows))
    convert(source, tmp_path / "out", format, labels=labels)
    write_files(source, {"3.png": encoded(noise(6, 8, seed=3))})
    labels.write_text("\n".join([*rows, "3.png,cat,7", "3.png,dog,8", "3.png,dog,9"]))
    convert(source, tmp_path / "out", format, labels=labels, append=True)
    assert streamkit.open(tmp_path / "out").schema["objects/class"].class_names == ("dog", "cat")
    loader = streamkit.Loader(tmp_path / "out", batch_size=None, fields=("key", "objects/class", "objects/xmin"))
    found = {key: (numbers.tolist(), xmin.tolist()) for key, numbers, xmin in loader}
    assert found == {f"{i}.png": ([0, 0], [0, 1]) for i in range(3)} | {"3.png": ([1, 0, 0], [7, 8, 9])}


@both
@pytest.mark.parametrize("compression", ["none", "auto", "best"])
@pytest.mark.parametrize("ragged", [False, True])
def test_arrays(tmp_path: Path, format: str, compression: str, ragged: bool) -> None:
    """Chunked, contiguous, flat: new shards are as the old ones, whatever would pay for the new items alone."""
    codec = {"best": {"tfrecord": "zlib:9", "hdf5": "gzip:9"}[format]}.get(compression, compression)
    values = {f"{i}.npy": np.full((5 + i % 3 if ragged else 5, 3), i, np.float32) for i in range(40)}
    values |= {
        f"{i}.npy": np.random.default_rng(i).normal(size=(6 if ragged else 5, 3)).astype("f4") for i in range(30, 40)
    }
    (tmp_path / "src").mkdir()
    for start, stop, append in ((0, 30, False), (30, 40, True)):
        for i in range(start, stop):
            np.save(tmp_path / "src" / f"{i}.npy", values[f"{i}.npy"])
        convert(tmp_path / "src", tmp_path / "out", format, compression=codec, shard_size=700, append=append)
    field = streamkit.open(tmp_path / "out").schema["array"]
    assert field.fixed != ragged
    if format == "hdf5" and not ragged:
        assert (field.chunk_rows is None) == (compression == "none")
    found = dict(streamkit.Loader(tmp_path / "out", batch_size=None, fields=("key", "array")))
    assert set(found) == set(values)
    for key, value in found.items():
        np.testing.assert_array_equal(value, values[key])
    if format == "tfrecord" or field.chunk_rows is not None or ragged:
        assert {k: v.tolist() for k, v in arrays(tmp_path / "out").items()} == {
            k: v.tolist() for k, v in values.items()
        }


@both
def test_what_varies_only_now(tmp_path: Path, format: str) -> None:
    """Sizes, formats and orientations that were all alike before."""
    source = write_files(tmp_path / "src", {f"{i}.jpg": encoded(picture(8, 10, seed=i), "JPEG") for i in range(3)})
    convert(source, tmp_path / "out", format)
    schema = streamkit.open(tmp_path / "out").schema
    assert schema["image"].shape == (8, 10, 3) and schema["image"].encoding == "jpeg"
    new = {"3.jpg": rotated(picture(8, 10, seed=3), 6), "4.png": encoded(noise(5, 5))}
    write_files(source, new)
    convert(source, tmp_path / "out", format, append=True)
    field = streamkit.open(tmp_path / "out").schema["image"]
    assert field.shape == (None, None, 3) and field.encoding == "mixed"
    assert columns(tmp_path / "out", "orientation") == {"0.jpg": 1, "1.jpg": 1, "2.jpg": 1, "3.jpg": 6, "4.png": 1}
    found = dict(streamkit.Loader(tmp_path / "out", batch_size=None, fields=("key", "image"), dtype="uint8"))
    assert (
        found["3.jpg"].shape == (10, 8, 3) and found["4.png"].shape == (5, 5, 3) and found["0.jpg"].shape == (8, 10, 3)
    )
    assert streamkit.open(tmp_path / "out").statistics["image"]["width"] == [5, 10]


def test_groups_stay_where_they_are(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", files(0, 12))
    labels = tmp_path / "x.csv"

    def write(n: int) -> None:
        labels.write_text("\n".join(["file,who", *(f"{name},p{i % 4}" for i, name in enumerate(files(0, n)))]))

    options: dict[str, Any] = {"labels": labels, "group_by": "who", "split": {"train": 0.5, "val": 0.5}}
    write(12)
    convert(source, tmp_path / "out", **options)
    write_files(source, files(12, 24))
    write(24)
    convert(source, tmp_path / "out", **options, append=True)
    who = [set(columns(tmp_path / "out", "who", split).values()) for split in ("train", "val")]
    assert len(who[0]) == len(who[1]) == 2 and not who[0] & who[1]


def test_stock_readers_see_all(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    for format in FORMATS:
        source = write_files(tmp_path / f"src-{format}", files(0, 6))
        convert(source, tmp_path / format, format)
        write_files(source, files(6, 10))
        convert(source, tmp_path / format, format, append=True)
    keys = [row["key"] for row in index_rows(tmp_path / "hdf5")]
    with h5py.File(tmp_path / "hdf5" / "train.h5") as file:
        offsets = file["image_offsets"][:]
        stored = [file["image"][a:b].tobytes() for a, b in itertools.pairwise(offsets)]
    assert stored == [files(0, 10)[key] for key in keys]
    dataset = tfds.builder_from_directory(str(tmp_path / "tfrecord")).as_dataset(split="train")
    assert len(list(dataset)) == 10


def test_bad_items(tmp_path: Path) -> None:
    """What was skipped is tried again; what is mended leaves the list."""
    source = write_files(tmp_path / "src", files(0, 6) | {"a/bad.png": b"x", "a/worse.png": b"y"})
    convert(source, tmp_path / "out", on_bad="skip")
    write_files(source, files(6, 8) | {"a/bad.png": encoded(noise(6, 8, seed=99))})
    with pytest.raises(SourceError, match=r"worse\.png"):
        convert(source, tmp_path / "out", append=True)
    check_whole(tmp_path / "out", files(0, 6))
    convert(source, tmp_path / "out", append=True, on_bad="skip")
    check_whole(tmp_path / "out", files(0, 8) | {"a/bad.png": encoded(noise(6, 8, seed=99))})
    assert streamkit.open(tmp_path / "out").skipped == 1
    assert "worse" in (tmp_path / "out" / "skipped.jsonl").read_text()


@both
def test_killed_before_it_is_published(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each file that is put in place: the old dataset is whole until the new manifest is there; again, it is finished."""
    source = write_files(tmp_path / "src", files(0, 8))
    convert(source, tmp_path / "out", format, shard_size=600)
    write_files(source, files(8, 14))
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    convert(source, tmp_path / "whole", format, shard_size=600, append=True)
    whole = digests(tmp_path / "whole")
    replace = os.replace
    for last in range(1, 100):
        work = tmp_path / str(last)
        shutil.copytree(tmp_path / "out", work)
        calls: list[int] = []

        def counted(*args: Any, calls: list[int] = calls, last: int = last, **options: Any) -> None:
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            replace(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted)
            try:
                convert(source, work, format, shard_size=600, append=True)
                killed = False
            except KeyboardInterrupt:
                killed = True
        check_whole(work, files(0, 8 if killed else 14))
        convert(source, work, format, shard_size=600, append=True)
        assert digests(work) == whole
        if not killed:
            break
    assert last > 8


KILLED = """
import os, signal, sys
import streamkit
replace = os.replace
def deadly(old, new, **options):
    if str(new).endswith("manifest.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(old, new, **options)
os.replace = deadly
streamkit.convert(sys.argv[1], sys.argv[2], format=sys.argv[3], shard_size=600, workers=1, append=True)
"""


@pytest.mark.fault(2)
@both
def test_killed_just_before_the_manifest(tmp_path: Path, format: str) -> None:
    """Files beside the shards are the new ones then. verify says to append again; repair gives it up."""
    source, out = write_files(tmp_path / "src", files(0, 8)), tmp_path / "out"
    convert(source, out, format, shard_size=600)
    write_files(source, files(8, 14))
    convert(source, shutil.copytree(out, tmp_path / "whole"), format, shard_size=600, append=True)
    run = subprocess.run([sys.executable, "-c", KILLED, source, out, format], cwd=ROOT, timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL
    check_whole(out, files(0, 8))
    report = streamkit.verify(out)
    assert {problem.file for problem in report.problems} == {"hdf5": {"train.h5"}, "tfrecord": {"dataset_info.json"}}[
        format
    ]
    assert report.hint == (
        "Run the same `streamkit convert` with --append again: it was interrupted, and makes these files anew."
    )
    given_up = shutil.copytree(out, tmp_path / "given up")
    os.truncate(given_up / "index-train.parquet", 0)
    hint = streamkit.verify(given_up).hint
    assert "repair would give up what it wrote. Then run `streamkit repair" in hint and "--drop needs the index" in hint
    streamkit.repair(given_up, source=write_files(tmp_path / "old", files(0, 8)), workers=1)
    assert streamkit.verify(given_up).ok
    check_whole(given_up, files(0, 8))
    convert(source, out, format, shard_size=600, append=True)
    assert digests(out) == digests(tmp_path / "whole") and streamkit.verify(out).ok


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 3}, "seed is 0 there, 3 asked"),
        ({"overwrite": True}, "Choose one"),
        ({"on_duplicate": "drop"}, "on_duplicate is 'keep' there"),
        ({"encode": "png"}, "encode is 'keep' there"),
    ],
    ids=str,
)
def test_what_cannot_be_appended(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    source = write_files(tmp_path / "src", files(0, 4))
    convert(source, tmp_path / "out")
    write_files(source, files(4, 6))
    before = digests(tmp_path / "out")
    with pytest.raises(UsageError, match=said):
        convert(source, tmp_path / "out", append=True, **options)
    assert digests(tmp_path / "out") == before


def test_other_fields_and_no_dataset(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", files(0, 4))
    with pytest.raises(UsageError, match="does not exist"):
        convert(source, tmp_path / "out", append=True)
    convert(source, tmp_path / "out")
    flat = write_files(tmp_path / "flat", {"x.png": encoded(noise(6, 8))})
    with pytest.raises(SourceError, match="label"):
        convert(flat, tmp_path / "out", append=True)


# Copies of what is there


@pytest.mark.parametrize("options", [{}, {"encode": "webp"}, {"format": "hdf5"}], ids=str)
def test_new_items_are_compared_with_those_that_are_there(tmp_path: Path, options: dict[str, Any]) -> None:
    source = class_folders(tmp_path / "src", {"a": 8, "b": 8})
    whole = {"format": "tfrecord", "split": "train=0.5,val=0.5", "workers": 1} | options
    for policy in ("keep", "drop", "fail"):
        streamkit.convert(source, tmp_path / policy, on_duplicate=policy, **whole)
    for i in range(6):
        shutil.copy(source / "a" / f"{i:04d}.jpg", source / "b" / f"copy{i}.jpg")
    write_files(source, {"a/new.jpg": encoded(picture(12, 16, seed=999), "JPEG")})
    report = streamkit.convert(source, tmp_path / "keep", append=True, **whole)
    assert report.leaks and all(leak.key.startswith("b/copy") and leak.first[:2] == "a/" for leak in report.leaks)
    assert sum(s.samples for s in streamkit.open(tmp_path / "keep").splits.values()) == 23
    report = streamkit.convert(source, tmp_path / "drop", append=True, on_duplicate="drop", **whole)
    assert [bad.key for bad in report.skipped] == [f"b/copy{i}.jpg" for i in range(6)]
    assert sum(s.samples for s in streamkit.open(tmp_path / "drop").splits.values()) == 17
    before = digests(tmp_path / "fail")
    with pytest.raises(SourceError) as caught:
        streamkit.convert(source, tmp_path / "fail", append=True, on_duplicate="fail", **whole)
    assert len(caught.value.bad) == 6
    assert before.items() <= digests(tmp_path / "fail").items()


def test_payloads_in_chunks_are_not_compared(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((50, 400)))
    options = {"format": "hdf5", "compression": "gzip", "on_duplicate": "drop", "workers": 1}
    streamkit.convert(tmp_path / "x.npy", tmp_path / "out", **options)
    with pytest.raises(UsageError, match="lies in chunks"):
        streamkit.convert(tmp_path / "x.npy", tmp_path / "out", append=True, **options)
