"""The one reader: rows -> bytes. It knows places only: plan which ranges of which shards, then read them positionally.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> manifest = streamkit.open(out)
>>> reader = Reader(out, manifest, manifest.splits["val"], list(manifest.schema))
>>> memory = np.empty(2000, np.uint8)
>>> reader.read("image", np.array([7]), memory, np.array([0]))
>>> bytes(memory[6:10])
b'JFIF'
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamkit import native
from streamkit.blocks import Blocks
from streamkit.chunks import Slabs
from streamkit.codecs.pillow import BadImage
from streamkit.errors import DamagedError, RefusedError, StreamkitError
from streamkit.guard import mend
from streamkit.index import ADOPT_AGAIN, Index
from streamkit.kept import Stretches
from streamkit.loose import LooseFiles
from streamkit.manifest import Manifest
from streamkit.mapped import Maps
from streamkit.native import BadRange
from streamkit.places import check, load_chunks
from streamkit.readplan import ReadPlan
from streamkit.remote.address import Address, place
from streamkit.schema import Field
from streamkit.splits import Split
from streamkit.storage import Files, Part, available_memory
from streamkit.stretches import n_together
from streamkit.tables import index_columns, range_columns

if TYPE_CHECKING:
    from streamkit.far import FarFiles

Ints = npt.NDArray[np.int64]


class Reader:
    """Reads payload bytes and columns of one split. Safe in threads; pickles small.

    Args:
        root: the dataset's folder.
        manifest: its manifest.
        split: the split to read.
        fields: payload and column fields that will be asked for; only their index columns are loaded.
        extras: further index columns (width, height, orientation, ...), those there are.
        kept_nbytes: decoded chunks, or stretches from a server, kept [B].
        map_limit_nbytes: shards are mapped if all of the split's are smaller [B]; None: also larger ones, as long as they are
            found in the page cache.
        lenient: shards may be missing or of another size; rows whose bytes are not there are damaged when they are read.
        shards_root: the folder that the shards lie in; `root` if None.
        blocks: where bytes of shards on a server are kept.
        stretches_nbytes: see `keep_stretches` [B].

    Both folders may be addresses on a server; shards there are looked at when they are read.

    Raises:
        DamagedError: index or shard missing, cut, or not what the manifest says.
        RemoteError: a server that does not give them.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Address,
        manifest: Manifest,
        split: Split,
        fields: Sequence[Field],
        extras: Sequence[str] = (),
        kept_nbytes: int = 256 << 20,
        map_limit_nbytes: int | None = None,
        lenient: bool = False,
        shards_root: str | os.PathLike[str] | Address | None = None,
        blocks: Blocks | None = None,
        stretches_nbytes: int = 0,
    ) -> None:
        self.root, self.manifest, self.split = place(root), manifest, split
        self.fields, self.extras = tuple(fields), tuple(extras)
        where = self.root if shards_root is None else place(shards_root)
        self.files = self._files(where, blocks)
        self.index = Index(self.root / split.index, split.samples, split.index_digest, index_columns(manifest.schema))
        self.shard_starts = np.cumsum([0] + [s.samples for s in split.shards])
        self.lenient, self._blocks = lenient, blocks
        self._load()
        sizes_fit = self._check_sizes()
        check(self.fields, split, self.columns, self.chunk_table, self.index.path, loose=self.loose is not None)
        self._maps = self._map(map_limit_nbytes) if sizes_fit else None  # a range may leave a file that was cut
        self._map_limit_nbytes = map_limit_nbytes
        # A circle would keep descriptors until it is collected.
        self._slabs = Slabs(weakref.proxy(self), kept_nbytes)
        self.kept_nbytes = kept_nbytes
        self._stretches: Stretches | None = None
        if stretches_nbytes:
            self.keep_stretches(stretches_nbytes)

    def _files(self, where: Path | Address, blocks: Blocks | None) -> Files | FarFiles:
        """The shards that lie in a folder, of this machine or on a server."""
        if isinstance(where, Path):
            return Files(where, self._again)
        from streamkit.cached import far_files  # here, as what talks to servers takes 25 ms to import

        return far_files(where, self._again, self.root, self.manifest.dataset_id, blocks, self.split.shards)

    @property
    def is_far(self) -> bool:
        """Whether the shards lie on a server."""
        return not isinstance(self.files, Files)

    @property
    def n_together(self) -> Ints | None:
        """Rows of each shard that should come in one request, where requests cost more than their bytes."""
        return n_together(self.manifest, self.split) if self.is_far and self._blocks is None else None

    def keep_stretches(self, nbytes: int) -> None:
        """From now on bring runs of `n_together` rows and keep so many bytes of them: near rows are wanted soon."""
        if (n := self.n_together) is not None:
            stretches = Stretches(weakref.proxy(self), n, nbytes)
            self._stretches = stretches if stretches.bring_any() else None

    def share(self, kept_nbytes: int) -> None:
        """Be one of several that share a budget: keep stretches of so many bytes only, or none where they are too few for
        the windows that the order was made for."""
        stretches = self._stretches
        if stretches is not None and kept_nbytes < stretches.budget:
            stretches.shrink(kept_nbytes)
            if kept_nbytes < self.kept_nbytes // 2:
                self._stretches = None

    @property
    def stretches_nbytes(self) -> int:
        """What stretches take at most [B]."""
        stretches = self._stretches
        return 0 if stretches is None else stretches.budget

    def expect(self, rows: Ints) -> None:
        """These rows will be wanted soon: what can be brought ahead of that is on its way when this returns."""
        if (stretches := self._stretches) is not None:
            stretches.expect(rows)

    def _load(self) -> None:
        names = [n for f in self.fields if f.is_payload for n in range_columns(f)]
        names += [f.name for f in self.fields if not f.is_payload]
        names += [n for n in self.extras if n in self.index and n not in names]
        self.columns = self.index.load(names)
        self.loose = LooseFiles(self.files.root, self.index) if self.manifest.format == "folder" else None
        for field in self.fields:
            lengths = self.columns.get(f"{field.name}.length")
            if lengths is not None and len(lengths) and (lengths == lengths[0]).all():
                # Equal lengths need no memory.
                self.columns[f"{field.name}.length"] = np.broadcast_to(lengths[0], lengths.shape)
        chunked = any(f.chunk_rows is not None for f in self.fields)
        self.chunk_table = load_chunks(self.root, self.split) if chunked else {}

    def _check_sizes(self) -> bool:
        """True when every shard has the size that the manifest says; else DamagedError, unless lenient."""
        fits = True
        later = self.loose is not None or self.is_far  # a million files are looked at when read
        for shard in () if later else self.split.shards:
            try:
                size = self.files.size(shard.file)
                if size != shard.nbytes:
                    raise DamagedError(
                        f"the file has {size} bytes, the manifest says {shard.nbytes}",
                        path=self.files.root / shard.file,
                        shard=shard.file,
                        hint=self._again,
                    )
            except DamagedError:
                fits = False
                if not self.lenient:
                    raise
        return fits

    def _map(self, limit_nbytes: int | None) -> Maps | None:
        """Shards are mapped where they may be; more of them than the page cache may hold are watched."""
        files = self.files
        if not isinstance(files, Files) or self.loose is not None or not native.available():
            return None
        if limit_nbytes is not None and self.split.nbytes > limit_nbytes:
            return None
        watched = self.split.nbytes > available_memory() // 2
        try:
            return Maps(files, [shard.file for shard in self.split.shards], watched)
        except OSError:
            return None  # no address space left (ulimit -v): positional reads need none

    def lengths(self, name: str, rows: Ints) -> Ints:
        """Stored bytes of a payload field's rows [B]."""
        return np.asarray(self.columns[f"{name}.length"][rows], np.int64)

    def read(self, name: str, rows: Ints, memory: npt.NDArray[np.uint8], places: Ints) -> None:
        """Read the stored bytes of an addressed payload field.

        Args:
            name: the field.
            rows: rows of the index, int64 (n,).
            memory: where the bytes go, uint8, contiguous.
            places: where each row's bytes begin in `memory` [B], int64 (n,).

        Raises:
            DamagedError: bytes that are not what the index says; names shard, record and key.
        """
        if (stretches := self._stretches) is not None:
            left = stretches.read(name, rows, memory, places)
            if not len(left):
                return
            rows, places = rows[left], places[left]
        offsets, crcs = self.columns[f"{name}.offset"][rows], self.columns[f"{name}.crc32c"][rows]
        lengths = self.lengths(name, rows)
        maps = None if self._maps is None or self._maps.skips() else self._maps
        try:
            if self.loose is not None:
                self.loose.read(rows, lengths, memory, places, crcs)
                return
            if maps is not None:
                maps.read(self._shard_of(rows), offsets, lengths, memory, places, crcs)
                return
            plan = ReadPlan.of(rows, self.shard_starts, offsets).shards
            shards = self.split.shards
            parts = [Part(shards[i].file, offsets[s], lengths[s], places[s], crcs[s]) for i, s in plan]
            self.files.read_parts(parts, memory)
        except BadRange as bad:
            in_order = maps is None and self.loose is None  # the number counts in the plan's order
            i = int(np.concatenate([slots for _, slots in plan])[bad.i]) if in_order else bad.i
            raise self.damaged(int(rows[i]), bad.reason) from None

    def _shard_of(self, rows: Ints) -> Ints:
        if len(self.split.shards) == 1:
            return np.zeros(len(rows), np.int64)
        return np.searchsorted(self.shard_starts, rows, side="right") - 1

    def damaged(self, row: int, reason: str) -> DamagedError:
        """The error for one row's bytes."""
        return DamagedError(reason, **self._place(row), hint=self._again)

    def bad_picture(self, row: int, error: BadImage) -> DamagedError | RefusedError:
        """The error for a picture that is none, or is larger than allowed."""
        if not error.refused:
            return self.damaged(row, str(error))
        return RefusedError(str(error), **self._place(row), hint="If you trust it, pass max_pixels= (--max-pixels).")

    def _place(self, row: int) -> dict[str, Any]:
        """What an error about a row names."""
        if self.loose is not None:
            return {"path": self.loose.path(row), "record": row, "key": self.index.key(row)}
        shard = int(np.searchsorted(self.shard_starts, row, side="right") - 1)
        file, record = self.split.shards[shard].file, row - int(self.shard_starts[shard])
        return {"path": self.files.root / file, "shard": file, "record": record, "key": self.index.key(row)}

    def row_of(self, error: StreamkitError) -> int | None:
        """The row that an error is about, when it is about one."""
        if self.loose is not None:
            return error.record
        files = [shard.file for shard in self.split.shards]
        if error.record is None or error.shard not in files:
            return None
        return int(self.shard_starts[files.index(error.shard)]) + error.record

    @property
    def _again(self) -> str:
        """What to do about a shard that is not what it was."""
        return mend(self.root) if self.manifest.root is None else ADOPT_AGAIN

    def read_chunked(self, field: Field, rows: Ints, out: npt.NDArray[Any]) -> None:
        """Read a chunked payload field: `out[i]` is filled with the decoded values of `rows[i]`."""
        self._slabs.read(field, rows, out)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "root": self.root,
            "manifest": self.manifest,
            "split": self.split,
            "fields": self.fields,
            "extras": self.extras,
            "kept_nbytes": self.kept_nbytes,
            "map_limit_nbytes": self._map_limit_nbytes,
            "lenient": self.lenient,
            "shards_root": self.files.root,
            "blocks": self._blocks,
            "stretches_nbytes": self.stretches_nbytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
