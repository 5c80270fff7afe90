"""Index files for NVIDIA DALI's TFRecord reader: one line a record, its offset in the shard and its size, frame included.

Only the records' length fields are read (12 bytes each), never a payload.

Source: DALI's tools/tfrecord2idx, whose output this equals.

    >>> import tempfile, pathlib
    >>> from streamkit.shards.tfrecord import masked
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.tfrecord"
    >>> head = struct.pack("<Q", 5)
    >>> _ = path.write_bytes((head + struct.pack("<I", masked(crc32c(head))) + b"hello" + bytes(4)) * 2)
    >>> list(record_places(path))
    [(0, 21), (21, 21)]
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from crc32c import crc32c

from streamkit.atomic import write_atomic
from streamkit.errors import DamagedError, UsageError
from streamkit.guard import file_below, mend
from streamkit.manifest import Manifest
from streamkit.remote.address import local_only
from streamkit.rooted import inside
from streamkit.shards.tfrecord import masked
from streamkit.storage import open_for_reading

_HEAD = struct.Struct("<QI")


def record_places(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, size) [B] of every record of a TFRecord file.

    Raises:
        DamagedError: missing, a damaged length, or a record that the file's end cuts.
    """
    at = n = 0
    with open(open_for_reading(path), "rb") as file:
        end = os.fstat(file.fileno()).st_size
        while at < end:
            head = os.pread(file.fileno(), _HEAD.size, at)
            if len(head) < _HEAD.size:
                raise DamagedError(
                    "the file ends inside this record", shard=path.name, record=n, offset=at, hint=mend(path.parent)
                )
            length, crc = _HEAD.unpack(head)
            if masked(crc32c(head[:8])) != crc:
                raise DamagedError(
                    "the record's length is damaged", shard=path.name, record=n, offset=at, hint=mend(path.parent)
                )
            size = _HEAD.size + length + 4
            if size > end - at:
                raise DamagedError(
                    "the file ends inside this record", shard=path.name, record=n, offset=at, hint=mend(path.parent)
                )
            yield at, size
            at += size
            n += 1


def write_dali_index(path: str | os.PathLike[str]) -> list[Path]:
    """Write `train-00000.idx` beside `train-00000.tfrecord`, for every shard; returns the files written.

    Raises:
        UsageError: the dataset is no TFRecord, or adopted files that lie outside of its folder.
        DamagedError: a shard is missing, damaged, or has not as many records as the manifest says.
    """
    root = local_only(path, "--dali-index")
    manifest = Manifest.load(root)
    if manifest.format != "tfrecord":
        raise UsageError(
            f"DALI's index files are for TFRecord, this dataset is {manifest.format}",
            path=path,
            hint="Convert with --format tfrecord.",
        )
    below = inside(root, manifest.root)
    if below is None:
        raise UsageError(
            "its adopted files lie elsewhere, where nothing is written",
            path=path,
            hint="Run DALI's own `tfrecord2idx FILE FILE.idx` on each of them.",
        )
    written = []
    for split in manifest.splits.values():
        for shard in split.shards:
            file = file_below(root / below, shard.file)
            places = list(record_places(file))
            if len(places) != shard.samples:
                raise DamagedError(
                    f"the file has {len(places)} records, the manifest says {shard.samples}",
                    shard=shard.file,
                    hint=mend(path),
                )
            # Adopted files may be named a.tfrecord-00000-of-00002, of which only the last part differs.
            target = file.with_suffix(".idx") if file.suffix == ".tfrecord" else file.with_name(f"{file.name}.idx")
            write_atomic(target, "".join(f"{at} {size}\n" for at, size in places).encode())
            written.append(target)
    return written
