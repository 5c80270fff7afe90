"""What `verify --full` adds: every payload decoded, and the pictures' sizes held against the index.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> manifest = streamkit.open(out)
>>> entries = {name: Entries(Path(out), manifest, split) for name, split in manifest.splits.items()}
>>> undecodable(Path(out), Path(out), manifest, {}, entries, n_workers=1)
[]
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.codecs import image
from streamkit.errors import DamagedError, RefusedError, RemoteError, ResourceError, StreamkitError
from streamkit.health.columns import contradictions
from streamkit.health.entries import Entries
from streamkit.health.report import Problem
from streamkit.manifest import Manifest
from streamkit.payloads import Payloads
from streamkit.pictures import largest
from streamkit.reader import Reader
from streamkit.remote.address import Address
from streamkit.schema import Field
from streamkit.splits import Split

Ints = npt.NDArray[np.int64]
_ROWS_AT_ONCE = 64
_SIDES = ("width", "height", "channels")


def undecodable(
    root: Path | Address,
    place: Path | Address,
    manifest: Manifest,
    lost: dict[str, Any],
    entries: Mapping[str, Entries | None],
    n_workers: int,
    max_pixels: int = image.MAX_PIXELS,
) -> list[Problem]:
    """Records that do not decode, of shards in the folder `place`.

    `lost`: shard file -> rows of its split that are known to be damaged, and are left out. `entries`: None for a damaged
    index. `max_pixels`: of a picture; a larger one is refused.
    """
    out: list[Problem] = []
    for split in manifest.splits.values():
        if (tables := entries[split.name]) is None:
            continue
        try:
            reader = Reader(root, manifest, split, manifest.schema.payloads, _SIDES, lenient=True, shards_root=place)
        except (RemoteError, ResourceError):
            raise
        except StreamkitError as error:
            refused = isinstance(error, RefusedError)
            out.append(Problem(Path(error.path or split.index).name, error.what, refused=refused))
            continue
        blocks = list(_blocks(split, lost))
        with ThreadPoolExecutor(n_workers, thread_name_prefix="streamkit") as pool:
            for found in pool.map(_Decoding(reader, max_pixels).problems, blocks):
                out += found
            names = [field.name for field in manifest.schema.columns]
            if names and manifest.root is None:  # columns of adopted files may come from elsewhere
                check = functools.partial(contradictions, place, manifest, tables, tables.index.table(names))
                for found in pool.map(check, [i for i, s in enumerate(split.shards) if s.file not in lost]):
                    out += [p for p in found if (p.file, p.record) not in {(q.file, q.record) for q in out}]
        reader.files.close()
    return out


def with_undecodable(manifest: Manifest, lost: Mapping[str, Any], problems: Iterable[Problem]) -> dict[str, Ints]:
    """Shard file -> rows of its split that are damaged (`lost`) or of which `problems` tells."""
    rows: dict[str, list[int]] = {}
    for problem in problems:
        if problem.record is not None:
            rows.setdefault(problem.file, []).append(problem.record)
    out = dict(lost)
    for split in manifest.splits.values():
        start = 0
        for shard in split.shards:
            if shard.file in rows:
                more = start + np.array(rows[shard.file], np.int64)
                out[shard.file] = np.union1d(lost.get(shard.file, np.empty(0, np.int64)), more)
            start += shard.samples
    return out


def _blocks(split: Split, lost: dict[str, Any]) -> Iterable[Ints]:
    start = 0
    for shard in split.shards:
        rows = np.arange(start, start + shard.samples)
        whole = rows[~np.isin(rows, lost.get(shard.file, ()))]
        yield from (whole[at : at + _ROWS_AT_ONCE] for at in range(0, len(whole), _ROWS_AT_ONCE))
        start += shard.samples


class _Decoding:
    def __init__(self, reader: Reader, max_pixels: int) -> None:
        self.reader, self.payloads = reader, Payloads(reader)
        self.max_pixels = largest(reader.manifest, max_pixels)

    def problems(self, rows: Ints) -> list[Problem]:
        out = []
        for row in rows.tolist():
            for field in self.reader.fields:
                try:
                    self._decode(field, row)
                except (DamagedError, RefusedError) as error:
                    refused = isinstance(error, RefusedError)
                    out.append(Problem(str(error.shard or error.key), error.what, error.record, error.key, refused))
                    break
        return out

    def _decode(self, field: Field, row: int) -> None:
        one = np.array([row])
        if field.is_encoded_image:
            self._picture(field, row, self.payloads.stored(field, one)[0])
        elif field.kind in ("text", "bytes"):
            self._text(field, row, self.payloads.stored(field, one)[0])
        elif field.chunk_rows is not None or (field.fixed and field.encoding == "raw"):
            out = np.empty((1, *(int(d or 0) for d in field.shape)), field.dtype)
            self.payloads.raw_into(field, one, out)
        else:
            self.payloads.decoded(field, one)

    def _picture(self, field: Field, row: int, data: memoryview) -> None:
        try:
            info = image.check(data, self.max_pixels)
        except image.BadImage as error:
            raise self.reader.bad_picture(row, error) from None
        said = {name: self.reader.columns[name][row] for name in _SIDES if name in self.reader.columns}
        wrong = [f"{name} {getattr(info, name)} (index: {n})" for name, n in said.items() if getattr(info, name) != n]
        if field.kind == "image" and wrong:
            raise self.reader.damaged(row, f"the picture has {', '.join(wrong)}")

    def _text(self, field: Field, row: int, data: memoryview) -> None:
        try:
            if field.kind == "text":
                bytes(data).decode()
        except UnicodeDecodeError as error:
            raise self.reader.damaged(row, f"no UTF-8: {error}") from None
