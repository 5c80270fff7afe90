"""Choosing samples before any payload is read: a slice of stored rows, `where`, `rows`, then classes. All on the index.

>>> parse_split("train[10%:30%]")
('train', slice('10%', '30%', None))
>>> resolve(slice("10%", "30%"), 50)
(5, 15)
>>> by_class(np.array([0, 2, 0]), ("cat", "dog", "owl"), {"cat": 3, "owl": 1, "dog": 0})
([array([0, 2]), array([1])], [3.0, 1.0])
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError, did_you_mean
from streamkit.index import Index

Ints = npt.NDArray[np.int64]


def parse_split(text: str | None) -> tuple[str | None, slice]:
    """Name and slice of "train", "train[:80%]" or "train[100:200]"."""
    if text is None:
        return None, slice(None)
    match = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", text)
    if match is None:
        raise UsageError(f"split is {text!r}", hint='Write a name, or a part of it like "train[:80%]".')
    return match[1], slice(match[2], match[3])


def resolve(part: slice, n: int) -> tuple[int, int]:
    """First and past-the-last row of a slice of `n` rows; percents are rounded to the nearest row, as TFDS does."""

    def at(text: str | None, default: int) -> int:
        if text is None:
            return default
        value = round(float(text[:-1]) / 100 * n) if text.endswith("%") else int(text)
        return max(0, min(n, n + value if value < 0 else value))

    start, stop = at(part.start, 0), at(part.stop, n)
    return start, max(start, stop)


def choose(index: Index, part: slice, where: Any, rows: Any) -> Ints | tuple[int, int]:
    """The chosen rows: (first, past-the-last) while they are a run, else an int64 array in the order given.

    Args:
        index: the split's index.
        part: a slice from `parse_split`.
        where: a pyarrow.compute expression on index columns, or None.
        rows: row numbers to take, or None.

    Raises:
        UsageError: nothing is left, or a row number or column does not exist.
    """
    start, stop = resolve(part, index.n_rows)
    if where is None and rows is None:
        if stop == start:
            raise UsageError(f"no sample is chosen: the slice covers none of {index.n_rows} rows")
        return start, stop
    chosen = np.arange(start, stop) if rows is None else _numbers(rows)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= index.n_rows):
        raise UsageError(f"rows go from {chosen.min()} to {chosen.max()}, the split has {index.n_rows}")
    chosen = chosen[(chosen >= start) & (chosen < stop)]
    if where is not None:
        chosen = chosen[_mask(index, where)[chosen]]
    if not chosen.size:
        raise UsageError("no sample is chosen", hint="Widen split=, where= or rows=.")
    return chosen


def _numbers(rows: Any) -> Ints:
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise UsageError(f"rows are {numbers.dtype} of shape {numbers.shape}, expected a list of whole numbers")
    return numbers.astype(np.int64)


def _mask(index: Index, where: Any) -> npt.NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.dataset

    if not isinstance(where, pa.compute.Expression):
        raise UsageError("where is no pyarrow.compute expression", hint='Write pyarrow.compute.field("label") == 1.')
    data = pyarrow.dataset.dataset(str(index.file), format="parquet")
    try:
        table = data.to_table(columns={"chosen": where})
        if not pa.types.is_boolean(table.schema.field("chosen").type):
            raise pa.ArrowInvalid("it is no comparison")
    except pa.ArrowException as error:
        raise _inapplicable(str(error), index.names) from None
    return np.asarray(table.column("chosen").fill_null(False).to_numpy(), np.bool_)


def _inapplicable(said: str, columns: Sequence[str]) -> UsageError:
    """One line of what Arrow says in several."""
    hint = f"The index has {', '.join(columns)}."
    if (missing := re.match(r"No match for FieldRef\.Name\((.*?)\) in ", said)) is not None:
        return UsageError(f"where: there is no column {missing[1]!r}", hint=did_you_mean(missing[1], columns) + hint)
    if (types := re.search(r"no kernel matching input types \((.+), (.+)\)", said)) is not None:
        if types[2] == "string":
            hint = 'Write a number; a label is that of its class, streamkit.open(OUT).class_names.index("cat") for cat.'
        return UsageError(f"where compares {types[1]} with {types[2]}", hint=hint)
    return UsageError(f"where cannot be applied: {said.splitlines()[0]}", hint=hint)


def by_class(
    labels: Ints, class_names: Sequence[str], balance: bool | Mapping[Any, float]
) -> tuple[list[Ints], list[float]]:
    """Which of the chosen samples belong to each class that is to be drawn from, and the classes' weights.

    Args:
        labels: of the chosen samples, int64 (n,).
        class_names: names of the classes, if they have any.
        balance: True for equal weights, or class (name or number) -> weight, every class named; 0 leaves one out.

    Raises:
        UsageError: a class without a weight, a weight without a sample, or weights that are none.
    """
    found = np.unique(labels)
    name = dict(enumerate(class_names))
    if balance is True:
        weights = dict.fromkeys(found.tolist(), 1.0)
    elif isinstance(balance, Mapping):
        number = {text: i for i, text in name.items()}
        unknown = next((key for key in balance if isinstance(key, str) and key not in number), None)
        if unknown is not None:
            names = ", ".join(class_names[:20]) + ", ..." * (len(class_names) > 20)
            hint = f"{did_you_mean(unknown, class_names)}Classes are {names or 'numbers'}."
            raise UsageError(f"balance: there is no class {unknown!r}", hint=hint)
        weights = {number.get(key, key): _weight(key, weight) for key, weight in balance.items()}
        missing = [i for i in found.tolist() if i not in weights]
        absent = [key for key, weight in weights.items() if weight and key not in found.tolist()]
        if missing or absent:
            what = "gives no weight for class" if missing else "wants samples of class"
            which = [name.get(i, i) for i in missing or absent]
            raise UsageError(
                f"balance {what} {', '.join(map(repr, which[:5]))}" + ("" if missing else ", and none is chosen"),
                hint="Name every class; weight 0 leaves one out.",
            )
    else:
        raise UsageError(f"balance is {balance!r}, expected True, False or class -> weight")
    classes = [i for i in found.tolist() if weights[i]]
    if not classes:
        raise UsageError("balance leaves out every class")
    return [np.flatnonzero(labels == i) for i in classes], [weights[i] for i in classes]


def _weight(of: Any, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise UsageError(f"the weight of {of!r} is {weight!r}, expected a number of 0 or more")
    return float(weight)


def fingerprint(chosen: Ints | tuple[int, int]) -> str:
    """A short digest of the choice, for the cursor."""
    if isinstance(chosen, tuple):
        return f"{chosen[0]}:{chosen[1]}"
    return hashlib.blake2b(chosen.astype("<i8").tobytes(), digest_size=8).hexdigest()
