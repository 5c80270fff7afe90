"""Batch buffers that are used again: 64-byte aligned, so that frameworks take them without a copy.

A buffer is free when nobody but the pool refers to it; a batch that anyone still holds is never overwritten.

    >>> pool = Buffers(keep=2)
    >>> a = pool.empty((4, 3), "float32")
    >>> address = a.ctypes.data
    >>> address % 64
    0
    >>> part = a[1:]; del a
    >>> pool.empty((4, 3), "float32").ctypes.data == address    # `part` still uses it
    False
"""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import ResourceError
from streamkit.forking import anew_in_children

ALIGNMENT = 64  # what TensorFlow (EIGEN_MAX_ALIGN_BYTES), JAX and AVX-512 want


def _references_when_free() -> int:
    only = [np.empty(1, np.uint8)]
    return sys.getrefcount(only[0])


_FREE = _references_when_free()


class Buffers:
    """A pool of buffers, safe in threads.

    Args:
        keep: how many of each size are kept for use again.
        keep_nbytes: and how many bytes of all; the sizes used longest ago are forgotten first.
    """

    def __init__(self, keep: int = 1, keep_nbytes: int = 1 << 30) -> None:
        self.keep, self.keep_nbytes = keep, keep_nbytes
        self.reset()
        anew_in_children(self)

    def reset(self) -> None:
        """Own no buffer."""
        self._lock = threading.Lock()
        self._owned: OrderedDict[int, list[npt.NDArray[np.uint8]]] = OrderedDict()
        self._nbytes = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """An uninitialised C-contiguous array whose memory may have been a batch before."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            owned = self._owned.setdefault(nbytes, [])
            self._owned.move_to_end(nbytes)
            # The buffer used last comes first: it is the likeliest to be in the cache still.
            i = next((i for i in reversed(range(len(owned))) if sys.getrefcount(owned[i]) == _FREE), -1)
            if i >= 0:
                base = owned.pop(i)
                owned.append(base)
            else:
                base = _memory(nbytes + ALIGNMENT)
                if len(owned) < self.keep:
                    owned.append(base)
                    self._nbytes += nbytes
                while self._nbytes > self.keep_nbytes:  # padded batches come in many sizes
                    size, forgotten = self._owned.popitem(last=False)
                    self._nbytes -= size * len(forgotten)
            start = -base.ctypes.data % ALIGNMENT
            return base[start : start + nbytes].view(dtype).reshape(shape)


def _memory(nbytes: int) -> npt.NDArray[np.uint8]:
    try:
        return np.empty(nbytes, np.uint8)
    except MemoryError as error:
        what = f"no memory is left for a batch of {nbytes} bytes"
        hint = "Keep fewer batches, or pass a smaller batch_size= or image_size=."
        raise ResourceError(what, hint=hint) from error
