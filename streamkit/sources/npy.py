"""The .npy format, read with suspicion: header and size are checked before anything is allocated; never pickle.

Source: NEP 1 and numpy.lib.format.

    >>> import io
    >>> buffer = io.BytesIO()
    >>> np.save(buffer, np.zeros((2, 3), np.float32))
    >>> header = read_header(buffer.getvalue()[:128], 128 + 24)
    >>> header.shape, header.dtype.name, header.offset
    ((2, 3), 'float32', 128)
"""

from __future__ import annotations

import io
import math
import os
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.errors import ResourceError
from streamkit.schema import MAX_NDIM

HEADER_NBYTES = 10_000


class BadNpy(ValueError):
    """Not a .npy file we read; the message is the reason. `refused` marks pickled objects."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Header(NamedTuple):
    """Facts of a .npy file: shape, dtype as stored, Fortran order, where the values begin [B]."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_header(head: bytes, size: int) -> Header:
    """Parse the first bytes of a .npy file of `size` bytes.

    Raises:
        BadNpy: no .npy, pickled objects, or a shape that does not fit the file's size.
    """
    if not head:
        raise BadNpy("empty file")
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _READERS:
            raise ValueError(f"version {version} is newer than 2.0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that Python 2 wrote
            shape, fortran, dtype = _READERS[version](stream, max_header_size=HEADER_NBYTES)
    except Exception as error:  # NumPy evaluates the header as Python, and its tokenizer and parser raise many kinds
        raise BadNpy(f"not a .npy file ({(str(error) or type(error).__name__).splitlines()[0]})") from None
    if dtype.hasobject:
        raise BadNpy("object arrays are pickles, and those are refused", refused=True)
    if dtype.kind not in "biufc" or dtype.itemsize > 16:
        raise BadNpy(f"dtype {dtype} is not plain numbers")
    if len(shape) > MAX_NDIM or any(d < 0 for d in shape):
        raise BadNpy(f"shape {shape} has over {MAX_NDIM} axes or a negative one")
    header = Header(tuple(int(d) for d in shape), dtype, fortran, stream.tell())
    if header.offset + header.nbytes != size:
        raise BadNpy(
            f"shape {header.shape} of {dtype} needs {header.nbytes} bytes, the file has {size - header.offset}"
        )
    return header


def open_header(path: str | os.PathLike[str]) -> Header:
    """Header of a file on disk; reads its first bytes only."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(os.pread(fd, HEADER_NBYTES + 128, 0), os.fstat(fd).st_size)
    finally:
        os.close(fd)


def load(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The whole array, as stored. Raises ResourceError: it does not fit in memory."""
    try:
        with open(path, "rb") as file:
            return parse(file.read())
    except MemoryError:
        size = os.path.getsize(path)
        raise ResourceError(
            f"out of memory: this file has {size} bytes", path=path, hint="Lower --workers, or cut it with --window."
        ) from None


def parse(data: bytes) -> npt.NDArray[Any]:
    """The array that the bytes of a whole .npy file hold, as stored."""
    header = read_header(data[: HEADER_NBYTES + 128], len(data))
    values = np.frombuffer(data, header.dtype, offset=header.offset)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def memory_map(path: str | os.PathLike[str], header: Header, base: int = 0) -> npt.NDArray[Any]:
    """The array mapped, not read. `base`: where the .npy begins in the file [B] (inside an uncompressed .npz)."""
    order: Any = "F" if header.fortran else "C"
    if header.nbytes == 0:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", base + header.offset, header.shape, order)
