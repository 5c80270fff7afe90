"""Values -> what a page can show: small pictures, overlays of masks, boxes, lines and heat maps. Pure.

>>> lines(np.array([[0.0, 1.0], [2.0, np.nan]]))
[[0.0, 2.0], [1.0, None]]
>>> view("spectrum", np.zeros((30, 40)))["kind"]
'map'
>>> relative_boxes(np.array([[10.0, 20, 30, 40]]), width=100, height=200)
[[0.1, 0.1, 0.3, 0.2]]
"""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamkit.codecs import image
from streamkit.codecs.resize import recolor, resize

SIDE = 192  # longest side of a small picture [pixel]
MAX_SERIES = 8  # more columns than this are a map, not lines
N_BINS = 32
_N_POINTS = 120
_N_CHARS = 300
# Source: Okabe and Ito, "Color Universal Design" (2008): told apart by colour-blind readers too.
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def small(pixels: npt.NDArray[np.uint8], interpolation: str = "area", side: int = SIDE) -> npt.NDArray[np.uint8]:
    """A picture (height, width, channels) with its longest side at most `side` pixels; never enlarged."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    return resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))), interpolation)


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Pixels as a data: address: three channels as JPEG, one or four as PNG."""
    format = "jpeg" if pixels.shape[2] == 3 else "png"
    data = image.encode(np.ascontiguousarray(pixels), format, 82)
    return f"data:image/{format};base64,{base64.b64encode(data).decode()}"


def picture(pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """A picture, uint8 (height, width, channels)."""
    shown = small(recolor(pixels, 3))
    return {"kind": "image", "src": data_uri(shown), "width": pixels.shape[1], "height": pixels.shape[0]}


def mask(values: npt.NDArray[Any]) -> dict[str, Any]:
    """A mask (height, width, 1): 0 is transparent, every other value has one of `COLORS`."""
    found = np.unique(values)
    where = np.searchsorted(found, values[:, :, 0])  # masks may hold any whole numbers; 256 of them are told apart
    shown = small(np.minimum(where, 255).astype(np.uint8)[:, :, None], "nearest")[:, :, 0]
    of_rank = np.zeros((256, 4), np.uint8)
    for rank, value in enumerate(found[:256].tolist()):
        if value:
            of_rank[rank] = (*COLORS[int(value) % len(COLORS)], 255)
    return {"kind": "mask", "src": data_uri(of_rank[shown]), "values": found[:256].tolist()}


def relative_boxes(boxes: npt.NDArray[np.float64], width: int, height: int) -> list[list[float]]:
    """Boxes (n, 4) of xmin, ymin, xmax, ymax as shares of the picture's sides; those that are shares already stay."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if boxes.size and boxes.max() > 1:
        boxes = boxes / [width, height, width, height]
    shares = np.clip(np.nan_to_num(boxes), 0, 1)
    return [[round(v, 4) for v in box] for box in shares.tolist()]


def view(name: str, value: Any) -> dict[str, Any]:
    """What to show of a field's value that is neither image nor mask."""
    if isinstance(value, (str, bytes)):
        text = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
        return {"field": name, "kind": "text", "text": text[:_N_CHARS] + ("..." if len(text) > _N_CHARS else "")}
    array = np.asarray(value)
    if array.ndim == 0:
        return {"field": name, "kind": "text", "text": f"{array.item():.6g}" if array.dtype.kind == "f" else str(array)}
    out: dict[str, Any] = {"field": name, "shape": "x".join(map(str, array.shape)), "dtype": str(array.dtype)}
    if array.size == 0 or array.dtype.kind not in "iufb":
        return out | {"kind": "text", "text": "empty" if array.size == 0 else repr(array.reshape(-1)[0])}
    if array.ndim == 3 and array.dtype == np.uint8 and array.shape[2] in (1, 3, 4):
        return out | picture(array)
    while array.ndim > 2:
        out["note"] = "middle slice"
        array = array[array.shape[0] // 2]
    if array.ndim == 1 or array.shape[1] <= MAX_SERIES:
        return out | {"kind": "lines", "lines": lines(array)}
    if array.shape[0] <= MAX_SERIES:
        return out | {"kind": "lines", "lines": lines(array.T)}
    return out | {"kind": "map", "src": data_uri(heat_map(array)), **_extremes(array)}


def _extremes(array: npt.NDArray[Any]) -> dict[str, float]:
    finite = array[np.isfinite(array)]
    return {"low": float(finite.min()), "high": float(finite.max())} if finite.size else {}


def lines(array: npt.NDArray[Any]) -> list[list[float | None]]:
    """The columns of a (steps,) or (steps, columns) array as lines of few points: of each run its smallest and largest
    value, so that no peak is lost. What is not finite is None.
    """
    columns = np.asarray(array, np.float64).reshape(len(array), -1).T
    if columns.shape[1] > 2 * _N_POINTS:
        edges = np.linspace(0, columns.shape[1], _N_POINTS + 1).astype(np.int64)[:-1]
        finite = np.isfinite(columns)
        low = np.minimum.reduceat(np.where(finite, columns, np.inf), edges, axis=1)
        high = np.maximum.reduceat(np.where(finite, columns, -np.inf), edges, axis=1)
        columns = np.stack([low, high], axis=2).reshape(len(columns), -1)
    return [[_short(v) for v in column] for column in columns.tolist()]


def _short(value: float) -> float | None:
    rounded = float(f"{value:.4g}")
    if np.isfinite(rounded):
        return rounded
    return value if np.isfinite(value) else None  # the largest numbers round to infinity


def histogram(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Bins of one or more finite values, and the range they cover; one bin where all are the same.

    np.histogram refuses ranges that are a few units in the last place wide, or wider than the largest number.
    """
    low, high = float(values.min()), float(values.max())
    shares = _shares(values, low, high)
    bins = np.bincount(np.minimum((shares * N_BINS).astype(np.int64), N_BINS - 1), minlength=N_BINS)
    return {"bins": bins.tolist() if shares.any() else [len(values)], "low": low, "high": high}


def _shares(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Where values lie from `low` (0) to `high` (1). Halves, as the difference of two numbers may be infinite."""
    span = high / 2 - low / 2
    shares: npt.NDArray[np.float64] = (values / 2 - low / 2) / span if span > 0 else np.zeros_like(values)
    return shares


def heat_map(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A (rows, columns) array as RGBA pixels, smallest value dark and largest bright; what is not finite is transparent."""
    values = np.asarray(array, np.float64)
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    scaled = _shares(np.where(finite, values, low), low, high) * 255
    colors = cv2.applyColorMap(scaled.astype(np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    pixels = np.dstack([colors, np.where(finite, 255, 0)]).astype(np.uint8)
    return small(np.ascontiguousarray(pixels), "area")
