"""engine="graph": TensorFlow's operations alone give the samples and pixels of the Python engine, anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reading
from reading import convert

import streamkit
from streamkit import Loader, UsageError

N = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ragged: Path, ragged_twice: Path) -> Path:
    root = tmp_path_factory.mktemp("graph")
    table = reading.numbered(root / "in/table", N, z=np.arange(N * 6, dtype=np.uint32).reshape(N, 2, 3))
    convert(table, root / "table", shard_size=700, compression="none")
    convert(table, root / "zlib", shard_size=700, compression="zlib")
    reading.picture_folder(root / "in/alike", [(24, 31)] * 20)
    convert(root / "in/alike", root / "alike", shard_size=2000)
    reading.picture_folder(root / "in/pngs", [(24, 31)] * 6, format="PNG")
    convert(root / "in/pngs", root / "pngs")
    convert(root / "in/pngs", root / "pixels", encode="raw")
    reading.picture_folder(root / "in/photos", [(80 + i, 90 - i) for i in range(12)])
    convert(root / "in/photos", root / "photos")
    convert(root / "in/photos", root / "hdf5", "hdf5")
    convert(ragged, root / "ragged")
    convert(ragged_twice, root / "twice")
    return root


def samples(batches: Any) -> list[Any]:
    """The samples in batches, as NumPy, in an order of their own. Padding goes."""
    out = []
    for batch in batches:
        items = batch.items() if isinstance(batch, dict) else enumerate(batch if isinstance(batch, tuple) else (batch,))
        columns = {name: np.asarray(values) for name, values in items}
        for i in range(len(next(iter(columns.values())))):
            sample = {name: values[i] for name, values in columns.items()}
            if "array_length" in sample:
                lengths = np.atleast_1d(sample["array_length"])
                sample["array"] = sample["array"][tuple(slice(0, n) for n in lengths)]
            out.append({name: (v.dtype.str, v.shape, v.tobytes()) for name, v in sample.items()})
    return sorted(out, key=repr)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("table", {}),
        ("zlib", {"shuffle": False, "drop_remainder": True, "batch_size": 8}),
        ("alike", {}),
        ("alike", {"dtype": "uint8", "color_mode": "grayscale", "label_mode": "categorical"}),
        ("pngs", {"fields": ("label", "image")}),
        ("pixels", {}),
        ("ragged", {}),
        ("ragged", {"pad_to": 30}),
        ("twice", {}),
    ],
)
def test_the_same_samples_to_the_bit(made: Path, name: str, options: dict[str, Any]) -> None:
    options = {"batch_size": 7, "seed": 1, **options}
    dataset = streamkit.dataset(made / name, engine="graph", **options)
    python = Loader(made / name, **options).as_tf()
    assert str(dataset.element_spec) == str(python.element_spec)
    found = list(dataset.as_numpy_iterator())
    assert len(found) == dataset.n_batches == len(python)
    assert samples(found) == samples(python.as_numpy_iterator())


@pytest.mark.parametrize(
    ("interpolation", "limit"), [("bilinear", 2.0), ("nearest", 0.1), ("area", 2.0), ("antialias", 2.0)]
)
def test_resized_pixels_are_near(made: Path, interpolation: str, limit: float) -> None:
    """Mean difference in grey levels of 255; the Python engine decodes JPEG at a scale where it may, which the README says."""
    options: dict[str, Any] = {
        "batch_size": 12,
        "image_size": (48, 40),
        "shuffle": False,
        "interpolation": interpolation,
    }
    (found, labels), *_ = streamkit.dataset(made / "photos", engine="graph", **options)
    expected, classes = Loader(made / "photos", **options)[0]
    assert (labels.numpy() == classes).all()
    assert np.abs(found.numpy() - expected).mean() < limit


def test_shards_have_as_many_and_epochs_differ(made: Path) -> None:
    parts = [
        streamkit.dataset(made / "table", engine="graph", batch_size=4, shard_index=r, num_shards=3) for r in range(3)
    ]
    epochs = [[[int(v) for batch in part for v in batch["x"][:, 0]] for part in parts] for _ in range(2)]
    for epoch in epochs:
        assert [len(part) for part in epoch] == [13, 13, 13] and len({v for part in epoch for v in part}) == 39
    assert epochs[0] != epochs[1]


def test_an_iterator_is_saved_and_restored_by_tf_train_checkpoint(made: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    dataset = streamkit.dataset(made / "table", engine="graph", batch_size=4, fields="x")
    iterator = iter(dataset)
    for _ in range(3):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "saved"))
    rest = [batch.numpy().tolist() for batch in iterator]
    other = iter(dataset)
    tf.train.Checkpoint(iterator=other).read(path).assert_consumed()
    assert [batch.numpy().tolist() for batch in other] == rest and len(rest) == 7


def test_it_runs_in_two_workers_of_the_tf_data_service(made: Path) -> None:
    """A real dispatcher and two workers: together one epoch, every sample once, though no Python goes there."""
    import tensorflow as tf

    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.partition("://")[2]
    workers = [service.WorkerServer(service.WorkerConfig(dispatcher_address=address)) for _ in range(2)]
    dataset = streamkit.dataset(made / "table", engine="graph", batch_size=4, seed=1)
    local = samples(dataset.as_numpy_iterator())
    far = dataset.apply(service.distribute(service.ShardingPolicy.DYNAMIC, dispatcher.target))
    assert samples(far.as_numpy_iterator()) == local
    with pytest.raises(tf.errors.OpError):  # the Python engine's cannot go: this is what "graph" is for
        list(Loader(made / "table").as_tf().apply(service.distribute("parallel_epochs", dispatcher.target)))
    for worker in workers:
        worker._stop()
    dispatcher._stop()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("hdf5", {"image_size": (8, 8)}, "not TFRecord"),
        ("table", {"split": "train[:50%]"}, "a part of the split"),
        ("table", {"rows": range(N), "balance": True}, "a part of the split"),
        ("table", {"fields": ("x", "key")}, "key stands in the index"),
        ("photos", {"image_size": (8, 8), "crop": "random"}, "crop, flip"),
        ("photos", {"image_size": (8, 8), "interpolation": "lanczos3"}, "lanczos3"),
        ("photos", {"image_size": (8, 8), "color_mode": "rgba"}, "rgba"),
        ("table", {"on_corrupt": "skip"}, "on_corrupt"),
        ("table", {"device": "CPU:0"}, "device="),
    ],
)
def test_what_needs_python_is_refused(made: Path, name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=rf'engine="graph" cannot do this: .*{says}'):
        streamkit.dataset(made / name, engine="graph", **options)


def test_turned_pictures_and_unknown_engines_are_refused(photos: Path, tmp_path: Path) -> None:
    out = convert(photos, tmp_path / "out")
    with pytest.raises(UsageError, match="turned by EXIF"):
        streamkit.dataset(out, engine="graph", image_size=(8, 8))
    with pytest.raises(UsageError, match='expected "python" or "graph"'):
        streamkit.dataset(out, engine="rust")


@pytest.mark.fault(46)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_shard_of_another_conversion_is_refused(made: Path, tmp_path: Path, pinned: bool) -> None:
    """Case 46: the same size, and every record's own crc32c is right."""
    np.savez(tmp_path / "table.npz", x=np.full((N, 16), -1, np.float32), y=np.arange(N) % 3)
    options = {"shard_size": 700, "compression": "none"}
    out = convert(tmp_path / "table.npz", tmp_path / "out", **options)
    np.savez(tmp_path / "table.npz", x=np.full((N, 16), -2, np.float32), y=np.arange(N) % 3)
    older = convert(tmp_path / "table.npz", tmp_path / "older", **options)
    pin = streamkit.open(out).dataset_id if pinned else None
    assert float(next(iter(streamkit.dataset(out, engine="graph", manifest_digest=pin)))[0][0, 0]) == -1
    (out / "train-00001.tfrecord").write_bytes((older / "train-00001.tfrecord").read_bytes())
    with pytest.raises(streamkit.DamagedError, match=r"train-00001\.tfrecord.*altered"):
        streamkit.dataset(out, engine="graph", manifest_digest=pin)
