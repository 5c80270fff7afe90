"""`streamkit.open`: what a dataset is, without reading a payload.

>>> from streamkit.errors import UsageError
>>> try: open("no/such/folder")
... except UsageError as error: print(error)
no/such/folder: this path does not exist. Give the folder that `streamkit convert` made.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from streamkit.index import Index
from streamkit.manifest import Manifest
from streamkit.remote.address import Address, place
from streamkit.tables import index_columns

if TYPE_CHECKING:
    import pyarrow as pa


class OpenManifest(Manifest):
    """A manifest read from a folder or an address, which can read the indexes beside it."""

    def index(self, split: str | None = None) -> pa.Table:
        """The index of a split as a pyarrow.Table: one row a sample; README describes its columns.

        Raises:
            UsageError: no such split.
            DamagedError: the index is missing or altered.
        """
        found, columns = self.split(split), index_columns(self.schema)
        return Index(place(self.path or "").parent / found.index, found.samples, found.index_digest, columns).table()


def open(path: str | os.PathLike[str] | Address, *, manifest_digest: str | None = None) -> OpenManifest:
    """Open a dataset: its splits, schema, class_names, class_weights(), statistics and index().

    Args:
        path: the dataset's folder, or its address on a server.
        manifest_digest: pins the dataset: the `dataset_id` that it must have (or BLAKE3 of manifest.json, in hex). All
            other digests stand in the manifest, so what is read is then exactly what was pinned.

    Raises:
        UsageError: the path does not exist or is no dataset.
        RefusedError: another dataset than the pinned one, or a limit or the dataset's folder was to be left.
        DamagedError: unfinished, or its manifest was altered.
        FormatVersionError: written by a newer release.
        RemoteError: a server that does not give it.
    """
    return OpenManifest.load(path, manifest_digest)
