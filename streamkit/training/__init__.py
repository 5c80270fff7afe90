"""Training on streamed data with Keras 3: what `fit` does not measure or offer by itself, as ordinary callbacks.

Everything here is handed to an ordinary `model.fit` and runs on TensorFlow, JAX and PyTorch alike; Keras is imported by
the modules, never by this package. `scripts/train.py` shows the pieces together.

    >>> from streamkit.training.failures import streamkit_error
    >>> streamkit_error(ValueError("not ours")) is None
    True
"""
