"""The files that a dataset consists of, as its manifest names them: splits, their shards, and what only other tools read.

Names are looked at when these are made: none leads out of the dataset's folder.

    >>> shard = Shard.from_json({"file": "train-00000.tfrecord", "samples": 2, "bytes": 100, "digest": "ab"})
    >>> shard.nbytes, shard == Shard.from_json(shard.to_json())
    (100, True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from streamkit.errors import DamagedError
from streamkit.strict import count, name_below, plain_name


@dataclass(frozen=True)
class Shard:
    """One TFRecord or HDF5 file: its name, how many samples it holds, its size [B] and BLAKE3 digest (hex). `rest`: facts
    that this release does not know."""

    file: str
    samples: int
    nbytes: int
    digest: str
    rest: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        name_below(self.file)
        count(self.samples, "samples", self.file)
        count(self.nbytes, "bytes", self.file)

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "samples": self.samples, "bytes": self.nbytes, "digest": self.digest, **self.rest}

    @classmethod
    def from_json(cls, item: Any) -> Self:
        rest = {name: value for name, value in item.items() if name not in ("file", "samples", "bytes", "digest")}
        return cls(item["file"], item["samples"], item["bytes"], str(item["digest"]), rest)


@dataclass(frozen=True)
class Split:
    """A named set of shards with its index file. `chunks` names the chunk table of chunked HDF5, else None."""

    name: str
    samples: int
    nbytes: int
    index: str
    index_digest: str
    shards: tuple[Shard, ...]
    chunks: str | None = None
    chunks_digest: str | None = None

    def __post_init__(self) -> None:
        plain_name(self.name)
        plain_name(self.index)
        if self.chunks is not None:
            plain_name(self.chunks)
        if sum(s.samples for s in self.shards) != self.samples:
            raise DamagedError(
                f"split {self.name!r} says {self.samples} samples, its shards {sum(s.samples for s in self.shards)}"
            )
        if sum(s.nbytes for s in self.shards) != self.nbytes:
            raise DamagedError(
                f"split {self.name!r} says {self.nbytes} bytes, its shards {sum(s.nbytes for s in self.shards)}"
            )

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"samples": self.samples, "bytes": self.nbytes}
        out["index"] = {"file": self.index, "digest": self.index_digest}
        if self.chunks is not None:
            out["chunks"] = {"file": self.chunks, "digest": self.chunks_digest}
        out["shards"] = [s.to_json() for s in self.shards]
        return out

    @classmethod
    def from_json(cls, name: str, item: Any) -> Self:
        chunks = item.get("chunks")
        return cls(
            name=name,
            samples=count(item["samples"], "samples", name),
            nbytes=count(item["bytes"], "bytes", name),
            index=item["index"]["file"],
            index_digest=str(item["index"]["digest"]),
            shards=tuple(Shard.from_json(shard) for shard in item["shards"]),
            chunks=None if chunks is None else chunks["file"],
            chunks_digest=None if chunks is None else str(chunks["digest"]),
        )


@dataclass(frozen=True)
class SideFile:
    """A file that other tools read, such as train.h5 or dataset_info.json: its size [B] and BLAKE3 digest (hex)."""

    nbytes: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.nbytes, "digest": self.digest}

    @classmethod
    def from_json(cls, name: str, item: Any) -> Self:
        return cls(count(item["bytes"], "bytes", plain_name(name)), str(item["digest"]))
