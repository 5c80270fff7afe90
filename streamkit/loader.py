"""The loader: order + reader + codecs -> batches, ahead of use, in threads.

A batch is pure in (epoch, number): `loader.batch(epoch, i)` gives it in any thread and process. Iterating is that, with
the next few batches made ahead; the position to save is computed from the step, never from what was made ahead.

    >>> import tempfile, streamkit
    >>> out = tempfile.mkdtemp() + "/out"
    >>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
    >>> loader = Loader(out, split="val", batch_size=16)
    >>> images, labels = next(iter(loader))
    >>> images.shape, labels.dtype
    ((16, 32, 32, 3), dtype('int32'))
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from streamkit.ahead import in_order
from streamkit.batch import BatchMaker
from streamkit.buffers import Buffers
from streamkit.choose import choose, fingerprint, parse_split
from streamkit.chunks import slab_nbytes
from streamkit.errors import DamagedError, UsageError
from streamkit.manifest import Manifest
from streamkit.order import Batches, Cursor, Order
from streamkit.reader import Reader
from streamkit.rooted import shards_root
from streamkit.schema import Schema
from streamkit.sizing import Sizing, chunk_windows, sample_nbytes
from streamkit.skipping import Skips
from streamkit.units import size, whole
from streamkit.view import Spec, View, needed_extras

_BUDGET_NBYTES = 1 << 30


class Loader:
    """Streams one split of a dataset as batches of NumPy arrays.

    Args:
        path: the dataset's folder.
        split: its name, or a part of it such as "train[:80%]"; needed unless there is only one.
        batch_size: samples a batch and shard; None delivers single samples.
        image_size: (height, width) [pixel] that pictures are resized to.
        shuffle: another order in every epoch; False is storage order.
        seed: of the order.
        drop_remainder: leave out a last batch that is not full.
        dtype: of images: "float32" (0 to 255), "uint8", "float16" or "float64".
        color_mode: "rgb", "grayscale" or "rgba".
        label_mode: "int" (int32), "categorical" (one-hot float32), "binary" (float32 (B, 1)) or None.
        interpolation: "bilinear", "nearest", "bicubic", "area", "antialias" or "lanczos3".
        crop_to_aspect_ratio: crop the centre to image_size's ratio before resizing.
        crop: "random" (random resized crop: 8 to 100 % of the area, ratio 3:4 to 4:3) or "center" (the largest box of
            image_size's ratio). The same sample gets the same crop in the same epoch, everywhere.
        flip: mirror half of the images left to right.
        fields: a name for a bare array, several for a tuple in that order; None for all. "key" is allowed.
        where: a pyarrow.compute expression on index columns.
        rows: numbers of stored rows to take.
        shard_index, num_shards: which part of every global batch to deliver.
        memory_budget: bytes, or text like "512MiB", for batches made ahead and decoded chunks.
        num_workers: threads; None takes one a core, 0 works in the caller's.
        pad_to: ragged arrays are padded to the longest of the "batch", or to this many rows.
        on_corrupt: "raise", or "skip": bad samples are left out and logged once each (logger "streamkit"); batches are
            shorter by them, under drop_remainder the next good samples stand in, so that shapes stay static.
        max_bad: share of the samples that may be bad before "skip" raises after all.
        manifest_digest: the `dataset_id` that the dataset must have; see `streamkit.open`.
        root: of a dataset of adopted files: the folder below which they lie, where it is not the one recorded.

    Yields:
        One payload and its label: (x, label); one payload: x; otherwise a dict. Images are (B, height, width, channels),
        masks (B, height, width, 1), labels int32 (B,), ragged arrays zero-padded with NAME_length int32 (B,).

    Raises:
        UsageError: a wrong argument; the message says which and what fits.
        DamagedError: files missing, cut or altered; while iterating, names shard, record and key.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        batch_size: int | None = 32,
        image_size: tuple[int, int] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_remainder: bool = False,
        dtype: str = "float32",
        color_mode: str = "rgb",
        label_mode: str | None = "int",
        interpolation: str = "bilinear",
        crop_to_aspect_ratio: bool = False,
        crop: str | None = None,
        flip: bool = False,
        fields: str | Sequence[str] | None = None,
        where: Any = None,
        rows: Any = None,
        shard_index: int | None = None,
        num_shards: int | None = None,
        memory_budget: int | str | None = None,
        num_workers: int | None = None,
        pad_to: str | int = "batch",
        on_corrupt: str = "raise",
        max_bad: float = 0.001,
        manifest_digest: str | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        if on_corrupt not in ("raise", "skip"):
            raise UsageError(f'on_corrupt is {on_corrupt!r}, expected "raise" or "skip"')
        self.manifest = Manifest.load(path, manifest_digest)
        name, part = parse_split(split)
        chosen_split = self.manifest.split(name)
        batch_size, seed = whole("batch_size", batch_size), whole("seed", seed) or 0
        shard_index, num_shards = whole("shard_index", shard_index), whole("num_shards", num_shards)
        num_workers = whole("num_workers", num_workers)
        if num_workers is not None and num_workers < 0:
            raise UsageError(f"num_workers is {num_workers}, expected 0 or more")
        if (shard_index is None) != (num_shards is None):
            raise UsageError("shard_index and num_shards go together")
        self.view = View(
            image_size=tuple(image_size) if isinstance(image_size, list) else image_size,
            dtype=_dtype_name(dtype),
            color_mode=color_mode,
            label_mode=label_mode,
            interpolation=interpolation,
            crop_to_aspect_ratio=crop_to_aspect_ratio,
            crop=crop,
            flip=flip,
            fields=fields if fields is None or isinstance(fields, str) else tuple(fields),
            pad_to=pad_to,
        )
        self.batch_size = batch_size
        self.num_workers = len(os.sched_getaffinity(0)) if num_workers is None else num_workers
        self.memory_budget = _BUDGET_NBYTES if memory_budget is None else size(memory_budget)
        names = self.view.outputs(self.schema)
        self._reader = Reader(
            Path(path),
            self.manifest,
            chosen_split,
            [self.schema[n] for n in names if n != "key"],
            needed_extras(self.view, self.schema, names),
            chunk_budget_nbytes=self.memory_budget // 4,
            map_limit_nbytes=None if memory_budget is None else self.memory_budget,
            lenient=on_corrupt == "skip",
            shards_root=shards_root(path, self.manifest.root, root, self.manifest.dataset_id),
        )
        self._chosen = choose(self._reader.index, part, where, rows)
        n = self._chosen[1] - self._chosen[0] if isinstance(self._chosen, tuple) else len(self._chosen)
        self._skips = Skips(n, max_bad)
        self.skips_bad = on_corrupt == "skip"
        # All chunked fields of the dataset count, so that the order does not depend on which are asked for.
        chunked = [f for f in self.schema.payloads if f.chunk_rows is not None]
        bounds, window = None, 1
        if shuffle and chunked:
            rows = self._rows(np.arange(n))
            bounds, window = chunk_windows(chunked, self._reader.shard_starts, rows, self.memory_budget)
        self._order = Order(n, seed, shuffle, bounds, window)
        one = 1 if batch_size is None else batch_size
        self._batches = Batches(n, one, drop_remainder, shard_index or 0, 1 if num_shards is None else num_shards)
        self._makers()
        self._fingerprint = {
            "dataset": self.manifest.dataset_id,
            "split": chosen_split.name,
            "seed": seed,
            "shuffle": shuffle,
            "choosing": fingerprint(self._chosen),
            "window": None if bounds is None else f"{window} of {len(bounds) - 1} chunks",
            "global_batch": self._batches.global_size,
        }
        self._next_epoch, self._resume_at, self._held = 0, 0, False

    def _makers(self) -> None:
        self._buffers = Buffers(keep_nbytes=self.memory_budget)
        self._maker = BatchMaker(self._reader, self.view, self.batch_size is not None, self._buffers, self._order.seed)
        self._buffers.keep = self._sizing.n_buffers

    def _rows(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of the index that the order's numbers stand for."""
        return numbers + self._chosen[0] if isinstance(self._chosen, tuple) else self._chosen[numbers]

    # What it is

    @property
    def schema(self) -> Schema:
        """The dataset's fields."""
        return self.manifest.schema

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 0, 1, ..."""
        return self.manifest.class_names

    @property
    def n_samples(self) -> int:
        """Chosen samples in an epoch, over all shards."""
        return self._order.n

    @property
    def specs(self) -> dict[str, Spec]:
        """Output name -> shape of a sample and dtype."""
        return self._maker.specs

    @property
    def bad(self) -> tuple[DamagedError, ...]:
        """The bad samples met and left out so far, in storage order; each names its shard, record and key."""
        return tuple(error for _, error in sorted(self._skips.bad.items()))

    @property
    def shard_index(self) -> int:
        """Which part of every global batch is delivered."""
        return self._batches.shard_index

    @property
    def drop_remainder(self) -> bool:
        """True when every batch is full."""
        return self._batches.drop_remainder

    def structure(self, values: Mapping[str, Any]) -> Any:
        """Arrange one value an output as batches are arranged: bare, tuple or dict."""
        return self.view.structure(dict(values), self.schema)

    def __len__(self) -> int:
        """Batches in a whole epoch (samples, with batch_size=None)."""
        return len(self._batches)

    # Batches

    def rows(self, epoch: int, batch: int) -> npt.NDArray[np.int64]:
        """Stored rows of batch `batch` of an epoch, int64, in order."""
        return self._rows(self._order.rows(epoch, *self._batches.positions(batch)))

    def batch(self, epoch: int, i: int) -> Any:
        """Batch `i` of `epoch`. Pure: the same arguments give the same batch anywhere."""
        rows = self.rows(epoch, i)
        if self.batch_size is None:
            return self._maker.structure(self._maker.make_each(rows, epoch)[0])
        n_least = len(rows) if self.drop_remainder else 1
        made = self._good(rows, lambda rows: self._maker.make(rows, epoch), n_least, epoch, i)
        return self._maker.structure(made)

    def _good(self, rows: Any, make: Any, n_least: int, epoch: int, i: int) -> Any:
        """`make(rows)`; under on_corrupt="skip" without bad ones, filled up from the samples behind batch `i`."""
        if not self.skips_bad:
            return make(rows)

        def following(n: int) -> npt.NDArray[np.int64]:
            start = self._batches.positions(i)[1] % self._order.n
            ahead, around = (self._order.rows(epoch, *part) for part in self._order.around(start, n))
            return self._rows(np.concatenate([ahead, around]))

        return self._skips.make(rows, make, self._reader.row_of, n_least, following)

    def __getitem__(self, i: int) -> Any:
        """Batch `i` of the current epoch; never advances it."""
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"batch {i} is outside the epoch's {n} batches")
        return self.batch(self.epoch, i % n)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration delivers; may be set."""
        return self._next_epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}, expected 0 or more")
        self._next_epoch, self._resume_at = epoch, 0

    @property
    def resumed(self) -> bool:
        """True while the next iteration delivers the rest of an epoch only."""
        return self._resume_at > 0

    def begin_epoch(self) -> tuple[int, int]:
        """Take the next epoch: its number, and the batch that it begins with (not 0 after `resume` only)."""
        taken = self._next_epoch, self._resume_at
        if not self._held:
            self._next_epoch, self._resume_at = taken[0] + 1, 0
        return taken

    def held(self, epoch: int, batch: int = 0) -> Self:
        """A twin whose every iteration is this epoch from this batch on: whoever peeks into it moves nothing."""
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__ | {"_next_epoch": epoch, "_resume_at": batch, "_held": True}
        return twin

    def __iter__(self) -> Generator[Any, None, None]:
        """One epoch. The k-th iteration begun is epoch k."""
        epoch, start = self.begin_epoch()
        return self.stream(epoch, range(start, len(self)))

    def stream(self, epoch: int, numbers: range) -> Generator[Any, None, None]:
        """Batches `numbers` of an epoch, made ahead in threads, in order."""
        step = self._sizing.n_together
        groups = [numbers[i : i + step] for i in range(0, len(numbers), step)]
        for made in in_order(lambda group: self._make(epoch, group), groups, self.num_workers, self.depth):
            made.reverse()
            while made:
                if isinstance(made[-1], _Failed):
                    raise made[-1].error
                yield made.pop()  # the batch is the caller's now; its buffer is free when they drop it

    def _make(self, epoch: int, numbers: range) -> list[Any]:
        """One task: batches of these numbers up to one that fails, so that those before it are delivered first."""
        if self.batch_size is not None:
            made: list[Any] = []
            for i in numbers:
                try:
                    made.append(self.batch(epoch, i))
                except Exception as error:
                    return [*made, _Failed(error)]
            return made
        rows = np.concatenate([self.rows(epoch, i) for i in numbers])
        samples = self._good(rows, lambda rows: self._maker.make_each(rows, epoch), 0, epoch, numbers[-1])
        return [self._maker.structure(sample) for sample in samples]

    @cached_property
    def _sizing(self) -> Sizing:
        nbytes = sample_nbytes(self.specs, self.schema, self._reader.columns)
        return Sizing(nbytes, self.batch_size, len(self), self.num_workers, self.memory_budget)

    @property
    def sample_nbytes(self) -> int:
        """Size of a sample while it is made [B]; of axes that vary, the longest stored one counts."""
        return self._sizing.sample_nbytes

    @property
    def depth(self) -> int:
        """Tasks under way or waiting: as many as the budget holds, at least one."""
        return self._sizing.depth

    @property
    def memory_bound(self) -> int:
        """What the loader's batches and decoded chunks take at most [B], whatever the dataset's size."""
        slabs = [slab_nbytes(f) for f in self._reader.fields if f.chunk_rows is not None]
        held = max(self.memory_budget // 4, (1 + self.num_workers) * max(slabs)) if slabs else 0
        return self._sizing.bound_nbytes + held

    # Resume

    def cursor_at(self, step: int) -> dict[str, Any]:
        """The resume state after `step` global batches since epoch 0, also when this loader itself was resumed.

        Returns:
            A JSON-able dict of a few integers.
        """
        n_steps = whole("step", step) or 0
        if n_steps < 0:
            raise UsageError(f"step is {step}, expected 0 or more")
        epoch, batch = divmod(n_steps, max(1, len(self)))
        return Cursor(epoch, batch * self._batches.global_size, self._fingerprint).to_json()

    def resume(self, cursor: Mapping[str, Any]) -> None:
        """Continue from a cursor: the next iteration yields the rest of its epoch, later ones whole epochs.

        Raises:
            UsageError: a cursor of another dataset, split, seed, choice or global batch; the message says which differ.
        """
        parsed = Cursor.parse(cursor, self._fingerprint)
        batch, rest = divmod(parsed.position, self._batches.global_size)
        if rest or batch > len(self):
            raise UsageError(f"the cursor's position {parsed.position} is no batch border of this epoch")
        ended = batch == len(self)
        self._next_epoch, self._resume_at = (parsed.epoch + 1, 0) if ended else (parsed.epoch, batch)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_buffers"], state["_maker"]
        state.pop("_sizing", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._makers()


class _Failed(NamedTuple):
    """Stands in a task's batches for the one that could not be made."""

    error: Exception


def _dtype_name(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype))
    except TypeError:
        return str(dtype)  # the view refuses it
