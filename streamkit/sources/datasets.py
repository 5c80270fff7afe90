"""The datasets of an HDF5 file that hold numbers of their own, reached by hard links alone.

>>> import tempfile, h5py
>>> with h5py.File(tempfile.mkdtemp() + "/a.h5", "w") as file:
...     file["g/x"] = [[1, 2]]; file["soft"] = h5py.SoftLink("/g/x")
...     found, left = plain_datasets(file)
>>> list(found), left[0].reason
(['g_x'], 'is a link and was not followed')
"""

from __future__ import annotations

from typing import Any

import h5py

from streamkit.errors import SourceError
from streamkit.sources.listing import BadItem

_MAX_GROUPS = 10_000
_VLEN = "is not an array of numbers but of lists (vlen), which have no addresses, and was left"


def plain_datasets(file: Any) -> tuple[dict[str, Any], list[BadItem]]:
    """Datasets of numbers with at least one axis, and what was left and why.

    A group's name goes in front with "_". `refused` marks what leads out of the file.

    Raises:
        SourceError: two datasets would have one name.
    """
    found: dict[str, Any] = {}
    left: list[BadItem] = []
    met: set[int] = set()  # hard links may make a group its own child

    def visit(group: Any, prefix: str) -> None:
        address = h5py.h5o.get_info(group.id).addr
        if address in met or len(met) > _MAX_GROUPS:
            left.append(BadItem(f"{prefix}*", "was met before and was left"))
            return
        met.add(address)
        for own in group:
            name = f"{prefix}{own}"
            if not isinstance(group.get(own, getlink=True), h5py.HardLink):
                left.append(BadItem(name, "is a link and was not followed", refused=True))
                continue
            item = group[own]
            if isinstance(item, h5py.Group):
                visit(item, f"{name}_")
            elif not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biufc" or item.ndim < 1:
                left.append(BadItem(name, _VLEN if _is_vlen(item) else "is not an array of numbers and was left"))
            elif item.is_virtual or item.external:
                left.append(BadItem(name, "lies in other files and was left", refused=True))
            elif name in found:
                raise SourceError(f"two datasets would be the field {name}", path=file.filename, hint="Rename one.")
            else:
                found[name] = item

    visit(file, "")
    return found, left


def _is_vlen(item: Any) -> bool:
    return isinstance(item, h5py.Dataset) and h5py.check_vlen_dtype(item.dtype) is not None
