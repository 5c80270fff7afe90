"""Long arrays cut into windows along their first axis: .npy files from memory maps, of which only the windows' pages are
read, and the rows of tables, all of whose arrays are cut alike.

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
    """A source of .npy files, or a table, cut into windows of `n` rows that begin `stride` rows apart, the last one shifted
    inwards. Of a table, what is cut is each row's arrays, along their own first axis."""

    source: Source
    n: int
    stride: int

    def listing(self) -> Listing:
        found = self.source.listing()
        if not len(found):
            return found  # all items are bad already
        if self.source.file(found.keys[0]) is None:
            return self._rows(found)
        if "array" not in found.schema:
            raise UsageError("windows are cut from arrays", hint="Give .npy files, or a table.")
        field = found.schema["array"]
        if not field.shape:
            raise UsageError("windows need arrays of at least one axis")
        found = replace(found, schema=with_shape(found.schema, "array", (self.n, *field.shape[1:])))
        return cut_listing(found, [self._origins(key) for key in found.keys], COLUMNS)

    def _rows(self, found: Listing) -> Listing:
        """Windows of a table's rows."""
        lengths = {f.name: f.shape[0] for f in found.schema.payloads if f.kind == "array" and f.shape}
        if len(set(lengths.values())) != 1 or None in lengths.values() or len(lengths) != len(found.schema.payloads):
            raise UsageError(
                f"windows are cut from arrays of one length, and these have {lengths or 'none'}",
                hint="Give arrays alone, of rows of equal length.",
            )
        length = int(next(iter(lengths.values())) or 0)
        if length < self.n:
            raise UsageError(f"the arrays have {length} rows, and a window takes {self.n}")
        schema = found.schema
        for name in lengths:
            schema = with_shape(schema, name, (self.n, *schema[name].shape[1:]))
        origins = np.array(starts(length, self.n, self.stride), np.int64)[:, None]
        return cut_listing(replace(found, schema=schema), [origins] * len(found), COLUMNS)

    def _origins(self, key: str) -> Ints | BadItem:
        try:
            length = npy.open_header(Path(str(self.file(key)))).shape[0]
        except (npy.BadNpy, OSError) as error:
            return _bad(key, error)
        if length < self.n:
            return BadItem(key, f"has {length} rows, and a window takes {self.n}")
        return np.array(starts(length, self.n, self.stride), np.int64)[:, None]

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        if any(self.source.file(whole_of(key)) is None for key in keys[:1]):
            yield from self._of_rows(keys)
            return
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

    def _of_rows(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        runs = list(by_parent(keys))
        for (_, pieces), sample in zip(runs, self.source.samples([parent for parent, _ in runs]), strict=True):
            if isinstance(sample, BadItem):
                yield from as_bad(pieces, sample)
                continue
            for key in pieces:
                (start,) = origin_of(key)
                cut = {name: values[start : start + self.n] for name, values in sample.payloads.items()}
                yield Sample(cut, _UNKNOWN)

    def file(self, key: str) -> Path | None:
        return self.source.file(whole_of(key))


def _bad(key: str, error: npy.BadNpy | OSError) -> BadItem:
    if isinstance(error, npy.BadNpy):
        return BadItem(key, str(error), error.refused)
    return BadItem(key, unreadable(error))
