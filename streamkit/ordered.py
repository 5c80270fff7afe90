"""The chosen rows put in order: over all of them or with each class's share, within windows of chunks, by length.

>>> import tempfile, streamkit
>>> from streamkit.reader import Reader
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> manifest = streamkit.open(out)
>>> reader = Reader(out, manifest, manifest.splits["val"], [manifest.schema["label"]])
>>> ordered = Ordering(reader, seed=0, shuffle=False, budget_nbytes=1 << 20, global_batch=8).plain((10, 20))
>>> ordered.at(ordered.order.rows(epoch=0, start=2, stop=5)).tolist(), ordered.facts["choosing"], ordered.window
([12, 13, 14], '10:20', None)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.choose import by_class, fingerprint
from streamkit.errors import UsageError
from streamkit.lengths import ByLength
from streamkit.order import Order, Rows
from streamkit.reader import Reader
from streamkit.shares import Shares, derived, quotas
from streamkit.sizing import chunk_windows, window
from streamkit.stretches import touched

Ints = npt.NDArray[np.int64]

_WORTH, _WORTH_ONCE = 8, 2  # rows wanted of a stretch, at least: brought in every epoch; or once, and kept


@dataclass(frozen=True, eq=False)
class Ordered:
    """Rows of a split, and the order that an epoch delivers them in.

    Attributes:
        rows: what the order's numbers stand for: (first, past-the-last) of a run, or int64 (n,).
        order: of their numbers.
        facts: what a cursor must know of both, JSON-able.
        taken_nbytes: of a sample on a server, with its share of the stretch that it lies in [B], where such are best brought
            whole; 0 where they are not.
    """

    rows: Ints | tuple[int, int]
    order: Rows
    facts: Mapping[str, Any]
    taken_nbytes: int = 0

    def at(self, numbers: Ints) -> Ints:
        """Rows of the index that the order's numbers stand for."""
        return numbers + self.rows[0] if isinstance(self.rows, tuple) else self.rows[numbers]

    @property
    def balanced(self) -> bool:
        """True when classes have shares."""
        return isinstance(self.order, Shares)

    @cached_property
    def window(self) -> int | None:
        """Samples in chunks (or stretches) that are mixed at once, at most; None where all are."""
        order = self.order.order if isinstance(self.order, ByLength) else self.order
        parts = order.parts if isinstance(order, Shares) else (order,)
        mixing = [part for part in parts if isinstance(part, Order) and part.bounds is not None]
        return sum(int(np.sort(np.diff(part.bounds))[-part.window :].sum()) for part in mixing) if mixing else None


@dataclass(frozen=True)
class Ordering:
    """How rows of a reader's split are to be put in order.

    Attributes:
        reader: has loaded the columns of the fields delivered.
        seed: of the order.
        shuffle: False is storage order.
        budget_nbytes: the loader's memory budget [B]; a part of it holds chunks that are mixed.
        global_batch: samples in a batch over all shards.
    """

    reader: Reader
    seed: int
    shuffle: bool
    budget_nbytes: int
    global_batch: int

    def plain(self, rows: Ints | tuple[int, int]) -> Ordered:
        """One order over all."""
        n = rows[1] - rows[0] if isinstance(rows, tuple) else len(rows)
        (bounds, window), taken = self._windows(rows, self.budget_nbytes), 0
        if bounds is None:
            (bounds, window), taken = self._stretches(rows)
        order = Order(n, self.seed, self.shuffle, bounds, window, self.global_batch)
        return Ordered(rows, order, {"choosing": fingerprint(rows), "window": _said(order)}, taken)

    def balanced(self, rows: Ints | tuple[int, int], balance: Any) -> Ordered:
        """With the classes' shares; the rows are put in the order of their classes."""
        if (label := self.reader.manifest.schema.label) is None:
            raise UsageError("balance needs a label, and this dataset has none", hint="Choose with rows= or where=.")
        chosen = np.arange(*rows) if isinstance(rows, tuple) else rows
        members, weights = by_class(labels_of(self.reader, chosen), label.class_names or (), balance)
        classes = [chosen[numbers] for numbers in members]
        parts = []
        for k, own in enumerate(classes):
            bounds, window = self._windows(own, self.budget_nbytes // len(classes))
            parts.append(Order(len(own), derived(self.seed, k), self.shuffle, bounds, window))
        order = Shares(tuple(parts), quotas(len(chosen), weights), self.seed, self.shuffle)
        together = np.concatenate(classes)
        choosing = f"{fingerprint(together)} balanced {fingerprint(np.array(order.quotas))}"
        said = [words for part in parts if (words := _said(part)) is not None]
        (bounds, _), taken = self._stretches(together)
        facts = {"choosing": choosing, "window": said or None}
        return Ordered(together, order, facts, taken if bounds is None else 0)  # classes' windows would each bring all

    def by_length(self, ordered: Ordered, pad_to: Sequence[int], names: Sequence[str]) -> Ordered:
        """Samples of like length together, in batches that are padded to one of `pad_to`.

        Args:
            ordered: what decides which samples are near each other.
            pad_to: lengths [row].
            names: of the fields delivered; the first of them that varies in length counts.

        Raises:
            UsageError: none of them varies in length.
        """
        lengths = self._lengths(names)
        own = lengths[slice(*ordered.rows) if isinstance(ordered.rows, tuple) else ordered.rows]
        order = ByLength(ordered.order, own, self.global_batch, self.seed)
        return replace(ordered, order=order, facts={**ordered.facts, "pad_to": list(pad_to)})

    def _windows(self, rows: Ints | tuple[int, int], budget_nbytes: int) -> tuple[Ints | None, int]:
        """Where new chunks begin among these rows, and how many chunks are mixed at once."""
        # All chunked fields of the dataset count, so that the order does not depend on which are asked for.
        chunked = [f for f in self.reader.manifest.schema.payloads if f.chunk_rows is not None]
        if not (self.shuffle and chunked):
            return None, 1
        numbers = np.arange(*rows) if isinstance(rows, tuple) else rows
        return chunk_windows(chunked, self.reader.shard_starts, numbers, budget_nbytes)

    def _stretches(self, rows: Ints | tuple[int, int]) -> tuple[tuple[Ints | None, int], int]:
        """The same for stretches of a server, and what they take a sample [B]; 0 where they are not to be brought. Where all
        can be kept, there are no windows."""
        reader, n_rows, none = self.reader, self.reader.n_together, (None, 1)
        if not self.shuffle or n_rows is None:
            return none, 0
        bounds, nbytes = touched(reader.split, reader.shard_starts, n_rows, rows)
        largest = nbytes.max()
        if not isinstance(rows, tuple):  # in whichever order they were given: what is kept whole is brought once
            _, nbytes = touched(reader.split, reader.shard_starts, n_rows, np.unique(rows))
        n_chosen, n_once = int(bounds[-1]), len(nbytes)
        taken = 1 + int(nbytes.sum() / n_chosen)
        if nbytes.sum() <= reader.kept_nbytes // 2:
            return none, taken if n_chosen >= _WORTH_ONCE * n_once else 0
        if n_chosen < min(_WORTH, int(n_rows.max()) / 2) * (len(bounds) - 1) or reader.kept_nbytes < 4 * largest:
            return none, 0  # hardly more than a request for each, or hardly any would be kept
        return (bounds, window(int(largest), self.budget_nbytes)), taken

    def _lengths(self, names: Sequence[str]) -> Ints:
        """Length of the ragged field that is delivered first, of all rows; stored bytes if the index has no other."""
        schema, columns = self.reader.manifest.schema, self.reader.columns
        field = next((schema[n] for n in names if n in schema and schema[n].shape[:1] == (None,)), None)
        if field is None or field.is_image:
            raise UsageError("pad_to names several lengths, and no field delivered varies in length")
        shapes = columns.get(f"{field.name}.shape")
        return columns[f"{field.name}.length"] if shapes is None else shapes[:, 0]


def labels_of(reader: Reader, rows: Ints) -> Any:
    """Classes of rows of the index, if they have any."""
    if (label := reader.manifest.schema.label) is None:
        return None
    return (reader.columns if label.name in reader.columns else reader.index.load([label.name]))[label.name][rows]


def _said(order: Order) -> str | None:
    """What a cursor says of an order's window."""
    if order.bounds is None:
        return None
    parts = "" if order.n_parts == 1 else f", in {order.n_parts} parts"
    return f"{order.window} of {len(order.bounds) - 1} chunks{parts}"
