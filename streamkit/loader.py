"""The loader: order + reader + codecs -> batches. Opening a split, choosing from it and checking the arguments is here.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> loader = Loader(out, split="val", batch_size=16)
>>> images, labels = next(iter(loader))
>>> images.shape, labels.dtype
((16, 32, 32, 3), dtype('int32'))
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.ahead import in_order
from streamkit.arguments import refuses_unknown
from streamkit.batch import BatchMaker
from streamkit.blocks import Blocks
from streamkit.buffers import Buffers
from streamkit.choose import by_class, choose, fingerprint, parse_split
from streamkit.chunks import band_nbytes, slab_nbytes
from streamkit.codecs.image import MAX_PIXELS
from streamkit.errors import DamagedError, UsageError
from streamkit.guard import mend
from streamkit.lengths import ByLength
from streamkit.manifest import Manifest
from streamkit.order import Batches, Order, Rows
from streamkit.reader import Reader
from streamkit.remote import address
from streamkit.replicas import place
from streamkit.rooted import shards_root
from streamkit.schema import Schema
from streamkit.shares import Shares, derived, quotas
from streamkit.sizing import Sizing, chunk_windows, n_threads, sample_nbytes, scratch_nbytes
from streamkit.skipping import Skips
from streamkit.storage import Files
from streamkit.stream import Stream
from streamkit.units import size, whole
from streamkit.view import View, extra, needed_extras

Ints = npt.NDArray[np.int64]

DEFAULT_BUDGET = 1 << 30
log = logging.getLogger("streamkit")


class Loader(Stream):
    """Streams one split of a dataset as batches of NumPy arrays.

    Args:
        path: the dataset's folder, or its address on a server, such as "s3://bucket/out".
        split: its name, or a part of it such as "train[:80%]"; needed unless there is only one.
        batch_size: samples a batch and shard; None delivers single samples.
        image_size: (height, width) [pixel] that pictures are resized to.
        shuffle: another order in every epoch; False is storage order.
        seed: of the order.
        drop_remainder: leave out a last batch that is not full.
        dtype: of images: "float32" (0 to 255), "uint8", "float16" or "float64"; color_mode: "rgb", "grayscale", "rgba".
        label_mode: "int" (int32), "categorical" (one-hot float32), "binary" (float32 (B, 1)) or None.
        interpolation: "bilinear", "nearest", "bicubic", "area", "antialias" or "lanczos3".
        crop_to_aspect_ratio: crop the centre to image_size's ratio before resizing.
        crop: "random" (random resized crop: 8 to 100 % of the area, ratio 3:4 to 4:3) or "center" (the largest box of
            image_size's ratio). The same sample gets the same crop in the same epoch, everywhere.
        flip: mirror half of the images left to right.
        fields: a name for a bare array, several for a tuple in that order; None for all. "key" is allowed, and
            "padding": True for samples that only fill up a batch, see num_shards.
        where: a pyarrow.compute expression on index columns.
        rows: numbers of stored rows to take.
        balance: True draws every class equally often, {class: weight} in that proportion; the epoch's length stays. A class
            drawn less often than it has samples goes on in the next epoch, one drawn more often repeats.
        shard_index, num_shards: which part of every global batch to deliver. Found by themselves in a process of
            tf.distribute, torch.distributed or jax.distributed. Every shard has as many batches, equally long; of a last
            global batch that does not divide, samples fewer than shards are dropped, or without shuffling filled up
            from the beginning and flagged ("padding").
        memory_budget: bytes, or text like "512MiB", for batches made ahead, decoded chunks and decoding; 1 GiB if None.
        num_workers: threads; None takes one a core (of a dataset on a server 16, which mostly wait), 0 works in the caller's.
        device: where batches go ahead of use: for as_tf() a device of TensorFlow, for as_torch() of PyTorch, for as_keras()
            of its backend; a device or sharding of JAX makes iterating the loader itself deliver its arrays.
        pad_to: ragged arrays are padded to the longest of the "batch", or to this many rows. Several numbers, such as
            (64, 256): each batch to the smallest that holds it, and samples of like length come together while shuffling.
        on_corrupt: "raise", or "skip": bad samples are left out and logged once each (logger "streamkit"); batches are
            shorter by them, under drop_remainder the next good samples stand in, so that shapes stay static.
        max_bad: share of the samples that may be bad before "skip" raises after all; each process counts what it met.
        max_pixels: of a picture; a larger one is refused, whatever the manifest allows. Decoding takes 4 bytes a pixel.
        manifest_digest: the `dataset_id` that the dataset must have; see `streamkit.open`.
        cache_dir: folder that keeps what comes from a server, for all processes and later runs; by content, never stale.
        cache_limit: bytes, or text like "100GB", that it may take; 32 GiB if None. What was not used for longest goes.
        root: of a dataset of adopted files: the folder below which they lie, where it is not the one recorded.

    Yields:
        One payload and its label: (x, label); one payload: x; otherwise a dict. Images are (B, height, width, channels),
        masks (B, height, width, 1), labels int32 (B,), ragged arrays zero-padded with NAME_length int32 (B,).

    Raises:
        UsageError: a wrong argument; the message says which and what fits.
        DamagedError: files missing, cut or altered; while iterating, names shard, record and key.
        RefusedError: a limit exceeded, or what leads out of the dataset; likewise.
    """

    @refuses_unknown("streamkit.Loader")
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
        balance: bool | Mapping[Any, float] = False,
        shard_index: int | None = None,
        num_shards: int | None = None,
        memory_budget: int | str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        num_workers: int | None = None,
        device: Any = None,
        pad_to: str | int | Sequence[int] = "batch",
        on_corrupt: str = "raise",
        max_bad: float = 0.001,
        max_pixels: int = MAX_PIXELS,
        manifest_digest: str | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        if on_corrupt not in ("raise", "skip"):
            raise UsageError(f'on_corrupt is {on_corrupt!r}, expected "raise" or "skip"')
        self.manifest = Manifest.load(path, manifest_digest)
        name, part = parse_split(split)
        chosen_split = self.manifest.split(name)
        batch_size, seed = whole("batch_size", batch_size), whole("seed", seed) or 0
        shard, n_shards = place(whole("shard_index", shard_index), whole("num_shards", num_shards))
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
            pad_to=pad_to if isinstance(pad_to, (str, int)) else tuple(pad_to),
            max_pixels=max_pixels,
        )
        self._budget = DEFAULT_BUDGET if memory_budget is None else size(memory_budget)
        self.path, self.seed, self.shuffle, self.max_bad = address.place(path), seed, shuffle, max_bad
        names = self.view.outputs(self.schema)
        self._reader = Reader(
            self.path,
            self.manifest,
            chosen_split,
            [self.schema[n] for n in names if not extra(n, self.schema)],
            needed_extras(self.view, self.schema, names),
            chunk_budget_nbytes=self._budget // 4,
            map_limit_nbytes=None if memory_budget is None else self._budget,
            lenient=on_corrupt == "skip",
            shards_root=shards_root(path, self.manifest.root, root, self.manifest.dataset_id),
            blocks=Blocks.of(cache_dir, cache_limit),
        )
        self._chosen = choose(self._reader.index, part, where, rows)
        order, facts = self._balanced(balance) if balance is not False else self._plain()
        one = 1 if batch_size is None else batch_size
        batches = Batches(order.n, one, drop_remainder, shard, n_shards, pad=not shuffle)
        if isinstance(self.view.pad_to, tuple) and shuffle:
            order = ByLength(order, self._lengths(names), batches.global_size, seed)
            facts["pad_to"] = list(self.view.pad_to)
        skips = Skips(order.n, max_bad)
        super().__init__(
            order,
            batches,
            skips if on_corrupt == "skip" else None,
            {
                "dataset": self.manifest.dataset_id,
                "split": chosen_split.name,
                "seed": seed,
                "shuffle": shuffle,
                **facts,
                "global_batch": batches.global_size,
            },
            batched=batch_size is not None,
            num_workers=n_threads(num_workers, path),
            memory_budget=self._budget,
            device=device,
        )
        _ = self._maker  # what does not fit the schema is to be said now
        if memory_budget is not None and self.memory_bound > self._budget:
            log.warning(
                "memory_budget=%r is less than one batch at a time takes: up to %d MiB. "
                'A smaller batch_size, dtype="uint8" for images, or fewer num_workers take less.',
                memory_budget,
                -(-self.memory_bound // (1 << 20)),
            )

    def _plain(self) -> tuple[Rows, dict[str, Any]]:
        """The order of the chosen rows, and what of it a cursor must know."""
        n = self._chosen[1] - self._chosen[0] if isinstance(self._chosen, tuple) else len(self._chosen)
        bounds, window = self._windows(np.arange(n), self._budget)
        chunks = None if bounds is None else f"{window} of {len(bounds) - 1} chunks"
        order = Order(n, self.seed, self.shuffle, bounds, window)
        return order, {"choosing": fingerprint(self._chosen), "window": chunks}

    def _balanced(self, balance: Any) -> tuple[Rows, dict[str, Any]]:
        """As `_plain`, with the classes' shares; the chosen rows are put in the order of their classes."""
        if (label := self.schema.label) is None:
            raise UsageError("balance needs a label, and this dataset has none", hint="Choose with rows= or where=.")
        chosen = np.arange(*self._chosen) if isinstance(self._chosen, tuple) else self._chosen
        members, weights = by_class(self._labels(chosen), label.class_names or (), balance)
        self._chosen = chosen[np.concatenate(members)]
        parts, ends = [], np.cumsum([len(numbers) for numbers in members]).tolist()
        for k, (numbers, end) in enumerate(zip(members, ends, strict=True)):
            bounds, window = self._windows(np.arange(end - len(numbers), end), self._budget // len(members))
            parts.append(Order(len(numbers), derived(self.seed, k), self.shuffle, bounds, window))
        order = Shares(tuple(parts), quotas(len(chosen), weights), self.seed, self.shuffle)
        choosing = f"{fingerprint(self._chosen)} balanced {fingerprint(np.array(order.quotas))}"
        window_of = [f"{part.window} of {len(part.bounds) - 1} chunks" for part in parts if part.bounds is not None]
        return order, {"choosing": choosing, "window": window_of or None}

    def _windows(self, numbers: Ints, budget_nbytes: int) -> tuple[Ints | None, int]:
        """Where new chunks begin among these of the chosen rows, and how many chunks are mixed at once."""
        # All chunked fields of the dataset count, so that the order does not depend on which are asked for.
        chunked = [f for f in self.schema.payloads if f.chunk_rows is not None]
        if not (self.shuffle and chunked):
            return None, 1
        return chunk_windows(chunked, self._reader.shard_starts, self._rows(numbers), budget_nbytes)

    def _lengths(self, names: Sequence[str]) -> Ints:
        """Length of the ragged field that is delivered first, of the chosen samples; stored bytes if the index has no other."""
        field = next((self.schema[n] for n in names if n in self.schema and self.schema[n].shape[:1] == (None,)), None)
        if field is None or field.is_image:
            raise UsageError("pad_to names several lengths, and no field delivered varies in length")
        shapes = self._reader.columns.get(f"{field.name}.shape")
        stored = self._reader.columns[f"{field.name}.length"]
        lengths = stored if shapes is None else shapes[:, 0]
        return lengths[slice(*self._chosen) if isinstance(self._chosen, tuple) else self._chosen]

    def _rows(self, numbers: Ints) -> Ints:
        """Rows of the index that the order's numbers stand for."""
        return numbers + self._chosen[0] if isinstance(self._chosen, tuple) else self._chosen[numbers]

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
        return Sizing(
            sample_nbytes(maker.specs, self.schema, self._reader.columns),
            self.batch_size,
            len(self),
            self.num_workers,
            self.memory_budget,
            scratch_nbytes(
                payloads, self._reader.columns, self.batch_size or 1, maker.pictures.max_pixels, self._reader.is_far
            ),
            max(self._budget // 4, (1 + self.num_workers) * max(slabs)) if slabs else 0,
            ragged=any(None in spec.shape for spec in maker.specs.values()),
        )

    def _labels(self, rows: Ints) -> Any:
        """Classes of rows of the index."""
        if (label := self.schema.label) is None:
            return None
        columns = self._reader.columns
        return (columns if label.name in columns else self._reader.index.load([label.name]))[label.name][rows]

    @property
    def _window(self) -> tuple[int, int]:
        if isinstance(order := self.order, ByLength):
            order = order.order
        parts = order.parts if isinstance(order, Shares) else (order,)
        windows = [part for part in parts if isinstance(part, Order) and part.bounds is not None]
        if not self.shuffle:
            return 1, 0
        if not windows:
            return self.n_samples, 0
        rows = sum(int(np.sort(np.diff(part.bounds))[-part.window :].sum()) for part in windows)
        return rows, rows * sum(f.sample_nbytes for f in self.schema.payloads if f.chunk_rows is not None)

    # What it is

    @property
    def schema(self) -> Schema:
        """The dataset's fields."""
        return self.manifest.schema

    @property
    def balanced(self) -> bool:
        """True when classes have shares."""
        return isinstance(self.order, Shares)

    @property
    def turned(self) -> bool:
        """True when EXIF turns some of the pictures."""
        return "orientation" in self._reader.index

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


def _dtype_name(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype))
    except TypeError:
        return str(dtype)  # the view refuses it
