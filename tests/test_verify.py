"""`verify` finds every damage, names it, alters nothing and raises no false alarm. FAULTS cases 41 to 52."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import blake3
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reading
from converting import ROOT, cli, digests, without_root_powers
from crc32c import crc32c
from harming import FILES, HARM, KINDS, N, raw_of
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit import DamagedError, ResourceError, UsageError, native
from streamkit.cli import main
from streamkit.health import Report, scan
from streamkit.index import Index
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


@pytest.mark.fault(45)
def test_swapped_shards(copied: Callable[[str], Path]) -> None:
    """Case 45."""
    path = copied("table-tfrecord")
    a, b = path / "train-00000.tfrecord", path / "train-00001.tfrecord"
    a.rename(path / "x")
    b.rename(a)
    (path / "x").rename(b)
    report = streamkit.verify(path)
    assert {a.name, b.name} == set(files_of(report))
    assert any(p.reason == f"holds the bytes of {b.name}" for p in report.problems if p.file == a.name)


@pytest.mark.fault(46)
@pytest.mark.parametrize("name", ["table-tfrecord", "table-hdf5"])
def test_a_shard_of_an_older_run(copied: Callable[[str], Path], harm_sources: Path, tmp_path: Path, name: str) -> None:
    """Case 46: the same name, size and layout, other samples; readers tell it by the crc32c, verify by the digest too."""
    path, ext = copied(name), "h5" if name == "table-hdf5" else "tfrecord"
    older = reading.convert(raw_of(harm_sources, name), tmp_path / "older", **KINDS[name], seed=5)
    shard = f"train-00001.{ext}"
    assert (older / shard).stat().st_size == (path / shard).stat().st_size
    shutil.copy(older / shard, path / shard)
    report = streamkit.verify(path)
    assert files_of(report) == [shard]
    assert len(report.problems) >= streamkit.open(path).split("train").shards[1].samples - 1  # one lies where it did
    assert streamkit.verify(path, quick=True).ok  # which says that it read no bytes
    with pytest.raises(DamagedError, match="crc32c"):
        list(streamkit.Loader(path, shuffle=False))


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
    (picture,) = streamkit.verify(path, full=True).problems
    assert picture.key == row["key"] and "JPEG" in picture.reason


@pytest.fixture
def n_descriptors() -> Iterator[Callable[[int], None]]:
    """Leaves this process so many descriptors, for real, until the test ends."""
    held: list[int] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))

    def leave(n: int) -> None:
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(n):
            os.close(held.pop())

    try:
        yield leave
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("digest", [True, False], ids=["by digest", "by Arrow"])
def test_out_of_descriptors_is_no_damage_of_an_index(
    datasets: Path, n_descriptors: Callable[[int], None], digest: bool
) -> None:
    split = streamkit.open(datasets / "table-tfrecord").splits["train"]
    path = datasets / "table-tfrecord" / split.index
    index = Index(path, split.samples)
    n_descriptors(0)
    with pytest.raises(ResourceError, match="too many open files"):
        Index(path, split.samples, split.index_digest if digest else None)
    for read in (lambda: index.load(["key"]), lambda: index.key(0), index.table, lambda: list(index.texts("key"))):
        with pytest.raises(ResourceError, match="too many open files"):
            read()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.EIO, None])
@pytest.mark.parametrize("late", [False, True], ids=["numbers", "texts"])
def test_what_the_system_refuses_of_an_index_is_no_damage(
    datasets: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, late: bool
) -> None:
    """But a disk that fails is, and what Arrow says of contents, without a number."""
    path = datasets / "table-tfrecord"
    error = OSError("Parquet magic bytes not found") if number is None else OSError(number, os.strerror(number))
    real = pq.ParquetFile

    def refuse(*args: Any, **options: Any) -> pq.ParquetFile:
        if bool(options) is late:  # texts are read as dictionaries
            raise error
        return real(*args, **options)

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    if number in (errno.EIO, None):
        assert set(files_of(streamkit.verify(path))) == {split.index for split in streamkit.open(path).splits.values()}
    else:
        with pytest.raises(ResourceError):
            streamkit.verify(path)


def forge_digests(path: Path) -> None:
    """Make the manifest agree with the shards as they are, as a buggy or hostile writer would."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["dataset_id"]
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            shard["digest"] = blake3.blake3((path / shard["file"]).read_bytes()).hexdigest()
            shard["bytes"] = (path / shard["file"]).stat().st_size
        split["bytes"] = sum(shard["bytes"] for shard in split["shards"])
    for name, file in manifest["files"].items():
        file["digest"] = blake3.blake3((path / name).read_bytes()).hexdigest()
        file["bytes"] = (path / name).stat().st_size
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


@pytest.mark.fault(90)
@pytest.mark.parametrize("mode", [{}, {"full": True}], ids=["default", "full"])
@pytest.mark.parametrize("keys", [b"\xff", b"k" * (1 << 20)], ids=["no UTF-8", "too large"])
def test_keys_that_cannot_be_read_hide_no_damage(
    copied: Callable[[str], Path], mode: dict[str, bool], keys: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is a problem, and every damaged record, too, without its key."""
    monkeypatch.setattr("streamkit.index._TEXT_NBYTES", 1 << 20)
    path = copied("table-tfrecord")
    reading.alter_index(path, lambda table: table.set_column(0, "key", texts([keys] * table.num_rows)))
    reading.flip(path / "train-00000.tfrecord", 60)
    index, record = streamkit.verify(path, **mode).problems
    assert (index.file, index.refused) == ("index-train.parquet", len(keys) > 1)
    assert (record.file, record.record, record.key) == ("train-00000.tfrecord", 0, None)


def texts(values: list[bytes]) -> pa.Array:
    """An array that calls any bytes text."""
    ends = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(values)))


@pytest.mark.fault(82)
@pytest.mark.parametrize("file", ["train-00001.h5", "train.h5"])
@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "external storage", "unknown filter"])
def test_an_hdf5_file_that_leads_out_is_refused(
    copied: Callable[[str], Path], tmp_path: Path, kind: str, file: str
) -> None:
    """Case 82: its digest is right, but h5py would show its user what lies elsewhere."""
    path = copied("table-hdf5")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(800))
    with h5py.File(path / file, "r+") as shard:
        group = shard.create_group("deep")
        if kind == "soft":
            group["x"] = h5py.SoftLink("/x")
        elif kind == "external":
            group["x"] = h5py.ExternalLink(str(secret), "/x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((8,), np.int64)
            layout[:] = h5py.VirtualSource(str(secret), "x", (8,))
            group.create_virtual_dataset("x", layout)
        elif kind == "external storage":
            group.create_dataset("x", (8,), np.int64, external=[(str(secret), 0, 64)])
        else:
            group.create_dataset("x", data=np.zeros((4, 4)), chunks=(4, 4), scaleoffset=2)
    forge_digests(path)
    assert streamkit.verify(path).ok
    report = streamkit.verify(path, full=True)
    assert files_of(report) == [file] and report.refused
    assert report.problems[0].reason.startswith("deep/x ")
    assert main(["verify", str(path), "--full"]) == 9


def test_a_flipped_bit_hides_no_undecodable_neighbour(copied: Callable[[str], Path]) -> None:
    path = copied("pictures-tfrecord")
    rows = streamkit.open(path).index("train").slice(2, 2).to_pylist()
    assert rows[0]["shard"] == rows[1]["shard"]
    with open(path / rows[1]["shard"], "r+b") as file:
        file.seek(rows[1]["image.offset"])
        file.write(b"no picture")
        file.seek(rows[1]["image.offset"])
        crc = crc32c(file.read(rows[1]["image.length"]))
    reading.alter_index(path, reading.with_column("image.crc32c", lambda v: np.where(np.arange(len(v)) == 3, crc, v)))
    forge_digests(path)
    reading.flip(path / rows[0]["shard"], rows[0]["image.offset"] + 1)
    found = {p.key: p.reason for p in streamkit.verify(path, full=True).problems}
    assert set(found) == {rows[0]["key"], rows[1]["key"]}
    assert "crc32c" in found[rows[0]["key"]] and "crc32c" not in found[rows[1]["key"]]


@pytest.mark.parametrize("mode", [{}, {"quick": True}, {"full": True}], ids=["default", "quick", "full"])
def test_adopted_pictures(harm_sources: Path, tmp_path: Path, mode: dict[str, bool]) -> None:
    """Every file is looked at, and of each thing that is wrong one is told."""
    pictures = Path(shutil.copytree(harm_sources / "pictures", tmp_path / "pictures"))
    streamkit.index(pictures, out=tmp_path / "out")
    assert streamkit.verify(tmp_path / "out", **mode).ok
    (pictures / "c0" / "0000.jpg").unlink()
    os.truncate(pictures / "c1" / "0001.jpg", 20)
    (pictures / "c2" / "0002.jpg").unlink()
    (pictures / "c2" / "0002.jpg").symlink_to("0005.jpg")
    report = streamkit.verify(tmp_path / "out", **mode)
    assert sorted(str(p.key) for p in report.problems) == ["c0/0000.jpg", "c1/0001.jpg", "c2/0002.jpg"]
    assert [p.key for p in report.problems if p.refused] == ["c2/0002.jpg"]


@pytest.mark.parametrize("name", ["table-tfrecord", "table-hdf5"])
def test_quick_looks_at_the_first_bytes(copied: Callable[[str], Path], name: str) -> None:
    path = copied(name)
    shard = streamkit.open(path).split("train").shards[1].file
    with open(path / shard, "r+b") as file:
        file.write(b"<!DOCTYPE html>")
    (problem,) = streamkit.verify(path, quick=True).problems
    assert problem.file == shard and "its first bytes are not those of" in problem.reason


# What the system refuses


def failing_disk(path: Path, file: str, calls: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `verify` where reading one of the files fails."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = ["-P", str(path / file), "-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO:when=1+"]
    command = [sys.executable, "-m", "streamkit", "verify", str(path), *arguments]
    run = subprocess.run(
        ["strace", "-f", "-qq", "-o", os.devnull, *trace, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "ptrace" in run.stderr.lower():
        pytest.skip("strace may not trace here")
    return run


@pytest.mark.fault(52)
@pytest.mark.parametrize("mode", [[], ["--quick"]], ids=["default", "quick"])
def test_a_disk_that_fails_is_reported(copied: Callable[[str], Path], mode: list[str]) -> None:
    """As test_crashes has it on a real one."""
    path, file = copied("table-tfrecord"), "train-00001.tfrecord"
    run = failing_disk(path, file, "read,pread64,preadv,preadv2", "--json", *mode)
    assert run.returncode == 4, run.stderr
    problems = json.loads(run.stdout)["problems"]
    assert {p["shard"] for p in problems} == {file} and run.stderr.count("\n") == 1
    assert "input/output error" in problems[0]["reason"].lower()


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    ("file", "mode"),
    [
        ("train-00001.tfrecord", []),
        ("train-00001.tfrecord", ["--quick"]),
        ("index-train.parquet", []),
    ],
)
def test_what_may_not_be_read_is_not_called_damaged(copied: Callable[[str], Path], file: str, mode: list[str]) -> None:
    path = copied("pictures-tfrecord")
    (path / file).chmod(0)
    run = cli("verify", path, *mode, preexec_fn=without_root_powers())
    assert run.returncode == 5, run.stderr
    assert file in run.stderr and "permission denied" in run.stderr and run.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_cannot_be(datasets: Path, workers: int) -> None:
    for run in (streamkit.verify, lambda path, workers: streamkit.repair(path, drop=True, workers=workers)):
        with pytest.raises(UsageError, match=f"workers is {workers}, expected at least 1"):
            run(datasets / "table-tfrecord", workers=workers)


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
