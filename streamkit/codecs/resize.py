"""Resizing of uint8 pictures, by OpenCV where it is exact enough and by Pillow where a filter must antialias.

bilinear (default), nearest, bicubic, area    OpenCV; half-pixel centres, as tf.image.resize without antialiasing
antialias                                     Pillow's bilinear with the support scaled: the exact triangle filter
lanczos3                                      Pillow's Lanczos with the support scaled

>>> import numpy as np
>>> resize(np.zeros((8, 6, 3), np.uint8), (4, 3), "area").shape
(4, 3, 3)
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError

Pixels = npt.NDArray[np.uint8]

_OPENCV = {
    "bilinear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}
INTERPOLATIONS = (*_OPENCV, "antialias", "lanczos3")


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
    if interpolation in _OPENCV:
        # OpenCV drops an axis of one channel; `flat` is a view of the same memory without it.
        flat = out[:, :, 0] if channels == 1 else out
        source: Any = pixels[:, :, 0] if channels == 1 else pixels
        cv2.resize(source, (width, height), dst=flat, interpolation=_OPENCV[interpolation])
        return out
    if interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise UsageError(f"interpolation is {interpolation!r}", hint=f"Choose one of {known}")
    import PIL.Image

    filters = {"antialias": PIL.Image.Resampling.BILINEAR, "lanczos3": PIL.Image.Resampling.LANCZOS}
    picture = PIL.Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    out[:] = np.asarray(picture.resize((width, height), filters[interpolation])).reshape(out.shape)
    return out
