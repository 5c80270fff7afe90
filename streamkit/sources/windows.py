"""Long arrays cut into windows along their first axis, from memory maps: of a file, only the windows' pages are read.

>>> import tempfile
>>> from streamkit.sources import open_source
>>> folder = tempfile.mkdtemp()
>>> np.save(f"{folder}/a.npy", np.arange(10))
>>> listing = Windowed(open_source(folder), 4, 4).listing()
>>> listing.keys, listing.schema["array"].shape
(['a.npy#0', 'a.npy#4', 'a.npy#6'], (4,))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from streamkit.errors import UsageError
from streamkit.sources import npy
from streamkit.sources.cuts import as_bad, by_parent, cut_listing, origin_of, starts, whole_of, with_shape
from streamkit.sources.folder import unreadable
from streamkit.sources.listing import BadItem, Ints, Listing, Sample, Source

COLUMNS = ("window_start",)
_UNKNOWN = bytes(16)  # windows of a signal at rest are equal by nature: that is no leak


@dataclass(frozen=True)
class Windowed:
    """A source of .npy files, cut into windows of `n` rows that begin `stride` rows apart, the last one shifted inwards."""

    source: Source
    n: int
    stride: int

    def listing(self) -> Listing:
        found = self.source.listing()
        if not len(found):
            return found  # all items are bad already
        if "array" not in found.schema or any(self.source.file(key) is None for key in found.keys[:1]):
            raise UsageError("windows are cut from .npy files", hint="Give one, or a folder of them.")
        field = found.schema["array"]
        if not field.shape:
            raise UsageError("windows need arrays of at least one axis")
        found = replace(found, schema=with_shape(found.schema, "array", (self.n, *field.shape[1:])))
        return cut_listing(found, [self._origins(key) for key in found.keys], COLUMNS)

    def _origins(self, key: str) -> Ints | BadItem:
        try:
            length = npy.open_header(Path(str(self.file(key)))).shape[0]
        except (npy.BadNpy, OSError) as error:
            return _bad(key, error)
        if length < self.n:
            return BadItem(key, f"has {length} rows, and a window takes {self.n}")
        return np.array(starts(length, self.n, self.stride), np.int64)[:, None]

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        for parent, pieces in by_parent(keys):
            path = Path(str(self.file(parent)))
            try:
                rows = npy.memory_map(path, npy.open_header(path))
            except (npy.BadNpy, OSError) as error:
                yield from as_bad(pieces, _bad(parent, error))
                continue
            for key in pieces:
                (start,) = origin_of(key)
                yield Sample({"array": rows[start : start + self.n]}, _UNKNOWN)

    def file(self, key: str) -> Path | None:
        return self.source.file(whole_of(key))


def _bad(key: str, error: npy.BadNpy | OSError) -> BadItem:
    if isinstance(error, npy.BadNpy):
        return BadItem(key, str(error), error.refused)
    return BadItem(key, unreadable(error))
