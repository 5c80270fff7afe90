"""Shards: write one whole, and find the ranges in one. Both formats satisfy `ShardFormat`.

>>> shard_format("hdf5").extension
'h5'
"""

from __future__ import annotations

from streamkit.errors import UsageError
from streamkit.shards.record import Places, Record, ShardFormat

__all__ = ["Places", "Record", "ShardFormat", "shard_format"]


def shard_format(name: str) -> ShardFormat:
    """The writer and indexer of "tfrecord" or "hdf5"."""
    if name == "tfrecord":
        from streamkit.shards.tfrecord import TFRecord

        return TFRecord()
    if name == "hdf5":
        from streamkit.shards.hdf5 import HDF5

        return HDF5()
    raise UsageError(f"the format is {name!r}, expected tfrecord or hdf5")
