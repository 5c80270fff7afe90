"""`adopt`: look at what the user named, find where everything lies, write index and, last, manifest.

>>> import tempfile
>>> adopt("sample_data/images", tempfile.mkdtemp() + "/out").manifest.format
'folder'
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from streamkit import index
from streamkit.adopt.named import Named, named_files, record_files
from streamkit.adopt.part import Part, Wishes
from streamkit.atomic import os_error, replacing, sync_folder, write_atomic
from streamkit.codecs.image import MAX_PIXELS
from streamkit.convert.encode import final_schema
from streamkit.convert.executor import Progress
from streamkit.convert.journal import Part as Facts
from streamkit.convert.journal import chunk_table, summarise
from streamkit.convert.publish import statistics
from streamkit.convert.work import index_table
from streamkit.digest import file_digest
from streamkit.errors import DamagedError, RefusedError, SourceError, UsageError
from streamkit.manifest import FILE_NAME, WORK_FOLDER, Manifest
from streamkit.opening import OpenManifest
from streamkit.payloads import Payloads
from streamkit.reader import Reader
from streamkit.remote.address import local_only
from streamkit.rooted import remember
from streamkit.schema import Field, Schema
from streamkit.sources import open_source
from streamkit.sources.folder import ImageFolder
from streamkit.sources.splits import SplitFolders
from streamkit.splits import Shard, Split

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Adoption:
    """What was adopted.

    Attributes:
        out: the dataset's folder.
        root: the folder below which its files lie.
        manifest: of the dataset.
        notices: what was left out, and other remarks.
        seconds: wall time [s].
    """

    out: str
    root: str
    manifest: OpenManifest
    notices: tuple[str, ...]
    seconds: float


def adopt(
    files: Paths,
    out: str | os.PathLike[str],
    *,
    field: Mapping[str, str] | Iterable[str] | None = None,
    label: str | None = None,
    root: str | os.PathLike[str] | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> Adoption:
    """Make a dataset of files that exist, without rewriting them: only where everything lies is stored.

    Args:
        files: TFRecord or HDF5 files, or one folder: of images (class and split folders as `convert` has them), or of such
            files. Splits are told by file names ("train-00.tfrecord", "val/00.h5"), where those of all files say one.
        out: folder for manifest and index; the same call again brings it up to date.
        field: what a field is where the bytes do not say: {"pixels": "image"}, or ["pixels=image"].
        label: the feature or dataset that is the label: whole numbers, or text.
        root: folder that the files' paths are stored relative to (default: the deepest that holds them all).
        progress: called with the number of files of an image folder, returns a function that is called with each number
            done.

    Returns:
        An `Adoption`; `.manifest` is what `streamkit.open` gives.

    Raises:
        UsageError: a path or name that does not exist, or an output that holds something else.
        SourceError: files that cannot be adopted, and what to do about it.
        RefusedError: values that lie in other files, unknown filters, limits exceeded.
        ResourceError: disk or permission.
    """
    started = time.perf_counter()
    paths = [local_only(p, "index") for p in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    if not paths:
        raise UsageError("no file to index", hint="Give TFRecord or HDF5 files, or a folder.")
    wishes = Wishes.parse([field] if isinstance(field, str) else field, label)
    final = Path(os.path.abspath(local_only(out, "index")))
    found = _look(paths, wishes, None if root is None else Path(root), progress)
    _check_out(final, found)
    try:
        final.mkdir(parents=True, exist_ok=True)
        manifest = _publish(final, found)
    except OSError as error:
        raise os_error(error, error.filename or final) from error
    notices = list(found.notices)
    if not remember(manifest.dataset_id):
        notices.append(f"your home folder cannot be written, so reading needs root={str(found.root)!r}")
    return Adoption(str(final), str(found.root), manifest, tuple(notices), time.perf_counter() - started)


@dataclass(frozen=True)
class _Found:
    """All that is to be published."""

    root: Path
    format: str
    schema: Schema
    parts: tuple[Part, ...]
    notices: tuple[str, ...]


def _look(
    paths: Sequence[Path], wishes: Wishes, root: Path | None, progress: Callable[[int], Progress] | None
) -> _Found:
    if not any(path.is_dir() for path in paths):
        return _records(named_files(paths, root), wishes)
    if len(paths) > 1:
        raise UsageError("several paths, and one is a folder", hint="Give files, or one folder.")
    (folder,) = paths
    try:
        source = open_source(folder)
    except SourceError:
        files = record_files(folder)
        if not files:
            raise
        return _records(named_files(files, folder if root is None else root), wishes)
    folders = [one for _, _, one in source.parts] if isinstance(source, SplitFolders) else [source]
    if not isinstance(source, (ImageFolder, SplitFolders)) or not all(isinstance(f, ImageFolder) for f in folders):
        raise UsageError("this folder holds arrays, not images", path=folder, hint="Run `streamkit convert` on it.")
    if wishes.kinds or wishes.label is not None:
        raise UsageError("--field and --label are for TFRecord and HDF5; of a folder, class folders are the labels")
    if root is not None and not os.path.samefile(root, folder):
        raise UsageError("the root of an image folder is the folder itself", path=root, hint="Leave --root out.")
    return _pictures(source, folder, progress)


def _records(named: Named, wishes: Wishes) -> _Found:
    if named.format == "tfrecord":
        from streamkit.adopt.examples import adopt_examples as of
    else:
        from streamkit.adopt.datasets import adopt_datasets as of
    fields, parts, notices = of(named.root, named.files, named.splits, wishes)
    return _Found(named.root, named.format, Schema(tuple(fields)), tuple(parts), tuple(notices))


def _pictures(source: ImageFolder | SplitFolders, folder: Path, progress: Callable[[int], Progress] | None) -> _Found:
    from streamkit.adopt.pictures import adopt_pictures

    listing = source.listing()
    fields, parts = adopt_pictures(source, listing, None if progress is None else progress(len(listing)))
    if not parts:
        raise SourceError("no image to index", path=folder)
    return _Found(Path(os.path.realpath(folder)), "folder", Schema(tuple(fields)), tuple(parts), listing.notices)


def _check_out(out: Path, found: _Found) -> None:
    """The output may be new, empty, an adopted dataset, or a folder that the adopted files lie in."""
    if out.is_file():
        raise UsageError("the output is a file", path=out, hint="Choose a folder that is new or empty.")
    if not out.exists() or not any(out.iterdir()):
        return
    if (out / FILE_NAME).exists():
        if Manifest.load(out).root is None:
            raise UsageError("the output holds a converted dataset", path=out, hint="Choose another folder.")
        return
    top = Path(os.path.realpath(out))
    if (out / WORK_FOLDER).exists() or (top != found.root and top not in found.root.parents):
        names = ", ".join(sorted(p.name for p in out.iterdir())[:3])
        raise UsageError(f"the output is not empty ({names})", path=out, hint="Choose a folder that is new or empty.")


def _publish(out: Path, found: _Found) -> OpenManifest:
    """Write the indexes, prove them, and write the manifest last. An older manifest goes first: it has other indexes."""
    parts = found.parts
    facts = {
        p.file: Facts(Shard(p.file, p.places.n, p.nbytes, p.digest), summarise(_lists(p.facts)), (), "") for p in parts
    }
    schema = final_schema(found.schema, [fact.facts for fact in facts.values()])
    (out / FILE_NAME).unlink(missing_ok=True)
    splits, counts = {}, {}
    for name in dict.fromkeys(p.split for p in parts):
        mine = [p for p in parts if p.split == name]
        splits[name] = _write_split(out, name, schema, mine)
        labels: Counter[int] = Counter()
        for part in mine if schema.label is not None else ():
            values, numbers = np.unique(part.columns["label"], return_counts=True)
            labels.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        counts[name] = labels
    manifest = OpenManifest(
        format=found.format,
        schema=schema,
        splits=splits,
        options={"max_pixels": MAX_PIXELS},
        source={"items": sum(p.places.n for p in parts), "bytes": sum(p.nbytes for p in parts)},
        statistics=statistics(schema, counts, facts),
        root=Path(os.path.relpath(found.root, os.path.realpath(out))).as_posix(),
        path=str(out / FILE_NAME),
    )
    if found.format == "hdf5":
        _prove(out, found.root, manifest)
    write_atomic(out / FILE_NAME, manifest.dump().encode())
    sync_folder(out)
    return manifest


def _lists(facts: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in facts.items()}


def _write_split(out: Path, name: str, schema: Schema, parts: Sequence[Part]) -> Split:
    upright = all(set(p.facts.get("orientation", (1,))) == {1} for p in parts)
    n_chunks, tables, chunk_tables = 0, [], []
    shifts = [f"{f.name}.chunk" for f in schema if f.chunk_rows is not None]
    some_skipped = any(p.places.chunks is not None and p.places.chunks["skipped"].any() for p in parts)
    for part in parts:
        places = part.places
        ranges = places.ranges | {column: places.ranges[column] + n_chunks for column in shifts}
        facts = {k: v for k, v in part.facts.items() if k != "orientation" or not upright}
        tables.append(index_table(schema, part.file, part.keys, part.columns, facts, replace(places, ranges=ranges)))
        if places.chunks is not None:
            n_chunks += len(places.chunks["offset"])
            chunks = {k: v for k, v in places.chunks.items() if k != "skipped" or some_skipped}
            chunk_tables.append(chunk_table(replace(places, chunks=chunks), part.file))
    index_file, chunks_file = f"index-{name}.parquet", f"chunks-{name}.parquet" if shifts else None
    with replacing(out / index_file) as path:
        index.write(path, tables)
    if chunks_file is not None:
        with replacing(out / chunks_file) as path:
            index.write(path, (table for table in chunk_tables if table is not None))
    return Split(
        name,
        samples=sum(p.places.n for p in parts),
        nbytes=sum(p.nbytes for p in parts),
        index=index_file,
        index_digest=file_digest(out / index_file),
        shards=tuple(Shard(p.file, p.places.n, p.nbytes, p.digest) for p in parts),
        chunks=chunks_file,
        chunks_digest=None if chunks_file is None else file_digest(out / chunks_file),
    )


def _prove(out: Path, root: Path, manifest: Manifest) -> None:
    """Hold some rows of every file to libhdf5's own reading, before the manifest says that they can be read.

    Filters have variants that only their data shows.
    """
    import h5py
    import hdf5plugin  # noqa: F401  (its import makes libhdf5 know the filters)

    from streamkit.sources.datasets import plain_datasets

    for split in manifest.splits.values():
        reader = Reader(out, manifest, split, manifest.schema.payloads, shards_root=root)
        for shard, start in zip(split.shards, reader.shard_starts.tolist(), strict=False):
            inside = np.unique([0, shard.samples // 2, shard.samples - 1])
            with h5py.File(root / shard.file, "r") as file:
                datasets, _ = plain_datasets(file)
                for field in manifest.schema.payloads:
                    _hold(reader, field, datasets[field.name], start, inside)
        reader.files.close()


def _hold(reader: Reader, field: Field, dataset: Any, start: int, inside: Any) -> None:
    try:
        ours = np.empty((len(inside), *(int(d or 0) for d in field.shape)), field.dtype)
        Payloads(reader).raw_into(field, start + inside, ours)
        theirs = np.stack([dataset[i] for i in inside.tolist()]).astype(field.dtype)
    except (OSError, DamagedError) as error:
        raise RefusedError(f"{field.name} cannot be read: {error}", path=dataset.file.filename) from None
    if ours.tobytes() != theirs.reshape(ours.shape).tobytes():
        raise RefusedError(
            f"{field.name} ({field.encoding}) does not read as libhdf5 reads it",
            path=dataset.file.filename,
            hint="`streamkit convert` reads it by libhdf5.",
        )
