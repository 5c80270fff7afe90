"""Files of a folder of pictures that was adopted as it is: each is looked at where it lies.

>>> import tempfile, streamkit
>>> out = Path(tempfile.mkdtemp(), "out")
>>> _ = streamkit.index("sample_data/images", out=out)
>>> manifest = streamkit.open(out)
>>> list(LooseCheck(out, Path("sample_data/images"), manifest, manifest.split("train")).sizes())
[]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from streamkit.errors import RefusedError
from streamkit.health.bring import size_of
from streamkit.health.report import Problem
from streamkit.index import Index
from streamkit.loose import LooseFiles
from streamkit.manifest import Manifest
from streamkit.native import BadRange
from streamkit.remote.address import Address
from streamkit.splits import Split

_ASKED_AT_ONCE = 16  # of a server that is asked for sizes


class LooseCheck:
    """A check of one split.

    Args:
        root: the dataset's folder.
        place: the folder of the pictures.
        manifest: the manifest.
        split: the split, whose index is whole.
    """

    def __init__(self, root: Path | Address, place: Path | Address, manifest: Manifest, split: Split) -> None:
        (field,) = manifest.schema.payloads
        self.n_rows = split.samples
        self.index = Index(root / split.index, split.samples)
        self.files = LooseFiles(place, self.index)
        table = self.index.load([f"{field.name}.length", f"{field.name}.crc32c"])
        self.lengths, self.crcs = table[f"{field.name}.length"].astype(np.int64), table[f"{field.name}.crc32c"]

    def sizes(self) -> Iterator[Problem]:
        """Files that are missing or of another size; none is opened."""
        with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="streamkit") as pool:
            for found in pool.map(self._size, range(self.n_rows)):
                yield from found

    def _size(self, row: int) -> list[Problem]:
        try:
            nbytes = size_of(self.files.root, self.files.name(row))
        except FileNotFoundError:
            return [self._problem(row, "is missing")]
        except RefusedError as error:
            return [self._problem(row, error.what, refused=True)]
        if nbytes == self.lengths[row]:
            return []
        return [self._problem(row, f"the file has {nbytes} bytes, the index says {self.lengths[row]}")]

    def contents(self, done: Callable[[int], None]) -> Iterator[Problem]:
        """Files that are not what they were, each read whole. `done` is told of each file's size [B]."""
        for row in range(self.n_rows):
            one, memory = slice(row, row + 1), np.empty(self.lengths[row], np.uint8)
            try:
                self.files.read(np.array([row]), self.lengths[one], memory, np.zeros(1, np.int64), self.crcs[one])
            except BadRange as bad:
                yield self._problem(row, bad.reason)
            except RefusedError as error:
                yield self._problem(row, error.what, refused=True)
            done(int(self.lengths[row]))

    def _problem(self, row: int, reason: str, refused: bool = False) -> Problem:
        key = self.index.key(row)
        return Problem(key, reason, record=row, key=key, refused=refused)
