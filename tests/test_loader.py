"""The loader delivers what its arguments say: structure, values, order, epochs, parts, and the rest after a resume."""

from __future__ import annotations

import functools
import gc
import io
import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import converting
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow.compute as pc
import pytest
import reading
from reading import all_same, convert, same

import streamkit
from streamkit import DamagedError, Loader, UsageError, pictures
from streamkit.codecs import image
from streamkit.codecs.resize import resize

N = 50  # rows of the numbered tables
SIZES = [(40 + 3 * (i % 5), 60 - 4 * (i % 7)) for i in range(24)]
LENGTHS = [i % 6 for i in range(20)]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small dataset a kind; see each line."""
    root = tmp_path_factory.mktemp("loader")
    table = reading.numbered(root / "in/table", N)
    convert(table, root / "table", shard_size=700, compression="none")
    convert(table, root / "split", split={"train": 0.8, "val": 0.2})
    big = reading.numbered(root / "in/big", 1200)
    convert(big, root / "chunked", "hdf5", compression="gzip", shard_size="20KB")
    several = reading.numbered(
        root / "in/several",
        N,
        z=np.arange(N * 6.0).reshape(N, 2, 3),
        weight=np.arange(N, dtype=np.float32) / 2,
    )
    convert(several, root / "several", "hdf5", compression="none")
    np.save(root / "in/rows.npy", np.arange(N * 4, dtype=np.int16).reshape(N, 4))
    convert(root / "in/rows.npy", root / "alone")
    reading.picture_folder(root / "in/photos", SIZES)
    convert(root / "in/photos", root / "photos", shard_size="8KB")
    reading.picture_folder(root / "in/drawings", SIZES[:12], format="PNG")
    convert(root / "in/drawings", root / "drawings")
    convert(root / "in/drawings", root / "raw", "hdf5", encode="raw")
    reading.picture_folder(root / "in/equal", [(24, 32)] * 10)
    convert(root / "in/equal", root / "equal")
    convert(root / "in/equal", root / "equal-raw", "hdf5", encode="raw")
    reading.picture_folder(root / "in/flat", SIZES[:8], n_classes=0, format="PNG")
    convert(root / "in/flat", root / "flat")
    reading.ragged_folder(root / "in/ragged", LENGTHS)
    convert(root / "in/ragged", root / "ragged")
    return root


def numbers(batch: Any) -> list[int]:
    """Which rows of the source a batch of a numbered table holds."""
    x = batch[0] if isinstance(batch, tuple) else batch
    return [int(v) for v in np.atleast_2d(x)[:, 0]]


def epoch_of(loader: Loader) -> list[list[int]]:
    return [numbers(batch) for batch in loader]


def pillow(path: Path, mode: str = "RGB") -> np.ndarray:
    """The upright pixels of a file, uint8 (height, width, channels): Pillow's, of JPEGs those of the fast DCT."""
    with PIL.Image.open(path) as picture:
        if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
            pixels = converting.pillow(path.read_bytes())
            turned = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        else:
            turned = PIL.ImageOps.exif_transpose(picture)
        return np.atleast_3d(np.asarray(turned.convert(mode)))


# What a batch looks like


def test_image_and_label(made: Path) -> None:
    loader = Loader(made / "photos", batch_size=5, image_size=(16, 20))
    images, labels = loader[0]
    assert (images.dtype, images.shape) == (np.float32, (5, 16, 20, 3))
    assert (labels.dtype, labels.shape) == (np.int32, (5,))
    assert images.min() >= 0 and 200 < images.max() <= 255
    assert list(loader.class_names) == ["c0", "c1", "c2"]


def test_labels_are_those_of_the_folders(made: Path) -> None:
    loader = Loader(made / "photos", batch_size=7, fields=("label", "key"))
    found = {key: int(label) for labels, keys in loader for label, key in zip(labels, keys, strict=True)}
    assert len(found) == len(SIZES)
    assert all(key.startswith(f"c{label}/") for key, label in found.items())


def test_array_and_label(made: Path) -> None:
    x, labels = Loader(made / "table", batch_size=8)[0]
    assert (x.dtype, x.shape, labels.dtype, labels.shape) == (np.float32, (8, 16), np.int32, (8,))
    assert (labels == x[:, 0].astype(int) % 3).all() and (x == x[:, :1]).all()


@pytest.mark.parametrize(("name", "shape", "dtype"), [("alone", (6, 4), "int16"), ("flat", (6, 8, 8, 3), "float32")])
def test_one_payload_alone_is_a_bare_array(made: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    batch = Loader(made / name, batch_size=6, image_size=(8, 8))[0]
    assert isinstance(batch, np.ndarray) and (batch.shape, batch.dtype) == (shape, np.dtype(dtype))


def test_several_payloads_or_columns_are_a_dict(made: Path) -> None:
    batch = Loader(made / "several", batch_size=8, dtype="uint8")[0]
    assert sorted(batch) == ["label", "weight", "x", "z"]
    facts = {name: (str(values.dtype), values.shape) for name, values in batch.items()}
    assert facts == {
        "x": ("float32", (8, 16)),
        "z": ("float64", (8, 2, 3)),  # dtype= is of images only
        "weight": ("float32", (8,)),
        "label": ("int32", (8,)),
    }
    rows = batch["x"][:, 0]
    assert (batch["z"] == rows[:, None, None] * 6 + np.arange(6).reshape(2, 3)).all()
    assert (batch["weight"] == rows / 2).all() and (batch["label"] == rows % 3).all()


def test_fields_choose_and_order(made: Path) -> None:
    whole = Loader(made / "several", batch_size=8)[0]
    of = functools.partial(Loader, made / "several", batch_size=8)
    assert same(of(fields="z")[0], whole["z"])
    assert same(of(fields=("label", "z"))[0], (whole["label"], whole["z"]))
    assert same(of(fields=["z", "label"])[0], (whole["z"], whole["label"]))
    assert same(of(fields=("x",))[0], (whole["x"],))
    keys, x = of(fields=("key", "x"))[0]
    assert [reading.row_of(key) for key in keys] == numbers(x)
    assert [reading.row_of(key) for key in of(fields="key")[0]] == numbers(x)


def test_label_modes(made: Path) -> None:
    of = functools.partial(Loader, made / "table", batch_size=8)
    x, labels = of()[0]
    assert same(of(label_mode=None)[0], x)
    _, hot = of(label_mode="categorical")[0]
    assert same(hot, np.eye(3, dtype=np.float32)[labels])
    whole = Loader(made / "ragged", batch_size=8)[0]
    binary = Loader(made / "ragged", batch_size=8, label_mode="binary")[0]
    assert same(binary["label"], whole["label"].astype(np.float32)[:, None])
    with pytest.raises(UsageError, match="needs 2 classes, there are 3"):
        of(label_mode="binary")


@pytest.mark.parametrize("batch_size", [4, None])
def test_dtype_and_range(made: Path, batch_size: int | None) -> None:
    of = functools.partial(Loader, made / "equal", batch_size=batch_size, shuffle=False)
    base, _ = of(dtype="uint8")[2]
    assert base.dtype == np.uint8 and int(base.max()) > 150
    for dtype in ("float32", "float16", "float64"):
        images, _ = of(dtype=dtype)[2]
        assert images.dtype == np.dtype(dtype) and (images == base).all()
    assert of()[2][0].dtype == np.float32
    assert same(of(dtype=np.float16)[2], of(dtype="float16")[2])


def test_single_samples(made: Path) -> None:
    batched = Loader(made / "table", batch_size=8)
    single = Loader(made / "table", batch_size=None)
    assert len(single) == N
    samples = list(single)
    x, label = samples[0]
    assert x.shape == (16,) and np.asarray(label).shape == () and np.asarray(label).dtype == np.int32
    assert [int(x[0]) for x, _ in samples] == [n for batch in epoch_of(batched) for n in batch]
    assert same(Loader(made / "table", batch_size=None)[7], samples[7])


def test_single_samples_keep_their_own_sizes(made: Path) -> None:
    loader = Loader(made / "drawings", batch_size=None, fields=("image", "key"), dtype="uint8")
    for pixels, key in loader:
        assert np.array_equal(pixels, pillow(made / "in/drawings" / key))
    kept = [pixels for pixels, _ in Loader(made / "photos", batch_size=None)]
    assert sorted({p.shape[:2] for p in kept}) == sorted(set(SIZES))
    assert len({p.tobytes() for p in kept}) == len(SIZES)  # and none was overwritten by the next


# Ragged arrays


def test_ragged_arrays_are_padded_with_zeros_and_say_their_length(made: Path) -> None:
    loader = Loader(made / "ragged", batch_size=6)
    n = 0
    for batch in loader:
        assert sorted(batch) == ["array", "array_length", "label"]
        values, lengths = batch["array"], batch["array_length"]
        assert lengths.dtype == np.int32 and values.shape == (len(lengths), lengths.max(), 3)
        for value, length in zip(values, lengths, strict=True):
            assert (value[length:] == 0).all()
            assert (value[:length] > 0).all() and len(np.unique(value[:length])) <= 1
            n += int(length)
    assert n == sum(LENGTHS)


def test_pad_to_a_number(made: Path) -> None:
    for batch in Loader(made / "ragged", batch_size=6, pad_to=9):
        assert batch["array"].shape[1:] == (9, 3)
        assert [int((v != 0).any(1).sum()) for v in batch["array"]] == batch["array_length"].tolist()
    with pytest.raises(UsageError, match=r"has 5 rows, pad_to is 4.*pad_to=5") as caught:
        list(Loader(made / "ragged", batch_size=20, pad_to=4))
    assert ".npy" in str(caught.value)
    for wrong in (None, 2.5, ()):
        with pytest.raises(UsageError, match="a number of rows, or several"):
            Loader(made / "ragged", batch_size=6, pad_to=wrong)


def test_a_ragged_field_asked_for_by_name_comes_without_its_length(made: Path) -> None:
    whole = Loader(made / "ragged", batch_size=6)[0]
    assert same(Loader(made / "ragged", batch_size=6, fields="array")[0], whole["array"])


def test_ragged_single_samples_are_not_padded(made: Path) -> None:
    samples = list(Loader(made / "ragged", batch_size=None, fields=("array", "key")))
    for values, key in samples:
        assert np.array_equal(values, np.load(made / "in/ragged" / key))
    assert sorted(len(values) for values, _ in samples) == sorted(LENGTHS)


@pytest.mark.parametrize("format", reading.FORMATS)
def test_arrays_may_vary_along_several_axes(tmp_path: Path, format: str) -> None:
    shapes = [(2, 3, 5), (4, 3, 1), (1, 3, 4)]
    (tmp_path / "in").mkdir()
    for i, shape in enumerate(shapes):
        np.save(tmp_path / f"in/{i}.npy", np.full(shape, i + 1, np.int32))
    out = convert(tmp_path / "in", tmp_path / "out", format)
    batch = Loader(out, batch_size=3)[0]
    assert batch["array"].shape == (3, 4, 3, 5) and batch["array_length"].shape == (3, 2)
    for value, (a, b) in zip(batch["array"], batch["array_length"], strict=True):
        i = int(value[0, 0, 0]) - 1
        assert (a, b) == (shapes[i][0], shapes[i][2])
        expected = np.zeros((4, 3, 5), np.int32)
        expected[:a, :, :b] = i + 1
        assert np.array_equal(value, expected)


# Pictures


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "bicubic", "area", "antialias", "lanczos3"])
@pytest.mark.parametrize("name", ["drawings", "raw"])
def test_image_size_is_resize_of_the_decoded_picture(made: Path, name: str, interpolation: str) -> None:
    loader = Loader(
        made / name,
        batch_size=4,
        image_size=(17, 23),
        interpolation=interpolation,
        dtype="uint8",
        fields=("image", "key"),
    )
    for images, keys in loader:
        for pixels, key in zip(images, keys, strict=True):
            assert np.array_equal(pixels, resize(pillow(made / "in/drawings" / key), (17, 23), interpolation)), key


def test_jpegs_are_decoded_at_a_scale_and_stay_faithful(made: Path, tmp_path: Path) -> None:
    size = (15, 18)
    for images, keys in Loader(made / "photos", batch_size=6, image_size=size, dtype="uint8", fields=("image", "key")):
        for pixels, key in zip(images, keys, strict=True):
            data = (made / "in/photos" / key).read_bytes()
            assert np.array_equal(pixels, resize(image.decode(data, channels=3, at_least=(16, 19)), size))
    reading.picture_folder(tmp_path / "in", [(480, 640), (501, 667), (300, 224), (768, 1024)])
    out = convert(tmp_path / "in", tmp_path / "out")
    loader = Loader(out, batch_size=4, image_size=(224, 224), dtype="uint8", fields=("image", "key"))
    for pixels, key in zip(*loader[0], strict=True):
        reference = resize(pillow(tmp_path / "in" / key), (224, 224), "antialias").astype(float)
        assert 10 * np.log10(255**2 / ((pixels - reference) ** 2).mean()) > 36, key  # what tf.image.resize reaches


def test_pictures_of_the_size_wanted_pass_through(made: Path) -> None:
    for name in ("equal", "equal-raw"):
        images, keys = Loader(made / name, batch_size=10, dtype="uint8", fields=("image", "key"))[0]
        for pixels, key in zip(images, keys, strict=True):
            assert np.abs(pixels.astype(int) - pillow(made / "in/equal" / key)).max() <= 1


def test_crop_to_aspect_ratio_takes_the_centre_as_keras_does(made: Path) -> None:
    for height, width in [(20, 20), (10, 30), (30, 10)]:
        loader = Loader(
            made / "drawings",
            batch_size=12,
            image_size=(height, width),
            crop_to_aspect_ratio=True,
            dtype="uint8",
            fields=("image", "key"),
        )
        images, keys = loader[0]
        for pixels, key in zip(images, keys, strict=True):
            source = pillow(made / "in/drawings" / key)
            h, w = source.shape[:2]
            # Source: keras.utils.image_utils.smart_resize
            crop_h, crop_w = min(h, int(w * height / width)), min(w, int(h * width / height))
            top, left = (h - crop_h) // 2, (w - crop_w) // 2
            centre = np.ascontiguousarray(source[top : top + crop_h, left : left + crop_w])
            assert np.array_equal(pixels, resize(centre, (height, width))), key


@pytest.mark.parametrize("name", ["drawings", "raw", "photos"])
def test_color_modes(made: Path, name: str) -> None:
    folder = made / ("in/photos" if name == "photos" else "in/drawings")
    for mode, pil_mode, n_channels in [("rgb", "RGB", 3), ("grayscale", "L", 1), ("rgba", "RGBA", 4)]:
        loader = Loader(made / name, batch_size=None, color_mode=mode, dtype="uint8", fields=("image", "key"))
        for pixels, key in loader:
            expected = pillow(folder / key, pil_mode)
            assert pixels.shape == (*expected.shape[:2], n_channels)
            error = np.abs(pixels.astype(int) - expected)  # a gray JPEG is its luma; Pillow rounds by way of RGB
            assert error.max() <= (6 if name == "photos" else 2) and error.mean() < 1, (mode, key)
    assert Loader(made / name, image_size=(8, 9), color_mode="grayscale")[0][0].shape[1:] == (8, 9, 1)


def test_differing_sizes_need_image_size_and_the_error_says_so(made: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Loader(made / "photos", batch_size=4)
    heights, widths = zip(*SIZES, strict=True)
    text = str(caught.value)
    assert f"{min(heights)}-{max(heights)}x{min(widths)}-{max(widths)}" in text and "image_size=" in text
    assert Loader(made / "photos", batch_size=4, fields="label")[0].shape == (4,)  # not needed without pictures


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for orientation in range(1, 9):
        pixels = reading.photo(24 if orientation < 5 else 40, 40 if orientation < 5 else 24, seed=orientation)
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        for format, extension in [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")]:
            options = {"lossless": True} if format == "WEBP" else {}
            data = reading.encoded(pixels, format, exif=exif, **options)
            (tmp_path / f"in/{orientation}.{extension}").write_bytes(data)
    out = convert(tmp_path / "in", tmp_path / "out")
    assert streamkit.open(out).schema["image"].shape == (24, 40, 3)  # upright, they all have one size
    images, keys = Loader(out, batch_size=24, dtype="uint8", fields=("image", "key"))[0]
    for pixels, key in zip(images, keys, strict=True):
        assert np.abs(pixels.astype(int) - pillow(tmp_path / "in" / key)).max() <= 2, key
    of_area = Loader(out, batch_size=24, dtype="uint8", fields="image", interpolation="area")[0]
    np.testing.assert_array_equal(images, of_area)  # nothing is resized, so the turned and the others are as without it
    small, keys = Loader(out, batch_size=24, image_size=(9, 11), dtype="uint8", fields=("image", "key"))[0]
    for pixels, key in zip(small, keys, strict=True):
        expected = resize(pillow(tmp_path / "in" / key), (9, 11), "antialias").astype(int)
        assert np.abs(pixels - expected).mean() < 12, key  # turned wrongly it is over 40


@pytest.mark.parametrize("encode", ["keep", "raw"])
def test_all_kinds_of_pictures_in_one_folder_stream_as_rgb(tmp_path: Path, encode: str) -> None:
    kinds: dict[str, Callable[[PIL.Image.Image, io.BytesIO], Any]] = {
        "gray.jpg": lambda p, f: p.convert("L").save(f, "JPEG"),
        "cmyk.jpg": lambda p, f: p.convert("CMYK").save(f, "JPEG"),
        "rgb.jpg": lambda p, f: p.save(f, "JPEG"),
        "gray.png": lambda p, f: p.convert("L").save(f, "PNG"),
        "graya.png": lambda p, f: p.convert("LA").save(f, "PNG"),
        "rgba.png": lambda p, f: p.convert("RGBA").save(f, "PNG"),
        "palette.png": lambda p, f: p.convert("P").save(f, "PNG"),
        "clear.png": lambda p, f: p.convert("P").save(f, "PNG", transparency=3),
        "bilevel.png": lambda p, f: p.convert("1").save(f, "PNG"),
        "a.gif": lambda p, f: p.save(f, "GIF"),
        "a.bmp": lambda p, f: p.save(f, "BMP"),
        "a.tif": lambda p, f: p.save(f, "TIFF"),
        "cmyk.tif": lambda p, f: p.convert("CMYK").save(f, "TIFF"),
        "a.webp": lambda p, f: p.save(f, "WEBP", lossless=True),
        "rgba.webp": lambda p, f: p.convert("RGBA").save(f, "WEBP", lossless=True),
    }
    (tmp_path / "in").mkdir()
    for i, (name, save) in enumerate(kinds.items()):
        buffer = io.BytesIO()
        save(PIL.Image.fromarray(reading.photo(24, 32, seed=i)), buffer)
        (tmp_path / "in" / name).write_bytes(buffer.getvalue())
    out = convert(tmp_path / "in", tmp_path / "out", encode=encode)
    images, keys = Loader(out, batch_size=len(kinds), image_size=(24, 32), dtype="uint8", fields=("image", "key"))[0]
    assert images.shape == (len(kinds), 24, 32, 3)
    for pixels, key in zip(images, keys, strict=True):
        expected = pillow(tmp_path / "in" / key)
        if key == "clear.png":  # alpha is dropped, not blended, and the other colours stay
            expected = pillow(tmp_path / "in" / key, "RGBA")[:, :, :3]
        assert np.abs(pixels.astype(int) - expected).max() <= 2, key


# Crops and flips


@pytest.fixture(scope="session")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNGs whose red is 2x and whose green is 2y at pixel (x, y), so that a crop shows where it was cut."""
    root = tmp_path_factory.mktemp("ramps")
    (root / "in").mkdir()
    for i in range(40):
        y, x = np.mgrid[: 100 + i % 3, : 120 - i % 4]
        pixels = np.stack([2 * x, 2 * y, np.full_like(x, i)], axis=2).astype(np.uint8)
        (root / f"in/{i:02d}.png").write_bytes(reading.encoded(pixels))
    return convert(root / "in", root / "out")


AUGMENTED = {"crop": "random", "flip": True, "image_size": (32, 32), "dtype": "uint8", "fields": ("image", "key")}


def by_key(loader: Loader) -> dict[str, np.ndarray]:
    return {key: pixels for images, keys in loader for pixels, key in zip(images, keys, strict=True)}


def test_crops_and_flips_hang_on_seed_epoch_and_sample_alone(ramps: Path) -> None:
    truth = by_key(Loader(ramps, batch_size=7, **AUGMENTED))
    for options in ({"batch_size": 5}, {"num_workers": 0}, {"rows": range(39, 0, -3)}, {"shuffle": False}):
        found = by_key(Loader(ramps, **{"batch_size": 7} | AUGMENTED | options))
        assert all(np.array_equal(pixels, truth[key]) for key, pixels in found.items())
    later = Loader(ramps, batch_size=7, **AUGMENTED)
    later.epoch = 1
    other_epoch, other_seed = by_key(later), by_key(Loader(ramps, batch_size=7, seed=1, **AUGMENTED))
    for other in (other_epoch, other_seed):
        assert sum(np.array_equal(other[key], pixels) for key, pixels in truth.items()) < 3


def test_random_crops_are_parts_of_the_picture_of_the_sizes_said(ramps: Path) -> None:
    areas, ratios, mirrored = [], [], 0
    loader = Loader(ramps, batch_size=40, **AUGMENTED)
    for _ in range(5):
        for pixels in loader[0][0].astype(float):
            # Along a row red rises by 2 a source pixel, or falls where it is mirrored; green rises down a column.
            across = (pixels[:, 28, 0] - pixels[:, 3, 0]).mean() / 25 / 2 * 32
            down = (pixels[28, :, 1] - pixels[3, :, 1]).mean() / 25 / 2 * 32
            mirrored += across < 0
            areas.append(abs(across) * down / (101 * 118.5))
            ratios.append(abs(across) / down)
        loader.epoch += 1
    assert 60 < mirrored < 140  # of 200
    assert 0.06 < min(areas) < 0.2 and 0.75 < max(areas) < 1.1
    assert 0.65 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.5


def test_flips_mirror_about_half_and_nothing_else(made: Path) -> None:
    of = functools.partial(Loader, made / "drawings", image_size=(12, 14), dtype="uint8", fields=("image", "key"))
    plain = by_key(of())
    n_mirrored = 0
    loader = of(flip=True)
    for _ in range(4):
        for key, pixels in by_key(loader).items():
            mirrored = np.array_equal(pixels, plain[key][:, ::-1])
            assert mirrored or np.array_equal(pixels, plain[key])
            n_mirrored += mirrored
    assert 10 < n_mirrored < 38  # of 48


def test_crops_of_pictures_known_to_be_whole_are_the_same_with_less_decoding(tmp_path: Path) -> None:
    """Lines below a crop are left out only where the conversion has decoded them, and show in no batch."""
    files = {f"a/{i}.jpg": converting.encoded(converting.noise(260, 300, seed=i), "JPEG") for i in range(6)}
    source = converting.write_files(tmp_path / "raw", files)
    shortened, batches = [], []
    for check in ("header", "decode"):
        loader = Loader(
            convert(source, tmp_path / check, check=check), crop="random", image_size=(64, 48), shuffle=False
        )
        with mock.patch.object(pictures, "decode_into", wraps=pictures.decode_into) as decoding:
            batches.append([])
            for loader.epoch in range(4):
                batches[-1] += [x for x, _ in loader]
        shortened.append({call.args[4].upper_alone for call in decoding.call_args_list})
    assert same(*batches) and len(batches[0]) == 4
    assert shortened == [{False}, {True}]


def test_a_crop_of_a_picture_not_known_to_be_whole_finds_damage_below_it(tmp_path: Path) -> None:
    whole = converting.encoded(converting.noise(260, 300), "JPEG")
    source = converting.write_files(tmp_path / "raw", {"a/0.jpg": whole[: len(whole) * 9 // 10]})
    loader = Loader(convert(source, tmp_path / "out", check="header"), crop="random", image_size=(64, 48))
    for epoch in range(8):
        loader.epoch = epoch
        with pytest.raises(DamagedError, match="damaged JPEG"):
            next(iter(loader))


def test_a_centre_crop_is_that_of_crop_to_aspect_ratio(made: Path) -> None:
    of = functools.partial(Loader, made / "photos", image_size=(20, 12), batch_size=8)
    assert same(of(crop="center")[1], of(crop_to_aspect_ratio=True)[1])
    assert not same(of()[1], of(crop="center")[1])


# Length, remainder


@pytest.mark.parametrize(("batch_size", "drop", "sizes"), [(16, False, [16, 16, 16, 2]), (16, True, [16, 16, 16])])
def test_remainder(made: Path, batch_size: int, drop: bool, sizes: list[int]) -> None:
    loader = Loader(made / "table", batch_size=batch_size, drop_remainder=drop)
    assert [len(x) for x, _ in loader] == sizes and len(loader) == len(sizes)
    assert loader.n_samples == N


@pytest.mark.parametrize("batch_size", [1, 7, 25, 49, 50, 51, 1000])
def test_len_is_the_number_of_batches(made: Path, batch_size: int) -> None:
    for drop in (False, True):
        loader = Loader(made / "table", batch_size=batch_size, drop_remainder=drop)
        assert len(loader) == len(list(loader)) == (N // batch_size if drop else -(-N // batch_size))


# Order and epochs


@pytest.mark.parametrize("name", ["table", "chunked"])
def test_every_epoch_delivers_every_sample_once_in_another_order(made: Path, name: str) -> None:
    loader = Loader(made / name, batch_size=16)
    epochs = [[n for batch in epoch_of(loader) for n in batch] for _ in range(4)]
    assert all(sorted(epoch) == list(range(loader.n_samples)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(epoch != sorted(epoch) for epoch in epochs)


@pytest.mark.parametrize("name", ["table", "chunked", "ragged", "photos"])
def test_the_same_seed_gives_the_same_batches_for_any_number_of_workers(made: Path, name: str) -> None:
    def two_epochs(num_workers: int) -> list[Any]:
        loader = Loader(made / name, batch_size=7, seed=5, image_size=(9, 9), num_workers=num_workers)
        return [batch for _ in range(2) for batch in loader]

    truth = two_epochs(0)
    for num_workers in (1, 2, 4):
        assert all_same(two_epochs(num_workers), truth), num_workers


@pytest.mark.parametrize("name", ["table", "ragged", "photos"])
def test_the_memory_budget_changes_no_batch(made: Path, name: str) -> None:
    of = functools.partial(Loader, made / name, batch_size=7, image_size=(9, 9))
    assert all_same(list(of(memory_budget=1)), list(of(memory_budget="1GiB")))


def test_in_chunked_data_the_memory_budget_sizes_the_window_and_the_cursor_knows(made: Path) -> None:
    small, large = (Loader(made / "chunked", batch_size=50, memory_budget=b) for b in (1 << 20, 1 << 30))
    assert epoch_of(small) != epoch_of(large)
    with pytest.raises(UsageError, match=r"window \(cursor"):
        small.resume(large.cursor_at(3))


@pytest.mark.parametrize("name", ["table", "chunked", "several"])
def test_the_order_does_not_depend_on_what_is_asked_for(made: Path, name: str) -> None:
    payload = [list(keys) for _, keys in Loader(made / name, batch_size=7, fields=("x", "key"))]
    assert [list(keys) for keys in Loader(made / name, batch_size=7, fields="key")] == payload
    assert [list(keys) for _, keys in Loader(made / name, batch_size=7, fields=("label", "key"))] == payload


@pytest.mark.parametrize("name", ["table", "chunked"])
def test_numbers_of_numpy_are_numbers(made: Path, name: str) -> None:
    plain = Loader(made / name, batch_size=8, seed=4)
    loader = Loader(made / name, batch_size=np.int64(8), seed=np.uint8(4))
    assert epoch_of(loader) == epoch_of(plain)
    loader.epoch = np.int32(3)
    plain.epoch = 3
    assert epoch_of(loader) == epoch_of(plain)
    assert json.loads(json.dumps(loader.cursor_at(np.int64(9)))) == plain.cursor_at(9)


def test_another_seed_is_another_order(made: Path) -> None:
    orders = {json.dumps(epoch_of(Loader(made / "table", seed=seed))) for seed in (0, 1, 2, -1, 2**63)}
    assert len(orders) == 5


@pytest.mark.parametrize("name", ["table", "chunked"])
def test_without_shuffling_it_is_storage_order(made: Path, name: str) -> None:
    stored = [reading.row_of(key) for key in reading.keys_of(made / name)]
    loader = Loader(made / name, batch_size=16, shuffle=False, seed=3)
    for _ in range(2):
        assert [n for batch in epoch_of(loader) for n in batch] == stored


def test_the_kth_iteration_begun_is_epoch_k(made: Path) -> None:
    loader = Loader(made / "table", batch_size=8)
    runs = []
    for k in range(3):
        assert loader.epoch == k
        runs.append(epoch_of(loader))
    again = Loader(made / "table", batch_size=8)
    again.epoch = 2
    assert epoch_of(again) == runs[2] and again.epoch == 3
    again.epoch = 1
    assert epoch_of(again) == runs[1]
    with pytest.raises(UsageError, match="epoch is -1"):
        again.epoch = -1


def test_an_iteration_broken_off_was_begun(made: Path) -> None:
    loader, whole = (Loader(made / "table", batch_size=8) for _ in range(2))
    runs = [epoch_of(whole) for _ in range(2)]
    for batch in loader:
        assert numbers(batch) == runs[0][0]
        break
    assert epoch_of(loader) == runs[1]


def test_two_iterations_at_once_are_two_epochs(made: Path) -> None:
    whole = Loader(made / "table", batch_size=8)
    runs = [epoch_of(whole) for _ in range(2)]
    loader = Loader(made / "table", batch_size=8)
    first, second = iter(loader), iter(loader)
    pairs = [(numbers(a), numbers(b)) for a, b in zip(first, second, strict=True)]
    assert pairs == list(zip(*runs, strict=True))


def test_looking_at_a_batch_never_advances(made: Path) -> None:
    loader = Loader(made / "table", batch_size=8)
    runs = [[loader[i] for i in range(len(loader))] for _ in range(2)]
    assert loader.epoch == 0 and all_same(runs[0], runs[1])
    assert (
        same(loader[-1], runs[0][-1])
        and same(loader[-len(loader)], runs[0][0])
        and same(loader[np.int64(2)], loader[2])
    )
    delivered = list(loader)
    assert all_same(delivered, runs[0])
    assert numbers(loader[0]) != numbers(runs[0][0])  # now epoch 1
    for i in (len(loader), -len(loader) - 1):
        with pytest.raises(IndexError, match="7 batches"):
            loader[i]


# Choosing


@pytest.mark.parametrize(
    ("part", "start", "stop"),
    [
        ("", 0, N),
        ("[:80%]", 0, 40),
        ("[80%:]", 40, N),
        ("[25%:75%]", 12, 38),
        ("[10:20]", 10, 20),
        ("[-10%:]", 45, N),
        ("[:-5]", 0, 45),
        ("[10:1000]", 10, N),
    ],
)
def test_slices_of_stored_rows(made: Path, part: str, start: int, stop: int) -> None:
    stored = [reading.row_of(key) for key in reading.keys_of(made / "table")]
    loader = Loader(made / "table", split=f"train{part}", batch_size=8)
    assert loader.n_samples == stop - start
    found = [n for batch in epoch_of(loader) for n in batch]
    assert sorted(found) == sorted(stored[start:stop])


def test_slices_that_meet_partition_the_split(made: Path) -> None:
    cuts = ["0%", "13%", "50%", "52%", "97%", "100%"]
    parts = [f"train[{a}:{b}]" for a, b in itertools.pairwise(cuts)]
    found = [n for part in parts for batch in epoch_of(Loader(made / "table", split=part)) for n in batch]
    assert sorted(found) == list(range(N))


@pytest.mark.parametrize("name", ["table", "chunked"])
def test_where_chooses_by_the_index(made: Path, name: str) -> None:
    loader = Loader(made / name, where=pc.field("label") == 1, batch_size=8)
    for _ in range(2):
        found = [n for batch in epoch_of(loader) for n in batch]
        assert sorted(found) == list(range(1, loader.manifest.splits["train"].samples, 3))
    by_key = Loader(made / name, where=pc.ends_with(pc.field("key"), "#7") & (pc.field("label") == 1))
    assert epoch_of(by_key) == [[7]]


def test_rows_choose_and_order(made: Path) -> None:
    stored = [reading.row_of(key) for key in reading.keys_of(made / "table")]
    rows = [40, 3, 17, 8]
    loader = Loader(made / "table", rows=rows, shuffle=False, batch_size=3)
    assert epoch_of(loader) == [[stored[40], stored[3], stored[17]], [stored[8]]]
    shuffled = [n for batch in epoch_of(Loader(made / "table", rows=np.array(rows))) for n in batch]
    assert sorted(shuffled) == sorted(stored[r] for r in rows)


def test_slice_where_and_rows_work_together(made: Path) -> None:
    stored = [reading.row_of(key) for key in reading.keys_of(made / "table")]
    loader = Loader(
        made / "table", split="train[:50%]", where=pc.field("label") < 2, rows=range(0, N, 2), shuffle=False
    )
    expected = [stored[r] for r in range(0, 25, 2) if stored[r] % 3 < 2]
    assert [n for batch in epoch_of(loader) for n in batch] == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": pc.field("nope") == 1}, "nope"),
        ({"where": pc.field("label") == 99}, "no sample"),
        ({"where": "label == 1"}, "pyarrow.compute"),
        ({"where": lambda row: True}, "pyarrow.compute"),
        ({"where": pc.field("label")}, "where"),
        ({"rows": [N]}, f"the split has {N}"),
        ({"rows": [-1]}, f"the split has {N}"),
        ({"rows": []}, "no sample"),
        ({"rows": ["a"]}, "rows"),
        ({"split": "train[40:40]"}, "no sample"),
    ],
)
def test_choices_that_cannot_be(made: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Loader(made / "table", **options)


# Shards


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5])
@pytest.mark.parametrize("drop", [False, True])
def test_shards_together_are_the_global_batches(made: Path, num_shards: int, drop: bool) -> None:
    shards = [
        Loader(made / "table", batch_size=4, shard_index=r, num_shards=num_shards, drop_remainder=drop)
        for r in range(num_shards)
    ]
    alone = Loader(made / "table", batch_size=4 * num_shards, drop_remainder=drop)
    for _ in range(2):
        parts = [epoch_of(shard) for shard in shards]
        assert len({len(part) for part in parts}) == 1 == len({len(shard) for shard in shards})
        together = [list(itertools.chain(*batches)) for batches in zip(*parts, strict=True)]
        whole = epoch_of(alone)
        for mine, batch in zip(together, whole, strict=False):
            assert mine == batch[: len(batch) // num_shards * num_shards]
        assert len({len(part[-1]) for part in parts}) == 1


# Resume


def keys_from(loader: Loader, n_epochs: int) -> list[list[str]]:
    """The keys of what is left of `n_epochs` epochs since epoch 0."""
    out = []
    while loader.epoch < n_epochs:
        for batch in loader:
            keys = batch[0] if isinstance(batch, tuple) else batch
            out.append([keys] if isinstance(keys, str) else list(keys))
    return out


RESUME = {
    "table": {"batch_size": 8},
    "chunked": {"batch_size": 250, "fields": ("key", "x"), "memory_budget": "1MiB"},
    "single samples": {"batch_size": None, "rows": range(11)},
    "storage order": {"batch_size": 8, "shuffle": False},
    "drop_remainder": {"batch_size": 8, "drop_remainder": True},
    "second shard of two": {"batch_size": 5, "shard_index": 1, "num_shards": 2},
    "no threads": {"batch_size": 8, "num_workers": 0},
}


@pytest.mark.parametrize("name", RESUME)
def test_resuming_at_every_step_of_two_epochs_continues_the_undisturbed_run(made: Path, name: str) -> None:
    path = made / ("chunked" if name == "chunked" else "table")

    def fresh() -> Loader:
        options: dict[str, Any] = RESUME[name]
        return Loader(path, seed=3, **({"fields": ("key",)} | options))

    truth = keys_from(fresh(), 2)
    length = len(fresh())
    assert len(truth) == 2 * length
    for step in range(2 * length + 1):
        saved = json.loads(json.dumps(fresh().cursor_at(step)))
        loader = fresh()
        loader.resume(saved)
        assert (loader.epoch, len(loader)) == (step // length, length)
        assert keys_from(loader, 2) == truth[step:], step


def test_resuming_in_a_fresh_process(made: Path) -> None:
    options = {"batch_size": 8, "fields": "key", "seed": 11}
    loader = Loader(made / "table", **options)
    truth = keys_from(loader, 2)
    steps = [0, 3, 7, 9, 13]
    code = """if True:
        import json, sys, streamkit
        path, options, cursors = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
        found = []
        for cursor in cursors:
            loader = streamkit.Loader(path, **options)
            loader.resume(cursor)
            keys = []
            while loader.epoch < 2:
                keys += [list(batch) for batch in loader]
            found.append(keys)
        print(json.dumps(found))
    """
    cursors = [loader.cursor_at(step) for step in steps]
    found = reading.run_python(code, made / "table", json.dumps(options), json.dumps(cursors))
    assert found == [truth[step:] for step in steps]


def test_the_cursor_is_of_the_batches_trained_and_counts_from_epoch_0_after_a_resume(made: Path) -> None:
    first = Loader(made / "table", batch_size=8)
    iterator = iter(first)
    next(iterator)  # some batches have been made ahead now
    cursors = [first.cursor_at(step) for step in range(20)]
    assert cursors == [Loader(made / "table", batch_size=8).cursor_at(step) for step in range(20)]
    second = Loader(made / "table", batch_size=8)
    second.resume(cursors[10])
    next(iter(second))
    assert [second.cursor_at(step) for step in range(20)] == cursors
    with pytest.raises(UsageError, match="step is -1"):
        first.cursor_at(-1)


def test_a_cursor_is_small_json_and_resuming_twice_is_resuming_once(made: Path) -> None:
    loader = Loader(made / "table", batch_size=8, fields="key")
    truth = keys_from(loader, 3)
    cursor = loader.cursor_at(9)
    assert len(json.dumps(cursor)) < 1000 and json.loads(json.dumps(cursor)) == cursor
    for _ in range(2):
        loader.resume(cursor)
    assert loader.epoch == 1
    assert [list(keys) for keys in loader] == truth[9:14]
    assert [list(keys) for keys in loader] == truth[14:]  # later epochs are whole
    loader.resume(cursor)
    loader.epoch = 1  # setting the epoch takes back the resume
    assert [list(keys) for keys in loader] == truth[7:14]


def test_another_number_of_shards_with_the_same_global_batch_may_resume(made: Path) -> None:
    alone = Loader(made / "table", batch_size=8, fields="key", drop_remainder=True)
    truth = keys_from(alone, 2)
    for step in range(2 * len(alone)):
        shards = [
            Loader(made / "table", batch_size=4, fields="key", drop_remainder=True, shard_index=r, num_shards=2)
            for r in range(2)
        ]
        for shard in shards:
            shard.resume(alone.cursor_at(step))
        parts = [keys_from(shard, 2) for shard in shards]
        assert [a + b for a, b in zip(*parts, strict=True)] == truth[step:]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("split", {"split": "train", "seed": 1}, "seed"),
        ("split", {"split": "val"}, "split"),
        ("split", {"split": "train[:50%]"}, "choosing"),
        ("split", {"split": "train", "where": pc.field("label") == 1}, "choosing"),
        ("split", {"split": "train", "rows": [1, 2, 3]}, "choosing"),
        ("split", {"split": "train", "batch_size": 16}, "global_batch"),
        ("split", {"split": "train", "shard_index": 0, "num_shards": 2}, "global_batch"),
        ("split", {"split": "train", "shuffle": False}, "shuffle"),
        ("table", {"split": "train"}, "dataset"),
    ],
)
def test_a_cursor_of_something_else_is_refused(made: Path, name: str, options: dict[str, Any], says: str) -> None:
    cursor = Loader(made / "split", split="train", batch_size=8).cursor_at(2)
    other = Loader(made / name, **{"batch_size": 8} | options)
    with pytest.raises(UsageError, match=rf"something else.*\b{says} \(cursor") as caught:
        other.resume(cursor)
    assert "seed" not in str(caught.value) or says == "seed"
    assert other.epoch == 0  # and nothing has changed


def test_a_cursor_that_is_none(made: Path) -> None:
    loader = Loader(made / "table", batch_size=8)
    good = loader.cursor_at(2)
    for bad in ({}, None, "text", good | {"position": 9}, good | {"position": 10**6}, good | {"epoch": -1}):
        with pytest.raises(UsageError, match="cursor"):
            loader.resume(bad)
    assert epoch_of(loader) == epoch_of(Loader(made / "table", batch_size=8))


def test_a_cursor_of_a_random_choice_with_a_different_remainder_rule_is_understood(made: Path) -> None:
    # drop_remainder changes no position, only how many batches an epoch has.
    cursor = Loader(made / "table", batch_size=8).cursor_at(3)
    loader = Loader(made / "table", batch_size=8, drop_remainder=True, fields="key")
    loader.resume(cursor)
    assert keys_from(loader, 1) == keys_from(Loader(made / "table", batch_size=8, fields="key"), 1)[3:6]


# Refused arguments


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "nope"}, "nope.*train"),
        ({"split": "train["}, "split"),
        ({"split": "train[a:b]"}, "split"),
        ({"fields": "nope"}, "nope.*label.*x"),
        ({"fields": ("x", "nope")}, "nope"),
        ({"interpolation": "spline"}, "interpolation.*bilinear"),
        ({"color_mode": "bgr"}, "color_mode.*rgb"),
        ({"label_mode": "onehot"}, "label_mode.*categorical"),
        ({"dtype": "int8"}, "dtype.*float32"),
        ({"dtype": "nonsense"}, "dtype"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -3}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"image_size": (0, 5)}, "image_size"),
        ({"image_size": 224}, "image_size"),
        ({"image_size": (5, 5, 3)}, "image_size"),
        ({"crop": "corner"}, "crop.*center"),
        ({"crop": "random"}, "crop.*image_size="),
        ({"pad_to": 0}, "pad_to"),
        ({"pad_to": "longest"}, "pad_to"),
        ({"num_workers": -1}, "num_workers"),
        ({"memory_budget": "lots"}, "size"),
        ({"shard_index": 0}, "num_shards"),
        ({"num_shards": 2}, "shard_index"),
        ({"shard_index": 2, "num_shards": 2}, "shard_index"),
        ({"shard_index": 0, "num_shards": 0}, "num_shards"),
        ({"flip": "yes"}, "flip is 'yes', expected True or False"),
        ({"crop_to_aspect_ratio": 2}, "crop_to_aspect_ratio"),
        ({"shuffle": "window"}, "shuffle is 'window'"),
        ({"drop_remainder": None}, "drop_remainder"),
        ({"cache_limit": "1GB"}, "cache_limit.*cache_dir="),
    ],
)
def test_wrong_arguments_are_named(made: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){says}"):
        Loader(made / "table", **options)


def test_several_splits_and_none_named(made: Path) -> None:
    with pytest.raises(UsageError, match=r"train, val.*split="):
        Loader(made / "split")
    assert Loader(made / "split", split="val").n_samples == 10


def test_what_is_no_dataset(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        Loader(tmp_path / "nowhere")
    assert caught.value.path == str(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no dataset"):
        Loader(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="a file"):
        Loader(tmp_path / "file")


def test_an_unfinished_dataset(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made / "table", tmp_path / "out"))
    (path / "manifest.json").unlink()
    with pytest.raises(DamagedError, match=r"manifest.json is missing.*into a new folder"):
        Loader(path)
    (path / ".streamkit").mkdir()
    with pytest.raises(DamagedError, match=r"never finished.*same convert again"):
        Loader(path)


# What a batch's memory is


@pytest.mark.parametrize("name", ["table", "photos", "ragged", "chunked"])
@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_batch_that_is_kept_is_never_overwritten(made: Path, name: str, num_workers: int) -> None:
    options = {"batch_size": 5, "image_size": (12, 12), "num_workers": num_workers}
    loader = Loader(made / name, **options)
    kept = [batch for _ in range(3) for batch in loader]
    fresh = Loader(made / name, **options)
    for i, batch in enumerate(kept):
        assert same(batch, fresh.batch(*divmod(i, len(fresh))))


def test_a_view_keeps_its_batch(made: Path) -> None:
    loader = Loader(made / "table", batch_size=4)
    views = [x[1:2, ::3] for _ in range(4) for x, _ in loader]  # the batches themselves are dropped
    fresh = Loader(made / "table", batch_size=4)
    for i, view in enumerate(views):
        assert np.array_equal(view, fresh.batch(*divmod(i, len(fresh)))[0][1:2, ::3])


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("name", ["table", "chunked", "several", "alone", "equal", "equal-raw", "photos", "ragged"])
def test_every_array_is_writable_and_contiguous(made: Path, name: str, batch_size: int | None) -> None:
    loader = Loader(made / name, batch_size=batch_size, image_size=None if batch_size is None else (8, 8))
    batch = loader[0]
    for values in batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else [batch]:
        if isinstance(values, np.ndarray):
            assert values.flags.writeable and values.flags.c_contiguous


def test_batches_are_the_callers_to_change(made: Path) -> None:
    loader = Loader(made / "equal", batch_size=4)
    truth = [(x.copy(), y.copy()) for x, y in (loader.batch(e, i) for e in range(2) for i in range(len(loader)))]
    seen = []
    for _ in range(2):
        for x, y in loader:
            seen.append((x.copy(), y.copy()))
            x *= 0
            y += 100
    assert all_same(seen, truth)


# What is left behind


def stop_early(loader: Loader) -> None:
    for _ in loader:
        break


def fail_early(loader: Loader) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            _ = 1 / 0


def exhaust(loader: Loader) -> None:
    assert len(list(loader)) == len(loader)


def begin_only(loader: Loader) -> None:
    iter(loader)


@pytest.mark.parametrize("use", [stop_early, fail_early, exhaust, begin_only])
@pytest.mark.parametrize("name", ["table", "photos", "chunked"])
def test_no_thread_and_no_descriptor_is_left_behind(made: Path, name: str, use: Callable[[Loader], None]) -> None:
    gc.collect()
    before = reading.n_descriptors()
    assert reading.settles(lambda: reading.our_threads() == [])
    for _ in range(3):
        loader = Loader(made / name, batch_size=4, image_size=(8, 8), num_workers=3)
        use(loader)
    del loader
    assert reading.settles(lambda: not reading.our_threads())
    assert reading.settles(lambda: reading.n_descriptors() <= before)
    assert reading.descriptors_in(made) == []


def test_no_thread_is_left_behind_by_damage(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(made / "photos", tmp_path / "out"))
    index = streamkit.open(path).index("train").to_pydict()
    reading.flip(path / index["shard"][3], index["image.offset"][3] + 50)
    loader = Loader(path, batch_size=2, image_size=(8, 8), num_workers=3)
    with pytest.raises(DamagedError):
        list(loader)
    del loader
    assert reading.settles(lambda: not reading.our_threads() and not reading.descriptors_in(path))


def test_a_program_that_ends_in_the_middle_of_an_epoch_ends_quietly(made: Path) -> None:
    code = """if True:
        import json, sys, streamkit
        loader = streamkit.Loader(sys.argv[1], batch_size=4, num_workers=2)
        class Holder: pass
        holder = Holder()
        holder.cycle = holder  # so that it lives until the interpreter takes its modules apart
        holder.iterator = iter(loader)
        print(json.dumps(len(next(holder.iterator))))
    """
    assert reading.run_python(code, made / "table", quiet=True) == 2


def test_a_pickled_loader_goes_on_alone(made: Path) -> None:
    loader = Loader(made / "photos", batch_size=5, image_size=(8, 8), seed=2)
    list(loader)
    data = pickle.dumps(loader)
    assert len(data) < 50_000
    copy = pickle.loads(data)
    assert copy.epoch == 1 and all_same(list(copy), list(loader))
    copy.resume(loader.cursor_at(3))
    assert loader.epoch == 2


def test_a_budget_that_cannot_be_kept_is_said(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    enough = Loader(made / "table", batch_size=4, memory_budget="64MiB")
    assert enough.memory_bound <= 64 << 20 and not caplog.records
    little = Loader(made / "table", batch_size=4, memory_budget=1)
    assert little.memory_bound > 1 and "memory_budget=1 is less than one batch" in caplog.text


def test_an_epoch_without_a_batch_is_said(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(Loader(made / "table", batch_size=10_000)) == 1 and not caplog.records
    assert len(Loader(made / "table", batch_size=10_000, drop_remainder=True)) == 0
    assert "make no full one of 10000" in caplog.text


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    code = """if True:
        import json, sys, streamkit
        def anonymous():
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) * 1024
        loader = streamkit.Loader(sys.argv[1], batch_size=16, num_workers=2)
        loader[0]
        before, peak = anonymous(), 0
        for batch in loader:
            peak = max(peak, anonymous())
        print(json.dumps([peak - before, loader.memory_bound, loader.n_samples]))
    """
    grown = {}
    for n in (1280, 5120):
        rows = np.random.default_rng(0).random((n, 64, 64), np.float32)  # 16 KiB a row
        np.save(tmp_path / f"{n}.npy", rows)
        out = convert(tmp_path / f"{n}.npy", tmp_path / f"out{n}", shard_size="4MB", compression="none")
        grown[n], bound, n_samples = reading.run_python(code, out)
        assert n_samples == n
        assert grown[n] < bound + (8 << 20), (grown, bound)  # 8 MiB for the interpreter and the threads' stacks
    assert grown[5120] < grown[1280] + (6 << 20)  # the data grew by 60 MiB


def test_a_long_thin_picture_that_is_no_jpeg_is_resized_too(tmp_path: Path) -> None:
    """Its crop asks for a height that a JPEG decoder does not know as a number."""
    files = {f"a/{i}.png": converting.encoded(np.zeros((1, 3_000_000, 1), np.uint8)) for i in range(2)}
    out = convert(converting.write_files(tmp_path / "raw", files), tmp_path / "out")
    x, _ = Loader(out, image_size=(1024, 1024), crop="center").batch(0, 0)
    assert x.shape == (2, 1024, 1024, 3)
