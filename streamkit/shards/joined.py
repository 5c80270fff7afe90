"""`train.h5`: all HDF5 shards of a split as one file for h5py users, without a copy of any payload.

Fixed shapes are one virtual array over all shards. Flat payloads are one virtual uint8 array, with real global offsets.

    >>> import tempfile, pathlib
    >>> from streamkit.shards import Record, shard_format
    >>> schema = Schema((Field("x", "array", "uint8", (2,)),))
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for i in range(2):
    ...     records = [Record("a", {"x": bytes([i, i])}, {}, {})]
    ...     _ = shard_format("hdf5").write_shard(folder / f"s{i}.h5", schema, records)
    >>> join_shards(folder / "s.h5", schema, [("s0.h5", 1), ("s1.h5", 1)])
    >>> with h5py.File(folder / "s.h5") as file:
    ...     file["x"][:].tolist()
    [[0, 0], [1, 1]]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from streamkit.errors import DamagedError
from streamkit.schema import Field, Schema
from streamkit.shards.chunked import own_dataset
from streamkit.shards.hdf5 import flat_offsets, is_flat, make_group, write_class_names
from streamkit.shards.new_file import new_file


def join_shards(path: Path, schema: Schema, shards: Sequence[tuple[str, int]], folder: Path | None = None) -> None:
    """Write `train.h5`: every field of all shards as one virtual dataset; flat payloads with real global offsets.

    Args:
        path: the file to write. It names the shards as its neighbours, wherever it is written.
        shards: (file name, samples), in order.
        folder: where the shards lie now; beside `path` if None.
    """
    total = sum(n for _, n in shards)
    with new_file(path) as out:
        for field in schema:
            make_group(out, field.name)
            if is_flat(field) or field.kind == "string":
                _join_flat(out, folder or path.parent, field, shards)
                continue
            shape = tuple(int(d) for d in field.shape if d is not None)
            dtype = np.dtype(field.dtype).newbyteorder("<")
            dataset = _create_virtual(out, field.name, dtype, (total, *shape), shards)
            write_class_names(out, field, dataset)


def _create_virtual(
    out: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], sources: Sequence[tuple[str, int]]
) -> Any:
    """A dataset of `shape` made of the first n rows of the same dataset in other files, (file name, n) in order."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)  # h5py's own create_virtual_dataset notes the time, and bytes must not
    space = h5py.h5s.create_simple(shape)
    at = 0
    for file, n in sources:
        if n:
            here = space.copy()
            here.select_hyperslab((at, *(0 for _ in shape[1:])), (n, *shape[1:]))
            plist.set_virtual(here, file.encode(), name.encode(), h5py.h5s.create_simple((n, *shape[1:])))
        at += n
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5py.h5d.create(out.id, name.encode(), kind, space, dcpl=plist))


def _join_flat(out: Any, folder: Path, field: Field, shards: Sequence[tuple[str, int]]) -> None:
    offsets, shapes, sizes, described = [np.zeros(1, np.int64)], [], [], None
    for name, n in shards:
        try:
            with h5py.File(folder / name, "r") as file:
                own = flat_offsets(file, field.name, os.path.getsize(folder / name))
                if len(own) != n + 1:
                    raise ValueError(f"{field.name!r} has {len(own) - 1} samples, not {n}")
                offsets.append(own[1:] + offsets[-1][-1])
                sizes.append(int(own[-1]))
                described = own_dataset(file, field.name).attrs.get("streamkit", described)
                if f"{field.name}_shapes" in file:
                    found = own_dataset(file, f"{field.name}_shapes")
                    if found.dtype != np.int32 or found.shape != (n, len(field.shape)):
                        raise ValueError(f"the shapes of {field.name!r} are no int32 ({n}, {len(field.shape)})")
                    shapes.append(found[:])
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: h5py's, of a file that cannot be closed
            raise DamagedError(f"cannot be read as a shard: {error}", shard=name) from None
    sources = [(name, size) for (name, _), size in zip(shards, sizes, strict=True)]
    dataset = _create_virtual(out, field.name, np.dtype(np.uint8), (sum(sizes),), sources)
    if described is not None:
        dataset.attrs["streamkit"] = described
    write_class_names(out, field, dataset)
    out.create_dataset(f"{field.name}_offsets", data=np.concatenate(offsets))
    if shapes:
        out.create_dataset(f"{field.name}_shapes", data=np.concatenate(shapes))
