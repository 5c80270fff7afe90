"""Resizing, recolouring and cropping of uint8 pictures.

OpenCV resizes where it is exact enough (resize.c instead, to the same pixels, by the default), Pillow where a filter must
antialias. How near each comes to the same computed in float64, over photos shrunk 1 to 8 times [dB];
tests/test_fidelity.py holds it:

    bilinear (default)    as tf.image.resize without antialiasing (20 to 37), 5 to 10 better where a JPEG is decoded scaled
    nearest, bicubic      OpenCV; half-pixel centres
    area                  OpenCV: each pixel is the mean of what it covers; 57
    antialias             Pillow's bilinear with the support scaled: the triangle filter; 57
    lanczos3              Pillow's Lanczos with the support scaled

>>> import numpy as np
>>> resize(np.zeros((8, 6, 3), np.uint8), (4, 3), "area").shape
(4, 3, 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit import native
from streamkit.errors import UsageError

Pixels = npt.NDArray[np.uint8]

# OpenCV's names; it is imported where it is used, as it takes a fifth of the start of a process that may not need it.
_OPENCV = {
    "bilinear": "INTER_LINEAR_EXACT",
    "nearest": "INTER_NEAREST_EXACT",
    "bicubic": "INTER_CUBIC",
    "area": "INTER_AREA",
}
INTERPOLATIONS = (*_OPENCV, "antialias", "lanczos3")
EXACT = ("area", "antialias", "lanczos3")  # these deserve the accurate DCT: the fast one alone costs 13 dB of theirs

# A picture that its decoder scaled down is antialiased, which these are not: the better start. But the last step must not
# be one from almost the wanted size, such as 188 to 187 pixels: that only blurs.
_AFTER_SCALING = {"bilinear": 1.02, "bicubic": 1.02}


def decode_at_least(sizes: npt.NDArray[np.float64], interpolation: str) -> npt.NDArray[np.int64]:
    """(height, width) that pictures must at least be decoded at, to be resized to `sizes`; 0 for their own size. No JPEG has
    a side of more than 65,535."""
    least = np.ceil(np.ceil(sizes) * _AFTER_SCALING.get(interpolation, 0))
    return np.minimum(least, 65_535).astype(np.int64)


def resize(pixels: Pixels, size: tuple[int, int], interpolation: str = "bilinear", out: Pixels | None = None) -> Pixels:
    """Resize a picture.

    Args:
        pixels: uint8 (height, width, channels).
        size: (height, width) wanted.
        interpolation: one of INTERPOLATIONS.
        out: uint8 (height, width, channels), C-contiguous, to write into.

    Raises:
        UsageError: unknown interpolation.
    """
    height, width = size
    channels = pixels.shape[2]
    if out is None:
        out = np.empty((height, width, channels), np.uint8)
    if interpolation == "bilinear" and native.resize(pixels, out):
        return out
    if interpolation in _OPENCV:
        import cv2

        # OpenCV drops an axis of one channel; `flat` is a view of the same memory without it.
        flat = out[:, :, 0] if channels == 1 else out
        source: Any = pixels[:, :, 0] if channels == 1 else pixels
        cv2.resize(source, (width, height), dst=flat, interpolation=getattr(cv2, _OPENCV[interpolation]))
        return out
    if interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise UsageError(f"interpolation is {interpolation!r}", hint=f"Choose one of {known}")
    import PIL.Image

    filters = {"antialias": PIL.Image.Resampling.BILINEAR, "lanczos3": PIL.Image.Resampling.LANCZOS}
    picture = PIL.Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    out[:] = np.asarray(picture.resize((width, height), filters[interpolation])).reshape(out.shape)
    return out


def recolor(pixels: Pixels, n_channels: int) -> Pixels:
    """uint8 (height, width, 1, 3 or 4) pixels in another number of channels; gray is ITU-R 601 luma, as in JPEG."""
    have = pixels.shape[2]
    if have == n_channels:
        return pixels
    import cv2

    codes = {
        (1, 3): cv2.COLOR_GRAY2RGB,
        (1, 4): cv2.COLOR_GRAY2RGBA,
        (3, 1): cv2.COLOR_RGB2GRAY,
        (3, 4): cv2.COLOR_RGB2RGBA,
        (4, 1): cv2.COLOR_RGBA2GRAY,
        (4, 3): cv2.COLOR_RGBA2RGB,
    }
    out = cv2.cvtColor(np.ascontiguousarray(pixels), codes[have, n_channels])
    return np.asarray(out, np.uint8).reshape(*pixels.shape[:2], n_channels)


def mirror(pixels: Pixels) -> None:
    """Swap left and right of uint8 (height, width, channels), contiguous, in place: 10 us a picture of 224x224, where
    NumPy takes 330.

    >>> row = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    >>> mirror(row)
    >>> row.tolist()
    [[[3, 4, 5], [0, 1, 2]]]
    """
    import cv2

    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    cv2.flip(flat, 1, dst=flat)


def cut_out(pixels: Pixels, box: Sequence[float]) -> Pixels:
    """A part of (height, width, channels) pixels; `box`: top, left, height, width as shares of the whole. A view."""
    h, w = pixels.shape[:2]
    top, left = round(box[0] * h), round(box[1] * w)
    bottom, right = max(top + 1, round((box[0] + box[2]) * h)), max(left + 1, round((box[1] + box[3]) * w))
    return pixels[min(top, h - 1) : bottom, min(left, w - 1) : right]
