"""Every picture but plain JPEGs, by Pillow with an allow-list of formats; and what all decoders share: errors, limits, EXIF.

>>> picture = opened(b"GIF89a" + bytes(4), MAX_PIXELS)
Traceback (most recent call last):
streamkit.codecs.pillow.BadImage: unknown or damaged picture
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.codecs.sniff import looks_like

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 64_000_000
FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tiff"}
_EXIF_ORIENTATION = 0x0112  # Source: Exif 2.3, tag 274
# Where a PNG keeps an orientation. Source: PNG specification, 11.3.4.5 eXIf; ExifTool and Adobe use texts of these names.
_PNG_MARKERS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


class BadImage(ValueError):
    """Bytes that are no picture we can decode whole; the message is the reason. `refused` marks a limit exceeded."""

    refused = False


class RefusedImage(BadImage):
    """A picture over the pixel limit."""

    refused = True


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror (height, width, channels) pixels as EXIF orientation 1 to 8 says. Source: Exif 2.3, tag 274."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1] if orientation in (2, 3) else pixels[::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1] if orientation in (3, 4) else pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def decode_whole(data: Any, channels: int, max_pixels: int, mask: bool = False) -> Pixels:
    with opened(data, max_pixels) as picture:
        try:
            # Before anything else: looking for EXIF loads a PNG too, and a second load of a broken one raises nothing.
            picture.load()
            pixels = _numbers(picture) if mask else _pixels(picture, channels)
        except BadImage:
            raise
        except Exception as error:  # Pillow's plugins raise many kinds on damaged data
            raise BadImage(f"damaged {picture.format}: {error or type(error).__name__}") from None
        return upright(pixels, orientation_of(picture, data))


def _pixels(picture: Any, channels: int) -> Pixels:
    if picture.mode.startswith("I;16"):
        high = (np.asarray(picture) >> 8).astype(np.uint8)[..., None]
        if channels == 1:
            return high
        alpha = [np.full_like(high, 255)] if channels == 4 else []
        return np.concatenate([high, high, high, *alpha], axis=2)
    if picture.mode == "P" and "transparency" in picture.info and channels != 4:
        picture = picture.convert("RGBA")  # else a transparent palette entry would change the others' colours
    wanted = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if picture.mode != wanted:
        picture = picture.convert(wanted)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _numbers(picture: Any) -> Pixels:
    """The class numbers of a mask, (height, width, 1); bilevel is 0 or 255."""
    if picture.mode in ("P", "PA"):
        return np.asarray(picture).reshape(picture.height, picture.width, -1)[:, :, :1]
    if picture.mode.startswith("I;16"):
        raise BadImage("a mask of 16-bit numbers, of which a picture holds the high byte; store it as .npy")
    pixels = _pixels(picture, 1 if picture.mode in ("1", "L", "LA", "La") else 3)
    return numbers_of(pixels)


def numbers_of(pixels: Pixels) -> Pixels:
    """The class numbers of a mask's pixels (height, width, 1 or 3): three channels must be three times the same."""
    if pixels.shape[2] == 3 and not (pixels == pixels[:, :, :1]).all():
        raise BadImage("a mask of colours, which are no class numbers; store it as gray or palette")
    return pixels[:, :, :1]


def opened(data: Any, max_pixels: int) -> Any:
    import PIL.Image
    import PIL.TiffImagePlugin
    import PIL.WebPImagePlugin

    if len(data) == 0:
        raise BadImage("empty file")
    PIL.Image.preinit()
    _hush_pillow()
    try:
        with _pillow_limit(max_pixels):
            picture = PIL.Image.open(io.BytesIO(data), formats=_ALLOWED)
    except PIL.Image.DecompressionBombError:
        raise RefusedImage(f"more than {max_pixels} pixels") from None
    except Exception as error:
        raise BadImage(_guess(bytes(data[:512]), error)) from None
    width, height = picture.size
    check_size(width, height, max_pixels)
    if picture.mode == "F" or picture.mode == "I":
        raise BadImage(f"{picture.format} of mode {picture.mode} holds measurements, not pixels; store it as .npy")
    return picture


@lru_cache(maxsize=1)
def _hush_pillow() -> None:
    """Pillow warns of oddities (large sizes, odd metadata) that are decided here. Set once and for good: filters changed
    and put back around each picture would be a race between the loader's threads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Pillow's own limit (179 Mpx) out of the way where the user allows more: `_check_size` holds the user's."""
    import PIL.Image

    before = PIL.Image.MAX_IMAGE_PIXELS
    if before is None or max_pixels <= 2 * before:
        yield
        return
    with _lock:
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = before


_lock = threading.Lock()
_ALLOWED = tuple(f for f in FORMATS if f != "MPO")  # Pillow opens MPO as JPEG and renames it after


def _guess(head: bytes, error: Exception) -> str:
    return looks_like(head) or (
        "unknown or damaged picture" if "cannot identify" in str(error) else f"damaged: {error}"
    )


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"{width}x{height} pixels")
    if width * height > max_pixels:
        raise RefusedImage(f"{width}x{height} is more than {max_pixels} pixels (--max-pixels)")


def n_channels_of(picture: Any) -> int:
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        return 4
    return 1 if picture.mode in ("1", "L") or picture.mode.startswith("I;16") else 3


def orientation_of(picture: Any, data: Any) -> int:
    """EXIF orientation (1 to 8) of a picture opened from `data`."""
    if picture.format == "TIFF":
        return 1  # Pillow turns these itself, and gives their upright size
    file = bytes(data)
    if picture.format == "PNG" and not any(marker in file for marker in _PNG_MARKERS):
        return 1  # Pillow would decode the whole picture, because EXIF may stand behind it
    try:
        value = picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken metadata does not make a broken picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def check_crcs(data: Any) -> None:
    """Check the crcs of a PNG's critical chunks, because Pillow passes over them and TensorFlow's decoder does not.

    Source: PNG specification, 5.3 and 5.4. Raises BadImage.
    """
    at = 8
    while bytes(data[:8]) == b"\x89PNG\r\n\x1a\n" and at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            return  # cut short, which decoding tells
        if kind[:1].isupper() and zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise BadImage(f"damaged PNG: the crc of its {kind.decode('ascii', 'replace')} chunk is wrong")
        at = end + 4
