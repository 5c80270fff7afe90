"""HDF5 files by others: where each row of each dataset lies, found once by h5py and never asked of it again.

    contiguous                        one range a row
    chunks of whole rows, no filter   one range a row, too
    chunks of whole rows              the chunk table, as in converted files
    chunks that split the rows        the chunk table, slab by slab (see `streamkit.chunks`)
    one axis                          a column, or the label

Datasets of another length than the largest, in other files, behind links, without addresses or of unknown filters are
left out, each with its reason; when no payload remains, that is the error.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with h5py.File(folder / "a.h5", "w") as file:
    ...     file["x"], file["label"] = np.zeros((3, 2)), [1, 0, 1]
    >>> fields, parts, notices = adopt_datasets(folder, ["a.h5"], ["train"], Wishes({}))
    >>> [field.name for field in fields], parts[0].places.n
    (['x', 'label'], 3)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from streamkit.adopt.part import Part, Wishes, field_name, label_field
from streamkit.adopt.rows import Left, Stored, find_rows
from streamkit.digest import file_digest
from streamkit.errors import RefusedError, SourceError, UsageError
from streamkit.schema import Field
from streamkit.shards import Places
from streamkit.sources.datasets import plain_datasets
from streamkit.sources.listing import BadItem, RowKeys

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError)


def adopt_datasets(
    root: Path, files: Sequence[str], splits: Sequence[str], wishes: Wishes
) -> tuple[list[Field], list[Part], list[str]]:
    """Fields, one part a file, and notices.

    Raises:
        SourceError: nothing to adopt, or files that do not fit together.
        RefusedError: nothing to adopt but what leads out of the file.
        UsageError: a wish that names no dataset, or does not fit one.
    """
    found = [_Adopted.of(root / file, file, wishes) for file in files]
    first = found[0]
    for other in found[1:]:
        first.must_fit(other)
    notices = [f"{one.file}: {notice}" if len(found) > 1 else notice for one in found for notice in one.notices]
    fields = [stored.field for stored in first.payloads]
    columns = [dict(one.columns) for one in found]
    if first.label is not None:
        field, numbers = label_field([own.pop(first.label) for own in columns], first.label)
        fields.append(field)
        for own, values in zip(columns, numbers, strict=True):
            own["label"] = values
    known = {field.name for field in fields}
    fields += [Field(name, "number", values.dtype.name) for name, values in columns[0].items() if name not in known]
    parts = [one.part(split, own) for one, split, own in zip(found, splits, columns, strict=True)]
    return fields, parts, notices


@dataclass
class _Adopted:
    path: Path
    file: str
    n: int
    payloads: list[Stored]
    columns: dict[str, npt.NDArray[Any]]
    label: str | None
    notices: list[str]

    @classmethod
    def of(cls, path: Path, file: str, wishes: Wishes) -> _Adopted:
        try:
            with h5py.File(path, "r") as opened, open(path, "rb") as raw:
                return cls._look(opened, raw.fileno(), path, file, wishes)
        except _UNREADABLE as error:
            if isinstance(error, UsageError):
                raise
            raise SourceError(f"cannot be read: {error}", path=path, hint="Check that the file is whole.") from None

    @classmethod
    def _look(cls, opened: Any, fd: int, path: Path, file: str, wishes: Wishes) -> _Adopted:
        datasets, left = plain_datasets(opened)
        if not datasets:
            raise _nothing(path, left)
        spelled = {name: dataset.name.lstrip("/") for name, dataset in datasets.items()}
        wishes.check([*datasets, *spelled.values()])
        n = max(datasets.values(), key=lambda d: d.size * d.dtype.itemsize).shape[0]
        if n == 0:
            raise SourceError("its datasets have no rows", path=path)
        made = cls(path, file, n, [], {}, None, [])
        for own, dataset in sorted(datasets.items()):
            name = field_name(own, made.columns)
            wish = wishes.kind_of(own, spelled[own])
            is_label = wishes.is_label(own, spelled[own])
            try:
                if dataset.shape[0] != n:
                    raise Left(f"has {dataset.shape[0]} rows, not {n}")
                if dataset.ndim == 1 and wish is not None:
                    raise Left("has one number a row, which is no picture")
                if is_label and (dataset.ndim == 1 or (wishes.label is not None and dataset.size == n)):
                    if dataset.dtype.kind in "iu" or wishes.label is not None:
                        made.label = name
                    made.columns[name] = _column(dataset)
                elif dataset.ndim == 1:
                    made.columns[name] = _column(dataset)
                elif is_label and wishes.label is not None:
                    raise Left(f"has {dataset.shape[1:]} values a row, and a label is one")
                else:
                    made.payloads.append(find_rows(name, dataset, wish, fd))
            except Left as reason:
                if wish is not None or (is_label and wishes.label is not None):
                    raise UsageError(f"{name} {reason}", path=path) from None
                left.append(BadItem(name, f"{reason}: it was left"))
        if not made.payloads:
            raise _nothing(path, left)
        made.notices = [f"{item.key} {item.reason}" for item in left]
        return made

    def must_fit(self, other: _Adopted) -> None:
        """Raise SourceError unless another file has the same fields, stored alike."""
        mine, its = ({s.field.name: s.field for s in one.payloads} for one in (self, other))
        differs = next((name for name in [*mine, *its] if mine.get(name) != its.get(name)), None)
        if differs is not None:
            raise SourceError(
                f"{differs} is {_told(its.get(differs))}, in {self.file} it is {_told(mine.get(differs))}",
                path=other.path,
                hint="Files of one dataset hold the same fields, stored alike: index them apart.",
            )
        kinds = [{name: values.dtype for name, values in one.columns.items()} for one in (self, other)]
        if kinds[0] != kinds[1] or self.label != other.label:
            raise SourceError(
                f"its columns are {_columns(kinds[1])}, in {self.file} {_columns(kinds[0])}",
                path=other.path,
                hint="Index them apart.",
            )

    def part(self, split: str, columns: dict[str, npt.NDArray[Any]]) -> Part:
        """This file's part, the chunk tables of its fields one behind the other."""
        ranges: dict[str, Any] = {}
        tables = []
        n_chunks = 0
        for stored in sorted(self.payloads, key=lambda s: s.field.name):
            own = dict(stored.ranges)
            if stored.chunks is not None:
                own[f"{stored.field.name}.chunk"] = own[f"{stored.field.name}.chunk"] + n_chunks
                n_chunks += len(stored.chunks["offset"])
                tables.append(stored.chunks)
            ranges |= own
        chunks = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]} if tables else None
        places = Places(self.n, ranges, chunks)
        return Part(
            split,
            self.file,
            self.path.stat().st_size,
            file_digest(self.path),
            RowKeys(self.file, self.n),
            places,
            columns,
        )


def _nothing(path: Path, left: Sequence[BadItem]) -> Exception:
    """The error for a file without any payload that can be adopted."""
    what = "; ".join(f"{item.key} {item.reason}" for item in left[:5]) or "there is no dataset of numbers"
    kind = RefusedError if any(item.refused for item in left) else SourceError
    return kind(f"no payload can be adopted: {what}", path=path, hint="`streamkit convert` may take it.")


def _told(field: Field | None) -> str:
    if field is None:
        return "missing"
    rows = "" if field.chunk_rows is None else f", chunks of {(field.chunk_rows, *(field.chunk_shape or field.shape))}"
    return f"{field.dtype} {field.shape} {field.encoding}{rows}"


def _columns(kinds: dict[str, Any]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(kinds.items())) or "none"


def _column(dataset: Any) -> npt.NDArray[Any]:
    if dataset.dtype.kind == "c" or dataset.dtype.itemsize > 8:
        raise Left(f"is {dataset.dtype}, which no column holds")
    if dataset.size * dataset.dtype.itemsize > 1032 * os.path.getsize(dataset.file.filename):
        raise Left("has more values than its file can hold")
    return np.asarray(dataset[...].reshape(-1)).astype(dataset.dtype.newbyteorder("="))
