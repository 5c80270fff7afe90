"""Mixtures: several datasets in one stream, each with its exact share, under one cursor.

>>> import tempfile, streamkit
>>> a, b = tempfile.mkdtemp() + "/a", tempfile.mkdtemp() + "/b"
>>> _ = streamkit.convert("sample_data/images/train", a, format="tfrecord", workers=1)
>>> _ = streamkit.convert("sample_data/images/val", b, format="hdf5", workers=1)
>>> mixture = Mixture([Loader(a), Loader(b)], [3, 1])
>>> [int(n) for n in np.bincount(np.concatenate([mixture.sources(0, i) for i in range(len(mixture))]))]
[1380, 460]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from streamkit.batch import Maker
from streamkit.errors import StreamkitError, UsageError
from streamkit.loader import DEFAULT_BUDGET, Loader
from streamkit.order import Batches
from streamkit.shares import Shares, quotas
from streamkit.sizing import Sizing
from streamkit.skipping import Skips
from streamkit.stream import Stream

Ints = npt.NDArray[np.int64]


class Mixture(Stream):
    """Batches drawn from several datasets. An epoch has as many samples as they have together.

    Args:
        parts: loaders, opened with the same arguments.
        weights: in which proportion samples are drawn from each.
        memory_budget: of all together [B].

    Raises:
        UsageError: no weight above 0, or datasets whose batches look different.
    """

    def __init__(self, parts: Sequence[Loader], weights: Sequence[float], memory_budget: int = DEFAULT_BUDGET) -> None:
        for part in parts[1:]:
            _check_alike(parts[0], part)
        if isinstance(parts[0].view.pad_to, tuple):
            raise UsageError(
                "a mixture cannot bring samples of like length together", hint="Pass one number as pad_to."
            )
        self.parts = tuple(parts)
        first = parts[0]
        n = sum(part.n_samples for part in parts)
        order = Shares(tuple(part.order for part in parts), quotas(n, weights), first.seed, first.shuffle)
        one = first.batch_size or 1
        batches = Batches(n, one, first.drop_remainder, first.shard_index, first.num_shards, pad=not first.shuffle)
        self._starts = np.cumsum([0] + [part.n_stored for part in parts])
        super().__init__(
            order,
            batches,
            Skips(n, first.max_bad) if first.skips_bad else None,
            {"mixture": [part.fingerprint for part in parts], "quotas": list(order.quotas)},
            batched=first.batch_size is not None,
            num_workers=first.num_workers,
            memory_budget=memory_budget,
            device=first.device,
        )
        self._share()

    def _share(self) -> None:
        for part in self.parts:
            part.share(self.memory_budget // len(self.parts))

    def within(self, memory_budget: int) -> Self:
        twin = super().within(memory_budget)
        twin._share()
        return twin

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 0, 1, ..., the same in all parts."""
        return self.parts[0].class_names

    def sources(self, epoch: int, batch: int) -> Ints:
        """Which part each sample of a batch is from, int64, in order."""
        return np.searchsorted(self._starts, self.rows(epoch, batch), side="right") - 1

    def _rows(self, numbers: Ints) -> Ints:
        """Rows of all parts, counted one part after the other."""
        firsts = self.order.firsts  # type: ignore[attr-defined]
        which = np.searchsorted(firsts, numbers, side="right") - 1
        out = np.empty_like(numbers)
        for k in np.unique(which).tolist():
            mine = which == k
            out[mine] = self.parts[k]._rows(numbers[mine] - firsts[k]) + self._starts[k]
        return out

    def _labels(self, rows: Ints) -> Ints | None:
        which = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.empty(len(rows), np.int64)
        for k in np.unique(which).tolist():
            mine = which == k
            if (labels := self.parts[k]._labels(rows[mine] - self._starts[k])) is None:
                return None
            out[mine] = labels
        return out

    @property
    def _window(self) -> tuple[int, int]:
        windows = [part._window for part in self.parts]
        return sum(n for n, _ in windows), sum(nbytes for _, nbytes in windows)

    @cached_property
    def _maker(self) -> Maker:
        return _Mixed([part._maker for part in self.parts], self._starts)

    @cached_property
    def _sizing(self) -> Sizing:
        sizings = [part._sizing for part in self.parts]
        return Sizing(
            max(s.sample_nbytes for s in sizings),
            self.batch_size,
            len(self),
            self.num_workers,
            self.memory_budget,
            # A batch's parts are made first, each of at most all samples; every part keeps buffers of its own.
            max(s.sample_nbytes for s in sizings) * (self.batch_size or 1) + max(s.scratch_nbytes for s in sizings),
            max(s.picture_nbytes for s in sizings),
            sum(s.kept_nbytes for s in sizings),
            ragged=True,
        )


class _Mixed:
    """Makes batches of the parts' samples: each part its own, then put in order."""

    def __init__(self, makers: Sequence[Maker], starts: Ints) -> None:
        self.makers, self.starts = makers, starts
        self.specs = makers[0].specs

    def structure(self, values: dict[str, Any]) -> Any:
        return self.makers[0].structure(values)

    def row_of(self, error: StreamkitError) -> int | None:
        for maker, start in zip(self.makers, self.starts.tolist(), strict=False):
            row = maker.row_of(error)
            if row is not None:
                return int(start + row)
        return None

    def make(self, rows: Ints, epoch: int = 0) -> dict[str, npt.NDArray[Any]]:
        which = np.searchsorted(self.starts, rows, side="right") - 1
        made = []
        for k in np.unique(which).tolist():
            places = np.flatnonzero(which == k)
            made.append((places, self.makers[k].make(rows[places] - self.starts[k], epoch)))
        if len(made) == 1:
            return made[0][1]
        return {name: _joined([(places, part[name]) for places, part in made], len(rows)) for name in made[0][1]}

    def make_each(self, rows: Ints, epoch: int = 0) -> list[dict[str, Any]]:
        which = np.searchsorted(self.starts, rows, side="right") - 1
        return [
            self.makers[k].make_each(np.array([row - self.starts[k]]), epoch)[0]
            for k, row in zip(which.tolist(), rows.tolist(), strict=True)
        ]


def _joined(parts: list[tuple[Ints, npt.NDArray[Any]]], n: int) -> npt.NDArray[Any]:
    """Values of the parts' samples at their places of a batch of `n`; where they differ in size, padded with zeros."""
    shapes = [values.shape[1:] for _, values in parts]
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    make = np.empty if len(set(shapes)) == 1 else np.zeros
    out = make((n, *shape), parts[0][1].dtype)
    for places, values in parts:
        inside: Any = (places, *(slice(0, size) for size in values.shape[1:]))
        out[inside] = values
    return out


def _check_alike(one: Loader, other: Loader) -> None:
    """Batches of both must be of one kind: fields, shapes, dtypes and classes."""
    ours, theirs = one.specs, other.specs
    if list(ours) != list(theirs):
        raise UsageError(
            f"the datasets' fields differ: {', '.join(ours)} and {', '.join(theirs)}",
            path=other.path,
            hint="Name those that all have with fields=.",
        )
    for name, spec in ours.items():
        if spec != theirs[name]:
            hint = "Pass image_size=." if len(spec.shape) == 3 else "Leave it out with fields=."
            found = f"{theirs[name].dtype} {theirs[name].shape}, in {one.path} {spec.dtype} {spec.shape}"
            raise UsageError(f"field {name!r} is {found}", path=other.path, hint=hint)
        if name in one.schema and one.schema[name].class_names != other.schema[name].class_names:
            raise UsageError(
                f"the classes of {name!r} are not those of {one.path}",
                path=other.path,
                hint="The same number would mean different classes. Convert both with the same class folders or labels.",
            )
