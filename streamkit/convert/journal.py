"""The journal of a conversion under way: a lock, the plan's identity, and one part for each finished shard.

    OUT/.streamkit/lock                 held (flock) by the converter at work; pid, host and start time inside
    OUT/.streamkit/plan.json            options and source fingerprint: continuing with others is refused
    OUT/.streamkit/SHARD.part           the shard's index rows (Arrow), written after the shard itself

A shard counts as finished when its part is there and names the shard's size; so killing a converter anywhere loses the
shard under way at most. The folder goes when the manifest is published.

    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with Journal(folder, {"seed": 0}) as journal:
    ...     journal.finished(["train-00000.tfrecord"])
    {}
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamkit.errors import BusyError, UsageError
from streamkit.index import column, strings
from streamkit.manifest import WORK_FOLDER, Shard, canonical
from streamkit.shards.record import Places
from streamkit.sources.listing import BadItem
from streamkit.storage import replacing, write_atomic


@dataclass(frozen=True)
class Part:
    """What is known of a finished shard besides its index rows: the shard, facts of its items, items left out."""

    shard: Shard
    facts: Mapping[str, Any]
    bad: tuple[BadItem, ...]

    def to_json(self) -> str:
        return json.dumps({"shard": asdict(self.shard), "facts": self.facts, "bad": self.bad})

    @classmethod
    def parse(cls, text: bytes) -> Part:
        data = json.loads(text)
        return cls(Shard(**data["shard"]), data["facts"], tuple(BadItem(*item) for item in data["bad"]))


class Journal:
    """Owns the work folder and its lock.

    Raises (on entry):
        BusyError: another converter holds the lock.
        UsageError: the work folder belongs to a conversion with other options or another source.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out, self.folder, self.identity = out, out / WORK_FOLDER, identity

    def __enter__(self) -> Journal:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise BusyError(f"{holder} is converting into this folder", path=self.out, hint="Wait for it.") from None
        self._lock.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
        self._lock.flush()
        self._check_identity()
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.close()

    def _check_identity(self) -> None:
        plan = self.folder / "plan.json"
        text = canonical(self.identity)
        if plan.exists() and (old_text := plan.read_text()) != text:
            old = json.loads(old_text)
            differs = [
                f"{name} was {old.get(name)!r}, is {value!r}"
                for name, value in json.loads(text).items()
                if old.get(name) != value
            ]
            self._lock.close()
            raise UsageError(
                f"an unfinished conversion with other settings lies here: {'; '.join(differs)}",
                path=self.out,
                hint="Run it with the same settings, or pass --overwrite.",
            )
        if not plan.exists():
            write_atomic(plan, text.encode())

    def finished(self, files: Iterable[str]) -> dict[str, Part]:
        """Parts of those of `files` that are finished."""
        out = {}
        for file in files:
            path = self._part(file)
            if path.exists() and (self.out / file).exists():
                part = Part.parse(read_part(path)[0].schema.metadata[b"streamkit"])
                if (self.out / file).stat().st_size == part.shard.nbytes:
                    out[file] = part
        return out

    def tables(self, file: str) -> tuple[pa.Table, pa.Table | None]:
        """Index rows and chunk rows of a finished shard."""
        return read_part(self._part(file))

    def _part(self, file: str) -> Path:
        return self.folder / f"{file}.part"

    def remove(self) -> None:
        """Delete the work folder: the dataset is published."""
        shutil.rmtree(self.folder)


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
    for name in ("width", "height", "channels", "format", "orientation"):
        if name in facts:
            values = sorted(set(facts[name]))
            out[name] = values if len(values) <= 2 or name not in ("width", "height") else [values[0], values[-1]]
    if "width" in facts:
        out["pixels"] = int(np.multiply(facts["width"], facts["height"]).sum())
    return out
