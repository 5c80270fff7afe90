"""A new dataset takes an old one's place in one step, and nothing of somebody else is lost on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reading
from converting import class_folders, digests
from harming import raw_of

import streamkit
from streamkit import BusyError, DamagedError, UsageError
from streamkit.convert import swap
from streamkit.convert.lock import Lock

Copied = Callable[[str], Path]
MINE = {"notes.txt": "mine", "runs/last.keras": "mine too", "train-99999.tfrecord": "named alike"}


def replace(how: str, path: Path, source: Path) -> None:
    if how == "drop":
        streamkit.repair(path, drop=True)
    else:
        reading.convert(source, path, compression="none", seed=9, overwrite=True)


@pytest.fixture
def prepared(harm_sources: Path, copied: Copied) -> Callable[[], tuple[Path, Path]]:
    """A dataset with a damaged record, among files of somebody else; and its source."""

    def prepare() -> tuple[Path, Path]:
        path = copied("table-tfrecord")
        reading.flip(path / "train-00001.tfrecord", (path / "train-00001.tfrecord").stat().st_size // 2)
        for name, text in MINE.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(text)
        return path, raw_of(harm_sources, "table")

    return prepare


def mine(path: Path) -> dict[str, str]:
    return {name: (path / name).read_text() for name in MINE if (path / name).exists()}


ways = pytest.mark.parametrize("how", ["drop", "overwrite"])


@pytest.mark.parametrize("exchange", [True, False])
@ways
def test_what_is_somebody_else_s_is_there_after_every_kill(
    prepared: Callable[[], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, how: str, exchange: bool
) -> None:
    """Killed before each rename and deletion in turn: the same again ends well, and keeps what it did not make."""
    if not exchange:
        monkeypatch.setattr(swap, "_exchanged", lambda a, b: False)
    path, source = prepared()
    replace(how, path, source)
    whole = digests(path)
    assert mine(path) == MINE
    for at in range(100):
        shutil.rmtree(path)
        prepared()
        left = at
        with monkeypatch.context() as patch:

            def dies(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise KeyboardInterrupt
                    return real(*args, **options)

                return call

            # Of `swap`, as it is here that an old dataset goes; test_crashes kills at every system call of all modules.
            calls = type("os", (), {**vars(os), "rename": dies(os.rename), "listdir": dies(os.listdir)})
            patch.setattr(swap, "os", calls)
            patch.setattr(swap, "_exchanged", dies(swap._exchanged))
            patch.setattr(Path, "rmdir", dies(Path.rmdir))
            patch.setattr(shutil, "rmtree", dies(shutil.rmtree))
            try:
                replace(how, path, source)
                break
            except KeyboardInterrupt:
                pass
        if exchange:
            assert (path / "manifest.json").exists(), at
        replace(how, path, source)
        assert digests(path) == whole, at
        assert [p.name for p in path.parent.iterdir()] == [path.name], at
    assert 5 < at < 99


@ways
def test_through_a_link(prepared: Callable[[], tuple[Path, Path]], tmp_path: Path, how: str) -> None:
    """The folder that a link leads to is replaced, and the link stays one."""
    path, source = prepared()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(path)
    replace(how, tmp_path / "here" / "link", source)
    assert (tmp_path / "here" / "link").is_symlink() and os.listdir(tmp_path / "here") == ["link"]
    assert streamkit.verify(path).ok and mine(path) == MINE
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", path.name]


def test_a_name_that_both_want_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 6}, (6, 6))
    streamkit.convert(source, tmp_path / "out", format="tfrecord", workers=1)
    (tmp_path / "out" / "train-00001.tfrecord").write_text("mine")
    again: dict[str, Any] = {"format": "tfrecord", "workers": 1, "shard_size": 900, "overwrite": True}
    for _ in range(2):
        with pytest.raises(UsageError, match=r"train-00001\.tfrecord is not the old dataset's own"):
            streamkit.convert(source, tmp_path / "out", **again)
        assert streamkit.verify(tmp_path / "out").ok
    (tmp_path / ".out.old" / "train-00001.tfrecord").rename(tmp_path / "mine")
    streamkit.convert(source, tmp_path / "out", **again)
    assert (tmp_path / "mine").read_text() == "mine" and streamkit.verify(tmp_path / "out").ok
    assert sorted(os.listdir(tmp_path)) == ["mine", "out", "src"]


@pytest.mark.parametrize("options", [{"format": "tfrecord"}, {"format": "hdf5", "compression": "gzip"}])
def test_a_dataset_that_was_appended_to_is_replaced(tmp_path: Path, options: dict[str, Any]) -> None:
    """What the indexes of before an --append say nobody needs any more; they are not moved along as somebody's."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    (tmp_path / "src").mkdir()
    for i in range(3):
        np.save(tmp_path / "src" / f"{i}.npy", np.full((4, 4), i))
        streamkit.convert(tmp_path / "src", out, workers=1, append=i > 0, **options)
    (out / "notes.txt").write_text("mine")
    assert (out / "index-train.parquet").exists() and (out / "index-train.3.parquet").exists()
    source = class_folders(tmp_path / "pictures", {"a": 6}, (6, 6))
    for path in (out, fresh):
        streamkit.convert(source, path, format="tfrecord", workers=1, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["fresh", "out", "pictures", "src"]
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert digests(out) == digests(fresh) and streamkit.verify(out).ok


@pytest.mark.parametrize("manifest", ["", None])
def test_a_dataset_that_nothing_is_known_of_is_replaced(
    copied: Copied, harm_sources: Path, manifest: str | None
) -> None:
    """Without a whole manifest, names tell what conversions write; the rest stays."""
    path, source = copied("table-gzip"), raw_of(harm_sources, "table")
    (path / "notes.txt").write_text("mine")
    (path / ".streamkit").mkdir()
    (path / "manifest.json").unlink()
    if manifest is not None:
        (path / "manifest.json").write_text(manifest)
    options: dict[str, Any] = {"format": "hdf5", "workers": 1, "split": {"train": 0.9, "val": 0.1}}
    streamkit.convert(source, path, overwrite=True, **options)
    (path / "notes.txt").unlink()
    streamkit.convert(source, path.with_name("fresh"), **options)
    assert digests(path) == digests(path.with_name("fresh"))


def test_between_two_renames_the_way_on_is_told(copied: Copied) -> None:
    """Where folders cannot be exchanged, there is a moment when the dataset has another name."""
    path = copied("table-tfrecord")
    whole = digests(path)
    path.rename(path.with_name(f".{path.name}.swap"))
    with pytest.raises(DamagedError, match=r"being replaced: .* Run `streamkit repair .* --drop`"):
        streamkit.open(path)
    streamkit.repair(path, drop=True)
    assert digests(path) == whole and os.listdir(path.parent) == [path.name]


def test_adopted_files_are_not_the_dataset_s(copied: Copied, harm_sources: Path) -> None:
    path = copied("table-tfrecord")
    for other in path.iterdir():
        if other.suffix != ".tfrecord":
            other.unlink()
    files = digests(path)
    streamkit.index(path, out=path)
    reading.convert(raw_of(harm_sources, "pictures"), path, overwrite=True, split={"val": 1.0})
    assert streamkit.verify(path).ok
    assert {name: digest for name, digest in digests(path).items() if name in files} == files


def test_folders_of_such_names_that_are_somebody_else_s(copied: Copied) -> None:
    path = copied("table-tfrecord")
    (path.with_name(f".{path.name}.old") / "deep").mkdir(parents=True)
    assert streamkit.repair(path, drop=True).rewritten == ()
    assert path.with_name(f".{path.name}.old").is_dir()


def test_a_swap_under_way_is_left_to_who_does_it(copied: Copied) -> None:
    path = copied("table-tfrecord")
    new = Path(shutil.copytree(path, path.with_name(f".{path.name}.old")))
    with Lock(new), pytest.raises(BusyError):
        streamkit.repair(path, drop=True)
    streamkit.repair(path, drop=True)
    assert not new.exists() and streamkit.verify(path).ok
