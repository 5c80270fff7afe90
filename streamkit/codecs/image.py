"""Pictures: what a file's bytes are (`probe`), their pixels (`decode`), and bytes from pixels (`encode`).

Pixels are uint8 (height, width, channels), upright (EXIF orientation applied). One rule a mode:

    =====================  ====================================================================
    bilevel, gray          1 channel; bilevel is 0 or 255
    16-bit gray            1 channel, the high byte of each value (as TensorFlow's decode_png)
    palette                3 channels, 4 with transparency
    gray + alpha, RGBA     4 channels; alpha is dropped, not blended, when 3 are asked for
    CMYK, YCbCr, Lab       3 channels, by Pillow's conversion; `probe` says 4 for a CMYK JPEG, as stored
    GIF, TIFF, WebP, MPO   the first frame
    float or 32-bit gray   refused: store such data as arrays
    =====================  ====================================================================

JPEG goes through libjpeg-turbo in strict mode (a damaged file is an error, never gray pixels) with its fast DCT, which is
TensorFlow's default, so that TensorFlow and TFDS see the same pixels; the accurate one differs by 4 of 255 at most. The
rest goes through Pillow with an allow-list of formats.

    >>> import numpy as np
    >>> data = encode(np.full((20, 30, 3), 200, np.uint8), "jpeg", quality=90)
    >>> probe(data)
    Info(format='jpeg', width=30, height=20, channels=3, orientation=1)
    >>> decode(data, channels=1).shape
    (20, 30, 1)
"""

from __future__ import annotations

import io
import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from streamkit.codecs.exif import jpeg_orientation
from streamkit.codecs.pillow import FORMATS as FORMATS
from streamkit.codecs.pillow import MAX_PIXELS as MAX_PIXELS
from streamkit.codecs.pillow import BadImage as BadImage
from streamkit.codecs.pillow import RefusedImage as RefusedImage
from streamkit.codecs.pillow import check_crcs as check_crcs
from streamkit.codecs.pillow import check_size, decode_whole, n_channels_of, numbers_of, opened, orientation_of
from streamkit.codecs.pillow import upright as upright

Pixels = npt.NDArray[np.uint8]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
JPEG_MAGIC = b"\xff\xd8\xff"
_MAGICS = (JPEG_MAGIC, b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
JPEG_SPACE = {1: "GRAY", 3: "RGB", 4: "RGBA"}


class Info(NamedTuple):
    """What a picture is: format name, size upright [pixel], channels as stored, EXIF orientation as stored (1 to 8)."""

    format: str
    width: int
    height: int
    channels: int
    orientation: int


def looks_like_image(data: Any) -> bool:
    """True where bytes begin as one of FORMATS does; what they are whole, `probe` says.

    >>> looks_like_image(b"BMW is no picture"), looks_like_image(b"GIF89a...")
    (False, True)
    """
    head = bytes(data[:12])
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") == len(data)
    return head.startswith(_MAGICS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def probe(data: Any, max_pixels: int = MAX_PIXELS) -> Info:
    """Read the header.

    Args:
        data: the file's bytes (bytes or memoryview); the first 64 KB of a JPEG mostly suffice.
        max_pixels: limit on width x height.

    Raises:
        BadImage: no picture, or of an unknown kind.
        RefusedImage: more than `max_pixels` pixels.
    """
    if bytes(data[:3]) == JPEG_MAGIC:
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            return _odd_cmyk(data, max_pixels, error)
        check_size(width, height, max_pixels)
        channels = {"Gray": 1, "GRAY": 1, "CMYK": 4, "YCCK": 4}.get(space, 3)
        orientation = _orientation(data)
        if orientation >= 5:
            width, height = height, width
        return Info("jpeg", width, height, channels, orientation)
    with opened(data, max_pixels) as picture:
        orientation = orientation_of(picture, data)
        width, height = picture.size if orientation < 5 else picture.size[::-1]
        return Info(FORMATS[picture.format], width, height, n_channels_of(picture), orientation)


def _odd_cmyk(data: Any, max_pixels: int, error: ValueError) -> Info:
    """A CMYK JPEG whose header libjpeg-turbo refuses (an odd Adobe marker, odd subsampling) and Pillow, which reads all
    CMYK here, does not. Anything else raises BadImage."""
    try:
        with opened(data, max_pixels) as picture:
            if picture.mode == "CMYK":
                orientation = orientation_of(picture, data)
                width, height = picture.size if orientation < 5 else picture.size[::-1]
                return Info("jpeg", width, height, 4, orientation)
    except RefusedImage:
        raise
    except BadImage:
        pass  # what libjpeg-turbo says tells more
    raise BadImage(f"broken JPEG: {error}") from None


def pixel_channels(info: Info) -> int:
    """Channels of a picture's pixels: a CMYK JPEG becomes RGB."""
    return 3 if info.format == "jpeg" and info.channels == 4 else info.channels


def check(data: Any, max_pixels: int = MAX_PIXELS, mask: bool = False) -> Info:
    """Decode every byte once, a JPEG at its cheapest scale, so that the picture (or `mask`) cannot fail later.

    Raises:
        BadImage, RefusedImage: as `probe`; also for data that is cut short or damaged further in.
    """
    return checked(data, max_pixels, mask)[0]


def checked(data: Any, max_pixels: int = MAX_PIXELS, mask: bool = False) -> tuple[Info, Pixels]:
    """As `check`; what was decoded comes along, of a JPEG an eighth as high and wide, not turned upright."""
    info = probe(data, max_pixels)
    if info.format == "jpeg" and info.channels != 4 and not mask:
        try:
            space = "GRAY" if info.channels == 1 else "RGB"
            return info, simplejpeg.decode_jpeg(data, space, fastdct=True, min_height=1, min_width=1, min_factor=8)
        except ValueError as error:
            raise BadImage(f"damaged JPEG: {error}") from None
    check_crcs(data)
    n_stored = 4 if info.format == "jpeg" and not _readable_header(data) else info.channels if mask else 3
    channels = 1 if mask else 3
    return info, decode(data, channels=channels, n_stored=n_stored, max_pixels=max_pixels, mask=mask)


def _readable_header(jpeg: Any) -> bool:
    """True where libjpeg-turbo reads the header, and so can decode in strict mode."""
    try:
        simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return False
    return True


class _Scratch(threading.local):
    """One decode buffer a thread. Its size is the bomb limit: only touched pages cost memory."""

    buffer: Pixels | None = None


_own = _Scratch()


def decode(
    data: Any,
    *,
    channels: int,
    orientation: int | None = None,
    n_stored: int = 3,
    at_least: tuple[int, int] | None = None,
    accurate: bool = False,
    max_pixels: int = MAX_PIXELS,
    mask: bool = False,
) -> Pixels:
    """Decode a picture.

    Args:
        data: the file's bytes.
        channels: 1, 3 or 4 wanted.
        orientation: EXIF orientation; None looks for it.
        n_stored: channels as stored, when known; 4 sends a JPEG (CMYK) through Pillow.
        at_least: (height, width) wanted upright; a JPEG is then decoded at the smallest scale not below it.
        accurate: take a JPEG's accurate DCT instead of the fast one.
        max_pixels: limit on width x height of what is decoded.
        mask: one channel of class numbers is wanted: of a palette the numbers, not their colours.

    Returns:
        uint8 (height, width, channels), upright. It may be a view of a buffer that the thread's next call overwrites.

    Raises:
        BadImage: the bytes are damaged, or a mask holds colours or 16-bit numbers.
        RefusedImage: that is more than `max_pixels`.
    """
    if bytes(data[:3]) != JPEG_MAGIC or n_stored == 4:
        return decode_whole(data, channels, max_pixels, mask)
    if orientation is None:
        orientation = _orientation(data)
    coloured = mask and probe(data, max_pixels).channels == 3
    channels = 3 if coloured else channels
    try:
        buffer = scratch(max_pixels * channels)
        height, width = at_least or (0, 0)
        if orientation >= 5:
            height, width = width, height
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            JPEG_SPACE[channels],
            fastdct=not accurate,
            min_height=height,
            min_width=width,
            min_factor=2 if at_least else 1,
            buffer=buffer,
        )
    except ValueError as error:
        if "too small to decode" in str(error):
            raise RefusedImage(f"more than {max_pixels} pixels") from None
        raise BadImage(f"damaged JPEG: {error}") from None
    return upright(numbers_of(pixels) if coloured else pixels, orientation)


def scratch(nbytes: int) -> Pixels:
    """So much of the thread's buffer, and no more: decoders take its size for the limit."""
    if _own.buffer is None or _own.buffer.size < nbytes:
        _own.buffer = np.empty(nbytes, np.uint8)
    return _own.buffer[:nbytes]


def _orientation(data: Any) -> int:
    """EXIF orientation of a JPEG; Pillow is asked where its block is odd."""
    found = jpeg_orientation(data)
    if found is not None:
        return found
    try:
        with opened(data, 1 << 62) as picture:
            return orientation_of(picture, data)
    except BadImage:
        return 1


def encode(pixels: Pixels, format: str, quality: int = 90) -> bytes:
    """Encode uint8 (height, width, channels) pixels, 1, 3 or 4 channels.

    Args:
        pixels: the picture, upright.
        format: "jpeg" (4:2:0, alpha dropped), "png" or "webp"; the last two are lossless at quality 100.
        quality: 1 to 100, for jpeg and webp.
    """
    import PIL.Image

    channels = pixels.shape[2]
    if format == "jpeg":
        pixels = np.ascontiguousarray(pixels[:, :, :3])
        space = "GRAY" if channels == 1 else "RGB"
        return bytes(simplejpeg.encode_jpeg(pixels, quality, space, "444" if channels == 1 else "420"))
    picture = PIL.Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    buffer = io.BytesIO()
    if format == "webp":
        picture.save(buffer, "WEBP", quality=quality, lossless=quality == 100, exact=True)
    else:
        picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
