"""TIFF scenes: any bands and depth come back to the bit, in windows, in little memory, whatever the size of the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from converting import arrays, both, digests, encoded, index_rows, payloads, picture, pillow, python, write_files

import streamkit
from streamkit.errors import SourceError, UsageError
from streamkit.sources import tiff
from streamkit.sources.cuts import origin_of, whole_of


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> streamkit.convert.Report:
    return streamkit.convert(source, out, format=format, workers=1, **options)


def values(height: int, width: int, bands: int, dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(height, width, bands)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, bands), dtype, endpoint=True)


def write(path: Path, data: np.ndarray, planar: str = "contig", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.moveaxis(data, 2, 0) if planar == "separate" else data
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planar, **options)
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "one piece": {},
    "big endian": {"byteorder": ">"},
    "strips": {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (16, 32), "compression": "zlib"},
    "planes": {"planar": "separate", "tile": (16, 16), "compression": "zstd"},
    "planes in one piece": {"planar": "separate"},
    "bigtiff": {"bigtiff": True, "tile": (32, 16)},
}


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "uint8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_are_parts_of_the_scene(tmp_path: Path, layout: str, dtype: str) -> None:
    whole = values(53, 71, 5, dtype)
    write(tmp_path / "a.tif", whole, **LAYOUTS[layout])
    with tiff.opened(str(tmp_path / "a.tif")) as scene:
        assert scene.info == (53, 71, 5, dtype, False)
        for y, x, height, width in ((0, 0, 53, 71), (5, 9, 20, 30), (52, 70, 1, 1), (40, 0, 13, 71)):
            np.testing.assert_array_equal(scene.window(y, x, height, width), whole[y : y + height, x : x + width])


@pytest.mark.fault(30)
@both
def test_whole_scenes_are_arrays(tmp_path: Path, format: str) -> None:
    scenes = {f"{c}/{i}.tif": values(9 + i, 11, 4, "uint16", i) for c in ("farm", "sea") for i in range(3)}
    for key, data in scenes.items():
        write(tmp_path / "src" / key, data)
    convert(tmp_path / "src", tmp_path / "out", format)
    field = streamkit.open(tmp_path / "out").schema["array"]
    assert (field.dtype, field.shape) == ("uint16", (None, 11, 4))
    assert streamkit.open(tmp_path / "out").class_names == ["farm", "sea"]
    for key, found in arrays(tmp_path / "out").items():
        np.testing.assert_array_equal(found, scenes[key])


@both
@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
def test_tiles_are_the_scene_again(tmp_path: Path, format: str, layout: str) -> None:
    scenes = {f"{i}.tif": values(50, 67, 6, "uint16", i) for i in range(2)}
    for key, data in scenes.items():
        write(tmp_path / "src" / key, data, **LAYOUTS[layout])
    convert(tmp_path / "src", tmp_path / "out", format, tile="16x20", stride="12x20", split="train=0.5,val=0.5")
    seen = {}
    for split in ("train", "val"):
        found = arrays(tmp_path / "out", split)
        seen |= found
        assert len({whole_of(key) for key in found}) == 1
        for row in index_rows(tmp_path / "out", split):
            assert [row["tile_y"], row["tile_x"]] == origin_of(row["key"])
    for key, data in scenes.items():
        out = np.zeros_like(data)
        for name, tile in seen.items():
            if whole_of(name) == key:
                y, x = origin_of(name)
                assert tile.shape == (16, 20, 6)
                out[y : y + 16, x : x + 20] = tile
        np.testing.assert_array_equal(out, data)
    batch = next(iter(streamkit.Loader(tmp_path / "out", split="train", batch_size=4, fields="array")))
    assert batch.shape == (4, 16, 20, 6) and batch.dtype == np.uint16


def test_tiles_of_plain_scenes_are_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamkit.codecs import image

    monkeypatch.setattr(image, "MAX_PIXELS", 40 * 50 - 1)
    whole = picture(40, 50)
    (tmp_path / "src").mkdir()
    tifffile.imwrite(tmp_path / "src" / "a.tif", whole, photometric="rgb", rowsperstrip=3, compression="zlib")
    convert(tmp_path / "src", tmp_path / "out", tile="20x25")
    for key, data in payloads(tmp_path / "out").items():
        y, x = origin_of(key)
        np.testing.assert_array_equal(pillow(data), whole[y : y + 20, x : x + 25])
    convert(tmp_path / "src" / "a.tif", tmp_path / "jpeg", tile="20x25", encode="jpeg:80", resize=10)
    assert {row["width"] for row in index_rows(tmp_path / "jpeg")} == {12}
    assert streamkit.open(tmp_path / "jpeg").schema["image"].encoding == "jpeg"


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    """8 bits, gray, RGB, with alpha or a palette, also compressed: as before, their bytes untouched."""
    files = {
        f"{i}.tif": encoded(picture(8, 9, c, seed=i), "TIFF", compression="tiff_lzw") for i, c in enumerate((1, 3, 4))
    }
    convert(write_files(tmp_path / "src", files), tmp_path / "out")
    assert payloads(tmp_path / "out") == files


def test_workers_change_nothing(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "src" / f"{i}.tif", values(90, 80, 3, "int16", i), tile=(32, 32), compression="zlib")
    found = []
    for workers in (1, 3):
        streamkit.convert(
            tmp_path / "src",
            tmp_path / str(workers),
            format="tfrecord",
            workers=workers,
            tile="16x16",
            shard_size="8KB",
        )
        found.append(digests(tmp_path / str(workers)))
    assert len(found[0]) > 5 and found[0] == found[1]


@pytest.mark.fault(18, 19, 21, 35)
def test_what_is_wrong_with_scenes(tmp_path: Path) -> None:
    good = write(tmp_path / "src" / "a.tif", values(40, 40, 5, "uint16"), rowsperstrip=4, compression="zlib")
    data = good.read_bytes()
    files = {
        "cut.tif": data[: len(data) // 2],
        "empty.tif": b"",
        "html.tif": b"<html>",
        "junk.tif": b"II*\0" + bytes(range(200)),
    }
    write_files(tmp_path / "src", files)
    write(tmp_path / "src" / "other.tif", values(40, 40, 4, "uint16"))
    with pytest.raises(SourceError) as caught:
        convert(tmp_path / "src", tmp_path / "out", tile="20x20")
    bad = {whole_of(key): reason for key, reason in caught.value.bad}
    assert set(bad) == {*files, "other.tif"}
    assert "HTML" in bad["html.tif"] and "4 bands" in bad["other.tif"] and "empty" in bad["empty.tif"]
    convert(tmp_path / "src", tmp_path / "out", tile="20x20", on_bad="skip")
    assert len({whole_of(key) for key in arrays(tmp_path / "out")} - {"cut.tif"}) == 1


def test_damaged_scenes_never_crash(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tif", values(40, 40, 3, "uint16"), tile=(16, 16), compression="zlib").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(150):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        for at in rng.integers(600 if number % 3 == 1 else len(data), size=2).tolist():
            if at < len(data):
                data[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.tif").write_bytes(data)
        try:
            with tiff.opened(str(tmp_path / "b.tif")) as scene:
                scene.window(0, 0, min(scene.info.height, 40), min(scene.info.width, 40))
        except tiff.BadTiff as error:
            assert "\n" not in str(error)


def test_masks_of_scenes_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "src" / "a.tif", values(20, 20, 5, "uint16"))
    write_files(tmp_path / "masks", {"a.png": encoded(picture(20, 20, 1))})
    with pytest.raises(UsageError, match="scenes"):
        convert(tmp_path / "src", tmp_path / "out", masks=tmp_path / "masks")


PEAK = """
import sys
from pathlib import Path
import numpy as np, tifffile
import streamkit
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
work = Path(sys.argv[1])
def make(path, height, width):
    def parts():
        for y in range(0, height, 512):
            for x in range(0, width, 512):
                yield np.full((512, 512), (y // 512 * 31 + x // 512) % 60000, np.uint16)
    path.parent.mkdir()
    tifffile.imwrite(path, parts(), shape=(height, width), dtype="uint16", photometric="minisblack",
                     tile=(512, 512), compression="zlib", compressionargs={"level": 1})
make(work / "small" / "a.tif", 1024, 1024)
make(work / "large" / "a.tif", 12288, 11264)
for name in ("small", "large"):
    open("/proc/self/clear_refs", "w").write("5")
    streamkit.convert(work / name, work / f"{name}-out", format="tfrecord", workers=1, tile="512x512",
                      shard_size="16MB", compression="zlib:1")
    print(peak() / 1e6)
man = streamkit.open(work / "large-out")
print(sum(split.samples for split in man.splits.values()))
"""


def test_a_scene_far_over_the_limit_takes_little_memory(tmp_path: Path) -> None:
    """138 Mpx of 16 bits: 277 MB of values, decoded, and a peak that is that of a small scene but for what is kept."""
    run = python(PEAK, tmp_path)
    assert run.returncode == 0, run.stderr
    small, large, n_tiles = map(float, run.stdout.split())
    assert n_tiles == 24 * 22
    assert large - small < 80, run.stdout
