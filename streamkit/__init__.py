"""streamkit: folders of raw images and arrays -> sharded standard TFRecord or HDF5 -> shuffled, resumable batches.

    >>> import streamkit
    >>> sorted(set(streamkit.__all__) - {"__version__"})[:4]
    ['BusyError', 'DamagedError', 'FormatVersionError', 'Loader']

Importing it imports no framework; TensorFlow, Keras and PyTorch are imported by the function that needs them.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any

from streamkit.version import __version__

if resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
    # Arrow's usual allocator reserves a gigabyte of data at once, or all that `ulimit -d` leaves.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

if TYPE_CHECKING:
    from streamkit.convert import convert
    from streamkit.errors import (
        BusyError,
        DamagedError,
        FormatVersionError,
        RefusedError,
        RemoteError,
        ResourceError,
        SourceError,
        StreamkitError,
        UsageError,
    )
    from streamkit.frontends import Loader, dataset, mix, sequence
    from streamkit.health import repair, verify
    from streamkit.opening import open

_HOME = {
    "convert": "streamkit.convert",
    "index": "streamkit.index",
    "Loader": "streamkit.frontends",
    "dataset": "streamkit.frontends",
    "mix": "streamkit.frontends",
    "sequence": "streamkit.frontends",
    "open": "streamkit.opening",
    "repair": "streamkit.health",
    "verify": "streamkit.health",
} | dict.fromkeys(
    (
        "BusyError",
        "DamagedError",
        "FormatVersionError",
        "RefusedError",
        "RemoteError",
        "ResourceError",
        "SourceError",
        "StreamkitError",
        "UsageError",
    ),
    "streamkit.errors",
)

__all__ = [
    "BusyError",
    "DamagedError",
    "FormatVersionError",
    "Loader",
    "RefusedError",
    "RemoteError",
    "ResourceError",
    "SourceError",
    "StreamkitError",
    "UsageError",
    "__version__",
    "convert",
    "dataset",
    "index",
    "mix",
    "open",
    "repair",
    "sequence",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'streamkit' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_HOME[name])
    # Packages that are functions at once, see streamkit/convert/__init__.py.
    value = module if name in ("convert", "index") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
