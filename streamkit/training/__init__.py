"""Training on streamed data with Keras 3: what `fit` does not do or measure by itself.

`fit` is `model.fit` with exact resume in the middle of an epoch; everything else is handed to an ordinary `model.fit`, or
to ours. All of it runs on TensorFlow, JAX and PyTorch; Keras is imported by the modules, never by this package.
`scripts/train.py` shows the pieces together.

    >>> from streamkit.training.failures import streamkit_error
    >>> streamkit_error(ValueError("not ours")) is None
    True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkit.training.loop import fit
    from streamkit.training.memory import estimate

__all__ = ["estimate", "fit"]

_HOME = {"estimate": "streamkit.training.memory", "fit": "streamkit.training.loop"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'streamkit.training' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
