"""What each stage of reading a sample costs, in one thread, on samples drawn fairly: read, check, decode, resize, batch.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> manifest = streamkit.open(out)
>>> from streamkit.order import Order
>>> reader = Reader(out, manifest, manifest.splits["train"], list(manifest.schema.payloads), ["orientation", "channels"])
>>> found = stage_seconds(reader, Order(1600, 0, True).rows(0, 0, 32), 16, (16, 16), "float32", budget_s=0.01)
>>> sorted(found) == sorted(STAGES), all(seconds >= 0 for seconds in found.values())
(True, True)
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.chunks import chunk_nbytes, grid, pipeline
from streamkit.codecs import image
from streamkit.codecs.array import BadArray, decode_chunk
from streamkit.codecs.resize import recolor, resize
from streamkit.errors import DamagedError, RefusedError
from streamkit.guard import mend
from streamkit.native import BadRange
from streamkit.payloads import Payloads
from streamkit.reader import Reader
from streamkit.readplan import ReadPlan
from streamkit.schema import Field

STAGES = ("read", "check", "decode", "resize", "batch")
Size = tuple[int, int]
Ints = npt.NDArray[np.int64]
_KEPT_NBYTES = 256 << 20  # of decoded pictures, between two stages
_MOST_CHUNKS = 256  # tried; slabs of more count as if all their chunks were like these


def per_item(work: Callable[[int], Any], n: int, budget_s: float = 0.5) -> float:
    """Seconds of `work(i)` for one i of `range(n)`: the fastest of a few passes, each cut off when the budget is spent."""
    work(0)
    best = float("inf")
    deadline = time.perf_counter() + budget_s
    for _ in range(5):
        started = now = time.perf_counter()
        done = 0
        for done in range(1, n + 1):
            work(done - 1)
            if (now := time.perf_counter()) > deadline:
                break
        best = min(best, (now - started) / done)
        if now > deadline:
            break
    return best


def stage_seconds(
    reader: Reader, rows: Ints, batch_size: int, size: Size | None, dtype: str, budget_s: float = 0.5
) -> dict[str, float]:
    """Seconds that one sample takes in each stage.

    Args:
        reader: has loaded every payload field, and `orientation` and `channels` where there are.
        rows: rows to try, in the order in which a shuffled epoch would want them.
        batch_size: samples a batch.
        size: (height, width) [pixel] that pictures are resized to; None where all are of one size.
        dtype: of images in a batch.
        budget_s: time a stage and field [s].

    Raises:
        DamagedError: a sample cannot be read.
        RefusedError: a picture is too large.
    """
    out = dict.fromkeys(STAGES, 0.0)
    for field in reader.fields:
        if not field.is_payload:
            continue
        costs = _chunked if field.chunk_rows is not None else _addressed
        try:
            for stage, seconds in costs(reader, field, rows, batch_size, size, budget_s).items():
                out[stage] += seconds
        except (BadRange, BadArray, image.BadImage) as error:  # the stages are timed without what names the record
            kind = RefusedError if isinstance(error, image.BadImage) and error.refused else DamagedError
            what = f"a sample's {field.name} cannot be read: {error}"
            raise kind(what, path=reader.root, hint=mend(os.fspath(reader.root))) from None
        out["batch"] += _stacking(reader, field, rows, batch_size, size, dtype, budget_s)
    return out


def _addressed(
    reader: Reader, field: Field, rows: Ints, batch_size: int, size: Size | None, budget_s: float
) -> dict[str, float]:
    batches = np.split(rows, range(batch_size, len(rows), batch_size))
    lengths = [reader.lengths(field.name, batch) for batch in batches]
    memory = np.empty(max(int(n.sum()) for n in lengths), np.uint8)
    mean = len(rows) / len(batches)

    def read(i: int, crcs: bool) -> None:
        places = np.cumsum(lengths[i]) - lengths[i]
        columns = [reader.columns[f"{field.name}.{name}"][batches[i]] for name in ("offset", "crc32c")]
        if reader.loose is not None:
            reader.loose.read(batches[i], lengths[i], memory, places, columns[1] if crcs else None)
            return
        for shard, slots in ReadPlan.of(batches[i], reader.shard_starts, columns[0]).shards:
            file = reader.split.shards[shard].file
            known = columns[1][slots] if crcs else None
            reader.files.read(file, columns[0][slots], lengths[i][slots], memory, places[slots], known)

    plain = per_item(lambda i: read(i, False), len(batches), budget_s) / mean
    checked = per_item(lambda i: read(i, True), len(batches), budget_s) / mean
    out = {"read": plain, "check": max(0.0, checked - plain)}
    payloads = Payloads(reader)
    if field.is_encoded_image:
        stored = [bytes(data) for data in payloads.stored(field, rows)]
        pictures = picture_seconds(stored, size, field.kind == "mask", budget_s)
        out |= {"decode": pictures.decode, "resize": pictures.resize}
    elif field.encoding == "zlib":
        both = per_item(lambda i: payloads.decoded(field, batches[i]), len(batches), budget_s) / mean
        out["decode"] = max(0.0, both - checked)
    if field.is_image and not field.is_encoded_image and size is not None and field.shape[:2] != size:
        pixels = payloads.decoded(field, rows[:64])
        slot = np.empty((*size, 1 if field.kind == "mask" else 3), np.uint8)
        out["resize"] = per_item(
            lambda i: resize(recolor(pixels[i], slot.shape[2]), size, out=slot), len(pixels), budget_s
        )
    return out


class Pictures(NamedTuple):
    """Seconds that decoding and resizing a picture take, the mean stored size [B], and the first pictures delivered."""

    decode: float
    resize: float
    nbytes: float
    delivered: list[npt.NDArray[np.uint8]]


def picture_seconds(
    stored: Sequence[bytes], size: Size | None, is_mask: bool = False, budget_s: float = 0.5
) -> Pictures:
    """Time decoding and resizing of encoded pictures one by one; the loader, many at a call, is faster with tiny ones."""
    channels = 1 if is_mask else 3
    facts = [image.probe(data) for data in stored]

    def decode(i: int) -> npt.NDArray[np.uint8]:
        at_least = None if is_mask else size
        of = facts[i]
        return image.decode(
            stored[i], channels=channels, orientation=of.orientation, n_stored=of.channels, at_least=at_least
        )

    seconds = per_item(decode, len(stored), budget_s)
    kept: list[npt.NDArray[np.uint8]] = []
    for i in range(len(stored)):
        if sum(pixels.nbytes for pixels in kept) > _KEPT_NBYTES:
            break
        kept.append(decode(i).copy())
    mean = float(np.mean([len(data) for data in stored]))
    if size is None or all(pixels.shape[:2] == size for pixels in kept):
        return Pictures(seconds, 0.0, mean, kept)
    how = "nearest" if is_mask else "bilinear"
    slot = np.empty((*size, channels), np.uint8)
    resizing = per_item(lambda i: resize(kept[i], size, how, out=slot), len(kept), budget_s)
    return Pictures(seconds, resizing, mean, [resize(pixels, size, how) for pixels in kept])


def _chunked(
    reader: Reader, field: Field, rows: Ints, batch_size: int, size: Size | None, budget_s: float
) -> dict[str, float]:
    """Each chunk is read and decoded once, and all its rows are used; rows of a slab use all of its chunks."""
    table = reader.chunk_table
    firsts, counts = np.unique(reader.columns[f"{field.name}.chunk"], return_counts=True)
    n_chunks = math.prod(grid(field))
    some = firsts[np.random.default_rng(0).permutation(len(firsts))[: max(1, 64 // n_chunks)]]
    chunks = (some[:, None] + np.arange(n_chunks)).ravel()[:_MOST_CHUNKS]
    chunks = chunks[table["length"][chunks] > 0]
    if not len(chunks):
        return {"read": 0.0}  # none was ever written: all rows hold the fill value
    mean = float(counts.mean()) / n_chunks
    memory = np.empty(int(table["length"][chunks].max()), np.uint8)
    place = np.zeros(1, np.int64)
    dtype = np.dtype(field.dtype)
    skipped = table["skipped"] if "skipped" in table else np.zeros(len(table["length"]), np.int64)
    filters = [pipeline(field, int(skipped[chunk])) for chunk in chunks]
    nbytes = chunk_nbytes(field)

    def read(i: int, crcs: bool) -> bytes:
        one = slice(int(chunks[i]), int(chunks[i]) + 1)
        length = table["length"][one].astype(np.int64)
        file = reader.split.shards[int(table["shard"][one][0])].file
        reader.files.read(file, table["offset"][one], length, memory, place, table["crc32c"][one] if crcs else None)
        return memory[: int(length[0])].tobytes()

    plain = per_item(lambda i: read(i, False), len(chunks), budget_s)
    checked = per_item(lambda i: read(i, True), len(chunks), budget_s)
    stored = [read(i, False) for i in range(len(chunks))]
    decode = per_item(lambda i: decode_chunk(stored[i], filters[i], dtype.itemsize, nbytes), len(chunks), budget_s)
    return {"read": plain / mean, "check": max(0.0, checked - plain) / mean, "decode": decode / mean}


def _stacking(
    reader: Reader, field: Field, rows: Ints, batch_size: int, size: Size | None, dtype: str, budget_s: float
) -> float:
    """Laying decoded values into a batch of the dtype wanted."""
    if field.is_image:
        height, width = size or (int(field.shape[0] or 1), int(field.shape[1] or 1))
        slot = np.empty((height, width, 1 if field.kind == "mask" else 3), "uint8" if field.kind == "mask" else dtype)
        one: Any = np.zeros(slot.shape, np.uint8)
    elif field.dtype == "string":
        return 0.0
    else:
        shape = field.shape if field.fixed else Payloads(reader).decoded(field, rows[:1])[0].shape
        one, slot = np.zeros(shape, field.dtype), np.empty(shape, field.dtype)  # type: ignore[arg-type]
    n = max(1, min(batch_size, len(rows)))
    batch = np.empty((n, *slot.shape), slot.dtype)
    return per_item(lambda i: np.copyto(batch[i], one), n, budget_s)
