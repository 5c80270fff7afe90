"""Crops and flips as arithmetic: a function of (seed, epoch, row), so the same sample gets the same crop everywhere.

>>> heights, widths = np.array([100, 100]), np.array([200, 200])
>>> boxes = random_boxes((0, 0), np.array([7, 8]), heights, widths)
>>> (boxes == random_boxes((0, 0), np.array([8, 7]), heights, widths)[::-1]).all()
np.True_
>>> center_boxes(heights[:1], widths[:1], 1.0).tolist()
[[0, 50, 100, 100]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.bijection import uniform

Ints = npt.NDArray[np.int64]

_ATTEMPTS = 10
_AREA = (0.08, 1.0)  # share of the picture; Source: Szegedy et al., "Going Deeper with Convolutions" (2014)
_RATIO = (3 / 4, 4 / 3)  # width : height


def random_boxes(key: tuple[int, ...], rows: Ints, heights: Ints, widths: Ints) -> Ints:
    """The box of a random resized crop in each picture.

    Args:
        key: (seed, epoch).
        rows: stored rows, int64 (n,).
        heights, widths: sizes of the pictures, upright [pixel], (n,).

    Returns:
        int64 (n, 4): top, left, height, width [pixel]. Of ten attempts the first that fits counts, as usual; where none
        does, the largest centred box of an allowed ratio.
    """
    n = len(rows)
    numbers = rows * (4 * _ATTEMPTS) + np.arange(4 * _ATTEMPTS)[:, None]
    draws = uniform((*key, 1), numbers).reshape(_ATTEMPTS, 4, n)
    area = (_AREA[0] + draws[:, 0] * (_AREA[1] - _AREA[0])) * heights * widths
    ratio = np.exp(np.log(_RATIO[0]) + draws[:, 1] * np.log(_RATIO[1] / _RATIO[0]))
    box_w = np.round(np.sqrt(area * ratio)).astype(np.int64)
    box_h = np.round(np.sqrt(area / ratio)).astype(np.int64)
    fits = (box_w > 0) & (box_h > 0) & (box_w <= widths) & (box_h <= heights)
    first = np.argmax(fits, axis=0)
    pick = (first, np.arange(n))
    height, width = box_h[pick], box_w[pick]
    top = np.floor(draws[:, 2][pick] * (heights - height + 1)).astype(np.int64)
    left = np.floor(draws[:, 3][pick] * (widths - width + 1)).astype(np.int64)
    boxes = np.stack([top, left, height, width], axis=1)
    none = ~fits.any(axis=0)
    if none.any():
        nearest = np.clip(widths / heights, *_RATIO)
        boxes[none] = center_boxes(heights, widths, nearest)[none]
    return boxes


def center_boxes(heights: Ints, widths: Ints, ratio: Any) -> Ints:
    """The largest centred box of that ratio width : height in each picture; int64 (n, 4) as `random_boxes`."""
    height = np.maximum(1, np.minimum(heights, np.floor(widths / ratio))).astype(np.int64)
    width = np.maximum(1, np.minimum(widths, np.floor(heights * ratio))).astype(np.int64)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def flips(key: tuple[int, ...], rows: Ints) -> npt.NDArray[np.bool_]:
    """Which rows are mirrored left to right: half of them."""
    return uniform((*key, 0), rows) < 0.5
