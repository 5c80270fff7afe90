"""Files of a folder on a server, read as `storage.Files` reads those of this machine: ranges, each checked by its sum.

What does not have its crc32c is asked for again. Bytes that come back wrong in the same way every time are how the server
holds them: that is damage, which names its record. Bytes that are wrong in another way each time, and whatever else is
no answer, end as RemoteError when patience ends.

    >>> from streamkit.remote.sending import write
    >>> write(Address("memory://far/a.bin"), b"0123456789")
    >>> memory, one = np.empty(2, np.uint8), np.ones(1, np.int64)
    >>> FarFiles(Address("memory://far")).read("a.bin", 4 * one, 2 * one, memory, 0 * one, None)
    >>> bytes(memory)
    b'45'
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from streamkit import strict
from streamkit.errors import DamagedError, RefusedError, RemoteError
from streamkit.guard import mend
from streamkit.manifest import FILE_NAME, MAX_NBYTES
from streamkit.native import BadRange
from streamkit.remote import patience
from streamkit.remote.address import Address
from streamkit.remote.failures import Missing
from streamkit.remote.ranges import Wanted, begin_ranges, read_ranges
from streamkit.remote.transfer import read, size
from streamkit.storage import Part

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_SAME = 3  # equal wrong answers after which the server is believed to hold just that


class FarFiles:
    """The files of one folder on a server. Safe in threads and after a fork; pickle keeps the address only.

    Args:
        root: the folder.
        missing: what an error about a file that is not there advises; None: to verify the folder.
        dataset: (folder of the manifest, dataset_id that it had when it was opened): whether the dataset was replaced is
            looked up when bytes are missing or wrong.
    """

    def __init__(self, root: Address, missing: str | None = None, dataset: tuple[Address, str] | None = None) -> None:
        self.root, self.missing, self.dataset = root, missing, dataset

    def read(
        self, name: str, offsets: Ints, lengths: Ints, memory: Bytes, places: Ints, crcs: npt.NDArray[np.uint32] | None
    ) -> None:
        """As `storage.Files.read`."""
        self.read_parts([Part(name, offsets, lengths, places, crcs)], memory)

    def read_parts(self, parts: Sequence[Part], memory: Bytes) -> None:
        """Read ranges of several files at once; `BadRange.i` counts over all parts.

        Raises:
            BadRange: the server holds other bytes than the index says, or has no such file.
            RemoteError: no right answer until patience ended, or the dataset was replaced.
        """
        self._bring(parts, memory)
        wrong = _wrong(parts, memory)
        if wrong:
            self._again(parts, wrong, memory)

    def _bring(self, parts: Sequence[Part], memory: Bytes, fresh: bool = False) -> None:
        """Bring bytes as they are; `fresh`: from the server itself."""
        try:
            read_ranges([self._wanted(part, memory) for part in parts])
        except Missing as missing:
            self._check_replaced()
            gone = next(i for i, part in enumerate(parts) if str(self.root / part.name) == missing.args[0])
            raise BadRange(sum(len(part.offsets) for part in parts[:gone]), "this shard is missing") from None

    def begin(self, parts: Iterable[tuple[Part, Bytes]], ended: Callable[[int, BaseException | None], None]) -> None:
        """Begin to bring bytes as they are, each part's into memory of its own; see `begin_ranges`."""
        begin_ranges([self._wanted(part, memory) for part, memory in parts], ended)

    def _wanted(self, part: Part, memory: Bytes) -> Wanted:
        return Wanted(self.root / part.name, part.offsets, part.lengths, part.places, memory)

    def _again(self, parts: Sequence[Part], wrong: dict[int, int], memory: Bytes) -> None:
        """Ask for wrong ranges until they are right, or wrong in the same way several times."""
        bounds, started, n_failed = patience.PATIENCE, time.monotonic(), 1
        n_same = dict.fromkeys(wrong, 1)
        while wrong:
            if max(n_same.values()) >= _SAME:
                self._check_replaced()
                i = min(i for i, n in n_same.items() if n >= _SAME)
                raise BadRange(i, f"crc32c is {wrong[i]:08x}, the index says {_sum_of(parts, i):08x}")
            wait_s = bounds.wait_s(n_failed, random.random())
            if n_failed >= bounds.n_tries or time.monotonic() - started + wait_s > bounds.total_s:
                self._check_replaced()
                part = parts[_locate(parts, min(wrong))[0]]
                raise RemoteError(
                    f"the bytes that came were wrong in another way each time; tried {n_failed} times",
                    path=self.root / part.name,
                    hint="Check the network and the server, then try again.",
                )
            time.sleep(wait_s)
            some = _only(parts, set(wrong))
            self._bring(
                some, memory, fresh=True
            )  # whichever file is missing now, was there before: replaced, or about to be
            found = _wrong(parts, memory, set(wrong))
            n_same = {i: n_same[i] + 1 if wrong[i] == crc else 1 for i, crc in found.items()}
            wrong, n_failed = found, n_failed + 1

    def _check_replaced(self) -> None:
        """Raise RemoteError when another dataset lies there now than the one that was opened."""
        if self.dataset is None:
            return
        folder, opened = self.dataset
        try:
            found = strict.parse(read(folder / FILE_NAME, MAX_NBYTES)).get("dataset_id")
        except Missing:
            found = None
        except (ValueError, AttributeError, RefusedError):
            return  # no manifest to compare with: what was wrong before is the error
        if found != opened:
            now = "it has no manifest now" if found is None else f"it is {str(found)[:16]} now"
            raise RemoteError(
                f"the dataset has changed since it was opened: its dataset_id was {opened[:16]}, {now}",
                path=folder,
                hint="Open it again.",
            )

    def size(self, name: str) -> int:
        """Size of a file [B]. Raises DamagedError when it is missing; RemoteError."""
        try:
            return size(self.root / name)
        except Missing:
            address = self.root / name
            hint = self.missing or mend(self.root)
            raise DamagedError("this shard is missing", path=address, shard=name, hint=hint) from None

    def close(self) -> None:
        """Nothing is held."""

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "missing": self.missing, "dataset": self.dataset}


def _wrong(parts: Sequence[Part], memory: Bytes, only: set[int] | None = None) -> dict[int, int]:
    """Number of each range whose sum is not the expected one -> the sum found."""
    out, first, view = {}, 0, memoryview(memory)  # type: ignore[arg-type]
    for part in parts:
        if part.crcs is not None:
            ranges = zip(part.places.tolist(), part.lengths.tolist(), part.crcs.tolist(), strict=True)
            for i, (place, length, expected) in enumerate(ranges, first):
                if (only is None or i in only) and (found := crc32c(view[place : place + length])) != expected:
                    out[i] = found
        first += len(part.offsets)
    return out


def _locate(parts: Sequence[Part], i: int) -> tuple[int, int]:
    """Range number `i` of all: its part, and its number there."""
    for number, part in enumerate(parts):
        if i < len(part.offsets):
            return number, i
        i -= len(part.offsets)
    raise IndexError(i)


def _sum_of(parts: Sequence[Part], i: int) -> int:
    number, inside = _locate(parts, i)
    crcs = parts[number].crcs
    return 0 if crcs is None else int(crcs[inside])


def _only(parts: Sequence[Part], numbers: set[int]) -> list[Part]:
    """The parts cut down to these ranges, each asked for by itself."""
    out = []
    for i in sorted(numbers):
        number, inside = _locate(parts, i)
        name, offsets, lengths, places, _ = parts[number]
        one = slice(inside, inside + 1)
        out.append(Part(name, offsets[one], lengths[one], places[one], None))
    return out
