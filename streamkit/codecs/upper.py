"""The upper lines of a JPEG without those below: a crop seldom needs the last ones, and on average none below 0.85.

libjpeg-turbo decodes the lines that the frame's header promises. With a header that promises fewer it stops there, and what
follows in the file is to it a number of stray bytes before the end marker. That warning alone is expected here; with any
other, and for every JPEG but a plain sequential one, the picture is to be decoded whole. (TurboJPEG's own call for regions
skips the lines above as well, but simplejpeg does not pass it on.) Whether the lines left out are whole, nobody learns:
this is for pictures that were decoded when they were converted.

>>> pixels = np.random.default_rng(0).integers(0, 256, (400, 64, 3), np.uint8)
>>> data = simplejpeg.encode_jpeg(pixels, 90)
>>> buffer = np.empty(pixels.nbytes, np.uint8)
>>> upper = upper_lines(data, 0.5, "RGB", (0, 0), True, buffer)
>>> upper.shape, bool((upper[:200] == simplejpeg.decode_jpeg(data, "RGB", True)[:200]).all())
((400, 64, 3), True)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]

_SEQUENTIAL, _SCAN = (0xC0, 0xC1), 0xDA
_OTHERS = frozenset({0xDD, *range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC})  # restart markers, or a frame of another kind
_EXPECTED = "extraneous bytes before marker 0xd9"
_N_CHANNELS = {"GRAY": 1, "RGB": 3, "RGBA": 4}
_EIGHTHS = (1, 2, 3, 4, 8)  # scales at which simplejpeg decodes when it is to halve at least
_MCU = 16  # lines that are coded together, mostly
_LEAST_WIDTH = 64  # [pixel]; below, two scales may give one width
_WORTH = 0.95  # of the lines; a copy of the file is to be paid for


def upper_lines(
    data: Any, share: float, space: str, at_least: tuple[int, int], fast: bool, buffer: Pixels
) -> Pixels | None:
    """Decode the first lines of an upright JPEG.

    Args:
        data: the file's bytes; if they may be written to, the height among them is another one meanwhile.
        share: of the height that is wanted, from the top.
        space: "GRAY", "RGB" or "RGBA".
        at_least: (height, width) that the whole picture must have at the scale chosen; (0, 0) for full size.
        fast: take the fast DCT.
        buffer: uint8, where the pixels go.

    Returns:
        uint8 (height, width, channels) as if decoded whole, in `buffer`; below the lines wanted is whatever was there.
        None where the picture must be decoded whole: nothing to gain, no plain JPEG, or damage to be told of.

    Source: ISO/IEC 10918-1, B.2.2.
    """
    at = _frame_at(data)
    if at is None:
        return None
    height, width = data[at] << 8 | data[at + 1], data[at + 2] << 8 | data[at + 3]
    eighths = _eighths(height, width, *at_least)
    # One more line of the scaled picture for rounding, and two of colours: the last line is smoothed with the next.
    n_lines = -(-int(share * height + 4 + 24 / eighths) // _MCU) * _MCU
    shape = _scaled(height, eighths), _scaled(width, eighths), _N_CHANNELS[space]
    if n_lines > _WORTH * height or width < _LEAST_WIDTH or shape[0] * shape[1] * shape[2] > buffer.size:
        return None
    shortened = memoryview(bytearray(data)) if memoryview(data).readonly else data
    shortened[at : at + 2] = n_lines.to_bytes(2, "big")
    wanted_height, wanted_width = (0, 0) if eighths == 8 else (1, shape[1])
    factor = 2 if eighths < 8 else 1
    try:
        simplejpeg.decode_jpeg(shortened, space, fast, False, wanted_height, wanted_width, factor, buffer)
    except ValueError as error:
        if not str(error).endswith(_EXPECTED):
            return None
    finally:
        shortened[at : at + 2] = height.to_bytes(2, "big")
    return buffer[: shape[0] * shape[1] * shape[2]].reshape(shape)


def _frame_at(data: Any) -> int | None:
    """Where the height stands in the header of a sequential JPEG without restart markers."""
    at, end, found = 2, len(data) - 9, None
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _SCAN:
            return found
        if marker in _SEQUENTIAL:
            found = at + 5
        elif marker in _OTHERS:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _scaled(n: int, eighths: int) -> int:
    return -(-n * eighths // 8)


def _eighths(height: int, width: int, least_height: int, least_width: int) -> int:
    """The smallest scale that reaches what is wanted, as far as the picture does; 0 wants all of it."""
    least_height, least_width = min(height, least_height or height), min(width, least_width or width)
    for n in _EIGHTHS:
        if -(-height * n // 8) >= least_height and -(-width * n // 8) >= least_width:
            return n
    return 8
