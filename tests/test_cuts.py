"""Tiles and windows: together they are the whole again, each says where it lay, and the whole is never split up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from converting import (
    arrays,
    both,
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
    write_files,
)
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit.cli import main
from streamkit.codecs import image
from streamkit.convert import Report
from streamkit.errors import SourceError, UsageError
from streamkit.sources.cuts import origin_of, starts, whole_of


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> Report:
    return streamkit.convert(source, out, format=format, **{"workers": 1, **options})


@given(length=st.integers(1, 300), size=st.integers(1, 80), stride=st.integers(1, 100))
def test_pieces_cover_the_whole(length: int, size: int, stride: int) -> None:
    found = starts(length, size, stride)
    assert found == sorted(set(found)) and found[0] == 0
    if length <= size:
        assert found == [0]
        return
    assert all(0 <= start <= length - size for start in found)
    assert found[-1] == length - size
    steps = np.diff(found)
    assert (steps[:-1] == stride).all() and (steps <= stride).all()


@given(st.text("a#1,.", max_size=12), st.integers(0, 9), st.integers(0, 9))
def test_keys_of_pieces(name: str, y: int, x: int) -> None:
    key = f"{name}.jpg#{y},{x}"
    assert (whole_of(key), origin_of(key)) == (f"{name}.jpg", [y, x])


# Tiles


def reassembled(tiles: dict[str, np.ndarray], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A picture from its tiles; where they overlap they must agree."""
    out = np.full(shape, -1, np.int64)
    for name, pixels in tiles.items():
        if whole_of(name) == key:
            y, x = origin_of(name)
            part = out[y : y + pixels.shape[0], x : x + pixels.shape[1]]
            assert part.shape == pixels.shape
            assert ((part == -1) | (part == pixels)).all()
            part[:] = pixels
    assert (out >= 0).all()
    return out


def pixels_of(out: Path, name: str = "image", split: str = "train") -> dict[str, np.ndarray]:
    if streamkit.open(out).schema[name].is_encoded_image:
        return {key: pillow(data) for key, data in payloads(out, split, name).items()}
    return arrays(out, split, name)


PICTURES = {
    "a/wide.png": encoded(noise(30, 71)),
    "a/high.png": encoded(noise(65, 33, seed=1)),
    "b/small.png": encoded(noise(9, 12, seed=2)),
    "b/exact.png": encoded(noise(20, 24, seed=3)),
    "b/turned.png": rotated(noise(40, 50, seed=4), 6, "PNG"),
}


@both
@pytest.mark.parametrize("encode", ["keep", "webp", "raw"])
@pytest.mark.parametrize("stride", [None, "11x13"])
def test_tiles_are_the_picture_again(tmp_path: Path, format: str, encode: str, stride: str | None) -> None:
    source = write_files(tmp_path / "src", PICTURES)
    convert(source, tmp_path / "out", format, tile="20x24", stride=stride, encode=encode)
    found = pixels_of(tmp_path / "out")
    for key, data in PICTURES.items():
        whole = pillow(data)
        np.testing.assert_array_equal(reassembled(found, key, whole.shape), whole)
    for row in index_rows(tmp_path / "out"):
        assert [row["tile_y"], row["tile_x"]] == origin_of(row["key"])
        assert (row["height"], row["width"]) == found[row["key"]].shape[:2]
        assert row["label"] == (row["key"][0] == "b")
    loader = streamkit.Loader(tmp_path / "out", batch_size=4, image_size=(20, 24))
    assert len(loader) == -(-len(found) // 4) and loader[0]["image"].shape == (4, 20, 24, 3)


def test_keep_makes_jpeg_90_of_jpeg_and_png_of_the_rest(tmp_path: Path) -> None:
    jpeg = encoded(picture(64, 96), "JPEG", quality=95)
    source = write_files(
        tmp_path / "src", {"a.jpg": jpeg, "b.png": encoded(noise(32, 32)), "c.gif": encoded(noise(32, 32, 1), "GIF")}
    )
    convert(source, tmp_path / "out", tile="32x32")
    stored = payloads(tmp_path / "out")
    assert {image.probe(data).format for key, data in stored.items() if key.startswith("a")} == {"jpeg"}
    assert {image.probe(data).format for key, data in stored.items() if not key.startswith("a")} == {"png"}
    whole = pillow(jpeg)
    for key, data in stored.items():
        if key.startswith("a"):
            y, x = origin_of(key)
            part = np.ascontiguousarray(whole[y : y + 32, x : x + 32])
            assert data == image.encode(part, "jpeg", 90)
            assert psnr(pillow(data), part) > 32


@both
@pytest.mark.parametrize("mask_format", ["PNG", "JPEG"])
def test_masks_are_cut_with_their_pictures(tmp_path: Path, format: str, mask_format: str) -> None:
    pictures = {f"{i}.jpg": encoded(picture(40, 50, seed=i), "JPEG") for i in range(3)}
    masks = {f"{i}.{mask_format.lower()}": encoded(noise(40, 50, 1, seed=i), mask_format) for i in range(3)}
    source, beside = write_files(tmp_path / "src", pictures), write_files(tmp_path / "masks", masks)
    convert(source, tmp_path / "out", format, tile="16x16", masks=beside, encode="png")
    for i in range(3):
        for name, data in (("image", pictures[f"{i}.jpg"]), ("mask", masks[f"{i}.{mask_format.lower()}"])):
            whole = pillow(data)
            np.testing.assert_array_equal(
                reassembled(pixels_of(tmp_path / "out", name), f"{i}.jpg", whole.shape), whole
            )


def test_a_picture_is_decoded_once_and_stays_in_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_files(
        tmp_path / "src", {f"{i:02d}.jpg": encoded(picture(64, 64, seed=i), "JPEG") for i in range(20)}
    )
    calls: list[int] = []
    decode = image.decode
    monkeypatch.setattr(image, "decode", lambda *a, **o: (calls.append(1), decode(*a, **o))[1])
    convert(source, tmp_path / "out", tile="16x16", split={"train": 0.7, "val": 0.3})
    assert len(calls) == 20
    of_split = [{whole_of(key) for key in columns(tmp_path / "out", "key", split)} for split in ("train", "val")]
    assert not of_split[0] & of_split[1]
    assert [len(keys) for keys in of_split] == [14, 6]
    assert len(index_rows(tmp_path / "out")) == 14 * 16


def test_resize_acts_on_tiles(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", {"a.png": encoded(noise(64, 64))})
    convert(source, tmp_path / "out", tile="32x32", resize=16)
    assert {pixels.shape for pixels in pixels_of(tmp_path / "out").values()} == {(16, 16, 3)}


def test_damage_shows_in_every_tile(tmp_path: Path) -> None:
    data = encoded(noise(64, 64), "JPEG")
    files = {"good.jpg": data, "cut.jpg": data[: len(data) // 2], "html.jpg": b"<html>"}
    source = write_files(tmp_path / "src", files)
    with pytest.raises(SourceError) as caught:
        convert(source, tmp_path / "out", tile="32x32")
    assert {whole_of(key) for key, _ in caught.value.bad} == {"cut.jpg", "html.jpg"}
    convert(source, tmp_path / "out", tile="32x32", on_bad="quarantine")
    assert len(index_rows(tmp_path / "out")) == 4
    assert set(digests(tmp_path / "out-quarantine")) == {"cut.jpg", "html.jpg"}


def test_leaks_of_whole_pictures_and_not_of_empty_tiles(tmp_path: Path) -> None:
    blank = np.zeros((32, 64, 3), np.uint8)
    blank[:, :16] = noise(32, 16)
    other = blank.copy()
    other[:, :16] = noise(32, 16, seed=1)
    files = {"train/a.png": encoded(blank), "train/b.png": encoded(other), "val/c.png": encoded(blank)}
    report = convert(write_files(tmp_path / "src", files), tmp_path / "out", tile="32x16")
    assert {(whole_of(leak.first), whole_of(leak.key)) for leak in report.leaks} == {("train/a.png", "val/c.png")}
    assert len(report.leaks) == 4


def test_leaks_are_said_once_a_pair_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However many tiles they have; 20 lines at most, and --json has all."""
    pictures = [encoded(noise(32, 32, seed=i)) for i in range(22)]
    files = {f"{split}/{i:02}.png": data for i, data in enumerate(pictures) for split in ("train", "val")}
    args = ["--format", "hdf5", "--tile", "16x16", "--workers", "1", "--json"]
    assert main(["convert", str(write_files(tmp_path / "src", files)), str(tmp_path / "out"), *args]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "same content" in line]
    assert len(set(lines)) == len(lines) == 20 and lines[0].endswith("train/00.png (train) and val/00.png (val)")
    assert "... and 2 more; --json lists all" in said.err
    assert len(json.loads(said.out)["leaks"]) == 22 * 4


def test_columns_of_labels_come_along(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", {f"{i}.png": encoded(noise(20, 40, seed=i)) for i in range(4)})
    rows = [f"{i}.png,40,20,{i % 2},{i}" for i in range(4)]
    (tmp_path / "x.csv").write_text("\n".join(["file,width,height,site,tile_x", *rows]))
    convert(
        source,
        tmp_path / "out",
        tile="20x20",
        labels=tmp_path / "x.csv",
        group_by="site",
        split={"train": 0.5, "val": 0.5},
    )
    for split in ("train", "val"):
        rows_ = index_rows(tmp_path / "out", split)
        assert len({row["site"] for row in rows_}) == 1 and len(rows_) == 4
        for row in rows_:
            assert (row["width"], row["width_1"], row["tile_x"]) == (20, 40, int(row["key"][0]))
            assert row["tile_x_1"] == origin_of(row["key"])[1]
            assert row["height"] == 20 and "height_1" not in row


def test_objects_without_boxes_are_not_cut(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", {"a.png": encoded(noise(20, 40))})
    (tmp_path / "x.csv").write_text("file,xmin\na.png,1\na.png,2")
    with pytest.raises(UsageError, match="objects/xmin"):
        convert(source, tmp_path / "out", tile="20x20", labels=tmp_path / "x.csv")


SIDES = ("xmin", "ymin", "xmax", "ymax")


def boxes_of(out: Path) -> dict[str, list[tuple[float, ...]]]:
    """key -> (class number, xmin, ymin, xmax, ymax) of each object."""
    found = {name: arrays(out, name=f"objects/{name}") for name in ("class", *SIDES)}
    return {key: list(zip(*(found[n][key].tolist() for n in found), strict=True)) for key in found["class"]}


@both
def test_boxes_are_cut_with_their_pictures(tmp_path: Path, format: str) -> None:
    """Drawn into the picture as well as listed: each tile shows exactly the boxes that its row has."""
    rng = np.random.default_rng(0)
    lines, pictures = ["file,class,xmin,ymin,xmax,ymax"], {}
    for i in range(4):
        drawn = np.zeros((50, 70, 3), np.uint8)
        for number in range(3):  # one channel a box
            y, x = int(rng.integers(44)), int(rng.integers(64))
            y1, x1 = int(rng.integers(y + 1, 51)), int(rng.integers(x + 1, 71))
            drawn[y:y1, x:x1, number] = 255
            lines.append(f"{i}.png,k{number},{x},{y},{x1},{y1}")
        pictures[f"{i}.png"] = encoded(drawn)
    (tmp_path / "x.csv").write_text("\n".join(lines))
    source = write_files(tmp_path / "src", pictures)
    convert(source, tmp_path / "out", format, tile="20x30", stride="15x20", labels=tmp_path / "x.csv")
    tiles, boxes = pixels_of(tmp_path / "out"), boxes_of(tmp_path / "out")
    assert set(tiles) == set(boxes) and any(not found for found in boxes.values())
    for key, pixels in tiles.items():
        assert len(boxes[key]) == (pixels.max((0, 1)) > 0).sum()
        for number, x, y, x1, y1 in boxes[key]:
            drawn = np.zeros(pixels.shape[:2], np.uint8)
            drawn[int(y) : int(y1), int(x) : int(x1)] = 255
            np.testing.assert_array_equal(drawn, pixels[:, :, int(number)])


@both
def test_boxes_follow_resize(tmp_path: Path, format: str) -> None:
    source = write_files(tmp_path / "src", {"a.png": encoded(noise(40, 80)), "b.png": encoded(noise(10, 10))})
    (tmp_path / "x.csv").write_text("file,class,xmin,ymin,xmax,ymax\na.png,k,8,4,80,40\nb.png,k,1,2,3,4\n")
    convert(source, tmp_path / "short", format, resize=20, labels=tmp_path / "x.csv")
    assert boxes_of(tmp_path / "short") == {"a.png": [(0, 4, 2, 40, 20)], "b.png": [(0, 1, 2, 3, 4)]}
    convert(source, tmp_path / "exact", format, resize="20x20", labels=tmp_path / "x.csv")
    assert boxes_of(tmp_path / "exact") == {"a.png": [(0, 2, 2, 20, 20)], "b.png": [(0, 2, 4, 6, 8)]}
    convert(source, tmp_path / "tiles", format, tile="40x40", resize=20, labels=tmp_path / "x.csv")
    found = boxes_of(tmp_path / "tiles")
    assert found == {
        "a.png#0,0": [(0, 4, 2, 20, 20)],
        "a.png#0,40": [(0, 0, 2, 20, 20)],
        "b.png#0,0": [(0, 1, 2, 3, 4)],
    }


PEAK = """
import sys
import numpy as np
from converting import encoded, picture
import streamkit
from pathlib import Path

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

work = Path(sys.argv[1])
for name, size in (("small", (64, 64)), ("large", (2250, 4000))):
    (work / name).mkdir()
small = np.repeat(np.repeat(picture(225, 400), 10, 0), 10, 1)
(work / "small" / "a.jpg").write_bytes(encoded(small[:64, :64], "JPEG"))
for i in range(3):
    (work / "large" / f"{i}.jpg").write_bytes(encoded(small, "JPEG", comment=b"%d" % i))
del small
open("/proc/self/clear_refs", "w").write("5")
streamkit.convert(work / "small", work / "out-small", format="tfrecord", workers=1, tile="64x64")
before = peak()
streamkit.convert(work / "large", work / "out-large", format="tfrecord", workers=1, tile="512x512")
print((peak() - before) / (2250 * 4000 * 3))
"""


def test_one_decoded_picture_is_held(tmp_path: Path) -> None:
    """A 4000 x 2250 photo: 27 MB of pixels, and little besides."""
    run = python(PEAK, tmp_path)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 2, run.stdout


# Windows


SIGNALS = {
    "x/a.npy": np.arange(60, dtype=np.float32).reshape(30, 2),
    "x/b.npy": np.asfortranarray(np.arange(50, dtype=">f4").reshape(25, 2)),
    "y/c.npy": np.arange(14, dtype=np.float32).reshape(7, 2),
}


def signals(folder: Path) -> Path:
    for name, values in SIGNALS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, values)
    return folder


@both
@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("compression", ["none", "auto"])
def test_windows_are_parts_of_their_arrays(
    tmp_path: Path, format: str, stride: int | None, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamkit.sources.npy.load", None)  # no array is read whole
    convert(signals(tmp_path / "src"), tmp_path / "out", format, window=7, stride=stride, compression=compression)
    assert streamkit.open(tmp_path / "out").schema["array"].shape == (7, 2)
    found = arrays(tmp_path / "out")
    assert set(found) == {f"{n}#{s}" for n, v in SIGNALS.items() for s in starts(len(v), 7, stride or 7)}
    for row in index_rows(tmp_path / "out"):
        start = row["window_start"]
        assert [start] == origin_of(row["key"])
        np.testing.assert_array_equal(found[row["key"]], SIGNALS[whole_of(row["key"])][start : start + 7])
        assert row["label"] == (row["key"][0] == "y")
    loader = streamkit.Loader(tmp_path / "out", batch_size=3)
    assert loader[0]["array"].shape == (3, 7, 2)


def test_one_long_array(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.int16)
    np.save(tmp_path / "long.npy", values)
    convert(tmp_path / "long.npy", tmp_path / "out", window=64, stride=50, shard_size="1KB")
    found = arrays(tmp_path / "out")
    assert sorted(found) == sorted(f"long.npy#{s}" for s in starts(1000, 64, 50))
    for key, part in found.items():
        np.testing.assert_array_equal(part, values[origin_of(key)[0] :][:64])
    assert len(streamkit.open(tmp_path / "out").splits["train"].shards) == 3  # 20 x 128 bytes, overlaps counted


@both
@pytest.mark.parametrize("name", ["rows.npz", "rows.h5"])
def test_windows_of_the_rows_of_a_table(tmp_path: Path, format: str, name: str) -> None:
    x, m = np.arange(5 * 20 * 2, dtype=np.float32).reshape(5, 20, 2), np.arange(100).reshape(5, 20)
    y = np.array([0, 1, 0, 1, 1])
    if name.endswith("npz"):
        np.savez(tmp_path / name, x=x, y=y, m=m)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file["x"], file["y"], file["m"] = x, y, m
    convert(tmp_path / name, tmp_path / "out", format, window=8, stride=6)
    rows = index_rows(tmp_path / "out")
    assert sorted(row["key"] for row in rows) == [f"{name}#{i}#{at}" for i in range(5) for at in (0, 12, 6)]
    for field, whole in (("x", x), ("m", m)):
        found = arrays(tmp_path / "out", name=field)
        for row in rows:
            i, start = map(int, row["key"].split("#")[1:])
            assert row["label"] == y[i] and row["window_start"] == start
            np.testing.assert_array_equal(found[row["key"]], whole[i, start : start + 8])


def test_windows_of_split_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "src" / split / "a").mkdir(parents=True)
        np.save(tmp_path / "src" / split / "a" / "long.npy", np.zeros((10, 2), np.float32))
    found = convert(tmp_path / "src", tmp_path / "out", window=4, stride=3)
    assert found.n_items == 6


def test_windows_of_an_array_stay_in_one_split(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / "src").mkdir(exist_ok=True)
        np.save(tmp_path / "src" / f"{i}.npy", np.arange(40.0) + i)
    report = convert(tmp_path / "src", tmp_path / "out", window=8, split={"train": 0.8, "val": 0.2})
    of_split = [{whole_of(key) for key in columns(tmp_path / "out", "key", split)} for split in ("train", "val")]
    assert [len(keys) for keys in of_split] == [8, 2] and not of_split[0] & of_split[1]
    assert not report.leaks


def test_arrays_shorter_than_a_window(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        convert(signals(tmp_path / "src"), tmp_path / "out", window=8)
    assert dict(caught.value.bad) == {"y/c.npy": "has 7 rows, and a window takes 8"}


# Both


@one_quickly
@pytest.mark.parametrize(
    "options", [("--tile", "16x16", "--stride", "10x12"), ("--window", "5", "--stride", "2")], ids=str
)
def test_workers_change_nothing(tmp_path: Path, format: str, options: tuple[str, ...]) -> None:
    tiles = options[0] == "--tile"
    source = write_files(tmp_path / "src", PICTURES) if tiles else signals(tmp_path / "src")
    args = ("convert", source, "--format", format, "--shard-size", "3KB" if tiles else "200")
    for i, workers in enumerate((1, 3)):
        run = cli(args[0], args[1], tmp_path / str(i), *args[2:], *options, "--workers", workers)
        assert run.returncode == 0, run.stderr
    found = digests(tmp_path / "0")
    assert found == digests(tmp_path / "1")
    assert len([name for name in found if name.startswith("train-0")]) > 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tile": "16"}, "tile is '16'"),
        ({"tile": "0x4"}, "tile is"),
        ({"window": 0}, "window is 0"),
        ({"tile": "4x4", "window": 3}, "Choose one"),
        ({"stride": 4}, "goes with"),
        ({"tile": "4x4", "stride": 4}, "stride is '4'"),
        ({"window": 4, "stride": "4x4"}, "stride is '4x4'"),
        ({"window": 4}, "cut from arrays"),
    ],
    ids=str,
)
def test_what_cannot_be_cut(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    source = write_files(tmp_path / "src", {"a.png": encoded(noise(4, 4))})
    with pytest.raises(UsageError, match=said):
        convert(source, tmp_path / "out", **options)


def test_arrays_have_no_tiles(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cut from pictures"):
        convert(signals(tmp_path / "src"), tmp_path / "out", tile="4x4")
