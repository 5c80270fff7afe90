"""Conversion: what goes in comes out, whatever the format, the encoding, the number of workers, and whatever gets killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
from converting import (
    EXTENSION,
    ROOT,
    arrays,
    assert_same_picture,
    both,
    class_folders,
    cli,
    columns,
    digests,
    encoded,
    index_rows,
    noise,
    one_quickly,
    payloads,
    picture,
    pillow,
    psnr,
    python,
    rotated,
    saved,
    write_files,
)

import streamkit
from streamkit.cli import main
from streamkit.codecs import image
from streamkit.convert import Report
from streamkit.errors import BusyError, DamagedError, RefusedError, SourceError, StreamkitError, UsageError


def convert(source: Path, out: Path, format: str, **options: Any) -> Report:
    return streamkit.convert(source, out, format=format, **{"workers": 1, **options})


def pixels_of(out: Path, split: str = "train") -> dict[str, np.ndarray]:
    """key -> pixels as a reader sees them, encoded or raw."""
    if streamkit.open(out).schema["image"].is_encoded_image:
        return {key: pillow(data) for key, data in payloads(out, split).items()}
    return arrays(out, split, "image")


def without_alpha(pixels: np.ndarray, channels: int) -> np.ndarray:
    return np.broadcast_to(pixels[:, :, :3], (*pixels.shape[:2], channels))


# Pictures


@both
def test_keep_passes_every_byte(photos: Path, tmp_path: Path, format: str) -> None:
    """EXIF orientation stays in the bytes; the index says the upright size."""
    report = convert(photos, tmp_path / "out", format)
    stored = payloads(tmp_path / "out")
    assert stored == {path.relative_to(photos).as_posix(): path.read_bytes() for path in photos.rglob("*.*")}
    for row in index_rows(tmp_path / "out"):
        pixels = pillow(stored[row["key"]])
        assert (row["height"], row["width"], row["channels"]) == pixels.shape
    orientations = columns(tmp_path / "out", "orientation")
    assert {key for key, value in orientations.items() if value != 1} == {"cat/turned.jpg", "dog/mirrored.jpg"}
    assert report.manifest is not None
    assert report.manifest.statistics["class_counts"] == {"train": {"cat": 4, "dog": 4}}


@both
@pytest.mark.parametrize("encode", ["png", "webp", "raw"])
@pytest.mark.parametrize("resize", [None, 8, "10x14"])
def test_lossless_encodings(photos: Path, tmp_path: Path, format: str, encode: str, resize: Any) -> None:
    out = tmp_path / "out"
    convert(photos, out, format, encode=encode, resize=resize)
    found = pixels_of(out)
    assert len(found) == 8
    for row in index_rows(out):
        original = pillow((photos / row["key"]).read_bytes())
        pixels = found[row["key"]]
        assert (row["height"], row["width"]) == pixels.shape[:2]
        if resize is None:
            assert_same_picture(pixels, without_alpha(original, pixels.shape[2]), row["key"])
        elif resize == 8:
            assert min(pixels.shape[:2]) == min(8, *original.shape[:2])
            assert abs(pixels.shape[0] / pixels.shape[1] - original.shape[0] / original.shape[1]) < 0.15
        else:
            assert pixels.shape[:2] == (10, 14)
    assert "orientation" not in index_rows(out)[0]  # every picture is upright now


@both
@pytest.mark.parametrize("encode", ["jpeg:80", "jpeg", "webp:80"])
def test_lossy_encodings(tmp_path: Path, format: str, encode: str) -> None:
    originals = {f"{i}.png": picture(40, 56, 1 + 2 * (i % 2), seed=i) for i in range(4)}
    source = write_files(tmp_path / "src", {name: encoded(pixels) for name, pixels in originals.items()})
    convert(source, tmp_path / "out", format, encode=encode)
    for key, pixels in pixels_of(tmp_path / "out").items():
        assert psnr(pixels, without_alpha(originals[key], pixels.shape[2])) > 32
    assert streamkit.open(tmp_path / "out").schema["image"].encoding == encode.partition(":")[0]


@both
def test_keep_with_resize_stays_in_kind(photos: Path, tmp_path: Path, format: str) -> None:
    """DESIGN 4: JPEG becomes jpeg:90, everything else png."""
    convert(photos, tmp_path / "out", format, resize=16)
    for key, data in payloads(tmp_path / "out").items():
        info = image.probe(data)
        assert info.format == ("jpeg" if key.endswith(".jpg") else "png")
        original = pillow((photos / key).read_bytes())
        assert min(info.height, info.width) == min(16, *original.shape[:2])
        assert info.orientation == 1
        assert (info.height > info.width) == (original.shape[0] > original.shape[1])


def test_resizing_is_faithful(tmp_path: Path) -> None:
    """Against Pillow's antialiased filter; a picture is never enlarged by a short side."""
    originals = {f"{h}x{w}.png": picture(h, w, 3, seed=h) for h, w in ((200, 150), (64, 300), (33, 40))}
    source = write_files(tmp_path / "src", {name: encoded(pixels) for name, pixels in originals.items()})
    convert(source, tmp_path / "out", "tfrecord", encode="png", resize=40)
    for key, pixels in pixels_of(tmp_path / "out").items():
        height, width = originals[key].shape[:2]
        scale = min(1.0, 40 / min(height, width))
        assert pixels.shape[:2] == (round(height * scale), round(width * scale))
        expected = PIL.Image.fromarray(originals[key]).resize(pixels.shape[1::-1], PIL.Image.Resampling.BILINEAR)
        assert psnr(pixels, np.asarray(expected)) > 30


@both
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, format: str, orientation: int) -> None:
    data = rotated(picture(20, 30, seed=orientation), orientation)
    source = write_files(tmp_path / "src", {"a.jpg": data})
    convert(source, tmp_path / "keep", format)
    convert(source, tmp_path / "png", format, encode="png")
    assert payloads(tmp_path / "keep") == {"a.jpg": data}
    expected = pillow(data)
    for out in ("keep", "png"):
        row = index_rows(tmp_path / out)[0]
        assert (row["height"], row["width"]) == expected.shape[:2]
    assert_same_picture(pixels_of(tmp_path / "png")["a.jpg"], expected, "a.jpg")


ODD_MODES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "cmyk.tif": (saved(PIL.Image.new("CMYK", (4, 4), (0, 51, 102, 51)), "TIFF"), (204, 163, 122)),
    "palette.gif": (saved(PIL.Image.new("RGB", (4, 4), (10, 20, 30)).quantize(2), "GIF"), (10, 20, 30)),
    "alpha.png": (encoded(np.full((4, 4, 4), (9, 8, 7, 0), np.uint8)), (9, 8, 7, 0)),
    "sixteen.png": (saved(PIL.Image.fromarray(np.full((4, 4), 0xABCD, np.uint16)), "PNG"), (0xAB,)),
    "bilevel.bmp": (saved(PIL.Image.new("1", (4, 4), 1), "BMP"), (255,)),
    "gray.webp": (saved(PIL.Image.new("RGB", (4, 4), (5, 6, 7)), "WEBP", lossless=True), (5, 6, 7)),
}


@pytest.mark.fault(30, 31, 32, 33, 34)
@pytest.mark.parametrize("name", ODD_MODES)
def test_odd_modes_have_one_rule_each(tmp_path: Path, name: str) -> None:
    """FAULTS 30 to 34: re-encoded as png and as raw pixels, the golden pixel is the same."""
    data, golden = ODD_MODES[name]
    source = write_files(tmp_path / "src", {name: data})
    for encode in ("png", "raw"):
        convert(source, tmp_path / encode, "hdf5", encode=encode)
        assert tuple(pixels_of(tmp_path / encode)[name][0, 0].tolist()) == golden
        assert index_rows(tmp_path / encode)[0]["channels"] == len(golden)
    convert(source, tmp_path / "keep", "hdf5")
    assert payloads(tmp_path / "keep") == {name: data}


def test_cmyk_jpeg(tmp_path: Path) -> None:
    cmyk = PIL.Image.fromarray(picture(32, 40, seed=2)).convert("CMYK")
    data = saved(cmyk, "JPEG", quality=95)
    source = write_files(tmp_path / "src", {"cmyk.jpg": data})
    convert(source, tmp_path / "keep", "tfrecord")
    assert index_rows(tmp_path / "keep")[0]["channels"] == 4
    convert(source, tmp_path / "png", "tfrecord", encode="png")
    with PIL.Image.open(write_files(tmp_path, {"x.jpg": data}) / "x.jpg") as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(pixels_of(tmp_path / "png")["cmyk.jpg"], expected)


def test_raw_pictures_have_one_number_of_channels(tmp_path: Path) -> None:
    files = {"a.png": encoded(noise(4, 5, 1)), "b.png": encoded(noise(4, 5, 3)), "c.png": encoded(noise(4, 5, 4))}
    convert(write_files(tmp_path / "src", files), tmp_path / "out", "hdf5", encode="raw")
    assert streamkit.open(tmp_path / "out").schema["image"].shape == (4, 5, 4)
    found = pixels_of(tmp_path / "out")
    np.testing.assert_array_equal(found["a.png"][:, :, 0], noise(4, 5, 1)[:, :, 0])
    assert (found["b.png"][:, :, 3] == 255).all()
    np.testing.assert_array_equal(found["c.png"], noise(4, 5, 4))


@pytest.mark.fault(20)
def test_what_a_file_is_its_bytes_say(tmp_path: Path) -> None:
    """FAULTS 20: a PNG called .jpg is a PNG; extensions in upper case count."""
    files = {"a.jpg": encoded(noise(4, 5)), "B.JPG": encoded(noise(6, 5), "JPEG"), "c.PNG": encoded(noise(7, 5))}
    convert(write_files(tmp_path / "src", files), tmp_path / "out", "tfrecord")
    assert payloads(tmp_path / "out") == files
    assert streamkit.open(tmp_path / "out").schema["image"].encoding == "mixed"
    convert(write_files(tmp_path / "one", {"a.jpg": files["a.jpg"]}), tmp_path / "out1", "tfrecord")
    assert streamkit.open(tmp_path / "out1").schema["image"].encoding == "png"


def test_the_header_check_reads_only_headers(tmp_path: Path) -> None:
    data = encoded(noise(40, 40), "JPEG")
    source = write_files(tmp_path / "src", {"good.jpg": data, "cut.jpg": data[: len(data) // 2]})
    with pytest.raises(SourceError) as caught:
        convert(source, tmp_path / "out", "tfrecord")
    assert [key for key, _ in caught.value.bad] == ["cut.jpg"]
    convert(source, tmp_path / "header", "tfrecord", check="header")
    assert len(payloads(tmp_path / "header")) == 2


# Labels and splits


@both
def test_nested_class_folders(tmp_path: Path, format: str) -> None:
    source = class_folders(tmp_path / "src", {"a/x": 2, "a/y": 1, "a": 1, "b": 3})
    convert(source, tmp_path / "out", format)
    names = streamkit.open(tmp_path / "out").class_names
    assert list(names) == ["a", "a/x", "a/y", "b"]
    for key, label in columns(tmp_path / "out", "label").items():
        assert names[label] == key.rpartition("/")[0]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", {f"{i}.jpg": encoded(noise(4, 4), "JPEG") for i in range(3)})
    convert(source, tmp_path / "out", "tfrecord")
    manifest = streamkit.open(tmp_path / "out")
    assert [field.name for field in manifest.schema] == ["image"]
    assert not (tmp_path / "out" / "label.labels.txt").exists()
    assert list(manifest.class_names) == []


@both
def test_split_folders(tmp_path: Path, format: str) -> None:
    counts = {"train/cat": 5, "train/dog": 3, "validation/dog": 2, "test/cat": 1, "test/dog": 1}
    convert(class_folders(tmp_path / "src", counts), tmp_path / "out", format)
    manifest = streamkit.open(tmp_path / "out")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert list(manifest.class_names) == ["cat", "dog"]
    for split, folder in (("train", "train"), ("val", "validation"), ("test", "test")):
        for key, label in columns(tmp_path / "out", "label", split).items():
            assert key.split("/")[:2] == [folder, manifest.class_names[label]]
    with pytest.raises(UsageError, match="split folders already"):
        convert(tmp_path / "src", tmp_path / "out2", format, split={"train": 0.5, "val": 0.5})


@both
def test_fractions_are_stratified(many_photos: Path, tmp_path: Path, format: str) -> None:
    fractions = {"train": 0.7, "val": 0.2, "test": 0.1}
    report = convert(many_photos, tmp_path / "out", format, split=fractions)
    totals = {"bird": 14, "cat": 30, "dog": 16}
    assert report.manifest is not None
    counts = report.manifest.statistics["class_counts"]
    seen: set[str] = set()
    for split, fraction in fractions.items():
        keys = columns(tmp_path / "out", "label", split)
        assert abs(len(keys) - fraction * 60) <= 1
        for name, n in totals.items():
            assert abs(counts[split].get(name, 0) - fraction * n) <= 1
            assert sum(key.startswith(name) for key in keys) == counts[split].get(name, 0)
        assert not seen & set(keys)
        seen |= set(keys)
    assert len(seen) == 60


# Arrays


@both
@pytest.mark.parametrize("source", ["ragged", "ragged_twice"])
@pytest.mark.parametrize("compression", ["auto", "none", "best"])
def test_folders_of_arrays(
    request: pytest.FixtureRequest, tmp_path: Path, format: str, source: str, compression: str
) -> None:
    root = request.getfixturevalue(source)
    codec = {"best": {"tfrecord": "zlib:9", "hdf5": "gzip:9"}[format]}.get(compression, compression)
    convert(root, tmp_path / "out", format, compression=codec)
    found = arrays(tmp_path / "out")
    assert len(found) == len(list(root.rglob("*.npy")))
    for key, value in found.items():
        np.testing.assert_array_equal(value, np.load(root / key))


ODD_ARRAYS: dict[str, np.ndarray] = {
    "big-endian": np.arange(12, dtype=">i4").reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
    "big-endian fortran": np.asfortranarray(np.arange(12, dtype=">f4").reshape(3, 4)),
    "nan and inf": np.array([[np.nan, np.inf, -np.inf, -0.0]] * 3, np.float32),
    "bool": np.array([[True, False]] * 3),
    "float16": np.arange(6, dtype=np.float16).reshape(3, 2),
    "complex64": (np.arange(6) * (1 + 2j)).astype(np.complex64).reshape(3, 2),
    "uint64": np.full((3, 2), 2**64 - 1, np.uint64),
    "empty rows": np.zeros((3, 0, 2), np.float32),
    "one number a row": np.arange(3.0).reshape(3, 1),
}


@pytest.mark.fault(36, 37)
@both
@pytest.mark.parametrize("name", ODD_ARRAYS)
@pytest.mark.parametrize("compression", ["auto", "yes"])
def test_odd_arrays_keep_every_bit(tmp_path: Path, format: str, name: str, compression: str) -> None:
    """FAULTS 36 and 37: as rows of one table, and as one file each."""
    values = ODD_ARRAYS[name]
    codec = {"auto": "auto", "yes": {"tfrecord": "zlib", "hdf5": "gzip"}[format]}[compression]
    np.save(tmp_path / "rows.npy", values)
    convert(tmp_path / "rows.npy", tmp_path / "table", format, compression=codec)
    (tmp_path / "src").mkdir()
    for i, row in enumerate(values):
        np.save(tmp_path / f"src/{i}.npy", np.asfortranarray(row) if name.endswith("fortran") else row)
    convert(tmp_path / "src", tmp_path / "folder", format, compression=codec)
    for out, row_of in (("table", lambda key: key.partition("#")[2]), ("folder", lambda key: key.partition(".")[0])):
        found = arrays(tmp_path / out)
        assert len(found) == 3
        for key, value in found.items():
            row = values[int(row_of(key))]
            assert value.dtype.newbyteorder("=") == row.dtype.newbyteorder("=")
            assert value.tobytes() == row.astype(row.dtype.newbyteorder("<")).tobytes()


@both
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4, 5, 1)])
def test_arrays_of_any_number_of_axes(tmp_path: Path, format: str, shape: tuple[int, ...]) -> None:
    (tmp_path / "src").mkdir()
    values = {f"{i}.npy": np.full(shape, i, np.float32) for i in range(3)}
    for name, value in values.items():
        np.save(tmp_path / "src" / name, value)
    convert(tmp_path / "src", tmp_path / "out", format)
    found = arrays(tmp_path / "out")
    assert set(found) == set(values)
    for key, value in found.items():
        assert value.shape == shape
        np.testing.assert_array_equal(value, values[key])


@both
@pytest.mark.parametrize("file", ["stored.npz", "deflated.npz", "contiguous.h5", "chunked.h5"])
def test_tables(tables: Path, table: dict[str, np.ndarray], tmp_path: Path, format: str, file: str) -> None:
    out = tmp_path / "out"
    convert(tables / file, out, format, shard_size=4000, split={"train": 0.8, "val": 0.2})
    manifest = streamkit.open(out)
    fields = {field.name: (field.kind, field.dtype, field.shape) for field in manifest.schema}
    assert fields == {
        "signal": ("array", "float32", (40, 2)),
        "spectrum": ("array", "float64", (7,)),
        "label": ("label", "int64", ()),
        "weight": ("number", "float32", ()),
        "day": ("number", "int16", ()),
    }
    assert list(manifest.class_names) == ["0", "1", "2", "3"]
    rows: list[int] = []
    for split in ("train", "val"):
        for name in ("signal", "spectrum"):
            for key, value in arrays(out, split, name).items():
                np.testing.assert_array_equal(value, table[name][int(key.partition("#")[2])])
        for row in index_rows(out, split):
            i = int(row["key"].removeprefix(f"{file}#"))
            rows.append(i)
            assert (row["label"], row["day"]) == (table["y"][i], table["day"][i])
            assert np.float32(row["weight"]) == table["weight"][i]
    assert sorted(rows) == list(range(50))


@both
def test_one_npy_is_a_table(tables: Path, table: dict[str, np.ndarray], tmp_path: Path, format: str) -> None:
    convert(tables / "rows.npy", tmp_path / "out", format)
    found = arrays(tmp_path / "out")
    assert sorted(found) == sorted(f"rows.npy#{i}" for i in range(50))
    for key, value in found.items():
        np.testing.assert_array_equal(value, table["signal"][int(key.partition("#")[2])])


@both
def test_x_and_y_beside_one_another(tmp_path: Path, format: str) -> None:
    source = tmp_path / "pair"
    source.mkdir()
    x, y = np.arange(60, dtype=">f4").reshape(20, 3), np.arange(20) % 5 - 1
    np.save(source / "x.npy", np.asfortranarray(x))
    np.save(source / "y.npy", y)
    convert(source, tmp_path / "out", format)
    manifest = streamkit.open(tmp_path / "out")
    assert {field.name: field.kind for field in manifest.schema} == {"x": "array", "label": "label"}
    assert list(manifest.class_names) == []  # negative numbers are no class numbers
    for key, value in arrays(tmp_path / "out", name="x").items():
        np.testing.assert_array_equal(value, x[int(key.partition("#")[2])])
    assert columns(tmp_path / "out", "label") == {f"pair#{i}": int(v) for i, v in enumerate(y)}


@pytest.mark.parametrize("file", ["t.npz", "t.h5"])
def test_datasets_of_other_lengths_are_left_with_a_notice(tmp_path: Path, file: str) -> None:
    found = {"x": np.zeros((10, 3)), "mean": np.zeros((3, 3)), "y": np.arange(10), "note": np.float32(3)}
    np.savez(tmp_path / "t.npz", **found)
    with h5py.File(tmp_path / "t.h5", "w") as opened:
        for name, values in found.items():
            opened[name] = values
    report = convert(tmp_path / file, tmp_path / "out", "tfrecord")
    assert {field.name for field in streamkit.open(tmp_path / "out").schema} == {"x", "label"}
    assert any("mean" in notice and "3 rows" in notice for notice in report.notices)


@both
def test_columns_of_every_kind(tmp_path: Path, format: str) -> None:
    numbers = {
        name: np.array([np.iinfo(name).min, np.iinfo(name).max, 1], name)
        for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    }
    numbers |= {"float32": np.array([1.5, np.inf, -0.0], "f4"), "bool": np.array([True, False, True])}
    numbers |= {"float16": np.array([1.5, 2, 3], "f2"), "float64": np.array([0.1, 1e-300, 3])}
    np.savez(tmp_path / "t.npz", x=np.zeros((3, 4)), **numbers)
    convert(tmp_path / "t.npz", tmp_path / "out", format)
    for name, values in numbers.items():
        found = columns(tmp_path / "out", name)
        assert [found[f"t.npz#{i}"] for i in range(3)] == values.tolist(), name


def test_columns_that_no_index_holds_are_left_with_a_notice(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((3, 4)), c=np.arange(3) * 1j, l=np.arange(3, dtype=np.longdouble))
    report = convert(tmp_path / "t.npz", tmp_path / "out", "hdf5")
    assert {field.name for field in streamkit.open(tmp_path / "out").schema} == {"x"}
    assert any(notice.startswith("c ") for notice in report.notices)
    assert any(notice.startswith("l ") for notice in report.notices)


@pytest.mark.parametrize("name", ["key", "shard", "x.offset", "x.crc32c"])
def test_names_that_the_index_needs(tmp_path: Path, name: str) -> None:
    """A column called "key" must not take the place of the keys."""
    np.savez(tmp_path / "t.npz", **{"x": np.zeros((3, 4)), name: np.arange(3)})
    try:
        convert(tmp_path / "t.npz", tmp_path / "out", "tfrecord")
    except SourceError as error:
        assert name in str(error)
    else:
        assert sorted(payloads(tmp_path / "out", name="x")) == ["t.npz#0", "t.npz#1", "t.npz#2"]


def test_only_one_array_is_the_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((3, 4)), label=np.arange(3), y=np.arange(3) * 10)
    convert(tmp_path / "t.npz", tmp_path / "out", "tfrecord")
    assert columns(tmp_path / "out", "label") == {f"t.npz#{i}": i for i in range(3)}
    assert columns(tmp_path / "out", "y") == {f"t.npz#{i}": i * 10 for i in range(3)}


def test_a_table_keeps_rows_that_lie_compressed_together(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_dataset("x", data=np.arange(400.0).reshape(200, 2), chunks=(20, 2), compression="gzip")
    convert(tmp_path / "t.h5", tmp_path / "out", "tfrecord")
    rows = [int(key.partition("#")[2]) for key in arrays(tmp_path / "out", name="x")]
    for start in range(0, 200, 20):
        assert rows[start : start + 20] == list(range(rows[start], rows[start] + 20))
    assert rows != sorted(rows)


# What lies on disk


def shards(format: str, split: str, n: int) -> set[str]:
    return {f"{split}-{i:05d}.{EXTENSION[format]}" for i in range(n)}


@both
def test_exactly_these_files(many_photos: Path, tmp_path: Path, format: str) -> None:
    """DESIGN 3: after success nothing else is there."""
    out = tmp_path / "out"
    report = convert(many_photos, out, format, split={"train": 0.8, "val": 0.2}, shard_size=6000)
    assert report.manifest is not None
    expected = {"manifest.json", "index-train.parquet", "index-val.parquet"}
    for split in ("train", "val"):
        expected |= shards(format, split, len(report.manifest.splits[split].shards))
    extras = {"tfrecord": {"dataset_info.json", "features.json", "label.labels.txt"}, "hdf5": {"train.h5", "val.h5"}}
    assert set(digests(out)) == expected | extras[format]
    assert len(report.manifest.splits["train"].shards) > 3
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_chunk_tables_only_where_there_are_chunks(tables: Path, tmp_path: Path) -> None:
    for compression, more in (("none", set()), ("gzip", {"chunks-train.parquet"})):
        out = tmp_path / compression
        convert(tables / "rows.npy", out, "hdf5", compression=compression)
        assert set(digests(out)) == {"manifest.json", "index-train.parquet", "train-00000.h5", "train.h5"} | more


@both
def test_the_manifest_tells_the_truth(many_photos: Path, tmp_path: Path, format: str) -> None:
    import blake3

    out = tmp_path / "out"
    convert(many_photos, out, format, shard_size=6000)
    manifest = streamkit.open(out)
    split = manifest.splits["train"]
    for shard in split.shards:
        data = (out / shard.file).read_bytes()
        assert (len(data), blake3.blake3(data).hexdigest()) == (shard.nbytes, shard.digest)
    assert blake3.blake3((out / split.index).read_bytes()).hexdigest() == split.index_digest
    assert sum(s.nbytes for s in split.shards) == split.nbytes
    assert split.samples == len(index_rows(out)) == 60
    source = manifest.source
    files = [path for path in many_photos.rglob("*") if path.is_file()]
    assert (source["items"], source["bytes"]) == (60, sum(path.stat().st_size for path in files))


@both
def test_shards_are_about_as_large_as_wished(many_photos: Path, tmp_path: Path, format: str) -> None:
    convert(many_photos, tmp_path / "out", format, shard_size=6000)
    sizes = [shard.nbytes for shard in streamkit.open(tmp_path / "out").splits["train"].shards]
    total = sum(path.stat().st_size for path in many_photos.rglob("*.jpg"))
    assert len(sizes) == -(-total // 6000)


@both
def test_no_place_no_host_no_time(photos: Path, tmp_path: Path, format: str) -> None:
    """DESIGN 3: the same source elsewhere, under another name, in another second, gives the same bytes."""
    first = tmp_path / "here" / "source-of-the-test"
    second = tmp_path / "quite" / "another" / "place"
    shutil.copytree(photos, first)
    shutil.copytree(photos, second)
    os.utime(second / "cat/colour.jpg", (0, 0))
    convert(first, tmp_path / "out-one", format, encode="png", shard_size=3000)
    time.sleep(1.1)
    convert(second, tmp_path / "deeper" / "out-two", format, encode="png", shard_size=3000)
    found = digests(tmp_path / "out-one")
    assert found == digests(tmp_path / "deeper" / "out-two")
    secrets = [
        str(tmp_path),
        "source-of-the-test",
        "out-one",
        str(ROOT),
        time.strftime("%Y-%m-%d"),
        socket.gethostname(),
    ]
    for name in found:
        data = (tmp_path / "out-one" / name).read_bytes()
        for secret in secrets:
            if len(secret) > 4 or name.endswith(".json"):  # a short host name may stand in pixels by chance
                assert not re.search(rb"\b" + re.escape(secret.encode()) + rb"\b", data), (name, secret)


@both
def test_the_source_is_left_alone(photos: Path, tmp_path: Path, format: str) -> None:
    """FAULTS I2."""
    shutil.copytree(photos, tmp_path / "src")
    before = digests(tmp_path / "src"), {p: p.stat().st_mtime_ns for p in (tmp_path / "src").rglob("*")}
    convert(tmp_path / "src", tmp_path / "out", format, resize=8)
    assert before == (digests(tmp_path / "src"), {p: p.stat().st_mtime_ns for p in (tmp_path / "src").rglob("*")})


# The same bytes


@pytest.mark.fault(79)
@both
def test_workers_hash_seeds_and_locales_change_nothing(many_photos: Path, tmp_path: Path, format: str) -> None:
    """FAULTS 79, over several shards: the digests of the whole folders are equal."""
    runs: list[tuple[list[str], dict[str, str]]] = [
        (["--workers", "1"], {"PYTHONHASHSEED": "0"}),
        (["--workers", "2"], {"PYTHONHASHSEED": "1"}),
        (
            ["--workers", "3", "--on-bad", "skip", "--quiet", "--json"],
            {"PYTHONHASHSEED": "random", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "PYTHONOPTIMIZE": "1"},
        ),
    ]
    found = []
    for i, (options, env) in enumerate(runs):
        out = tmp_path / str(i)
        run = cli(
            "convert", many_photos, out, "--format", format, "--shard-size", "5KB", "--encode", "png", *options, env=env
        )
        assert run.returncode == 0, run.stderr
        found.append(digests(out))
    assert len([name for name in found[0] if name.startswith("train-0")]) > 3
    assert all(one == found[0] for one in found[1:])


SPAWNING = """
import sys, threading, time
import streamkit
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()   # a thread: workers must not be forked
report = streamkit.convert(sys.argv[1], sys.argv[2], format=sys.argv[3], shard_size=5000, workers=2)
print(report.manifest.dataset_id)
"""


@both
def test_spawned_workers_change_nothing(many_photos: Path, tmp_path: Path, format: str) -> None:
    run = python(SPAWNING, many_photos, tmp_path / "spawned", format)
    assert run.returncode == 0, run.stderr
    report = convert(many_photos, tmp_path / "inline", format, shard_size=5000)
    assert report.manifest is not None and report.manifest.dataset_id == run.stdout.strip()
    assert digests(tmp_path / "spawned") == digests(tmp_path / "inline")


# Interrupted, and again

CRASHING = """
import os, shutil, signal, sys
from pathlib import Path
from converting import digests
import streamkit

source, work, format, mode, names = sys.argv[1:]
calls = 0

def counted(function, last):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

def convert(out, **options):
    split = {"train": 0.5, "val": 0.5}
    return streamkit.convert(source, out, format=format, shard_size=900, workers=1, split=split, **options)

os.fsync = lambda fd: None   # nothing here outlives the machine
convert(f"{work}/whole")
whole = digests(Path(work, "whole"))
if mode == "overwrite":
    convert(f"{work}/old", seed=7)
for last in range(1, 1000):
    out = f"{work}/{last}/out"
    os.mkdir(f"{work}/{last}")
    if mode == "overwrite":
        shutil.copytree(f"{work}/old", out)
    child = os.fork()
    if child == 0:
        for name in names.split():
            setattr(os, name, counted(getattr(os, name), last))
        convert(out, overwrite=mode == "overwrite")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    there = [path for path in (out, f"{work}/{last}/.out.old") if os.path.exists(f"{path}/manifest.json")][:1]
    for path in there:   # published is published: whole, whatever came after
        for split in streamkit.open(path).splits.values():
            assert all(os.path.getsize(f"{path}/{shard.file}") == shard.nbytes for shard in split.shards)
    assert there or mode != "overwrite", "the old one is gone and the new one not there"
    convert(out, overwrite=mode == "overwrite")
    found = digests(Path(work, str(last)))
    if found != {f"out/{name}": digest for name, digest in whole.items()}:
        print("killed at call", last, "then:", sorted(set(found.items()) ^ set(whole.items()))[:4])
    shutil.rmtree(f"{work}/{last}")
    if os.WIFEXITED(status):
        print("points", last - 1, "exit", os.WEXITSTATUS(status))
        break
"""


CALLS = "replace rename unlink rmdir"


@pytest.mark.fault(2)
@pytest.mark.parametrize(
    ("format", "mode", "calls"),
    [
        ("tfrecord", "new", f"{CALLS} fsync mkdir"),
        ("hdf5", "new", f"{CALLS} pwritev"),
        pytest.param("tfrecord", "overwrite", CALLS, marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_step(tmp_path: Path, format: str, mode: str, calls: str) -> None:
    """FAULTS 2 and I1 to I4: before each system call that changes a file; the same command then gives the same bytes."""
    source = class_folders(tmp_path / "src", {"a": 2, "b": 2}, (6, 6))
    (tmp_path / "work").mkdir()
    run = python(CRASHING, source, tmp_path / "work", format, mode, calls)
    assert run.returncode == 0, run.stderr
    points, wrong = run.stdout.splitlines()[-1], run.stdout.splitlines()[:-1]
    assert re.fullmatch(r"points \d+ exit 0", points), run.stdout
    assert int(points.split()[1]) > 20
    assert not wrong, "\n".join(wrong[:5])


def start(*args: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streamkit", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that take about a second to convert, in some 20 shards."""
    root = tmp_path_factory.mktemp("slow")
    data = encoded(picture(320, 400), "JPEG", quality=90)
    return write_files(root, {f"{c}/{i:03d}.jpg": data + b"%03d" % i for i in range(10) for c in "ab"})


SLOWLY = ("--encode", "png", "--shard-size", "30KB", "--workers", "2")


def until_writing(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until the first shard lies there, or the process is done."""
    while process.poll() is None and not list(out.glob("train-*")):
        time.sleep(0.01)


@pytest.mark.fault(1)
@one_quickly
def test_killed_at_random_moments(slow_source: Path, tmp_path: Path, format: str) -> None:
    """FAULTS 1: kill -9 of the parent alone, then of the whole process group; run again until it is through."""
    args = ("convert", slow_source, tmp_path / "out", "--format", format, *SLOWLY)
    chance = random.Random(format)
    n_killed = 0
    for kill in (os.kill, os.killpg):
        process = start(*args)
        until_writing(process, tmp_path / "out")
        time.sleep(chance.uniform(0, 0.3))
        n_killed += process.poll() is None
        kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        if (tmp_path / "out" / "manifest.json").exists():
            streamkit.open(tmp_path / "out")
        else:
            with pytest.raises((DamagedError, UsageError)):
                streamkit.open(tmp_path / "out")
    assert n_killed
    assert cli(*args).returncode == 0
    undisturbed = cli("convert", slow_source, tmp_path / "whole", "--format", format, *SLOWLY, "--workers", "1")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.fault(3)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_by_the_user(slow_source: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """FAULTS 3: soon, in one line that says how to go on, and no traceback from any worker."""
    args = ("convert", slow_source, tmp_path / "out", "--format", "tfrecord", *SLOWLY)
    process = start(*args)
    until_writing(process, tmp_path / "out")
    started = time.monotonic()
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - started < 5
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert [line for line in stderr.splitlines() if line.startswith("streamkit: ")][-1].endswith(
        "continues where it stopped"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = sum(path.stat().st_size > 0 for path in (tmp_path / "out").glob("train-*"))
    assert cli(*args).returncode == 0
    assert done and not list((tmp_path / "out").glob(".*"))


@both
def test_a_run_goes_on_where_the_last_one_stopped(
    many_photos: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished shards are not written again."""
    from streamkit.convert import work

    real = work.run_job

    def dies_at_the_fourth(job: Any, progress: Any = None) -> Any:
        if job.file.startswith("train-00003"):
            raise KeyboardInterrupt
        return real(job, progress)

    monkeypatch.setattr("streamkit.convert.executor.run_job", dies_at_the_fourth)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert(many_photos, out, format, shard_size=5000)
    monkeypatch.undo()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*")}
    assert len(times) == 3
    convert(many_photos, out, format, shard_size=5000)
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("train-*")}.items()
    convert(many_photos, tmp_path / "whole", format, shard_size=5000)
    assert digests(out) == digests(tmp_path / "whole")


@both
def test_a_finished_conversion_says_so(many_photos: Path, tmp_path: Path, format: str, capsys: Any) -> None:
    args = ["convert", str(many_photos), str(tmp_path / "out"), "--format", format, "--workers", "1"]
    assert main(args) == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "out").rglob("*")}
    capsys.readouterr()
    assert main([*args, "--workers", "2", "--quiet"]) == 0
    assert "finished and unchanged" in capsys.readouterr().out
    assert main([*args, "--on-bad", "skip"]) == 0
    assert "finished and unchanged" in capsys.readouterr().out
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "out").rglob("*")}


CHANGES: dict[str, list[str]] = {
    "seed": ["--seed", "1"],
    "encode": ["--encode", "png"],
    "resize": ["--resize", "8"],
    "split": ["--split", "train=0.5,val=0.5"],
    "shard_size": ["--shard-size", "1MB"],
    "format": ["--format", "hdf5"],
}


@pytest.mark.fault(16)
@pytest.mark.parametrize("option", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_other_options_are_another_dataset(
    many_photos: Path, tmp_path: Path, option: str, finished: bool, capsys: Any
) -> None:
    """FAULTS 16: exit 2, and the difference is named; nothing is touched."""
    out = tmp_path / "out"
    args = ["convert", str(many_photos), str(out), "--format", "tfrecord", "--workers", "1", "--shard-size", "5KB"]
    assert main(args) == 0
    if not finished:  # as a killed run leaves it
        from streamkit.convert.journal import Journal
        from streamkit.convert.options import Options

        (out / "manifest.json").unlink()
        with Journal(out, Options("tfrecord", shard_size=5000).to_json()):
            pass
    before = {name: digest for name, digest in digests(out).items() if not name.startswith(".")}
    capsys.readouterr()
    assert main([*args, *CHANGES[option]]) == 2
    stderr = capsys.readouterr().err
    assert len(stderr.splitlines()) == 1 and option in stderr
    assert before == {name: digest for name, digest in digests(out).items() if not name.startswith(".")}


def test_a_split_that_is_nearly_called_train_is_remarked_on(tmp_path: Path, capsys: Any) -> None:
    args = ["convert", str(class_folders(tmp_path / "src", {"a": 8})), str(tmp_path / "out"), "--format", "tfrecord"]
    assert main([*args, "--dry-run", "--split", "trian=0.5,val=0.5"]) == 0
    assert "a split is called 'trian'. Did you mean 'train'?" in capsys.readouterr().err
    assert main([*args, "--dry-run", "--split", "train=0.5,holdout=0.25,test_b=0.25", "--shard-size", "10"]) == 0
    stderr = capsys.readouterr().err
    assert "a split is called" not in stderr and "a shard size of 10 bytes" in stderr
    assert main([*args, "--split", "train=0.9"]) == 2
    assert "split fractions are train=0.9." in capsys.readouterr().err


def test_a_finished_dataset_with_a_damaged_shard_can_be_repaired(tmp_path: Path) -> None:
    source, out = class_folders(tmp_path / "src", {"a": 3}), tmp_path / "out"
    convert(source, out, "tfrecord")
    os.truncate(out / "train-00000.tfrecord", 100)
    with pytest.raises(DamagedError, match=r"`streamkit repair .*out --source SRC`, or pass --overwrite"):
        convert(source, out, "tfrecord")


def test_another_source_is_another_dataset(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 3})
    convert(source, tmp_path / "out", "tfrecord")
    write_files(source, {"a/new.jpg": encoded(noise(4, 4), "JPEG")})
    with pytest.raises(UsageError, match="source has changed"):
        convert(source, tmp_path / "out", "tfrecord")


@pytest.mark.parametrize("change", ["added", "changed", "changed and added", "gone", "gone and added", "options too"])
@pytest.mark.parametrize("left_out", [False, True])
def test_what_became_of_the_source_tells_what_to_do(tmp_path: Path, change: str, left_out: bool) -> None:
    """--append comes first where items were only added, and is not named where it could add none: bad ones may be mended."""
    source, out = class_folders(tmp_path / "src", {"a": 4}), tmp_path / "out"
    if left_out:
        write_files(source, {"a/bad.png": encoded(noise(9, 9))[:60], "a/empty.jpg": b""})
    convert(source, out, "tfrecord", on_bad="skip")
    first = sorted(source.rglob("*.*"))[0]
    if "added" in change or change == "options too":
        write_files(source, {"a/new.jpg": encoded(noise(4, 4), "JPEG")})
    if "changed" in change:
        first.write_bytes(encoded(noise(7, 7), "JPEG"))
    if "gone" in change:
        first.unlink()
    with pytest.raises(UsageError, match="source has changed") as caught:
        convert(source, out, "tfrecord", seed=change == "options too")
    hint = caught.value.hint
    assert "--overwrite" in hint
    assert ("--append" in hint) == ("added" in change or (left_out and "options" not in change))
    assert hint.startswith("Pass --append to add the new items") == (change == "added")
    if "added" in change:
        assert convert(source, out, "tfrecord", append=True, on_bad="skip").n_added == 1


@pytest.mark.parametrize("append", [False, True])
def test_an_unfinished_conversion_is_of_its_own_source(tmp_path: Path, append: bool, capsys: Any) -> None:
    """Another one is refused and deletes nothing; the same goes on when it was mended, and when it was moved."""
    source, out = class_folders(tmp_path / "src", {"a": 30}), tmp_path / "out"
    args = ["--format", "tfrecord", "--workers", "1", "--shard-size", "5KB"]
    if append:
        assert main(["convert", str(class_folders(tmp_path / "old", {"b": 3})), str(out), *args]) == 0
        args.append("--append")
    write_files(source, {"a/bad.png": encoded(noise(9, 9))[:60]})
    assert main(["convert", str(source), str(out), *args]) == 3  # nothing is published, whole shards are kept
    begun = digests(out)
    assert len([name for name in begun if name.endswith(".tfrecord")]) > 2
    capsys.readouterr()
    other = class_folders(tmp_path / "other", {"c": 3})
    assert main(["convert", str(other), str(out), *args]) == 2
    stderr = capsys.readouterr().err
    assert f"an unfinished conversion of another source lies here: of {source}" in stderr, stderr
    assert ("delete" if append else "--overwrite") in stderr
    assert {name: digest for name, digest in digests(out).items() if "lock" not in name} == {
        name: digest for name, digest in begun.items() if "lock" not in name
    }
    (source / "a" / "bad.png").unlink()
    write_files(source, {"a/good.png": encoded(noise(9, 9))})
    source.rename(tmp_path / "moved")
    assert main(["convert", str(tmp_path / "moved"), str(out), *args]) == 2  # neither place nor contents are the same
    (tmp_path / "moved").rename(source)
    assert main(["convert", str(source), str(out), *args]) == 0
    assert streamkit.verify(out).ok and not (out / ".streamkit").exists()


def test_overwrite_gives_up_what_another_source_began(tmp_path: Path) -> None:
    source, other = class_folders(tmp_path / "src", {"a": 30}), class_folders(tmp_path / "other", {"c": 3})
    write_files(source, {"a/bad.png": encoded(noise(9, 9))[:60]})
    for overwrite in (False, True):
        with pytest.raises(SourceError):
            streamkit.convert(source, tmp_path / "out", format="hdf5", workers=1, shard_size="5KB", overwrite=overwrite)
    report = streamkit.convert(other, tmp_path / "out", format="hdf5", workers=1, shard_size="5KB", overwrite=True)
    assert report.manifest.splits["train"].samples == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@both
def test_on_bad_is_no_part_of_the_identity(tmp_path: Path, format: str) -> None:
    """The error says "or pass --on-bad skip": then that must work, and give what skipping at once gives."""
    source = class_folders(tmp_path / "src", {"a": 8, "b": 8})
    write_files(source, {"a/bad.jpg": b"hello"})
    options = {"shard_size": 1500}
    with pytest.raises(SourceError, match="--on-bad skip"):
        convert(source, tmp_path / "out", format, **options)
    convert(source, tmp_path / "out", format, on_bad="skip", **options)
    convert(source, tmp_path / "skipped", format, on_bad="skip", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "skipped")


def test_skip_then_fail_lists_the_bad_items_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run under skip left finished shards behind; under fail their bad items count all the same."""
    source = class_folders(tmp_path / "src", {"a": 8, "b": 8})
    write_files(source, {"a/bad.jpg": b"hello"})

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streamkit.convert.run.publish", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "tfrecord", on_bad="skip", shard_size=1500)
    monkeypatch.undo()
    with pytest.raises(SourceError) as caught:
        convert(source, tmp_path / "out", "tfrecord", shard_size=1500)
    assert [key for key, _ in caught.value.bad] == ["a/bad.jpg"]
    assert not (tmp_path / "out" / "manifest.json").exists()


@both
@pytest.mark.parametrize("mended", ["replaced", "removed"])
def test_after_mending_the_source_the_run_continues(tmp_path: Path, format: str, mended: str) -> None:
    """DESIGN 3: good shards stay in the journal, so that after mending the source the same command continues."""
    source = class_folders(tmp_path / "src", {"a": 8, "b": 8})
    write_files(source, {"a/bad.jpg": b"hello"})
    with pytest.raises(SourceError):
        convert(source, tmp_path / "out", format, shard_size=1500)
    if mended == "replaced":
        write_files(source, {"a/bad.jpg": encoded(noise(12, 16), "JPEG")})
    else:
        (source / "a/bad.jpg").unlink()
    convert(source, tmp_path / "out", format, shard_size=1500)
    convert(source, tmp_path / "fresh", format, shard_size=1500)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


@pytest.mark.fault(11)
def test_the_lock(many_photos: Path, tmp_path: Path, capsys: Any) -> None:
    """FAULTS 11: the second converter gets 7 at once, and hears who holds the folder."""
    out = tmp_path / "out"
    (out / ".streamkit").mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
            "f.write('process 4321 on there since then'); f.flush(); print('held', flush=True); time.sleep(600)",
            str(out / ".streamkit" / "lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        with holder.stdout as stdout:  # type: ignore[union-attr]
            assert stdout.readline() == b"held\n"  # type: ignore[union-attr]
        args = ["convert", str(many_photos), str(out), "--format", "tfrecord", "--workers", "1"]
        assert main(args) == 7
        stderr = capsys.readouterr().err
        assert "4321" in stderr and len(stderr.splitlines()) == 1
        with pytest.raises(BusyError):
            convert(many_photos, out, "tfrecord")
        assert not list(out.glob("train-*"))
    finally:
        holder.kill()
        holder.wait()
    assert main(args) == 0  # FAULTS 12: the lock of a dead process is no lock


def test_a_lock_file_alone_is_no_lock(many_photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_files(out, {".streamkit/lock": b"process 1 on elsewhere since long ago\n"})
    convert(many_photos, out, "tfrecord")
    with open(tmp_path / "free", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not (out / ".streamkit").exists()


@pytest.mark.fault(13)
@both
def test_overwrite_keeps_the_old_one_until_the_new_one_is_whole(many_photos: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    convert(many_photos, out, format)
    old = digests(out)
    bad = class_folders(tmp_path / "src", {"a": 2})
    write_files(bad, {"a/x.jpg": b""})
    with pytest.raises(SourceError):
        convert(bad, out, format, overwrite=True)
    assert digests(out) == old
    with pytest.raises(UsageError, match="another dataset"):
        convert(many_photos, out, format, seed=5)
    convert(many_photos, out, format, seed=5, overwrite=True)
    convert(many_photos, tmp_path / "fresh", format, seed=5)
    assert digests(out) == digests(tmp_path / "fresh") != old


@pytest.mark.fault(13)
def test_overwrite_replaces_datasets_only(many_photos: Path, tmp_path: Path) -> None:
    """Never delete what streamkit did not make."""
    out = write_files(tmp_path / "out", {"thesis.tex": b"years of work", "figures/1.pdf": b"x"})
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        convert(many_photos, out, "tfrecord", overwrite=True)
    assert digests(out) == {
        "thesis.tex": hashlib.sha256(b"years of work").hexdigest(),
        "figures/1.pdf": hashlib.sha256(b"x").hexdigest(),
    }


def test_overwrite_where_nothing_is(many_photos: Path, tmp_path: Path) -> None:
    convert(many_photos, tmp_path / "out", "tfrecord", overwrite=True)
    convert(many_photos, tmp_path / "plain", "tfrecord")
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")
    assert sorted(os.listdir(tmp_path)) == ["out", "plain"]


@both
def test_a_dry_run_writes_nothing(many_photos: Path, tmp_path: Path, format: str, capsys: Any) -> None:
    args = ["convert", str(many_photos), str(tmp_path / "deep" / "out"), "--format", format, "--shard-size", "5KB"]
    assert main([*args, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert main([*args, "--json", "--workers", "1"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert plan["dry_run"] and not done["dry_run"]
    assert plan["samples"] == done["samples"] == 60
    assert plan["splits"]["train"]["shards"] == done["splits"]["train"]["shards"] > 3
    assert main([*args, "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out


# Skipping


@both
def test_skipping_leaves_the_others_where_they_were(tmp_path: Path, format: str) -> None:
    """DESIGN 3: splits and shards are planned over all items found; skipped ones leave gaps."""
    source = class_folders(tmp_path / "src", {"a": 10, "b": 10})
    good = (source / "a/0003.jpg").read_bytes()
    options = {"shard_size": 2000, "split": {"train": 0.7, "val": 0.3}}
    convert(source, tmp_path / "whole", format, **options)
    write_files(source, {"a/0003.jpg": bytes(len(good))})
    report = convert(source, tmp_path / "gaps", format, on_bad="skip", **options)
    assert [(bad.key, bad.reason) for bad in report.skipped] == [("a/0003.jpg", "holds only zero bytes")]
    lines = (tmp_path / "gaps" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"key": "a/0003.jpg", "reason": "holds only zero bytes"}]
    assert streamkit.open(tmp_path / "gaps").skipped == 1
    for split in ("train", "val"):
        whole = [(row["key"], row["shard"]) for row in index_rows(tmp_path / "whole", split)]
        gaps = [(row["key"], row["shard"]) for row in index_rows(tmp_path / "gaps", split)]
        assert gaps == [pair for pair in whole if pair[0] != "a/0003.jpg"]


@both
def test_a_shard_whose_items_are_all_skipped(tmp_path: Path, format: str) -> None:
    source = class_folders(tmp_path / "src", {"a": 4})
    write_files(source, {"a/0002.jpg": b""})
    report = convert(source, tmp_path / "out", format, on_bad="skip", shard_size=1)
    assert report.manifest is not None
    files = {shard.file for shard in report.manifest.splits["train"].shards}
    assert len(files) == 3
    assert {path.name for path in (tmp_path / "out").glob("train-*")} == files
    assert len(payloads(tmp_path / "out")) == 3


@both
def test_a_split_whose_items_are_all_skipped(tmp_path: Path, format: str) -> None:
    """Either the dataset has no such samples, or it is an error of the source that names the split."""
    source = class_folders(tmp_path / "src", {"train/a": 2, "train/b": 2})
    write_files(source, {"val/a/1.jpg": b"", "val/b/2.jpg": b""})
    try:
        report = convert(source, tmp_path / "out", format, on_bad="skip")
    except SourceError as error:
        assert "val" in str(error)
    else:
        assert report.manifest is not None
        assert "val" not in report.manifest.splits or report.manifest.splits["val"].samples == 0


# Resources


@pytest.mark.fault(9)
@pytest.mark.parametrize(("format", "workers"), [("tfrecord", 1), ("tfrecord", 2), ("hdf5", 1)])
def test_a_file_size_limit_is_a_clear_error(many_photos: Path, tmp_path: Path, format: str, workers: int) -> None:
    """FAULTS 5 and 9: exit 5 names the file; with room again the same command continues to the same bytes."""
    args = (
        "convert",
        many_photos,
        tmp_path / "out",
        "--format",
        format,
        "--workers",
        workers,
        "--shard-size",
        "5KB",
    )
    script = (
        "import resource, sys; from streamkit.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
    )
    run = python(f"{script} sys.exit(main(sys.argv[1:]))", *args)
    assert run.returncode == 5, run.stderr
    assert "Traceback" not in run.stderr and len(run.stderr.splitlines()) == 1
    assert "train-0000" in run.stderr
    assert not list((tmp_path / "out").glob(".*tmp*"))
    assert cli(*args).returncode == 0
    convert(many_photos, tmp_path / "whole", format, shard_size=5000)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_limit_inside_compressed_chunks_is_a_clear_error(tmp_path: Path) -> None:
    """libhdf5 must not meet the limit itself: it leaves its file open then, and the process ends in a crash."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).integers(0, 99, (4000, 50)))
    args = ("convert", tmp_path / "rows.npy", tmp_path / "out", "--format", "hdf5", "--compression", "gzip")
    script = "import resource, sys; from streamkit.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (90000, 90000));"
    run = python(f"{script} sys.exit(main(sys.argv[1:]))", *args, "--workers", 1)
    assert run.returncode == 5, (run.returncode, run.stderr)
    assert len(run.stderr.splitlines()) == 1 and "train-00000.h5" in run.stderr
    assert cli(*args).returncode == 0
    convert(tmp_path / "rows.npy", tmp_path / "whole", "hdf5", compression="gzip")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.fault(14)
def test_a_killed_worker_is_a_clear_error(many_photos: Path, tmp_path: Path) -> None:
    """FAULTS 14."""
    script = """
import os, signal, sys
from streamkit.convert import work
from streamkit.cli import main
real = work.Job.run
def dies(self, progress=None):
    if self.file.startswith("train-00002"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, progress)
work.Job.run = dies
sys.exit(main(sys.argv[1:]))
"""
    args = ("convert", many_photos, tmp_path / "out", "--format", "tfrecord", "--workers", 2, "--shard-size", "5KB")
    run = python(script, *args)
    assert run.returncode == 5, run.stderr
    assert "Traceback" not in run.stderr and "train-0000" in run.stderr
    assert cli(*args).returncode == 0


@pytest.mark.fault(10)
def test_an_output_that_cannot_be_made(many_photos: Path, tmp_path: Path) -> None:
    """FAULTS 10."""
    with pytest.raises(StreamkitError) as caught:
        convert(many_photos, Path("/proc/streamkit/out"), "tfrecord")
    assert caught.value.exit_code == 5
    assert not isinstance(caught.value, RefusedError)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StreamkitError) as caught:
        convert(many_photos, tmp_path / "file" / "out", "tfrecord")
    assert caught.value.exit_code in (2, 5)
