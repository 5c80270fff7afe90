"""`convert`: list the source, plan, write every shard, publish. Pass 1 and pass 2 of DESIGN's conversion.

>>> import tempfile
>>> report = convert("sample_data/images", tempfile.mkdtemp() + "/out", format="tfrecord", workers=1)
>>> sorted(report.manifest.splits)
['train', 'val']
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamkit.codecs import image
from streamkit.convert.append import Before
from streamkit.convert.assign import NOTHING
from streamkit.convert.duplicates import Duplicate
from streamkit.convert.executor import Progress
from streamkit.convert.items import find_items
from streamkit.convert.journal import Journal, Part
from streamkit.convert.measure import measure
from streamkit.convert.options import Options, parse_split
from streamkit.convert.output import already_there, check_paths, finish_swap, swap
from streamkit.convert.plan import Plan, make_plan
from streamkit.convert.publish import publish, source_facts
from streamkit.convert.quarantine import check_folder, folder_of, set_aside
from streamkit.convert.writing import Writing, bad_items
from streamkit.errors import BusyError, SourceError, UsageError
from streamkit.manifest import WORK_FOLDER, Manifest
from streamkit.schema import Schema
from streamkit.shards import shard_format
from streamkit.sources import BadItem, Listing, Source
from streamkit.storage import os_error


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        out: the dataset's folder.
        schema: its fields (of a dry run, as planned).
        plan: splits and shards.
        manifest: None for a dry run.
        n_items: items found in the source.
        source_nbytes: their size [B].
        skipped: items left out, with reasons.
        leaks: samples of the same content in two splits.
        notices: what was left in the source, and other remarks.
        seconds: wall time [s].
        already_done: the dataset was there, finished and unchanged.
    """

    out: str
    schema: Schema
    plan: Plan
    manifest: Manifest | None
    n_items: int
    source_nbytes: int
    skipped: tuple[BadItem, ...]
    notices: tuple[str, ...]
    seconds: float
    leaks: tuple[Duplicate, ...] = ()
    already_done: bool = False


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
        source: folder of images (class folders are labels) or .npy files; or one .npy, .npz or .h5 of N rows.
        out: folder to make; the same call again continues an interrupted conversion.
        format: "tfrecord" or "hdf5".
        split: fractions by name, {"train": 0.9, "val": 0.1} or "train=0.9,val=0.1"; split folders are found by themselves.
        encode: "keep" (bytes untouched), "jpeg[:Q]", "png", "webp[:Q]" or "raw".
        resize: N (short side, never enlarged) or "HxW"; of tiles, after they were cut.
        tile: "HxW", cuts pictures into tiles: keys `path#y,x`, columns tile_y and tile_x, all of a picture in one split.
        window: rows, cuts .npy arrays along axis 0: keys `path#start`, column window_start, all of a file in one split.
        stride: "HxW" from one tile to the next, or rows from one window to the next; by default they lie side by side.
            The last one is shifted inwards.
        compression: of arrays: "auto", "none", "zlib[:L]" (tfrecord), "gzip[:L]", "lzf", "zstd[:L]", "lz4", "blosc2" (hdf5).
        check: "decode" (every byte is decoded once) or "header".
        shard_size: wanted size of a shard, such as "128MB".
        workers: processes; None takes one a core. Never changes the bytes written.
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
        BusyError, ResourceError, RefusedError: see `streamkit.errors`.
    """
    started = time.perf_counter()
    if isinstance(split, str):
        split = parse_split(split)
    options = Options(
        format=format,
        split=split,
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
    if on_bad not in ("fail", "skip", "quarantine"):
        raise UsageError(f"on_bad is {on_bad!r}, expected fail, skip or quarantine")
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}, expected at least 1")
    src, final = Path(source), Path(os.path.abspath(out))
    check_paths(src, final)
    if on_bad == "quarantine":
        check_folder(src, final)
    if append and overwrite:
        raise UsageError("append keeps what is there, and overwrite replaces it", hint="Choose one of them.")
    finish_swap(final)
    before = Before.load(final, options) if append else None
    beside = [None if path is None else Path(path) for path in (labels, masks)]
    items = find_items(src, beside[0], beside[1], options)
    facts = source_facts(items.listing)
    n_items, source_nbytes = facts["items"], facts["bytes"]
    if before is not None:
        whole, items = items.listing, before.new_items(items)
        n_items, source_nbytes = len(items.listing) + len(whole.bad), int(items.listing.sizes.sum())
        facts = before.source_facts(facts, whole, n_items, source_nbytes)
    opened, listing = items.source, items.listing
    if on_bad == "fail" and listing.bad and len(listing) == 0:
        raise bad_items(listing.bad, len(listing.bad))
    if len(listing) == 0 and before is not None:
        return _nothing_new(before, n_items, listing.notices, started)
    if len(listing) == 0:
        raise SourceError("no item to convert", path=src)
    schema, sizes = measure(items, options)
    schema = schema if before is None else before.storage(schema)
    there = NOTHING if before is None else before.there(options)
    plan = make_plan(listing, options, shard_format(format).extension, sizes, there)
    report = Report(
        str(final),
        schema,
        plan if before is None else before.plan(plan),
        None,
        n_items,
        source_nbytes,
        (),
        (*listing.notices, *_remarks(schema, options, listing)),
        0.0,
    )
    if dry_run:
        return _finish(report, started)
    done = None if append else already_there(final, options, facts, overwrite)
    if done is not None:
        if (final / WORK_FOLDER).exists():  # a converter was killed between its manifest and its end
            with Journal(final, options.to_json(), anew=True) as journal:
                journal.remove()
        return _finish(report, started, manifest=done, already_done=True)
    target = final if not overwrite else final.with_name(f".{final.name}.new")
    try:
        identity = options.to_json() | ({} if before is None else {"append_to": before.manifest.dataset_id})
        with Journal(target, identity, anew=overwrite) as journal:
            # Again: another converter may just have ended.
            done = None if append else already_there(final, options, facts, overwrite)
            if done is not None:
                journal.remove()
                return _finish(report, started, manifest=done, already_done=True)
            if before is not None and Manifest.load(final).dataset_id != before.manifest.dataset_id:
                raise BusyError("another converter has just appended here", path=final, hint="Run it again.")
            writing = Writing(opened, listing, plan, schema, options, journal, workers, on_bad != "fail")
            parts, copies = writing.run(progress)
            bad = tuple(sorted((*listing.bad, *(b for part in parts.values() for b in part.bad))))
            notices = _quarantine(bad, copies, opened, src, final) if on_bad == "quarantine" else ()
            listed = bad if before is None else _still_bad(before, bad, parts, journal)
            if before is not None:
                parts = before.parts() | parts
            manifest = publish(target, report.plan, schema, options, facts, journal, parts, listed, before)
            if overwrite:
                swap(target, final)
    except OSError as error:
        raise os_error(error, error.filename or target) from error
    leaks = tuple(copy for copy in copies if copy.leaks and options.on_duplicate == "keep")
    return _finish(report, started, manifest=manifest, skipped=bad, leaks=leaks, notices=(*report.notices, *notices))


def _nothing_new(before: Before, n_items: int, notices: tuple[str, ...], started: float) -> Report:
    """The report of an append that finds nothing to add; what a killed one left goes."""
    if (before.root / WORK_FOLDER).exists():
        with Journal(before.root, {}, anew=True) as journal:
            journal.remove_strays({s.file for split in before.manifest.splits.values() for s in split.shards})
            journal.remove()
    manifest = before.manifest
    plan = before.plan(Plan((), ()))
    report = Report(str(before.root), manifest.schema, plan, manifest, n_items, 0, (), notices, 0.0, already_done=True)
    return _finish(report, started)


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
    copied = f"{n_copied} bad files were copied to {folder_of(out)}"
    left = f"{n_left} bad items have no file that can be copied"
    return tuple(text for n, text in ((n_copied, copied), (n_left, left)) if n)


def _remarks(schema: Schema, options: Options, listing: Listing) -> Iterator[str]:
    """What the user asked for and does not get, or may not have meant."""
    if options.shard_nbytes < 100_000:
        yield f"a shard size of {options.shard_nbytes} bytes makes many small files; write 128MB for megabytes"
    if options.compression not in ("auto", "none"):
        for field in schema.payloads:
            if field.kind == "array" and field.encoding == "raw" and field.name not in listing.arrays:
                yield f"{field.name} is not compressed: arrays of many shapes lie flat in HDF5; TFRecord compresses them"
    if options.reencodes and not any(field.is_image for field in schema):
        yield "--encode and --resize act on pictures, and there are none"
    if options.resize is not None and any(field.name.startswith("objects/") for field in schema):
        yield "objects/... stay in pixels of the pictures as they were before --resize"


def _finish(report: Report, started: float, **changes: Any) -> Report:
    return replace(report, seconds=time.perf_counter() - started, **changes)
