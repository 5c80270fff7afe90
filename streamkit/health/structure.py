"""Whether an HDF5 file holds all it shows: no link, no values in other files, no filter that streamkit does not write.

Whoever opens a shard with h5py follows such things without a word; streamkit's own reader goes by ranges and never does.

>>> import tempfile, h5py
>>> path = Path(tempfile.mkdtemp(), "a.h5")
>>> with h5py.File(path, "w") as file:
...     file["x"] = [1]
...     file["y"] = h5py.ExternalLink("b.h5", "/y")
>>> leads_out(path, frozenset())
'y is an external link'
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from streamkit.health.report import Problem
from streamkit.manifest import Manifest

# deflate, shuffle, fletcher32, then lzf, lz4, zstd and blosc2. Source: HDF Group's list of registered filters.
_FILTERS = frozenset({1, 2, 3, 32000, 32004, 32015, 32026})


def outward(path: Path, name: str, manifest: Manifest) -> Iterator[Problem]:
    """What is wrong with the HDF5 file of a dataset that lies at `path` now."""
    if manifest.format != "hdf5" or manifest.root is not None:
        return  # adopted files are laid out as their owner likes
    shards = {shard.file for split in manifest.splits.values() for shard in split.shards}
    try:
        what = leads_out(path, () if name in shards else shards)
    except ValueError as error:
        yield Problem(name, f"h5py cannot open it: {error}")
        return
    if what:
        yield Problem(name, what, refused=True)


def leads_out(path: Path, neighbours: Collection[str]) -> str:
    """The first thing in a file that leads out of it or could not be decoded; empty when there is none.

    Args:
        path: the file, whose bytes are those that the manifest names.
        neighbours: files beside it that virtual datasets may show.

    Raises:
        ValueError: libhdf5 cannot make sense of it.
    """
    import h5py  # here, as that takes 0.2 s

    try:
        with h5py.File(path, "r", locking=False) as file:
            return file.id.links.visit(lambda name, link: _of_link(file, name, link, neighbours), info=True) or ""
    except (RuntimeError, KeyError, OSError) as error:  # what h5py makes of libhdf5's errors
        raise ValueError(str(error)) from error


def _of_link(file: Any, name: bytes, link: Any, neighbours: Collection[str]) -> str | None:
    import h5py

    text = name.decode(errors="backslashreplace")
    if link.type != h5py.h5l.TYPE_HARD:
        return f"{text} is {'a soft' if link.type == h5py.h5l.TYPE_SOFT else 'an external'} link"
    kind = h5py.h5o.get_info(file.id, name).type
    if kind == h5py.h5o.TYPE_GROUP:
        return None
    what = _of_dataset(file.id, name, neighbours) if kind == h5py.h5o.TYPE_DATASET else "is no dataset"
    return f"{text} {what}" if what else None


def _of_dataset(file: Any, name: bytes, neighbours: Collection[str]) -> str:
    import h5py

    layout = h5py.h5d.open(file, name).get_create_plist()
    if layout.get_external_count():
        return "holds its values in another file"
    filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())} - _FILTERS
    if filters:
        return f"is stored through the unknown filter {min(filters)}"
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        for i in range(layout.get_virtual_count()):
            shown = layout.get_virtual_filename(i)
            if shown not in neighbours:
                return f"shows values of the file {shown[:80]!r}"
    return ""
