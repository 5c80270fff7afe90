"""`repair`: damaged shards and files written again, from the source or without the damaged records.

From the source, a conversion's own plan and work are done again for the damaged shards only, in the work folder; what comes
out has the digest that the manifest names or is not used. The manifest never changes.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> with open(out + "/val-00000.tfrecord", "r+b") as file:
...     _ = file.seek(30_000), file.write(b"?????")
>>> repair(out, source="sample_data/images").rewritten, streamkit.verify(out).ok
(('val-00000.tfrecord',), True)
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from streamkit import index
from streamkit.atomic import os_error, replacing, sync_folder
from streamkit.convert.append import Before
from streamkit.convert.journal import Journal, Part
from streamkit.convert.measure import measure
from streamkit.convert.plan import Plan, ShardPlan, make_plan
from streamkit.convert.publish import index_tables, write_side_files
from streamkit.convert.swap import finish_swap
from streamkit.convert.writing import Writing
from streamkit.digest import file_digest
from streamkit.errors import DamagedError, SourceError, UsageError
from streamkit.health.check import Check, Progress
from streamkit.health.decode import undecodable
from streamkit.health.drop import without_damaged
from streamkit.health.grown import check_tables, plan_there
from streamkit.health.origin import items_again, options_of
from streamkit.health.report import Problem
from streamkit.index import ADOPT_AGAIN
from streamkit.manifest import WORK_FOLDER, Manifest
from streamkit.remote.address import local_only
from streamkit.schema import Schema
from streamkit.shards import shard_format
from streamkit.sources import BadItem
from streamkit.splits import Split


@dataclass(frozen=True)
class Repair:
    """What `repair` did.

    Attributes:
        out: the dataset's folder.
        problems: what was wrong before.
        rewritten: names of the files that were written again.
        lost: records that the dataset no longer has (with drop only).
        n_samples: samples in it now.
        seconds: wall time [s].
        aside: new names of folders that lay in a file's place.
        decoded: whether every payload was decoded as well (with drop only).
    """

    out: str
    problems: tuple[Problem, ...]
    rewritten: tuple[str, ...]
    lost: tuple[Problem, ...]
    n_samples: int
    seconds: float
    aside: tuple[str, ...] = ()
    decoded: bool = False


def repair(
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    drop: bool = False,
    workers: int | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Repair:
    """Make a damaged dataset whole again. A dataset that is whole stays as it is.

    Args:
        path: the dataset's folder.
        source: what it was converted from: exactly what is damaged is written again, byte for byte as it was.
        labels, masks: what the conversion had beside the source, if it had.
        drop: instead, write a valid dataset without the damaged records and those that do not decode (every payload is
            decoded to find them), in the old one's place. They are listed in skipped.jsonl.
        workers: processes; None takes one a core.
        progress: called with the number of items to be written, returns what is told of items done.

    Raises:
        UsageError: neither or both of `source` and `drop`, a source that does not exist, or a dataset of adopted files.
        SourceError: the source has changed since.
        DamagedError: the manifest itself is damaged, or for `drop` an index or all of a split.
        BusyError: a converter is at work on this dataset.
    """
    if (source is None) != drop:
        raise UsageError("repair needs one of source and drop", hint="Pass --source SRC, or --drop.")
    for given in (source, labels, masks):
        if given is not None and not os.path.exists(given):
            raise UsageError("this source does not exist", path=given, hint="Give what the dataset was converted from.")
    started = time.perf_counter()
    root = Path(os.path.realpath(local_only(path, "repair")))
    finish_swap(root)
    manifest = Manifest.load(root)
    if manifest.root is not None:
        raise UsageError("its files were adopted, so they are not streamkit's to write", path=root, hint=ADOPT_AGAIN)
    try:
        with Journal(root, {"repair": manifest.dataset_id}, anew=True) as lock:
            try:
                check = Check(root, manifest, workers)
                problems = tuple(check.all())
                undecoded = _undecoded(root, manifest, check) if drop else ()
                problems += undecoded
                damaged = tuple(dict.fromkeys(problem.file for problem in problems))
                lost: tuple[Problem, ...] = ()
                aside: tuple[str, ...] = ()
                if damaged and source is not None:
                    beside = [None if path is None else Path(path) for path in (labels, masks)]
                    again = _Again(root, manifest, Path(source), beside[0], beside[1], set(damaged), workers, progress)
                    again.write()
                    aside = again.aside
                elif damaged:
                    manifest, lost = without_damaged(root, manifest, check, set(damaged), undecoded)
            finally:
                if lock.is_here():  # it goes with the old folder where a new one took its place
                    lock.remove()
                    sync_folder(root)
    except OSError as error:
        raise os_error(error, error.filename or root) from error
    n_samples = sum(split.samples for split in manifest.splits.values())
    return Repair(str(path), problems, damaged, lost, n_samples, time.perf_counter() - started, aside, drop)


def _undecoded(root: Path, manifest: Manifest, check: Check) -> tuple[Problem, ...]:
    """What `verify --full` finds beyond `check`, but for what is refused for its size: another limit may let it in."""
    found = undecodable(root, root, manifest, check.lost, check.entries, check.n_workers)
    return tuple(p for p in found if not p.refused)


class _Again:
    """Writes damaged shards and files again from the source, in a folder inside the work folder, and puts them in place."""

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        source: Path,
        labels: Path | None,
        masks: Path | None,
        damaged: set[str],
        workers: int | None,
        progress: Callable[[int], Progress] | None,
    ) -> None:
        self.root, self.manifest, self.damaged = root, manifest, damaged
        self.workers, self.progress = workers, progress
        self.staging = root / WORK_FOLDER / "repair"
        self.aside: tuple[str, ...] = ()
        self.options = options_of(manifest)
        self.before = Before(root, manifest)
        self.grown = self.before.generation > 2
        if self.grown:
            check_tables(root, manifest, damaged)
        self.items = items_again(source, labels, masks, self.options, manifest, same=not self.grown)
        if self.grown:
            self.items = self.items._replace(listing=self.before.with_classes(self.items.listing))
        self.listing = self.items.listing

    def write(self) -> None:
        """Write everything in the staging folder, hold it to the manifest's digests, and move it."""
        schema, _, sizes = measure(self.items, self.options)
        if self.grown:
            schema, plan = self.before.storage(schema), plan_there(self.before, self.listing, self.damaged)
        else:
            plan = make_plan(self.listing, self.options, shard_format(self.options.format).extension, sizes)
        shutil.rmtree(self.staging, ignore_errors=True)
        with Journal(self.staging, self.options.to_json()) as journal:
            parts = self._shards(plan, schema, journal)
            ready = [file for file in parts if file in self.damaged]
            for split in self.manifest.splits.values():
                ready += self._tables(split, journal, parts)
        self._put(ready)
        if self.damaged & set(self.manifest.files):
            self._put(self._side_files(parts))

    def _put(self, files: Sequence[str]) -> None:
        """Move files from the staging folder to their places."""
        for file in files:
            place = self.root / file
            if place.is_dir() and not place.is_symlink():
                self.aside += _step_aside(place)
            os.replace(self.staging / file, place)
        sync_folder(self.root)

    def _shards(self, plan: Plan, schema: Schema, journal: Journal) -> dict[str, Part]:
        everything = self.options.on_duplicate == "drop"  # what is a copy is known from all shards only
        needed = tuple(shard for shard in plan.shards if everything or self._needs(shard))
        some = replace(plan, splits=(), shards=needed)
        keep_going = self.manifest.skipped > 0
        writing = Writing(
            self.items.source, self.listing, some, schema, self.options, journal, self.workers, keep_going
        )
        parts, _ = writing.run(self.progress)
        there = {s.file: s for split in self.manifest.splits.values() for s in split.shards}
        for file, part in parts.items():
            if part.shard.samples and part.shard != there.get(file):
                raise SourceError(
                    f"{file} made from it again is not the shard that the manifest names{self._others(file, journal)}",
                    path=self.root,
                    hint=_CHANGED + (_CLASSES if self.grown else ""),
                )
        return parts

    def _others(self, file: str, journal: Journal) -> str:
        """Which items became other bytes, where the index can still tell."""
        splits = self.manifest.splits.values()
        if any(self.damaged & {split.index, split.chunks} for split in splits) or not any(
            shard.file == file and shard.samples for split in splits for shard in split.shards
        ):
            return ""
        there, made = self.before.tables(file)[0], journal.tables(file)[0]
        names = [n for n in there.column_names if n.endswith((".crc32c", ".length")) and n in made.column_names]
        was, is_now = (
            {row["key"]: row for row in table.select(["key", *names]).to_pylist()} for table in (there, made)
        )
        others = [key for key, row in was.items() if is_now.get(key) != row]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return f", because of {', '.join(others[:3])}{more}" if others else ""

    def _needs(self, shard: ShardPlan) -> bool:
        """True for a damaged shard, and for all that a damaged index or list of skipped items tells of."""
        split = self.manifest.splits.get(shard.split)
        tables = set() if split is None else {split.index, split.chunks}
        return bool(self.damaged & {shard.file, "skipped.jsonl", *tables})

    def _tables(self, split: Split, journal: Journal, parts: Mapping[str, Part]) -> Iterator[str]:
        """Write the index and the chunk table of a split where one is damaged."""
        if not self.damaged & {split.index, split.chunks}:
            return
        files = [shard.file for shard in split.shards]
        upright = all(part.facts.get("orientation", [1]) == [1] for part in parts.values()) and self._others_upright()
        tables = index_tables(journal.tables, files, self.manifest.schema, upright, Counter())
        with replacing(self.staging / split.index) as path:
            index.write(path, tables)
        made = {split.index: split.index_digest}
        if split.chunks is not None:
            chunks = (table for file in files if (table := journal.tables(file)[1]) is not None)
            with replacing(self.staging / split.chunks) as path:
                index.write(path, chunks)
            made[split.chunks] = str(split.chunks_digest)
        for file, digest in made.items():
            if file_digest(self.staging / file) != digest:
                raise _not_the_same(self.root, file)
            yield file

    def _others_upright(self) -> bool:
        """True when no index that is whole says that pictures are turned; all indexes have that column, or none."""
        whole = [split.index for split in self.manifest.splits.values() if split.index not in self.damaged]
        return all("orientation" not in index.Index(self.root / file, None) for file in whole)

    def _side_files(self, parts: Mapping[str, Part]) -> list[str]:
        """Write those that are damaged in the staging folder: of shards, all of which are whole by now."""
        bad: Sequence[BadItem] = ()
        if "skipped.jsonl" in self.damaged:
            bad = sorted((*self.listing.bad, *(b for part in parts.values() for b in part.bad)))
        made = write_side_files(self.staging, self.manifest, bad, self.root)
        ready = [file for file in made if file in self.damaged]
        for file in ready:
            if made[file] != self.manifest.files[file]:
                raise _not_the_same(self.root, file)
        return ready


def _step_aside(folder: Path) -> tuple[str, ...]:
    """Clear the place of a file that a folder takes; the name of it where it holds something, which is somebody's."""
    if not any(folder.iterdir()):
        folder.rmdir()
        return ()
    aside = f"{folder.name}.aside-{uuid.uuid4().hex[:6]}"
    os.rename(folder, folder.with_name(aside))
    return (aside,)


_CHANGED = "Contents of the source or versions of libraries have changed. Use --drop, or convert again."
_CLASSES = " (An HDF5 shard also names the classes there were when it was appended.)"


def _not_the_same(root: Path, file: str) -> DamagedError:
    return DamagedError(
        f"{file} made again is not the one that the manifest names: versions of libraries have changed",
        path=root,
        hint="Convert again with --overwrite.",
    )
