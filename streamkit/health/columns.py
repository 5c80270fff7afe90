"""The columns of an index held against what the shards themselves say: other tools read the labels there.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="hdf5", workers=1)
>>> manifest = streamkit.open(out)
>>> entries = Entries(Path(out), manifest, manifest.splits["val"])
>>> contradictions(Path(out), manifest, entries, entries.index.table(["label"]), 0)
[]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamkit.errors import DamagedError
from streamkit.health.bring import here
from streamkit.health.entries import Entries
from streamkit.health.report import Problem
from streamkit.index import numpy_of
from streamkit.manifest import Manifest
from streamkit.remote.address import Address
from streamkit.shards import shard_format

Values = npt.NDArray[Any]


def contradictions(
    place: Path | Address, manifest: Manifest, entries: Entries, columns: pa.Table, number: int
) -> list[Problem]:
    """Records of shard `number`, in the folder `place`, whose columns are not those of the index, one problem each."""
    shard = entries.split.shards[number]
    start, stop = (int(n) for n in entries.starts[number : number + 2])
    reasons: dict[int, str] = {}
    try:
        with here(place / shard.file, shard.nbytes, shard.digest) as path:
            stored = shard_format(manifest.format).columns(path, manifest.schema)
    except DamagedError as error:
        return [Problem(shard.file, error.what, error.record)]
    for name, values in stored.items():
        if len(values) != stop - start:
            return [Problem(shard.file, f"has {len(values)} values of {name}, the manifest says {stop - start}")]
        said = numpy_of(columns.slice(start, stop - start), name) if len(values) else values
        for i in np.flatnonzero(~_same(values, said)).tolist():
            reasons.setdefault(i, f"{name} is {str(values[i])[:80]!r}, the index says {str(said[i])[:80]!r}")
    return [Problem(shard.file, reason, i, entries.key(start + i)) for i, reason in sorted(reasons.items())]


def _same(stored: Values, said: Values) -> npt.NDArray[np.bool_]:
    """Where values are equal, as the format stores them: floats of an Example are float32, whole numbers int64."""
    if stored.dtype != object:
        with np.errstate(over="ignore"):
            said = said.astype(stored.dtype)
    same: npt.NDArray[np.bool_] = np.asarray(stored == said, np.bool_)
    return same | ((stored != stored) & (said != said))
