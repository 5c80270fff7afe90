"""How well a stream is shuffled, in numbers, against a true permutation.

>>> from streamkit.order import Order
>>> found = report(np.arange(4096), np.repeat([0, 1], 2048), batch_size=64)
>>> found["rank_correlation"], found["neighbour_entropy"], found["class_spread"] > 50
(1.0, 0.0, True)
>>> rows = Order(4096, seed=1).rows(0, 0, 4096)
>>> found = report(rows, rows // 2048, batch_size=64)
>>> abs(found["rank_correlation"]) < 0.1, found["neighbour_entropy"] > 0.98, 0.5 < found["class_spread"] < 2
(True, True, True)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_BINS = 64


def report(rows: Ints, labels: Ints | None, batch_size: int) -> dict[str, float | None]:
    """Compare an order with a true permutation.

    Args:
        rows: stored rows in the order delivered, int64 (n,).
        labels: class of each of them, or None.
        batch_size: samples in a global batch.

    Returns:
        rank_correlation: Spearman's, of the place in the epoch with the place in storage; 0 +- 1 / sqrt(n).
        neighbour_entropy: of the distances in storage between samples that follow one another, in 64 bins that a
            permutation fills alike; 1 for a permutation, 0 for storage order.
        classes_per_batch, classes_expected: different classes in a batch, on average; and by a permutation.
        class_spread: variance of the class counts of batches, as a multiple of a permutation's; above 1 classes come in
            clumps, below 1 they come more evenly than by chance.
    """
    n = len(rows)
    ranks = np.argsort(np.argsort(rows, kind="stable"), kind="stable")
    out: dict[str, float | None] = {"rank_correlation": None, "neighbour_entropy": None}
    if n > 2:
        out["rank_correlation"] = round(float(np.corrcoef(np.arange(n), ranks)[0, 1]), 6)
        share = np.abs(np.diff(ranks)) / n
        bins = np.minimum((1 - (1 - share) ** 2) * _BINS, _BINS - 1).astype(np.int64)  # distances are triangular
        p = np.bincount(bins, minlength=_BINS) / (n - 1)
        out["neighbour_entropy"] = round(float(-(p[p > 0] * np.log(p[p > 0])).sum()) / math.log(_BINS), 6) + 0.0
    n_batches = n // batch_size
    if labels is None or n_batches < 2:
        return out | {"classes_per_batch": None, "classes_expected": None, "class_spread": None}
    classes, numbers = np.unique(labels, return_inverse=True)
    k = len(classes)
    batch = np.arange(n_batches * batch_size) // batch_size
    counts = np.bincount(batch * k + numbers[: len(batch)], minlength=n_batches * k).reshape(n_batches, k)
    p = np.bincount(numbers, minlength=k) / n
    variance = batch_size * p * (1 - p) * (n - batch_size) / (n - 1)
    spread = ((counts - batch_size * p) ** 2).sum() / n_batches / variance.sum() if k > 1 else None
    return out | {
        "classes_per_batch": round(float((counts > 0).sum(axis=1).mean()), 4),
        "classes_expected": round(float((1 - _without(n, p * n, batch_size)).sum()), 4),
        "class_spread": None if spread is None else round(float(spread), 4),
    }


def _without(n: int, n_class: npt.NDArray[np.float64], batch_size: int) -> npt.NDArray[np.float64]:
    """Chance that a batch drawn without replacement has none of a class."""
    drawn = np.arange(batch_size)[:, None]
    return np.prod(np.maximum(0, n - n_class - drawn) / (n - drawn), axis=0)
