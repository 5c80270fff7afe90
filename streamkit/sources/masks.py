"""A source of pictures with a folder of masks beside it: one mask a picture, of the same path but for the suffix.

>>> without_suffix("cat/1.v2.png")
'cat/1.v2'
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import blake3
import numpy as np

from streamkit.codecs.image import EXTENSIONS
from streamkit.errors import UsageError
from streamkit.schema import Field, Schema
from streamkit.sources.files import read_file
from streamkit.sources.folder import scan, unreadable
from streamkit.sources.listing import BadItem, Listing, Sample, Source, path_of

FIELD = "mask"


@dataclass(frozen=True)
class Masked:
    """A source of pictures whose masks lie below `folder`."""

    source: Source
    folder: str

    def listing(self) -> Listing:
        found, masks = self.source.listing(), scan(self.folder)
        if "image" not in found.schema:
            raise UsageError("masks belong to pictures, and this source has none", path=self.folder)
        of_path: dict[str, list[tuple[str, int]]] = {}
        for key, size in masks.images:
            of_path.setdefault(without_suffix(key), []).append((key, size))
        bad, kept, sizes = list(found.bad), [], []
        bad += [BadItem(f"{Path(self.folder).name}/{b.key}", b.reason, b.refused) for b in masks.bad]
        hasher = blake3.blake3(found.beside.encode())
        for i, key in enumerate(found.keys):
            own = of_path.pop(without_suffix(key), [])
            if len(own) != 1:
                names = " and ".join(name for name, _ in own)
                bad.append(BadItem(key, f"has two masks: {names}" if own else "has no mask of its name"))
                continue
            kept.append(i)
            sizes.append(own[0][1])
            hasher.update(f"{own[0][0]}\0{own[0][1]}\n".encode())
        notices = list(found.notices)
        if of_path:
            shown = ", ".join(sorted(of_path)[:3])
            notices.append(f"{len(of_path)} masks without a picture were left ({shown})")
        listing = found.take(np.array(kept, np.int64))
        return replace(
            listing,
            sizes=listing.sizes + np.array(sizes, np.int64),
            schema=Schema((*listing.schema, Field(FIELD, "mask", "uint8", (None, None, 1), "mixed"))),
            bad=tuple(bad),
            notices=tuple(notices),
            beside=hasher.hexdigest(),
        )

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        places = _Places(self.folder)
        for key, sample in zip(keys, self.source.samples(keys), strict=True):
            if isinstance(sample, BadItem):
                yield sample
                continue
            try:
                mask = read_file(places.of(key))
            except OSError as error:
                yield BadItem(key, f"its mask: {unreadable(error)}")
                continue
            yield sample._replace(payloads={**sample.payloads, FIELD: mask})

    def file(self, key: str) -> Path | None:
        return self.source.file(key)


def without_suffix(path: str) -> str:
    """What a picture and its mask have in common."""
    return os.path.splitext(path)[0]


class _Places:
    """Where masks lie, found again by workers: each folder is listed once, when the first mask in it is asked for."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.folders: dict[str, dict[str, str]] = {}

    def of(self, key: str) -> str:
        folder, _, stem = without_suffix(path_of(key)).rpartition(os.sep)
        if folder not in self.folders:
            names = os.listdir(os.path.join(self.root, folder))
            pictures = (name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith("."))
            self.folders[folder] = {without_suffix(name): name for name in pictures}
        if stem not in self.folders[folder]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.path.join(self.root, folder, self.folders[folder][stem])
