"""Loose files: a raw image folder read in place, every file one range. A file is found by its row's key, opened, read and
closed, so that a million of them need neither descriptors nor a million shards in the manifest.

    >>> import tempfile, pathlib
    >>> from streamkit.index import write
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.jpg").write_bytes(b"abc")
    >>> write(folder / "i.parquet", [pa.table({"key": ["a.jpg"]})])
    >>> memory = np.empty(3, np.uint8)
    >>> LooseFiles(folder, Index(folder / "i.parquet", 1)).read(np.array([0]), np.array([3]), memory, np.array([0]), None)
    >>> memory.tobytes()
    b'abc'
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamkit import native
from streamkit.atomic import os_error
from streamkit.errors import DamagedError, RefusedError
from streamkit.guard import file_below
from streamkit.index import ADOPT_AGAIN, Index
from streamkit.native import BadRange
from streamkit.remote.address import Address
from streamkit.sources.listing import path_of
from streamkit.storage import Part, open_for_reading

Ints = npt.NDArray[np.int64]


class LooseFiles:
    """The files below one folder, here or on a server, that an index's keys name. Safe in threads."""

    def __init__(self, root: Path | Address, index: Index) -> None:
        self.root, self.index = root, index

    @cached_property
    def _keys(self) -> pa.ChunkedArray:
        """All keys, as Arrow holds them: their text and 4 bytes each, not a Python object each."""
        return self.index.table(["key"]).column("key")

    def path(self, row: int) -> Path | Address:
        """The file of a row. RefusedError when its key leads out of the folder."""
        return self.root / self.name(row)

    def name(self, row: int) -> str:
        """Name of a row's file below the folder. RefusedError when its key leads out of that."""
        key = path_of(str(self._keys[row]))
        if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
            raise RefusedError(f"the key {key[:80]!r} leads out of the folder", path=self.index.path)
        return key

    def read(
        self,
        rows: Ints,
        lengths: Ints,
        memory: npt.NDArray[np.uint8],
        places: Ints,
        crcs: npt.NDArray[np.uint32] | None,
    ) -> None:
        """Read the whole files of `rows`; other arguments as `native.read`.

        Raises:
            BadRange: a file is missing, or has another size or crc32c than when it was indexed.
            ResourceError: the system refused to read it.
        """
        start = np.zeros(1, np.int64)
        if isinstance(self.root, Address):
            self._read_far(self.root, rows, lengths, memory, places, crcs)
            return
        for i, row in enumerate(rows.tolist()):
            path = file_below(self.root, self.name(row))
            try:
                fd = open_for_reading(path, ADOPT_AGAIN)
            except DamagedError as error:
                raise BadRange(i, error.what) from None
            try:
                size = os.fstat(fd).st_size
                if size != lengths[i]:
                    raise BadRange(i, f"the file has {size} bytes, the index says {lengths[i]}")
                one = slice(i, i + 1)
                try:
                    native.read(
                        np.array([fd]), start, lengths[one], memory, places[one], None if crcs is None else crcs[one]
                    )
                except BadRange as bad:
                    raise BadRange(i, bad.reason) from None
                except OSError as error:
                    raise os_error(error, path) from error
            finally:
                os.close(fd)

    def _read_far(self, root: Address, rows: Ints, lengths: Ints, memory: Any, places: Ints, crcs: Any) -> None:
        from streamkit.far import FarFiles  # here, as what talks to servers takes 25 ms to import

        ones = [slice(i, i + 1) for i in range(len(rows))]
        names = [self.name(row) for row in rows.tolist()]
        start = np.zeros(1, np.int64)
        FarFiles(root, ADOPT_AGAIN).read_parts(
            [
                Part(name, start, lengths[one], places[one], None if crcs is None else crcs[one])
                for name, one in zip(names, ones, strict=True)
            ],
            memory,
        )
