"""Many files at a time: the C code and Python find the same, whatever folders hold and whatever files do meanwhile."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


SUFFIXES = (".jpg", ".npy")


def listed(folder: Path) -> files.Entries:
    """What `folder` itself holds."""
    name, found = next(iter(files.walk(str(folder), SUFFIXES)))
    assert name == "" and isinstance(found, files.Entries)
    assert len(set(found.names)) == len(found.names) == len(found.types) == len(found.sizes)
    return found


def test_entries_are_what_the_system_says(way: str, folder: Path) -> None:
    def facts(path: Path) -> tuple[str, int, int]:
        seen = path.lstat()
        is_wanted = stat.S_ISREG(seen.st_mode) and path.suffix == ".jpg"
        return path.name, stat.S_IFMT(seen.st_mode) >> 12, seen.st_size if is_wanted else 0

    expected = {facts(path) for path in folder.iterdir() if not path.name.startswith(".")}
    assert set(zip(*listed(folder), strict=True)) == expected and len(expected) == len(ODD) + 1 + 6
    assert listed(folder / "empty") == ([], [], [])


@pytest.mark.parametrize("length", [1, 60, 255])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_folder_of_as_many_entries_or_bytes_of_names_as_a_call_tells(
    way: str, tmp_path: Path, length: int, more: int
) -> None:
    """Short names end a call by their number, long ones by their bytes; and folders before and behind are told too."""
    room = files._N_ENTRIES * files._NAME_NBYTES
    n = (files._N_ENTRIES if length == 1 else room // (length + 1)) + more
    for folder in "abc":
        (tmp_path / folder).mkdir()
    for i in range(n):
        (tmp_path / "b" / f"{i}".zfill(length)).touch()
    (tmp_path / "a" / "1.jpg").write_bytes(b"12")
    (tmp_path / "c" / "1.JPG").write_bytes(b"123")
    found = dict(files.walk(str(tmp_path), SUFFIXES))
    assert found["a"] == (["1.jpg"], [files.FILE], [2]) and found["c"] == (["1.JPG"], [files.FILE], [3])
    assert isinstance(found["b"], files.Entries)
    assert sorted(found["b"].names) == sorted(f"{i}".zfill(length) for i in range(n))
    together = files._list(str(tmp_path), SUFFIXES, ["a", "b", "c", "b"])
    assert [len(one.names) for one in together if isinstance(one, files.Entries)] == [1, n, 1, n]


@pytest.mark.parametrize(("place", "number"), [("missing", errno.ENOENT), ("a.jpg", errno.ENOTDIR)])
def test_what_is_no_folder(way: str, folder: Path, place: str, number: int) -> None:
    before, error, after = files._list(str(folder), SUFFIXES, ["inner/deep", place, "inner/deep"])
    assert before == after == (["b.jpg"], [files.FILE], [3])
    assert isinstance(error, OSError) and error.errno == number and error.filename == str(folder / place)


def test_a_walk_meets_every_folder_once_and_follows_no_link(way: str, folder: Path) -> None:
    for i in range(300):  # runs of several folders, and several runs
        (folder / "inner" / f"{i}" / "x").mkdir(parents=True)
    met = [name for name, found in files.walk(str(folder), SUFFIXES) if isinstance(found, files.Entries)]
    many = [f"inner/{i}{below}" for i in range(300) for below in ("", "/x")]
    assert sorted(met) == sorted(["", "empty", "inner", "inner/deep", *many])


def test_a_zero_in_a_path_is_an_error(way: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(ValueError, match="embedded null byte"):
        list(files.read_files([str(tmp_path / "a"), str(tmp_path / "a\0b")]))
    with pytest.raises(ValueError, match="embedded null byte"):
        list(files.walk(f"{tmp_path}\0b", SUFFIXES))


COMING = """
import os, sys
for i in range(10 ** 9):
    for name in sys.argv[2:]:
        os.close(os.open(os.path.join(sys.argv[1], name), os.O_CREAT))
    if i == 0:
        print("ready", flush=True)
    for name in sys.argv[2:]:
        os.unlink(os.path.join(sys.argv[1], name))
"""


def test_files_that_come_and_go_cost_no_other(way: str, tmp_path: Path) -> None:
    """Neither those of no interest, nor pictures that are gone before they are looked at."""
    for i in range(500):
        (tmp_path / f"{i}.jpg").touch()
    names = [f"{name}.{suffix}" for name in "abcd" for suffix in ("log", "jpg", "txt")]
    with another(COMING, str(tmp_path), *names):
        for _ in range(200):
            found = scan(tmp_path)
            assert not found.bad and len([key for key, _ in found.images if key[0].isdigit()]) == 500


def n_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_stays_open(way: str, folder: Path) -> None:
    before = n_open()
    for _ in range(3):
        list(files.walk(str(folder), SUFFIXES))
        list(files.walk(str(folder / "missing"), SUFFIXES))
        list(files.read_files([str(folder / name) for name in ("a.jpg", "missing", "inner", "two words.jpg")]))
    assert n_open() == before


def test_a_scan_is_the_same_either_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = scan(folder)
    monkeypatch.setattr(native, "_library", None)
    python = scan(folder)
    assert compiled.images == python.images and ("inner/deep/b.jpg", 3) in compiled.images
    assert sorted(compiled.bad) == sorted(python.bad) and compiled.others == python.others
    assert sorted(compiled.notices) == sorted(python.notices)


SMALL = files._SMALL_NBYTES
SIZES = (0, 1, 100, SMALL, SMALL + 1, 200_000, *[SMALL] * 9, 3, 0, 20_000, 5, *[SMALL + 1, 7] * 5, *[SMALL + 1] * 40, 9)


def test_files_come_whole_and_in_order(way: str, tmp_path: Path) -> None:
    contents = [bytes([65 + i % 60]) * size for i, size in enumerate(SIZES)]
    contents += [str(i).encode() for i in range(2 * files._N_FILES[1] + 1)]
    paths = [str(tmp_path / f"{i} \\ö") for i in range(len(contents))]
    for path, data in zip(paths, contents, strict=True):
        Path(path).write_bytes(data)
    kept = list(files.read_files(paths))  # parts stay what they are while later ones are read
    assert [bytes(data) for data in kept if not isinstance(data, OSError)] == contents
    assert all(memoryview(data).readonly for data in kept if not isinstance(data, OSError))
    assert list(files.read_files([])) == []


def test_small_files_are_read_many_at_a_call_and_keep_no_empty_room(tmp_path: Path) -> None:
    if not native.available():
        pytest.skip("there is no compiled code here")
    for i in range(1000):
        (tmp_path / f"{i}").write_bytes(b"x" * (1 if i < 900 else 1500))
    kept = list(files.read_files([str(tmp_path / f"{i}") for i in range(1000)]))
    memories = {
        id(memory): memory.nbytes for data in kept if isinstance(data, memoryview) and (memory := data.obj) is not None
    }
    assert len(memories) < 20 and sum(memories.values()) < 2 * (900 + 150_000) + files._ROOM_NBYTES


def test_a_file_that_cannot_be_read_is_an_error_in_its_place(way: str, folder: Path) -> None:
    names = ["a.jpg", "missing", "two words.jpg", "empty", "nowhere.jpg", "around", "link.jpg"]
    found = list(files.read_files([str(folder / name) for name in names]))
    numbers = [data.errno if isinstance(data, OSError) else len(data) for data in found]
    assert numbers == [0, errno.ENOENT, 1, errno.EISDIR, errno.ENOENT, errno.EISDIR, 0]
    missing = [data.filename for data in found if isinstance(data, OSError) and data.errno == errno.ENOENT]
    assert missing == [str(folder / "missing"), str(folder / "nowhere.jpg")]


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


@contextmanager
def another(script: str, *arguments: str) -> Iterator[None]:
    """Another process is at work, and is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def written(tmp_path: Path) -> Iterator[str]:
    """A file that another process makes a byte longer and shorter all the time."""
    path = tmp_path / "written"
    path.write_bytes(b"o" * 8_000)
    with another(WRITER, str(path)):
        yield str(path)


def readings(path: str) -> Iterator[bytes | memoryview | OSError]:
    """A file read again and again, for a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        yield from files.read_files([path] * 4)


@pytest.mark.fault(15)
def test_a_file_that_is_written_to_is_refused_or_of_one_length(way: str, written: str) -> None:
    n_refused = n_whole = 0
    for data in readings(written):
        if isinstance(data, OSError):
            assert data.errno == errno.ESTALE
            n_refused += 1
        else:
            assert len(data) in (8_000, 8_001)
            n_whole += 1
        if n_refused >= 3 and n_whole:
            return
    raise AssertionError(f"{n_refused} readings were refused, {n_whole} were not")


TOUCHER = """
import os, sys
print("ready", flush=True)
for ns in range(10 ** 18, 2 * 10 ** 18):
    os.utime(sys.argv[1], ns=(ns, ns))
"""


@pytest.mark.fault(15)
def test_a_file_of_the_same_length_that_is_written_to_is_refused(way: str, tmp_path: Path) -> None:
    """Its time tells; here it is set by hand, as the system's own clock of files ticks too slowly for a test."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * SMALL)
    with another(TOUCHER, str(path)):
        refused = itertools.islice((data for data in readings(str(path)) if isinstance(data, OSError)), 3)
        assert [error.errno for error in refused] == [errno.ESTALE] * 3


def test_the_bytes_of_a_dataset_are_the_same_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts" / "a").mkdir(parents=True)
    for i in range(50):
        (tmp_path / "texts" / "a" / f"{i}\\.txt").write_text("ä" * i)
    arguments: dict[str, Any] = {"format": "tfrecord", "workers": 1}
    streamkit.convert(tmp_path / "texts", tmp_path / "compiled", **arguments)
    monkeypatch.setattr(native, "_library", None)
    streamkit.convert(tmp_path / "texts", tmp_path / "python", **arguments)
    assert digests(tmp_path / "compiled") == digests(tmp_path / "python")
