"""What the user named: which files, of which kind, below which root, in which splits.

>>> split_names(["a-train-0.tfrecord", "a-validation-0.tfrecord"]), split_names(["a.h5", "val.h5"])
(['train', 'val'], ['train', 'train'])
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamkit.atomic import os_error
from streamkit.codecs.sniff import looks_like
from streamkit.errors import RefusedError, SourceError, UsageError
from streamkit.shards.example import BadExample, is_sequence
from streamkit.shards.tfrecord import begins_a_record
from streamkit.sources.rowfiles import EXTENSIONS as ROW_EXTENSIONS
from streamkit.sources.splits import SPLIT_OF_FOLDER
from streamkit.strict import name_below

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HEAD_NBYTES = 64 << 10


@dataclass(frozen=True)
class Named:
    """Files to adopt: `format` tfrecord or hdf5, `files` as paths below `root`, and the split of each."""

    root: Path
    format: str
    files: tuple[str, ...]
    splits: tuple[str, ...]


def record_files(folder: Path) -> list[Path]:
    """TFRecord and HDF5 files below a folder, told by name, sorted."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in names if re.search(r"\.(tfrecords?\b|h5$|hdf5$)", name, re.IGNORECASE)]
    return sorted(path for path in found if not path.name.startswith("."))


def named_files(paths: Sequence[Path], root: Path | None) -> Named:
    """Look at the files the user named.

    Raises:
        UsageError: a path that does not exist or lies outside of the root, or files of both kinds.
        SourceError: a file that is neither TFRecord nor HDF5, or one that has to be rewritten first.
    """
    places = []
    for path in paths:
        if not path.exists():
            raise UsageError("this file does not exist", path=path)
        if not path.is_file():
            raise UsageError("this is no file", path=path, hint="Give files, or one folder.")
        places.append(Path(os.path.realpath(path)))  # of a link, the file that it leads to
    if len(set(places)) != len(places):
        raise UsageError("a file is named twice", path=max(places, key=places.count))
    try:
        formats = [format_of(place) for place in places]
    except OSError as error:
        raise os_error(error, error.filename or places[0]) from error
    if len(set(formats)) > 1:
        raise UsageError("both TFRecord and HDF5 files", hint="Index them apart.")
    top = Path(os.path.realpath(root)) if root is not None else Path(os.path.commonpath([p.parent for p in places]))
    files = []
    for place in places:
        if top not in place.parents:
            raise UsageError(f"this file does not lie below the root {top}", path=place)
        try:
            files.append(name_below(place.relative_to(top).as_posix()))
        except RefusedError:
            raise SourceError("a file name with a backslash or characters that do not print", path=place) from None
    return Named(top, formats[0], tuple(files), tuple(split_names(files)))


def split_names(files: Sequence[str]) -> list[str]:
    """The split of each file: train, val or test where the names of all say one of them, else all are train."""
    out = []
    for file in files:
        words = re.split(r"[^a-z]+", file.rpartition("/")[2].lower())
        said = {SPLIT_OF_FOLDER[word] for word in words if word in SPLIT_OF_FOLDER}
        said = said or {SPLIT_OF_FOLDER[w] for w in file.lower().split("/")[-2:-1] if w in SPLIT_OF_FOLDER}
        if len(said) != 1:
            return ["train"] * len(files)
        out.append(said.pop())
    return out


def format_of(path: Path) -> str:
    """ "tfrecord" or "hdf5", by content. SourceError for anything else, with what to do about it."""
    with open(path, "rb") as file:
        head = file.read(_HEAD_NBYTES)
        if begins_a_record(head):
            return "tfrecord"
        at, size = 0, os.fstat(file.fileno()).st_size
        while at < size:  # the signature stands at 0, or behind a user block of 512, 1024, ... bytes
            file.seek(at)
            if file.read(8) == _HDF5_MAGIC:
                return "hdf5"
            at = max(512, 2 * at)
    packed = _packed_reason(path, head)
    if packed is not None:
        raise SourceError(packed[0], path=path, hint=packed[1])
    rows = path.suffix.lower() in ROW_EXTENSIONS
    hint = "`streamkit convert` reads such files." if rows else "Check that the file is whole."
    raise SourceError(looks_like(head) or "is neither TFRecord nor HDF5", path=path, hint=hint)


def _packed_reason(path: Path, head: bytes) -> tuple[str, str] | None:
    """Why a file compressed as a whole cannot be adopted, and how to make one that can."""
    for name, wbits, magic in (("GZIP", 31, b"\x1f\x8b"), ("ZLIB", 15, b"\x78")):
        if not head.startswith(magic):
            continue
        try:
            inside = zlib.decompressobj(wbits).decompress(head, 1 << 20)
        except zlib.error:
            continue
        if not begins_a_record(inside):
            continue
        why = f"is {name}-compressed as a whole, so its records have no addresses"
        plain = f"{path.name.removesuffix('.gz')}" if path.name.endswith(".gz") else f"{path.name}.plain.tfrecord"
        unpack = f"gunzip -c {path.name}" if name == "GZIP" else f"zlib-flate -uncompress < {path.name}"
        again = "write its records as tf.train.Example" if _holds_sequences(inside) else "index that"
        return why, f"Unpack it ({unpack} > {plain}) and {again}."
    return None


def _holds_sequences(data: bytes) -> bool:
    """True where the first record is a SequenceExample, which would be refused next."""
    length = int.from_bytes(data[:8], "little")
    try:
        return is_sequence(data[12 : 12 + length])
    except (BadExample, IndexError):
        return False
