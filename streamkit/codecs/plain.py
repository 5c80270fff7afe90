"""Plain JPEGs, as nearly all are: many at a call, each at the smallest scale that suffices, of each the part that is wanted.

>>> data = np.frombuffer(simplejpeg.encode_jpeg(np.full((8, 16, 3), 100, np.uint8), 95), np.uint8)
>>> files = Files(data, np.array([0, 3]), np.array([len(data), 3]), np.ones(2, bool))
>>> how = How(accurate=False, upper_alone=False, max_pixels=1000)
>>> decode_into(files, np.zeros((2, 2)), None, None, how, np.empty((2, 4, 6, 3), np.uint8))
[1]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from streamkit.codecs import turbo
from streamkit.codecs.image import JPEG_SPACE, scratch
from streamkit.codecs.resize import cut_out, mirror, resize
from streamkit.codecs.turbo import Files, How

Pixels = npt.NDArray[np.uint8]


def decode_into(
    files: Files,
    least: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64] | None,
    mirrored: npt.NDArray[np.bool_] | None,
    how: How,
    out: Pixels,
) -> list[int]:
    """Decode JPEGs, or parts of them, each resized (bilinear) into its slot.

    Args:
        files: of the pictures.
        least: (height, width) each must be decoded at as `image.decode`'s `at_least`, int64 (n, 2); (0, 0): its own size.
        boxes: the part wanted, as `cut_out` takes it, float64 (n, 4); None for all of it.
        mirrored: which to swap left and right, bool (n,); None for none.
        how: the rest.
        out: uint8 (n, height, width, 1, 3 or 4 channels), C-contiguous.

    Returns:
        Numbers of those that are no such JPEG, damaged or too large: `image.decode` takes them, or says so.
    """
    if turbo.available():
        return np.flatnonzero(~turbo.decode_into(files, least, boxes, mirrored, how, out)).tolist()
    rest = []
    for i, slot in enumerate(out):
        pixels = decode_part(files, i, least[i], None if boxes is None else boxes[i], how, out.shape[3])
        if pixels is None or (pixels.shape != slot.shape and not how.resizing):
            rest.append(i)
            continue
        resize(pixels, slot.shape[:2], out=slot)
        if mirrored is not None and mirrored[i]:
            mirror(slot)
    return rest


def decode_part(
    files: Files,
    i: int,
    least: npt.NDArray[np.int64],
    box: npt.NDArray[np.float64] | None,
    how: How,
    channels: int,
) -> Pixels | None:
    """Decode JPEG number `i`, or its part, at the scale that reaches `least`: uint8 (height, width, channels), a view of a
    buffer that the thread's next picture overwrites; None as with `decode_into`."""
    buffer = scratch(how.max_pixels * channels)
    if turbo.available():
        height, width = turbo.decode_part(
            files.one(i), least[None], None if box is None else box[None], how, channels, buffer
        )
        return buffer[: height * width * channels].reshape(height, width, channels) if height else None
    if not files.plain[i]:
        return None
    wanted = least.tolist()
    factor = 2 if any(wanted) else 1
    try:
        pixels = simplejpeg.decode_jpeg(
            files.data(i), JPEG_SPACE[channels], not how.accurate, False, *wanted, factor, buffer
        )
    except ValueError:
        return None
    return pixels if box is None else cut_out(pixels, box.tolist())
