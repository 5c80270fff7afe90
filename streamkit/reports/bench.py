"""Measures a dataset on this machine: what each stage costs, what the machine could do, what bounds it, what would help.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> found = bench(out, split="train", n_samples=64, budget_s=0.01)
>>> list(found["stages"])
['read', 'check', 'decode', 'resize', 'batch', 'frontend']
>>> round(sum(stage["share"] for stage in found["stages"].values()))
100
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamkit.errors import UsageError, one_line
from streamkit.index import Index
from streamkit.loader import Loader
from streamkit.manifest import Manifest
from streamkit.order import Order
from streamkit.payloads import Payloads
from streamkit.reader import Reader
from streamkit.remote.address import local_only
from streamkit.reports import limits
from streamkit.reports.advice import MIN_GAIN, Change, changes, gain
from streamkit.reports.cluster import Cluster, simulate
from streamkit.reports.page import write_page
from streamkit.reports.stages import Size, stage_seconds
from streamkit.reports.text import bar, human, table
from streamkit.rooted import shards_root
from streamkit.stretches import n_together

DEFAULT_SIZE = (224, 224)
_BATCH_SIZE = 32
_MIN_BATCHES = 200
_MAX_ROWS = 1 << 20  # with repeats; more batches would be more memory and no better figures
_LARGER = 8
_SOME_FILES = 1000
Frontend = Callable[[str | os.PathLike[str], dict[str, Any]], Iterable[Any]]


def bench(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    batch_size: int | None = None,
    image_size: Size | None = None,
    n_samples: int = 256,
    frontend: Frontend | None = None,
    budget_s: float = 0.5,
    root: str | os.PathLike[str] | None = None,
    progress: Callable[[int], Callable[[int], None]] | None = None,
) -> dict[str, Any]:
    """Measure a split.

    Args:
        path: the dataset's folder.
        split: its name; the largest one by default.
        batch_size: samples a batch, at most those of the split; 32 by default, or all of a smaller split.
        image_size: (height, width) [pixel] of images as delivered; by default their own where they have one, else 224 x 224.
        n_samples: samples that each stage is tried on, drawn fairly.
        frontend: makes an iterable of a framework's batches of (path, arguments of Loader); None leaves it out.
        budget_s: time for each single figure [s]; a whole run takes some 20 of them.
        root: of adopted files: the folder they lie in, where it is not the one recorded.
        progress: called with a number of steps; what it returns is called with 1 for each one done.

    Returns:
        JSON-able: stages (each samples_per_s of one thread, seconds and share [%]), loader and frontend (samples/s with
        all threads), limits, bound (the largest stage), advice (changes tried, the best first).

    Raises:
        UsageError: no such dataset or split, or a number that is too small or too large.
        DamagedError: the dataset is damaged.
    """
    if n_samples < 1 or (batch_size is not None and batch_size < 1):
        raise UsageError(f"{n_samples} samples in batches of {batch_size}, expected 1 or more of each")
    tick = (progress or _unseen)(4)
    manifest = Manifest.load(local_only(path, "bench"))
    chosen = manifest.split(split or max(manifest.splits.values(), key=lambda s: s.samples).name)
    if not chosen.samples:
        raise UsageError(f"split {chosen.name!r} has no samples", path=path)
    batch_size = batch_size or min(_BATCH_SIZE, chosen.samples)
    if batch_size > chosen.samples:
        raise UsageError(
            f"a batch of {batch_size} samples is wanted, split {chosen.name!r} has {chosen.samples}",
            path=path,
            hint=f"Use --batch-size {chosen.samples} or less.",
        )
    size = image_size or _size(manifest)
    payloads = list(manifest.schema.payloads)
    where = shards_root(path, manifest.root, root, manifest.dataset_id)
    reader = Reader(path, manifest, chosen, payloads, ["orientation", "channels"], shards_root=where)
    files = _files(reader)
    first_read = limits.read_rate(files)
    rows = Order(chosen.samples, 0, True).rows(0, 0, min(n_samples, chosen.samples))
    seconds = stage_seconds(reader, rows, batch_size, size, "float32", budget_s)
    bytes_batch = stage_seconds(reader, rows[:1], batch_size, size, "uint8", budget_s / 10)["batch"]
    tick(1)
    options: dict[str, Any] = {"split": chosen.name, "batch_size": batch_size, "root": root}
    if any(f.is_image for f in payloads):
        options["image_size"] = size
    n_rows = min(_MIN_BATCHES * batch_size, max(_MAX_ROWS, 2 * _LARGER * batch_size))
    if chosen.samples < n_rows:  # else starting epochs is all that would be measured
        options["rows"] = np.resize(np.arange(chosen.samples), n_rows)
    loader = Loader(path, **options)
    cpu, rate = _running(loader, batch_size, budget_s * 2)
    tick(1)
    delivered, larger = None, 0.0
    seconds["frontend"] = 0.0
    if frontend is not None:
        frontend_cpu, delivered = _running(frontend(path, options), batch_size, budget_s * 2)
        seconds["frontend"] = max(0.0, frontend_cpu - cpu)
        if seconds["frontend"] * _LARGER > sum(seconds.values()):  # else a larger batch could not help
            many = {**options, "batch_size": batch_size * _LARGER}
            larger = frontend_cpu - _running(frontend(path, many), batch_size * _LARGER, budget_s * 2)[0]
    tick(1)
    total = sum(seconds.values())
    stages = {
        name: {"samples_per_s": _per_second(s), "seconds": s, "share": round(100 * s / total, 1)}
        for name, s in seconds.items()
    }
    found = changes(reader, rows, seconds, size, seconds["batch"] - bytes_batch, budget_s)
    if (times := gain(total, larger)) >= MIN_GAIN:
        found.append(Change(f"batch_size={batch_size * _LARGER}", times, 1.0, None))
    tick(1)
    found.sort(key=lambda change: -change.gain)
    return {
        "out": os.fspath(path),
        "split": chosen.name,
        "samples": chosen.samples,
        "batch_size": batch_size,
        "image_size": list(options.get("image_size", ())) or None,
        "threads": loader.num_workers,
        "stages": stages,
        "one_thread": _per_second(total),
        "loader": rate,
        "frontend": delivered,
        "limits": _limits(reader, rows, files, first_read, loader.sample_nbytes, budget_s),
        "bound": max(seconds, key=lambda name: seconds[name]),
        "advice": [change.to_json() | {"text": change.text()} for change in found],
    }


def _unseen(n: int) -> Callable[[int], None]:
    return lambda done: None


def _size(manifest: Manifest) -> Size | None:
    """The size at which pictures are delivered: their own where all have it."""
    images = [f for f in manifest.schema.payloads if f.is_image]
    if not images:
        return None
    height, width = images[0].shape[:2]
    return DEFAULT_SIZE if height is None or width is None else (height, width)


def _per_second(seconds: float) -> float | None:
    return round(1 / seconds, 1) if seconds > 0 else None


def _running(batches_of_epoch: Iterable[Any], batch_size: int, budget_s: float) -> tuple[float, float]:
    """(CPU seconds a sample, samples a second) of whole epochs one after the other, the first batches left out."""
    batches = itertools.chain.from_iterable(iter(batches_of_epoch) for _ in itertools.count())
    for _ in range(3):
        next(batches)
    n = 0
    started, cpu = time.perf_counter(), time.process_time()
    while n < 2 or time.perf_counter() - started < budget_s:
        next(batches)
        n += 1
    wall, used = time.perf_counter() - started, time.process_time() - cpu
    return used / (n * batch_size), round(n * batch_size / wall, 1)


def _files(reader: Reader) -> list[Path]:
    """What a machine's reading is tried on: the shards, or some of an adopted folder's files, drawn fairly."""
    if reader.loose is None:
        return [local_only(reader.files.root, "bench") / shard.file for shard in reader.split.shards]
    some = Order(reader.split.samples, 0, True).rows(0, 0, min(_SOME_FILES, reader.split.samples))
    return [local_only(reader.loose.path(int(row)), "bench") for row in some]


def _limits(
    reader: Reader, rows: Any, files: Sequence[Path], first_read: float, sample_nbytes: int, budget_s: float
) -> dict[str, Any]:
    """The machine's own limits in bytes and in samples a second."""
    stored = reader.split.nbytes / reader.split.samples
    cached, copied = limits.read_rate(files), limits.memcpy_rate(budget_s / 3)
    out: dict[str, Any] = {
        "first read": {"bytes_per_s": round(first_read), "samples_per_s": round(first_read / stored, 1)},
        "page cache read": {"bytes_per_s": round(cached), "samples_per_s": round(cached / stored, 1)},
        "memcpy of a batch": {"bytes_per_s": round(copied), "samples_per_s": round(copied / max(1, sample_nbytes), 1)},
    }
    encoded = [f for f in reader.fields if f.kind == "image" and f.is_encoded_image]
    if encoded:
        rate = limits.jpeg_rate([bytes(d) for d in Payloads(reader).stored(encoded[0], rows[:64])], budget_s)
        if rate is not None:
            out["bare JPEG decode, one thread"] = {"samples_per_s": round(rate, 1)}
    return out


def simulation(path: str | os.PathLike[str], found: Mapping[str, Any], model: Cluster) -> dict[str, Any]:
    """The cluster model for a dataset that was measured: its sizes, and this machine's loader as the CPU of each node."""
    manifest = Manifest.load(path)
    split = manifest.split(found["split"])
    index_nbytes = (Path(path) / split.index).stat().st_size
    requests = float(any(field.chunk_rows is None for field in manifest.schema.payloads))
    if (n_rows := n_together(manifest, split)) is not None:
        requests = sum(s.samples / n for s, n in zip(split.shards, n_rows.tolist(), strict=True)) / split.samples
    if split.chunks is not None:  # each comes once, for all the samples in it
        requests += Index(Path(path) / split.chunks, None, split.chunks_digest).n_rows / split.samples
    return simulate(model, split.samples, split.nbytes / split.samples, index_nbytes, found["loader"], requests)


def write_html(path: str | os.PathLike[str], found: Mapping[str, Any]) -> None:
    """Write the figures as a page."""
    data = {**found, "conclusion": conclusion(found), "out": Path(found["out"]).resolve().name}
    write_page(path, f"{data['out']}: bench", data, ["charts.js", "bench.js"])


def as_text(found: Mapping[str, Any]) -> str:
    """The figures as tables, and what follows from them."""
    size = "" if found["image_size"] is None else f", images {found['image_size'][0]}x{found['image_size'][1]}"
    head = f"{found['out']} {found['split']}: {found['samples']:,} samples, batches of {found['batch_size']}{size}"
    rows = [("stage", "samples/s", "share", "")]
    for name, stage in found["stages"].items():
        rate = "-" if stage["samples_per_s"] is None else f"{stage['samples_per_s']:,.0f}"
        rows.append((name, rate, f"{stage['share']:.0f} %", bar(stage["share"], 100)))
    rows.append(("all, one thread", f"{found['one_thread'] or 0:,.0f}", "", ""))
    rows.append((f"Loader, {found['threads']} threads", f"{found['loader']:,.0f}", "", ""))
    if found["frontend"] is not None:
        rows.append((f"tf.data, {found['threads']} threads", f"{found['frontend']:,.0f}", "", ""))
    bounds = [("this machine", "samples/s", "")]
    for name, limit in found["limits"].items():
        size = f"{human(limit['bytes_per_s'])}/s" if "bytes_per_s" in limit else ""
        bounds.append((name, f"{limit['samples_per_s']:,.0f}", size))
    return "\n\n".join([one_line(head), table(rows), table(bounds), conclusion(found)])


def conclusion(found: Mapping[str, Any]) -> str:
    """What bounds it, and the change that would help most."""
    stage = found["stages"][found["bound"]]
    text = f"{found['bound']} is {stage['share']:.0f} % of the work"
    if not found["advice"]:
        return f"{text}; nothing that was tried on a sample would help by 15 % or more."
    first, *others = [change["text"] for change in found["advice"]]
    return "\n".join([f"{text}: {first}.", *(f"Also tried: {other}." for other in others)])
