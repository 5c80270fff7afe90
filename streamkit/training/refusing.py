"""What would only fail when a training is through, or in words of a framework: refused before the first step.

>>> import pathlib, tempfile
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> refuse_foreign(folder / "run1")
>>> refuse_unwritable(folder / "new" / "curves.html")    # doctest: +ELLIPSIS
Traceback (most recent call last):
streamkit.errors.UsageError: .../new/curves.html: there is no folder .../new. Make it, or write elsewhere.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from streamkit.errors import UsageError
from streamkit.manifest import FILE_NAME


def refuse_foreign(folder: Path) -> None:
    """Refuse to keep a run's files in what is no folder, or among those of a dataset.

    Raises:
        UsageError: which it is.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is a file, and a run is kept in a folder", path=folder, hint="Name another.")
    if (folder / FILE_NAME).exists():
        raise UsageError(
            "a dataset lies here, and a run is kept in a folder of its own", path=folder, hint="Name another."
        )


def refuse_unwritable(file: str | os.PathLike[str]) -> None:
    """Refuse to write a file where there is no folder, or where one lies in its place.

    Raises:
        UsageError: which it is.
    """
    file = Path(file)
    if file.is_dir():
        raise UsageError("this is a folder, expected a file to write", path=file, hint="Name a file in it.")
    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", path=file, hint="Make it, or write elsewhere.")


def refuse_uncompiled(model: Any) -> None:
    """Refuse a Keras model without an optimizer.

    Raises:
        UsageError: it was never compiled.
    """
    if getattr(model, "optimizer", None) is None:
        raise UsageError(
            f"{getattr(model, 'name', 'the model')} is not compiled, so it has no optimizer",
            hint='Call model.compile(optimizer="adam", loss=...) first.',
        )


def warn_of_eager_steps(model: Any) -> None:
    """Warn of a model that Keras on JAX does not compile, as a layer says that XLA cannot: each step then runs operation by
    operation, many times slower. Keras says nothing of it."""
    import keras

    if keras.backend.backend() != "jax" or model.jit_compile or model.run_eagerly:
        return
    if names := [layer.name for layer in model._flatten_layers() if not layer.supports_jit]:
        warnings.warn(
            f"{model.name} is not compiled on JAX and trains slowly, because of {', '.join(names)}. Where a layer uses no "
            "TensorFlow (RandomZoom and its kin do not), set its supports_jit to True before model.compile.",
            stacklevel=3,
        )
