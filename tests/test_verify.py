"""`verify` finds every damage, names it, alters nothing and raises no false alarm. FAULTS cases 41 to 52."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import blake3
import numpy as np
import pytest
import reading
from converting import digests
from crc32c import crc32c
from harming import FILES, HARM, KINDS, N
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit import native
from streamkit.cli import main
from streamkit.health import Report, scan
from streamkit.manifest import Manifest
from streamkit.strict import canonical


def files_of(report: Report) -> list[str]:
    return list(report.damaged_files)


# No false alarm


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mode", [{}, {"quick": True}, {"full": True}], ids=["default", "quick", "full"])
def test_a_whole_dataset_has_no_problem_and_stays_as_it_is(datasets: Path, name: str, mode: dict[str, bool]) -> None:
    before = digests(datasets / name)
    report = streamkit.verify(datasets / name, **mode)
    assert report.ok and report.problems == ()
    assert report.n_samples == N and report.n_shards > 1
    assert digests(datasets / name) == before


def test_every_byte_of_shards_and_side_files_is_read_once(datasets: Path) -> None:
    for name in ("table-tfrecord", "table-gzip", "pictures-hdf5"):
        manifest = streamkit.open(datasets / name)
        shards = sum(s.nbytes for split in manifest.splits.values() for s in split.shards)
        sides = sum(file.nbytes for file in manifest.files.values())
        told: list[int] = []
        report = streamkit.verify(
            datasets / name, progress=lambda n, told=told: told.append(n) or (lambda k: told.append(-k))
        )
        assert report.nbytes == shards + sides == told[0] == -sum(told[1:])


@pytest.mark.fault(44)
def test_files_that_are_not_in_the_manifest_are_nobody_s_business(copied: Callable[[str], Path]) -> None:
    """Case 44."""
    path = copied("table-tfrecord")
    shutil.copy(path / "train-00000.tfrecord", path / "train-99999.tfrecord")
    (path / "notes.txt").write_text("mine")
    assert streamkit.verify(path).ok and streamkit.verify(path, quick=True).ok


# Every damage is found and named


@pytest.mark.fault(41)
@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_of_a_payload_names_its_record(copied: Callable[[str], Path], name: str) -> None:
    """Case 41."""
    path = copied(name)
    manifest = streamkit.open(path)
    index = manifest.index("train").to_pydict()
    field = manifest.schema.payloads[0]
    row = next(i for i, n in enumerate(index[f"{field.name}.length"]) if n) if field.chunk_rows is None else 5
    if field.chunk_rows is None:
        at, file = index[f"{field.name}.offset"][row], index["shard"][row]
    else:
        chunk = reading.pq.read_table(path / "chunks-train.parquet").to_pylist()[index[f"{field.name}.chunk"][row]]
        at, file = chunk["offset"], chunk["shard"]
    reading.flip(path / file, at + 1)
    before = digests(path)
    report = streamkit.verify(path)
    hit = [p for p in report.problems if p.record is not None]
    assert files_of(report) == [file] and digests(path) == before
    expected = [key for key, shard in zip(index["key"], index["shard"], strict=True) if shard == file]
    if field.chunk_rows is None:
        assert [(p.record, p.key) for p in hit] == [(expected.index(index["key"][row]), index["key"][row])]
        assert "crc32c is" in hit[0].reason
    else:  # a chunk holds all of this small shard
        assert [(p.record, p.key) for p in hit] == list(enumerate(expected))


@pytest.mark.parametrize("name", ["table-tfrecord", "pictures-tfrecord"])
def test_damage_between_the_payloads_of_a_tfrecord_names_the_record(copied: Callable[[str], Path], name: str) -> None:
    path = copied(name)
    reading.flip(path / "train-00001.tfrecord", 9)  # crc of the first record's length
    (problem,) = streamkit.verify(path).problems
    assert problem.file == "train-00001.tfrecord" and "record 0" in problem.reason


def test_damage_to_hdf5_s_own_structures_is_found(copied: Callable[[str], Path]) -> None:
    path = copied("table-hdf5")
    reading.flip(path / "train-00001.h5", 60)
    (problem,) = streamkit.verify(path).problems
    assert problem.file == "train-00001.h5" and "between them" in problem.reason


@pytest.mark.fault(42, 43, 47, 52)
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("mode", [{}, {"quick": True}, {"full": True}], ids=["default", "quick", "full"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_can_be_harmed_in_every_way(
    copied: Callable[[str], Path], name: str, harm: str, mode: dict[str, bool]
) -> None:
    """Cases 42, 43, 47, 52."""
    for file in FILES[name]:
        path = copied(name)
        HARM[harm](path, file)
        report = streamkit.verify(path, **mode)
        assert file in files_of(report), (file, report.problems)
        assert set(files_of(report)) <= {file, "train.h5"}
        shutil.rmtree(path)


def test_records_of_a_cut_shard_are_named(copied: Callable[[str], Path]) -> None:
    path = copied("table-tfrecord")
    shard = streamkit.open(path).splits["train"].shards[1]
    os.truncate(path / shard.file, shard.nbytes - 100)
    size, *records = streamkit.verify(path).problems
    assert "manifest says" in size.reason and size.record is None
    last = shard.samples - 1
    assert [r.record for r in records] in ([last], [last - 1, last])
    assert all("ends before" in r.reason for r in records)


@pytest.mark.fault(45, 46)
def test_swapped_and_foreign_shards(copied: Callable[[str], Path]) -> None:
    """Cases 45 and 46."""
    path = copied("table-tfrecord")
    a, b = path / "train-00000.tfrecord", path / "train-00001.tfrecord"
    a.rename(path / "x")
    b.rename(a)
    (path / "x").rename(b)
    report = streamkit.verify(path)
    assert {a.name, b.name} == set(files_of(report))
    assert any(p.reason == f"holds the bytes of {b.name}" for p in report.problems if p.file == a.name)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "label.labels.txt"])
def test_side_files_are_checked_byte_by_byte(copied: Callable[[str], Path], name: str) -> None:
    path = copied("pictures-tfrecord")
    reading.flip(path / name, 2)
    assert files_of(streamkit.verify(path)) == [name]
    assert streamkit.verify(path, quick=True).ok


def test_pictures_that_do_not_decode_are_found_by_full_only(copied: Callable[[str], Path]) -> None:
    path = copied("pictures-tfrecord")
    row = streamkit.open(path).index("train").slice(3, 1).to_pylist()[0]
    with open(path / row["shard"], "r+b") as file:
        file.seek(row["image.offset"] + row["image.length"] // 3)
        file.write(bytes(row["image.length"] // 3))
        file.seek(row["image.offset"])
        crc = crc32c(file.read(row["image.length"]))
    reading.alter_index(path, reading.with_column("image.crc32c", lambda v: np.where(np.arange(len(v)) == 3, crc, v)))
    forge_digests(path)
    assert streamkit.verify(path).ok
    (problem,) = streamkit.verify(path, full=True).problems
    assert problem.key == row["key"] and "JPEG" in problem.reason


def forge_digests(path: Path) -> None:
    """Make the manifest agree with the shards as they are, as a buggy or hostile writer would."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["dataset_id"]
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            shard["digest"] = blake3.blake3((path / shard["file"]).read_bytes()).hexdigest()
    text = canonical(manifest)
    manifest["dataset_id"] = blake3.blake3(text.encode()).hexdigest()
    (path / "manifest.json").write_text(canonical(manifest))
    Manifest.load(path)


LIES = {
    "overlap": ("x.offset", lambda v: np.where(np.arange(len(v)) == 9, v[8], v)),
    "behind the end": ("x.offset", lambda v: np.where(np.arange(len(v)) == 9, 2**40, v)),
    "negative": ("x.offset", lambda v: np.where(np.arange(len(v)) == 9, -1, v)),
    "largest integer": ("x.offset", lambda v: np.where(np.arange(len(v)) == 9, 2**63 - 1, v)),
    "negative length": ("x.length", lambda v: np.where(np.arange(len(v)) == 9, -5, v)),
    "another crc": ("x.crc32c", lambda v: v ^ np.uint32(1)),
    "text": ("x.offset", lambda v: [str(n) for n in v]),
    "absent": ("x.crc32c", lambda v: [None] * len(v)),
    "another shard": ("shard", lambda v: ["train-00000.tfrecord"] * len(v)),
    "no class": ("label", lambda v: v + 3),
    "labels are text": ("label", lambda v: [str(n) for n in v]),
}


@pytest.mark.fault(48, 90)
@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_contradicts_its_shards(copied: Callable[[str], Path], lie: str) -> None:
    """Case 48 and 90: the digests agree, the facts do not."""
    path = copied("table-tfrecord")
    reading.alter_index(path, reading.with_column(*LIES[lie]))
    report = streamkit.verify(path)
    assert not report.ok


# The command line


def test_the_command_reports_and_exits_with_4(
    copied: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied("table-tfrecord")
    assert main(["verify", str(path)]) == 0
    assert "is whole: 60 samples" in capsys.readouterr().out
    row = streamkit.open(path).index("train").slice(7, 1).to_pylist()[0]
    reading.flip(path / row["shard"], row["x.offset"])
    assert main(["verify", str(path), "--quick"]) == 0
    said = capsys.readouterr().out
    assert "whole" not in said and "60 samples" in said and "bytes were not read" in said
    assert main(["verify", str(path), "--json"]) == 4
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert not facts["ok"] and facts["problems"][0]["key"] == row["key"]
    assert set(facts["problems"][0]) == {"shard", "record", "key", "reason"}
    assert said.err.count("\n") == 1 and "streamkit repair" in said.err
    spaced = path.rename(path.with_name("my out"))
    assert main(["verify", str(spaced), "--json"]) == 4
    assert f"`streamkit repair '{spaced}' --source" in capsys.readouterr().err
    spaced.rename(path)
    assert main(["verify", str(path)]) == 4
    assert row["key"] in capsys.readouterr().out
    (path / "manifest.json").write_text("{}")
    assert main(["verify", str(path), "--json"]) == 4
    said = capsys.readouterr()
    assert json.loads(said.out)["problems"][0]["shard"] == "manifest.json"
    assert "--overwrite" in said.err and "repair" not in said.err
    (path / "manifest.json").unlink()
    assert main(["verify", str(path)]) == 4
    said = capsys.readouterr()
    assert "new folder" in said.err and "repair" not in said.err
    assert main(["verify", str(path / "nothing")]) == 2


# One pass


@given(
    data=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    block=st.sampled_from([1, 2, 7, 64, 1024]),
    stop=st.integers(0, 320),
    compiled=st.booleans(),
    beside=st.booleans(),
)
def test_a_pass_sums_what_a_loop_sums(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    cuts: list[int],
    block: int,
    stop: int,
    compiled: bool,
    beside: bool,
) -> None:
    """Whatever lies across the borders of blocks."""
    edges = sorted(cuts)
    offsets, ends = np.array(edges[:-1], np.int64), np.array(edges[1:], np.int64)
    (tmp_path / "a").write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(scan, "BLOCK_NBYTES", block)
        if not compiled:
            patch.setattr(native, "_library", None)
        found = scan.scan(tmp_path / "a", stop, offsets, ends - offsets, beside=beside)
    seen = data[:stop]
    assert (found.nbytes, found.digest) == (len(seen), blake3.blake3(seen).hexdigest())
    for i, (a, b) in enumerate(zip(offsets.tolist(), ends.tolist(), strict=True)):
        if found.read[i]:
            assert found.crcs[i] == crc32c(seen[a:b]) and b <= len(seen)
        else:
            assert b > len(seen) or a == b
