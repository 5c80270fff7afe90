"""What this machine can do at all: read a file, copy memory, decode a JPEG. Beside them a dataset's figures mean something.

>>> memcpy_rate(budget_s=0.01) > 1e6
True
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg

from streamkit.index import ADOPT_AGAIN
from streamkit.reports.stages import per_item
from streamkit.storage import open_for_reading

_BLOCK_NBYTES = 8 << 20
_MAX_NBYTES = 256 << 20


def read_rate(paths: Sequence[Path]) -> float:
    """Bytes a second of reading files from their beginning in large blocks, at most 256 MiB of them [B/s].

    The first call may go to the disk, a second one finds the bytes in the page cache.

    Raises:
        DamagedError: a file is missing.
        ResourceError: the system refuses to open it.
    """
    block = memoryview(bytearray(_BLOCK_NBYTES))
    nbytes = 0
    started = time.perf_counter()
    for path in paths:
        with os.fdopen(open_for_reading(path, ADOPT_AGAIN), "rb", buffering=0) as file:
            while (n := file.readinto(block)) and nbytes < _MAX_NBYTES:
                nbytes += n
        if nbytes >= _MAX_NBYTES:
            break
    return nbytes / max(1e-9, time.perf_counter() - started)


def memcpy_rate(budget_s: float = 0.2) -> float:
    """Bytes a second of copying memory, in one thread [B/s]."""
    source = np.ones(_BLOCK_NBYTES, np.uint8)
    target = np.empty_like(source)
    return _BLOCK_NBYTES / per_item(lambda i: np.copyto(target, source), 16, budget_s)


def jpeg_rate(stored: Sequence[bytes], budget_s: float = 0.5) -> float | None:
    """Whole pictures a second that the bare JPEG decoder gives in one thread; None where they are no plain JPEGs."""
    jpegs = []
    for data in stored:
        try:
            if data[:3] == b"\xff\xd8\xff" and simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
                jpegs.append(data)
        except ValueError:
            continue  # damaged, which reading it says with its name
    if not jpegs:
        return None
    return 1 / per_item(lambda i: simplejpeg.decode_jpeg(jpegs[i], "RGB", fastdct=True), len(jpegs), budget_s)
