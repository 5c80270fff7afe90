"""One split of a dataset as a stream: what it is, how its batches are made, and what they take.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> loader = streamkit.Loader(out, split="val", batch_size=16)
>>> isinstance(loader, SplitStream), loader.n_stored, loader.balanced, loader.turned
(True, 240, False, False)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from streamkit.ahead import in_order
from streamkit.batch import BatchMaker
from streamkit.buffers import Buffers
from streamkit.chunks import band_nbytes, slab_nbytes
from streamkit.errors import DamagedError
from streamkit.guard import mend
from streamkit.order import Batches
from streamkit.ordered import Ordered, Ordering, labels_of
from streamkit.parted import Parted
from streamkit.remote import address
from streamkit.schema import Schema
from streamkit.sizing import Sizing, sample_nbytes, scratch_nbytes
from streamkit.skipping import Skips
from streamkit.storage import Files
from streamkit.stream import Stream
from streamkit.view import View

Ints = npt.NDArray[np.int64]


class SplitStream(Stream):
    """Batches of one split.

    Args:
        view: what to deliver of its samples.
        ordering: the split's reader, the seed and the memory budget.
        ordered: the rows chosen from it, and their order.
        batches: how the order is cut, and which part is delivered here.
        skips: the bad samples met; None where one is an error.
        batched: False delivers single samples.
        num_workers: threads; 0 works in the caller's.
        device: where frontends put batches ahead of use.

    Raises:
        UsageError: a view that does not fit the schema.
    """

    def __init__(
        self,
        view: View,
        ordering: Ordering,
        ordered: Ordered,
        batches: Batches,
        skips: Skips | None,
        *,
        batched: bool,
        num_workers: int,
        device: Any,
    ) -> None:
        self._reader, self._ordered, self._budget = ordering.reader, ordered, ordering.budget_nbytes
        self.manifest, self.view = self._reader.manifest, view
        if ordered.taken_nbytes:
            self._reader.keep_stretches(self._reader.kept_nbytes)
        self.path, self.seed, self.shuffle = self._reader.root, ordering.seed, ordering.shuffle
        fingerprint = {
            "dataset": self.manifest.dataset_id,
            "split": self._reader.split.name,
            "seed": self.seed,
            "shuffle": self.shuffle,
            **ordered.facts,
            "global_batch": batches.global_size,
        }
        super().__init__(
            ordered.order,
            batches,
            skips,
            fingerprint,
            batched=batched,
            num_workers=num_workers,
            memory_budget=self._budget,
            device=device,
        )
        _ = self._maker  # what does not fit the schema is to be said now

    # What it is

    @property
    def schema(self) -> Schema:
        """The dataset's fields."""
        return self.manifest.schema

    @property
    def balanced(self) -> bool:
        """True when classes have shares."""
        return self._ordered.balanced

    @property
    def turned(self) -> bool:
        """True when EXIF turns some of the pictures."""
        return "orientation" in self._reader.index

    def within(self, memory_budget: int) -> Self:
        self.share(memory_budget)
        return super().within(memory_budget)

    def share(self, memory_budget: int) -> None:
        """Keep no more from a server than a budget of so many bytes allows."""
        self._reader.share(memory_budget // 4)
        self.__dict__.pop("_sizing", None)

    def whole_shards(self) -> list[str]:
        """Where the split's shards lie, for readers other than ours, which look at no index; so each is read whole, now,
        and its digest held against the manifest's. UsageError: on a server. DamagedError: one was altered."""
        folder = address.local_only(self._reader.files.root, 'engine="graph"')
        files, shards, n_cores = self._reader.files, self._reader.split.shards, len(os.sched_getaffinity(0))
        assert isinstance(files, Files)  # others are on a server
        found = in_order(files.digest, [shard.file for shard in shards], n_cores, n_cores)
        for shard, digest in zip(shards, found, strict=True):
            if digest != shard.digest:
                raise DamagedError(
                    "this shard was altered: its digest is not the manifest's",
                    path=folder / shard.file,
                    shard=shard.file,
                    hint=mend(folder),
                )
        return [str(folder / shard.file) for shard in shards]

    @property
    def record_nbytes(self) -> int:
        """Mean size of a record [B]."""
        return max(1, self._reader.split.nbytes // max(1, self.n_stored))

    @property
    def n_stored(self) -> int:
        """Rows of the split, chosen or not."""
        return self._reader.index.n_rows

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 0, 1, ..."""
        return self.manifest.class_names

    # How batches are made

    def _jobs(self, epoch: int, numbers: range, place: int) -> list[Callable[[], list[Any]]]:
        if self._ordered.taken_nbytes and place >= self.depth:  # what is wanted first goes first
            self._expect(epoch, numbers)
        n_parts = self._sizing.n_parts_of(place)
        if n_parts == 1:
            return super()._jobs(epoch, numbers, place)
        (i,) = numbers
        choose, finish = partial(self._chosen, epoch, i), partial(self._finished, epoch, i)
        return Parted(self._maker, choose, epoch, n_parts, finish, partial(self._make, epoch, numbers)).jobs()

    def _expect(self, epoch: int, numbers: range) -> None:
        """Have the next window brought while this one is used up. What is under way reaches into it by itself, or farther;
        what lies between must be kept until then, beside what is behind."""
        window = (self._ordered.window or 0) // self._batches.global_size  # batches
        kept = self._reader.stretches_nbytes // (self._ordered.taken_nbytes * self._batches.global_size)
        n_ahead = min(window, kept // 2 - self.depth * self._sizing.n_together * numbers.step)
        later = [i + n_ahead for i in numbers if i + n_ahead < len(self)]
        if n_ahead > 0 and later:
            self._reader.expect(np.concatenate([self.rows(epoch, i) for i in later]))

    def _chosen(self, epoch: int, i: int) -> Ints:
        """Rows of batch `i`, without those known to be bad and with what stands in for them."""
        rows = self.rows(epoch, i)
        if self._skips is None:
            return rows
        return self._skips.chosen(rows, self._n_least(rows), self._behind(epoch, i))

    def _rows(self, numbers: Ints) -> Ints:
        return self._ordered.at(numbers)

    def _labels(self, rows: Ints) -> Any:
        return labels_of(self._reader, rows)

    @property
    def _window(self) -> tuple[int, int]:
        if not self.shuffle:
            return 1, 0
        if (n_mixed := self._ordered.window) is None:
            return self.n_samples, 0
        chunked = sum(f.sample_nbytes for f in self.schema.payloads if f.chunk_rows is not None)
        return n_mixed, n_mixed * (chunked or self.record_nbytes)

    @cached_property
    def _maker(self) -> BatchMaker:
        buffers = Buffers()
        maker = BatchMaker(self._reader, self.view, self.batch_size is not None, buffers, self.seed)
        self._sizing = self._sized(maker)
        buffers.keep, buffers.keep_nbytes = self._sizing.n_buffers, self._sizing.pool_nbytes
        return maker

    @cached_property
    def _sizing(self) -> Sizing:
        return self._sized(self._maker)

    def _sized(self, maker: BatchMaker) -> Sizing:
        payloads = [f for f in self._reader.fields if f.is_payload]
        slabs = [slab_nbytes(f) + band_nbytes(f) for f in payloads if f.chunk_rows is not None]
        kept = self._reader.stretches_nbytes
        gaps = self._reader.is_far and not kept  # those between stretches' rows are among what is kept
        if slabs:
            kept = max(self._reader.kept_nbytes, (1 + self.num_workers) * max(slabs))
        return Sizing(
            sample_nbytes(maker.specs, self.schema, self._reader.columns),
            self.batch_size,
            len(self),
            self.num_workers,
            self.memory_budget,
            scratch_nbytes(payloads, self._reader.columns, self.batch_size or 1, far=gaps),
            4 * maker.pictures.max_pixels * sum(f.is_encoded_image for f in payloads),
            kept,
            self._ordered.taken_nbytes if kept else 0,
            ragged=any(None in spec.shape for spec in maker.specs.values()),
            decoding=any(f.is_encoded_image for f in payloads) and not self._reader.is_far,
        )
