"""What can be said of a split of any size at once: columns of a fair part of its rows, and ranges from the index's footer.

>>> spread(10, 3)
[1, 5, 8]
>>> fair_rows(5, 10).tolist()
[0, 1, 2, 3, 4]
>>> len(set(fair_rows(100_000, 10).tolist()))
10
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streamkit.errors import DamagedError
from streamkit.guard import mend
from streamkit.index import Index, numpy_of
from streamkit.order import Order
from streamkit.remote.address import Address
from streamkit.splits import Split

MAX_ROWS = 1 << 18  # rows of the index that a report looks at; all of them in datasets up to this size
_SEED = 0


def spread(n: int, n_wanted: int) -> list[int]:
    """Numbers from 0 to n - 1, evenly spread, `n_wanted` of them where there are so many."""
    k = min(n, n_wanted)
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def fair_rows(n: int, n_wanted: int) -> npt.NDArray[np.int64]:
    """Rows drawn with equal chance and without repeats, ascending, int64; all where there are not more."""
    if n <= n_wanted:
        return np.arange(n, dtype=np.int64)
    return np.sort(Order(n, _SEED, True).rows(0, 0, n_wanted))


@contextmanager
def _reading(path: Path | Address) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"the index cannot be read: {error}", path=path, hint=mend(path.parent)) from None


def columns(root: Path | Address, split: Split, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of the named index columns that there are, for every row or for whole shards spread over a large split.

    Raises:
        DamagedError: the index is missing or cannot be read.
    """
    index = Index(root / split.index, split.samples)  # its digest would mean to read it whole
    names = [n for n in names if n in index]
    if not names or not split.samples:
        return {n: np.empty(0) for n in names}
    with _reading(index.path):
        file = pq.ParquetFile(index.file)
        mean = split.samples / file.num_row_groups
        groups = spread(file.num_row_groups, max(1, int(MAX_ROWS / mean)))
        table = file.read_row_groups(groups, columns=names)
    return {n: numpy_of(table, n) for n in names}


def ranges(root: Path | Address, split: Split, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Smallest and largest value of index columns, exact, from the footer alone; a column without them is left out."""
    index = Index(root / split.index, split.samples)
    out: dict[str, tuple[Any, Any]] = {}
    with _reading(index.path):
        meta = pq.read_metadata(index.file)
        number = {meta.schema.column(i).path: i for i in range(meta.num_columns)}
        for name in set(names) & set(number):
            found = [meta.row_group(g).column(number[name]).statistics for g in range(meta.num_row_groups)]
            if found and all(s is not None and s.has_min_max for s in found):
                out[name] = min(s.min for s in found), max(s.max for s in found)
    return out
