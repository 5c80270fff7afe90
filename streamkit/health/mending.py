"""What mends the damage that a check found: only what will do is offered.

>>> from streamkit.schema import Schema
>>> shard = Shard("train-00000.h5", samples=2, nbytes=100, digest="ab" * 32)
>>> split = Split("train", 2, 100, "index-train.parquet", "cd" * 32, (shard,))
>>> manifest = Manifest("hdf5", Schema(()), {"train": split})
>>> next_step("out", manifest, [Problem("index-train.parquet", "is missing")], {})
'Run `streamkit repair out --source SRC`; --drop needs the index of train.'
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

from streamkit.convert.append import interrupted
from streamkit.health.decode import with_undecodable
from streamkit.health.report import Problem
from streamkit.index import ADOPT_AGAIN
from streamkit.manifest import Manifest
from streamkit.remote.address import is_remote
from streamkit.splits import Shard, Split


def next_step(
    out: str | os.PathLike[str],
    manifest: Manifest,
    problems: Sequence[Problem],
    lost: Mapping[str, Sized],
    undecoded: Sequence[Problem] = (),
) -> str:
    """The command that mends a dataset, and why --drop would not where it would not.

    Args:
        out: the dataset, as the user calls it.
        manifest: its manifest.
        problems: what is wrong.
        lost: shard file -> its rows whose bytes are wrong.
        undecoded: those of the problems that are no damage: bytes that are the manifest's, and do not decode.
    """
    if manifest.root is not None:  # adopted files are never written
        return ADOPT_AGAIN
    lost = with_undecodable(manifest, lost, undecoded)
    lacks = _lacks(manifest, problems, lost)
    mend = _leave_out(out, undecoded, lacks) if len(undecoded) == len(problems) else _mend(out, manifest, lacks)
    if is_remote(out) or not interrupted(Path(out), manifest):
        return f"Run {mend}"
    append = "Run the same `streamkit convert` with --append again: it was interrupted"
    if {problem.file for problem in problems} <= set(manifest.files):
        return f"{append}, and makes these files anew."
    return f"{append}, and repair would give up what it wrote. Then run {mend}"


def _mend(out: str | os.PathLike[str], manifest: Manifest, lacks: str) -> str:
    beside = "".join(
        f" --{name} {what}" for name, what in (("labels", "FILE"), ("masks", "DIR")) if manifest.options.get(name)
    )
    mend = f"`streamkit repair {shlex.quote(os.fspath(out))} --source SRC{beside}`"
    return mend + (f"; --drop needs {lacks}." if lacks else ", or with --drop instead of --source.")


def _leave_out(out: str | os.PathLike[str], undecoded: Sequence[Problem], lacks: str) -> str:
    """What to do of samples whose bytes are those that were written."""
    again = "`streamkit convert` again with --overwrite --check decode --on-bad skip"
    why = "--source would write the same bytes again."
    if any(problem.refused for problem in undecoded):
        why += " What is refused for its size is kept: if you trust it, raise --max-pixels."
    if lacks:
        return f"{again}: --drop needs {lacks}, and {why}"
    return f"`streamkit repair {shlex.quote(os.fspath(out))} --drop`, or {again}: {why}"


def _lacks(manifest: Manifest, problems: Sequence[Problem], lost: Mapping[str, Sized]) -> str:
    """What `repair --drop` would miss; empty where it will do."""
    damaged = {problem.file for problem in problems}
    gone = {problem.file for problem in problems if problem.reason == "is missing"}
    for split in manifest.splits.values():
        if tables := damaged_tables(split, damaged):
            return f"{tables} of {split.name}"
        if all(shard.file in gone or _all_lost(shard, lost) for shard in split.shards):
            return f"some record of {split.name} that is whole"
    return ""


def _all_lost(shard: Shard, lost: Mapping[str, Sized]) -> bool:
    return len(lost.get(shard.file, ())) >= max(1, shard.samples)


def damaged_tables(split: Split, damaged: set[str]) -> str:
    """Which tables of a split are damaged, in words; empty where none is."""
    names = {"the index": split.index, "the chunk table": split.chunks}
    return " and ".join(what for what, file in names.items() if file in damaged)
