"""What a technique made of a model, in one row: parameters, sizes, speed, accuracy; rows beside one another make a table.

>>> predict = lambda x: np.eye(3)[x]                       # sure of everything, and right half of the time
>>> row = compare("half", predict, [(np.array([0, 1]), np.array([0, 2]))], 6, b"0" * 24)
>>> row.accuracy, row.nbytes, row.deflated_nbytes < row.nbytes
(0.5, 24, True)
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Row:
    """A model as it can be deployed.

    Attributes:
        name: of the technique.
        parameters: numbers in it.
        nbytes: its weights as stored, or its file [B].
        deflated_nbytes: the same after zlib, which is where zeros count [B].
        images_per_second: forward only, whole batches; the first one does not count.
        accuracy: 0 to 1.
        step_nbytes: peak of a training step, or None where it is none [B].
    """

    name: str
    parameters: int
    nbytes: int
    deflated_nbytes: int
    images_per_second: float
    accuracy: float
    step_nbytes: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.parameters:,} parameters, {self.nbytes:,} B, {self.deflated_nbytes:,} B deflated, "
            f"accuracy {self.accuracy:.4f}, {self.images_per_second:.0f} images/s forward"
        )


def compare(
    name: str,
    predict: Callable[[Array], Array],
    batches: Iterable[tuple[Array, Array]],
    parameters: int,
    stored: bytes,
    step_nbytes: int | None = None,
) -> Row:
    """Run a model over labelled batches.

    Args:
        predict: from a batch of inputs to (batch, classes).
        batches: (inputs, classes as whole numbers).
        stored: the bytes that would be kept of it.
    """
    n = n_right = n_timed = 0
    seconds = 0.0
    for number, (x, y) in enumerate(batches):
        begun = time.perf_counter()
        found = np.asarray(predict(x))
        if number:  # the first one compiles
            seconds, n_timed = seconds + time.perf_counter() - begun, n_timed + len(x)
        n, n_right = n + len(x), n_right + int((found.argmax(axis=-1) == y).sum())
    speed = n_timed / seconds if seconds else 0.0
    return Row(name, parameters, len(stored), len(zlib.compress(stored)), speed, n_right / max(1, n), step_nbytes)


def compare_model(name: str, model: Any, batches: Iterable[tuple[Array, Array]], step_nbytes: int | None = None) -> Row:
    """`compare` of a Keras model, with the bytes of all its variables."""
    import keras

    stored = b"".join(np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in model.variables)
    return compare(name, model.predict_on_batch, batches, model.count_params(), stored, step_nbytes)
