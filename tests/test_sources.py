"""Sources: every file name becomes a key and back, and no header is believed before it is checked."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from converting import encoded, picture, write_files
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from streamkit.errors import RefusedError, SourceError, StreamkitError
from streamkit.sources import open_source
from streamkit.sources.listing import RowKeys, key_of, path_of
from streamkit.sources.npy import BadNpy, load, memory_map, open_header, read_header

# Keys

FILE_NAMES = st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name)


@given(name=FILE_NAMES)
@example(name=b"a\\x41.jpg")
@example(name=b"\\")
@example(name=b"\\\\xff")
@example(name=b"\xff\\x41")
@example(name=b"\\\xff")
@example(name="é\n\x1b[31m.jpg".encode())
def test_every_file_name_round_trips(name: bytes) -> None:
    path = os.fsdecode(name)
    key = key_of(path)
    key.encode()  # a key is always text
    assert path_of(key) == path
    assert os.fsencode(path_of(key)) == name


@given(a=FILE_NAMES, b=FILE_NAMES)
@example(a=b"\xff", b=b"\\xff")
def test_different_names_have_different_keys(a: bytes, b: bytes) -> None:
    assert (key_of(os.fsdecode(a)) == key_of(os.fsdecode(b))) == (a == b)


@given(n=st.integers(0, 30), start=st.integers(-40, 40), stop=st.integers(-40, 40))
def test_row_keys_are_a_sequence(n: int, start: int, stop: int) -> None:
    keys = RowKeys("t.npy", n)
    expected = [f"t.npy#{i}" for i in range(n)]
    assert list(keys) == expected
    assert keys[start:stop] == expected[start:stop]
    if -n <= start < n:
        assert keys[start] == expected[start]
    else:
        with pytest.raises(IndexError):
            keys[start]


# .npy

NUMBERS = (
    npst.boolean_dtypes()
    | npst.integer_dtypes()
    | npst.floating_dtypes(sizes=(16, 32, 64))
    | npst.complex_number_dtypes()
)


def npy_bytes(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def npy(descr: str, shape: str, data: bytes = b"", version: bytes = b"\x01\x00", order: str = "False") -> bytes:
    """A .npy with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


@given(values=npst.arrays(NUMBERS, npst.array_shapes(min_dims=0, min_side=0)), fortran=st.booleans())
def test_npy_files_load_as_numpy_loads_them(tmp_path: Path, values: np.ndarray, fortran: bool) -> None:
    values = np.asfortranarray(values) if fortran else values
    path = tmp_path / "x.npy"
    np.save(path, values)
    for found in (load(path), memory_map(path, open_header(path))):
        assert found.dtype == values.dtype
        assert found.shape == values.shape
        np.testing.assert_array_equal(found, values)


@pytest.mark.fault(38, 39)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not a .npy file"),
        (npy("'<f8'", "(1000000000000,)"), "needs 8000000000000 bytes, the file has 0"),
        (npy("'<f8'", "(99999999999, 99999999999, 99999999999)"), "the file has 0"),
        (npy("'<f4'", "(-1,)"), "negative"),
        (npy("'<f4'", "(2,)", b"1234567"), "needs 8 bytes, the file has 7"),
        (npy("'<f4'", "(2,)", b"123456789"), "needs 8 bytes, the file has 9"),
        (npy("'<f4'", "(1, 1, 1, 1, 1, 1, 1, 1, 1)", b"1234"), "over 8 axes"),
        (npy("'|O'", "(1,)", b"12345678"), "refused"),
        (npy("[('a', '|O'), ('b', '<f4')]", "(1,)", b"1" * 12), "refused"),
        (npy("[('a', '<f4')]", "(1,)", b"1234"), "not plain numbers"),
        (npy("'<U3'", "(1,)", b"1" * 12), "not plain numbers"),
        (npy("'<M8[s]'", "(1,)", b"1" * 8), "not plain numbers"),
        (npy("'<f4'", "(1,)", b"1234", version=b"\x03\x00"), "newer than 2.0"),
        (npy("'<f4'", "(1,)", b"1234", version=b"\x09\x00"), "version"),
        (npy("'<f4'", "__import__('os').getcwd()"), "not a .npy file"),
        (npy("'<f4'", "(" * 300 + "1" + ")" * 300), "not a .npy file"),
        (npy("'<f4'", "-" * 4000 + "1"), "not a .npy file"),
        (npy("'<f4'", "(1, 'a')"), "not a .npy file"),
        (npy("'<f4'", "(1,", b""), "not a .npy file"),
        (npy("'no such'", "(1,)"), "not a .npy file"),
        (npy("'<f4'", "(1,)" + " " * 12_000, b"1234"), "not a .npy file"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers_that_lie(data: bytes, reason: str) -> None:
    """FAULTS 38 and 39: refused before anything is allocated."""
    with pytest.raises(BadNpy, match=reason) as caught:
        read_header(data[:10_128], len(data))
    assert caught.value.refused == (reason == "refused")


@given(data=st.binary(max_size=60), start=st.integers(0, 128), values=npst.arrays("<f4", (3,)))
def test_damaged_headers_raise_bad_npy_and_nothing_else(data: bytes, start: int, values: np.ndarray) -> None:
    good = npy_bytes(values)
    harmed = good[:start] + data + good[start + len(data) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of headers that Python 2 wrote
        try:
            header = read_header(harmed[:10_128], len(harmed))
        except BadNpy:
            return
    assert header.offset + header.nbytes == len(harmed)


# Tables that are damaged or odd


def table_files(folder: Path) -> dict[str, bytes]:
    x = np.arange(600, dtype=np.float32).reshape(100, 6)
    np.savez(folder / "stored.npz", x=x, y=np.arange(100))
    np.savez_compressed(folder / "deflated.npz", x=x, y=np.arange(100))
    with h5py.File(folder / "chunked.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(10, 6), compression="gzip")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["stored.npz", "deflated.npz", "chunked.h5"])
def test_damaged_tables_raise_streamkit_errors_and_nothing_else(tmp_path: Path, name: str) -> None:
    """Cut at many lengths, flipped in many bytes; rows that can be opened have the right shape, others are bad items."""
    good = table_files(tmp_path)[name]
    path = tmp_path / name
    harmed = [good[:n] for n in range(0, len(good), max(1, len(good) // 40))]
    places = [*range(0, len(good), max(1, len(good) // 250)), *range(max(0, len(good) - 150), len(good))]
    harmed += [good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :] for i in places]
    for data in harmed:
        path.write_bytes(data)
        try:
            source = open_source(path)
            listing = source.listing()
            for sample in source.samples(listing.keys[:]):
                assert isinstance(sample, tuple)
        except StreamkitError as error:
            assert "\n" not in str(error)
        except MemoryError:
            pytest.fail("sizes are checked before they are allocated")


def test_an_encrypted_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((3, 4)))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.npz"):
        open_source(tmp_path / "x.npz").listing()


def test_a_folder_of_tables_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", x=np.zeros((3, 2)))
    with pytest.raises(SourceError, match=r"no readable item: 1 x \.npz\. Give a file instead of its folder"):
        open_source(tmp_path)


def test_objects_in_a_table_are_refused(tmp_path: Path) -> None:
    values = np.array([{"a": 1}, None], object)
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=values)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(RefusedError, match="pickle"):
            open_source(tmp_path / name).listing()


@pytest.mark.fault(82)
def test_only_plain_datasets_of_the_file_itself(tmp_path: Path) -> None:
    """FAULTS 82: links, references, text and scalars are left with a notice; a group that holds itself ends."""
    x = np.arange(12.0).reshape(4, 3)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = x
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["x"] = x
        file["deep/er/y"] = x + 1
        file["soft"] = h5py.SoftLink("/x")
        file["external"] = h5py.ExternalLink("other.h5", "/x")
        layout = h5py.VirtualLayout((4, 3), np.float64)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4, 3))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("beside", (4, 3), "f8", external=[(str(tmp_path / "raw.bin"), 0, 96)])
        file["text"] = ["a", "b", "c", "d"]
        file["scalar"] = 3.0
        file["reference"] = np.array([file["x"].ref] * 4, h5py.ref_dtype)
        file["deep/loop"] = file["/"]
        file["compound"] = np.zeros(4, [("a", "f4"), ("b", "i4")])
    listing = open_source(tmp_path / "t.h5").listing()
    assert [field.name for field in listing.schema] == ["deep_er_y", "x"]
    told = " ".join(listing.notices)
    for name in ("soft", "external", "virtual", "beside", "text", "scalar", "reference", "compound"):
        assert name in told
    first = next(iter(open_source(tmp_path / "t.h5").samples([listing.keys[1]])))
    np.testing.assert_array_equal(first.payloads["x"], x[1])


# Folders


def test_what_a_folder_source_is(tmp_path: Path) -> None:
    jpeg = encoded(picture(8, 8), "JPEG")
    root = write_files(
        tmp_path,
        {
            "a/b/1.jpg": jpeg,
            "a/2.JPEG": jpeg,
            "c/3.Png": encoded(picture(8, 8)),
            ".hidden/4.jpg": jpeg,
            "c/.5.jpg": jpeg,
            "notes.txt": b"hello",
        },
    )
    listing = open_source(root).listing()
    assert listing.keys == ["a/2.JPEG", "a/b/1.jpg", "c/3.Png"]
    assert listing.schema.label is not None
    assert listing.schema.label.class_names == ("a", "a/b", "c")
    assert listing.columns["label"].tolist() == [0, 1, 2]
    assert listing.notices == ("1 other files were left (.txt)",)
    assert not listing.bad


@pytest.mark.fault(23, 24, 25)
def test_links(tmp_path: Path) -> None:
    """FAULTS 23 to 25."""
    jpeg = encoded(picture(8, 8), "JPEG")
    write_files(tmp_path, {"src/real.jpg": jpeg, "src2/near.jpg": jpeg, "outside.jpg": jpeg, "src/sub/x.jpg": jpeg})
    root = tmp_path / "src"
    (root / "inside.jpg").symlink_to("real.jpg")
    (root / "dangling.jpg").symlink_to("nothing.jpg")
    (root / "out.jpg").symlink_to("../outside.jpg")
    (root / "prefix.jpg").symlink_to("../src2/near.jpg")
    (root / "absolute.jpg").symlink_to("/etc/passwd")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "folder").symlink_to(tmp_path / "src2")
    (root / "up").symlink_to("..")
    for name in ("real.jpg", "sub"):
        assert (root / name).exists()
    (root / "sub/x.jpg").unlink()
    (root / "sub").rmdir()
    listing = open_source(root).listing()
    assert listing.keys == ["inside.jpg", "real.jpg"]
    bad = {item.key: item for item in listing.bad}
    assert set(bad) == {"dangling.jpg", "out.jpg", "prefix.jpg", "absolute.jpg", "loop.jpg", "folder", "up"}
    leaving = {"out.jpg", "prefix.jpg", "absolute.jpg", "folder", "up"}
    assert {key for key, item in bad.items() if item.refused} == leaving


def test_an_empty_folder_is_no_class_and_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.jpg": encoded(picture(8, 8), "JPEG")})
    (tmp_path / "b").mkdir()
    listing = open_source(tmp_path).listing()
    assert listing.schema.label.class_names == ("a",)
    assert listing.notices == ("empty folders are no classes: b",)


def test_a_root_that_is_a_link_itself(tmp_path: Path) -> None:
    write_files(tmp_path / "real", {"1.jpg": encoded(picture(8, 8), "JPEG")})
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "2.jpg").symlink_to("1.jpg")
    assert open_source(tmp_path / "link").listing().keys == ["1.jpg", "2.jpg"]


@pytest.mark.fault(35)
def test_arrays_must_agree_in_dtype_and_axes(tmp_path: Path) -> None:
    """FAULTS 35: both file names are in the reason. Byte order and Fortran order are no difference."""
    np.save(tmp_path / "a.npy", np.zeros((2, 3), "<f4"))
    np.save(tmp_path / "b.npy", np.asfortranarray(np.zeros((5, 3), ">f4")))
    np.save(tmp_path / "c.npy", np.zeros((2, 3), "<f8"))
    np.save(tmp_path / "d.npy", np.zeros((2, 3, 1), "<f4"))
    listing = open_source(tmp_path).listing()
    assert listing.keys == ["a.npy", "b.npy"]
    assert listing.schema["array"].shape == (None, 3)
    assert [item.key for item in listing.bad] == ["c.npy", "d.npy"]
    assert all("a.npy" in item.reason for item in listing.bad)


def test_split_folders_become_splits(tmp_path: Path) -> None:
    jpeg = encoded(picture(8, 8), "JPEG")
    files = {"Train/cat/1.jpg": jpeg, "Train/dog/1.jpg": jpeg, "validation/dog/2.jpg": jpeg, "test/cat/3.jpg": jpeg}
    listing = open_source(write_files(tmp_path, {**files, "README.md": b"x"})).listing()
    assert dict(zip(listing.split_names, "abc", strict=True)).keys() == {"train", "val", "test"}
    found = {key: listing.split_names[i] for key, i in zip(listing.keys, listing.split_of, strict=True)}  # type: ignore[arg-type]
    assert found == {
        "Train/cat/1.jpg": "train",
        "Train/dog/1.jpg": "train",
        "validation/dog/2.jpg": "val",
        "test/cat/3.jpg": "test",
    }
    names = listing.schema.label.class_names  # type: ignore[union-attr]
    labels = dict(zip(listing.keys, listing.columns["label"].tolist(), strict=True))
    assert {key: names[i] for key, i in labels.items()} == {key: key.split("/")[1] for key in found}  # type: ignore[index]


def test_one_odd_folder_makes_them_classes(tmp_path: Path) -> None:
    jpeg = encoded(picture(8, 8), "JPEG")
    listing = open_source(
        write_files(tmp_path, {"train/1.jpg": jpeg, "val/2.jpg": jpeg, "extra/3.jpg": jpeg})
    ).listing()
    assert listing.split_of is None
    assert listing.schema.label.class_names == ("extra", "train", "val")  # type: ignore[union-attr]


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    jpeg = encoded(picture(8, 8), "JPEG")
    write_files(tmp_path, {"train/1.jpg": jpeg, "val/2.jpg": jpeg, "valid/3.jpg": jpeg})
    with pytest.raises(SourceError, match="same split"):
        open_source(tmp_path)
