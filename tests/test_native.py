"""The C code and its Python twin bring the same bytes and find the same damage; a cut mapped file is an error, no crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit import native
from streamkit.mapped import Maps
from streamkit.storage import Files

DATA = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)

needs_compiler = pytest.mark.skipif(not native.available(), reason="built without a C compiler")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "data.bin"
    path.write_bytes(DATA.tobytes())
    return path


def ranges(parts: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    offsets = np.array([a for a, _ in parts], np.int64)
    lengths = np.array([n for _, n in parts], np.int64)
    places = np.cumsum(lengths) - lengths
    crcs = np.array([crc32c(DATA[a : a + n].tobytes()) for a, n in parts], np.uint32)
    return offsets, lengths, places, crcs


def by_c(fd: int, *arguments: object) -> None:
    native.read(np.full(len(arguments[0]), fd), *arguments)  # type: ignore[arg-type]


def by_python(fd: int, offsets, lengths, memory, places, crcs) -> None:  # type: ignore[no-untyped-def]
    native._read([fd] * len(offsets), offsets.tolist(), lengths.tolist(), memory, places.tolist(), crcs.tolist())


PARTS = st.lists(st.tuples(st.integers(0, 80_000), st.integers(0, 20_000)), min_size=1, max_size=20).map(sorted)


@settings(deadline=None, max_examples=60)
@given(parts=PARTS)
def test_both_bring_the_bytes(file: Path, parts: list[tuple[int, int]]) -> None:
    offsets, lengths, places, crcs = ranges(parts)
    expected = b"".join(DATA[a : a + n].tobytes() for a, n in parts)
    fd = os.open(file, os.O_RDONLY)
    try:
        for way in (by_c, by_python):
            memory = np.zeros(int(lengths.sum()), np.uint8)
            way(fd, offsets, lengths, memory, places, crcs)
            assert memory.tobytes() == expected
        if native.available():
            memory = np.zeros(int(lengths.sum()), np.uint8)
            maps = Maps(Files(file.parent), [file.name])
            maps.read(np.zeros(len(parts), np.int64), offsets, lengths, memory, places, crcs)
            assert memory.tobytes() == expected
    finally:
        os.close(fd)


@pytest.mark.parametrize("way", [by_c, by_python])
@pytest.mark.parametrize("bad", [0, 3, 6])
def test_wrong_crc_names_the_range(file: Path, way, bad: int) -> None:  # type: ignore[no-untyped-def]
    parts = [(i * 5000, 4999 + (i % 2)) for i in range(7)]  # some touch, some do not
    offsets, lengths, places, crcs = ranges(parts)
    crcs[bad] ^= 1
    fd = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(native.BadRange, match=f"the index says {crcs[bad]:08x}") as caught:
            way(fd, offsets, lengths, np.zeros(int(lengths.sum()), np.uint8), places, crcs)
        assert caught.value.i == bad
    finally:
        os.close(fd)


@pytest.mark.parametrize("way", [by_c, by_python])
def test_end_of_file_names_the_range(file: Path, way) -> None:  # type: ignore[no-untyped-def]
    offsets, lengths = np.array([0, 99_990]), np.array([10, 11])
    fd = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(native.BadRange, match="ends") as caught:
            way(
                fd,
                offsets,
                lengths,
                np.zeros(21, np.uint8),
                np.array([0, 10]),
                np.array([0, 0], np.uint32) + ranges([(0, 10)])[3],
            )
        assert caught.value.i == 1
    finally:
        os.close(fd)


def test_nothing_is_written_outside_the_memory(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        for places in ([-1], [1]):
            with pytest.raises(ValueError, match="leave the memory"):
                native.read(
                    np.array([fd]), np.array([0]), np.array([10]), np.zeros(10, np.uint8), np.array(places), None
                )
    finally:
        os.close(fd)


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(start=st.integers(0, 70_000), length=st.integers(0, 30_000))
def test_crc_of_the_c_code_is_crc32c(file: Path, start: int, length: int) -> None:
    offsets, lengths, places, crcs = ranges([(start, length)])
    fd = os.open(file, os.O_RDONLY)
    try:
        native.read(np.array([fd]), offsets, lengths, np.zeros(length, np.uint8), places, crcs)
    finally:
        os.close(fd)


@needs_compiler
@pytest.mark.parametrize("length", [4096, 4096 + 64, 5000])
@pytest.mark.parametrize("bad", [None, 0, 199])
def test_a_large_batch_goes_past_the_caches_unchanged(file: Path, length: int, bad: int | None) -> None:
    offsets, lengths, places, crcs = ranges([(37 * i % 90_000, length) for i in range(400)])  # more than a megabyte
    if bad is not None:
        crcs[bad] ^= 1
    memory = np.zeros(int(lengths.sum()) + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :][: int(lengths.sum())]  # aligned, as the loader's buffers are
    maps = Maps(Files(file.parent), [file.name])
    try:
        maps.read(np.zeros(400, np.int64), offsets, lengths, memory, places, crcs)
    except native.BadRange as error:
        assert error.i == bad
    else:
        assert bad is None
        assert memory.tobytes() == b"".join(DATA[a : a + length].tobytes() for a in offsets)


@needs_compiler
def test_a_library_of_another_source_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native._load() is not None
    monkeypatch.setattr(native, "_ABI", native._ABI + 1)
    assert native._load() is None


_CUT = """
import os, sys
import numpy as np
from streamkit import native
from streamkit.mapped import Maps
from streamkit.storage import Files
maps = Maps(Files(sys.argv[1]), ["data.bin"])
os.truncate(os.path.join(sys.argv[1], "data.bin"), 4096)
memory = np.zeros(10, np.uint8)
maps.read(np.zeros(1, np.int64), np.array([0]), np.array([10]), memory, np.zeros(1, np.int64), None)
try:
    maps.read(np.zeros(1, np.int64), np.array([90_000]), np.array([10]), memory, np.zeros(1, np.int64), None)
except native.BadRange as error:
    print("caught", error.i, error)
"""


@needs_compiler
@pytest.mark.parametrize("reports", [False, True])
def test_a_mapped_file_that_is_cut_is_an_error(tmp_path: Path, reports: bool) -> None:
    """Also where something else took the signal in the meantime."""
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())
    script = _CUT.replace("os.truncate(", "import faulthandler; faulthandler.enable()\nos.truncate(", int(reports))
    found = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("caught 0 the file was cut")


@needs_compiler
def test_a_bus_error_of_another_ends_as_it_would_have(tmp_path: Path) -> None:
    """Reported once, not for ever, where faulthandler came between two of our mappings."""
    (tmp_path / "data.bin").write_bytes(DATA.tobytes())
    again = 'faulthandler.enable(); two = Maps(Files(sys.argv[1]), ["data.bin"]); two.read'
    script = (
        _CUT.replace("maps.read", f"import faulthandler; {again}", 1)
        + """
import mmap
with open(os.path.join(sys.argv[1], "data.bin"), "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
mapped[0]
"""
    )
    found = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert found.returncode == -signal.SIGBUS
    assert found.stderr.count("Fatal Python error: Bus error") == 1


@needs_compiler
@given(
    st.integers(0, 13), st.lists(st.integers(0, 30), min_size=1, max_size=40), st.sampled_from([1, 2, 3, 4, 8, 16, 100])
)
def test_both_put_rows_together(n: int, starts: list[int], run_nbytes: int) -> None:
    random = np.random.default_rng(n)
    sources = [random.integers(0, 256, 64 * run_nbytes, np.uint8) for _ in range(3)]
    which, offsets = random.integers(0, 3, n), random.integers(0, 33, n) * run_nbytes
    places = np.array(starts, np.int32) * run_nbytes
    expected = [
        [sources[w][o + p : o + p + run_nbytes] for p in places.tolist()] for w, o in zip(which, offsets, strict=True)
    ]
    made = []
    for library in (native._library, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "_library", library)
            memory = np.zeros((n, len(places) * run_nbytes), np.uint8)
            native.gather(sources, which, offsets, places, run_nbytes, memory)
            made.append(memory.tobytes())
    assert made[0] == made[1] == np.array(expected, np.uint8).tobytes()


@needs_compiler
@given(
    n=st.integers(0, 9),
    tiles=st.integers(1, 6),
    width=st.sampled_from([2, 4, 8]),
    planes=st.sampled_from([1, 2, 3, 4]),
    odd=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_both_put_pixels_together_of_chunks_that_hold_one_colour_each(
    n: int, tiles: int, width: int, planes: int, odd: int | None
) -> None:
    """Runs of one byte from several planes in turn, as h5py's guess lays pictures out; `odd`: but for one of them."""
    random = np.random.default_rng(n)
    tile, column, plane = np.indices((tiles, width, planes)).reshape(3, -1)
    starts = ((plane * tiles + tile) * 50 + column).astype(np.int32)
    if odd is not None:
        starts[odd % len(starts)] += 1
    source = random.integers(0, 256, 50 * tiles * planes + 600, np.uint8)
    offsets = random.integers(0, 500, n)
    expected = source[offsets[:, None] + starts]
    for library in (native._library, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "_library", library)
            memory = np.zeros((n, len(starts) + 5), np.uint8)[:, 5:]
            native.gather([source], np.zeros(n, np.int64), offsets, starts, 1, memory)
            assert memory.tobytes() == expected.tobytes()


def test_rows_do_not_leave_their_source() -> None:
    source, places = np.zeros(8, np.uint8), np.array([0, 4], np.int32)
    for offset, n_rows in ((1, 1), (-4, 1), (0, 2)):
        memory = np.zeros((n_rows, 8), np.uint8)
        with pytest.raises(ValueError, match="leave the memory"):
            native.gather([source], np.zeros(1, np.int64), np.array([offset]), places, 4, memory)
