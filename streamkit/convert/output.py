"""What lies at the output before a conversion.

>>> from streamkit.schema import Schema
>>> nothing = Listing([], np.empty(0, np.int64), Schema(()))
>>> already_there(Path("/no/such/folder"), Options("tfrecord"), {}, nothing, overwrite=False) is None
True
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from streamkit import index
from streamkit.convert import skipped
from streamkit.convert.options import Options
from streamkit.convert.publish import source_facts
from streamkit.errors import DamagedError, UsageError
from streamkit.manifest import FILE_NAME, WORK_FOLDER, Manifest
from streamkit.sources import Listing


def check_paths(src: Path, out: Path) -> None:
    """Raise UsageError where source or output cannot be what they should."""
    if not src.exists():
        raise UsageError("this source does not exist", path=src, hint="Give a folder of images or arrays, or a file.")
    inner, outer = out.resolve(), src.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UsageError("source and output lie inside one another", path=out, hint="Choose an output elsewhere.")
    if out.is_file():
        raise UsageError("the output is a file", path=out, hint="Choose a folder that is new or empty.")
    if not str(inner).isascii() and any("\ud800" <= c <= "\udfff" for c in str(inner)):
        raise UsageError("the output's path is no UTF-8, which Parquet's library needs", path=out)


def already_there(
    out: Path, options: Options, facts: Mapping[str, Any], listing: Listing, overwrite: bool
) -> Manifest | None:
    """The finished dataset at `out` if it is the one asked for; None when there is work to do.

    Args:
        out: where it would lie.
        options: those asked for.
        facts: of the source, with its fingerprint.
        listing: of the source, to tell what became of it.
        overwrite: what is there does not matter.
    """
    if not out.exists():
        return None
    if overwrite and (out / FILE_NAME).exists():
        return None
    if (out / FILE_NAME).exists():
        there = Manifest.load(out)
        asked = options.to_json()
        differs = [
            f"{name} is {there.options.get(name)!r} there, {value!r} asked"
            for name, value in asked.items()
            if there.options.get(name) != value
        ]
        hint = "Pass --overwrite to replace it."
        if there.source.get("fingerprint") != facts["fingerprint"]:
            hint = hint if differs else _instead(out, there, listing)  # only with the same options can be appended
            differs.append("the source has changed")
        if not differs:
            _check_shards(out, there)
            return there
        raise UsageError(f"the output holds another dataset: {'; '.join(differs)}", path=out, hint=hint)
    names = sorted(p.name for p in out.iterdir())
    if names and WORK_FOLDER not in names:
        shown = ", ".join(names[:3])
        raise UsageError(f"the output is not empty ({shown})", path=out, hint="Choose a folder that is new or empty.")
    return None


def _instead(out: Path, there: Manifest, listing: Listing) -> str:
    """What can be done where the source alone has changed: appended, replaced or both."""
    stored = {
        key
        for split in there.splits.values()
        for texts in index.Index(out / split.index, split.samples).texts("key")
        for key in texts.to_pylist()
    }
    known = stored | ({item.key for item in skipped.read(out)} if there.skipped else set())
    rows = np.array([i for i, key in enumerate(listing.keys) if key in known], np.int64)
    if all(key in stored for key in listing.keys):
        return "Pass --overwrite to replace it."
    before = replace(listing.take(rows), bad=tuple(bad for bad in listing.bad if bad.key in known))
    if source_facts(before)["fingerprint"] == there.source.get("fingerprint"):
        return "Pass --append to add the new items, or --overwrite to replace it."
    return "Pass --overwrite to replace it, or --append to add the items that it lacks and leave the rest as it is."


def _check_shards(out: Path, there: Manifest) -> None:
    """Raise DamagedError when a shard of a finished dataset is missing or has another size."""
    for shard in (s for split in there.splits.values() for s in split.shards):
        path = out / shard.file
        if not path.exists() or path.stat().st_size != shard.nbytes:
            what = "is missing" if not path.exists() else f"has {path.stat().st_size} bytes, not {shard.nbytes}"
            mend = f"Run `streamkit repair {shlex.quote(str(out))} --source SRC`, or pass --overwrite to convert again."
            raise DamagedError(f"{shard.file} {what}", path=out, hint=mend)
