"""Whatever a user or a source gets wrong: one clear line on stderr, the right exit code, nothing published, no traceback."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
from converting import (
    FORMATS,
    ROOT,
    both,
    class_folders,
    cli,
    columns,
    encoded,
    index_rows,
    noise,
    payloads,
    picture,
    png_chunk,
    with_exif,
    without_root_powers,
    write_files,
)

import streamkit
from streamkit.cli import main
from streamkit.errors import SourceError

Capture = pytest.CaptureFixture[str]

GOOD = encoded(picture(16, 20), "JPEG")


def run(*args: object, format: str = "tfrecord") -> int:
    return main(["convert", *map(str, args), "--format", format, "--workers", "1"])


def lines_of(capsys: Capture) -> list[str]:
    """The lines on stderr, each of them a message of streamkit's."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert "Traceback" not in captured.err
    assert all(line.startswith("streamkit: ") for line in lines), captured.err
    assert all(line.isprintable() for line in lines), captured.err
    return [line.removeprefix("streamkit: ") for line in lines]


# Wrong commands: exit 2, one line


def good_source(root: Path) -> Path:
    return write_files(root / "src", {f"{i}.jpg": encoded(noise(8, 8, seed=i), "JPEG") for i in range(3)})


USAGE: dict[str, tuple[list[str], str]] = {
    "no such source": (["{tmp}/nothing", "{out}"], "does not exist"),
    "a file that is no table": (["{src}/0.jpg", "{out}"], "no file of samples"),
    "output inside source": (["{src}", "{src}/out"], "inside one another"),
    "source inside output": (["{src}", "{tmp}"], "inside one another"),
    "source is output": (["{src}", "{src}"], "inside one another"),
    "output is a file": (["{src}", "{tmp}/note.txt"], "the output is a file"),
    "output not empty": (["{src}", "{tmp}/full"], "not empty (a, b, c)"),
    "output not empty, overwrite": (["{src}", "{tmp}/full", "--overwrite"], "not empty (a, b, c)"),
    "split of no fractions": (["{src}", "{out}", "--split", "train"], "no split"),
    "split over one": (["{src}", "{out}", "--split", "train=0.9,val=0.2"], "add up to 1"),
    "split of nothing": (["{src}", "{out}", "--split", "train=1,val=0"], "over 0"),
    "split with a path": (["{src}", "{out}", "--split", "../train=1"], "split names"),
    "split too small": (["{src}", "{out}", "--split", "train=0.999,val=0.001"], "would be empty"),
    "encode": (["{src}", "{out}", "--encode", "tiff"], "encode is 'tiff'"),
    "encode quality": (["{src}", "{out}", "--encode", "jpeg:101"], "encode is 'jpeg:101'"),
    "resize": (["{src}", "{out}", "--resize", "0"], "resize is '0'"),
    "resize to nothing": (["{src}", "{out}", "--resize", "10x"], "resize is '10x'"),
    "compression": (["{src}", "{out}", "--compression", "gzip"], "compression is 'gzip'"),
    "compression level": (["{src}", "{out}", "--compression", "zlib:10"], "compression is 'zlib:10'"),
    "shard size": (["{src}", "{out}", "--shard-size", "big"], "'big' is no size"),
    "shard size zero": (["{src}", "{out}", "--shard-size", "0"], "shard_size is '0'"),
    "workers": (["{src}", "{out}", "--workers", "0"], "workers is 0"),
    "workers in words": (["{src}", "{out}", "--workers", "two"], "--workers"),
    "seed": (["{src}", "{out}", "--seed", "1.5"], "--seed"),
    "check": (["{src}", "{out}", "--check", "none"], "--check"),
    "on-bad": (["{src}", "{out}", "--on-bad", "ignore"], "--on-bad"),
    "max pixels": (["{src}", "{out}", "--max-pixels", "many"], "'many' is no size"),
    "unknown option": (["{src}", "{out}", "--colour"], "--colour"),
    "no output": (["{src}"], "OUT"),
    "nothing at all": ([], "SRC"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_commands(tmp_path: Path, capsys: Capture, case: str) -> None:
    good_source(tmp_path)
    write_files(tmp_path, {"note.txt": b"x", "full/a": b"", "full/b": b"", "full/c": b"", "full/d": b""})
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    args, said = USAGE[case]
    args = [arg.format(src=tmp_path / "src", tmp=tmp_path, out=tmp_path / "out") for arg in args]
    assert main(["convert", "--format", "tfrecord", *args]) == 2
    (line,) = lines_of(capsys)
    assert said in line
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_the_format_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    for args in ([], ["--format", "csv"]):
        assert main(["convert", str(good_source(tmp_path)), str(tmp_path / "out"), *args]) == 2
        (line,) = lines_of(capsys)
        assert "--format" in line
    assert main([]) == 2
    assert main(["transmogrify"]) == 2
    assert len(lines_of(capsys)) == 2


def test_a_traceback_only_when_asked_for(tmp_path: Path) -> None:
    run = cli("convert", tmp_path / "nothing", tmp_path / "out", "--format", "tfrecord", "--debug")
    assert run.returncode != 0
    assert "Traceback" in run.stderr


# Sources in which there is nothing: exit 3


def npy_only_objects(root: Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(root / name, np.array([{}, 1], object), allow_pickle=True)


def dangling(root: Path) -> None:
    (root / "a.jpg").symlink_to("nothing")
    (root / "b.jpg").symlink_to("/etc/hostname")


NOTHING: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "an empty folder": (lambda root: None, ["empty"]),
    "unknown files": (lambda root: write_files(root, {"a.xyz": b"1", "b": b"2", "c/d.xyz": b"3"}), ["2 x .xyz"]),
    "hidden files": (lambda root: write_files(root, {".a.jpg": GOOD}), ["empty"]),
    "images and arrays": (
        lambda root: (write_files(root, {"a.jpg": GOOD}), np.save(root / "b.npy", np.zeros(3))),
        ["both images (1) and .npy files (1)"],
    ),
    "only pickles": (npy_only_objects, ["a.npy", "b.npy"]),
    "only links that lead nowhere": (dangling, ["a.jpg", "b.jpg"]),
    "an empty split folder": (lambda root: (write_files(root, {"train/a.jpg": GOOD}), (root / "val").mkdir()), ["val"]),
    "split folders of two kinds": (
        lambda root: (write_files(root, {"train/a.jpg": GOOD, "val/x": b""}), np.save(root / "val/x.npy", np.zeros(3))),
        ["train", "val"],
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_sources_without_items(tmp_path: Path, capsys: Capture, case: str) -> None:
    make, said = NOTHING[case]
    (tmp_path / "src").mkdir()
    make(tmp_path / "src")
    assert run(tmp_path / "src", tmp_path / "out") == 3
    text = "\n".join(lines_of(capsys))
    assert all(word in text for word in said), text
    assert not (tmp_path / "out" / "manifest.json").exists()


# Bad items: exit 3, every one of them listed


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width // 8 + 1) * 100))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 40]) + data[middle + 40 :]


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, 1], object), allow_pickle=True)
    return buffer.getvalue()


NOISE = encoded(noise(40, 40), "JPEG", quality=95)
BAD_PICTURES: dict[str, tuple[bytes, str]] = {
    "zero bytes long": (b"", "empty file"),
    "truncated JPEG": (NOISE[: len(NOISE) // 2], "damaged JPEG"),
    "JPEG of a header only": (NOISE[:200], "JPEG"),
    "flipped PNG": (flipped(encoded(noise(40, 40))), "PNG"),
    "HTML": (b"<!DOCTYPE html>\n<html><title>404</title></html>", "looks like HTML: failed download?"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "zeros": (bytes(3000), "only zero bytes"),
    "text": (b"hello, I am a picture", "unknown or damaged picture"),
    "a bomb of 100 Mpx": (bomb(10_000, 10_000), "64000000 pixels (--max-pixels)"),
    "a bomb of 3600 Mpx": (bomb(60_000, 60_000), "pixels"),
    "float TIFF": (encoded(np.zeros((4, 4), np.float32), "TIFF"), "store it as .npy"),
}


@pytest.mark.fault(18, 19, 20, 21, 84)
@both
@pytest.mark.parametrize("case", BAD_PICTURES)
@pytest.mark.parametrize("how", ["keep", "png"])
def test_bad_pictures(tmp_path: Path, capsys: Capture, format: str, case: str, how: str) -> None:
    """FAULTS 18 to 21, 84: exit 3 under fail; the rest is converted under skip."""
    data, reason = BAD_PICTURES[case]
    source = write_files(tmp_path / "src", {"a/good.jpg": GOOD, "a/bad.jpg": data, "b/bad too.png": data})
    assert run(source, tmp_path / "out", "--encode", how, format=format) == 3
    *listed, last = lines_of(capsys)
    assert len(listed) == 2
    assert all(line.startswith("bad item ") and reason in line for line in listed)
    assert "a/bad.jpg" in listed[0] and "b/bad too.png" in listed[1]
    assert last.startswith("2 of 3 items cannot be converted") and "Nothing was published" in last
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run(source, tmp_path / "skip", "--encode", how, "--on-bad", "skip", format=format) == 0
    assert [line.split(": ")[0] for line in lines_of(capsys)] == ["skipped a/bad.jpg", "skipped b/bad too.png"]
    skipped = [json.loads(line) for line in (tmp_path / "skip" / "skipped.jsonl").read_text().splitlines()]
    assert [item["key"] for item in skipped] == ["a/bad.jpg", "b/bad too.png"]
    assert all(reason in item["reason"] for item in skipped)
    assert [row["key"] for row in index_rows(tmp_path / "skip")] == ["a/good.jpg"]


BAD_ARRAYS: dict[str, tuple[bytes, str]] = {
    "zero bytes long": (b"", "empty file"),
    "objects": (pickled(), "pickles, and those are refused"),
    "a shape of 8 TB": (npy("'<f4'", "(2000000000000, 3)"), "needs 24000000000000 bytes, the file has 0"),
    "a negative axis": (npy("'<f4'", "(-1, 3)"), "negative"),
    "data cut short": (npy("'<f4'", "(2, 3)", bytes(23)), "needs 24 bytes, the file has 23"),
    "data too long": (npy("'<f4'", "(2, 3)", bytes(25)), "needs 24 bytes, the file has 25"),
    "another dtype": (npy("'<f8'", "(2, 3)", bytes(48)), "is float64 (2, 3), but a/good.npy is float32 (2, 3)"),
    "another number of axes": (npy("'<f4'", "(6,)", bytes(24)), "is float32 (6,), but a/good.npy is float32 (2, 3)"),
    "no array": (b"hello", "not a .npy file"),
    "structured": (npy("[('x', '<f4')]", "(2,)", bytes(8)), "not plain numbers"),
}


@pytest.mark.fault(35, 38, 39)
@both
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, capsys: Capture, format: str, case: str) -> None:
    """FAULTS 35, 38, 39."""
    data, reason = BAD_ARRAYS[case]
    source = write_files(tmp_path / "src", {"a/z-bad.npy": data, "b/bad.npy": data})
    for name in ("a/good.npy", "b/good.npy"):
        np.save(source / name, np.ones((2, 3), np.float32))
    assert run(source, tmp_path / "out", format=format) == 3
    *listed, last = lines_of(capsys)
    assert [line.split(": ")[0] for line in listed] == ["bad item a/z-bad.npy", "bad item b/bad.npy"]
    assert all(reason in line for line in listed)
    assert last.startswith("2 of 4 items")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run(source, tmp_path / "out", "--on-bad", "skip", format=format) == 0
    assert {row["key"] for row in index_rows(tmp_path / "out")} == {"a/good.npy", "b/good.npy"}
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 2


@pytest.mark.fault(22, 40)
def test_every_bad_item_is_listed(tmp_path: Path, capsys: Capture) -> None:
    """Found in pass 1, in pass 2, in several shards: all of them, sorted, in one run. FAULTS 22, 40."""
    source = class_folders(tmp_path / "src", {"a": 30, "b": 30})
    bad = [f"a/{i:04d}.jpg" for i in range(0, 30, 3)] + [f"b/{i:04d}.jpg" for i in range(30)]
    write_files(source, dict.fromkeys(bad, b"x"))
    write_files(source, {"stray.jpg": GOOD})
    (source / "a/link.jpg").symlink_to("nowhere")
    assert run(source, tmp_path / "out", "--shard-size", "2KB") == 3
    *listed, last = lines_of(capsys)
    assert [line.split(": ")[0] for line in listed] == [
        f"bad item {key}" for key in sorted([*bad, "stray.jpg", "a/link.jpg"])
    ]
    assert last.startswith("42 of 62 items")
    with pytest.raises(SourceError) as caught:
        streamkit.convert(source, tmp_path / "out2", format="tfrecord", workers=1, shard_size=2000)
    assert len(caught.value.bad) == 42
    assert len(str(caught.value)) < 1000


def test_items_without_a_label(tmp_path: Path, capsys: Capture) -> None:
    source = write_files(tmp_path / "src", {"a/1.jpg": GOOD, "b/2.jpg": GOOD, "stray.jpg": GOOD})
    assert run(source, tmp_path / "out") == 3
    listed, _ = lines_of(capsys)
    assert listed.startswith("bad item stray.jpg: ") and "no label" in listed
    assert run(source, tmp_path / "out", "--on-bad", "skip") == 0
    assert {row["key"] for row in index_rows(tmp_path / "out")} == {"a/1.jpg", "b/2.jpg"}


@pytest.mark.fault(23, 24, 25)
def test_links_that_lead_out_or_nowhere(tmp_path: Path, capsys: Capture) -> None:
    """FAULTS 23 to 25."""
    source = good_source(tmp_path)
    write_files(tmp_path, {"secret.jpg": GOOD})
    (source / "dangling.jpg").symlink_to("nothing.jpg")
    (source / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (source / "loop.jpg").symlink_to("loop.jpg")
    (source / "inside.jpg").symlink_to("0.jpg")
    assert run(source, tmp_path / "out") == 3
    *listed, _ = lines_of(capsys)
    assert [line.split(": ")[0] for line in listed] == [f"bad item {n}.jpg" for n in ("dangling", "loop", "out")]
    assert run(source, tmp_path / "out", "--on-bad", "skip") == 0
    assert {row["key"] for row in index_rows(tmp_path / "out")} == {"0.jpg", "1.jpg", "2.jpg", "inside.jpg"}
    assert payloads(tmp_path / "out")["inside.jpg"] == payloads(tmp_path / "out")["0.jpg"]


@pytest.mark.fault(26)
def test_pipes_and_sockets_are_left(tmp_path: Path, capsys: Capture) -> None:
    """FAULTS 26: no hang, a notice. In a process of its own, so that a hang is a failure."""
    import socket

    source = good_source(tmp_path)
    os.mkfifo(source / "pipe.jpg")
    os.mkfifo(source / "pipe")
    (source / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(source)  # socket paths are short
        server.bind("socket.jpg")
        os.chdir(before)
        done = cli("convert", source, tmp_path / "out", "--format", "tfrecord", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "pipe.jpg is no regular file" in done.stderr and "socket.jpg is no regular file" in done.stderr
    assert len(index_rows(tmp_path / "out")) == 3
    os.mkfifo(tmp_path / "rows.npy")
    done = cli("convert", tmp_path / "rows.npy", tmp_path / "out2", "--format", "tfrecord")
    assert done.returncode in (2, 3) and len(done.stderr.splitlines()) == 1


def as_ordinary_user(*args: object) -> subprocess.CompletedProcess[str]:
    """The command line where file permissions hold, for root too."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "streamkit", *map(str, args)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=without_root_powers(),
        )
    except subprocess.SubprocessError:
        pytest.skip("root cannot drop its power over file permissions here")


@pytest.mark.fault(22)
def test_files_without_permission(tmp_path: Path) -> None:
    """FAULTS 22: every one listed, with what it needs; folders too."""
    source = write_files(tmp_path / "src", {f"{c}/{i}.jpg": GOOD for c in "abc" for i in range(3)})
    for name in ("a/0.jpg", "b/1.jpg"):
        (source / name).chmod(0)
    (source / "c").chmod(0)
    try:
        done = as_ordinary_user("convert", source, tmp_path / "out", "--format", "tfrecord")
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        listed = [line for line in done.stderr.splitlines() if "bad item" in line]
        assert [line.split(": ")[1].removeprefix("bad item ") for line in listed] == ["a/0.jpg", "b/1.jpg", "c"]
        assert all("permission denied" in line for line in listed)
        skipped = as_ordinary_user("convert", source, tmp_path / "skip", "--format", "hdf5", "--on-bad", "skip")
        assert skipped.returncode == 0, skipped.stderr
        assert len(index_rows(tmp_path / "skip")) == 4
    finally:
        (source / "c").chmod(0o755)


def test_a_source_or_output_without_permission(tmp_path: Path) -> None:
    source = good_source(tmp_path)
    np.save(tmp_path / "rows.npy", np.zeros((3, 4)))
    (tmp_path / "rows.npy").chmod(0)
    (tmp_path / "closed").mkdir(mode=0o500)
    for args in ((tmp_path / "rows.npy", tmp_path / "out"), (source, tmp_path / "closed" / "out")):
        done = as_ordinary_user("convert", *args, "--format", "tfrecord")
        assert done.returncode in (3, 5), done.stderr
        assert len(done.stderr.splitlines()) == 1 and "permission denied" in done.stderr
    source.chmod(0)
    try:
        done = as_ordinary_user("convert", source, tmp_path / "out", "--format", "tfrecord")
        assert done.returncode in (3, 5) and len(done.stderr.splitlines()) == 1, done.stderr
    finally:
        source.chmod(0o755)


# Names


HOSTILE_NAMES = [
    b"new\nline.jpg",
    b"\x1b[31mred\x1b[0m.jpg",
    b"bell\x07.jpg",
    b"not utf-8 \xff\xfe.jpg",
    b"back\\slash\\x41.jpg",
    b"quote\"'`$(id).jpg",
    b"per%cent %s.jpg",
    "snow☃ man 😀.jpg".encode(),
    "right\u202egpj.jpg".encode(),
    "caf\u00e9.jpg".encode(),
    "cafe\u0301.jpg".encode(),
    b"A.JPG",
    b"a.jpg",
    b"a.png",
    b"-rf.jpg",
    b"x" * 251 + b".jpg",
    b" .jpg",
    b"#1.jpg",
]


def by_bytes(root: Path, names: list[bytes], data: Callable[[int], bytes]) -> Path:
    root.mkdir(parents=True)
    for i, name in enumerate(names):
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            file.write(data(i))
    return root


@pytest.mark.fault(27, 28, 29, 87)
@both
@pytest.mark.parametrize("folder", [b"plain", b"cl\nass\xff"])
def test_names_round_trip(tmp_path: Path, capsys: Capture, format: str, folder: bytes) -> None:
    """FAULTS 27 to 29, 87: each file under a key of its own, from which its name follows."""
    from streamkit.sources.listing import path_of

    contents = [encoded(noise(6, 6, seed=i), "JPEG" if i % 2 else "PNG") for i in range(len(HOSTILE_NAMES))]
    by_bytes(tmp_path / "src" / os.fsdecode(folder), HOSTILE_NAMES, contents.__getitem__)
    assert run(tmp_path / "src", tmp_path / "out", format=format) == 0
    lines_of(capsys)
    found = payloads(tmp_path / "out")
    assert {os.fsencode(path_of(key)): data for key, data in found.items()} == {
        folder + b"/" + name: data for name, data in zip(HOSTILE_NAMES, contents, strict=True)
    }
    (name,) = streamkit.open(tmp_path / "out").class_names
    assert os.fsencode(path_of(name)) == folder


def test_names_in_messages_are_one_line(tmp_path: Path, capsys: Capture) -> None:
    source = by_bytes(tmp_path / "src", HOSTILE_NAMES, lambda i: b"no picture")
    write_files(source, {"good.jpg": GOOD})
    for on_bad, rc in (("fail", 3), ("skip", 0)):
        assert run(source, tmp_path / "out", "--on-bad", on_bad) == rc
        lines = lines_of(capsys)  # which looks for control characters
        assert len([line for line in lines if line.startswith(("bad item", "skipped "))]) == len(HOSTILE_NAMES)
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert len(lines) == len(HOSTILE_NAMES) and all(line.isascii() and line.isprintable() for line in lines)


def test_a_hostile_source_path(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "src\n\x1b[2J"
    folder.mkdir()
    assert run(folder, tmp_path / "out") == 3
    (line,) = lines_of(capsys)
    assert "\\n\\x1b[2J" in line
    assert run(tmp_path / os.fsdecode(b"gone\xff\n"), tmp_path / "out") == 2
    (line,) = lines_of(capsys)
    assert "gone" in line


def test_an_output_that_parquet_cannot_name(tmp_path: Path, capsys: Capture) -> None:
    assert run(good_source(tmp_path), tmp_path / os.fsdecode(b"out\xff")) == 2
    (line,) = lines_of(capsys)
    assert "no UTF-8" in line and sorted(os.listdir(tmp_path)) == ["src"]


# Tables


def test_tables_that_are_none(tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "good.npz", x=np.zeros((9, 3)))
    data = (tmp_path / "good.npz").read_bytes()
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["x"] = np.zeros((9, 3))
    whole = (tmp_path / "good.h5").read_bytes()
    cases: dict[str, bytes] = {
        "empty.npy": b"",
        "empty.npz": b"",
        "empty.h5": b"",
        "cut.npz": data[: len(data) // 2],
        "cut.h5": whole[: len(whole) // 2],
        "html.h5": b"<!DOCTYPE html><html>404</html>",
        "lfs.h5": b"version https://git-lfs.github.com/spec/v1\n",
        "text.npz": b"hello",
        "zip.npz": b"PK\x05\x06" + bytes(18),
        "lying.npy": npy("'<f8'", "(9000000000000, 3)"),
        "scalar.npy": npy("'<f8'", "()", bytes(8)),
        "norows.npy": npy("'<f8'", "(0, 3)"),
        "flat.npy": npy("'<f8'", "(3,)", bytes(24)),
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        for format in FORMATS:
            assert run(path, tmp_path / "out", format=format) == 3, name
            (line,) = lines_of(capsys)
            assert name in line
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(38)
def test_a_table_of_objects_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """FAULTS 38: here the refused thing is the source itself and no item, so the code is 9."""
    (tmp_path / "x.npy").write_bytes(pickled())
    assert run(tmp_path / "x.npy", tmp_path / "out") == 9
    (line,) = lines_of(capsys)
    assert "pickle" in line


def test_damaged_rows_of_a_table_are_bad_items(tmp_path: Path, capsys: Capture) -> None:
    values = np.random.default_rng(0).integers(0, 5, (200, 30))
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(20, 30), compression="gzip")
        chunk = file["x"].id.get_chunk_info(3)
    data = bytearray((tmp_path / "t.h5").read_bytes())
    for i in range(20, 60):
        data[chunk.byte_offset + i] ^= 0xFF
    (tmp_path / "t.h5").write_bytes(data)
    assert run(tmp_path / "t.h5", tmp_path / "out", "--compression", "none") == 3
    *listed, last = lines_of(capsys)
    assert [line.split(": ")[0] for line in listed] == sorted(f"bad item t.h5#{i}" for i in range(60, 80))
    assert last.startswith("20 of 200 items")
    assert run(tmp_path / "t.h5", tmp_path / "out", "--compression", "none", "--on-bad", "skip") == 0
    kept = {int(key.partition("#")[2]) for key in columns(tmp_path / "out", "key")}
    assert kept == set(range(200)) - set(range(60, 80))


def test_the_broken_file_of_a_pair_is_named(tmp_path: Path, capsys: Capture) -> None:
    source = tmp_path / "pair"
    source.mkdir()
    np.save(source / "x.npy", np.zeros((5, 3)))
    (source / "y.npy").write_bytes(b"hello")
    assert run(source, tmp_path / "out") == 3
    (line,) = lines_of(capsys)
    assert "y.npy" in line


# Pictures that no encoding holds


def test_pictures_larger_than_their_new_format_allows(tmp_path: Path, capsys: Capture) -> None:
    """WebP ends at 16383 pixels a side, JPEG at 65500; Pillow says so by exceptions of its own."""
    wide = encoded(np.zeros((2, 17_000, 3), np.uint8))
    wider = encoded(np.zeros((2, 66_000, 3), np.uint8))
    source = write_files(tmp_path / "src", {"ok.png": encoded(noise(4, 4)), "wide.png": wide, "wider.png": wider})
    for encode, bad in (("webp", 2), ("jpeg", 1), ("png", 0)):
        assert run(source, tmp_path / encode, "--encode", encode) == (3 if bad else 0)
        assert len([line for line in lines_of(capsys) if line.startswith("bad item")]) == bad


def test_warnings_of_libraries_stay_inside(tmp_path: Path) -> None:
    """Odd EXIF makes Pillow warn, several lines long; the user sees streamkit's words only."""
    good = encoded(picture(8, 8), "TIFF")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    right, wrong = b"\x01\x12\x00\x03\x00\x00\x00\x01", b"\x01\x12\x00\x02\x00\x00\xff\xff"
    odd = encoded(picture(8, 8), "JPEG", exif=exif)
    assert right in odd
    odd = odd.replace(right, wrong)
    ugly = with_exif(encoded(picture(8, 8)), b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\1\0\0\0\6")
    huge = bomb(12_000, 12_000)  # of which Pillow warns
    source = write_files(tmp_path / "src", {"a.tif": good, "b.jpg": odd, "c.png": ugly})
    write_files(source, {"d.png": huge})
    done = cli("convert", source, tmp_path / "out", "--format", "tfrecord", "--workers", "1", "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert len(index_rows(tmp_path / "out")) == 3
    assert all(line.startswith("streamkit: ") for line in done.stderr.splitlines()), done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    source = good_source(tmp_path)
    command = [sys.executable, "-m", "streamkit", "convert", source, tmp_path / "out", "--format", "tfrecord"]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert b"Traceback" not in stderr
