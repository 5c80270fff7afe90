"""`convert`: look and plan (planning.py), write every shard (writing.py), publish; and what is done about bad items.

>>> import tempfile
>>> report = convert("sample_data/images", tempfile.mkdtemp() + "/out", format="tfrecord", workers=1)
>>> sorted(report.manifest.splits)
['train', 'val']
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from streamkit.atomic import os_error, sync_folder
from streamkit.codecs import image
from streamkit.convert import skipped
from streamkit.convert.anywhere import anywhere
from streamkit.convert.append import Before
from streamkit.convert.cluster import dask_executor
from streamkit.convert.duplicates import Duplicate
from streamkit.convert.executor import Progress
from streamkit.convert.journal import Journal, Part
from streamkit.convert.options import Options, parse_split
from streamkit.convert.output import already_there, check_paths
from streamkit.convert.planning import Planned, Survey, look
from streamkit.convert.publish import publish
from streamkit.convert.quarantine import check_folder, folder_of, set_aside
from streamkit.convert.report import Report, nothing_new, unchanged
from streamkit.convert.room import lying_there, need_room, need_writable
from streamkit.convert.swap import finish_swap, swap
from streamkit.convert.writing import Writing, bad_items
from streamkit.errors import BusyError, SourceError, UsageError
from streamkit.manifest import FILE_NAME, WORK_FOLDER, Manifest
from streamkit.sources import BadItem, Source


@anywhere
def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str,
    split: Mapping[str, float] | str | None = None,
    encode: str = "keep",
    resize: str | int | None = None,
    tile: str | None = None,
    window: int | None = None,
    stride: str | int | None = None,
    compression: str = "auto",
    check: str = "decode",
    shard_size: str | int = "128MB",
    workers: int | None = None,
    cluster: str | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    max_pixels: int = image.MAX_PIXELS,
    labels: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    group_by: str | None = None,
    on_duplicate: str = "keep",
    on_bad: str = "fail",
    append: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], Progress] | None = None,
) -> Report:
    """Convert a folder of images or arrays, or a table file, into a dataset.

    Args:
        source: folder of images, .npy files or texts (class folders are labels), or of TIFF scenes; one .npy, .npz or .h5
            of N rows; CSV, TSV, JSON Lines, Parquet or WebDataset tars, one file or a folder of them. An address of a
            server, as labels and masks: then it is copied to this machine first.
        out: folder to make; the same call again continues an interrupted conversion. An address: then the dataset is made
            on this machine and sent when it is whole.
        format: "tfrecord" or "hdf5".
        split: fractions by name, {"train": 0.9, "val": 0.1} or "train=0.9,val=0.1"; split folders are found by themselves.
        encode: "keep" (bytes untouched), "jpeg[:Q]", "png", "webp[:Q]" or "raw".
        resize: N (short side, never enlarged) or "HxW"; of tiles, after they were cut.
        tile: "HxW", cuts pictures into tiles: keys `path#y,x`, columns tile_y and tile_x, all of a picture in one split.
        window: rows, cuts .npy arrays, or those in a table's rows, along axis 0: keys `path#start`, column window_start, all
            of a file or row in one split.
        stride: "HxW" from one tile to the next, or rows from one window to the next; by default they lie side by side.
            The last one is shifted inwards.
        compression: of arrays: "auto", "none", "zlib[:L]" (tfrecord), "gzip[:L]", "lzf", "zstd[:L]", "lz4", "blosc2" (hdf5).
        check: "decode" (every byte is decoded once) or "header".
        shard_size: wanted size of a shard, such as "128MB".
        workers: processes; None takes one a core. On a cluster or an executor: shards handed out at a time. Never changes
            the bytes written.
        cluster: "tcp://HOST:PORT" of a Dask scheduler, whose workers write the shards to `out` themselves: source and
            output lie where all machines see them under the same path, and libraries are the same everywhere.
        executor: any `concurrent.futures.Executor` to run shards on instead, such as an MPI pool; as `cluster`.
        seed: salts the order of samples and the choice of splits.
        max_pixels: larger pictures are refused.
        labels: CSV, TSV, JSON Lines, Parquet, COCO json or Pascal VOC (file or folder): column `file`, or else the first,
            names the item, the others become fields; several rows an item become variable-length fields `objects/NAME`.
        masks: folder with a second picture for each, of the same path without suffix; the field `mask`.
        group_by: a column; samples of equal values stay in one split.
        on_duplicate: of samples of the same content, "keep" all (and report those in two splits), "drop" all but the one
            of the lowest key, or "fail".
        on_bad: "fail" (list every bad item, publish nothing), "skip" (leave them out, list them in skipped.jsonl) or
            "quarantine" (as skip, and copy their files to OUT-quarantine).
        append: add the items that the dataset does not have as new shards; what is there stays where it is, and readers of
            the old manifest keep working. Options must be the same.
        overwrite: replace a dataset that is there; it stays until the new one is whole.
        dry_run: plan only; nothing is written.
        progress: called with the number of items, returns a function that is called with each number done.

    Returns:
        A `Report`.

    Raises:
        UsageError: a wrong option or path, or an output that holds something else.
        SourceError: bad items under "fail" (`.bad` lists them all), or nothing to convert.
        BusyError, ResourceError, RefusedError, RemoteError: see `streamkit.errors`.
    """
    started = time.perf_counter()
    options = Options(
        format=format,
        split=parse_split(split) if isinstance(split, str) else split,
        encode=encode,
        resize=None if resize is None else str(resize),
        tile=tile,
        window=window,
        stride=None if stride is None else str(stride),
        compression=compression,
        check=check,
        shard_size=shard_size,
        seed=seed,
        max_pixels=max_pixels,
        labels=labels is not None,
        masks=masks is not None,
        group_by=group_by,
        on_duplicate=on_duplicate,
    )
    way = Way(on_bad, workers, cluster, executor, append, overwrite, progress)
    place = os.path.abspath if way.elsewhere else os.fspath  # other processes may be at home elsewhere
    # A new dataset takes the place of the folder itself, not of a link that leads to it.
    src, final = Path(place(source)), Path(os.path.realpath(out) if overwrite else os.path.abspath(out))
    check_paths(src, final)
    if not dry_run and not (final / FILE_NAME).exists():
        need_writable(final)
    if on_bad == "quarantine":
        check_folder(src, final)
    finish_swap(final)
    beside = (None if labels is None else Path(place(labels)), None if masks is None else Path(place(masks)))
    survey = look(src, final, options, beside, append)
    report = _convert(survey, way, dry_run)
    return replace(report, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class Way:
    """How a conversion goes about it, which never shows in the bytes. See `convert` for the names."""

    on_bad: str = "fail"
    workers: int | None = None
    cluster: str | None = None
    executor: Executor | None = None
    append: bool = False
    overwrite: bool = False
    progress: Callable[[int], Progress] | None = None

    def __post_init__(self) -> None:
        if self.on_bad not in ("fail", "skip", "quarantine"):
            raise UsageError(f"on_bad is {self.on_bad!r}, expected fail, skip or quarantine")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers is {self.workers}, expected at least 1")
        if self.append and self.overwrite:
            raise UsageError("append keeps what is there, and overwrite replaces it", hint="Choose one of them.")
        if self.cluster is not None and self.executor is not None:
            raise UsageError("both a cluster and an executor to run on", hint="Choose one of them.")

    @property
    def elsewhere(self) -> bool:
        """True where shards are written by processes that this one did not start."""
        return self.cluster is not None or self.executor is not None

    def open(self) -> AbstractContextManager[Executor | None]:
        """What jobs are submitted to; None for this process and workers of its own."""
        return nullcontext(self.executor) if self.cluster is None else dask_executor(self.cluster)


def _convert(survey: Survey, way: Way, dry_run: bool) -> Report:
    """Between the two passes: what need not be written."""
    listing, final = survey.items.listing, survey.final
    if way.on_bad == "fail" and listing.bad and len(listing) == 0:
        raise bad_items(listing.bad, len(listing.bad))
    if len(listing) == 0 and survey.before is not None:
        return nothing_new(survey.before, survey.n_items, listing.notices)
    if len(listing) == 0:
        raise SourceError("no item to convert", path=survey.src)
    done = None if dry_run or way.append else already_there(final, survey.options, survey.facts, listing, way.overwrite)
    if done is not None:
        if (final / WORK_FOLDER).exists():  # a converter was killed between its manifest and its end
            with Journal(final, survey.options.to_json(), anew=True) as journal:
                journal.remove()
        return _there(survey, done, way)
    planned = survey.planned()
    report = Report(
        str(final),
        planned.schema,
        planned.whole,
        None,
        survey.n_items,
        survey.source_nbytes,
        (),
        planned.notices,
        0.0,
        compression=planned.compression,
    )
    if dry_run:
        return report
    target = final if not way.overwrite else final.with_name(f".{final.name}.new")
    if planned.nbytes is not None:
        need_room(target, planned.nbytes - lying_there(target, (shard.file for shard in planned.plan.shards)))
    try:
        return _write(survey, planned, way, report, target)
    except OSError as error:
        raise os_error(error, error.filename or target) from error


def _write(survey: Survey, planned: Planned, way: Way, report: Report, target: Path) -> Report:
    """Pass 2, under the lock: every shard, then the manifest."""
    before, options, final = survey.before, survey.options, survey.final
    identity = options.to_json() | ({} if before is None else {"append_to": before.manifest.dataset_id})
    path = os.fsencode(os.path.realpath(survey.src)).decode(errors="backslashreplace")
    made_of = {"path": path, "fingerprint": survey.facts["fingerprint"]}
    with way.open() as executor, Journal(target, identity, way.overwrite, made_of) as journal:
        # Again: another converter may just have ended.
        done = None if way.append else already_there(final, options, survey.facts, survey.items.listing, way.overwrite)
        if done is not None:
            journal.remove()
            return _there(survey, done, way)
        if before is not None and Manifest.load(final).dataset_id != before.manifest.dataset_id:
            raise BusyError("another converter has just appended here", path=final, hint="Run it again.")
        source, listing = survey.items.source, survey.items.listing
        keep_going = way.on_bad != "fail"
        writing = Writing(
            source, listing, planned.plan, planned.schema, options, journal, way.workers, keep_going, executor, before
        )
        parts, copies = writing.run(way.progress)
        bad = tuple(sorted((*listing.bad, *(b for part in parts.values() for b in part.bad))))
        notices = _quarantine(bad, copies, source, survey.src, final) if way.on_bad == "quarantine" else ()
        listed = bad if before is None else _still_bad(before, bad, parts, journal)
        if before is not None:
            parts = before.parts() | parts
        manifest = publish(target, planned.whole, planned.schema, options, survey.facts, journal, parts, listed, before)
        if way.overwrite and final.exists():
            with Journal(final, identity, anew=True):
                swap(target, final)
        elif way.overwrite:
            swap(target, final)
        journal.remove(final)
        sync_folder(final)
        begun = (f"went on with what {journal.before} began",) if journal.before else ()
    leaks = tuple(copy for copy in copies if copy.leaks and options.on_duplicate == "keep")
    n_added = 0 if before is None else _n_samples(manifest) - _n_samples(before.manifest)
    notices = (*report.notices, *begun, *notices)
    return replace(report, manifest=manifest, skipped=bad, leaks=leaks, notices=notices, n_added=n_added)


def _there(survey: Survey, done: Manifest, way: Way) -> Report:
    """Of a dataset that is there: what was left out of it is judged as if it was left out now."""
    left_out = skipped.read(survey.final) if done.skipped else []
    bad = [item for item in left_out if skipped.is_bad(item)]
    if bad and way.on_bad == "fail":
        raise bad_items(bad, survey.n_items, there=True)
    aside = way.on_bad == "quarantine"
    notices = _quarantine(bad, (), survey.items.source, survey.src, survey.final) if aside else ()
    return unchanged(survey, done, left_out, notices)


def _n_samples(manifest: Manifest) -> int:
    return sum(split.samples for split in manifest.splits.values())


def _still_bad(
    before: Before, bad: tuple[BadItem, ...], parts: Mapping[str, Part], journal: Journal
) -> tuple[BadItem, ...]:
    """Items left out before and still, and those left out now."""
    made = {key for file in parts for key in journal.tables(file)[0].column("key").to_pylist()}
    made |= {item.key for item in bad}
    return tuple(sorted((*bad, *(item for item in before.skipped() if item.key not in made))))


def _quarantine(
    bad: Sequence[BadItem], copies: Sequence[Duplicate], source: Source, src: Path, out: Path
) -> tuple[str, ...]:
    """Copy bad files aside; remarks. A dropped copy of a good sample is not bad."""
    dropped = {copy.key for copy in copies}
    n_copied, n_left = set_aside([item for item in bad if item.key not in dropped], source, src, out)
    copied = f"{n_copied} bad {'file was' if n_copied == 1 else 'files were'} copied to {folder_of(out)}"
    left = f"{n_left} bad items have no file that can be copied"
    return tuple(text for n, text in ((n_copied, copied), (n_left, left)) if n)
