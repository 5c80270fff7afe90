"""`verify`: every size, count, digest and index entry of a dataset; nothing is written, whatever is found.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="hdf5", workers=1)
>>> report = verify(out)
>>> report.ok, report.n_samples, report.n_shards
(True, 1840, 2)
>>> with open(out + "/val-00000.h5", "r+b") as file:
...     _ = file.seek(30_000), file.write(b"?????")
>>> [(problem.file, problem.record) for problem in verify(out).problems]
[('val-00000.h5', 41)]
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from streamkit.atomic import os_error
from streamkit.codecs.image import MAX_PIXELS
from streamkit.errors import DamagedError, RefusedError, UsageError
from streamkit.health.bring import first_bytes, here, size_of
from streamkit.health.decode import undecodable
from streamkit.health.entries import CHUNKS, Entries, ShardRanges, open_entries
from streamkit.health.loose import LooseCheck
from streamkit.health.mending import next_step
from streamkit.health.report import Problem, Report
from streamkit.health.scan import Scan, disk_failed, scan
from streamkit.health.structure import outward
from streamkit.manifest import FILE_NAME, MAKE_AGAIN, Manifest
from streamkit.remote.address import Address, place
from streamkit.rooted import shards_root
from streamkit.shards.tfrecord import begins_a_record, first_broken
from streamkit.splits import Shard, Split

Progress = Callable[[int], None]
_HEAD_NBYTES = 12
# Format -> whether a file's first bytes can be right, and of what.
_BEGINS: dict[str, tuple[Callable[[bytes], bool], str]] = {
    "tfrecord": (begins_a_record, "a TFRecord"),
    "hdf5": (lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
}


def verify(
    path: str | os.PathLike[str],
    *,
    quick: bool = False,
    full: bool = False,
    workers: int | None = None,
    root: str | os.PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], Progress] | None = None,
) -> Report:
    """Check a dataset against its manifest and index. Every byte is read once; nothing is written.

    Args:
        path: the dataset's folder, or its address on a server; shards there are copied here, one by one.
        quick: sizes and headers only, and the index's digest.
        full: decode every payload as well, and look for what leads out of HDF5 files.
        workers: shards read at once; None takes one a core.
        root: of adopted files: the folder they lie in, where it is not the one recorded.
        max_pixels: of a picture, for `full`; a larger one is refused, as loaders refuse it.
        progress: called with the number of bytes to be read, returns what is told of bytes done.

    Returns:
        What was found. Damage is a problem in the report, not an exception.

    Raises:
        UsageError: the path does not exist or is no dataset.
        FormatVersionError: written by a newer release.
        RefusedError: a manifest that is refused for safety.
        ResourceError: the system refuses to open what is to be checked, such as for want of permission.
        RemoteError: a server that does not give what is to be checked.
    """
    if quick and full:
        raise UsageError("quick and full exclude each other")
    started = time.perf_counter()
    mode = "quick" if quick else "full" if full else "default"
    try:
        manifest = Manifest.load(path)
    except DamagedError as error:
        return Report(str(place(path)), mode, problems=(Problem(FILE_NAME, error.what),), hint=error.hint or MAKE_AGAIN)
    folder = place(path)
    try:
        below = shards_root(path, manifest.root, root, manifest.dataset_id)
    except DamagedError as error:  # once, and not once a file
        return Report(str(folder), mode, problems=(Problem(str(error.path), error.what),), hint=error.hint)
    check = Check(folder, manifest, workers, progress, below, deep=full)
    problems, undecoded = list[Problem](), list[Problem]()
    try:
        problems.extend(check.quick() if quick else check.all())
        if full:
            undecoded = undecodable(folder, below, manifest, check.lost, check.entries, check.n_workers, max_pixels)
            problems += undecoded
    except (DamagedError, RefusedError) as error:  # of an index's texts, by which loose files are found
        if (file := Path(str(error.path)).name) not in {problem.file for problem in problems}:
            problems.append(Problem(file, error.what, refused=isinstance(error, RefusedError)))
    except OSError as error:
        raise os_error(error, error.filename or folder) from error
    return Report(
        str(folder),
        mode,
        n_samples=sum(split.samples for split in manifest.splits.values()),
        n_shards=sum(len(split.shards) for split in manifest.splits.values()),
        nbytes=check.nbytes,
        problems=tuple(problems),
        seconds=time.perf_counter() - started,
        hint=next_step(path, manifest, problems, check.lost, undecoded) if problems else "",
    )


class Check:
    """A check under way: opens the tables once, reads shards in threads. `deep`: opens HDF5 files with h5py as well.

    Attributes:
        entries: split name -> its tables, or None where they are damaged.
        lost: shard file -> rows of its split whose bytes are wrong, for shards that are damaged.
        nbytes: bytes read so far [B].
    """

    def __init__(
        self,
        root: Path | Address,
        manifest: Manifest,
        workers: int | None = None,
        progress: Callable[[int], Progress] | None = None,
        place: Path | Address | None = None,
        deep: bool = False,
    ) -> None:
        self.root, self.manifest, self.deep = root, manifest, deep
        self.place = root if place is None else place  # where the shards lie: adopted ones lie elsewhere
        if workers is not None and workers < 1:
            raise UsageError(f"workers is {workers}, expected at least 1")
        self.n_workers = workers or len(os.sched_getaffinity(0))
        self.entries: dict[str, Entries | None] = {}
        self.lost: dict[str, np.ndarray] = {}
        self._beside = sum(len(split.shards) for split in manifest.splits.values()) < self.n_workers
        self.nbytes, self._lock = 0, threading.Lock()
        self._progress = progress
        self._tick: Progress | None = None
        self._files = {s.digest: s.file for split in manifest.splits.values() for s in split.shards}

    def quick(self) -> Iterator[Problem]:
        """Sizes and headers."""
        for split in self.manifest.splits.values():
            yield from self._open(split)
            if self.manifest.format not in _BEGINS:
                if self.entries[split.name] is not None:
                    yield from LooseCheck(self.root, self.place, self.manifest, split).sizes()
                continue
            for shard in split.shards:
                yield from self._size_and_head(shard)
        for name, file in self.manifest.files.items():
            yield from self._size(self.root, name, file.nbytes)

    def all(self) -> Iterator[Problem]:
        """Everything."""
        shards = [(split, i) for split in self.manifest.splits.values() for i in range(len(split.shards))]
        total = sum(split.shards[i].nbytes for split, i in shards) + sum(f.nbytes for f in self.manifest.files.values())
        self._tick = None if self._progress is None else self._progress(total)
        for split in self.manifest.splits.values():
            yield from self._open(split)
        with ThreadPoolExecutor(self.n_workers, thread_name_prefix="streamkit") as pool:
            of_texts = pool.map(Entries.problems_of_texts, filter(None, self.entries.values()))
            of_shards = pool.map(lambda one: list(self._shard(*one)), shards)
            of_files = pool.map(lambda name: list(self._side_file(name)), self.manifest.files)
            yield from chain.from_iterable(chain(of_texts, of_shards, of_files))

    def _open(self, split: Split) -> list[Problem]:
        self.entries[split.name], problems = open_entries(self.root, self.manifest, split)
        return problems

    def _size(self, folder: Path | Address, name: str, nbytes: int) -> Iterator[Problem]:
        try:
            size = size_of(folder, name)
        except FileNotFoundError:
            yield Problem(name, "is missing")
        except RefusedError as error:
            yield Problem(name, error.what, refused=True)
        else:
            if size != nbytes:
                yield Problem(name, f"has {size} bytes, the manifest says {nbytes}")

    def _size_and_head(self, shard: Shard) -> Iterator[Problem]:
        wrong = list(self._size(self.place, shard.file, shard.nbytes))
        yield from wrong
        if wrong or not shard.samples:
            return
        begins, what = _BEGINS[self.manifest.format]
        try:
            if not begins(first_bytes(self.place / shard.file, min(_HEAD_NBYTES, shard.nbytes))):
                yield Problem(shard.file, f"its first bytes are not those of {what}")
        except OSError as error:
            yield Problem(shard.file, disk_failed(error, 0))

    def _side_file(self, name: str) -> Iterator[Problem]:
        said = self.manifest.files[name]
        wrong = list(self._size(self.root, name, said.nbytes))
        yield from wrong
        if wrong:
            return
        with here(self.root / name, said.nbytes, said.digest) as path:
            found = self._scan(path, said.nbytes, ShardRanges.of([]))
            if self.deep and found.digest == said.digest and name.endswith(".h5"):
                yield from outward(path, name, self.manifest)
        if found.error:
            yield Problem(name, found.error)
        elif found.digest != said.digest:
            yield Problem(name, f"digest is {found.digest[:16]}..., the manifest says {said.digest[:16]}...")

    def _scan(self, path: Path, nbytes: int, ranges: ShardRanges) -> Scan:
        found = scan(path, nbytes, ranges.offsets, ranges.lengths, self._done, self._beside)
        with self._lock:
            self.nbytes += found.nbytes
        return found

    def _done(self, nbytes: int) -> None:
        if self._tick is not None:
            with self._lock:
                self._tick(nbytes)

    def _shard(self, split: Split, number: int) -> Iterator[Problem]:
        """Everything about one shard."""
        if self.manifest.format not in _BEGINS:
            if self.entries[split.name] is not None:
                yield from self._loose(split)
            return
        shard, entries = split.shards[number], self.entries[split.name]
        every_row = np.arange(shard.samples) if entries is None else np.arange(*entries.starts[number : number + 2])
        wrong = list(self._size(self.place, shard.file, shard.nbytes))
        yield from wrong
        if wrong and not wrong[0].reason.startswith("has"):
            self.lost[shard.file] = every_row
            return
        ranges = ShardRanges.of([]) if entries is None else entries.ranges(number)
        trouble = ranges.trouble(shard.nbytes)
        if trouble:
            yield Problem(split.index, f"{shard.file}: {trouble}")
            ranges, entries = ShardRanges.of([]), None
        with here(self.place / shard.file, shard.nbytes, shard.digest) as path:
            found = self._scan(path, shard.nbytes, ranges)
            same = found.digest == shard.digest and not found.error
            broken = "" if same or found.error else self._broken(path)
            yield from outward(path, shard.file, self.manifest) if self.deep and same else ()
        bad = ~found.read | (found.crcs != ranges.crcs)
        if same and not bad.any() and not wrong:
            return
        rows = self.lost[shard.file] = every_row if entries is None else entries.rows_of(number, ranges, bad)
        if found.error:
            yield Problem(shard.file, found.error)
        elif not same and found.digest in self._files:
            yield Problem(shard.file, f"holds the bytes of {self._files[found.digest]}")
        elif not same and entries is None:
            yield Problem(shard.file, _digests(found, shard) + broken)
        elif not same and not wrong and not bad.any():
            where = broken or "; every payload is whole, the damage lies between them"
            yield Problem(shard.file, _digests(found, shard) + where)
        if entries is not None:
            first, reasons = int(entries.starts[number]), _reasons(ranges, found, bad)
            for row in rows.tolist():
                reason = reasons.get(row, "its chunk is damaged: the crc32c is not the chunk table's")
                yield Problem(shard.file, reason, record=row - first, key=entries.key(row))

    def _loose(self, split: Split) -> Iterator[Problem]:
        problems = list(LooseCheck(self.root, self.place, self.manifest, split).contents(self._count))
        self.lost[split.shards[0].file] = np.array([problem.record for problem in problems], np.int64)
        yield from problems

    def _broken(self, path: Path) -> str:
        """Which record of a damaged TFRecord is the first to fail its own sums."""
        found = first_broken(path) if self.manifest.format == "tfrecord" else ""
        return f"; {found}" if found else ""

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes
        self._done(nbytes)


def _digests(found: Scan, shard: Shard) -> str:
    return f"digest is {found.digest[:16]}..., the manifest says {shard.digest[:16]}..."


def _reasons(ranges: ShardRanges, found: Scan, bad: np.ndarray) -> dict[int, str]:
    """Row -> what is wrong with its own range; rows of chunks are not told one by one."""
    out: dict[int, str] = {}
    for i in np.flatnonzero(bad).tolist():
        if ranges.names[ranges.fields[i]] != CHUNKS:
            reason = f"crc32c is {found.crcs[i]:08x}, the index says {ranges.crcs[i]:08x}"
            out[int(ranges.items[i])] = reason if found.read[i] else "the file ends before its last byte"
    return out
