"""Rows -> stored values of a payload field: read, unpack, lay out. What a view makes of them is not known here.

>>> import tempfile, streamkit
>>> out, source = tempfile.mkdtemp() + "/out", tempfile.mkdtemp() + "/x.npy"
>>> np.save(source, np.arange(6, dtype=np.int16).reshape(3, 2))
>>> _ = streamkit.convert(source, out, format="hdf5", workers=1)
>>> manifest = streamkit.open(out)
>>> reader = Reader(out, manifest, manifest.splits["train"], list(manifest.schema))
>>> sorted(values.tolist() for values in Payloads(reader).decoded(manifest.schema["array"], np.arange(3)))
[[0, 1], [2, 3], [4, 5]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.codecs import array as arrays
from streamkit.errors import ResourceError
from streamkit.places import MAX_RANGE_NBYTES
from streamkit.reader import Reader
from streamkit.schema import Field
from streamkit.storage import available_memory
from streamkit.tables import RATIO

Ints = npt.NDArray[np.int64]


class Payloads:
    """Payload values of a reader's rows, as they were stored."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def raw_into(self, field: Field, rows: Ints, out: npt.NDArray[Any]) -> None:
        """Fill `out` (n, ...) with fixed-shape values as they are stored."""
        if field.chunk_rows is not None:
            self.reader.read_chunked(field, rows, out)
        elif field.encoding in ("raw", "bigendian"):
            nbytes = field.sample_nbytes
            lengths = self.reader.lengths(field.name, rows)
            if (lengths != nbytes).any():
                bad = int(np.argmax(lengths != nbytes))
                raise self.reader.damaged(int(rows[bad]), f"{lengths[bad]} bytes, expected {nbytes}")
            memory = out.reshape(-1).view(np.uint8)
            self.reader.read(field.name, rows, memory, np.arange(len(rows), dtype=np.int64) * nbytes)
            if field.encoding == "bigendian":
                out.byteswap(inplace=True)
        else:
            for i, values in enumerate(self.decoded(field, rows)):
                out[i] = values

    def decoded(self, field: Field, rows: Ints) -> list[npt.NDArray[Any]]:
        """Each row's own array, addressed payloads only."""
        shapes = self.reader.columns.get(f"{field.name}.shape")
        out = []
        for row, stored in zip(rows.tolist(), self.stored(field, rows), strict=True):
            data: Any = stored
            shape = field.shape if shapes is None else tuple(shapes[row].tolist())
            try:
                if field.encoding == "zlib":
                    limit = field.sample_nbytes if field.fixed else min(MAX_RANGE_NBYTES, RATIO * len(data) + 64)
                    data = arrays.inflate(data, limit)
                elif field.encoding == "varint":
                    data = arrays.varints(data).view(np.uint8)
                out.append(arrays.from_bytes(data, field.dtype, shape))
            except arrays.BadArray as error:
                raise self.reader.damaged(row, str(error)) from None
        return out

    def texts(self, field: Field, rows: Ints) -> npt.NDArray[np.object_]:
        """Each row's text: str in an object array (n,)."""
        out = np.empty(len(rows), object)
        for i, data in enumerate(self.stored(field, rows)):
            try:
                out[i] = str(data, "utf-8")
            except UnicodeDecodeError as error:
                raise self.reader.damaged(int(rows[i]), f"no UTF-8: {error.reason}") from None
        return out

    def stored(self, field: Field, rows: Ints) -> list[memoryview]:
        """The stored bytes of each row, read into one buffer."""
        memory, starts, lengths = self.packed(field, rows)
        view = memoryview(memory)  # type: ignore[arg-type]
        return [view[a:b] for a, b in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]

    def packed(self, field: Field, rows: Ints) -> tuple[npt.NDArray[np.uint8], Ints, Ints]:
        """The same as one array, where each row's bytes begin in it, and how many they are [B], int64 (n,)."""
        lengths = self.reader.lengths(field.name, rows)
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        if total > MAX_RANGE_NBYTES and total > available_memory():
            raise ResourceError(
                f"{len(rows)} samples of {field.name!r} take {total} bytes stored, more than memory holds",
                path=self.reader.manifest.path,
                hint="Pass a smaller batch_size=.",
            )
        memory, starts = np.empty(total, np.uint8), ends - lengths
        self.reader.read(field.name, rows, memory, starts)
        return memory, starts, lengths
