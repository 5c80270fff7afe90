"""Laws of the codecs: pictures against Pillow, arrays against NumPy, HDF5 chunks against h5py."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import PIL.Image
import pytest
from converting import assert_same_picture, encoded, noise, picture, pillow, png_chunk, psnr, rotated, saved, with_exif
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from streamkit.codecs import array, image

# Pictures: one rule a mode, each with a golden pixel


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand, for what Pillow cannot write. Source: PNG specification, chapters 5 and 11."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def palette(transparent: int | None = None, format: str = "PNG") -> bytes:
    """2x1 pixels: (10, 20, 30), then (200, 100, 50)."""
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    return saved(picture, format, **({} if transparent is None else {"transparency": transparent}))


def one(mode: str, value: Any, format: str = "PNG", **options: Any) -> bytes:
    return saved(PIL.Image.new(mode, (3, 2), value), format, **options)


SIXTEEN_GRAY = png(1, 1, 16, 0, b"\0" + struct.pack(">H", 0xABCD))
SIXTEEN_RGB = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x12FF, 0x34FF, 0x56FF))

RULES = [
    ("bilevel", one("1", 1), 1, (255,)),
    ("gray", one("L", 77), 1, (77,)),
    ("gray as three", one("L", 77), 3, (77, 77, 77)),
    ("gray with alpha", one("LA", (77, 9)), 4, (77, 77, 77, 9)),
    ("alpha is dropped, not blended", one("RGBA", (10, 20, 30, 0)), 3, (10, 20, 30)),
    ("alpha is kept", one("RGBA", (10, 20, 30, 40)), 4, (10, 20, 30, 40)),
    ("16-bit gray takes the high byte", SIXTEEN_GRAY, 1, (0xAB,)),
    ("16-bit gray as three", SIXTEEN_GRAY, 3, (0xAB, 0xAB, 0xAB)),
    ("16-bit colour takes the high bytes", SIXTEEN_RGB, 3, (0x12, 0x34, 0x56)),
    ("palette", palette(), 3, (10, 20, 30)),
    ("palette with transparency", palette(0), 4, (10, 20, 30, 0)),
    ("transparent entries keep their colour", palette(0), 3, (10, 20, 30)),
    ("CMYK TIFF", one("CMYK", (0, 51, 102, 51), "TIFF"), 3, (204, 163, 122)),
    ("YCbCr TIFF", one("YCbCr", (120, 128, 128), "TIFF"), 3, (120, 120, 120)),
    ("BMP", one("RGB", (1, 2, 3), "BMP"), 3, (1, 2, 3)),
    ("lossless WebP", one("RGB", (1, 2, 3), "WEBP", lossless=True), 3, (1, 2, 3)),
]


REFUSED = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12.3 takes it for cut")


@pytest.mark.parametrize(
    "data, channels, golden",
    [pytest.param(*rule[1:], id=rule[0], marks=[REFUSED] * (rule[0] == "YCbCr TIFF")) for rule in RULES],
)
def test_golden_pixels(data: bytes, channels: int, golden: tuple[int, ...]) -> None:
    pixels = image.decode(data, channels=channels)
    assert pixels.dtype == np.uint8
    assert tuple(pixels[0, 0].tolist()) == golden


@pytest.mark.parametrize(
    "data, channels",
    [
        (one("1", 1), 1),
        (SIXTEEN_GRAY, 1),
        (palette(), 3),
        (palette(0), 4),
        (one("LA", (1, 2)), 4),
        (one("RGBA", (1, 2, 3, 4)), 4),
        (one("CMYK", (0, 0, 0, 0), "JPEG"), 4),
        (one("L", 7, "JPEG"), 1),
        (one("RGB", (1, 2, 3), "JPEG"), 3),
    ],
)
def test_probe_says_the_channels_as_stored(data: bytes, channels: int) -> None:
    assert image.probe(data).channels == channels
    assert image.check(data) == image.probe(data)


def test_cmyk_jpeg_is_converted_as_pillow_does() -> None:
    """Adobe CMYK JPEGs are stored inverted; Pillow knows it."""
    cmyk = PIL.Image.fromarray(picture(40, 48, 3, seed=3)).convert("CMYK")
    data = saved(cmyk, "JPEG", quality=95)
    assert image.probe(data).channels == 4
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(image.decode(data, channels=3, n_stored=4), expected)
    assert psnr(expected, picture(40, 48, 3, seed=3)) > 28


def test_the_first_frame_of_moving_pictures() -> None:
    frames = [PIL.Image.new("RGB", (4, 4), (i * 60, 0, 0)) for i in range(1, 4)]
    for format, options in (
        ("GIF", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("MPO", {"quality": 95}),
    ):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert abs(int(image.decode(data, channels=3)[0, 0, 0]) - 60) <= (2 if format == "MPO" else 0), format


@pytest.mark.parametrize("mode", ["F", "I"])
def test_measurements_are_no_pixels(mode: str) -> None:
    with pytest.raises(image.BadImage, match=r"store it as \.npy"):
        image.probe(one(mode, 70_000, "TIFF"))


@pytest.mark.parametrize("xmp", [b"", b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'])
@pytest.mark.parametrize("tags", [{}, {0x0131: "a program"}, {0x0131: "a program", 0x0112: 3}])
@pytest.mark.parametrize("sides", [(24, 33), (240, 330)])
def test_orientation_as_pillow_finds_it(tags: dict[int, Any], xmp: bytes, sides: tuple[int, int]) -> None:
    """Where no EXIF block says it (most cameras' programs leave one), XMP may."""
    exif, orientation = PIL.Image.Exif(), tags.get(0x0112)
    exif.update(tags)
    data = encoded(picture(*sides), "JPEG", xmp=xmp, **({"exif": exif} if tags else {}))
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert image.probe(data).orientation == opened.getexif().get(0x0112, 1) == (orientation or (6 if xmp else 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_upright_as_pillow_turns_it(orientation: int, format: str) -> None:
    options = {"WEBP": {"lossless": True}}.get(format, {})
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(24, 33, seed=orientation), format, exif=exif, **options)
    expected = pillow(data)
    info = image.probe(data)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.orientation == (1 if format == "TIFF" else orientation)  # Pillow itself turns TIFFs
    assert_same_picture(image.decode(data, channels=3), expected, "a.jpg" if format == "JPEG" else "a")


@given(pixels=npst.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))))
def test_orientations_are_a_group(pixels: np.ndarray) -> None:
    """Turning right (6) and left (8) undo one another, the others undo themselves."""
    inverse = {6: 8, 8: 6}
    for orientation in range(1, 9):
        there = image.upright(pixels, orientation)
        np.testing.assert_array_equal(image.upright(there, inverse.get(orientation, orientation)), pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_png_and_webp_at_100_are_lossless(format: str, channels: int) -> None:
    pixels = noise(17, 23, channels)
    np.testing.assert_array_equal(image.decode(image.encode(pixels, format, 100), channels=channels), pixels)


@pytest.mark.parametrize("format", ["png", "webp"])
def test_colour_under_full_transparency_is_kept(format: str) -> None:
    pixels = noise(8, 8, 4)
    pixels[:, :, 3] = 0
    np.testing.assert_array_equal(image.decode(image.encode(pixels, format, 100), channels=3), pixels[:, :, :3])


@pytest.mark.parametrize("format, quality", [("jpeg", 80), ("jpeg", 95), ("webp", 80)])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_encodings_stay_near(format: str, quality: int, channels: int) -> None:
    pixels = picture(64, 80, channels, seed=2)
    data = image.encode(pixels, format, quality)
    assert psnr(image.decode(data, channels=channels), pixels) > 30


def test_jpeg_at_the_smallest_scale_that_is_large_enough() -> None:
    data = encoded(picture(400, 640), "JPEG")
    for wanted in ((400, 640), (201, 100), (100, 161), (50, 80), (7, 9)):
        height, width = image.decode(data, channels=3, at_least=wanted).shape[:2]
        assert height >= wanted[0] and width >= wanted[1]
        assert height < 2 * wanted[0] + 8 or width < 2 * wanted[1] + 8 or (height, width) == (50, 80)
    turned = rotated(picture(400, 640), 6)
    assert image.decode(turned, channels=3, at_least=(160, 100)).shape[:2] == (160, 100)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_picture_cut_short_is_bad_and_nothing_else(format: str) -> None:
    data = encoded(noise(24, 24), format)
    for size in range(0, len(data) - 2, max(1, len(data) // 40)):
        try:
            image.check(data[:size])
        except image.BadImage as error:
            assert str(error)
        else:  # only a tail that holds no pixels may be missing
            np.testing.assert_array_equal(image.decode(data[:size], channels=3), image.decode(data, channels=3))


@given(
    data=st.binary(max_size=200), head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"])
)
def test_other_bytes_are_bad_pictures_and_nothing_else(data: bytes, head: bytes) -> None:
    for read in (image.probe, image.check):
        with pytest.raises(image.BadImage):
            read(head + data)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>", "looks like HTML"),
        (b"\n <HTML>", "looks like HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\0" * 100, "only zero bytes"),
        (b"hello", "unknown or damaged"),
    ],
)
def test_what_it_is_instead(data: bytes, reason: str) -> None:
    with pytest.raises(image.BadImage, match=reason):
        image.probe(data)


@pytest.mark.fault(84)
def test_bombs_are_refused_by_their_header() -> None:
    """FAULTS 84. Pillow itself stops only beyond 179 Mpx; the user's limit holds below and above that."""
    for side in (8_001, 12_000, 20_000, 60_000):
        bomb = png(side, side, 1, 0, b"\0")
        with pytest.raises(image.RefusedImage, match="64000000"):
            image.probe(bomb)
    assert image.probe(png(20_000, 20_000, 1, 0, b"\0"), max_pixels=10**9).width == 20_000
    with pytest.raises(image.RefusedImage):
        image.probe(encoded(picture(20, 30), "JPEG"), max_pixels=599)
    assert image.probe(encoded(picture(20, 30), "JPEG"), max_pixels=600).height == 20


def test_odd_metadata_makes_no_bad_picture() -> None:
    for exif in (b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\1\0\0\0\6"):
        info = image.check(with_exif(encoded(picture(8, 9)), exif))
        assert (info.width, info.height) == (9, 8)
    assert (
        image.check(with_exif(encoded(picture(8, 9)), b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0")).width
        == 8
    )


# Arrays

NUMBERS = (
    npst.boolean_dtypes()
    | npst.integer_dtypes()
    | npst.floating_dtypes(sizes=(16, 32, 64))
    | npst.complex_number_dtypes()
)


@given(
    values=npst.arrays(NUMBERS | NUMBERS.map(lambda d: d.newbyteorder(">")), npst.array_shapes(min_dims=0, min_side=0))
)
def test_arrays_round_trip(values: np.ndarray) -> None:
    data = array.to_bytes(values)
    assert bytes(data) == values.astype(values.dtype.newbyteorder("<")).tobytes("C")
    back = array.from_bytes(data, values.dtype.name, values.shape)
    assert back.dtype.newbyteorder("=") == values.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, values)
    assert bytes(array.to_bytes(np.asfortranarray(values))) == bytes(data)
    assert array.inflate(array.compress(data), len(data)) == data


@given(values=npst.arrays("<i4", st.tuples(st.integers(0, 5), st.integers(1, 4))), n=st.integers(1, 3))
def test_one_axis_is_found_from_the_length(values: np.ndarray, n: int) -> None:
    data = array.to_bytes(values)
    np.testing.assert_array_equal(array.from_bytes(data, "int32", (None, values.shape[1])), values)
    with pytest.raises(array.BadArray):
        array.from_bytes(bytes(data) + b"x" * n, "int32", (None, values.shape[1]))
    with pytest.raises(array.BadArray):
        array.from_bytes(bytes(data) + b"x" * n, "int32", values.shape)


def test_views_are_not_copied() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    assert np.shares_memory(np.frombuffer(array.to_bytes(values), "<f4"), values)


@given(data=st.binary(max_size=400), cut=st.integers(0, 400))
def test_inflate_gives_all_or_nothing(data: bytes, cut: int) -> None:
    packed = array.compress(data)
    assert array.inflate(packed, len(data)) == data
    if cut < len(packed):
        with pytest.raises(array.BadArray):
            array.inflate(packed[:cut], len(data))
    if data:
        with pytest.raises(array.BadArray):
            array.inflate(packed, len(data) - 1)


def test_inflate_stops_at_its_limit() -> None:
    with pytest.raises(array.BadArray, match="more than 1000 bytes"):
        array.inflate(zlib.compress(bytes(50_000_000)), 1000)


# Chunks of HDF5

PIPELINES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "gzip": (("gzip",), {"compression": "gzip"}),
    "shuffle and gzip": (("shuffle", "gzip"), {"compression": "gzip", "shuffle": True}),
    "shuffle, gzip and fletcher32": (
        ("shuffle", "gzip", "fletcher32"),
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
    ),
    "shuffle alone": (("shuffle",), {"shuffle": True}),
    "lzf": (("shuffle", "lzf"), {"compression": "lzf", "shuffle": True}),
    "zstd": (("shuffle", "zstd"), {**hdf5plugin.Zstd(clevel=5), "shuffle": True}),
    "lz4": (("shuffle", "lz4"), {**hdf5plugin.LZ4(), "shuffle": True}),
    "blosc2": (("blosc2",), dict(hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=hdf5plugin.Blosc2.SHUFFLE))),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("values", ["waves", "noise", "zeros", "large"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_chunks_decode_as_h5py_decodes_them(tmp_path: Path, pipeline: str, values: str, dtype: str) -> None:
    filters, options = PIPELINES[pipeline]
    shape = (64, 40, 30) if values == "large" else (6, 5, 3)
    pixels = {"waves": picture, "large": picture}.get(values, noise)(*shape[:2], shape[2], seed=1).astype(dtype)
    pixels = pixels * 0 if values == "zeros" else pixels
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=pixels, chunks=shape, **options)
    with h5py.File(tmp_path / "x.h5") as file:
        mask, stored = file["x"].id.read_direct_chunk((0, 0, 0))
        expected = file["x"][:]
    applied = tuple(name for i, name in enumerate(filters) if not mask >> i & 1)
    decoded = array.decode_chunk(stored, applied, pixels.itemsize, pixels.nbytes)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded.view(dtype).reshape(shape), expected)


@pytest.mark.parametrize("pipeline", ["gzip", "shuffle and gzip", "lzf", "zstd", "lz4"])
def test_damaged_chunks_raise_bad_array(tmp_path: Path, pipeline: str) -> None:
    """Never another exception, never another size; that the values are right is the crc32c's business."""
    filters, options = PIPELINES[pipeline]
    pixels = picture(12, 10, 3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=pixels, chunks=pixels.shape, **options)
    with h5py.File(tmp_path / "x.h5") as file:
        stored = bytes(file["x"].id.read_direct_chunk((0, 0, 0))[1])
    harmed = [stored[:n] for n in range(0, len(stored), 7)]
    harmed += [stored[:i] + bytes([stored[i] ^ 255]) + stored[i + 1 :] for i in range(0, len(stored), 3)]
    n_bad = 0
    for data in harmed:
        try:
            assert array.decode_chunk(data, filters, 1, pixels.nbytes).size == pixels.nbytes
        except array.BadArray:
            n_bad += 1
    assert n_bad > len(harmed) // 4
    with pytest.raises(array.BadArray):
        array.decode_chunk(stored, filters, 1, pixels.nbytes - 1)
