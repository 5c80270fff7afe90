"""WebDataset tars: members of one name up to its first dot are one sample, what follows the dot says what they are.

======================  ==========================================================================
jpg, png, webp, ...     payload `image`, its bytes untouched; `mask.png`, `seg.png`: payload `mask`
txt                     payload `text`
npy                     payload `array`
cls                     the label: a number, or a name
json                    one object: its members become columns and arrays, as of a label file
======================  ==========================================================================

Keys are `TAR/NAME.EXTENSION` of the image, or else of the text or the array.

Source: github.com/webdataset/webdataset, "The WebDataset Format".

>>> field_of("cat/1.seg.png"), field_of("cat/1.cls"), field_of("cat/1.flac")
(('cat/1', 'mask'), ('cat/1', 'cls'), ('cat/1', ''))
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from streamkit.codecs.image import EXTENSIONS
from streamkit.errors import SourceError
from streamkit.schema import Field, Schema
from streamkit.sources import npy
from streamkit.sources.fields import CLASS_NAMES, Column, columns_of
from streamkit.sources.labelled import with_columns
from streamkit.sources.labels import table_of, typed
from streamkit.sources.listing import BadItem, Ints, Listing, Packed, Sample, key_of
from streamkit.sources.rowfiles import parse_row
from streamkit.sources.tarfiles import members

PAYLOADS = ("image", "mask", "text", "array")
_SMALL = ("cls", "json")
_MAX_SMALL_NBYTES = 1 << 20
_FOLDERS = "folders inside a tar are no classes; where they should be, unpack it and convert the folder"
_MASKS = ("mask", "seg", "segmentation", "annotation")


def field_of(name: str) -> tuple[str, str]:
    """Name of the sample that a member belongs to, and what it is of it; "" for what is left."""
    folder, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    first, _, rest = extension.lower().partition(".")
    of_extension = {"txt": "text", "npy": "array", "cls": "cls", "json": "json"}
    what = "image" if f".{first}" in EXTENSIONS and not rest else of_extension.get(first, "") if not rest else ""
    if first in _MASKS and f".{rest}" in EXTENSIONS:
        what = "mask"
    return f"{folder}{slash}{base}", what


class Contents(NamedTuple):
    """What a tar holds, sample by sample in its order.

    Attributes:
        keys: of the samples, with the suffix of their first payload.
        number: key -> its number.
        places: offset and length [B] of each of PAYLOADS and of `cls` and `json`, int64 (n, 6, 2); length -1 for none.
        bad: what is no sample.
        left: extensions of members that are no field, counted.
    """

    keys: list[str]
    number: dict[str, int]
    places: Ints
    bad: tuple[BadItem, ...]
    left: Counter[str]


def contents(path: str) -> Contents:
    """What a tar holds; of a few tars, it is remembered."""
    facts = os.stat(path)
    return _contents(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4)
def _contents(path: str, size: int, mtime: int) -> Contents:
    bad: list[BadItem] = []
    left: Counter[str] = Counter()
    found: dict[str, list[list[int]]] = {}
    suffixes: dict[str, dict[str, str]] = {}
    spoiled: dict[str, BadItem] = {}
    columns = (*PAYLOADS, *_SMALL)
    for member in members(path):
        base, what = field_of(member.name)
        if member.name.rpartition("/")[2].startswith("."):
            continue
        if member.wrong:
            bad.append(BadItem(key_of(member.name) or ".", member.wrong, member.refused))
            continue
        if not what:
            left[member.name.rpartition("/")[2].partition(".")[2]] += 1
            continue
        places = found.setdefault(base, [[0, -1] for _ in columns])
        if places[columns.index(what)][1] >= 0:
            spoiled[base] = BadItem(key_of(member.name), f"is the second {what} of {key_of(base)}")
        places[columns.index(what)] = [member.offset, member.nbytes]
        suffixes.setdefault(base, {})[what] = member.name[len(base) :]
    bad += spoiled.values()
    names = [name for name in found if name not in spoiled]
    keys = [key_of(name + next(suffixes[name][w] for w in columns if w in suffixes[name])) for name in names]
    table = np.array([found[name] for name in names], np.int64).reshape(len(names), len(columns), 2)
    return Contents(keys, {key: i for i, key in enumerate(keys)}, table, tuple(bad), left)


@dataclass(frozen=True)
class Tars(Packed):
    """Samples of several tars, one behind the other. `fields`: payloads that every sample has."""

    fields: tuple[str, ...]

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        tar = 0
        fd = -1
        try:
            for key in keys:
                if fd < 0 or not key.startswith(f"{self.names[tar]}/"):
                    tar = next(i for i, name in enumerate(self.names) if key.startswith(f"{name}/"))
                    os.close(fd) if fd >= 0 else None
                    fd = os.open(self.paths[tar], os.O_RDONLY)
                    here = contents(self.paths[tar])
                yield self._sample(fd, key, here, here.number.get(key[len(self.names[tar]) + 1 :]))
        finally:
            if fd >= 0:
                os.close(fd)

    def _sample(self, fd: int, key: str, here: Contents, number: int | None) -> Sample | BadItem:
        if number is None:
            return BadItem(key, "is not in the tar any more")
        payloads: dict[str, Any] = {}
        for name in self.fields:
            offset, nbytes = here.places[number, PAYLOADS.index(name)].tolist()
            data = os.pread(fd, nbytes, offset)
            if name == "array":
                try:
                    payloads[name] = npy.parse(data)
                except npy.BadNpy as error:
                    return BadItem(key, str(error), error.refused)
            else:
                payloads[name] = data
        return Sample(payloads)


def tar_source(root: str, files: Sequence[tuple[str, str]]) -> Tars:
    """Read the headers of tars, and their labels.

    Args:
        root: of the source, for messages.
        files: path and key of each, sorted by key.

    Raises:
        SourceError: no samples in them, or a file that is no tar.
    """
    parts = [(name, path, contents(path)) for path, name in files]
    left: Counter[str] = sum((part.left for _, _, part in parts), Counter())
    places = np.concatenate([part.places for _, _, part in parts])
    bad = [b._replace(key=f"{name}/{b.key}") for name, _, part in parts for b in part.bad]
    if not len(places) and not bad:
        kinds = ", ".join(sorted(left)[:8]) or "they are empty"
        raise SourceError(f"no sample in these tars ({kinds})", path=root or files[0][0])
    there = places[:, :, 1] >= 0
    fields = tuple(name for i, name in enumerate(PAYLOADS) if there[:, i].any())
    listing = Listing(
        keys=[f"{name}/{key}" for name, _, part in parts for key in part.keys],
        sizes=np.where(there, places[:, :, 1], 0).sum(axis=1),
        schema=Schema(()),
        blocks=np.repeat(np.arange(len(parts)), [len(part.keys) for _, _, part in parts]),
        bad=tuple(bad),
        notices=tuple(f"{n} members .{kind} were left" for kind, n in sorted(left.items())[:8]),
    )
    wanted = [*fields, *(["cls"] if there[:, len(PAYLOADS)].any() else [])]
    whole = np.ones(len(listing), bool)
    for name in wanted:
        lacking = whole & ~there[:, (*PAYLOADS, *_SMALL).index(name)]
        what = {"image": "picture", "cls": "class (.cls)", "text": "text (.txt)", "array": ".npy"}.get(name, name)
        bad += [BadItem(listing.keys[i], f"has no {what}, as others have") for i in np.flatnonzero(lacking).tolist()]
        whole &= ~lacking
    rows = np.flatnonzero(whole)
    numbers = np.repeat(np.arange(len(parts)), [len(part.keys) for _, _, part in parts])[rows]
    reading = _Reading([path for _, path, _ in parts], numbers, places[rows])
    listing = _with_payloads(replace(listing.take(rows), bad=tuple(bad)), fields, reading)
    folders = {key.rpartition("/")[0] for _, _, part in parts for key in part.keys}
    if listing.schema.label is None and len(folders) > 1:
        listing = replace(listing, notices=(*listing.notices, _FOLDERS))
    return Tars(tuple(p for _, p, _ in parts), tuple(n for n, _, _ in parts), fields, found=listing)


@dataclass(frozen=True)
class _Reading:
    """Small members of the samples listed. `numbers`: of each sample's tar; `places`: as in Contents."""

    paths: Sequence[str]
    numbers: Ints
    places: Ints

    def of(self, what: str, limit: int) -> Iterator[tuple[int, bytes, int]]:
        """(row, first `limit` bytes, size [B]) of each sample's member of this kind, where it has one."""
        places = self.places[:, (*PAYLOADS, *_SMALL).index(what)]
        for tar in np.unique(self.numbers).tolist():
            with open(self.paths[tar], "rb") as file:
                for row in np.flatnonzero((self.numbers == tar) & (places[:, 1] >= 0)).tolist():
                    offset, nbytes = places[row].tolist()
                    yield row, os.pread(file.fileno(), min(nbytes, limit), offset), nbytes

    def take(self, rows: Ints) -> _Reading:
        return _Reading(self.paths, self.numbers[rows], self.places[rows])


def _with_payloads(listing: Listing, fields: Sequence[str], reading: _Reading) -> Listing:
    made = {
        "image": Field("image", "image", "uint8", (None, None, None), "mixed"),
        "mask": Field("mask", "mask", "uint8", (None, None, 1), "mixed"),
        "text": Field("text", "text", "string"),
    }
    bad: dict[int, BadItem] = {}
    if "array" in fields:
        made["array"], bad = _array_field(listing, reading)
    listing = replace(listing, schema=Schema(tuple(made[name] for name in fields)))
    rows: list[dict[str, Any]] = [{} for _ in range(len(listing))]
    for row, data, nbytes in reading.of("json", _MAX_SMALL_NBYTES):
        parsed = parse_row(data) if nbytes <= _MAX_SMALL_NBYTES else f"has {nbytes} bytes, over {_MAX_SMALL_NBYTES}"
        if isinstance(parsed, str):
            bad.setdefault(row, BadItem(listing.keys[row], f"its .json {parsed}"))
        else:
            rows[row] = parsed
    classes: list[str | None] = [None] * len(listing)
    for row, data, _ in reading.of("cls", 4096):
        classes[row] = data.decode(errors="replace").strip()
    good = np.setdiff1d(np.arange(len(listing)), list(bad))
    listing = replace(listing.take(good), bad=(*listing.bad, *bad.values()))
    if not len(good):
        return listing
    try:
        table = table_of(rows[row] for row in good.tolist())
    except (pa.ArrowException, OverflowError) as error:
        raise SourceError(f"the .json members do not go together: {str(error).splitlines()[0]}") from None
    return _with_labels(listing, [classes[row] for row in good.tolist()], table)


def _with_labels(listing: Listing, classes: Sequence[str | None], table: pa.Table) -> Listing:
    columns: list[Column] = []
    if any(name is not None for name in classes):  # .cls is the label, whatever .json says
        columns, _ = columns_of(pa.table({"label": typed(pa.array(classes, pa.string()))}), ".cls")
        table = table.rename_columns([f"{n}_1" if n in CLASS_NAMES else n for n in table.column_names])
    more, notices = columns_of(table, ".json")
    return with_columns(replace(listing, notices=(*listing.notices, *notices)), [*columns, *more], ".json")


def _array_field(listing: Listing, reading: _Reading) -> tuple[Field, dict[int, BadItem]]:
    """The field of all .npy members, and those that do not fit the first."""
    first: npy.Header | None = None
    shapes: list[tuple[int, ...]] = []
    bad: dict[int, BadItem] = {}
    for row, head, nbytes in reading.of("array", npy.HEADER_NBYTES + 128):
        try:
            header = npy.read_header(head, nbytes)
        except npy.BadNpy as error:
            bad[row] = BadItem(listing.keys[row], str(error), error.refused)
            continue
        first = first or header
        if (header.dtype.newbyteorder("="), len(header.shape)) == (first.dtype.newbyteorder("="), len(first.shape)):
            shapes.append(header.shape)
        else:
            reason = f"is {header.dtype} {header.shape}, but the first is {first.dtype} {first.shape}"
            bad[row] = BadItem(listing.keys[row], reason)
    if first is None:
        return Field("array", "array", "uint8"), bad
    same = [len({shape[axis] for shape in shapes}) == 1 for axis in range(len(first.shape))]
    shape = tuple(d if s else None for d, s in zip(first.shape, same, strict=True))
    return Field("array", "array", first.dtype.newbyteorder("=").name, shape), bad
