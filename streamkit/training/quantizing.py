"""Eight-bit weights after training: Keras' own for the layers it covers, and LiteRT (TFLite) for whole networks.

    >>> layers = keras.layers
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(64)])
    >>> small, left = int8(model)
    >>> left
    ('conv',)
    >>> stored_nbytes(model) > 2 * stored_nbytes(small)
    True

Keras quantizes Dense, EinsumDense and Embedding; a convolutional network is mostly convolutions, so that saves little there.
TFLite covers convolutions too, but needs TensorFlow, and makes a file for inference and no Keras model.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from streamkit.errors import StreamkitError, UsageError

Array = npt.NDArray[Any]


def int8(model: Any) -> tuple[Any, tuple[str, ...]]:
    """A copy with int8 weights where Keras has them, and the names of layers with kernels that it leaves as they are.

    Inputs of such layers are quantized too, with a scale of their own for every sample. The copy can be saved and used,
    and is not for training.

    Returns:
        (model, names of the layers left).
    """
    small = keras.models.clone_model(model)
    small.set_weights(model.get_weights())
    # A clone is compiled like its model, and the optimizer of its float kernels could not be loaded again.
    small.compiled, small.optimizer = False, None
    left = []
    for layer in _leaves(small):
        try:
            layer.quantize("int8")
        except NotImplementedError:  # how a layer says that it has no int8 form
            if layer.weights and not _is_normalisation(layer):
                left.append(layer.name)
    return small, tuple(left)


def stored_nbytes(model: Any) -> int:
    """Bytes of all weights and other variables as they are stored, metrics and optimizer left out."""
    return sum(np.asarray(keras.ops.convert_to_numpy(v)).nbytes for v in model.variables)


def _leaves(model: Any) -> Iterator[Any]:
    for layer in [*getattr(model, "layers", ()), *getattr(model, "stretch", ())]:
        if hasattr(layer, "layers") or hasattr(layer, "stretch"):
            yield from _leaves(layer)
        else:
            yield layer


def _is_normalisation(layer: Any) -> bool:
    return "Normalization" in type(layer).__name__  # few numbers, which stay float


def tflite(model: Any, batches: Iterable[Array]) -> bytes:
    """A TFLite file whose weights and arithmetic are int8; input and output keep their types.

    Args:
        model: on the TensorFlow backend; its input must have a fixed shape but for the batch.
        batches: a few hundred real samples, by which the ranges of the activations are told.

    Raises:
        UsageError: another backend, or a layer that TFLite has no int8 form of. What else goes wrong, in the batches for
            one, comes as it is.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import ConverterError

    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"TFLite is made through TensorFlow, and this is {keras.backend.backend()}",
            hint="Load the saved model with KERAS_BACKEND=tensorflow, or use int8().",
        )
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    dtype = model.inputs[0].dtype  # batches come as the loader gives them, uint8 for one
    converter.representative_dataset = lambda: (
        [row[None]] for x in batches for row in np.asarray(x).astype(dtype, copy=False)
    )
    try:
        with warnings.catch_warnings():
            # It takes the ranges from the samples, after a warning that nobody told it any.
            warnings.filterwarnings("ignore", message="Statistics for quantized inputs")
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # a page of endpoints
                return bytes(converter.convert())
    except StreamkitError:  # of the batches
        raise
    except (ConverterError, RuntimeError, ValueError) as error:  # over many lines, or none
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((m[0] for line in lines if (m := re.search(r"'tf\.\w+' op .*|error: .*", line))), lines[0])
        raise UsageError(
            f"TFLite cannot make this network int8: {reason[:200]}",
            hint="Recurrent layers need unroll=True, and all others a fixed shape.",
        ) from error


def tflite_call(content: bytes) -> Callable[[Array], Array]:
    """What a TFLite file computes: a function from a batch of inputs to the outputs."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=os.cpu_count())
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()

    def call(x: Array) -> Array:
        interpreter.resize_tensor_input(given["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], np.asarray(x, given["dtype"]))
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(found["index"]))

    return call
