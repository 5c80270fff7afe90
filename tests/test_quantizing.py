"""Which errors of TFLite's converter say that it cannot make a network int8, and which are something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

import streamkit
from streamkit.training.quantizing import tflite


@pytest.fixture
def model() -> Any:
    pytest.importorskip("tensorflow")
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError("the disk is full"), streamkit.DamagedError("crc32c is 1"), streamkit.UsageError("x")],
)
def test_what_goes_wrong_in_the_batches_comes_as_it_is(model: Any, error: Exception) -> None:
    def batches() -> Iterator[Any]:
        yield np.zeros((2, 4), np.float32)
        raise error

    with pytest.raises(type(error)) as caught:
        tflite(model, batches())
    assert caught.value is error


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "ConverterError"),
        ("no such thing\nand more", "no such thing"),
        ("<unknown>:0\nloc(x): 'tf.Svd' op is neither", "'tf.Svd' op is neither"),
    ],
)
def test_what_tflite_cannot_do_is_told_in_one_line(
    model: Any, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    from tensorflow import lite
    from tensorflow.lite.python.convert import ConverterError

    class Converter:
        def convert(self) -> bytes:
            raise ConverterError(text)

    monkeypatch.setattr(lite.TFLiteConverter, "from_keras_model", lambda model: Converter())
    with pytest.raises(streamkit.UsageError) as caught:
        tflite(model, [])
    assert str(caught.value).startswith(f"TFLite cannot make this network int8: {reason}. ")
