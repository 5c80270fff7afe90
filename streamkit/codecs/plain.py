"""Plain JPEGs one after the other: upright, not CMYK, as nearly all are. What is done between two calls of the decoder,
threads do in turn; for small pictures, or on many cores, that is what decoding waits for, so here it is as little as can be.

>>> pixels = np.full((8, 16, 3), 100, np.uint8)
>>> decode = plain_decoder(3, accurate=False, max_pixels=1000)
>>> decode(simplejpeg.encode_jpeg(pixels, 95), 0, 0, 1.0).shape
(8, 16, 3)
>>> decode(b"no JPEG", 0, 0, 1.0) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from streamkit.codecs.image import JPEG_MAGIC, JPEG_SPACE, scratch
from streamkit.codecs.upper import upper_lines

Pixels = npt.NDArray[np.uint8]


def plain_decoder(channels: int, accurate: bool, max_pixels: int) -> Callable[[Any, int, int, float], Pixels | None]:
    """A decoder of JPEGs, of the thread that asks for it.

    Args:
        channels: 1, 3 or 4 wanted.
        accurate: take the accurate DCT instead of the fast one.
        max_pixels: limit on width x height of what is decoded.

    Returns:
        Function of (data, height, width, upper): the file's bytes, what it must be decoded at as `decode`'s `at_least` (0, 0:
        its own size), and the share of the lines that is wanted, from the top. Of the others, some may be as they happen to
        be, and damage in them is not found. It gives uint8 (height, width, channels), a view of a buffer that the thread's
        next picture overwrites; or None for what is no such JPEG, is damaged or too large: `decode` takes it, or says so.
    """
    decode_jpeg, space, fast = simplejpeg.decode_jpeg, JPEG_SPACE[channels], not accurate

    def decode_one(data: Any, height: int, width: int, upper: float) -> Pixels | None:
        if data[:3] != JPEG_MAGIC:
            return None
        buffer = scratch(max_pixels * channels)
        try:
            found = upper_lines(data, upper, space, (height, width), fast, buffer) if upper < 1 else None
            if found is None:
                found = decode_jpeg(data, space, fast, False, height, width, 2 if height or width else 1, buffer)
            return found
        except ValueError:
            return None

    return decode_one


def decode_alike(datas: Sequence[memoryview], plain: Sequence[bool], out: Pixels) -> list[int]:
    """Decode JPEGs of one size into uint8 `out` (n, height, width, channels).

    Args:
        plain: which may be such JPEGs.

    Returns:
        Numbers of those that were something else or damaged: `decode` takes them, or says what is wrong.
    """
    decode_jpeg, space, shape = simplejpeg.decode_jpeg, JPEG_SPACE[out.shape[3]], out.shape[1:]
    rest = []
    for i, (data, is_plain, slot) in enumerate(zip(datas, plain, out.reshape(len(out), math.prod(shape)), strict=True)):
        try:
            if not is_plain or decode_jpeg(data, space, True, False, 0, 0, 1, slot).shape != shape:
                rest.append(i)
        except ValueError:
            rest.append(i)
    return rest
