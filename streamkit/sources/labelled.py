"""A source with a label file beside it: each item gets the fields of its row, or of its rows.

One row an item makes columns; several rows, or boxes, make variable-length fields `objects/NAME`. Lists in JSON Lines and
Parquet make array fields. A row without its item and an item without a row are bad items; where no row has its item, the
label file is wrong.

    >>> match(["b", "a.jpg", "c.jpg"], ["x/a.jpg", "x/b.png"], lambda name: None).tolist()
    [1, 0, -1]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import blake3
import numpy as np
import pyarrow as pa

from streamkit.errors import SourceError
from streamkit.schema import Schema
from streamkit.sources.annotations import SIDES
from streamkit.sources.fields import CLASS_NAMES, Column, columns_of, free_name, grouped, reserved
from streamkit.sources.labels import Labels, read_labels
from streamkit.sources.listing import BadItem, Ints, Listing, Ragged, Sample, Source, values_bytes

PER_PICTURE = ("width", "height", "depth", "channels")  # said again in every row of a picture's boxes
_MISSING, _SEVERAL = -1, -2


@dataclass(frozen=True)
class Labelled:
    """A source whose items have rows in a label file.

    Attributes:
        source: where the items come from.
        root: its path.
        path: of the label file, or of the folder of VOC files.
        group_by: a column that holds one value an item even where an item has several rows.
        labels: what the label file says, if it was read already; it does not travel to workers.
    """

    source: Source
    root: str
    path: str
    group_by: str | None = None
    labels: Labels | None = field(default=None, compare=False, repr=False)

    def listing(self) -> Listing:
        found, labels = self.source.listing(), self.labels or read_labels(Path(self.path))
        item_of = match(labels.files, found.keys, self._beside)
        self._check_some(labels, item_of, found)
        bad = list(_unmatched(labels, item_of, found))
        rows = np.flatnonzero(item_of >= 0)
        rows = rows[np.argsort(item_of[rows], kind="stable")]  # an item's rows together, items as listed
        kept, starts = np.unique(item_of[rows], return_index=True)
        found = replace(found.take(kept), bad=(*found.bad, *bad))
        if not len(kept):
            return found
        offsets = np.append(starts, len(rows))
        table = labels.table.take(pa.array(rows))
        if np.diff(offsets).max() > 1 or set(SIDES) <= set(table.column_names):
            table = grouped(table, offsets, (*PER_PICTURE, self.group_by or ""), found.keys, labels.name)
        columns, notices = columns_of(table, labels.name)
        return with_columns(replace(found, notices=(*found.notices, *labels.notices, *notices)), columns, labels.name)

    def _check_some(self, labels: Labels, item_of: Ints, found: Listing) -> None:
        """Raise SourceError where no row names any item: that has one cause, not one an item."""
        if not len(found) or (item_of != _MISSING).any() or {bad.key for bad in found.bad} & set(labels.files):
            return
        names = f"column {labels.column!r} names {labels.files[0]!r}, and an item is {found.keys[0]!r}"
        hint = "Name items by their paths in the source, in a column `file` or else the first."
        if odd := next((c for c in ";\t,|" if c in labels.column), None):
            hint = f"The separator may be {odd!r}: columns of a .csv are parted by ',', those of a .tsv by tabs."
        raise SourceError(f"no row names an item of the source: {names}", path=self.path, hint=hint)

    def _beside(self, name: str) -> str | None:
        """The key of a file that is named relative to the label file, or by its whole path."""
        folder = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        path = os.path.normpath(os.path.join(os.path.abspath(folder), name))
        root = os.path.abspath(self.root) + os.sep
        return path[len(root) :].replace(os.sep, "/") if path.startswith(root) else None

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        return self.source.samples(keys)

    def file(self, key: str) -> Path | None:
        return self.source.file(key)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "labels": None}


def gives_label(labels: Labels) -> bool:
    """True when each item has one row with its class, so that folders need not name it."""
    names = labels.table.column_names
    return (
        bool(CLASS_NAMES & set(names)) and not set(SIDES) <= set(names) and len(set(labels.files)) == len(labels.files)
    )


def match(names: Sequence[str], keys: Sequence[str], beside: Callable[[str], str | None]) -> Ints:
    """The item that each name means, int64 (n,): -1 if there is none, -2 if it could be several.

    Args:
        names: as the label file has them.
        keys: of the items.
        beside: key of a name that is meant relative to the label file, or None.

    A name is a key; or else a path relative to the label file; or else the end of exactly one key, its suffix left out or not.
    """
    number = {key: i for i, key in enumerate(keys)}
    out = np.full(len(names), _MISSING, np.int64)
    rest: dict[int, list[tuple[int, str]]] = {}  # depth of the name -> its rows
    for row, raw in enumerate(names):
        name = raw.strip().replace("\\", "/").removeprefix("./")
        found = number.get(name)
        if found is None and (key := beside(name)) is not None:
            found = number.get(key)
        if found is not None:
            out[row] = found
        else:
            rest.setdefault(name.count("/") + 1, []).append((row, name))
    for depth, rows in rest.items():
        ends = _ends(keys, depth)
        for row, name in rows:
            out[row] = ends.get(name, _MISSING)
    return out


def _ends(keys: Sequence[str], depth: int) -> dict[str, int]:
    """The last `depth` parts of each key, with and without suffix -> its number, -2 where several keys end so."""
    out: dict[str, int] = {}
    for i, key in enumerate(keys):
        end = "/".join(key.rsplit("/", depth)[-depth:])
        for name in {end, os.path.splitext(end)[0]}:
            out[name] = i if name not in out else _SEVERAL
    return out


def _unmatched(labels: Labels, item_of: Ints, found: Listing) -> Iterator[BadItem]:
    """Rows without an item, items without a row; items that are bad already are not said to be missing as well."""
    known_bad = {bad.key for bad in found.bad}
    for row in np.flatnonzero(item_of < 0).tolist():
        name = labels.files[row]
        if name in known_bad:
            continue
        known_bad.add(name)
        several = item_of[row] == _SEVERAL
        reason = "could be several items of the source" if several else "is not in the source"
        yield BadItem(name, f"{labels.name} names it, but it {reason}")
    without = np.ones(len(found), bool)
    without[item_of[item_of >= 0]] = False
    for i in np.flatnonzero(without).tolist():
        yield BadItem(found.keys[i], f"has no row in {labels.name}")


def with_columns(listing: Listing, columns: Sequence[Column], file: str) -> Listing:
    """The listing with further fields: a label takes the folders' place, other names that are taken get NAME_1."""
    label = next((c for c in columns if c.field.kind == "label"), None)
    notices: list[str] = []
    if label is not None and label.missing is not None and label.missing.any():
        bad = tuple(BadItem(listing.keys[i], f"has no label in {file}") for i in np.flatnonzero(label.missing).tolist())
        kept = np.flatnonzero(~label.missing)
        listing = replace(listing.take(kept), bad=(*listing.bad, *bad))
        columns = [c._replace(values=c.values.take(kept), missing=None) for c in columns]
    folders = listing.schema.label
    if folders is not None and (label is not None or len(folders.class_names or ()) == 1):
        if label is not None and len(folders.class_names or ()) > 1:
            notices.append(f"the label is that of {file}, not the name of the folder")
        listing = _without(listing, "label")
    fields, plain, arrays = list(listing.schema), dict(listing.columns), dict(listing.arrays)
    hasher = blake3.blake3(listing.beside.encode())
    for new, values, _ in sorted(columns, key=lambda c: -c.field.name.count("/")):  # "objects" gives way to "objects/x"
        name = free_name(new.name, reserved(Schema(tuple(fields))))
        if name != new.name:
            notices.append(f"{file}: {new.name} became {name}, because that name is taken")
        fields.append(replace(new, name=name))
        if isinstance(values, Ragged):
            arrays[name] = values
        else:
            plain[name] = values
        hasher.update(f"\0{name}\0{new.dtype}\0{new.class_names}\0".encode())
        hasher.update(values_bytes(values))
    return replace(
        listing,
        schema=Schema(tuple(fields)),
        columns=plain,
        arrays=arrays,
        notices=(*listing.notices, *notices),
        beside=hasher.hexdigest(),
    )


def _without(listing: Listing, name: str) -> Listing:
    return replace(
        listing,
        schema=Schema(tuple(f for f in listing.schema if f.name != name)),
        columns={n: values for n, values in listing.columns.items() if n != name},
    )
