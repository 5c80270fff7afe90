"""`repair` writes exactly what is damaged again, byte for byte, or drops exactly the damaged records."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reading
from converting import class_folders, cli, digests, encoded, picture, without_root_powers, write_files
from harming import FILES, HARM, KINDS, N, raw_of

import streamkit
from streamkit import BusyError, DamagedError, RefusedError, SourceError, StreamkitError, UsageError
from streamkit.cli import main
from streamkit.convert import publish, run, skipped
from streamkit.digest import file_digest
from streamkit.health import rewrite
from streamkit.reports.conversion import as_text
from streamkit.splits import SideFile

Copied = Callable[[str], Path]


def extension(name: str) -> str:
    return "tfrecord" if KINDS[name]["format"] == "tfrecord" else "h5"


def contents(path: Path) -> dict[str, list[Any]]:
    """key -> the values of its sample, over all splits, read by the loader."""
    out = {}
    manifest = streamkit.open(path)
    names = [f.name for f in manifest.schema]
    for split in manifest.splits:
        loader = streamkit.Loader(path, split=split, batch_size=None, fields=["key", *names], num_workers=0)
        out |= {sample[0]: [np.asarray(v).tolist() for v in sample[1:]] for sample in loader}
    return out


# From the source


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_come_back_byte_for_byte(harm_sources: Path, datasets: Path, copied: Copied, name: str) -> None:
    path, ext = copied(name), extension(name)
    whole = digests(path)
    flipped, cut = path / f"train-00001.{ext}", path / f"train-00002.{ext}"
    reading.flip(flipped, flipped.stat().st_size // 2)
    (path / f"train-00000.{ext}").unlink()
    os.truncate(cut, cut.stat().st_size // 2)
    untouched = path / "index-train.parquet"
    before = untouched.stat()
    done = streamkit.repair(path, source=raw_of(harm_sources, name), workers=1)
    assert set(done.rewritten) == {f"train-0000{i}.{ext}" for i in range(3)}
    assert digests(path) == whole and done.lost == () and done.n_samples == N
    assert (untouched.stat().st_ino, untouched.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_comes_back(harm_sources: Path, copied: Copied, name: str, harm: str) -> None:
    path = copied(name)
    whole = digests(path)
    for file in FILES[name]:
        HARM[harm](path, file)
    (path / "elsewhere").unlink(missing_ok=True)
    done = streamkit.repair(path, source=raw_of(harm_sources, name), workers=1)
    assert set(done.rewritten) >= set(FILES[name])
    (path / "elsewhere").unlink(missing_ok=True)
    assert digests(path) == whole


def test_what_lies_in_a_file_s_place_is_kept(
    harm_sources: Path, copied: Copied, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied("pictures-tfrecord")
    whole = digests(path)
    (path / "train-00001.tfrecord").unlink()
    (path / "train-00001.tfrecord").mkdir()
    (path / "train-00001.tfrecord" / "thesis.tex").write_text("years of work")
    assert main(["repair", str(path), "--source", str(raw_of(harm_sources, "pictures")), "--workers", "1"]) == 0
    (aside,) = path.glob("train-00001.tfrecord.aside-*")
    assert aside.name in capsys.readouterr().out
    assert (aside / "thesis.tex").read_text() == "years of work"
    shutil.rmtree(aside)
    assert digests(path) == whole


@pytest.mark.parametrize("name", ["pictures-tfrecord", "ragged-hdf5"])
def test_a_file_that_was_whole_is_never_written(
    harm_sources: Path, copied: Copied, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not even where what comes out now is not what came out then, as after a change of libraries."""
    path = copied(name)
    damaged, *others = sorted(streamkit.open(path).files)
    reading.flip(path / damaged, 40)
    before = digests(path)
    real = publish.write_side_files

    def another(out: Path, *args: Any) -> dict[str, SideFile]:
        for file in real(out, *args):
            with open(out / file, "ab") as made:
                made.write(b"another release wrote this")
        return {file: SideFile((out / file).stat().st_size, file_digest(out / file)) for file in (damaged, *others)}

    monkeypatch.setattr(rewrite, "write_side_files", another)
    with pytest.raises(DamagedError, match="is not the one that the manifest names"):
        streamkit.repair(path, source=raw_of(harm_sources, name), workers=1)
    assert digests(path) == before


@pytest.mark.parametrize("mend", ["source", "drop", "convert"])
def test_what_an_append_began_goes_with_its_journal(
    harm_sources: Path, copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mend: str
) -> None:
    path = copied("pictures-tfrecord")
    source = raw_of(harm_sources, "pictures")
    whole, names = digests(path), set(os.listdir(path))
    more = shutil.copytree(source, tmp_path / "more")
    shutil.copy(more / "c0" / "0000.jpg", more / "c0" / "9999.jpg")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        reading.convert(more, path, **KINDS["pictures-tfrecord"], append=True)
    assert set(os.listdir(path)) - names == {".streamkit", "train-00010.tfrecord"}
    if mend == "convert":
        reading.convert(source, path, **KINDS["pictures-tfrecord"])
    else:
        (path / "features.json").write_text("")
        streamkit.repair(path, **({"drop": True} if mend == "drop" else {"source": source, "workers": 1}))
    assert set(os.listdir(path)) == names and streamkit.verify(path).ok
    assert mend == "drop" or digests(path) == whole


def test_a_whole_dataset_stays_as_it_is(harm_sources: Path, copied: Copied) -> None:
    path = copied("table-gzip")
    before = digests(path)
    for options in ({"source": raw_of(harm_sources, "table-gzip")}, {"drop": True}):
        assert streamkit.repair(path, **options).rewritten == ()
        assert digests(path) == before


def test_another_source_is_refused_and_nothing_changes(harm_sources: Path, copied: Copied, tmp_path: Path) -> None:
    path = copied("pictures-tfrecord")
    reading.flip(path / "train-00001.tfrecord", 200)
    before = digests(path)
    changed = Path(shutil.copytree(raw_of(harm_sources, "pictures"), tmp_path / "changed"))
    (changed / "c0" / "0000.jpg").unlink()
    with pytest.raises(SourceError, match="59 items"):
        streamkit.repair(path, source=changed)
    assert digests(path) == before
    # The same names and sizes, but other bytes: only the digest can tell.
    shutil.copy(raw_of(harm_sources, "pictures") / "c0" / "0000.jpg", changed / "c0" / "0000.jpg")
    for file in changed.rglob("*.jpg"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1  # behind the last marker of the picture: it still decodes
        file.write_bytes(data)
    with pytest.raises((SourceError, DamagedError), match=r"not the shard|cannot be converted"):
        streamkit.repair(path, source=changed, workers=1)
    with pytest.raises(UsageError, match="does not exist"):
        streamkit.repair(path, source=tmp_path / "nope")
    assert {k: v for k, v in digests(path).items() if not k.startswith(".streamkit")} == before


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_the_item_that_changed_is_named(tmp_path: Path, format: str) -> None:
    source, out = class_folders(tmp_path / "src", {"a": 5}), tmp_path / "out"
    streamkit.convert(source, out, format=format, workers=1)
    (shard,) = streamkit.open(out).splits["train"].shards
    reading.flip(out / shard.file, shard.nbytes // 2)
    name = sorted(file.name for file in (source / "a").iterdir())[2]
    data = (source / "a" / name).read_bytes()
    (source / "a" / name).write_bytes(
        data[:15] + bytes([data[15] ^ 1]) + data[16:]
    )  # another density: it decodes as before
    with pytest.raises(SourceError, match=rf"because of a/{name}"):
        streamkit.repair(out, source=source, workers=1)


def test_a_dropped_record_is_not_forgotten_and_append_brings_it_back(tmp_path: Path) -> None:
    source, out = class_folders(tmp_path / "src", {"a": 5}), tmp_path / "out"
    options: dict[str, Any] = {"format": "tfrecord", "workers": 1}
    streamkit.convert(source, out, **options)
    reading.flip(out / "train-00000.tfrecord", 200)
    (lost,) = streamkit.repair(out, drop=True).lost
    report = streamkit.convert(source, out, **options)
    assert report.already_done and [item.key for item in report.skipped] == [lost.key]
    assert "is finished, without the 1 record that repair dropped; --append converts" in as_text(report)
    assert streamkit.convert(source, out, append=True, **options).n_added == 1
    assert streamkit.open(out).skipped == 0 and len(contents(out)) == 5
    assert not (out / "skipped.jsonl").exists()
    assert "finished and unchanged" in as_text(streamkit.convert(source, out, **options))


def test_a_damaged_list_of_skipped_items_is_dropped_whole(tmp_path: Path) -> None:
    """Count and list agree afterwards, so that whoever reads either goes on."""
    source = class_folders(tmp_path / "src", {"a": 5})
    (source / "a" / "bad.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    options: dict[str, Any] = {"format": "tfrecord", "workers": 1, "on_bad": "skip"}
    streamkit.convert(source, out, **options)
    for harm in (b"[" * 100_000, b'{"key": 1}\n', b"\xff\n"):
        (out / "skipped.jsonl").write_bytes(harm)
        with pytest.raises(StreamkitError, match=r"skipped\.jsonl: .*"):
            skipped.read(out)
    streamkit.repair(out, drop=True)
    assert streamkit.verify(out).ok and streamkit.open(out).skipped == 0
    assert not (out / "skipped.jsonl").exists()
    (source / "a" / "bad.jpg").unlink()
    class_folders(tmp_path / "more", {"a": 2, "b": 2})
    for file in (tmp_path / "more" / "a").iterdir():
        file.rename(source / "a" / f"more-{file.name}")
    assert streamkit.convert(source, out, append=True, **options).n_items


def test_a_list_of_skipped_items_is_a_file_of_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"key": "a", "reason": "b"}\n')
    (tmp_path / "skipped.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(RefusedError, match="this is a link"):
        skipped.read(tmp_path)
    (tmp_path / "skipped.jsonl").unlink()
    os.mkfifo(tmp_path / "skipped.jsonl")
    with pytest.raises(RefusedError, match="no regular file"):
        skipped.read(tmp_path)
    (tmp_path / "skipped.jsonl").unlink()
    with pytest.raises(DamagedError, match="is missing"):
        skipped.read(tmp_path)


def test_what_was_skipped_stays_skipped(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "src",
        {f"a/{i}.png": encoded(picture(9, 9, seed=i)) if i % 4 else b"broken" for i in range(20)},
    )
    streamkit.convert(source, tmp_path / "out", format="hdf5", on_bad="skip", shard_size=1500, workers=1)
    whole = digests(tmp_path / "out")
    for file in ("train-00000.h5", "skipped.jsonl", "index-train.parquet"):
        reading.flip(tmp_path / "out" / file, 50)
    done = streamkit.repair(tmp_path / "out", source=source, workers=1)
    assert len(done.rewritten) == 3 and digests(tmp_path / "out") == whole


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_a_dataset_that_was_grown(tmp_path: Path, format: str) -> None:
    """Whatever was appended when: shards come back from a source that holds their items, and only their tables cannot."""
    late = "a" if format == "tfrecord" else ""  # a class that came later; HDF5 shards name those of their time

    def pictures(first: int, last: int) -> dict[str, bytes]:
        names = [f"{'cab'[i % 3] if late else 'cb'[i % 2]}/{i:02d}.png" for i in range(first, last)]
        return {name: encoded(picture(9, 9, seed=int(name[2:4]))) for name in names}

    options: dict[str, Any] = {
        "format": format,
        "shard_size": 1500,
        "workers": 1,
        "split": {"train": 0.75, "val": 0.25},
    }
    path = tmp_path / "out"
    source = write_files(tmp_path / "src", {k: v for k, v in pictures(0, 24).items() if k[0] != late})
    streamkit.convert(source, path, **options)
    for last in (24, 36):
        write_files(source, pictures(0, last))
        streamkit.convert(source, path, **options, append=True)
    assert streamkit.open(path).class_names == ["b", "c", *late] and streamkit.verify(path, full=True).ok
    whole, before = digests(path), contents(path)
    shards = [shard.file for split in streamkit.open(path).splits.values() for shard in split.shards]
    for file in (shards[0], shards[-1]):
        reading.flip(path / file, 300)
    (path / shards[1]).unlink()
    write_files(source, pictures(36, 40))  # what came since is no hindrance
    with pytest.raises(SourceError, match="are not in this source"):
        streamkit.repair(path, source=write_files(tmp_path / "new", pictures(24, 36)), workers=1)
    done = streamkit.repair(path, source=source, workers=1)
    assert set(done.rewritten) == {shards[0], shards[1], shards[-1]} and digests(path) == whole
    index = path / streamkit.open(path).splits["train"].index
    reading.flip(index, 60)
    with pytest.raises(DamagedError, match="grown by --append"):
        streamkit.repair(path, source=source, workers=1)
    reading.flip(index, 60)
    reading.flip(path / shards[-1], 300)
    lost = {p.key for p in streamkit.repair(path, drop=True).lost}
    assert streamkit.verify(path, full=True).ok
    assert contents(path) == {key: value for key, value in before.items() if key not in lost}


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_labels_and_masks_are_given_again(tmp_path: Path, format: str) -> None:
    source = write_files(tmp_path / "src", {f"{i}.png": encoded(picture(9, 9, seed=i)) for i in range(24)})
    masks = write_files(tmp_path / "masks", {f"{i}.png": encoded(picture(9, 9, 1, seed=i)) for i in range(24)})
    labels = tmp_path / "labels.csv"
    rows = [f"{i}.png,{i % 3},{i / 7:.3f}" for i in range(24)] + ["3.png,1,9.5"]
    labels.write_text("\n".join(["file,kind,weight", *rows]) + "\n")
    made_of = {"labels": labels, "masks": masks}
    path = tmp_path / "out"
    streamkit.convert(source, path, format=format, shard_size=4000, workers=1, **made_of)
    whole, before = digests(path), contents(path)
    assert len(before) == 24 and streamkit.verify(path, full=True).ok
    shard = streamkit.open(path).splits["train"].shards[0].file
    reading.flip(path / shard, 3000)
    (path / "index-train.parquet").unlink()
    with pytest.raises(UsageError, match="made with --labels"):
        streamkit.repair(path, source=source, workers=1)
    streamkit.repair(path, source=source, workers=1, **made_of)
    assert digests(path) == whole
    reading.flip(path / shard, 3000)
    lost = {p.key for p in streamkit.repair(path, drop=True).lost}
    assert streamkit.verify(path, full=True).ok and len(lost) <= 1
    assert contents(path) == {key: value for key, value in before.items() if key not in lost}


def test_one_at_a_time(harm_sources: Path, copied: Copied) -> None:
    path = copied("table-gzip")
    (path / ".streamkit").mkdir()
    with open(path / ".streamkit" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            streamkit.repair(path, drop=True)


def test_a_repair_that_was_killed_is_run_again(
    harm_sources: Path, copied: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied("table-tfrecord")
    whole = digests(path)
    for i in range(3):
        reading.flip(path / f"train-0000{i}.tfrecord", 200)
    real, left = os.replace, 0

    def dies(a: Any, b: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(a, b)

    for left in range(0, 9, 2):  # noqa: B007  (`dies` counts it down)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", dies)
            streamkit.repair(path, source=raw_of(harm_sources, "table-tfrecord"), workers=1)
    streamkit.repair(path, source=raw_of(harm_sources, "table-tfrecord"), workers=1)
    assert digests(path) == whole


# Without the damaged records


@pytest.mark.parametrize("name", KINDS)
def test_drop_keeps_every_good_record(copied: Copied, name: str) -> None:
    path, ext = copied(name), extension(name)
    before = contents(path)
    size = (path / f"train-00001.{ext}").stat().st_size
    reading.flip(path / f"train-00001.{ext}", size * 3 // 4)
    (path / f"train-00002.{ext}").unlink()
    (path / "notes.txt").write_text("mine")
    gone = [k for k, f in rows_of(path) if f == f"train-00002.{ext}"]
    found = {p.key for p in streamkit.verify(path).problems if p.key is not None}
    done = streamkit.repair(path, drop=True)
    lost = {p.key for p in done.lost}
    assert lost == set(gone) | found
    assert streamkit.verify(path, full=True).ok
    assert contents(path) == {key: value for key, value in before.items() if key not in lost}
    assert done.n_samples == N - len(lost) == sum(s.samples for s in streamkit.open(path).splits.values())
    listed = [json.loads(line)["key"] for line in (path / "skipped.jsonl").read_text().splitlines()]
    assert set(listed) == lost and streamkit.open(path).skipped == len(lost)
    assert (path / "notes.txt").read_text() == "mine"
    assert not list(path.parent.glob(".*")) and not (path / ".streamkit").exists()
    counts = streamkit.open(path).statistics.get("class_counts", {}).get("train")
    if counts is not None:
        labels = np.asarray(streamkit.open(path).index("train").column("label").to_pylist())
        assert sorted(counts.values()) == sorted(np.unique(labels, return_counts=True)[1].tolist())


def rows_of(path: Path) -> list[tuple[str, str]]:
    table = streamkit.open(path).index("train")
    return list(zip(table.column("key").to_pylist(), table.column("shard").to_pylist(), strict=True))


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_drop_leaves_out_what_does_not_decode(tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    """The bytes are the source's own, so that only dropping helps, as `verify --full` says."""
    bad = {f"a/{i:02d}.png" for i in (1, 4, 9)}
    pictures = {f"{'ab'[i > 11]}/{i:02d}.png": encoded(picture(20, 20, seed=i)) for i in range(24)}
    source = write_files(tmp_path / "src", {k: v[: len(v) // 2] if k in bad else v for k, v in pictures.items()})
    out = tmp_path / "out"
    options: dict[str, Any] = {"format": format, "check": "header", "shard_size": 4000, "on_bad": "skip", "workers": 1}
    assert not streamkit.convert(source, out, **options).skipped
    report = streamkit.verify(out, full=True)
    assert {p.key for p in report.problems} == bad
    assert f"`streamkit repair {out} --drop`, or" in report.hint and "--check decode --on-bad skip" in report.hint
    assert main(["repair", str(out), "--source", str(source), "--workers", "1"]) == 0
    assert "are the source's own; --drop leaves them out" in capsys.readouterr().out
    # One that is damaged besides, in another shard
    row = next(r for r in streamkit.open(out).index("train").to_pylist()[::-1] if r["key"] not in bad)
    reading.flip(out / row["shard"], row["image.offset"])
    done = streamkit.repair(out, drop=True)
    assert {p.key for p in done.lost} == bad | {row["key"]}
    assert streamkit.verify(out, full=True).ok and len(contents(out)) == 24 - len(bad) - 1
    listed = {item.key: item for item in skipped.read(out)}
    assert set(listed) == bad | {row["key"]} and streamkit.open(out).skipped == len(listed)
    assert {key for key, item in listed.items() if skipped.is_dropped(item)} == {row["key"]}
    assert all("does not decode" in listed[key].reason for key in bad)
    assert main(["repair", str(out), "--drop"]) == 0
    assert "every sample decodes: nothing to do" in capsys.readouterr().out


def test_where_nothing_decodes_only_converting_again_helps(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = write_files(tmp_path / "src", {f"a/{i}.png": encoded(picture(20, 20, seed=i))[:-300] for i in range(4)})
    streamkit.convert(source, out, format="tfrecord", check="header", workers=1)
    hint = streamkit.verify(out, full=True).hint
    assert "`streamkit convert` again" in hint and "--drop needs some record of train that is whole" in hint
    before = digests(out)
    with pytest.raises(DamagedError, match="nothing is left of split 'train'"):
        streamkit.repair(out, drop=True)
    assert {k: v for k, v in digests(out).items() if not k.startswith(".streamkit")} == before


def test_nothing_is_lost_where_only_the_framing_is_damaged(copied: Copied) -> None:
    path = copied("table-tfrecord")
    before = contents(path)
    reading.flip(path / "train-00001.tfrecord", 9)
    done = streamkit.repair(path, drop=True)
    assert done.lost == () and done.rewritten == ("train-00001.tfrecord",)
    assert contents(path) == before and streamkit.verify(path).ok


@pytest.mark.parametrize("column", ["shard", "key"])
def test_drop_takes_no_index_whose_texts_are_wrong(copied: Copied, column: str) -> None:
    """What it says of places is right; but keys that are there twice would be there twice afterwards."""
    path = copied("table-tfrecord")
    reading.alter_index(path, reading.with_column(column, lambda v: np.where(np.arange(len(v)) == 1, v[-1], v)))
    before = digests(path)
    assert "; --drop needs the index of train." in streamkit.verify(path).hint
    with pytest.raises(DamagedError, match="the index of train cannot be used"):
        streamkit.repair(path, drop=True)
    assert {k: v for k, v in digests(path).items() if not k.startswith(".streamkit")} == before


def test_drop_cannot_do_without_an_index_or_with_an_empty_split(copied: Copied) -> None:
    path = copied("table-tfrecord")
    reading.flip(path / "index-train.parquet", 60)
    with pytest.raises(DamagedError, match="the index of train cannot be used"):
        streamkit.repair(path, drop=True)
    assert "; --drop needs the index of train." in streamkit.verify(path).hint
    path = copied("table-zstd")
    (path / "chunks-val.parquet").unlink()
    (problem,) = streamkit.verify(path).problems
    assert (problem.file, problem.reason) == ("chunks-val.parquet", "the chunk table is missing")
    assert "; --drop needs the chunk table of val." in streamkit.verify(path, quick=True).hint
    with pytest.raises(DamagedError, match="the chunk table of val cannot be used"):
        streamkit.repair(path, drop=True)
    path = copied("table-gzip")
    for shard in streamkit.open(path).splits["val"].shards:
        (path / shard.file).unlink()
    before = digests(path)
    for quick in (False, True):
        assert "; --drop needs some record of val that is whole." in streamkit.verify(path, quick=quick).hint
    with pytest.raises(DamagedError, match="nothing is left of split 'val'"):
        streamkit.repair(path, drop=True)
    assert {k: v for k, v in digests(path).items() if not k.startswith(".streamkit")} == before


# The command line


def test_a_folder_that_is_read_only_is_named(copied: Copied) -> None:
    """Not the work folder, which could not be made in it."""
    path = copied("table-tfrecord")
    reading.flip(path / "train-00001.tfrecord", 200)
    path.chmod(0o500)
    try:
        run = cli("repair", path, "--drop", preexec_fn=without_root_powers())
    finally:
        path.chmod(0o700)
    assert run.returncode == 5, run.stderr
    assert f"{path}: permission denied" in run.stderr and ".streamkit" not in run.stderr


def test_the_command_says_what_it_did(harm_sources: Path, copied: Copied, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied("table-tfrecord")
    row = streamkit.open(path).index("train").slice(7, 1).to_pylist()[0]
    reading.flip(path / row["shard"], row["x.offset"])
    source = str(raw_of(harm_sources, "table"))
    assert main(["repair", str(path)]) == main(["repair", str(path), "--source", source, "--drop"]) == 2
    capsys.readouterr()
    assert main(["repair", str(path), "--source", source, "--workers", "1"]) == 0
    assert f"1 file mended ({row['shard']})" in capsys.readouterr().out
    assert main(["repair", str(path), "--source", source]) == 0
    assert "nothing to do" in capsys.readouterr().out
    reading.flip(path / row["shard"], row["x.offset"])
    assert main(["repair", str(path), "--drop"]) == 0
    said = capsys.readouterr().out
    assert "1 record is lost" in said and row["key"] in said
    reading.flip(path / row["shard"], row["x.offset"])
    assert main(["repair", str(path), "--drop", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["lost"]) == 1
    with pytest.raises(UsageError):
        streamkit.repair(path)
