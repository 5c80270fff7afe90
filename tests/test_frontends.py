"""Every frontend delivers the loader's batches to the bit, and every framework's own loop sees the epochs in order."""

from __future__ import annotations

import _thread
import copy
import gc
import itertools
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reading
from converting import python
from reading import all_same, convert

import streamkit
from streamkit import DamagedError, Loader, UsageError

N = 22  # rows of the numbered table: five batches of 4 and a rest of 2


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frontends")
    table = reading.numbered(root / "in/table", N)
    convert(table, root / "table", shard_size=400, compression="none")
    several = reading.numbered(root / "in/several", N, z=np.arange(N * 6.0).reshape(N, 2, 3))
    convert(several, root / "several", "hdf5", compression="gzip")
    np.save(root / "in/rows.npy", np.arange(N * 4, dtype=np.int16).reshape(N, 4))
    convert(root / "in/rows.npy", root / "alone")
    reading.picture_folder(root / "in/photos", [(30 + i % 5, 40 - i % 4) for i in range(N)])
    convert(root / "in/photos", root / "photos")
    reading.ragged_folder(root / "in/ragged", [i % 5 for i in range(N)])
    convert(root / "in/ragged", root / "ragged")
    return root


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "image and label": ("photos", {"image_size": (12, 10)}),
    "uint8, one-hot, dropped rest": (
        "photos",
        {"image_size": (9, 9), "dtype": "uint8", "label_mode": "categorical", "drop_remainder": True},
    ),
    "dict, chunked HDF5": ("several", {}),
    "tuple with keys": ("several", {"fields": ("key", "z", "x")}),
    "ragged": ("ragged", {}),
    "padded": ("ragged", {"pad_to": 6, "drop_remainder": True}),
    "raw arrays": ("alone", {}),
    "storage order": ("table", {"shuffle": False}),
    "second shard of two": ("table", {"shard_index": 1, "num_shards": 2}),
    "single samples": ("table", {"batch_size": None}),
    "single ragged samples": ("ragged", {"batch_size": None}),
}


def arguments(made: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    name, options = KINDS[kind]
    return made / name, {"batch_size": 4, "seed": 3, **options}


def numpy_batches(made: Path, kind: str, n_epochs: int = 2) -> list[Any]:
    path, options = arguments(made, kind)
    loader = Loader(path, **options)
    return [as_numpy(batch) for _ in range(n_epochs) for batch in loader]


def as_numpy(value: Any) -> Any:
    """A batch of any framework as NumPy holds it; text is str."""
    if isinstance(value, dict):
        return {name: as_numpy(v) for name, v in sorted(value.items())}
    if isinstance(value, (tuple, list)):
        return tuple(as_numpy(v) for v in value)
    if isinstance(value, (str, bytes)):
        return np.array(value.decode() if isinstance(value, bytes) else value, object)
    array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
    if isinstance(array, bytes):
        return np.array(array.decode(), object)
    if isinstance(array, np.ndarray) and array.dtype == object:
        return np.array([v.decode() if isinstance(v, bytes) else v for v in array.ravel()], object).reshape(array.shape)
    return np.asarray(array)


def numbers(batch: Any) -> list[int]:
    """Which rows of the source a batch of the numbered table holds."""
    return [int(v) for v in as_numpy(batch[0])[:, 0]]


def epochs_of(path: Path, n_epochs: int, **options: Any) -> list[list[list[int]]]:
    """The rows of each batch of epochs 0, 1, ... as the loader alone delivers them."""
    loader = Loader(path, **options)
    return [[numbers(batch) for batch in loader] for _ in range(n_epochs)]


def stepping(dataset: Any) -> Iterator[Any]:
    """Batches of a dataset, or the rest of an iterator, as a compiled step gets them, which is handed the iterator."""
    tf = pytest.importorskip("tensorflow")
    step = tf.function(lambda iterator: next(iterator), autograph=False)
    iterator = iter(dataset)
    try:
        while True:
            yield step(iterator)
    except tf.errors.OutOfRangeError:
        return


# The same batches everywhere


@pytest.mark.parametrize("kind", KINDS)
def test_tf_data_is_the_loader_to_the_bit(made: Path, kind: str) -> None:
    pytest.importorskip("tensorflow")
    truth = numpy_batches(made, kind)
    path, options = arguments(made, kind)
    for dataset in (Loader(path, **options).as_tf(), streamkit.dataset(path, **options)):
        found = [batch for _ in range(2) for batch in dataset]  # all kept, so that none may be overwritten
        assert all_same([as_numpy(batch) for batch in found], truth)
    dataset = streamkit.dataset(path, **options)
    assert all_same([as_numpy(batch) for _ in range(2) for batch in stepping(dataset)], truth)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("single")])
def test_the_sequence_is_the_loader_to_the_bit(made: Path, kind: str) -> None:
    pytest.importorskip("keras")
    truth = numpy_batches(made, kind)
    path, options = arguments(made, kind)
    for sequence in (Loader(path, **options).as_keras(), streamkit.sequence(path, **options)):
        assert len(sequence) == len(truth) // 2
        found = []
        for _ in range(2):
            sequence.on_epoch_begin()
            found += [sequence[i] for i in range(len(sequence))]
            sequence.on_epoch_end()
        assert all_same([as_numpy(batch) for batch in found], truth)


TORCH_OPTIONS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "two workers": {"num_workers": 2},
    "two that persist": {"num_workers": 2, "persistent_workers": True},
}


WORKED = ("image and label", "dict, chunked HDF5", "ragged", "single samples")  # processes cost a second each


@pytest.mark.parametrize(
    ("kind", "workers"),
    [(kind, workers) for kind in KINDS for workers in TORCH_OPTIONS if workers == "no workers" or kind in WORKED],
)
def test_torch_is_the_loader_to_the_bit(made: Path, kind: str, workers: str) -> None:
    pytest.importorskip("torch")
    truth = numpy_batches(made, kind)
    path, options = arguments(made, kind)
    data = Loader(path, **options).as_torch(**TORCH_OPTIONS[workers])
    assert len(data) == len(truth) // 2
    found = [batch for _ in range(2) for batch in data]
    assert all_same([as_numpy(batch) for batch in found], truth)


# TensorFlow


def test_tf_shapes_are_static_and_the_length_is_known(made: Path) -> None:
    tf = pytest.importorskip("tensorflow")

    def spec(kind: str, **more: Any) -> Any:
        path, options = arguments(made, kind)
        return streamkit.dataset(path, **options | more).element_spec

    def tensor(*shape: int | None, dtype: str = "float32") -> Any:
        return tf.TensorSpec(shape, dtype)

    labels = tensor(None, dtype="int32")
    assert spec("image and label") == (tensor(None, 12, 10, 3), labels)
    full = (tensor(4, 12, 10, 3), tensor(4, dtype="int32"))
    assert spec("image and label", drop_remainder=True) == full
    assert spec("uint8, one-hot, dropped rest") == (tensor(4, 9, 9, 3, dtype="uint8"), tensor(4, 3))
    assert spec("image and label", color_mode="grayscale") == (tensor(None, 12, 10, 1), labels)
    assert spec("raw arrays") == tensor(None, 4, dtype="int16")
    assert spec("dict, chunked HDF5") == {
        "label": labels,
        "x": tensor(None, 16),
        "z": tensor(None, 2, 3, dtype="float64"),
    }
    lengths = tensor(None, dtype="int32")
    assert spec("ragged") == {"array": tensor(None, None, 3), "array_length": lengths, "label": labels}
    assert spec("padded")["array"] == tensor(4, 6, 3)
    assert spec("tuple with keys")[0] == tensor(None, dtype="string")
    assert spec("single samples") == (tensor(16), tensor(dtype="int32"))


@pytest.mark.parametrize("kind", KINDS)
def test_tf_cardinality_is_the_number_of_batches(made: Path, kind: str) -> None:
    pytest.importorskip("tensorflow")
    path, options = arguments(made, kind)
    dataset = streamkit.dataset(path, **options)
    assert int(dataset.cardinality()) == len(dataset) == len(Loader(path, **options))
    assert int(dataset.repeat(3).cardinality()) == 3 * len(dataset)


def test_tf_epochs_follow_through_repeat_map_and_take(made: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = made / "table"
    truth = epochs_of(path, 6, batch_size=4)
    dataset = streamkit.dataset(path, batch_size=4)
    assert [numbers(batch) for batch in dataset.repeat(3)] == truth[0] + truth[1] + truth[2]
    assert [numbers(batch) for batch in dataset.take(2)] == truth[3][:2]
    doubled = dataset.map(lambda x, y: (2 * x, y), num_parallel_calls=tf.data.AUTOTUNE)
    assert [[n // 2 for n in numbers(batch)] for batch in doubled] == truth[4]
    assert [n for batch in dataset.unbatch().batch(4) for n in numbers(batch)] == list(itertools.chain(*truth[5]))


def test_tf_dataset_says_its_classes_and_is_not_sharded_again(made: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    dataset = streamkit.dataset(made / "photos", batch_size=4, image_size=(8, 8))
    assert list(dataset.class_names) == ["c0", "c1", "c2"]
    assert dataset.options().experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.OFF


def test_tf_goes_on_after_a_resume(made: Path) -> None:
    pytest.importorskip("tensorflow")
    path = made / "table"
    truth = epochs_of(path, 3, batch_size=4)
    loader = Loader(path, batch_size=4)
    loader.resume(Loader(path, batch_size=4).cursor_at(8))
    dataset = loader.as_tf()
    assert [numbers(batch) for batch in dataset] == truth[1][2:]
    assert [numbers(batch) for batch in dataset] == truth[2]


def test_tf_refuses_a_rest_of_an_epoch_where_whole_ones_were_promised(made: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    dataset = streamkit.dataset(made / "table", batch_size=4)
    dataset.loader.resume(dataset.loader.cursor_at(2))
    with pytest.raises(UsageError, match="before as_tf"):
        next(iter(dataset))
    with pytest.raises(tf.errors.OpError, match="before as_tf"):
        list(stepping(dataset))


def test_tf_iterators_go_on_in_a_graph_where_a_loop_left_them(made: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = made / "table"
    truth = epochs_of(path, 3, batch_size=4)
    dataset = streamkit.dataset(path, batch_size=4)
    step = tf.function(lambda iterator: next(iterator), autograph=False)
    for epoch in range(3):
        iterator = iter(dataset)
        seen = [numbers(next(iterator)) for _ in range(epoch)]
        seen += [numbers(step(iterator)), numbers(iterator.get_next())]
        seen += [numbers(batch) for batch in iterator]
        assert seen == truth[epoch]
        with pytest.raises(tf.errors.OutOfRangeError):
            iterator.get_next()
    assert iterator.element_spec == dataset.element_spec and isinstance(iterator, tf.data.Iterator)


def test_tf_loops_of_several_threads_share_an_iteration(made: Path) -> None:
    pytest.importorskip("tensorflow")
    iterator = iter(streamkit.dataset(made / "table", batch_size=1))
    with ThreadPoolExecutor(4) as pool:
        seen = pool.map(lambda _: [numbers(batch)[0] for batch in iterator], range(4))
    assert sorted(itertools.chain(*seen)) == sorted(itertools.chain(*epochs_of(made / "table", 1, batch_size=1)[0]))


@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "bool", "float64"])
def test_tf_tensors_are_arrays_where_those_are_aligned(dtype: str, shift: int) -> None:
    tf = pytest.importorskip("tensorflow")
    from streamkit.buffers import Buffers
    from streamkit.frontends.eager import tensor

    room = Buffers().empty((4096,), "uint8")
    array = room[8 * shift :][: 3 * 5 * np.dtype(dtype).itemsize].view(dtype).reshape(3, 5)
    array[:] = np.arange(15).reshape(3, 5) % 2
    made = tensor(array)
    assert np.array_equal(tf.cast(made, tf.float32), array)  # an operation that ends the process if they are not
    assert (made.__array__().__array_interface__["data"][0] == array.__array_interface__["data"][0]) == (shift == 0)
    array.flags.writeable = False
    assert np.array_equal(tensor(array), array) and np.array_equal(tensor(array.T), array.T)
    assert tensor(array[:0]).shape == (0, 5) and tensor(array[0, 0]).shape == ()


WAYS: dict[str, Callable[[Any], Iterator[Any]]] = {
    "loop": iter,
    "graph": stepping,
    "loop, then graph": lambda dataset: going_over(iter(dataset)),
}


def going_over(iterator: Any) -> Iterator[Any]:
    yield next(iterator)
    yield from stepping(iterator)


@pytest.mark.parametrize("way", WAYS)
def test_tf_datasets_that_are_gone_hold_nothing_open(made: Path, way: str) -> None:
    """A search over many runs opens many; and what was built out of one goes on when its name is gone."""
    tf = pytest.importorskip("tensorflow")

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd")) + Path("/proc/self/maps").read_text().count(".tfrecord")

    before = descriptors()
    for _ in range(5):
        dataset = streamkit.dataset(made / "table", batch_size=4)
        n = sum(1 for _ in WAYS[way](dataset))
        del dataset
    assert reading.settles(lambda: descriptors() <= before)
    of_two = tf.data.Dataset.range(2).interleave(lambda i: streamkit.dataset(made / "table", batch_size=4))
    gc.collect()
    assert sum(1 for _ in of_two) == 2 * n
    iterator = WAYS[way](streamkit.dataset(made / "table", batch_size=4))
    gc.collect()
    assert sum(1 for _ in iterator) == n


def test_tf_names_the_damaged_sample(made: Path, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = Path(shutil.copytree(made / "photos", tmp_path / "out"))
    index = streamkit.open(path).index("train").to_pydict()
    reading.flip(path / index["shard"][5], index["image.offset"][5] + 99)
    ways: dict[Any, type[Exception]] = {iter: DamagedError, stepping: tf.errors.OpError}
    for way, kind in ways.items():
        with pytest.raises(kind) as caught:
            list(way(streamkit.dataset(path, batch_size=4, image_size=(8, 8))))
        assert index["key"][5] in str(caught.value) and "crc32c" in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_tf_leaves_no_thread_behind(made: Path, way: str) -> None:
    pytest.importorskip("tensorflow")
    for n_taken in (0, 1, 2, None):
        dataset = streamkit.dataset(made / "photos", batch_size=2, image_size=(8, 8), num_workers=2)
        batches = WAYS[way](dataset)
        for i, _ in enumerate(batches):
            if i == n_taken:
                break
        del dataset, batches, _
        gc.collect()
        assert reading.settles(lambda: not reading.our_threads())


def test_tf_loops_keep_what_they_are_given_and_ask_nothing_of_tf_data(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorflow")
    from streamkit.frontends import tensorflow

    monkeypatch.setattr(tensorflow._Iterations, "begin", lambda self: 1 / 0)
    dataset = streamkit.dataset(made / "photos", batch_size=2, image_size=(32, 32))
    kept = [(image, image.numpy().copy()) for _ in range(2) for image, _ in dataset]
    del dataset
    gc.collect()
    for _ in streamkit.dataset(made / "photos", batch_size=2, image_size=(32, 32), seed=9):
        pass
    assert len(kept) == N and all(np.array_equal(image, copy) for image, copy in kept)


def test_tf_iterations_that_failed_are_not_taken_for_whole_ones(made: Path, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = Path(shutil.copytree(made / "photos", tmp_path / "out"))
    index = streamkit.open(path).index("train").to_pydict()
    reading.flip(path / index["shard"][9], index["image.offset"][9] + 99)
    dataset = streamkit.dataset(path, batch_size=2, image_size=(8, 8), shuffle=False)
    iterator = iter(dataset)
    with pytest.raises(DamagedError):
        list(iterator)
    for again in (lambda: next(iterator), iterator.get_next, lambda: list(stepping(iterator)), lambda: list(iterator)):
        with pytest.raises(UsageError, match="ended at batch 4, by DamagedError"):
            again()
    for begun in (iter(dataset), going_over(iter(dataset))):
        with pytest.raises((tf.errors.OpError, DamagedError), match="crc32c"):
            list(begun)
    handed = iter(dataset)
    next(handed)
    with pytest.raises(tf.errors.OpError, match="crc32c"):
        list(stepping(handed))
    with pytest.raises(tf.errors.FailedPreconditionError, match="contained only"):
        next(handed)


def test_tf_iterations_that_were_interrupted_are_not_taken_for_whole_ones(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorflow")
    from streamkit.frontends import eager

    iterator = iter(streamkit.dataset(made / "table", batch_size=4))
    next(iterator)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(eager, "tensor", lambda value: _thread.interrupt_main() or value)
        for _ in iterator:
            time.sleep(0.01)
    with pytest.raises(UsageError, match="ended at batch"):
        list(iterator)


def test_tf_iterators_stay_where_they_are_when_looked_at(made: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    truth = epochs_of(made / "table", 1, batch_size=4)[0]
    iterator = iter(streamkit.dataset(made / "table", batch_size=4))
    seen = [numbers(next(iterator))]
    with tf.Graph().as_default(), pytest.raises(UsageError, match=r"tf\.Graph"):
        next(iterator)
    seen += [numbers(next(copy.copy(iterator)))]
    assert hasattr(iterator, "element_spec") and not hasattr(iterator, "nothing") and repr(iterator)
    assert seen + [numbers(batch) for batch in iterator] == truth


def test_tf_keeps_the_nuls_of_text(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"h\u00e9llo{i}\0"}) + "\n" for i in range(4)))
    convert(tmp_path / "rows.jsonl", tmp_path / "out")
    for way in WAYS.values():
        found = [part for one in way(streamkit.dataset(tmp_path / "out", batch_size=None)) for part in texts(one)]
        assert sorted(found) == [f"h\u00e9llo{i}\0".encode() for i in range(4)]


def texts(sample: Any) -> list[bytes]:
    import tensorflow as tf

    return [part.numpy() for part in tf.nest.flatten(sample) if part.dtype == tf.string]


# Keras


def recorder(seen: list[list[int]]) -> Any:
    """A compiled model that notes the rows of each batch that it is trained on."""
    import keras

    class Recorder(keras.Sequential):
        def train_step(self, *state_and_data: Any) -> Any:
            seen.append([int(v) for v in keras.ops.convert_to_numpy(state_and_data[-1][0])[:, 0]])
            return super().train_step(*state_and_data)

    model = Recorder([keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


WORKERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no workers": {"workers": 0},
    "three workers": {"workers": 3},
    "short queue": {"workers": 3, "max_queue_size": 1},
    "processes": {"workers": 2, "use_multiprocessing": True},
}


def fit_with(path: Path, n_epochs: int, batch_size: int = 4, **options: Any) -> tuple[list[list[int]], int]:
    """Rows of the batches that a real fit trained on, and the epoch that the sequence is at after it."""
    seen: list[list[int]] = []
    sequence = streamkit.sequence(path, batch_size=batch_size, seed=3, **options)
    recorder(seen).fit(sequence, epochs=n_epochs, shuffle=False, verbose=0)
    return seen, sequence.epoch


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.filterwarnings("ignore:.*os.fork:RuntimeWarning")  # JAX dislikes Keras' use_multiprocessing
def test_fit_trains_on_epochs_0_1_2_in_order(made: Path, workers: str) -> None:
    pytest.importorskip("keras")
    truth = epochs_of(made / "table", 3, batch_size=4, seed=3)
    seen, epoch = fit_with(made / "table", 3, **WORKERS[workers])
    assert seen == truth[0] + truth[1] + truth[2]
    assert epoch == 3


def test_fitting_again_goes_on_with_the_next_epoch(made: Path) -> None:
    pytest.importorskip("keras")
    truth = epochs_of(made / "table", 4, batch_size=4)
    sequence = streamkit.sequence(made / "table", batch_size=4)
    seen: list[list[int]] = []
    model = recorder(seen)
    model.fit(sequence, epochs=2, shuffle=False, verbose=0, validation_data=sequence_of_validation(made))
    model.fit(sequence, initial_epoch=2, epochs=4, shuffle=False, verbose=0)
    assert seen == truth[0] + truth[1] + truth[2] + truth[3]


def sequence_of_validation(made: Path) -> Any:
    return streamkit.sequence(made / "table", batch_size=4, shuffle=False)


def test_epochs_of_one_or_two_batches_are_counted_right(made: Path) -> None:
    # Keras asks for the first two batches while it builds, which is then all there is.
    pytest.importorskip("keras")
    truth = epochs_of(made / "table", 3, batch_size=11, seed=3)
    seen, _ = fit_with(made / "table", 3, batch_size=11)
    assert seen == truth[0] + truth[1] + truth[2]


def test_evaluate_and_predict_see_storage_order(made: Path) -> None:
    keras = pytest.importorskip("keras")
    stored = np.array([reading.row_of(key) for key in reading.keys_of(made / "table")])
    model = keras.Sequential([keras.Input((16,)), keras.layers.Lambda(lambda x: x[:, :1])])
    model.compile(loss="mse")
    sequence = streamkit.sequence(made / "table", batch_size=4, shuffle=False)
    for _ in range(2):
        assert model.predict(sequence, verbose=0)[:, 0].astype(int).tolist() == stored.tolist()
    expected = ((stored - stored % 3) ** 2).mean()
    assert model.evaluate(sequence, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_fit_with_shuffle_is_warned_about_once(made: Path) -> None:
    pytest.importorskip("keras")
    import random

    state = random.getstate()
    try:
        random.seed(1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sequence = streamkit.sequence(made / "table", batch_size=2)
            recorder([]).fit(sequence, epochs=3, verbose=0)
        assert sum("shuffle=False" in str(w.message) for w in caught) == 1
    finally:
        random.setstate(state)


def test_fit_without_shuffle_is_not_warned_about(made: Path) -> None:
    pytest.importorskip("keras")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for options in WORKERS.values():
            if not options.get("use_multiprocessing"):
                fit_with(made / "table", 2, **options)
    assert not [w for w in caught if "shuffle" in str(w.message)]


def test_a_batch_of_the_sequence_is_pure_in_its_number(made: Path) -> None:
    pytest.importorskip("keras")
    truth = epochs_of(made / "table", 1, batch_size=4)[0]
    sequence = streamkit.sequence(made / "table", batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # out of order on purpose
        for i in (3, 0, 5, 5, 1, 2, 3, 4, 0):
            assert numbers(sequence[i]) == truth[i]
    assert sequence.epoch == 0


def test_an_epoch_of_the_sequence_goes_on_after_a_jump_and_after_damage(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("keras")
    out = shutil.copytree(made / "table", tmp_path / "out")
    truth = epochs_of(out, 1, batch_size=4, shuffle=False)[0]
    index = streamkit.open(out).index()
    reading.flip(out / index.column("shard")[9].as_py(), index.column("x.offset")[9].as_py())
    sequence = streamkit.sequence(out, batch_size=4, shuffle=False)
    sequence.on_epoch_begin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # out of order on purpose
        for i in (0, 1, 2, 3, 1, 2, 3, 4, 0):
            if i == 2:
                with pytest.raises(DamagedError, match="crc32c"):
                    sequence[i]
            else:
                assert numbers(sequence[i]) == truth[i]
        sequence[4], sequence[5]
        with pytest.raises(IndexError):
            sequence[6]
    sequence.on_epoch_end()
    assert reading.settles(lambda: not reading.our_threads())


def test_the_sequence_says_its_classes_and_refuses_single_samples(made: Path) -> None:
    pytest.importorskip("keras")
    sequence = streamkit.sequence(made / "photos", batch_size=4, image_size=(8, 8))
    assert list(sequence.class_names) == ["c0", "c1", "c2"]
    with pytest.raises(UsageError, match="batch_size"):
        streamkit.sequence(made / "table", batch_size=None)


def test_fit_on_a_tf_dataset(made: Path) -> None:
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.data's order in fit is checked on the TensorFlow backend")
    truth = epochs_of(made / "table", 3, batch_size=4)
    seen: list[list[int]] = []
    recorder(seen).fit(streamkit.dataset(made / "table", batch_size=4), epochs=3, shuffle=False, verbose=0)
    assert seen == truth[0] + truth[1] + truth[2]


# PyTorch


def test_torch_epochs_resume_and_early_stop(made: Path) -> None:
    pytest.importorskip("torch")
    path = made / "table"
    truth = epochs_of(path, 5, batch_size=4)
    loader = Loader(path, batch_size=4)
    loader.resume(Loader(path, batch_size=4).cursor_at(2))
    data = loader.as_torch(num_workers=2)
    assert [numbers(batch) for batch in data] == truth[0][2:]
    for batch in data:
        assert numbers(batch) == truth[1][0]
        break
    assert [numbers(batch) for batch in data] == truth[2]
    iter(data)  # Keras makes iterators that it never uses; they begin no epoch
    assert [numbers(batch) for batch in data] == truth[3]
    loader.epoch = 1
    assert [numbers(batch) for batch in data] == truth[1]


def test_torch_is_not_told_what_the_loader_decides(made: Path) -> None:
    pytest.importorskip("torch")
    for options in ({"batch_size": 4}, {"shuffle": True}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}= is no option of as_torch"):
            Loader(made / "table", batch_size=4).as_torch(**options)


def test_a_program_may_end_with_an_iteration_under_way(made: Path) -> None:
    """Keras, once imported, keeps its modules so long that ours are gone when the iterator's turn comes."""
    code = """if True:
        import keras, streamkit, sys
        loader = streamkit.Loader(sys.argv[1], batch_size=4)
        batches = iter(loader)
        next(batches)
        graph = streamkit.dataset(sys.argv[1], batch_size=4, engine="graph")
        single = streamkit.Loader(sys.argv[1], batch_size=None)
        print(len(loader))
    """
    ended = python(code, made / "table", env={"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"})
    assert ended.returncode == 0 and "ignored" not in ended.stderr, ended.stderr[-2000:]


def test_torch_batches_may_be_changed_and_cross_without_a_copy(made: Path) -> None:
    torch = pytest.importorskip("torch")
    data = Loader(made / "table", batch_size=4).as_torch()
    truth = epochs_of(made / "table", 2, batch_size=4)
    seen = []
    for _ in range(2):
        for x, y in data:
            assert x.dtype == torch.float32 and y.dtype == torch.int32 and x.is_contiguous()
            assert x.data_ptr() % 64 == 0
            seen.append(numbers((x,)))
            x.zero_()
    assert seen == truth[0] + truth[1]


# Without TensorFlow


WITHOUT_TENSORFLOW = """if True:
    import json, sys, warnings
    sys.modules["tensorflow"] = None  # not importable
    sys.path.insert(0, "tests")
    from pathlib import Path
    import test_frontends as tests, streamkit
    path, kinds = Path(sys.argv[1]), json.loads(sys.argv[2])
    out = {"truth": tests.epochs_of(path, 3, batch_size=4, seed=3)}
    data = streamkit.Loader(path, batch_size=4, seed=3).as_torch()
    out["torch"] = [[tests.numbers(batch) for batch in data] for _ in range(3)]
    import keras
    out["backend"] = keras.backend.backend()
    warnings.filterwarnings("ignore", message=".*os.fork", category=RuntimeWarning)
    out["fit"] = {kind: tests.fit_with(path, 3, **tests.WORKERS[kind]) for kind in kinds}
    model = keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    sequence = streamkit.sequence(path, batch_size=4, seed=3)
    losses = model.fit(sequence, epochs=2, shuffle=False, verbose=0).history["loss"]
    out["losses"] = [float(loss) for loss in losses]
    seen = []
    if out["backend"] == "torch":
        loader = streamkit.Loader(path, batch_size=4, seed=3)
        tests.recorder(seen).fit(loader.as_torch(), epochs=2, shuffle=False, verbose=0)
    out["fit on a DataLoader"] = seen
    try:
        streamkit.dataset(path, batch_size=4)
        out["dataset"] = ""
    except streamkit.UsageError as error:
        out["dataset"] = str(error)
    print(json.dumps(out))
"""


@pytest.mark.slow  # test_resume trains on PyTorch where TensorFlow cannot be imported
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_numpy_torch_and_keras_work_where_tensorflow_cannot_be_imported(made: Path, backend: str) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("torch")
    pytest.importorskip(backend)
    out = reading.run_python(WITHOUT_TENSORFLOW, made / "table", json.dumps(list(WORKERS)), KERAS_BACKEND=backend)
    assert out["backend"] == backend
    truth = out["truth"]
    assert sorted(itertools.chain(*truth[0])) == list(range(N))
    assert out["torch"] == truth
    assert all(np.isfinite(loss) for loss in out["losses"]) and len(out["losses"]) == 2
    assert "tensorflow" in out["dataset"].lower()
    assert out["fit"] == {kind: [list(itertools.chain(*truth)), 3] for kind in WORKERS}
    if backend == "torch":  # Keras takes one iteration to build the model; the ones it trains on are whole
        assert out["fit on a DataLoader"] == truth[1] + truth[2]
