"""The loader: the arguments of users, and what is opened for them: a split, the rows chosen from it, their order.

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
from pathlib import Path
from typing import Any

import numpy as np

from streamkit.arguments import refuses_unknown
from streamkit.blocks import Blocks
from streamkit.choose import choose, parse_split, resolve
from streamkit.codecs.image import MAX_PIXELS
from streamkit.errors import UsageError
from streamkit.manifest import Manifest
from streamkit.order import Batches
from streamkit.ordered import Ordering
from streamkit.reader import Reader
from streamkit.remote import address
from streamkit.remote.address import Address
from streamkit.replicas import place
from streamkit.rooted import shards_root
from streamkit.sizing import n_threads
from streamkit.skipping import Skips
from streamkit.split_stream import SplitStream
from streamkit.splits import Split
from streamkit.units import flag, size, whole
from streamkit.view import View, extra, needed_extras

DEFAULT_BUDGET = 1 << 30
_SHORT = (
    "memory_budget=%r is less than one batch at a time takes: up to %d MiB. "
    'A smaller batch_size, dtype="uint8" for images, or fewer num_workers take less.'
)
log = logging.getLogger("streamkit")


class Loader(SplitStream):
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
        max_bad: share of the samples that may be bad before "skip" raises after all; worker processes count together.
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
        flag("shuffle", shuffle)
        flag("drop_remainder", drop_remainder)
        if not (isinstance(max_bad, (int, float)) and 0 <= max_bad <= 1):
            raise UsageError(f"max_bad is {max_bad!r}, expected a share of the samples between 0 and 1")
        manifest = Manifest.load(path, manifest_digest)
        name, part = parse_split(split)
        chosen_split = manifest.split(name)
        batch_size, seed = whole("batch_size", batch_size), whole("seed", seed) or 0
        shard, n_shards = place(whole("shard_index", shard_index), whole("num_shards", num_shards))
        view = View(
            image_size=tuple(image_size) if isinstance(image_size, list) else image_size,
            dtype=_dtype_name(dtype),
            color_mode=color_mode,
            label_mode=label_mode,
            interpolation=interpolation,
            crop_to_aspect_ratio=crop_to_aspect_ratio,
            crop=crop,
            flip=flip,
            fields=fields if fields is None or isinstance(fields, str) else tuple(fields),
            pad_to=tuple(pad_to) if isinstance(pad_to, Sequence) and not isinstance(pad_to, str) else pad_to,
            max_pixels=max_pixels,
        )
        budget = DEFAULT_BUDGET if memory_budget is None else size(memory_budget)
        reader = _reader(
            address.place(path),
            manifest,
            chosen_split,
            view,
            kept_nbytes=budget // 4,
            map_limit_nbytes=None if memory_budget is None else budget,
            lenient=on_corrupt == "skip",
            shards_root=shards_root(path, manifest.root, root, manifest.dataset_id),
            blocks=_blocks(cache_dir, cache_limit, chosen_split, part if shuffle and where is rows is None else None),
        )
        one = 1 if batch_size is None else batch_size
        chosen = choose(reader.index, part, where, rows)
        ordering = Ordering(reader, seed, shuffle, budget, one * n_shards)
        ordered = ordering.plain(chosen) if balance is False else ordering.balanced(chosen, balance)
        batches = Batches(ordered.order.n, one, drop_remainder, shard, n_shards, pad=not shuffle)
        if isinstance(view.pad_to, tuple) and shuffle:
            ordered = ordering.by_length(ordered, view.pad_to, view.outputs(manifest.schema))
        self.max_bad = max_bad
        super().__init__(
            view,
            ordering,
            ordered,
            batches,
            Skips(ordered.order.n, max_bad) if on_corrupt == "skip" else None,
            batched=batch_size is not None,
            num_workers=n_threads(num_workers, path),
            device=device,
        )
        if memory_budget is not None and self.memory_bound > budget:
            log.warning(_SHORT, memory_budget, -(-self.memory_bound // (1 << 20)))
        if not len(self):
            log.warning(
                "an epoch has no batch: %d samples make no full one of %d", ordered.order.n, batches.global_size
            )


def _reader(path: Path | Address, manifest: Manifest, split: Split, view: View, **options: Any) -> Reader:
    """A reader of what a view needs of a split; `options` as Reader has them."""
    names = view.outputs(manifest.schema)
    fields = [manifest.schema[n] for n in names if not extra(n, manifest.schema)]
    return Reader(path, manifest, split, fields, needed_extras(view, manifest.schema, names), **options)


def _blocks(folder: Any, limit: Any, split: Split, shuffled: slice | None) -> Blocks | None:
    """The cache; none where an epoch in random order (of that part) would put out every block before it is wanted again."""
    blocks = Blocks.of(folder, limit)
    if blocks is None or shuffled is None:
        return blocks
    start, stop = resolve(shuffled, split.samples)
    nbytes = split.nbytes * (stop - start) // max(1, split.samples)
    if nbytes <= blocks.limit_nbytes - blocks.limit_nbytes // 10:
        return blocks
    wanted = -(-nbytes * 10 // 9 >> 20)
    log.warning("cache_limit is less than what an epoch brings: nothing is cached. Pass %d MiB or more.", wanted)
    return None


def _dtype_name(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype))
    except TypeError:
        return str(dtype)  # the view refuses it
