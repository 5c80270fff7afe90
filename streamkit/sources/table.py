"""Tables: N rows in one .npy, .npz or .h5, or in x.npy + y.npy; one sample a row, one field an array.

Rows are read from a memory map, from HDF5 chunk by chunk, or from a *compressed* .npz in one pass a shard (`deflated`); a
table is never loaded whole. An integer 1-D array named label, labels or y becomes the field `label`;
other 1-D numbers become number columns.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "rows.npy"
    >>> np.save(path, np.arange(6, dtype=np.float32).reshape(3, 2))
    >>> listing = Table((str(path),)).listing()
    >>> listing.keys[2], listing.schema["array"].shape
    ('rows.npy#2', (2,))
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamkit.codecs.sniff import looks_like
from streamkit.errors import RefusedError, SourceError
from streamkit.schema import Field, Schema
from streamkit.sources import npy
from streamkit.sources.deflated import Deflated
from streamkit.sources.folder import unreadable
from streamkit.sources.listing import BadItem, Listing, RowKeys, Sample
from streamkit.storage import available_memory

HDF5_EXTENSIONS = (".h5", ".hdf5")
TABLE_EXTENSIONS = (".npy", ".npz", *HDF5_EXTENSIONS)
LABEL_NAMES = ("label", "labels", "y")
_ROWS_AT_ONCE_NBYTES = 16 << 20
# What zipfile, zlib, NumPy and h5py raise on files that are damaged, encrypted or no tables at all.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def folder_table(root: Path) -> Table | None:
    """The table that a folder of x.npy and y.npy (of equal N) is, or None."""
    files = {p.stem: p for p in root.iterdir() if p.suffix == ".npy" and not p.name.startswith(".")}
    if "x" not in files or not any(name in files for name in LABEL_NAMES):
        return None
    return Table(tuple(str(files[name]) for name in sorted(files)), root.name)


@dataclass(frozen=True)
class Table:
    """Rows of one file, or of several .npy files side by side.

    Attributes:
        paths: the file, or the .npy files whose stems are the field names.
        name: what keys begin with; the file's name if empty.
    """

    paths: tuple[str, ...]
    name: str = ""

    @property
    def _key_name(self) -> str:
        return self.name or Path(self.paths[0]).name

    def listing(self) -> Listing:
        arrays, notices = self._open()
        n = max(arrays.values(), key=lambda a: a.size * a.dtype.itemsize).shape[0]
        if n == 0:
            raise SourceError("this table has no rows", path=self.paths[0])
        on_disk = sum(Path(path).stat().st_size for path in self.paths)
        if n > 1032 * on_disk:  # no row without a bit of its own: deflate packs 1032 bytes in one at best
            raise RefusedError(f"{n} rows in a file of {on_disk} bytes", path=self.paths[0])
        fields, columns, sizes = [], {}, 0
        for name, array in sorted(arrays.items()):
            if array.shape[0] != n and (len(self.paths) > 1 or _field(name, array).kind == "label"):
                raise SourceError(f"{name} has {array.shape[0]} rows, not {n}", path=self.paths[0])
            if array.shape[0] != n:
                notices.append(f"{name} has {array.shape[0]} rows, not {n}, and was left")
                continue
            dtype = np.dtype(array.dtype)
            if len(array.shape) == 1 and (dtype.kind == "c" or dtype.itemsize > 8):
                notices.append(f"{name} is {dtype.name}, which no column holds, and was left")
                continue
            as_field = _field(name, array)
            if as_field.is_payload:
                sizes += as_field.sample_nbytes
            else:
                if as_field.name in columns:  # another array is the label already
                    as_field = Field(name, "number", np.dtype(array.dtype).newbyteorder("=").name)
                values = np.asarray(array[:])
                if as_field.kind == "label" and values.size and int(values.max()) > 2**63 - 1:
                    raise SourceError(f"labels go up to {values.max()}, beyond int64", path=self.paths[0])
                values = values.astype(as_field.dtype)
                columns[as_field.name] = values
                if as_field.kind == "label":
                    as_field = _with_classes(as_field, values)
            fields.append(as_field)
        if not any(f.is_payload for f in fields):
            raise SourceError("no array of more than one axis to be the payload", path=self.paths[0])
        _check_names(fields, self.paths[0])
        return Listing(
            keys=RowKeys(self._key_name, n),
            sizes=np.full(n, sizes, np.int64),
            schema=Schema(tuple(fields)),
            columns=columns,
            block=max((a.chunks[0] for a in arrays.values() if getattr(a, "chunks", None)), default=1),
            notices=tuple(notices),
        )

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        arrays, _ = self._open()
        rows = np.fromiter((int(key.rpartition("#")[2]) for key in keys), np.int64, len(keys))
        n = max(arrays.values(), key=lambda a: a.size * a.dtype.itemsize).shape[0]
        payloads = {
            field.name: array
            for name, array in arrays.items()
            if array.shape[0] == n and len(array.shape) > 1 and (field := _field(name, array)).is_payload
        }
        readers = {name: self._reader(array, rows.tolist()) for name, array in payloads.items()}
        for key, row in zip(keys, rows.tolist(), strict=True):
            try:
                yield Sample({name: reader.row(row) for name, reader in readers.items()})
            except OSError as error:  # a damaged HDF5 chunk
                yield BadItem(key, f"cannot be read: {error}")

    def file(self, key: str) -> None:
        return None

    def _reader(self, array: Any, rows: list[int]) -> Any:
        if not isinstance(array, Deflated):
            return _RowReader(array)
        try:
            return array.reader(rows)
        except _UNREADABLE as error:
            raise SourceError(
                f"cannot be read: {error}", path=self.paths[0], hint="Check that the file is whole."
            ) from None

    def _open(self) -> tuple[dict[str, Any], list[str]]:
        path = Path(self.paths[0])
        suffix = path.suffix.lower()
        try:
            if suffix == ".npy":
                single = len(self.paths) == 1 and not self.name
                names = ["array"] if single else [Path(p).stem for p in self.paths]
                arrays = {}
                for name, path in zip(names, map(Path, self.paths), strict=True):  # `path`: what an error names
                    arrays[name] = npy.memory_map(path, npy.open_header(path))
                notices: list[str] = []
            elif suffix == ".npz":
                arrays, notices = _open_npz(path)
            else:
                arrays, notices = _open_hdf5(path)
        except npy.BadNpy as error:
            raise (RefusedError if error.refused else SourceError)(str(error), path=path) from None
        except PermissionError as error:
            raise SourceError(unreadable(error), path=error.filename or path) from None
        except _UNREADABLE as error:
            with path.open("rb") as file:
                reason = looks_like(file.read(512))
            raise SourceError(
                reason or f"cannot be read: {error}", path=path, hint="Check that the file is whole."
            ) from None
        arrays = {name: a for name, a in arrays.items() if a.ndim >= 1}
        if not arrays:
            raise SourceError("no array with rows", path=path, hint="An array needs at least one axis.")
        return arrays, notices


def _check_names(fields: Sequence[Field], path: str) -> None:
    """Raise SourceError when a column would take the place of one that every index has."""
    kinds = ("offset", "length", "crc32c", "chunk", "row", "shape")
    taken = {"key", "shard"} | {f"{field.name}.{kind}" for field in fields if field.is_payload for kind in kinds}
    for field in fields:
        if field.name == "key" or (not field.is_payload and field.name in taken):
            raise SourceError(f"the index needs the name {field.name!r} itself", path=path, hint="Rename that array.")


def _field(name: str, array: Any) -> Field:
    dtype = np.dtype(array.dtype).newbyteorder("=")
    if len(array.shape) == 1 and name in LABEL_NAMES and dtype.kind in "iu":
        return Field("label", "label", "int64")
    if len(array.shape) == 1:
        return Field(name, "number", dtype.name)
    return Field(name, "array", dtype.name, tuple(int(d) for d in array.shape[1:]))


def _with_classes(label: Field, values: np.ndarray[Any, Any]) -> Field:
    """Numbered class names, where the numbers can be class numbers at all."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 100_000:
        return label
    return Field("label", "label", "int64", class_names=tuple(str(i) for i in range(high + 1)))


class _RowReader:
    """Rows of one array; of chunked HDF5 the block of rows last read is kept, because neighbours follow."""

    def __init__(self, array: Any) -> None:
        # A memory map makes an object of its own class of every row, at twice the price.
        self.array = np.asarray(array) if isinstance(array, np.ndarray) else array
        chunks = getattr(array, "chunks", None)
        if isinstance(array, np.ndarray):
            self.n_block = 0
        else:
            row_nbytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
            wanted = (
                max(1, _ROWS_AT_ONCE_NBYTES // row_nbytes) if chunks is None or chunks[1:] == array.shape[1:] else 0
            )
            self.n_block = chunks[0] if chunks else max(1, min(64, wanted))
        self.block: Any = None
        self.number = -1

    def row(self, i: int) -> Any:
        if not self.n_block:
            return self.array[i]
        number, at = divmod(i, self.n_block)
        if number != self.number:
            self.block = self.array[number * self.n_block : (number + 1) * self.n_block]
            self.number = number
        return self.block[at]


def _open_npz(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Members mapped where they are stored, read in passes where they are deflated; columns of numbers are loaded."""
    arrays: dict[str, Any] = {}
    loaded = 0
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                header = npy.read_header(stream.read(npy.HEADER_NBYTES), member.file_size)
                if member.compress_type == zipfile.ZIP_STORED:
                    file.seek(member.header_offset + 26)  # local header: lengths of name and extra field
                    lengths = file.read(4)
                    skip = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                    arrays[name] = npy.memory_map(path, header, member.header_offset + 30 + skip)
                elif len(header.shape) > 1 and not header.fortran:
                    arrays[name] = Deflated(path, member.filename, header)
                else:
                    loaded += header.nbytes
                    _check_room(loaded, path)
                    with archive.open(member) as whole:
                        whole.read(header.offset)
                        values = np.frombuffer(whole.read(header.nbytes), header.dtype)
                    arrays[name] = values.reshape(header.shape, order="F" if header.fortran else "C")
    return arrays, []


def _check_room(nbytes: int, path: Path) -> None:
    if nbytes > available_memory() // 2:
        raise RefusedError(
            f"compressed columns of {nbytes} bytes, which would have to lie in memory",
            path=path,
            hint="Save them with numpy.savez, uncompressed.",
        )


def _open_hdf5(path: Path) -> tuple[dict[str, Any], list[str]]:
    """All plain datasets reached by hard links alone; a group's name goes in front with "_"."""
    import h5py

    from streamkit.sources.datasets import plain_datasets

    arrays, left = plain_datasets(h5py.File(path, "r"))
    return arrays, [f"{item.key} {item.reason}" for item in left]
