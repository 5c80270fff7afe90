"""--on-bad quarantine: the files of bad items are copied aside, to OUT-quarantine; the source itself is never touched.

>>> folder_of(Path("data/out")).name
'out-quarantine'
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from streamkit.atomic import replacing
from streamkit.errors import UsageError
from streamkit.sources import BadItem, Source


def folder_of(out: Path) -> Path:
    """Where the bad files of a conversion to `out` go: beside it, because a dataset's folder holds the dataset alone."""
    return out.with_name(f"{out.name}-quarantine")


def check_folder(src: Path, out: Path) -> None:
    """Raise UsageError where bad files would be copied into the source."""
    there, source = folder_of(out).resolve(), src.resolve()
    if there == source or there in source.parents:
        raise UsageError("the source is where bad files would go", path=there, hint="Choose another output.")


def set_aside(bad: Iterable[BadItem], source: Source, src: Path, out: Path) -> tuple[int, int]:
    """Copy the files of bad items to `folder_of(out)`, under their paths in the source.

    Returns:
        Files copied, and items that have no file of their own to copy: rows of tables, files that are missing, cannot be
        read or lie outside the source.
    """
    files = {source.file(item.key) for item in bad}
    top = os.path.realpath(src)
    n_left = 0
    copied = set()
    for file in sorted(file for file in files if file is not None):
        real = os.path.realpath(file)
        inside = real == top or real.startswith(top + os.sep)
        if not inside or not os.path.isfile(real) or not os.access(real, os.R_OK):
            n_left += 1
            continue
        name = file.name if real == top else os.path.relpath(file, src)
        place = folder_of(out) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as path:
            shutil.copyfile(real, path)
        copied.add(place)
    return len(copied), n_left + (None in files)
