"""--on-bad quarantine: bad files are copied aside, whole and under their own names; nothing else is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import FORMATS, cli, digests, encoded, noise, write_files

import streamkit
from streamkit.convert import Report
from streamkit.errors import SourceError, UsageError
from streamkit.reports.conversion import as_text

GOOD = {f"{c}/{i}.png": encoded(noise(4, 4, seed=i)) for i, c in enumerate("abab")}


def convert(source: Path, out: Path, **options: Any) -> Report:
    return streamkit.convert(source, out, **{"format": "tfrecord", "workers": 1, "on_bad": "quarantine", **options})


@pytest.mark.parametrize("format", FORMATS)
def test_bad_files_are_copied_aside(tmp_path: Path, format: str) -> None:
    bad = {"a/cut.png": GOOD["a/0.png"][:40], "b/x\n.jpg": b"hello", "b/\u00e9.jpg": b"<html>"}
    source = write_files(tmp_path / "src", GOOD | bad)
    before = digests(source)
    links = {"gone.jpg": "nothing", "away.jpg": "/etc/passwd"}
    for name, target in links.items():
        (source / "a" / name).symlink_to(target)
    run = cli("convert", source, tmp_path / "out", "--format", format, "--on-bad", "quarantine", "--workers", "2")
    assert run.returncode == 0, run.stderr
    assert f"3 bad files were copied to {tmp_path}/out-quarantine" in run.stderr
    assert "2 bad items have no file that can be copied" in run.stderr
    found = {
        p.relative_to(tmp_path / "out-quarantine").as_posix(): p for p in (tmp_path / "out-quarantine").rglob("*.*")
    }
    assert {name: path.read_bytes() for name, path in found.items()} == bad
    for name in links:
        (source / "a" / name).unlink()
    assert digests(source) == before
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == {*bad, "a/gone.jpg", "a/away.jpg"}
    assert streamkit.open(tmp_path / "out").skipped == 5


def test_the_policy_is_no_part_of_the_dataset(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", GOOD | {"a/bad.png": b"x"})
    convert(source, tmp_path / "one")
    convert(source, tmp_path / "two", on_bad="skip")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not (tmp_path / "two-quarantine").exists()


def test_what_was_skipped_is_judged_again_where_the_dataset_is_there(tmp_path: Path) -> None:
    """`skip`, then the others: "fail" lists it, "quarantine" copies it, and none forgets it or touches the dataset."""
    source = write_files(tmp_path / "src", GOOD | {"a/bad.png": b"x"})
    begun = convert(source, tmp_path / "out", on_bad="skip")
    before = digests(tmp_path / "out")
    with pytest.raises(SourceError, match="there without them") as caught:
        convert(source, tmp_path / "out", on_bad="fail")
    assert caught.value.bad == tuple((b.key, b.reason) for b in begun.skipped)
    again = convert(source, tmp_path / "out", on_bad="skip")
    assert again.already_done and again.skipped == begun.skipped and ", 1 skipped" in as_text(again)
    assert not (tmp_path / "out-quarantine").exists()
    aside = convert(source, tmp_path / "out")
    assert aside.already_done and any("1 bad file was copied" in notice for notice in aside.notices)
    assert (tmp_path / "out-quarantine" / "a" / "bad.png").read_bytes() == b"x"
    assert digests(tmp_path / "out") == before


def test_a_copy_that_was_dropped_is_not_bad(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", GOOD | {"b/again.png": next(iter(GOOD.values()))})
    for already_done in (False, True):
        report = convert(source, tmp_path / "out", on_duplicate="drop", on_bad="fail")
        assert report.already_done is already_done and len(report.skipped) == 1


def test_split_folders_masks_and_dropped_copies(tmp_path: Path) -> None:
    """A copy is not bad, and an item without a mask is copied itself."""
    files = {f"{split}/{i}.png": encoded(noise(4, 4, seed=i)) for split in ("train", "val") for i in range(3)}
    files["val/3.png"] = encoded(noise(4, 4, seed=3))
    source = write_files(tmp_path / "src", files)
    masks = write_files(tmp_path / "masks", {name: encoded(noise(4, 4, 1)) for name in files if name != "val/2.png"})
    report = convert(source, tmp_path / "out", masks=masks, on_duplicate="drop")
    assert [b.key for b in report.skipped] == ["val/0.png", "val/1.png", "val/2.png"]
    assert set(digests(tmp_path / "out-quarantine")) == {"val/2.png"}


def test_rows_of_tables_have_no_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    (tmp_path / "l.csv").write_text("file,n\nx.npy#0,1\nx.npy#1,2\nx.npy#2,2\n")
    report = convert(tmp_path / "x.npy", tmp_path / "out", labels=tmp_path / "l.csv")
    assert [b.key for b in report.skipped] == ["x.npy#3"]
    assert not (tmp_path / "out-quarantine").exists()


def test_bad_files_never_go_into_the_source(tmp_path: Path) -> None:
    source = write_files(tmp_path / "out-quarantine", GOOD)
    with pytest.raises(UsageError, match="bad files would go"):
        convert(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out-quarantine"]
