"""Sources: a path in, sorted items and their samples out. One module a kind of source; `open_source` chooses.

folder.py   images or .npy files, one a sample; class folders are labels
table.py    rows of one .npy, .npz or .h5 file, or of x.npy + y.npy in a folder
splits.py   split folders (train, val, ...), each a source of its own
labelled.py a source with a label file beside it (labels.py, annotations.py, fields.py read it)
masks.py    a source with a folder of masks beside it
tiles.py    a source of pictures cut into tiles; windows.py: one of arrays cut along axis 0

>>> type(open_source("sample_data/images")).__name__
'SplitFolders'
"""

from __future__ import annotations

import os
from pathlib import Path

from streamkit.errors import SourceError, UsageError
from streamkit.sources.folder import ArrayFolder, ImageFolder, scan
from streamkit.sources.listing import BadItem, Listing, Sample, Source
from streamkit.sources.splits import SplitFolders, split_folders
from streamkit.sources.table import TABLE_EXTENSIONS, Table, folder_table
from streamkit.storage import os_error

__all__ = ["BadItem", "Listing", "Sample", "Source", "open_source"]


def open_source(path: str | os.PathLike[str], class_folders: bool = True) -> Source:
    """The source at `path`. `class_folders`: whether its folders name classes.

    Raises:
        UsageError: the path does not exist, or is a file of a kind that is no source.
        SourceError: a folder without anything that can be read.
    """
    root = Path(path)
    if not root.exists():
        raise UsageError("this source does not exist", path=root, hint="Give a folder of images or arrays, or a file.")
    if root.is_file():
        if root.suffix.lower() not in TABLE_EXTENSIONS:
            known = ", ".join(TABLE_EXTENSIONS)
            raise UsageError(
                f"this is no table of samples (known: {known})", path=root, hint="Give the folder instead."
            )
        return Table((str(root),))
    if not root.is_dir():
        raise UsageError("this is neither a folder nor a file", path=root)
    try:
        splits = split_folders(root)
        if splits:
            parts = ((name, folder, _folder_source(root / folder, class_folders)) for name, folder in splits)
            return SplitFolders(tuple(parts))
        return _folder_source(root, class_folders)
    except OSError as error:
        raise os_error(error, error.filename or root) from error


def _folder_source(root: Path, class_folders: bool) -> Source:
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
    if found.n_images or found.bad:
        return ImageFolder(str(root), found, class_folders)
    others = ", ".join(f"{n} x {ext or 'no extension'}" for ext, n in sorted(found.others.items())[:8])
    raise SourceError(
        f"no readable item: {others or 'the folder is empty'}",
        path=root,
        hint="Readable are JPEG, PNG, WebP, BMP, GIF, TIFF, .npy, .npz and .h5.",
    )
