"""Rows of an array that lies deflated in an .npz, in bounded memory: one pass over the stream keeps the rows wanted.

Deflate has no addresses, so each pass inflates everything; what it keeps is the rows asked for and one block.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "rows.npz"
>>> np.savez_compressed(path, x=np.arange(6, dtype=np.int16).reshape(3, 2))
>>> header = npy.Header((3, 2), np.dtype(np.int16), False, 128)
>>> rows = Deflated(path, "x.npy", header).reader([2, 0])
>>> rows.row(2).tolist(), rows.row(0).tolist()
([4, 5], [0, 1])
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import RefusedError
from streamkit.sources import npy

_BLOCK_NBYTES = 1 << 20
_MAX_ROW_NBYTES = 1 << 30


@dataclass(frozen=True)
class Rows:
    """Some rows of an array, by number."""

    rows: dict[int, npt.NDArray[Any]]

    def row(self, i: int) -> npt.NDArray[Any]:
        return self.rows[i]


class Deflated:
    """An array in C order that is deflated in an .npz.

    Args:
        path: the .npz.
        member: name of its member.
        header: the member's.

    Raises:
        RefusedError: a single row of over 1 GiB.
    """

    def __init__(self, path: Path, member: str, header: npy.Header) -> None:
        self.path, self.member, self.header = path, member, header
        self.shape, self.dtype, self.ndim = header.shape, header.dtype, len(header.shape)
        self.size = math.prod(header.shape)
        self.row_nbytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        if self.row_nbytes > _MAX_ROW_NBYTES:
            raise RefusedError(
                f"a row of {member} takes {self.row_nbytes} bytes, the limit is {_MAX_ROW_NBYTES}", path=path
            )

    def reader(self, rows: Iterable[int]) -> Rows:
        """The rows with these numbers, read in one pass to the end, where zipfile checks the member's crc.

        Raises:
            OSError, EOFError, zipfile.BadZipFile, zlib.error: the file is damaged.
        """
        wanted = np.unique(np.fromiter(rows, np.int64))
        kept: dict[int, npt.NDArray[Any]] = {}
        n_block = max(1, _BLOCK_NBYTES // max(1, self.row_nbytes))
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            _exactly(stream, self.header.offset)
            for start in range(0, self.shape[0], n_block):
                stop = min(start + n_block, self.shape[0])
                data = _exactly(stream, (stop - start) * self.row_nbytes)
                here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]
                if here.size:
                    block = np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])
                    kept.update((int(row), block[row - start].copy()) for row in here.tolist())
            stream.read(1)
        return Rows(kept)


def _exactly(stream: Any, nbytes: int) -> bytes:
    data: bytes = stream.read(nbytes)
    if len(data) != nbytes:
        raise EOFError(f"the data ends {nbytes - len(data)} bytes early")
    return data
