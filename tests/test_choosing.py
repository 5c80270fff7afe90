"""Balanced classes and mixtures: exact shares, one cursor, the same in every frontend; and how well a loader shuffles."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import reading
from hypothesis import given
from hypothesis import strategies as st
from reading import all_same, convert

import streamkit
from streamkit import DamagedError, Loader, UsageError
from streamkit.bijection import permute_each
from streamkit.order import Order
from streamkit.shares import Shares, quotas

SIZES = (70, 20, 6)  # of the classes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`skewed`: 96 rows of 3 classes; x[i] is i. `a`, `b`: tables of 40 and 9 rows, b's values from 1000 on."""
    root = tmp_path_factory.mktemp("choosing")
    labels = np.repeat(np.arange(3), SIZES)

    def table(name: str, x: np.ndarray, y: np.ndarray, format: str = "tfrecord") -> None:
        (root / "in").mkdir(exist_ok=True)
        np.savez(root / f"in/{name}.npz", x=np.repeat(x[:, None].astype(np.float32), 3, 1), y=y)
        convert(root / f"in/{name}.npz", root / name, format)

    table("skewed", np.arange(len(labels)), labels)
    table("a", np.arange(40), np.arange(40) % 2)
    table("b", 1000 + np.arange(9), np.arange(9) % 2, "hdf5")
    np.savez(root / "in/wide.npz", x=np.zeros((5, 4), np.float32), y=np.arange(5) % 2)
    convert(root / "in/wide.npz", root / "wide")
    many = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32).round(1)
    many[:, 0] = np.arange(4000)
    np.savez(root / "in/chunked.npz", x=many, y=np.arange(4000) // 1000)
    convert(root / "in/chunked.npz", root / "chunked", "hdf5", compression="gzip")
    return root


def numbers(batches: Any) -> list[int]:
    return [int(v) for x, _ in batches for v in x[:, 0]]


# The order


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.data(), st.integers(0, 5), st.booleans())
def test_shares_are_exact_over_the_epoch_and_near_in_every_stretch(
    sizes: list[int], data: st.DataObject, epoch: int, shuffle: bool
) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(sizes), max_size=len(sizes)))
    n = sum(sizes)
    order = Shares(tuple(Order(size, shuffle=shuffle) for size in sizes), quotas(n, weights), 3, shuffle)
    part = np.searchsorted(order.firsts, order.rows(epoch, 0, n), side="right") - 1
    share = np.array(weights) / sum(weights)
    counts = np.cumsum(part[:, None] == np.arange(len(sizes)), axis=0)
    assert np.abs(counts[-1] - share * n).max() < 1
    away = np.abs(counts - np.arange(1, n + 1)[:, None] * np.array(order.quotas) / n)
    assert (away <= 1 + share * len(sizes) + 1e-9).all() or (away <= 2).all()
    a, b = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    assert order.rows(epoch, a, b).tolist() == order.rows(epoch, 0, n)[a:b].tolist()


def test_every_sample_of_a_part_is_drawn_equally_often() -> None:
    """Also of a part so large that an epoch does not hold it, and over the border between blocks of the order."""
    order = Shares((Order(30_000), Order(50)), quotas(40_000, [1, 1]), 1)
    drawn = np.concatenate([order.rows(epoch, 0, order.n) for epoch in range(3)])
    counts = np.bincount(drawn, minlength=30_050)
    assert set(counts[:30_000]) == {2} and set(counts[30_000:]) == {3 * 20_000 // 50}
    first = order.rows(0, 0, order.n)
    assert len(set(first[first < 30_000])) == 20_000  # none twice before all were there once


@given(st.integers(1, 200), st.integers(0, 2**62))
def test_permute_each_is_a_bijection_for_every_key(n: int, key: int) -> None:
    both = [permute_each(np.arange(n), np.full(n, n), 0, np.full(n, key), np.full(n, turn)) for turn in (0, 1)]
    assert all(sorted(values.tolist()) == list(range(n)) for values in both)
    assert n < 8 or both[0].tolist() != both[1].tolist()


# Balance


def test_balance_draws_every_class_equally_often(made: Path) -> None:
    loader = Loader(made / "skewed", balance=True, batch_size=12)
    assert loader.n_samples == sum(SIZES) and len(loader) == 8
    seen: list[int] = []
    for _ in range(5):
        batches = list(loader)
        assert np.bincount(np.concatenate([y for _, y in batches])).tolist() == [32, 32, 32]
        assert all(np.abs(np.bincount(y, minlength=3) - 4).max() <= 2 for _, y in batches)
        seen += numbers(batches)
    counts = np.bincount(seen, minlength=96)
    for start, stop in itertools.pairwise(np.cumsum([0, *SIZES])):
        assert np.ptp(counts[start:stop]) <= 1  # 160 draws of each class, each of its samples as often
    assert counts[:70].min() >= 2


def test_balance_by_weights(made: Path) -> None:
    loader = Loader(made / "skewed", balance={0: 2, 1: 1, 2: 0}, batch_size=12)
    assert np.bincount(np.concatenate([y for _, y in loader])).tolist() == [64, 32]
    chosen = Loader(made / "skewed", split="train[:50%]", where=pc.field("label") < 2, balance=True, batch_size=7)
    found = np.bincount(np.concatenate([y for _, y in chosen]))
    assert len(found) == 2 and abs(int(found[0]) - int(found[1])) <= 1 and found.sum() == chosen.n_samples


@pytest.mark.parametrize(
    ("balance", "says"),
    [
        ({0: 1}, "no weight for class '1', '2'"),
        ({0: 1, 1: 1, 2: 1, 3: 1}, "wants samples of class 3, and none"),
        ({0: 0, 1: 0, 2: 0}, "every class"),
        ({0: -1, 1: 1, 2: 1}, "weight of 0 is -1"),
        ("yes", "balance is 'yes'"),
    ],
)
def test_balance_that_cannot_be(made: Path, balance: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Loader(made / "skewed", balance=balance)


def test_balance_names_classes_and_needs_a_label(tmp_path: Path, many_photos: Path) -> None:
    out = convert(many_photos, tmp_path / "photos")
    loader = Loader(out, balance={"bird": 1, "cat": 1, "dog": 2}, batch_size=10, image_size=(8, 8))
    assert np.bincount(np.concatenate([y for _, y in loader])).tolist() == [15, 15, 30]
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    with pytest.raises(UsageError, match=r"no class 'dgo'\. Did you mean 'dog'\? Classes are bird, cat, dog"):
        Loader(out, balance={"bird": 1, "cat": 1, "dgo": 2}, image_size=(8, 8))
    with pytest.raises(UsageError, match="balance needs a label"):
        Loader(convert(tmp_path / "x.npy", tmp_path / "x"), balance=True)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (pc.field("lable") == 1, r"no column 'lable'\. Did you mean 'label'\? The index has key, "),
        (pc.field("label") == "catt", r"int64 with string\. Write a number; .*class_names\.index"),
        (pc.field("label") + 1, "it is no comparison"),
    ],
)
def test_where_that_cannot_be(made: Path, where: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Loader(made / "skewed", where=where)
    assert "\\n" not in str(caught.value)


def test_balance_of_chunked_data_is_exact_too(made: Path) -> None:
    loader = Loader(made / "chunked", balance={0: 3, 1: 1, 2: 1, 3: 1}, batch_size=100, memory_budget="1MiB")
    found = numbers(loader)
    assert np.bincount(np.array(found) // 1000).tolist() == [2000, 667, 667, 666]
    assert set(np.bincount(found)[:1000]) == {2}


# What holds for both

BOTH: dict[str, Any] = {
    "balanced": lambda made, **o: Loader(made / "skewed", balance={0: 1, 1: 2, 2: 1}, **o),
    "mixed": lambda made, **o: streamkit.mix({made / "a": 2, made / "b": 1}, **o),
    "mixed and balanced, in storage order": lambda made, **o: streamkit.mix(
        {made / "a": 2, made / "b": 1}, balance=True, shuffle=False, **o
    ),
    "a slice": lambda made, **o: Loader(made / "skewed", split="train[10%:70%]", where=pc.field("label") < 2, **o),
}


@pytest.mark.parametrize("kind", BOTH)
def test_length_threads_pickle_and_resume(made: Path, kind: str) -> None:
    def new(**options: Any) -> Any:
        return BOTH[kind](made, batch_size=5, seed=4, **options)

    loader = new(num_workers=0)
    truth = [batch for _ in range(3) for batch in loader]
    assert len(truth) == 3 * len(loader) and sum(len(x) for x, _ in truth) == 3 * loader.n_samples
    threaded = new(num_workers=3)
    assert all_same([batch for _ in range(3) for batch in threaded], truth)
    for step in (1, len(loader), len(loader) + 3):
        cursor = new().cursor_at(step)
        resumed = pickle.loads(pickle.dumps(new()))
        resumed.resume(cursor)
        rest = []
        while resumed.epoch < 3:
            rest += list(resumed)
        assert all_same(rest, truth[step:])
    shards = [new(shard_index=r, num_shards=5) for r in range(5)]
    one = BOTH[kind](made, batch_size=1, seed=4, shard_index=1, num_shards=5)
    one.resume(BOTH[kind](made, batch_size=5, seed=4).cursor_at(2))  # other shards, the same global batch
    assert int(next(iter(one))[0][0, 0]) == int(truth[2][0][1, 0])
    assert len({len(shard) for shard in shards}) == 1


@pytest.mark.parametrize("kind", ["balanced", "mixed"])
def test_frontends_deliver_them_to_the_bit(made: Path, kind: str) -> None:
    pytest.importorskip("torch")

    def new() -> Any:
        return BOTH[kind](made, batch_size=5, drop_remainder=True)

    truth = list(new())
    dataset = new().as_tf()
    assert int(dataset.cardinality()) == len(truth)
    assert all_same([tuple(t.numpy() for t in batch) for batch in dataset], truth)
    assert all_same([tuple(t.numpy() for t in batch) for batch in new().as_torch()], truth)
    keras = new().as_keras()
    keras.on_epoch_begin()
    assert all_same([keras[i] for i in range(len(keras))], truth)


def test_a_cursor_of_another_choice_is_refused(made: Path) -> None:
    plain, balanced = Loader(made / "skewed"), Loader(made / "skewed", balance=True)
    with pytest.raises(UsageError, match="choosing"):
        balanced.resume(plain.cursor_at(1))
    weights = [streamkit.mix({made / "a": w, made / "b": 1}, batch_size=4) for w in (1, 2)]
    with pytest.raises(UsageError, match="quotas"):
        weights[1].resume(weights[0].cursor_at(1))


# Mixtures


def test_a_mixture_is_exact_and_repeats_fairly(made: Path) -> None:
    mixture = streamkit.mix({made / "a": 0.5, made / "b": 0.5}, batch_size=7)
    assert mixture.n_samples == 49 and len(mixture) == 7 and mixture.class_names == ["0", "1"]
    counts = np.zeros(1009, int)
    for epoch in range(4):
        batches = list(mixture)
        found = np.array(numbers(batches))
        assert sorted([(found < 1000).sum(), (found >= 1000).sum()]) == [24, 25]
        for i, (x, _) in enumerate(batches):
            assert (mixture.sources(epoch, i) == (x[:, 0] >= 1000)).all()
            assert 2 <= (x[:, 0] < 1000).sum() <= 5
        counts += np.bincount(found, minlength=1009)
    assert set(counts[:40]) == {2, 3} and np.ptp(counts[1000:]) <= 1


def test_a_mixture_refuses_what_does_not_fit(made: Path, many_photos: Path, tmp_path: Path) -> None:
    photos = convert(many_photos, tmp_path / "photos")
    for weights, says in (
        ({}, "weights are"),
        ({made / "a": 0}, "weights are"),
        ([made / "a", made / "b"], "expected their weights, too"),
        ({made / "a": 1, made / "b": "2"}, "weights are"),
        ({made / "a": 1, made / "wide": 1}, r"wide: field 'x' is float32 \(4,\), in .*a float32 \(3,\)"),
        ({made / "a": 1, photos: 1}, "fields differ: x, label and image, label"),
    ):
        with pytest.raises(UsageError, match=says):
            streamkit.mix(weights, image_size=(8, 8))
    for name in ("cat", "owl"):
        (tmp_path / name / name).mkdir(parents=True)
        np.save(tmp_path / name / name / "x.npy", np.zeros(3))
    with pytest.raises(UsageError, match=r"classes of 'label' are not those of .*cat-out"):
        streamkit.mix({convert(tmp_path / name, tmp_path / f"{name}-out"): 1 for name in ("cat", "owl")})


def test_a_mixture_of_ragged_arrays_and_of_single_samples(tmp_path: Path) -> None:
    outs = [
        convert(reading.ragged_folder(tmp_path / f"in{i}", lengths), tmp_path / f"out{i}")
        for i, lengths in enumerate([[1, 2, 3, 4], [9, 8, 7, 6]])
    ]
    mixture = streamkit.mix(dict.fromkeys(outs, 1), batch_size=4)
    for batch in mixture:
        assert batch["array"].shape[1] == batch["array_length"].max()
        for values, length in zip(batch["array"], batch["array_length"], strict=True):
            assert (values[:length] > 0).all() and not values[length:].any()
    single = streamkit.mix(dict.fromkeys(outs, 1), batch_size=None)
    assert sorted(len(sample[0]) for sample in single) == [1, 2, 3, 4, 6, 7, 8, 9]


def test_bad_samples_of_a_mixture_are_left_out_and_named(made: Path, tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(made / "b", tmp_path / "b"))
    index = streamkit.open(broken).index("train").to_pydict()
    reading.flip(broken / index["shard"][2], index["x.offset"][2])
    with pytest.raises(DamagedError, match=r"record 2"):
        list(streamkit.mix({made / "a": 1, broken: 1}, batch_size=7))
    mixture = streamkit.mix({made / "a": 1, broken: 1}, batch_size=7, on_corrupt="skip", max_bad=1)
    found = numbers(mixture)
    lost = reading.row_of(index["key"][2]) + 1000
    assert lost not in found
    assert [error.key for error in mixture.bad] == [index["key"][2]]
    assert str(mixture.bad[0]).startswith(f"{broken}/{index['shard'][2]} record 2")  # which of the datasets


# How well it shuffles


@pytest.fixture(scope="module")
def class_sorted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adopted HDF5 of 6400 rows in 8 classes, stored class after class: `plain` contiguous, `chunked` 100 rows a chunk."""
    import h5py

    root = tmp_path_factory.mktemp("sorted")
    for name, chunks in (("plain", None), ("chunked", (100, 8))):
        with h5py.File(root / f"{name}.h5", "w") as file:
            options = {} if chunks is None else {"chunks": chunks, "compression": "gzip"}
            file.create_dataset("x", data=np.zeros((6400, 8), np.float32), **options)
            file["y"] = np.repeat(np.arange(8), 800)
        streamkit.index(root / f"{name}.h5", root / name, label="y")
    return root


def test_on_class_sorted_storage_batches_are_as_a_true_permutation_s(class_sorted: Path) -> None:
    """Within sampling error: the spread of 100 batches' class counts is 1 +- 0.06 (one standard deviation)."""
    loader = Loader(class_sorted / "plain", batch_size=64, seed=2)
    labels = streamkit.open(class_sorted / "plain").index("train").column("label").to_numpy()
    assert (np.diff(labels) >= 0).all()
    spreads = []
    for epoch in range(8):
        found = loader.shuffle_report(epoch)
        assert abs(found["rank_correlation"]) < 4 / np.sqrt(6400)
        assert found["neighbour_entropy"] > 0.99
        assert abs(found["classes_per_batch"] - found["classes_expected"]) < 0.05
        spreads.append(found["class_spread"])
    assert abs(np.mean(spreads) - 1) < 4 * 0.06 / np.sqrt(8)
    assert found["window_samples"] == 6400 and found["window_nbytes"] == 0


def test_the_report_tells_storage_order_windows_and_balance_from_a_permutation(class_sorted: Path) -> None:
    still = Loader(class_sorted / "plain", batch_size=64, shuffle=False).shuffle_report()
    assert still["rank_correlation"] == 1 and still["neighbour_entropy"] == 0 and still["window_samples"] == 1
    assert still["class_spread"] > 40 and still["classes_per_batch"] < 1.2
    small = Loader(class_sorted / "chunked", batch_size=64, memory_budget=16 * 3200 * 4).shuffle_report()
    assert small["window_samples"] == 400 and small["window_nbytes"] == 400 * 32
    assert 1.5 < small["class_spread"] < still["class_spread"]
    whole = Loader(class_sorted / "chunked", batch_size=64).shuffle_report()
    assert whole["window_samples"] == 6400 and abs(whole["class_spread"] - 1) < 0.25
    balanced = Loader(class_sorted / "plain", batch_size=64, balance=True).shuffle_report()
    assert balanced["class_spread"] < 0.2 and balanced["classes_per_batch"] == 8
    mixed = streamkit.mix(dict.fromkeys([class_sorted / "plain", class_sorted / "chunked"], 1), batch_size=64)
    assert abs(mixed.shuffle_report()["rank_correlation"]) < 0.2


# Lengths


@pytest.mark.parametrize("num_shards", [1, 2])
def test_samples_of_like_length_come_together_and_are_padded_to_few_sizes(tmp_path: Path, num_shards: int) -> None:
    sizes = [int(n) for n in np.random.default_rng(0).integers(1, 60, 300)]
    out = convert(reading.ragged_folder(tmp_path / "in", sizes), tmp_path / "out")
    options: dict[str, Any] = {"batch_size": 10, "num_shards": num_shards, "seed": 3}

    def new(r: int, pad_to: Any = (16, 32, 64)) -> Loader:
        return Loader(out, shard_index=r, pad_to=pad_to, **options)

    shards = [new(r) for r in range(num_shards)]
    epochs = [[list(shard) for shard in shards] for _ in range(2)]
    for epoch in epochs:
        padded, real = 0, 0
        seen: list[int] = []
        for batches in epoch:
            for batch in batches:
                n, longest = batch["array"].shape[1], batch["array_length"].max()
                assert n == min(b for b in (16, 32, 64) if b >= longest)
                padded, real = padded + batch["array"].shape[0] * n, real + int(batch["array_length"].sum())
                seen += batch["array_length"].tolist()
        assert sorted(seen) == sorted(sizes)
        least = sum(min(b for b in (16, 32, 64) if b >= size) for size in sizes)
        assert padded < 1.1 * least and real == sum(sizes)
    assert not all_same(epochs[0][0], epochs[1][0])
    by_chance = sum(batch["array"].size // 3 for batch in new(0, "batch"))
    assert by_chance > 1.6 * sum(int(batch["array_length"].sum()) for batch in new(0, "batch"))
    resumed = new(0)
    resumed.resume(new(0).cursor_at(4))
    assert all_same(list(resumed), epochs[0][0][4:])
    with pytest.raises(UsageError, match="pad_to"):
        new(0).resume(new(0, (64,)).cursor_at(1))


def test_lengths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    out = convert(reading.ragged_folder(tmp_path / "in", [3, 9, 4]), tmp_path / "out")
    with pytest.raises(UsageError, match=r"has 9 rows, pad_to is \(4, 8\)"):
        list(Loader(out, pad_to=[4, 8]))
    with pytest.raises(UsageError, match="expected"):
        Loader(out, pad_to=())
    with pytest.raises(UsageError, match="mixture"):
        streamkit.mix({out: 1}, pad_to=(16,))
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    with pytest.raises(UsageError, match="no field delivered varies"):
        Loader(convert(tmp_path / "x.npy", tmp_path / "x"), pad_to=(4, 8))
