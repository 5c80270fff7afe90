"""What every source gives: a `Listing` of its items (pass 1, nothing opened that need not be) and their samples (pass 2).

>>> keys = RowKeys("rows.npy", 3)
>>> keys[2], len(keys), list(keys)
('rows.npy#2', 3, ['rows.npy#0', 'rows.npy#1', 'rows.npy#2'])
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from streamkit.schema import Schema

Ints = npt.NDArray[np.int64]


class BadItem(NamedTuple):
    """An item that cannot become a sample, and why. `refused` marks a safety limit."""

    key: str
    reason: str
    refused: bool = False


class Picture(NamedTuple):
    """Pixels that a source decoded itself, uint8 (height, width, channels), and the format that they came in."""

    pixels: npt.NDArray[np.uint8]
    format: str


class Sample(NamedTuple):
    """One opened item: payload field -> a file's bytes (perhaps a memoryview, to be read alone), Picture or NumPy array. Its
    columns stand in the listing.

    `content`: 16 bytes that are equal for equal content only, where the payloads are not what tells it; zeros for unknown.
    """

    payloads: dict[str, Any]
    content: bytes | None = None


@dataclass(frozen=True)
class RowKeys(Sequence[str]):
    """Keys `name#row` of a table's rows, made when asked for: ten million cost nothing."""

    name: str
    n: int

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[str]:  # a sequence's own asks for one number after the other
        return (f"{self.name}#{row}" for row in range(self.n))

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [f"{self.name}#{row}" for row in range(*i.indices(self.n))]
        return f"{self.name}#{range(self.n)[i]}"


@dataclass(frozen=True)
class Ragged:
    """Arrays of many items, one behind the other.

    Attributes:
        values: (total, ...), all items' rows.
        offsets: where each item's rows begin, and the end, int64 (n + 1,).

    >>> boxes = Ragged(np.array([7, 8, 9]), np.array([0, 2, 2, 3]))
    >>> boxes[0].tolist(), boxes.take(np.array([2, 1]))[0].tolist()
    ([7, 8], [9])
    """

    values: npt.NDArray[Any]
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> npt.NDArray[Any]:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def take(self, rows: Ints) -> Ragged:
        """The arrays of these items, in this order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        source = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[source], offsets)


@dataclass(frozen=True)
class Listing:
    """All items of a source.

    Attributes:
        keys: the items' keys: paths relative to the source with "/", or `file#row`. Sorted, or in row order.
        sizes: bytes of each item as it lies in the source, int64 (n,).
        schema: the fields. Image shapes are provisional ((None, None, None)) until the items are read.
        columns: column field -> its values, (n,); labels are int64 class numbers.
        arrays: payload field -> its values, where the listing itself holds them: boxes and the like, from label files.
        split_names: names of the split folders, if there are any.
        split_of: number of each item's split in `split_names`, int64 (n,), or None.
        parent: number of the item that each row was cut from, from 0 and ascending, int64 (n,), or None.
        block: rows that should stay together because they are stored compressed together.
        blocks: number of the block that each row is read with, int64 (n,), where these are of many sizes, or None.
        bad: items that are bad already.
        notices: what the user should know: entries left out and why.
        beside: digest of what was read beside the items (labels, masks), "" without any: part of the source's identity.
    """

    keys: Sequence[str]
    sizes: Ints
    schema: Schema
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    arrays: Mapping[str, Ragged] = field(default_factory=dict)
    split_names: tuple[str, ...] = ()
    split_of: Ints | None = None
    parent: Ints | None = None
    block: int = 1
    blocks: Ints | None = None
    bad: tuple[BadItem, ...] = ()
    notices: tuple[str, ...] = ()
    beside: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Ints) -> Listing:
        """The listing of these items only, in this order; rows that lie together must stay so by themselves."""
        return replace(
            self,
            keys=[self.keys[i] for i in rows.tolist()],
            sizes=self.sizes[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            arrays={name: values.take(rows) for name, values in self.arrays.items()},
            split_of=None if self.split_of is None else self.split_of[rows],
            blocks=None if self.blocks is None else self.blocks[rows],
            parent=None if self.parent is None else np.unique(self.parent[rows], return_inverse=True)[1].reshape(-1),
        )


class Source(Protocol):
    """A place that raw data comes from. Picklable: workers open what they need themselves."""

    def listing(self) -> Listing:
        """Find all items. Raises SourceError when there are none, UsageError when the path is wrong."""
        ...

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        """Open the items of these keys, in this order."""
        ...

    def file(self, key: str) -> Path | None:
        """The file that this item is, or was cut from; None for rows of tables."""
        ...


@dataclass(frozen=True)
class Packed:
    """What sources of files that hold many samples each have in common. They are listed as they are opened, once.

    Attributes:
        paths: of the files.
        names: what their keys begin with.
        found: the listing; it does not travel to workers.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    found: Listing | None = field(default=None, compare=False, repr=False, kw_only=True)

    def listing(self) -> Listing:
        assert self.found is not None, "only the process that opened the files lists them"
        return self.found

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "found": None}

    def file(self, key: str) -> None:
        return None


def values_bytes(values: npt.NDArray[Any] | Ragged) -> bytes:
    """Bytes that tell the values of a column or of arrays from others, for digests."""
    if isinstance(values, Ragged):
        return np.ascontiguousarray(values.offsets).tobytes() + np.ascontiguousarray(values.values).tobytes()
    if values.dtype == object:
        return "\0".join(map(str, values.tolist())).encode("utf-8", "surrogatepass")
    return np.ascontiguousarray(values).tobytes()


def key_of(path: str) -> str:
    """A relative path as a key: "/" between parts; bytes that are no UTF-8 as \\xNN, a backslash doubled (reversible)."""
    path = path.replace(os.sep, "/")
    try:
        path.encode()
        return path.replace("\\", "\\\\")
    except UnicodeEncodeError:
        parts = (f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in path.replace("\\", "\\\\"))
        return "".join(parts)


def path_of(key: str) -> str:
    """The relative path that `key_of` made a key of."""
    if "\\" not in key:
        return key
    out, i = [], 0
    while i < len(key):
        if key.startswith("\\x", i):
            out.append(chr(0xDC00 + int(key[i + 2 : i + 4], 16)))
            i += 4
        else:
            i += key[i] == "\\"
            out.append(key[i])
            i += 1
    return "".join(out)
