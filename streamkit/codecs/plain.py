"""Plain JPEGs, as nearly all are: many at a call, each at the smallest scale that suffices, of each the part that is wanted.

>>> data = np.frombuffer(simplejpeg.encode_jpeg(np.full((8, 16, 3), 100, np.uint8), 95), np.uint8)
>>> files = Files(data, np.array([0, 3]), np.array([len(data), 3]), np.ones(2, bool))
>>> each = decode_each(files, np.zeros((2, 2), np.int64), None, 3, accurate=False, upper_alone=False, max_pixels=1000)
>>> [None if pixels is None else pixels.shape for pixels in each]
[(8, 16, 3), None]
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import simplejpeg

from streamkit.codecs import turbo
from streamkit.codecs.image import JPEG_SPACE, scratch
from streamkit.codecs.resize import cut_out
from streamkit.codecs.turbo import Files

Pixels = npt.NDArray[np.uint8]

_ENOUGH = 1 << 18  # [B] of pixels made at a call, before they are used: they are in the core's own cache still


def decode_alike(files: Files, out: Pixels) -> list[int]:
    """Decode JPEGs of one size into uint8 `out` (n, height, width, channels), C-contiguous.

    Returns:
        Numbers of those that were something else or damaged: `image.decode` takes them, or says what is wrong.
    """
    if turbo.available():
        return np.flatnonzero(turbo.decode_alike(files, out)[:, 0] == 0).tolist()
    rest = []
    for i, slot in enumerate(out.reshape(len(out), math.prod(out.shape[1:]))):
        pixels = _decode(files, i, out.shape[3], False, (0, 0), slot)
        if pixels is None or pixels.shape != out.shape[1:]:
            rest.append(i)
    return rest


def decode_each(
    files: Files,
    least: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64] | None,
    channels: int,
    *,
    accurate: bool,
    upper_alone: bool,
    max_pixels: int,
) -> Iterator[Pixels | None]:
    """Decode JPEGs, or parts of them, one after the other.

    Args:
        files: of the pictures.
        least: (height, width) each must be decoded at as `image.decode`'s `at_least`, int64 (n, 2); (0, 0): its own size.
        boxes: the part wanted, as `cut_out` takes it, float64 (n, 4); None for all of it.
        channels: 1, 3 or 4 wanted.
        accurate: take the accurate DCT instead of the fast one.
        upper_alone: nothing below the part need be looked at, as the picture is known to be whole.
        max_pixels: limit on width x height of what is decoded.

    Yields:
        uint8 (height, width, channels) in a buffer of the thread's, as it is until the next; None for what is no such JPEG,
        is damaged or too large: `image.decode` takes it, or says so.
    """
    n, done = len(files.starts), 0
    while done < n:
        if not turbo.available():
            pixels = _decode(
                files, done, channels, accurate, tuple(least[done].tolist()), scratch(max_pixels * channels)
            )
            yield pixels if pixels is None or boxes is None else cut_out(pixels, boxes[done].tolist())
            done += 1
            continue
        out, rest = scratch(max_pixels * channels + _ENOUGH), None if boxes is None else boxes[done:]
        shapes = turbo.decode_first(
            files.behind(done), least[done:], rest, channels, accurate, upper_alone, out, _ENOUGH
        )
        at = 0
        for height, width in shapes.tolist():
            nbytes = height * width * channels
            yield out[at : at + nbytes].reshape(height, width, channels) if nbytes else None
            at += nbytes
        done += len(shapes)


def _decode(
    files: Files, i: int, channels: int, accurate: bool, least: tuple[int, ...], buffer: Pixels
) -> Pixels | None:
    """The same without the C code: the picture whole."""
    if not files.plain[i]:
        return None
    try:
        factor = 2 if any(least) else 1
        return simplejpeg.decode_jpeg(files.data(i), JPEG_SPACE[channels], not accurate, False, *least, factor, buffer)
    except ValueError:
        return None
