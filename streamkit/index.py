"""The index: one row a sample, saying where each payload lies and what its columns hold. A Parquet file.

Row order is record order and a row group is a shard, so the shard of a row follows from the manifest's counts. Columns:
`key`, `shard`; for each payload field `NAME.offset`, `NAME.length`, `NAME.crc32c`, or for chunked HDF5 `NAME.chunk`
(row of the chunk table) and `NAME.row` (row inside the chunk); `NAME.shape` where lengths alone do not tell it; every
column field; for pictures `width`, `height`, `channels`, and `orientation` where some EXIF orientation is not 1.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "index-train.parquet"
    >>> write(path, [pa.table({"key": ["a", "b"], "shard": ["s", "s"], "x.offset": [0, 9], "label": [1, 0]})])
    >>> index = Index(path, n_rows=2)
    >>> index.load(["x.offset", "label"])["label"].tolist(), index.key(1)
    ([1, 0], 'b')
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streamkit.atomic import raise_refusal
from streamkit.digest import file_digest
from streamkit.errors import DamagedError, RefusedError, UsageError
from streamkit.guard import mend, regular_file
from streamkit.remote.address import Address, place
from streamkit.tables import RATIO, TEXT, Column, large_text, wrong

# In-memory types: an index row costs offset 8 + length 4 + crc32c 4 + label 4 = 20 bytes.
_TEXT_NBYTES = 64 << 20  # a column of text may take so much, and RATIO times its file
_NARROW = {"length": np.int32, "crc32c": np.uint32, "chunk": np.int32, "row": np.int32}


def write(path: str | os.PathLike[str], tables: Iterable[pa.Table]) -> None:
    """Write one row group a table, in order. All tables have one schema; equal tables give equal bytes."""
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in tables:
            if writer is None:
                texts = [f.name for f in table.schema if pa.types.is_string(f.type) and f.name != "key"]
                # Ascending offsets and small integers shrink well this way.
                encodings = {f.name: "DELTA_BINARY_PACKED" for f in table.schema if pa.types.is_integer(f.type)}
                file = stack.enter_context(pa.OSFile(str(path), "wb"))  # the writer's own stays open on a full disk
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        file, table.schema, compression="zstd", use_dictionary=texts, column_encoding=encodings
                    )
                )
            writer.write_table(table, row_group_size=max(1, table.num_rows))


def column(values: npt.NDArray[Any]) -> pa.Array:
    """A NumPy array of numbers as an Arrow array, without a copy. `pa.array` would import pandas: 0.3 s of start-up."""
    values = np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return pa.array(values.tolist())
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def strings(values: Sequence[str]) -> pa.Array:
    """Text as an Arrow array, for the same reason."""
    data = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
    if ends[-1] > 2**31 - 1:
        return pa.array(values, pa.string())
    return pa.StringArray.from_buffers(len(data), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(data)))


class Index:
    """An index file opened lazily: nothing is read before a column is asked for.

    Args:
        path: the Parquet file. One on a server is copied to this machine, where no name leads to it.
        n_rows: rows that it must have; None for those there are.
        digest: BLAKE3 (hex) that it must have; None to skip.
        columns: what it must hold, as `streamkit.tables` tells it; None to skip.
        called: what it is in messages.

    Raises:
        DamagedError: missing, altered, or of another length.
        ResourceError: the system does not open it, as for want of permission, descriptors or memory.
        RemoteError: a server that does not give it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Address,
        n_rows: int | None,
        digest: str | None = None,
        columns: Mapping[str, Column] | None = None,
        called: str = "the index",
    ) -> None:
        self.path, self.called = place(path), called
        try:
            self.file = self._here(digest)
            if digest is not None and file_digest(self.file) != digest:
                raise DamagedError(
                    f"{called} was altered: its digest is not the manifest's", path=path, hint=mend(self.path.parent)
                )
            file = pq.ParquetFile(self.file)
        except FileNotFoundError:
            raise DamagedError(f"{called} is missing", path=path, hint=mend(self.path.parent)) from None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
            raise_refusal(error, path)
            raise DamagedError(f"{called} cannot be read: {error}", path=path, hint=mend(self.path.parent)) from None
        self.n_rows: int = file.metadata.num_rows if n_rows is None else n_rows
        if file.metadata.num_rows != self.n_rows:
            raise DamagedError(f"{called} has {file.metadata.num_rows} rows, the manifest says {n_rows}", path=path)
        if columns is not None and (reason := wrong(file.schema_arrow, columns)):
            raise DamagedError(reason, path=path, hint=mend(self.path.parent))
        self.names: tuple[str, ...] = tuple(file.schema_arrow.names)
        self._texts = {column.name for column in file.schema_arrow if TEXT.fits(column.type)}
        self._n_row_groups = file.num_row_groups

    def _here(self, digest: str | None) -> Path:
        """Where the file can be opened on this machine."""
        if isinstance(self.path, Path):
            regular_file(self.path)
            if _is_utf8(self.path):
                return self.path
            own = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, own)
            return Path(f"/proc/self/fd/{own}")
        from streamkit.remote.failures import Missing  # here, as what talks to servers takes 40 ms to import
        from streamkit.remote.transfer import download

        # Without a name it goes when this object goes, however the process ends; forked children have it, too.
        with tempfile.TemporaryFile(prefix="streamkit-") as file:
            copy = os.dup(file.fileno())
        weakref.finalize(self, os.close, copy)
        try:
            download(self.path, copy, digest=digest)
        except Missing as missing:
            raise FileNotFoundError(self.path.url) from missing
        return Path(f"/proc/self/fd/{copy}")

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def load(self, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Columns as NumPy arrays of `n_rows` (strings as object arrays, `NAME.shape` as int32 (n_rows, ndim)).

        Offsets are int64, lengths int32 where they fit, crc32c uint32; others as stored.
        """
        missing = [n for n in names if n not in self.names]
        if missing:
            raise UsageError(
                f"there is no column {missing[0]!r}", path=self.path, hint=f"It has {', '.join(self.names)}."
            )
        out: dict[str, npt.NDArray[Any]] = {}
        if not names:
            return out
        self._check_texts(names)
        at = 0
        with self._reading():
            file = pq.ParquetFile(self.file)
            for batch in file.iter_batches(batch_size=1 << 16, columns=list(names), use_threads=False):
                for name in names:
                    if _has_holes(batch.column(name)):
                        raise DamagedError(f"column {name!r} has holes", path=self.path, hint=mend(self.path.parent))
                    values = _numpy(batch.column(name))
                    if name not in out:
                        out[name] = np.empty((self.n_rows, *values.shape[1:]), _dtype(name, values, file))
                    out[name][at : at + len(values)] = values
                at += batch.num_rows
        pa.default_memory_pool().release_unused()  # else what was read along the way stays with Arrow
        return out if out else {n: np.empty(0, np.int64) for n in names}

    def key(self, row: int) -> str:
        """Key of one row, for messages; reads only its row group."""
        self._check_texts(["key"])
        with self._reading():
            file = pq.ParquetFile(self.file)
        for group in range(self._n_row_groups):
            n = file.metadata.row_group(group).num_rows
            if row < n:
                with self._reading():
                    return str(file.read_row_group(group, columns=["key"]).column("key")[row])
            row -= n
        raise IndexError(row)

    def texts(self, name: str) -> Iterator[pa.Array]:
        """A column of text, some thousand values at a time."""
        self._check_texts([name])
        with self._reading():
            for batch in pq.ParquetFile(self.file).iter_batches(batch_size=1 << 14, columns=[name], use_threads=False):
                batch.validate(full=True)
                yield batch.column(0)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole index, or some columns of it, as a pyarrow.Table."""
        self._check_texts(self.names if columns is None else columns)
        with self._reading():
            found = pq.ParquetFile(self.file).read(None if columns is None else list(columns))
            found.validate(full=True)  # texts may be no UTF-8
            return found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What Arrow and NumPy say of a file as streamkit's own errors."""
        try:
            yield
        except MemoryError:
            what = f"{self.called} has {self.n_rows} rows, which memory does not hold"
            raise RefusedError(what, path=self.path) from None
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise_refusal(error, self.path)
            what = f"{self.called} cannot be read: {error}"
            raise DamagedError(what, path=self.path, hint=mend(self.path.parent)) from None

    def _check_texts(self, names: Sequence[str]) -> None:
        """RefusedError where text would take far more memory than the file."""
        limit = max(_TEXT_NBYTES, RATIO * os.stat(self.file).st_size)
        for name in self._texts.intersection(names):
            with self._reading():
                large = large_text(str(self.file), name, limit)
            if large:
                raise RefusedError(f"column {name!r} takes over {limit} bytes of text, the limit here", path=self.path)
            self._texts.discard(name)  # looked at once


def _is_utf8(path: Path) -> bool:
    """Arrow takes no other names; POSIX has them."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


ADOPT_AGAIN = (
    "If it was moved, name its folder with root= (--root); if it was changed, run `streamkit index` again, which takes it "
    "as it is; if it should not have changed, restore it from a copy."
)


def _has_holes(values: pa.Array) -> bool:
    inner = pa.types.is_fixed_size_list(values.type) and values.flatten().null_count
    return bool(values.null_count or inner)


def numpy_of(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A column of an Arrow table as NumPy array."""
    return np.concatenate([_numpy(chunk) for chunk in table.column(name).chunks])


def _numpy(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(values.type):
        return _numpy(values.flatten()).reshape(len(values), values.type.list_size)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        if values.null_count == 0:
            dtype = values.type.to_pandas_dtype()
            return np.frombuffer(values.buffers()[1], dtype, len(values), values.offset * np.dtype(dtype).itemsize)
        return np.asarray(values.to_numpy(zero_copy_only=False))
    if pa.types.is_boolean(values.type) and values.null_count == 0:
        return np.array(values.to_pylist(), np.bool_)
    out = np.empty(len(values), object)
    out[:] = values.to_pylist()
    return out


def _dtype(name: str, values: npt.NDArray[Any], file: pq.ParquetFile) -> Any:
    narrow = _NARROW.get(name.rpartition(".")[2]) if "." in name else None
    if narrow is np.int32 and _largest(name, file) > 2**31 - 1:
        narrow = None
    return narrow or values.dtype


def _largest(name: str, file: pq.ParquetFile) -> int:
    """Upper bound of a column from the file's statistics; huge when there are none."""
    column = file.schema_arrow.names.index(name)
    stats = [file.metadata.row_group(g).column(column).statistics for g in range(file.num_row_groups)]
    return max((s.max if s is not None and s.has_min_max else 2**62 for s in stats), default=0)


class _Callable(types.ModuleType):
    """This module is `streamkit.index` to Python's import system, and to users the function of that name.

    Nothing here uses the function: it is looked up when a user calls it.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Adopt files that exist; see `streamkit.adopt.adopt`."""
        return importlib.import_module("streamkit.adopt").adopt(*args, **options)


sys.modules[__name__].__class__ = _Callable
