"""Which streamkit error stopped a `fit`: TensorFlow delivers an error of the loader as text inside one of its own.

    >>> error = RuntimeError("{{node}} DamagedError: train-00000.h5 record 3: crc32c is 1, not 2\\nTraceback ...")
    >>> found = streamkit_error(error)
    >>> found, found.exit_code
    (DamagedError('train-00000.h5 record 3: crc32c is 1, not 2'), 4)

JAX and PyTorch let it through as it is.
"""

from __future__ import annotations

import re

from streamkit import errors


def streamkit_error(error: BaseException) -> errors.StreamkitError | None:
    """The streamkit error that `error` is or carries, or None.

    Returns:
        Found in text, it has the message and the exit code, but neither `.shard` nor `.record` of its own.
    """
    if isinstance(error, errors.StreamkitError):
        return error
    for name, message in re.findall(r"\b([A-Z]\w+Error): ([^\n]+)", str(error)):
        kind = getattr(errors, name, None)
        if kind is not None and issubclass(kind, errors.StreamkitError):
            found: errors.StreamkitError = kind(message)
            return found
    return None
