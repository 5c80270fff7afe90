"""What Pillow opens and decodes whole within the limits converts, and nothing else does; whatever converts is read back."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from converting import encoded, noise, picture, png_chunk, rotated, with_exif, write_files
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit.codecs import exif, image
from streamkit.codecs.image import BadImage


def broken_stream() -> bytes:
    """A PNG whose chunks and crcs are whole and whose deflated pixels end early."""
    whole = encoded(noise(40, 40))
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    packed = whole[start + 8 : end - 4]
    return whole[:start] + png_chunk(b"IDAT", packed[: len(packed) // 2]) + whole[end:]


def wrong_stream() -> bytes:
    whole = encoded(noise(40, 40))
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    return whole[:start] + png_chunk(b"IDAT", zlib.compress(b"x" * 99)[::-1]) + whole[end:]


def late_exif(orientation: int) -> bytes:
    """A PNG whose EXIF block stands behind its pixels, where the specification allows it, too."""
    whole = rotated(picture(12, 20), orientation, "PNG")
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    at = whole.index(b"IEND") - 4
    return whole[:start] + whole[end:at] + whole[start:end] + whole[at:]


def odd_adobe() -> bytes:
    """A CMYK JPEG of an Adobe colour transform that no specification names: libjpeg-turbo refuses it, Pillow does not."""
    whole = bytearray(encoded(picture(24, 32, 3), "JPEG", mode="CMYK"))
    at = whole.index(b"Adobe")
    whole[at + 11] = 76  # marker: "Adobe", version (2), flags (2 + 2), transform
    return bytes(whole)


FILES = {
    "a/whole.png": encoded(picture(20, 30)),
    "a/late.png": late_exif(6),
    "a/nonsense.png": with_exif(encoded(picture(20, 30, seed=3)), b"no EXIF at all"),
    "a/broken.png": broken_stream(),
    "a/wrong.png": wrong_stream(),
    "b/cmyk.jpg": encoded(picture(24, 32, 3, seed=1), "JPEG", mode="CMYK"),
    "b/odd.jpg": odd_adobe(),
    "b/cut.jpg": encoded(picture(24, 32, 3, seed=2), "JPEG")[:-200],
}


def pillow_decodes(data: bytes) -> bool:
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            opened.load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("how", ["keep", "png"])
@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_pillow_s_verdict_is_ours(tmp_path: Path, format: str, how: str) -> None:
    source = write_files(tmp_path / "src", FILES)
    report = streamkit.convert(source, tmp_path / "out", format=format, encode=how, on_bad="skip", workers=1)
    good = {name for name, data in FILES.items() if pillow_decodes(data)}
    assert good == {"a/whole.png", "a/late.png", "a/nonsense.png", "b/cmyk.jpg", "b/odd.jpg"}
    assert {item.key for item in report.skipped} == FILES.keys() - good
    loader = streamkit.Loader(tmp_path / "out", batch_size=None, dtype="uint8", shuffle=False, fields=("key", "image"))
    sizes: dict[Any, Any] = {str(np.asarray(key)): pixels.shape for key, pixels in loader}
    assert sizes.keys() == good
    assert sizes["a/late.png"] == (20, 12, 3) and sizes["b/odd.jpg"] == (24, 32, 3)


def test_a_png_s_header_is_read_without_its_pixels() -> None:
    """So `--check header` costs a header; and a broken picture is still one when it is decoded."""
    assert image.probe(broken_stream())[:3] == ("png", 40, 40)
    for data in (broken_stream(), wrong_stream()):
        with pytest.raises(BadImage):
            image.check(data)
        with pytest.raises(BadImage):
            image.decode(data, channels=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_behind_the_pixels_turns_a_png_too(orientation: int) -> None:
    data = late_exif(orientation)
    assert image.probe(data).orientation == orientation
    np.testing.assert_array_equal(image.decode(data, channels=3), image.upright(picture(12, 20), orientation))


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, 700])
def test_a_jpeg_s_orientation_is_pillow_s(byte_order: str, orientation: int) -> None:
    """Read past Pillow, from blocks of both byte orders, behind other segments."""
    block = struct.pack(f"{byte_order}HHIHxx", 0x0112, 3, 1, orientation)
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[byte_order] + struct.pack(f"{byte_order}IH", 8, 1) + block + bytes(4)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff
    data = encoded(picture(8, 12), "JPEG", comment=b"Exif\0\0 in a comment is none")
    data = data[:2] + b"\xff\xfe\0\x06ABCD\xff" + segment + data[2:]
    with PIL.Image.open(io.BytesIO(data)) as opened:
        expected = opened.getexif().get(0x0112, 1)
    expected = expected if 1 <= expected <= 8 else 1
    assert image.probe(data).orientation == expected == exif.jpeg_orientation(data)


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_have_some_orientation(noise: bytes, cut: int) -> None:
    """Whatever the block holds, the answer is one of eight or left to Pillow; and no exception."""
    whole = rotated(picture(6, 9), 6)
    at = whole.index(b"Exif\0\0") + min(cut, 40)
    data = whole[:at] + noise + whole[at + len(noise) :]
    assert exif.jpeg_orientation(data) in (None, *range(1, 9))
    assert exif.jpeg_orientation(memoryview(data)) == exif.jpeg_orientation(data)
