"""Split folders: every top folder is named train, val, valid, validation or test, and is a source of its own.

>>> split_folders("sample_data/images")
(('train', 'train'), ('val', 'val'))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import SourceError
from streamkit.schema import Field, Schema
from streamkit.sources.listing import BadItem, Listing, Ragged, Sample, Source

SPLIT_OF_FOLDER = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def split_folders(root: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """(split, folder) pairs, sorted by folder, if every visible entry of `root` is a split folder; else ()."""
    with os.scandir(root) as entries:
        shown = sorted(
            e.name for e in entries if not e.name.startswith(".") and (os.path.isdir(e.path) or not _is_note(e.name))
        )
    if not shown or not all(name.lower() in SPLIT_OF_FOLDER for name in shown):
        return ()
    pairs = tuple((SPLIT_OF_FOLDER[name.lower()], name) for name in shown)
    if len({split for split, _ in pairs}) != len(pairs):
        raise SourceError(f"two folders are the same split: {', '.join(shown)}", path=root, hint="Keep one of them.")
    return pairs


def _is_note(name: str) -> bool:
    return name.lower().endswith((".md", ".txt", ".json", ".csv")) or name.lower() in ("license", "readme")


@dataclass(frozen=True)
class SplitFolders:
    """Several sources, one a split; keys get the folder in front."""

    parts: tuple[tuple[str, str, Source], ...]

    def listing(self) -> Listing:
        listings = [source.listing() for _, _, source in self.parts]
        folders = [folder for _, folder, _ in self.parts]
        class_names = _union(listings)
        bases = np.cumsum([0] + [len(one) for one in listings])
        return Listing(
            keys=_Joined(tuple(folders), tuple(one.keys for one in listings)),
            sizes=np.concatenate([one.sizes for one in listings]),
            schema=merge_schemas([one.schema for one in listings], folders, class_names),
            columns=_columns(listings, folders, class_names),
            arrays=_arrays(listings, folders),
            split_names=tuple(split for split, _, _ in self.parts),
            split_of=np.repeat(np.arange(len(listings)), np.diff(bases)),
            block=max(one.block for one in listings),
            blocks=_blocks(listings),
            bad=tuple(
                b._replace(key=f"{f}/{b.key}") for f, one in zip(folders, listings, strict=True) for b in one.bad
            ),
            notices=tuple(f"{f}: {n}" for f, one in zip(folders, listings, strict=True) for n in one.notices),
        )

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        # A shard belongs to one split, so all its keys begin with one folder.
        folder = keys[0].split("/", 1)[0]
        source = next(source for _, name, source in self.parts if name == folder)
        for sample in source.samples([key[len(folder) + 1 :] for key in keys]):
            yield sample._replace(key=f"{folder}/{sample.key}") if isinstance(sample, BadItem) else sample

    def file(self, key: str) -> Path | None:
        folder, _, inner = key.partition("/")
        return next((source.file(inner) for _, name, source in self.parts if name == folder), None)


@dataclass(frozen=True)
class _Joined(Sequence[str]):
    folders: tuple[str, ...]
    parts: tuple[Sequence[str], ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, i: Any) -> Any:
        for folder, keys in zip(self.folders, self.parts, strict=True):
            if i < len(keys):
                return f"{folder}/{keys[i]}"
            i -= len(keys)
        raise IndexError(i)


def _blocks(listings: Sequence[Listing]) -> npt.NDArray[np.int64] | None:
    """Each row's block, numbered on from folder to folder."""
    if any(one.blocks is None for one in listings):
        return None
    parts, n = [], 0
    for one in listings:
        assert one.blocks is not None
        parts.append(one.blocks + n)
        n += int(one.blocks.max(initial=-1)) + 1
    return np.concatenate(parts)


def _union(listings: Sequence[Listing]) -> tuple[str, ...] | None:
    labels = [one.schema.label for one in listings]
    names = [label.class_names for label in labels if label is not None and label.class_names is not None]
    if not names:
        return None
    longest = max(names, key=len)
    if all(n == longest[: len(n)] for n in names):
        return longest  # numbered classes keep their numbers
    return tuple(sorted({name for n in names for name in n}))


def _columns(
    listings: Sequence[Listing], folders: Sequence[str], class_names: tuple[str, ...] | None
) -> dict[str, npt.NDArray[Any]]:
    names = set(listings[0].columns)
    for folder, one in zip(folders, listings, strict=True):
        if set(one.columns) != names:
            raise SourceError(
                f"{folders[0]} has the columns {sorted(names)}, {folder} has {sorted(one.columns)}",
                hint="Give all split folders the same layout.",
            )
    out = {}
    for name in sorted(names):
        parts = []
        for one in listings:
            values = one.columns[name]
            own = one.schema[name].class_names
            if own is not None and class_names is not None and own != class_names[: len(own)]:
                values = np.array([class_names.index(n) for n in own], np.int64)[values]
            parts.append(values)
        out[name] = np.concatenate(parts)
    return out


def _arrays(listings: Sequence[Listing], folders: Sequence[str]) -> dict[str, Ragged]:
    """Arrays that listings hold, one behind the other. Those of classes must have the same names in all folders."""
    out = {}
    for name in listings[0].arrays:
        for folder, one in zip(folders, listings, strict=True):
            if name not in one.arrays:
                raise SourceError(f"{folders[0]} has the field {name!r}, {folder} has not")
            if one.schema[name].class_names != listings[0].schema[name].class_names:
                raise SourceError(f"{name!r} has other classes in {folders[0]} than in {folder}")
        parts = [one.arrays[name] for one in listings]
        ends = np.cumsum([len(part.values) for part in parts])
        offsets = [part.offsets[1:] + end - len(part.values) for part, end in zip(parts, ends, strict=True)]
        out[name] = Ragged(np.concatenate([p.values for p in parts]), np.concatenate([[0], *offsets]))
    return out


def merge_schemas(schemas: Sequence[Schema], folders: Sequence[str], class_names: tuple[str, ...] | None) -> Schema:
    """One schema for all splits: shapes that differ become None. Raises SourceError when fields or dtypes differ."""
    merged: list[Field] = list(schemas[0])
    for folder, schema in zip(folders[1:], schemas[1:], strict=True):
        if [f.name for f in schema] != [f.name for f in merged]:
            raise SourceError(
                f"{folders[0]} has the fields {[f.name for f in merged]}, {folder} has {[f.name for f in schema]}",
                hint="Give all split folders the same layout.",
            )
        merged = [_merge(a, b, folders[0], folder) for a, b in zip(merged, schema, strict=True)]
    return Schema(tuple(dataclasses.replace(f, class_names=class_names) if f.kind == "label" else f for f in merged))


def _merge(a: Field, b: Field, first: str, other: str) -> Field:
    if (a.kind, a.dtype, len(a.shape)) != (b.kind, b.dtype, len(b.shape)):
        raise SourceError(
            f"field {a.name!r} is {a.kind} {a.dtype} of {len(a.shape)} axes in {first}, "
            f"{b.kind} {b.dtype} of {len(b.shape)} axes in {other}"
        )
    return dataclasses.replace(a, shape=tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True)))
