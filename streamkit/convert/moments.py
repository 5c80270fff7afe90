"""Statistics of what is stored, gathered while it is converted: mean and spread of the channels, values that are no numbers.

The mean is that of the check's own decode, which takes a JPEG at an eighth of its size; the spread is that of some pictures
that are decoded whole: the first of each shard, whose order is that of the keys' hashes. Every picture counts the same,
whatever its size. Sums are those of whole shards, added in the plan's order: the number of workers does not show.

>>> gray, white = (of_pixels(np.full((4, 6, 1), value, np.uint8)) for value in (100, 255))
>>> totals([summed({"mean": [gray.mean, white.mean], "whole": [gray, white]})])["std"]
[77.5, 77.5, 77.5]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

N_WHOLE = 256  # pictures decoded whole, in a dataset of enough of them
_DIGITS = 4
_SMALL = 1000  # numbers of a picture whose sums are one step


class Moments(NamedTuple):
    """Mean of each of three channels of a picture, 0 to 255, and of their squares. Gray counts as three equal channels."""

    mean: tuple[float, ...]
    square: tuple[float, ...]


def of_pixels(pixels: npt.NDArray[np.uint8]) -> Moments:
    """Moments of uint8 (height, width, 1, 3 or 4); alpha does not count."""
    rows = pixels.reshape(len(pixels), -1)
    squares = np.einsum("ij,ij->j", rows, rows, dtype=np.uint64).reshape(pixels.shape[1:])
    return Moments(mean_of(pixels), _of_channels(np.add.reduce(squares, 0), pixels))


def mean_of(pixels: npt.NDArray[np.uint8]) -> tuple[float, ...]:
    """Mean of each of three channels of uint8 (height, width, 1, 3 or 4).

    In NumPy, which is there already: for a small conversion, loading OpenCV would take longer than all of its means.
    """
    if pixels.size > _SMALL:  # sums over neighbours in memory first; 16 million rows of 255 fit
        rows = np.add.reduce(pixels.reshape(len(pixels), -1), 0, np.uint32).reshape(pixels.shape[1:])
    else:
        rows = pixels.reshape(-1, pixels.shape[2])
    return _of_channels(np.add.reduce(rows, 0, np.uint64), pixels)


def _of_channels(sums: npt.NDArray[np.uint64], pixels: npt.NDArray[np.uint8]) -> tuple[float, ...]:
    """Means of three channels, from the sums of all."""
    height, width, n_channels = pixels.shape
    means = [value / (height * width) for value in sums.tolist()[:3]]
    return tuple(means if n_channels > 1 else means * 3)


def not_finite(values: npt.NDArray[Any]) -> tuple[int, int]:
    """How many values are NaN, and how many infinite."""
    if values.dtype.kind not in "fc" or np.isfinite(values).all():
        return 0, 0
    return int(np.isnan(values).sum()), int(np.isinf(values).sum())


def summed(facts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """A shard's sums, JSON-able: from the facts `mean`, `whole` and `NAME.not_finite` of its items."""
    out: dict[str, Any] = {}
    if facts.get("mean"):
        out["mean"] = [len(facts["mean"]), _sum(facts["mean"])]
    if facts.get("whole"):
        whole = facts["whole"]
        out["whole"] = [len(whole), _sum([m.mean for m in whole]), _sum([m.square for m in whole])]
    counts = {name.removesuffix(".not_finite"): pairs for name, pairs in facts.items() if name.endswith(".not_finite")}
    out["not_finite"] = {name: [sum(column) for column in zip(*pairs, strict=True)] for name, pairs in counts.items()}
    return out


def totals(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the manifest says: `mean`, `std` of three channels and `std_of` pictures; `not_finite` of fields that have any."""
    shards = list(shards)
    out: dict[str, Any] = {}
    means = [shard["mean"] for shard in shards if "mean" in shard]
    if means:
        n = sum(count for count, _ in means)
        out["mean"] = [round(value / n, _DIGITS) for value in _sum([sums for _, sums in means])]
    wholes = [shard["whole"] for shard in shards if "whole" in shard]
    if wholes:
        n = sum(count for count, _, _ in wholes)
        first, second = _sum([sums for _, sums, _ in wholes]), _sum([squares for _, _, squares in wholes])
        spread = [math.sqrt(max(0.0, b / n - (a / n) ** 2)) for a, b in zip(first, second, strict=True)]
        out |= {"std": [round(value, _DIGITS) for value in spread], "std_of": n}
    names = sorted({name for shard in shards for name in shard.get("not_finite", ())})
    counts = {name: [s["not_finite"][name] for s in shards if name in s.get("not_finite", ())] for name in names}
    found = {
        name: dict(zip(("nan", "inf"), map(sum, zip(*pairs, strict=True)), strict=True))
        for name, pairs in counts.items()
    }
    return out | {"not_finite": {name: counted for name, counted in found.items() if any(counted.values())}}


def as_sums(statistics: Mapping[str, Any], n_samples: int) -> dict[str, Any]:
    """A dataset's statistics as the sums of one shard, so that new shards can be added; the sample's mean is taken to be
    that of all."""
    out: dict[str, Any] = {}
    image = statistics.get("image", {})
    if "mean" in image:
        mean = image["mean"] * (3 // len(image["mean"]))
        out["mean"] = [n_samples, [value * n_samples for value in mean]]
        if "std" in image:
            n, std = image["std_of"], image["std"] * (3 // len(image["std"]))
            squares = [(s * s + m * m) * n for s, m in zip(std, mean, strict=True)]
            out["whole"] = [n, [value * n for value in mean], squares]
    arrays = {
        name: facts["not_finite"] for name, facts in statistics.get("arrays", {}).items() if "not_finite" in facts
    }
    out["not_finite"] = {name: [counts["nan"], counts["inf"]] for name, counts in arrays.items()}
    return out


def _sum(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*rows, strict=True)]
