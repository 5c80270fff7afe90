"""What a technique made of a model, in one row: parameters, sizes, speed, accuracy; rows beside one another make a table.

>>> predict = lambda x: np.eye(3)[x]                       # sure of everything, and right half of the time
>>> row = compare("half", predict, [(np.array([0, 1]), np.array([0, 2]))], 6, b"0" * 24)
>>> row.accuracy, row.nbytes, row.deflated_nbytes < row.nbytes
(0.5, 24, True)
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError

Array = npt.NDArray[Any]
_TIMED_S = 1.0  # long enough for a figure that holds on a busy machine


@dataclass(frozen=True)
class Row:
    """A model as it can be deployed.

    Attributes:
        name: of the technique.
        parameters: numbers in it.
        nbytes: its weights as stored, or its file [B].
        deflated_nbytes: the same after zlib, which is where zeros count [B].
        images_per_second: forward only, from the median time of the first batch, again and again for a second.
        accuracy: 0 to 1.
        step_nbytes: peak of a training step, or None where it is none [B].
        zeros: share of zeros among the parameters, 0 to 1; None where it is not known.
    """

    name: str
    parameters: int
    nbytes: int
    deflated_nbytes: int
    images_per_second: float
    accuracy: float
    step_nbytes: int | None = None
    zeros: float | None = None

    def __str__(self) -> str:
        zeros = "" if self.zeros is None else f" {self.zeros:.1%} zeros,"
        return (
            f"{self.name}: {self.parameters:,} parameters,{zeros} {self.nbytes:,} B, {self.deflated_nbytes:,} B deflated, "
            f"accuracy {self.accuracy:.4f}, {self.images_per_second:.0f} images/s forward"
        )


def compare(
    name: str,
    predict: Callable[[Array], Array],
    batches: Iterable[tuple[Array, Array]],
    parameters: int,
    stored: bytes,
    step_nbytes: int | None = None,
    zeros: float | None = None,
) -> Row:
    """Run a model over labelled batches.

    Args:
        predict: from a batch of inputs to (batch, classes).
        batches: (inputs, classes as whole numbers).
        stored: the bytes that would be kept of it.

    Raises:
        UsageError: there is no batch.
    """
    first: Array | None = None
    n = n_right = 0
    for x, y in batches:
        first = x if first is None else first
        found = np.asarray(predict(x))
        n, n_right = n + len(x), n_right + int((found.argmax(axis=-1) == y).sum())
    if first is None:
        raise UsageError(f"there is no batch to measure {name} on")
    speed = len(first) / _seconds(predict, first)
    return Row(name, parameters, len(stored), len(zlib.compress(stored)), speed, n_right / n, step_nbytes, zeros)


def _seconds(predict: Callable[[Array], Array], x: Array) -> float:
    """How long it takes on a batch of a shape that it has seen, so that nothing is compiled any more."""
    taken: list[float] = []
    ends = time.perf_counter() + _TIMED_S
    while time.perf_counter() < ends or len(taken) < 3:
        begun = time.perf_counter()
        predict(x)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def compare_model(name: str, model: Any, batches: Iterable[tuple[Array, Array]], step_nbytes: int | None = None) -> Row:
    """`compare` of a Keras model, with the bytes of all its variables."""
    import keras

    values = [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.variables]
    zeros = sum(int((keras.ops.convert_to_numpy(v) == 0).sum()) for v in model.weights)
    stored, n = b"".join(value.tobytes() for value in values), model.count_params()

    def predict(x: Array) -> Array:  # under tf.distribute every replica answers for the whole batch
        return model.predict_on_batch(x)[: len(x)]

    return compare(name, predict, batches, n, stored, step_nbytes, zeros / n)
