"""Smaller forms of a trained model, one after another, each measured on the same batches.

>>> import keras, numpy as np
>>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
>>> forms = Forms(batches=[(np.zeros((2, 4), "float32"), np.zeros(2, int))])
>>> [row.name for row in forms.rows(model)]
['trained']
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamkit.training.comparing import Row, compare, compare_model
from streamkit.training.factoring import low_rank
from streamkit.training.quantizing import int8, tflite, tflite_call

Batches = Iterable[tuple[Any, Any]]


@dataclass(frozen=True)
class Forms:
    """Which forms to make, and what to measure them by.

    Attributes:
        batches: labelled batches, iterated once a form.
        energy: of the low-rank form, which is trained by `fine_tune`; None for no such form. There is none either, and it
            is said, where no layer would become smaller.
        fine_tune: trains a model that is not compiled yet.
        quantize: "int8" or "tflite", of the last form before it, or None.
        calibration: batches that the ranges of TFLite's activations are told by.
        step_nbytes: peak of a training step of a compiled model [B], or None where it is not known.
        folder: where quantized forms are kept; None: nowhere.
    """

    batches: Batches
    energy: float | None = None
    fine_tune: Callable[[Any], None] | None = None
    quantize: str | None = None
    calibration: Batches = ()
    step_nbytes: Callable[[Any], int | None] = lambda model: None
    folder: Path | None = None

    def rows(self, model: Any) -> Iterator[Row]:
        """A row for the trained model and one for each form, as soon as it is made."""
        yield self._row("trained", model)
        if self.energy is not None:
            thin = low_rank(model, energy=self.energy)
            if thin.count_params() == model.count_params():
                text = "no layer would become smaller, so there is no such form and nothing to fine-tune"
                print(f"low rank {self.energy}: {text}", file=sys.stderr)
            else:
                model = thin
                if self.fine_tune is not None:
                    self.fine_tune(model)
                yield self._row(f"low rank {self.energy}", model)
        if self.quantize == "int8":
            small, left = int8(model)
            print(f"int8: Keras leaves {', '.join(left) or 'no layer'}", file=sys.stderr)
            if self.folder is not None:
                small.save(self.folder / "int8.keras")
            yield compare_model("int8 (Keras)", small, self.batches)
        if self.quantize == "tflite":
            content = tflite(model, (np.asarray(x) for x, _ in self.calibration))
            if self.folder is not None:
                (self.folder / "int8.tflite").write_bytes(content)
            yield compare("int8 (TFLite)", tflite_call(content), self.batches, model.count_params(), content)

    def _row(self, name: str, model: Any) -> Row:
        return compare_model(name, model, self.batches, self.step_nbytes(model))
