"""Splits that do not leak: groups stay together, identical content is found wherever it lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import both, columns, digests, encoded, index_rows, noise, write_files
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit.cli import main
from streamkit.convert import Report
from streamkit.convert.assign import key_hashes, split_groups
from streamkit.convert.duplicates import equal_rows
from streamkit.errors import SourceError, UsageError

HALVES = {"train": 0.5, "val": 0.5}


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> Report:
    return streamkit.convert(source, out, format=format, **{"workers": 1, **options})


# Groups


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    fractions=st.sampled_from([(0.5, 0.5), (0.9, 0.1), (0.7, 0.2, 0.1)]),
    n_classes=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_groups_stay_whole_and_fractions_hold(
    sizes: list[int], fractions: tuple[float, ...], n_classes: int, seed: int
) -> None:
    """A share is off by about a group at most: what is rounded in one class is made good in the next."""
    rng = np.random.default_rng(seed)
    group_of = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    classes = (rng.integers(0, n_classes, len(sizes))[group_of]).astype(np.int64)
    hashes = key_hashes([f"g{i}" for i in range(len(sizes))], seed)
    split_of = split_groups(group_of, hashes, classes, np.array(fractions))
    for group in range(len(sizes)):
        assert len(set(split_of[group_of == group].tolist())) == 1
    for number, fraction in enumerate(fractions):
        assert abs((split_of == number).sum() - fraction * len(group_of)) <= 2 * max(sizes)


@given(n=st.integers(20, 200), seed=st.integers(0, 5))
def test_one_more_group_moves_few(n: int, seed: int) -> None:
    hashes = key_hashes([f"g{i}" for i in range(n + 1)], seed)
    fractions, classes = np.array([0.8, 0.2]), np.zeros(n + 1, np.int64)
    before = split_groups(np.arange(n), hashes[:n], classes[:n], fractions)
    after = split_groups(np.arange(n + 1), hashes, classes, fractions)
    assert (before != after[:n]).sum() <= 1


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """40 pictures of 2 classes, and who they are of: 10 patients."""
    root = tmp_path_factory.mktemp("patients")
    rows = ["file,patient,age"]
    for i in range(40):
        write_files(root / "src", {f"{'ab'[i % 2]}/{i:02d}.png": encoded(noise(4, 4, seed=i))})
        rows.append(f"{'ab'[i % 2]}/{i:02d}.png,p{i * 7 % 10},{i}")
    (root / "who.csv").write_text("\n".join(rows))
    return root / "src", root / "who.csv"


@both
def test_group_by(patients: tuple[Path, Path], tmp_path: Path, format: str) -> None:
    source, labels = patients
    options: dict[str, Any] = {"labels": labels, "group_by": "patient", "split": {"train": 0.7, "val": 0.3}}
    for i, workers in enumerate((1, 2)):
        convert(source, tmp_path / str(i), format, shard_size="500", workers=workers, **options)
    assert digests(tmp_path / "0") == digests(tmp_path / "1")
    who = [set(columns(tmp_path / "0", "patient", split).values()) for split in ("train", "val")]
    assert not who[0] & who[1] and len(who[0] | who[1]) == 10
    assert len(who[1]) == 3
    assert streamkit.open(tmp_path / "0").class_names == ["a", "b"]  # the table says no label, so the folders do


def test_group_by_a_column_of_boxes(tmp_path: Path) -> None:
    """Where an item has several rows, the group must be one all the same."""
    source = write_files(tmp_path / "src", {f"{i}.png": encoded(noise(4, 4, seed=i)) for i in range(8)})
    rows = [f"{i}.png,s{i // 2},{j}" for i in range(8) for j in range(2)]
    (tmp_path / "x.csv").write_text("\n".join(["file,scene,xmin", *rows]))
    convert(source, tmp_path / "out", labels=tmp_path / "x.csv", group_by="scene", split=HALVES)
    scenes = [set(columns(tmp_path / "out", "scene", split).values()) for split in HALVES]
    assert not scenes[0] & scenes[1]
    (tmp_path / "x.csv").write_text("\n".join(["file,scene,xmin", *rows, "0.png,s9,3"]))
    with pytest.raises(UsageError, match="no column 'scene'"):
        convert(source, tmp_path / "out2", labels=tmp_path / "x.csv", group_by="scene", split=HALVES)


def test_group_by_a_column_of_a_table(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.arange(60.0).reshape(20, 3), subject=np.arange(20) // 4)
    convert(tmp_path / "t.npz", tmp_path / "out", group_by="subject", split={"train": 0.6, "val": 0.4})
    subjects = [set(columns(tmp_path / "out", "subject", split).values()) for split in ("train", "val")]
    assert (len(subjects[0]), len(subjects[1])) == (3, 2) and not subjects[0] & subjects[1]


@pytest.mark.parametrize(("options", "said"), [({"split": HALVES}, "no column 'who'"), ({}, "Pass --split")])
def test_group_by_what_is_not_there(patients: tuple[Path, Path], tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        convert(patients[0], tmp_path / "out", labels=patients[1], group_by="who", **options)


# Identical content


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_equal_rows_are_all_equal_rows(pairs: list[tuple[int, int]]) -> None:
    contents = np.array(pairs, np.uint64).reshape(-1, 2)
    found = {tuple(rows.tolist()) for rows in equal_rows(contents)}
    expected = {tuple(i for i, p in enumerate(pairs) if p == pair) for pair in pairs if pair != (0, 0)}
    assert found == {rows for rows in expected if len(rows) > 1}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Split folders of 4 pictures each; val/a/copy.png is train/b/1.png, train/a/twin.png is train/a/0.png."""
    root = tmp_path_factory.mktemp("copies")
    names = [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in range(2)]
    files = {name: encoded(noise(4, 4, seed=i)) for i, name in enumerate(names)}
    files |= {"val/a/copy.png": files["train/b/1.png"], "train/a/twin.png": files["train/a/0.png"]}
    return write_files(root, files)


@both
@pytest.mark.parametrize("encode", ["keep", "raw"])
def test_a_leak_is_reported_with_both_names(
    copies: Path, tmp_path: Path, format: str, encode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--format", format, "--encode", encode, "--shard-size", "300", "--workers", "1", "--json")
    assert main(["convert", str(copies), str(tmp_path / "out"), *args]) == 0
    said = capsys.readouterr()
    assert "train/b/1.png (train) and val/a/copy.png (val)" in said.err
    assert "twin" not in said.err
    (leak,) = json.loads(said.out)["leaks"]
    assert (leak["key"], leak["first"]) == ("val/a/copy.png", "train/b/1.png")
    assert len(index_rows(tmp_path / "out", "val")) == 5
    assert "content" not in index_rows(tmp_path / "out")[0]


@both
def test_copies_are_dropped(copies: Path, tmp_path: Path, format: str) -> None:
    """The lowest key stays; the same bytes for any number of workers, and after being continued."""
    for i, workers in enumerate((1, 3)):
        out = tmp_path / str(i)
        report = convert(copies, out, format, on_duplicate="drop", workers=workers, shard_size=300)
        assert [b.key for b in report.skipped] == ["train/a/twin.png", "val/a/copy.png"]
        assert "train/b/1.png (train)" in report.skipped[1].reason
        assert not report.leaks
    assert digests(tmp_path / "0") == digests(tmp_path / "1")
    keys = {row["key"] for split in ("train", "val") for row in index_rows(tmp_path / "0", split)}
    assert len(keys) == 8 and not keys & {"train/a/twin.png", "val/a/copy.png"}
    skipped = [json.loads(line) for line in (tmp_path / "0" / "skipped.jsonl").read_text().splitlines()]
    assert [item["key"] for item in skipped] == ["train/a/twin.png", "val/a/copy.png"]


def test_dropping_continues(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after copies were dropped, and the original goes: its copy comes back."""
    source = tmp_path / "src"
    shutil.copytree(copies, source)
    options: dict[str, Any] = {"on_duplicate": "drop", "shard_size": 300}
    with monkeypatch.context() as patch:
        patch.setattr("streamkit.convert.run.publish", _killed)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", **options)
    os.unlink(source / "train/b/1.png")
    convert(source, tmp_path / "out", **options)
    convert(source, tmp_path / "whole", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert "val/a/copy.png" in {row["key"] for row in index_rows(tmp_path / "out", "val")}


def _killed(*args: Any) -> None:
    raise KeyboardInterrupt


def test_copies_can_be_errors(copies: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        convert(copies, tmp_path / "out", on_duplicate="fail")
    assert "--on-duplicate drop" in str(caught.value) and "--on-bad" not in str(caught.value)
    assert dict(caught.value.bad).keys() == {"train/a/twin.png", "val/a/copy.png"}
    assert not (tmp_path / "out" / "manifest.json").exists()


@both
def test_equal_rows_of_tables_are_copies(tmp_path: Path, format: str) -> None:
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    x[7], x[13] = x[3], x[3]
    np.savez(tmp_path / "t.npz", x=x, day=np.arange(20))
    report = convert(tmp_path / "t.npz", tmp_path / "out", format, on_duplicate="drop")
    assert [b.key for b in report.skipped] == ["t.npz#3", "t.npz#7"]  # "t.npz#13" is the lowest key
    assert len(index_rows(tmp_path / "out")) == 18
