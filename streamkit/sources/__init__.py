"""Sources: a path in, sorted items and their samples out. One module a kind of source; `open_source` chooses.

folder.py   images, .npy files or texts, one a sample; class folders are labels
table.py    rows of one .npy, .npz or .h5 file, or of x.npy + y.npy in a folder
rows.py     rows of CSV, TSV, JSON Lines and Parquet files (rowfiles.py reads them, rowkinds.py says what the columns are)
tars.py     samples of WebDataset tars
scenes.py   TIFF files of any bands and depth, as arrays (tiff.py reads their windows)
splits.py   split folders (train, val, ...), each a source of its own
labelled.py a source with a label file beside it (labels.py, annotations.py, fields.py read it)
boxes.py    what becomes of boxes when their pictures are cut or scaled
masks.py    a source with a folder of masks beside it
tiles.py    a source of pictures cut into tiles; windows.py: one of arrays cut along axis 0

>>> type(open_source("sample_data/images")).__name__
'SplitFolders'
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from streamkit.atomic import os_error
from streamkit.errors import SourceError, UsageError
from streamkit.sources.folder import ArrayFolder, Found, ImageFolder, TextFolder, scan
from streamkit.sources.listing import BadItem, Listing, Sample, Source, key_of, path_of
from streamkit.sources.rowfiles import EXTENSIONS as ROW_EXTENSIONS
from streamkit.sources.rows import row_table
from streamkit.sources.scenes import EXTENSIONS as SCENE_EXTENSIONS
from streamkit.sources.scenes import scene_folder
from streamkit.sources.splits import SplitFolders, split_folders
from streamkit.sources.table import TABLE_EXTENSIONS, Table, folder_table
from streamkit.sources.tars import tar_source

__all__ = ["BadItem", "Listing", "Sample", "Source", "open_source"]


def open_source(
    path: str | os.PathLike[str], class_folders: bool = True, tile: tuple[int, int] | None = None
) -> Source:
    """The source at `path`.

    Args:
        path: a folder or a file.
        class_folders: whether its folders name classes.
        tile: (height, width) of tiles that are to be cut, which scenes read one by one.

    Raises:
        UsageError: the path does not exist, or is a file of a kind that is no source.
        SourceError: a folder without anything that can be read.
    """
    root = Path(path)
    if not root.exists():
        raise UsageError("this source does not exist", path=root, hint="Give a folder of images or arrays, or a file.")
    if root.is_file():
        try:
            return _file_source(root, tile)
        except OSError as error:
            raise os_error(error, error.filename or root) from error
    if not root.is_dir():
        raise UsageError("this is neither a folder nor a file", path=root)
    try:
        splits = split_folders(root)
        if splits:
            parts = ((name, folder, _folder_source(root / folder, class_folders, tile)) for name, folder in splits)
            return SplitFolders(tuple(parts))
        return _folder_source(root, class_folders, tile)
    except OSError as error:
        raise os_error(error, error.filename or root) from error


def _file_source(path: Path, tile: tuple[int, int] | None) -> Source:
    suffix = path.suffix.lower()
    if suffix in TABLE_EXTENSIONS:
        return Table((str(path),))
    files = [(str(path), key_of(path.name))]
    if suffix in ROW_EXTENSIONS:
        return row_table(str(path), files)
    if suffix in (".tar", ".tgz") or path.name.lower().endswith((".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        return tar_source(str(path), files)
    if suffix in SCENE_EXTENSIONS:
        found = Found(images=[(key_of(path.name), path.stat().st_size)])
        return scene_folder(str(path.parent), found, False, tile) or ImageFolder(str(path.parent), found, False)
    known = ", ".join((*TABLE_EXTENSIONS, *ROW_EXTENSIONS, ".tar", *SCENE_EXTENSIONS))
    hint = "Give the folder instead."
    if suffix in (".tfrecord", ".tfrecords", ".hdf5"):
        hint = f"`streamkit index {path} --out OUT` makes a dataset of it where it lies."
    raise UsageError(f"this is no file of samples (known: {known})", path=path, hint=hint)


def _folder_source(root: Path, class_folders: bool, tile: tuple[int, int] | None) -> Source:
    table = folder_table(root)
    if table is not None:
        return table
    found = scan(root)
    if found.n_images and found.n_arrays:
        raise SourceError(
            f"both images ({found.n_images}) and .npy files ({found.n_arrays})", path=root, hint="Convert them apart."
        )
    if found.n_arrays:
        return ArrayFolder(str(root), found, class_folders)
    scenes = scene_folder(str(root), found, class_folders, tile)
    if scenes is not None:
        return scenes
    if found.n_images or (found.bad and not found.texts and not found.records):
        return ImageFolder(str(root), found, class_folders)
    if found.texts:
        return TextFolder(str(root), found, class_folders)
    if found.records:
        return _record_source(root, found)
    others = ", ".join(f"{n} x {ext or 'no extension'}" for ext, n in sorted(found.others.items())[:8])
    hint = (
        "In a folder, readable are JPEG, PNG, WebP, BMP, GIF, TIFF, .npy, .txt, .csv, .tsv, .jsonl, .parquet and .tar."
    )
    if any(ext in TABLE_EXTENSIONS for ext in found.others):
        hint = (
            f"Give a file instead of its folder: the rows of one {' or '.join(TABLE_EXTENSIONS[1:])} are the samples."
        )
    raise SourceError(f"no readable item: {others or 'the folder is empty'}", path=root, hint=hint)


def _record_source(root: Path, found: Found) -> Source:
    """Files of many samples in a folder: all of one kind, one behind the other."""
    kinds = {os.path.splitext(key)[1].lower() for key, _ in found.records}
    if len(kinds) > 1:
        raise SourceError(f"files of several kinds ({', '.join(sorted(kinds))})", path=root, hint="Convert them apart.")
    files = [(str(root / path_of(key)), key) for key, _ in found.records]
    source = tar_source(str(root), files) if kinds == {".tar"} else row_table(str(root), files)
    listing = source.listing()
    listing = replace(listing, bad=(*found.bad, *listing.bad), notices=(*found.notices, *listing.notices))
    return replace(source, found=listing)
