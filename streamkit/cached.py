"""Files on a server by way of blocks on local disk: what one process brought, no other brings again.

A range is taken from the blocks that it lies in. Blocks that are missing are brought first, each by one process while the
others wait for it. What does not have its sum then is asked of the server itself, and its blocks are dropped.

    >>> import tempfile
    >>> from streamkit.remote.sending import write
    >>> write(Address("memory://cached/a.bin"), b"0123456789")
    >>> blocks = Blocks(tempfile.mkdtemp())
    >>> files = CachedFiles(Address("memory://cached"), None, None, blocks, {"a.bin": ("ab" * 32, 10)})
    >>> memory, one = np.empty(2, np.uint8), np.ones(1, np.int64)
    >>> files.read("a.bin", 4 * one, 2 * one, memory, 0 * one, None)
    >>> bytes(memory), blocks.has(BlockName("ab" * 32, 0))
    (b'45', True)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamkit.blocks import BLOCK_NBYTES, BlockName, Blocks, Claim, wait_until
from streamkit.far import Bytes, FarFiles
from streamkit.remote import patience
from streamkit.remote.address import Address
from streamkit.splits import Shard
from streamkit.storage import Part

_AT_ONCE = 8  # blocks of one call that are in memory together


class _Piece(NamedTuple):
    """Part of a range that lies in one block: where in it, how long, and where it goes in memory [B]."""

    start: int
    length: int
    place: int


class CachedFiles(FarFiles):
    """As `FarFiles`, by way of blocks.

    Args:
        root, missing, dataset: as `FarFiles`.
        blocks: where they are kept.
        files: file name -> (BLAKE3 digest (hex), size [B]).
    """

    def __init__(
        self,
        root: Address,
        missing: str | None,
        dataset: tuple[Address, str] | None,
        blocks: Blocks,
        files: Mapping[str, tuple[str, int]],
    ) -> None:
        super().__init__(root, missing, dataset)
        self.blocks, self.files = blocks, files

    def _bring(self, parts: Sequence[Part], memory: Bytes, fresh: bool = False) -> None:
        wanted = self._pieces(parts)
        if fresh:
            for name in wanted:
                self.blocks.drop(name)
        if fresh or not self.blocks.usable:
            super()._bring(parts, memory)
            return
        names = [name for name, pieces in wanted.items() if not self._take(name, pieces, memory)]
        file_of = {self.files[part.name][0]: part.name for part in parts}
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            self._fill(some, file_of)
            for name in some:
                if not self._take(name, wanted[name], memory):  # removed again, or the disk is full
                    super()._bring([_part(file_of[name.digest], name.number, wanted[name])], memory)

    def _pieces(self, parts: Sequence[Part]) -> dict[BlockName, list[_Piece]]:
        """What is wanted of each block."""
        out: dict[BlockName, list[_Piece]] = {}
        for part in parts:
            digest = self.files[part.name][0]
            ranges = zip(part.offsets.tolist(), part.lengths.tolist(), part.places.tolist(), strict=True)
            for offset, length, place in ranges:
                done = 0
                while done < length:
                    number, start = divmod(offset + done, BLOCK_NBYTES)
                    n = min(length - done, BLOCK_NBYTES - start)
                    out.setdefault(BlockName(digest, number), []).append(_Piece(start, n, place + done))
                    done += n
        return out

    def _take(self, name: BlockName, pieces: Sequence[_Piece], memory: Bytes) -> bool:
        """Copy pieces out of a block that is there; False where it is not, or is shorter than it should be."""
        view = memoryview(memory)  # type: ignore[arg-type]
        try:
            with self.blocks.open(name) as file:
                return all(os.preadv(file, [view[p.place : p.place + p.length]], p.start) == p.length for p in pieces)
        except OSError:
            return False

    def _fill(self, names: Sequence[BlockName], file_of: Mapping[str, str]) -> None:
        """Bring those blocks that are not there, or wait for whoever brings them."""
        missing = [name for name in names if not self.blocks.has(name)]
        if not missing:
            return
        theirs: list[BlockName] = []
        with contextlib.ExitStack() as stack:
            claims = [stack.enter_context(self.blocks.claim(name)) for name in missing]
            self._fetch([claim for claim in claims if claim.mine], file_of)
            theirs = [claim.name for claim in claims if not claim.mine]
        for name in theirs:  # nothing is held meanwhile, so nobody can wait for us
            with self.blocks.claim(name) as claim:
                waits = self.blocks.usable and not claim.mine
                if waits:
                    wait_until(lambda c=claim: self.blocks.has(c.name) or c.take(), patience.PATIENCE.total_s)
                if claim.mine:
                    self._fetch([claim], file_of)

    def _fetch(self, claims: Sequence[Claim], file_of: Mapping[str, str]) -> None:
        parts, at = [], 0
        for claim in claims:
            file = file_of[claim.name.digest]
            start = claim.name.number * BLOCK_NBYTES
            n = min(BLOCK_NBYTES, self.files[file][1] - start)
            parts.append(_part(file, claim.name.number, [_Piece(0, n, at)]))
            at += n
        memory = np.empty(at, np.uint8)
        super()._bring(parts, memory)
        view = memoryview(memory)  # type: ignore[arg-type]
        for claim, part in zip(claims, parts, strict=True):
            place = int(part.places[0])
            claim.fill(view[place : place + int(part.lengths[0])])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"blocks": self.blocks, "files": self.files}


def _part(file: str, number: int, pieces: Sequence[_Piece]) -> Part:
    """Pieces of a block as ranges of its file, without sums."""
    starts, lengths, places = np.array(pieces, np.int64).T
    return Part(file, starts + number * BLOCK_NBYTES, lengths, places, None)


def far_files(
    where: Address,
    missing: str,
    folder: Path | Address,
    dataset_id: str,
    blocks: Blocks | None,
    shards: Sequence[Shard],
) -> FarFiles:
    """The files of a dataset's shards on a server.

    Args:
        where: the folder that they lie in.
        missing: what an error about a missing one advises.
        folder: the dataset's own.
        dataset_id: its manifest's.
        blocks: keep what comes from a server there.
        shards: all that lie there.
    """
    dataset = (folder, dataset_id) if isinstance(folder, Address) else None
    if blocks is not None:
        return CachedFiles(where, missing, dataset, blocks, {s.file: (s.digest, s.nbytes) for s in shards})
    return FarFiles(where, missing, dataset)
