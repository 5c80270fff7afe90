"""streamkit itself, without and with TensorFlow loaded, over both formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = ("streamkit", "numpy")
GRAPH = "tf.data in a graph"
HOW = {"tf.data": "a loop over the dataset", GRAPH: "a compiled step takes each batch, as in Model.fit"}
SMALL = "64MB"
LITTLE = "64MiB"  # less than what the adopted files inflate to: chunks cannot all be kept


def ways(task: Task) -> list[Way]:
    if task.kind == "write":
        return _write_ways(task)
    if task.figure == "memory" and task.name != "R7":
        return [Way("NumPy, hdf5", "", "hdf5")]
    if task.name == "R1s":
        return [Way("as they are, NumPy", "", "tfrecord"), Way("resized, NumPy", "--resize 256", "tfrecord-256")]
    if task.name == "R2":
        plain = Way("plain NumPy, tfrecord", "no crop, no flip", "tfrecord")
        return [*_ways(("NumPy", "tf.data"), ("tfrecord",)), plain]
    if task.name == "cores-R":
        return [Way("1 thread", "NumPy", "tfrecord"), Way("2 threads", "NumPy", "tfrecord")]
    if task.data.startswith("gzip"):
        import streamkit

        note = "" if callable(getattr(streamkit, "index", None)) else "streamkit.index is not in this version"
        return [
            Way(
                "NumPy, adopted",
                "a new Loader every epoch, so that none is served from what another inflated",
                "adopted",
                note=note,
            ),
            Way("NumPy, adopted, little memory", f"memory_budget={LITTLE}", "adopted", note=note),
        ]
    engines = {
        "R1": ("NumPy", "tf.data", GRAPH, "Sequence"),
        "R4": ("NumPy", "tf.data", GRAPH),
        "R6": ("NumPy", "tf.data"),
        "rows-tf": ("tf.data",),
        "photos": ("NumPy", "tf.data"),
    }
    formats = ("tfrecord", "hdf5") if task.shape[0] == 64 or task.data == "raw" else ("tfrecord",)
    return _ways(engines.get(task.name, ("NumPy",)), formats)


def _ways(engines: Iterable[str], formats: Iterable[str]) -> list[Way]:
    return [Way(f"{engine}, {format}", HOW.get(engine, ""), format) for engine in engines for format in formats]


def _write_ways(task: Task) -> list[Way]:
    if task.name == "convert-small":
        return [Way(f"check {check}", "1 worker, tfrecord", "tfrecord") for check in ("decode", "header")]
    if task.name == "cores-W":
        settings = f"tfrecord, --shard-size {SMALL}: two share dozens of shards evenly"
        names = (f"check {check}, {n}" for check in ("decode", "header") for n in ("1 worker", "2 workers"))
        return [Way(name, settings, "tfrecord") for name in names]
    return [Way(f"2 workers, {format}", "--check header", format) for format in ("tfrecord", "hdf5")]


def load() -> None:
    import streamkit.convert

    assert streamkit.convert


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    import streamkit

    if way.form == "adopted":
        streamkit.index([source / "x.h5"], out, label="label")
        return
    format, _, resize = str(way.form).partition("-")
    streamkit.convert(
        source,
        out,
        format=format,
        resize=resize or None,
        compression="none",
        check="header" if "header" in f"{way.name} {way.settings}" else "decode",
        workers=1 if "1 worker" in f"{way.name} {way.settings}" else 2,
        shard_size=SMALL if task.name == "cores-W" else "128MB",
    )


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[tuple[Any, Any]]]:
    import streamkit

    arguments: dict[str, Any] = {"batch_size": task.batch_size, "num_workers": 1 if way.name == "1 thread" else 2}
    if task.data.endswith("photos"):
        arguments["image_size"] = task.shape[:2]
    if has_images := task.shape[-1] == 3 and task.data.endswith(("photos", "tiny")):
        arguments["dtype"] = task.dtype
    if task.augment and has_images and not way.name.startswith("plain"):
        arguments |= {"crop": "random", "flip": True}
    if way.name == "NumPy, adopted":
        return lambda: streamkit.Loader(out, **arguments)
    if way.name == "NumPy, adopted, little memory":
        arguments["memory_budget"] = LITTLE
    if way.name.startswith("tf.data"):
        dataset = streamkit.dataset(out, **arguments)
        return _stepping(dataset) if way.name.startswith(GRAPH) else lambda: dataset
    if way.name.startswith("Sequence"):
        return _epochs(streamkit.sequence(out, **arguments))
    loader = streamkit.Loader(out, **arguments)
    return lambda: loader


def _stepping(dataset: Any) -> Callable[[], Iterator[Any]]:
    import tensorflow as tf

    step = tf.function(lambda iterator: next(iterator), autograph=False)

    def epoch() -> Iterator[Any]:
        iterator = iter(dataset)
        try:
            while True:
                yield step(iterator)
        except tf.errors.OutOfRangeError:
            return

    return epoch


def _epochs(sequence: Any) -> Callable[[], Iterator[tuple[Any, Any]]]:
    def epoch() -> Iterator[tuple[Any, Any]]:
        sequence.on_epoch_begin()
        for i in range(len(sequence)):
            yield sequence[i]
        sequence.on_epoch_end()

    return epoch
