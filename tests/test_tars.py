"""WebDataset tars as a source: what webdataset itself writes and reads, and tars that mean harm."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import arrays, both, columns, digests, encoded, index_rows, payloads, picture, python

import streamkit
from streamkit.errors import SourceError, UsageError
from streamkit.sources import tarfiles
from streamkit.sources.tars import field_of


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> streamkit.convert.Report:
    return streamkit.convert(source, out, format=format, workers=1, **options)


def tar(path: Path, members: Mapping[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def samples(numbers: range, prefix: str = "") -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    for i in numbers:
        facts = {"site": f"s{i % 2}", "weight": i / 4, "boxes": [[i, i + 1]] * (i % 3)}
        out |= {
            f"{prefix}{i:04d}.jpg": encoded(picture(10, 12, seed=i), "JPEG"),
            f"{prefix}{i:04d}.cls": str(i % 3).encode(),
            f"{prefix}{i:04d}.json": json.dumps(facts).encode(),
            f"{prefix}{i:04d}.txt": f"caption {i}".encode(),
        }
    return out


@both
@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_comes_back(tmp_path: Path, format: str, layout: int) -> None:
    prefix = "cats/" + "n" * 80 + "/"  # together over the 100 bytes of a plain header
    members = samples(range(9), prefix)
    convert(tar(tmp_path / "a.tar", members, format=layout), tmp_path / "out", format)
    stored, texts = payloads(tmp_path / "out"), payloads(tmp_path / "out", name="text")
    boxes, facts = arrays(tmp_path / "out", name="boxes"), {row["key"]: row for row in index_rows(tmp_path / "out")}
    assert len(stored) == 9
    for i in range(9):
        key = f"a.tar/{prefix}{i:04d}.jpg"
        assert stored[key] == members[f"{prefix}{i:04d}.jpg"]
        assert texts[key] == f"caption {i}".encode()
        assert (facts[key]["label"], facts[key]["site"], facts[key]["weight"]) == (i % 3, f"s{i % 2}", i / 4)
        assert boxes[key].tolist() == [[i, i + 1]] * (i % 3)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's
def test_webdataset_writes_it_and_reads_the_same(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for i in range(6):
            sink.write({"__key__": f"n/{i:03d}", "png": picture(8, 9, seed=i), "cls": i % 2, "txt": f"t{i}"})
    convert(tmp_path / "a.tar", tmp_path / "out")
    stored, labels, texts = (
        payloads(tmp_path / "out"),
        columns(tmp_path / "out", "label"),
        payloads(tmp_path / "out", name="text"),
    )
    for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False):
        key = f"a.tar/{sample['__key__']}.png"
        assert (stored[key], str(labels[key]), texts[key]) == (sample["png"], sample["cls"].decode(), sample["txt"])
    assert len(stored) == 6


@both
def test_several_tars_in_split_folders(tmp_path: Path, format: str) -> None:
    for number in range(3):
        tar(tmp_path / "src" / "train" / f"{number}.tar", samples(range(10 * number, 10 * number + 7)))
    tar(tmp_path / "src" / "val" / "0.tar", samples(range(100, 105)))
    convert(tmp_path / "src", tmp_path / "out", format)
    splits = streamkit.open(tmp_path / "out").splits
    assert {name: split.samples for name, split in splits.items()} == {"train": 21, "val": 5}
    assert set(columns(tmp_path / "out", "key", "val")) == {f"val/0.tar/{i:04d}.jpg" for i in range(100, 105)}


def test_workers_change_nothing(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / "src" / f"{number}.tar", samples(range(30 * number, 30 * number + 30)))
    found = []
    for workers in (1, 3):
        streamkit.convert(
            tmp_path / "src",
            tmp_path / str(workers),
            format="tfrecord",
            workers=workers,
            split="train=0.8,val=0.2",
            shard_size="4KB",
        )
        found.append(digests(tmp_path / str(workers)))
    assert len(found[0]) > 8 and found[0] == found[1]


def test_classes_by_name_masks_and_arrays(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(4):
        buffer = io.BytesIO()
        np.save(buffer, np.arange(i + 1, dtype=np.float32))
        members |= {
            f"{i}.png": encoded(picture(8, 8, seed=i)),
            f"{i}.seg.png": encoded(picture(8, 8, 1, seed=i)),
            f"{i}.npy": buffer.getvalue(),
            f"{i}.cls": [b"owl", b"cat\n"][i % 2],
            f"{i}.flac": b"...",
            f".{i}.hidden.png": b"",
        }
    report = convert(tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert streamkit.open(tmp_path / "out").class_names == ["cat", "owl"]
    assert arrays(tmp_path / "out")["a.tar/2.png"].tolist() == [0, 1, 2]
    assert payloads(tmp_path / "out", name="mask")["a.tar/3.png"] == members["3.seg.png"]
    assert any("4 members .flac were left" in notice for notice in report.notices)


def test_folders_in_a_tar_are_no_classes_and_that_is_said(tmp_path: Path) -> None:
    pictures = {f"test/{name}/{i}.jpg": encoded(picture(8, 9, seed=i)) for i in range(2) for name in ("cat", "dog")}
    report = convert(tar(tmp_path / "a.tar", pictures), tmp_path / "out")
    assert report.schema.label is None and any("unpack it" in notice for notice in report.notices)
    labelled = pictures | {name.replace("jpg", "cls"): b"1" for name in pictures}
    one = {name: data for name, data in pictures.items() if "cat" in name}
    for i, members in enumerate((labelled, one)):
        report = convert(tar(tmp_path / f"{i}.tar", members), tmp_path / f"out{i}")
        assert not any("unpack it" in notice for notice in report.notices)


def test_names_of_members() -> None:
    assert field_of("a.b/c.d.mask.png") == ("a.b/c", "")
    assert field_of("a.b/c.mask.PNG") == ("a.b/c", "mask")
    assert field_of("c") == ("c", "")


# Tars that are not what they should be


def one(name: str, **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info


HOSTILE = {
    "parent": (one("../../evil.jpg"), "leads out"),
    "inner parent": (one("a/../../evil.jpg"), "leads out"),
    "absolute": (one("/etc/evil.jpg"), "leads out"),
    "link": (one("x.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (one("x.jpg", type=tarfile.LNKTYPE, linkname="0000.jpg"), "is a hard link"),
    "device": (one("x.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "is a device"),
    "pipe": (one("x.jpg", type=tarfile.FIFOTYPE), "is a pipe"),
}


@pytest.mark.fault(23, 24, 25, 26)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused(tmp_path: Path, case: str) -> None:
    info, said = HOSTILE[case]
    (tmp_path / "inside").mkdir()
    path = tar(tmp_path / "inside" / "a.tar", samples(range(3)))
    with tarfile.open(path, "a") as file:
        file.addfile(info)
    with pytest.raises(SourceError) as caught:
        convert(path, tmp_path / "inside" / "out", on_bad="fail")
    ((_, reason),) = caught.value.bad
    assert said in reason
    convert(path, tmp_path / "inside" / "out2", on_bad="skip")
    assert len(payloads(tmp_path / "inside" / "out2")) == 3
    assert not list(tmp_path.rglob("evil*"))  # ".." of the source and of the outputs is in here


def lie(path: Path, size: int) -> Path:
    """A tar whose second member claims another size."""
    data = bytearray(path.read_bytes())
    at = 512 + -(-int(data[124:135], 8) // 512) * 512
    data[at + 124 : at + 136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [8**11 - 1, 1 << 60, 5000])
def test_sizes_that_lie(tmp_path: Path, size: int) -> None:
    with pytest.raises(SourceError):
        convert(lie(tar(tmp_path / "a.tar", samples(range(2))), size), tmp_path / "out")


@pytest.mark.fault(84)
def test_huge_headers_are_not_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", samples(range(2)))
    info = one("@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=1 << 33)
    data = path.read_bytes()
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + data)
    with pytest.raises(SourceError, match="a header of 8589934592 bytes"):
        convert(path, tmp_path / "out")
    pax = tar(tmp_path / "b.tar", samples(range(2)), pax_headers={"comment": "x" * 100_000})
    with pytest.raises(SourceError, match="a header of"):
        convert(pax, tmp_path / "out")


def test_compressed_and_other_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        file.addfile(one("a.jpg", size=1), io.BytesIO(b"x"))
    with pytest.raises(SourceError, match="compressed as a whole"):
        convert(tmp_path / "a.tar.gz", tmp_path / "out")
    for name, data in (("b.tar", b"<html>"), ("c.tar", b""), ("d.tar", bytes(1024)), ("e.tar", os.urandom(2048))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError) as caught:
            convert(tmp_path / name, tmp_path / "out")
        assert name in str(caught.value)
    with pytest.raises(UsageError):
        convert(tmp_path / "nothing.tar", tmp_path / "out")


def test_samples_that_lack_a_member(tmp_path: Path) -> None:
    members = samples(range(6))
    for name in ("0001.jpg", "0002.cls", "0003.txt"):
        del members[name]
    members["0004.json"] = b"[1]"
    members["0005.png"] = members["0005.jpg"]
    with pytest.raises(SourceError) as caught:
        convert(tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert {key.split("/")[1][:4] for key, _ in caught.value.bad} == {"0001", "0002", "0003", "0004", "0005"}
    convert(tmp_path / "a.tar", tmp_path / "out", on_bad="skip")
    assert list(payloads(tmp_path / "out")) == ["a.tar/0000.jpg"]


def test_damaged_tars_never_crash(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", samples(range(3))).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(200):
        data = bytearray(whole)
        if number % 2:
            data = data[: int(rng.integers(len(data)))]
        else:
            for at in rng.integers(len(data) // 512, size=2):
                data[512 * at + int(rng.integers(512))] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.tar").write_bytes(data)
        try:
            found = list(tarfiles.members(str(tmp_path / "b.tar")))
        except SourceError:
            continue
        assert all(m.offset + m.nbytes <= len(data) for m in found)


PEAK = """
import sys, tarfile, io
from pathlib import Path
import streamkit
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
work = Path(sys.argv[1])
peaks = []
for name, n in (("small", 20), ("large", 400)):
    with tarfile.open(work / f"{name}.tar", "w") as file:
        for i in range(n):
            info = tarfile.TarInfo(f"{i}.txt"); info.size = 200_000
            file.addfile(info, io.BytesIO(b"%06d" % i + b"x" * 199_994))
    streamkit.convert(work / f"{name}.tar", work / name, format="tfrecord", workers=1, shard_size="4MB")
    peaks.append(peak())
print((peaks[1] - peaks[0]) / (work / "large.tar").stat().st_size)
"""


def test_a_tar_is_not_held(tmp_path: Path) -> None:
    run = python(PEAK, tmp_path)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 0.2, run.stdout
