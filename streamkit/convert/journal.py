"""The journal of a conversion under way: a lock, the plan's identity, and one part for each finished shard.

    OUT/.streamkit/lock                 held by the converter at work, see `Lock`
    OUT/.streamkit/plan.json            options: continuing with others is refused
    OUT/.streamkit/source.json          where the source lies and what it holds: continuing with another is refused
    OUT/.streamkit/SHARD.part           the shard's index rows (Arrow), written after the shard itself

A shard counts as finished when its part is there, names the shard's size, and was made of the same items; so killing a
converter anywhere loses the shard under way at most, and after mending the source only shards whose items changed are
written again. The folder goes when the manifest is published.

    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with Journal(folder, {"seed": 0}) as journal:
    ...     journal.finished("train-00000.tfrecord")
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamkit.atomic import replacing, write_atomic
from streamkit.convert.lock import Lock
from streamkit.convert.moments import summed
from streamkit.errors import DamagedError, UsageError
from streamkit.index import column, strings
from streamkit.manifest import FILE_NAME, WORK_FOLDER, Manifest
from streamkit.schema import Schema
from streamkit.shards.record import Places
from streamkit.sources.listing import BadItem, Ragged, values_bytes
from streamkit.splits import Shard, Split
from streamkit.strict import canonical


@dataclass(frozen=True)
class Part:
    """What is known of a finished shard besides its index rows.

    Attributes:
        shard: the shard.
        facts: facts of its items, see `summarise`.
        bad: items left out.
        items: digest of what it was made of, see `items_digest`.
        dropped: copies of other shards' samples were left out, which only holds while those are there.
    """

    shard: Shard
    facts: Mapping[str, Any]
    bad: tuple[BadItem, ...]
    items: str
    dropped: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: bytes) -> Part:
        data = json.loads(text)
        bad = tuple(BadItem(*item) for item in data["bad"])
        return cls(Shard(**data["shard"]), data["facts"], bad, data["items"], data["dropped"])


class Journal:
    """Owns the work folder and its lock.

    Args:
        out: the folder that is written to.
        identity: options; those of what lies there must be the same.
        anew: drop what a conversion with other options or of another source left there.
        source: where the source lies, and its fingerprint. One of them may have changed: a source may be mended, or moved.

    Raises (on entry):
        BusyError: another converter holds the lock.
        UsageError: the work folder belongs to a conversion with other options or of another source, and not `anew`.
    """

    def __init__(
        self, out: Path, identity: Mapping[str, Any], anew: bool = False, source: Mapping[str, str] | None = None
    ) -> None:
        self.out, self.folder, self.identity, self.anew = out, out / WORK_FOLDER, identity, anew
        self.source = source
        self.before = ""  # who held the lock and never finished

    def __enter__(self) -> Journal:
        self._lock = Lock(self.out).__enter__()
        self.before = self._lock.before
        try:
            self._check_identity()
            self._check_source()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__()

    def _check_identity(self) -> None:
        plan = self.folder / "plan.json"
        text = canonical(self.identity)
        if plan.exists() and (old_text := plan.read_text()) != text:
            if self.anew:
                self._drop()
                write_atomic(plan, text.encode())
                return
            old = json.loads(old_text)
            differs = [
                f"{name} was {old.get(name)!r}, is {value!r}"
                for name, value in json.loads(text).items()
                if old.get(name) != value
            ]
            raise UsageError(
                f"an unfinished conversion with other settings lies here: {'; '.join(differs)}",
                path=self.out,
                hint="Run it with the same settings, or pass --overwrite.",
            )
        if not plan.exists():
            write_atomic(plan, text.encode())

    def _check_source(self) -> None:
        place = self.folder / "source.json"
        if self.source is None:
            return
        there = json.loads(place.read_text()) if place.exists() else self.source
        if all(there[name] != value for name, value in self.source.items()):
            if not self.anew:
                raise UsageError(
                    f"an unfinished conversion of another source lies here: of {there['path']}",
                    path=self.out,
                    hint=f"Finish that --append first, or delete {self.folder} to give it up."
                    if "append_to" in self.identity
                    else "Finish that one first, choose another output, or pass --overwrite.",
                )
            self._drop()
        write_atomic(place, canonical(self.source).encode())

    def _drop(self) -> None:
        """Delete the shards that another conversion began, those of the dataset itself excepted."""
        splits: Mapping[str, Split] = {}
        if (self.out / FILE_NAME).exists():
            try:
                splits = Manifest.load(self.out).splits
            except DamagedError:  # nobody knows which they are
                return
        self.remove_strays({shard.file for split in splits.values() for shard in split.shards})

    def finished(self, file: str) -> Part | None:
        """The part of a shard if it is finished."""
        path = self._part(file)
        if not path.exists() or not (self.out / file).exists():
            return None
        part = Part.parse(read_part(path)[0].schema.metadata[b"streamkit"])
        return part if (self.out / file).stat().st_size == part.shard.nbytes else None

    def tables(self, file: str) -> tuple[pa.Table, pa.Table | None]:
        """Index rows and chunk rows of a finished shard."""
        return read_part(self._part(file))

    def _part(self, file: str) -> Path:
        return self.folder / f"{file}.part"

    def remove_strays(self, files: set[str]) -> None:
        """Delete what killed converters left: temporary files, and shards and parts that are not among `files`."""
        for path in [*self.out.iterdir(), *self.folder.iterdir()]:
            shard = path.name.removesuffix(".part")
            if _TEMPORARY.fullmatch(path.name) or (_SHARD.fullmatch(shard) and shard not in files):
                path.unlink()

    def is_here(self) -> bool:
        """False when the folder was replaced."""
        return self._lock.is_here()

    def remove(self, out: Path | None = None) -> None:
        """Delete the work folder, which lies in `out` now if that is given: the dataset is published."""
        self._lock.remove(out)


_TEMPORARY = re.compile(r"\..*\.tmp-[0-9a-f]{12}")
_SHARD = re.compile(r"[A-Za-z][A-Za-z0-9_]*-\d{5,}\.(tfrecord|h5)")


def items_digest(
    keys: Sequence[str],
    sizes: npt.NDArray[Any],
    columns: Mapping[str, npt.NDArray[Any] | Ragged],
    schema: Schema,
) -> str:
    """BLAKE3 digest (hex) of what a shard is made of: its items, their columns and arrays, and how they are stored."""
    hasher = blake3.blake3(canonical(schema.to_json()).encode())
    hasher.update("\0".join(keys).encode())
    hasher.update(np.ascontiguousarray(sizes).tobytes())
    for _, values in sorted(columns.items()):
        hasher.update(values_bytes(values))
    return hasher.hexdigest()


def write_part(folder: Path, part: Part, index: pa.Table, chunks: pa.Table | None) -> None:
    """Record a finished shard. Called by workers, after the shard itself lies under its name."""
    index = index.replace_schema_metadata({"streamkit": part.to_json()})
    with replacing(folder / f"{part.shard.file}.part") as path, pa.OSFile(str(path), "wb") as sink:
        for table in (index, chunks):
            if table is not None:
                with pa.ipc.new_stream(sink, table.schema) as stream:
                    stream.write_table(table)


def read_part(path: Path) -> tuple[pa.Table, pa.Table | None]:
    """Index rows and chunk rows that `write_part` wrote."""
    with pa.OSFile(str(path), "rb") as source:
        index = pa.ipc.open_stream(source).read_all()
        chunks = pa.ipc.open_stream(source).read_all() if source.tell() < source.size() else None
    return index, chunks


def chunk_table(places: Places, file: str) -> pa.Table | None:
    """A shard's rows of the chunk table."""
    if places.chunks is None:
        return None
    n = len(places.chunks["offset"])
    return pa.table({"shard": strings([file] * n), **{k: column(v) for k, v in places.chunks.items()}})


def summarise(facts: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Few facts of many items, for the schema and the statistics: distinct values where few, ranges of sizes."""
    out: dict[str, Any] = {}
    for name in facts:
        if name in ("width", "height", "channels", "orientation") or name.endswith("format"):
            values = sorted(set(facts[name]))
            out[name] = values if len(values) <= 2 or name not in ("width", "height") else [values[0], values[-1]]
    if "width" in facts:
        out["pixels"] = int(np.multiply(facts["width"], facts["height"]).sum())
    return out | {"sums": summed(facts)}
