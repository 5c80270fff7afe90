"""Many files at a time: the C code and Python find the same, whatever folders hold and whatever files do meanwhile."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from converting import digests

import streamkit
from streamkit import native
from streamkit.sources import files
from streamkit.sources.folder import scan

ODD = (b"a.jpg", b"two words.jpg", b"line\nbreak.jpg", b"back\\slash.jpg", b"no-utf8-\xff.jpg", "größer.jpg".encode())


@pytest.fixture(params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(native, "_library", None)
    elif not native.available():
        pytest.skip("there is no compiled code here")
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of everything that a folder may hold."""
    top = tmp_path / "folder"
    (top / "inner" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    for i, name in enumerate((*ODD, b"n" * 255)):
        (top / os.fsdecode(name)).write_bytes(b"x" * i)
    (top / ".hidden").write_bytes(b"x")
    (top / "inner" / "deep" / "b.jpg").write_bytes(b"xyz")
    (top / "link.jpg").symlink_to("a.jpg")
    (top / "nowhere.jpg").symlink_to("missing")
    (top / "around").symlink_to(top)
    os.mkfifo(top / "pipe.jpg")
    return top


def described(found: files.Entries) -> set[tuple[str, int, int]]:
    assert len(set(found.names)) == len(found.names) == len(found.modes) == len(found.sizes)
    kinds = [stat.S_IFMT(mode) for mode in found.modes.tolist()]
    return set(zip(found.names, kinds, found.sizes.tolist(), strict=True))


def test_entries_are_what_the_system_says(way: str, folder: Path) -> None:
    def facts(path: Path) -> tuple[str, int, int]:
        seen = path.lstat()
        return path.name, stat.S_IFMT(seen.st_mode), 0 if stat.S_ISDIR(seen.st_mode) else seen.st_size

    expected = {facts(path) for path in folder.iterdir() if not path.name.startswith(".")}
    assert described(files.entries(str(folder))) == expected and len(expected) == len(ODD) + 1 + 6
    assert described(files.entries(str(folder / "empty"))) == set()


@pytest.mark.parametrize("n", [files._N_ENTRIES - 1, files._N_ENTRIES, files._N_ENTRIES + 1])
def test_entries_of_more_calls_than_one(way: str, tmp_path: Path, n: int) -> None:
    for i in range(n):
        (tmp_path / f"{i:060}").touch()  # names of these lengths take two calls by themselves
    assert sorted(files.entries(str(tmp_path)).names) == [f"{i:060}" for i in range(n)]


@pytest.mark.parametrize(("place", "number"), [("missing", errno.ENOENT), ("a.jpg", errno.ENOTDIR)])
def test_what_is_no_folder(way: str, folder: Path, place: str, number: int) -> None:
    with pytest.raises(OSError) as caught:
        files.entries(str(folder / place))
    assert caught.value.errno == number and caught.value.filename == str(folder / place)


def test_a_walk_meets_every_folder_once_and_follows_no_link(way: str, folder: Path) -> None:
    met = dict(files.walk(str(folder)))
    assert sorted(met) == ["", "empty", "inner", "inner/deep"]
    deep = met["inner/deep"]
    assert isinstance(deep, files.Entries) and deep.names == ["b.jpg"]
    ((name, error),) = files.walk(str(folder / "missing"))
    assert name == "" and isinstance(error, OSError)


def test_a_scan_is_the_same_either_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = scan(folder)
    monkeypatch.setattr(native, "_library", None)
    python = scan(folder)
    assert compiled.images == python.images and ("inner/deep/b.jpg", 3) in compiled.images
    assert sorted(compiled.bad) == sorted(python.bad) and compiled.others == python.others
    assert sorted(compiled.notices) == sorted(python.notices)


SIZES = (0, 1, 100, files._SMALL_NBYTES, files._SMALL_NBYTES + 1, 200_000, *[files._SMALL_NBYTES] * 9, 3, 0, 20_000, 5)


def test_files_come_whole_and_in_order(way: str, tmp_path: Path) -> None:
    contents = [bytes([65 + i]) * size for i, size in enumerate(SIZES)]
    contents += [str(i).encode() for i in range(2 * files._N_FILES[1] + 1)]
    paths = [str(tmp_path / f"{i} \\ö") for i in range(len(contents))]
    for path, data in zip(paths, contents, strict=True):
        Path(path).write_bytes(data)
    kept = list(files.read_files(paths))  # parts stay what they are while later ones are read
    assert [bytes(data) for data in kept] == contents  # type: ignore[arg-type]
    assert list(files.read_files([])) == [] and [bytes(x) for x in files.read_files(paths[:1])] == [b""]  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_is_an_error_in_its_place(way: str, folder: Path) -> None:
    names = ["a.jpg", "missing", "two words.jpg", "empty", "nowhere.jpg", "around", "link.jpg"]
    found = list(files.read_files([str(folder / name) for name in names]))
    numbers = [data.errno if isinstance(data, OSError) else len(data) for data in found]
    assert numbers == [0, errno.ENOENT, 1, errno.EISDIR, errno.ENOENT, errno.EISDIR, 0]


def test_a_file_of_another_length_than_it_says_is_refused(way: str) -> None:
    """The system's own: one that is said to be empty and is not, and one said to be longer than it is."""
    odd = [path for path in ("/proc/self/status", "/sys/kernel/uevent_seqnum") if os.access(path, os.R_OK)]
    assert odd
    for data in files.read_files([*odd, *odd]):
        assert isinstance(data, OSError) and data.errno == errno.ESTALE and "changed" in str(data)


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
old, new = b"o" * 8_000, b"n" * 8_001
print("ready", flush=True)
while True:
    os.ftruncate(fd, len(new)), os.pwrite(fd, new, 0), os.pwrite(fd, old, 0), os.ftruncate(fd, len(old))
"""


@pytest.fixture
def written(tmp_path: Path) -> Iterator[str]:
    """A file that another process makes a byte longer and shorter all the time."""
    path = tmp_path / "written"
    path.write_bytes(b"o" * 8_000)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield str(path)
        process.kill()


@pytest.mark.fault(15)
def test_a_file_that_is_written_to_is_refused_or_of_one_length(way: str, written: str) -> None:
    refused = 0
    for _ in range(5000):
        for data in files.read_files([written, written]):
            if isinstance(data, OSError):
                assert data.errno == errno.ESTALE
                refused += 1
            else:
                assert len(data) in (8_000, 8_001)
        if refused > 20:
            return
    raise AssertionError(f"{refused} of 10,000 readings were refused")


def test_the_bytes_of_a_dataset_are_the_same_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts" / "a").mkdir(parents=True)
    for i in range(50):
        (tmp_path / "texts" / "a" / f"{i}\\.txt").write_text("ä" * i)
    arguments: dict[str, Any] = {"format": "tfrecord", "workers": 1}
    streamkit.convert(tmp_path / "texts", tmp_path / "compiled", **arguments)
    monkeypatch.setattr(native, "_library", None)
    streamkit.convert(tmp_path / "texts", tmp_path / "python", **arguments)
    assert digests(tmp_path / "compiled") == digests(tmp_path / "python")
