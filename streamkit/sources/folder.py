"""Folders in which every file is one sample: pictures, .npy arrays, or texts. Class folders are labels.

`class/name.jpg` gives the label "class", `a/b/name.jpg` the label "a/b"; a flat folder has no labels. Hidden files are
passed over; links that leave the folder are bad items; anything that is no regular file is left, with a notice.

    >>> listing = ImageFolder("sample_data/images/val").listing()
    >>> len(listing) == len(listing.columns["label"]), listing.schema["image"].kind
    (True, 'image')
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from streamkit.codecs.image import EXTENSIONS
from streamkit.schema import Field, Schema
from streamkit.sources import npy
from streamkit.sources.files import FILE, FOLDER, LINK, Entries, read_files, walk
from streamkit.sources.listing import BadItem, Ints, Listing, Sample, key_of, path_of
from streamkit.sources.rowfiles import EXTENSIONS as ROW_EXTENSIONS

RECORD_EXTENSIONS = (".tar", *ROW_EXTENSIONS)


@dataclass
class Found:
    """What a walk through a folder met: (key, size) pairs by kind, and what was left.

    `texts` and `records` (files of many samples) only count where there are no pictures and no arrays; what is wrong with
    them is `beside`.
    """

    images: list[tuple[str, int]] = field(default_factory=list)
    arrays: list[tuple[str, int]] = field(default_factory=list)
    texts: list[tuple[str, int]] = field(default_factory=list)
    records: list[tuple[str, int]] = field(default_factory=list)
    beside: list[BadItem] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    bad: list[BadItem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def n_arrays(self) -> int:
        return len(self.arrays)

    def bad_of(self, kind: str) -> list[BadItem]:
        """Where to note what is wrong with a file of one of the lists."""
        return self.bad if kind in ("images", "arrays") else self.beside


def scan(root: str | os.PathLike[str]) -> Found:
    """Walk a folder. Folders behind links are not followed."""
    found = Found()
    top = os.path.realpath(root)
    empty = []
    for folder, listed in walk(os.fspath(root), _KINDS):
        if isinstance(listed, OSError):
            found.bad.append(BadItem(key_of(folder) or ".", f"this folder cannot be read: {unreadable(listed)}"))
        elif listed.names:
            _sort_in(found, listed, folder, top)
        elif folder:
            empty.append(key_of(folder))
    for kind in (found.images, found.arrays, found.texts, found.records):
        kind.sort()
    if empty:
        shown = ", ".join(sorted(empty)[:8]) + (", ..." if len(empty) > 8 else "")
        found.notices.append(f"empty folders are no classes: {shown}")
    if not found.images and not found.arrays and (found.texts or found.records):
        found.bad += found.beside
    else:
        found.others.update(os.path.splitext(key)[1].lower() for key, _ in (*found.texts, *found.records))
    if found.others and (found.images or found.arrays or found.texts or found.records):
        n = sum(found.others.values())
        kinds = ", ".join(sorted(ext or "no extension" for ext in found.others)[:8])
        found.notices.append(f"{n} other files were left ({kinds})")
    return found


# Extension -> the list of `Found` that takes such files.
_KINDS = dict.fromkeys(EXTENSIONS, "images") | {".npy": "arrays", ".txt": "texts"}
_KINDS |= dict.fromkeys(RECORD_EXTENSIONS, "records")


def _sort_in(found: Found, listed: Entries, folder: str, top: str) -> None:
    """Every entry of a folder but the folders in it."""
    before = os.path.join(folder, "")
    every = before + "/".join(listed.names)
    alike = key_of(every) == every  # then each key is its path
    for name, type, size in zip(listed.names, listed.types, listed.sizes, strict=True):
        if type == FOLDER:
            continue
        path = before + name
        kind, extension = _kind(path)
        if type == LINK:
            _sort_in_link(found, path, kind, extension, top)
        elif kind is None:
            found.others[extension] += 1
        elif type != FILE:
            found.notices.append(f"{key_of(path)} is no regular file and was left")
        elif size >= 0:
            getattr(found, kind).append((path if alike else key_of(path), size))
        elif size != -errno.ENOENT:  # gone since the folder was read: as if it had never been there
            found.bad_of(kind).append(BadItem(key_of(path), unreadable(OSError(-size, os.strerror(-size)))))


def _sort_in_link(found: Found, path: str, kind: str | None, extension: str, top: str) -> None:
    place, key = os.path.join(top, path), key_of(path)
    try:
        facts = os.stat(place)
    except OSError:
        facts = None
    is_folder = facts is not None and stat.S_ISDIR(facts.st_mode)
    if kind is None and not is_folder:
        found.others[extension] += 1
        return
    leaves = not os.path.realpath(place).startswith(top + os.sep)
    if is_folder:
        found.bad.append(BadItem(key, "a link to a folder, which is not followed", refused=leaves))
        return
    assert kind is not None
    if facts is None:
        found.bad_of(kind).append(BadItem(key, "a link to nothing"))
    elif leaves:
        found.bad_of(kind).append(BadItem(key, "a link that leaves the source folder", refused=True))
    elif not stat.S_ISREG(facts.st_mode):
        found.notices.append(f"{key} is no regular file and was left")
    else:
        getattr(found, kind).append((key, facts.st_size))


def _kind(path: str) -> tuple[str | None, str]:
    """Which list of `Found` takes a file of this name, if any; and its extension."""
    slash, dot = path.rfind(os.sep), path.rfind(".")
    extension = path[dot:].lower() if dot > slash + 1 else ""
    kind = _KINDS.get(extension)
    return None if kind == "texts" and _is_note(path) else kind, extension


def _is_note(path: str) -> bool:
    """True for texts at the top that describe a collection."""
    return os.sep not in path and path[:-4].lower() in ("readme", "license", "licence", "notice", "about")


def _labels(
    items: Sequence[tuple[str, int]], bad: list[BadItem]
) -> tuple[Sequence[tuple[str, int]], Ints | None, tuple[str, ...]]:
    """Class numbers by folder. In a folder with class folders, files beside them are bad items: they have no label."""
    folders = [key.rpartition("/")[0] for key, _ in items]
    names = sorted(set(folders) - {""})
    if not names:
        return items, None, ()
    if "" in folders:
        for (key, _), folder in zip(items, folders, strict=True):
            if not folder:
                bad.append(BadItem(key, "lies beside the class folders, so it has no label"))
        items = [item for item, folder in zip(items, folders, strict=True) if folder]
        folders = [folder for folder in folders if folder]
    number = {name: i for i, name in enumerate(names)}
    return items, np.fromiter((number[f] for f in folders), np.int64, len(folders)), tuple(names)


def folder_listing(found: Found, items: Sequence[tuple[str, int]], payload: Field, class_folders: bool) -> Listing:
    """The listing of files that hold one payload each, with their folders as labels."""
    bad = list(found.bad)
    items, labels, names = _labels(items, bad) if class_folders else (items, None, ())
    fields = [payload]
    if labels is not None:
        fields.append(Field("label", "label", "int64", (), class_names=names))
    return Listing(
        keys=[key for key, _ in items],
        sizes=np.fromiter((size for _, size in items), np.int64, len(items)),
        schema=Schema(tuple(fields)),
        columns={} if labels is None else {"label": labels},
        bad=tuple(bad),
        notices=tuple(found.notices),
    )


@dataclass(frozen=True)
class _Folder:
    """One file a sample, its bytes the payload `PAYLOAD`.

    `found`: what a walk met already; it does not travel to workers. `class_folders`: whether folders name classes.
    """

    PAYLOAD: ClassVar[str]

    root: str
    found: Found | None = field(default=None, compare=False, repr=False)
    class_folders: bool = True

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "found": None, "class_folders": self.class_folders}

    def file(self, key: str) -> Path:
        return Path(self.root, path_of(key))

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        payloads = self._payloads([f"{self.root}{os.sep}{path_of(key)}" for key in keys])
        for key, data in zip(keys, payloads, strict=True):
            if isinstance(data, npy.BadNpy):
                yield BadItem(key, str(data), data.refused)
            elif isinstance(data, OSError):
                yield BadItem(key, unreadable(data))
            else:
                yield Sample({self.PAYLOAD: data})

    def _payloads(self, paths: Sequence[str]) -> Iterator[Any]:
        """What each file holds, or the error that is in the way."""
        return read_files(paths)


class ImageFolder(_Folder):
    """One picture a file. What kind of picture it is, the bytes say."""

    PAYLOAD = "image"

    def listing(self) -> Listing:
        found = self.found or scan(self.root)
        payload = Field("image", "image", "uint8", (None, None, None), "mixed")
        return folder_listing(found, found.images, payload, self.class_folders)


class TextFolder(_Folder):
    """One text a .txt file, UTF-8."""

    PAYLOAD = "text"

    def listing(self) -> Listing:
        found = self.found or scan(self.root)
        return folder_listing(found, found.texts, Field("text", "text", "string"), self.class_folders)


class ArrayFolder(_Folder):
    """One .npy a file. Shapes may differ (the field is then ragged); dtype and number of axes may not."""

    PAYLOAD = "array"

    def listing(self) -> Listing:
        found = self.found or scan(self.root)
        good: list[tuple[str, int]] = []
        headers: list[npy.Header] = []
        for key, size in found.arrays:
            try:
                header = npy.open_header(Path(self.root, path_of(key)))
            except npy.BadNpy as error:
                found.bad.append(BadItem(key, str(error), error.refused))
            except OSError as error:
                found.bad.append(BadItem(key, unreadable(error)))
            else:
                first = headers[0] if headers else header
                if (header.dtype.newbyteorder("="), len(header.shape)) == (
                    first.dtype.newbyteorder("="),
                    len(first.shape),
                ):
                    good.append((key, size))
                    headers.append(header)
                else:
                    reason = f"is {header.dtype} {header.shape}, but {good[0][0]} is {first.dtype} {first.shape}"
                    found.bad.append(BadItem(key, reason))
        if not headers:
            return folder_listing(found, [], Field("array", "array", "uint8", ()), self.class_folders)
        shapes = np.array([h.shape for h in headers], np.int64).reshape(len(headers), -1)
        same = (shapes == shapes[0]).all(axis=0)
        shape = tuple(int(d) if s else None for d, s in zip(shapes[0], same, strict=True))
        payload = Field("array", "array", headers[0].dtype.newbyteorder("=").name, shape)
        return folder_listing(found, good, payload, self.class_folders)

    def _payloads(self, paths: Sequence[str]) -> Iterator[Any]:
        for path in paths:
            try:
                yield npy.load(Path(path))
            except (npy.BadNpy, OSError) as error:
                yield error


def unreadable(error: OSError) -> str:
    """Why a file cannot be read, and what it needs."""
    if isinstance(error, PermissionError):
        return "permission denied: this user needs read access"
    return (error.strerror or str(error)).lower()
