"""The manifest: what a dataset is, in one small readable file that is written last.

`manifest.json` is canonical JSON (sorted keys, ASCII). `format_version` is looked at before anything else; `dataset_id`
is the BLAKE3 digest of all the rest, so an altered manifest is found at once.

    >>> from streamkit.schema import Field
    >>> from streamkit.splits import Shard
    >>> shard = Shard("train-00000.tfrecord", samples=2, nbytes=100, digest="ab" * 32)
    >>> split = Split("train", samples=2, nbytes=100, index="index-train.parquet", index_digest="cd" * 32,
    ...               shards=(shard,))
    >>> man = Manifest(format="tfrecord", schema=Schema((Field("x", "array", "float32", (4,)),)), splits={"train": split})
    >>> Manifest.parse(man.dump()).splits["train"].shards[0].samples
    2
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import blake3

from streamkit import strict
from streamkit.errors import DamagedError, FormatVersionError, RefusedError, ResourceError, UsageError, did_you_mean
from streamkit.guard import regular_file
from streamkit.remote.address import Address, place
from streamkit.schema import Schema
from streamkit.splits import SideFile, Split
from streamkit.strict import canonical, count, mapping, plain_name
from streamkit.version import __version__

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
MAX_NBYTES = 64 << 20
MAX_SHARDS = 1_000_000
# Samples in a byte: a TFRecord record is framed by 16 bytes, a picture file is not empty, chunks of HDF5 may be compressed.
_MOST_SAMPLES = {"tfrecord": 1 / 16, "folder": 1, "hdf5": 1032}


@dataclass(frozen=True)
class Manifest:
    """A dataset: format, schema, splits and how it came about. Frozen; `path` is where it was read from, if it was.

    `files` are those that only other tools read, by name; a manifest without them says nothing of such files.
    `root` is set for adopted files: the folder below which they lie, relative to the manifest's own; what may be opened
    there, `streamkit.rooted` decides. The format "folder" means loose files, one a sample, found by their keys.
    `rest` are facts that this release does not know, and keeps.
    """

    format: str
    schema: Schema
    splits: Mapping[str, Split]
    options: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    skipped: int = 0
    files: Mapping[str, SideFile] = field(default_factory=dict)
    root: str | None = None
    streamkit_version: str = __version__
    path: str | Address | None = field(default=None, compare=False)
    rest: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in ("tfrecord", "hdf5", "folder"):
            raise DamagedError(f"the format is {self.format!r}, expected tfrecord, hdf5 or folder", path=self.path)
        files = [s.file for split in self.splits.values() for s in split.shards]
        if self.root is None:
            for file in files:
                plain_name(file)
        elif not isinstance(self.root, str) or self.root.startswith("/") or "\0" in self.root:
            raise RefusedError(f"the root {str(self.root)[:80]!r} is no relative path", path=self.path)
        for shard in (shard for split in self.splits.values() for shard in split.shards):
            if shard.samples > shard.nbytes * _MOST_SAMPLES[self.format]:
                raise DamagedError(f"{shard.samples} samples in {shard.nbytes} bytes", path=self.path, shard=shard.file)
        if self.format == "folder" and [field.is_encoded_image for field in self.schema.payloads] != [True]:
            raise DamagedError("a folder of pictures has one payload, a picture", path=self.path)
        if len(set(files)) != len(files) or len(files) > MAX_SHARDS:
            raise DamagedError("a shard is named twice, or there are over a million", path=self.path)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 0, 1, ... of the label field; empty without one."""
        label = self.schema.label
        return list(label.class_names or ()) if label else []

    @property
    def dataset_id(self) -> str:
        """BLAKE3 digest (hex) of the manifest's other content: equal for equal datasets."""
        return blake3.blake3(canonical(self._content()).encode()).hexdigest()

    def class_weights(self, split: str = "train") -> dict[int, float]:
        """Weight n / (n_classes * n_of_class) for each class present, as Keras' `class_weight=` takes it.

        Raises:
            UsageError: the dataset has no class counts for that split.
        """
        counts = self.statistics.get("class_counts", {}).get(split)
        if not counts:
            raise UsageError(f"there are no class counts for split {split!r}", path=self.path)
        if not self.class_names:
            raise UsageError("the label has no class names, so there are no classes to weigh", path=self.path)
        numbers = [counts.get(name, 0) for name in self.class_names]
        present = sum(n > 0 for n in numbers)
        return {i: sum(numbers) / (present * n) for i, n in enumerate(numbers) if n}

    def split(self, name: str | None = None) -> Split:
        """The split of that name; with None the only one there is.

        Raises:
            UsageError: no such split, or several and none named.
        """
        names = ", ".join(self.splits)
        if name is None:
            if len(self.splits) == 1:
                return next(iter(self.splits.values()))
            raise UsageError(f"this dataset has the splits {names}", path=self.path, hint="Name one with split=.")
        if name not in self.splits:
            raise UsageError(
                f"there is no split {name!r}",
                path=self.path,
                hint=f"{did_you_mean(name, self.splits)}Splits are {names}.",
            )
        return self.splits[name]

    def _content(self) -> dict[str, Any]:
        adopted = {} if self.root is None else {"root": self.root}
        out = adopted | {
            "format_version": FORMAT_VERSION,
            "streamkit_version": self.streamkit_version,
            "format": self.format,
            "schema": self.schema.to_json(),
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "options": dict(self.options),
            "source": dict(self.source),
            "statistics": dict(self.statistics),
            "skipped": self.skipped,
        }
        if self.files:
            out["files"] = {name: file.to_json() for name, file in self.files.items()}
        return strict.with_unknown(out, self.rest)

    def dump(self) -> str:
        """The text of manifest.json."""
        return canonical(self._content() | {"dataset_id": self.dataset_id})

    @classmethod
    def parse(cls, text: str | bytes, path: str | Address | None = None) -> Self:
        """Read the text of a manifest.json: version first, then the digest, then every fact.

        Raises:
            FormatVersionError: a newer format_version.
            DamagedError: not a manifest, or altered since it was written.
            RefusedError: larger than 64 MiB, nested too deep, or a name that leaves the folder.
        """
        if len(text) > MAX_NBYTES:
            raise RefusedError(f"the manifest has {len(text)} bytes, the limit is {MAX_NBYTES}", path=path)
        try:
            data = strict.parse(text)
        except RefusedError as refused:
            raise RefusedError(refused.what, path=path) from None
        except ValueError as error:
            raise DamagedError(f"this is no manifest ({error})", path=path, hint=MAKE_AGAIN) from None
        if not isinstance(data, dict) or "format_version" not in data:
            raise DamagedError("this is no streamkit manifest: format_version is missing", path=path, hint=MAKE_AGAIN)
        if data["format_version"] != FORMAT_VERSION:
            raise FormatVersionError(
                f"format_version is {data['format_version']!r}, this release reads {FORMAT_VERSION}",
                path=path,
                hint=f"Install streamkit >= {data.get('streamkit_version', '?')}.",
            )
        claimed = data.pop("dataset_id", None)
        try:
            digest = blake3.blake3(canonical(data).encode()).hexdigest()
        except ValueError:  # a number beyond what JSON can say, such as 1e999
            digest = None
        if digest is None or digest != claimed:
            raise DamagedError("the content does not match dataset_id: it was altered", path=path, hint=MAKE_AGAIN)
        try:
            found = cls(
                format=data["format"],
                schema=Schema.from_json(data["schema"]),
                splits={name: Split.from_json(name, item) for name, item in sorted(data["splits"].items())},
                options=mapping(data["options"]),
                source=mapping(data["source"]),
                statistics=strict.statistics(data["statistics"]),
                skipped=count(data["skipped"], "skipped", "manifest"),
                files={name: SideFile.from_json(name, f) for name, f in mapping(data.get("files", {})).items()},
                root=data.get("root"),
                streamkit_version=str(data["streamkit_version"]),
                path=path,
            )
            return replace(found, rest=strict.unknown(data, found._content()))
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"a fact is missing or of the wrong kind ({error})", path=path, hint=MAKE_AGAIN
            ) from None

    @classmethod
    def load(cls, folder: str | os.PathLike[str], digest: str | None = None) -> Self:
        """Read OUT/manifest.json.

        Args:
            folder: the dataset's folder, or its address on a server.
            digest: pins the dataset: its dataset_id, or the BLAKE3 (hex) of manifest.json as a file. None: any will do.

        Raises:
            RefusedError: not the dataset that `digest` pins.
            UsageError: the folder does not exist or is no dataset, or `digest` is no digest.
            DamagedError: a conversion that never finished, or a damaged manifest.
            RemoteError: a server that does not give it.
        """
        if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UsageError(
                f"manifest_digest is {digest!r}, expected 64 of the digits 0-9 and a-f",
                hint="Take the dataset_id that `streamkit.open` tells.",
            )
        root = place(folder)
        file = root / FILE_NAME
        data = _read_far(file) if isinstance(file, Address) else _read_here(Path(root), file)
        found = cls.parse(data, file if isinstance(file, Address) else str(file))
        if digest is not None and digest not in (found.dataset_id, blake3.blake3(data).hexdigest()):
            raise RefusedError(
                f"dataset_id is {found.dataset_id}, manifest_digest is {digest}", path=file, hint="It was replaced."
            )
        return found


_FOLDER = "Give the folder that `streamkit convert` made."


def _read_here(root: Path, file: Path) -> bytes:
    """The bytes of a manifest on this machine; the errors say why there is none."""
    try:
        if regular_file(file).st_size > MAX_NBYTES:
            raise RefusedError(f"the manifest is larger than {MAX_NBYTES} bytes", path=file)
        return file.read_bytes()
    except NotADirectoryError:
        raise UsageError("this is a file, not a dataset folder", path=root, hint=_FOLDER) from None
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ResourceError(f"cannot be read: {(error.strerror or str(error)).lower()}", path=file) from None
    if not root.exists() and (root.with_name(f".{root.name}.swap") / FILE_NAME).exists():
        raise DamagedError(
            f"it was being replaced: the new dataset is .{root.name}.swap",
            path=root,
            hint=f"Run `streamkit repair {shlex.quote(str(root))} --drop`, which puts it in place.",
        )
    if not root.exists():
        raise UsageError("this path does not exist", path=root, hint=_FOLDER)
    if (root / WORK_FOLDER).exists():
        raise DamagedError(
            "the conversion never finished: there is no manifest.json",
            path=root,
            hint="Run the same convert again.",
        )
    if any(root.glob("*-00000.*")):  # the work folder goes after the manifest came, so it was there once
        raise DamagedError(
            "manifest.json is missing, though shards are there",
            path=root,
            hint="Restore it from a copy, or convert again into a new folder.",
        )
    if os.access(root, os.R_OK) and not any(root.iterdir()):
        hint = "Give the folder that `streamkit convert` made."
        raise UsageError("this folder is no dataset: it is empty", path=root, hint=hint)
    source = shlex.quote(str(root))
    raise UsageError(
        "this folder is no dataset: there is no manifest.json",
        path=root,
        hint=f"Make one of its files with `streamkit convert {source} OUT --format tfrecord`, or read them where they lie"
        f" after `streamkit index {source} --out OUT`.",
    )


def _read_far(file: Address) -> bytes:
    """The bytes of a manifest on a server."""
    from streamkit.remote.failures import Missing  # here, as what talks to servers takes 25 ms to import
    from streamkit.remote.transfer import read

    try:
        return read(file, MAX_NBYTES, lambda data: "" if data.lstrip()[:1] == b"{" else "the answer is no manifest")
    except Missing:
        raise UsageError(
            "this folder is no dataset: there is no manifest.json",
            path=file.parent,
            hint="Give the address that `streamkit convert` wrote to.",
        ) from None


WORK_FOLDER = ".streamkit"  # journal and lock of a conversion under way; gone after success
MAKE_AGAIN = "Restore it from a copy, or run the same `streamkit convert` again with --overwrite."
