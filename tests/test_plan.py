"""The plan is pure: every item lands in exactly one shard, splits are exact, and nothing depends on how items are listed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.convert.assign import key_hashes
from streamkit.convert.options import Options, parse_split
from streamkit.convert.plan import Plan, cut, make_plan
from streamkit.errors import UsageError
from streamkit.schema import Field, Schema
from streamkit.sources.listing import Listing
from streamkit.units import size

FRACTIONS = [{"train": 0.9, "val": 0.1}, {"train": 0.7, "val": 0.2, "test": 0.1}, {"a": 0.5, "b": 0.5}]


def listing(n_a_class: list[int], seed: int = 0, block: int = 1, sizes: list[int] | None = None) -> Listing:
    """Items of some classes, sorted by class as folders are."""
    labels = np.repeat(np.arange(len(n_a_class)), n_a_class)
    n = len(labels)
    rng = np.random.default_rng(seed)
    names = tuple(f"c{i:03d}" for i in range(len(n_a_class)))
    return Listing(
        keys=[f"{names[c]}/{i:06d}.jpg" for i, c in enumerate(labels.tolist())],
        sizes=rng.integers(0, 5000, n) if sizes is None else np.array(sizes, np.int64),
        schema=Schema(
            (
                Field("image", "image", "uint8", (None,) * 3, "mixed"),
                Field("label", "label", "int64", class_names=names),
            )
        ),
        columns={"label": labels.astype(np.int64)},
        block=block,
    )


def keys_of(plan: Plan, items: Listing) -> dict[str, set[str]]:
    """split -> its keys."""
    return {
        split: {items.keys[i] for shard in plan.shards if shard.split == split for i in shard.rows.tolist()}
        for split in plan.splits
    }


@given(
    n_a_class=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    shard_size=st.integers(1, 20_000),
    seed=st.integers(0, 2**40),
    block=st.integers(1, 7),
)
def test_every_item_in_exactly_one_shard(n_a_class: list[int], shard_size: int, seed: int, block: int) -> None:
    items = listing(n_a_class, seed % 97, block)
    plan = make_plan(items, Options("tfrecord", shard_size=shard_size, seed=seed), "tfrecord")
    rows = np.concatenate([shard.rows for shard in plan.shards])
    assert sorted(rows.tolist()) == list(range(len(items)))
    assert all(len(shard.rows) for shard in plan.shards)
    files = [shard.file for shard in plan.shards]
    assert files == [f"train-{i:05d}.tfrecord" for i in range(len(files))]


@given(
    n_a_class=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    fractions=st.sampled_from(FRACTIONS),
    seed=st.integers(0, 9),
)
def test_splits_are_exact_to_one_sample(n_a_class: list[int], fractions: dict[str, float], seed: int) -> None:
    """DESIGN 4: stratified, exact to one sample, in each class and in total."""
    n_a_class = [*n_a_class, 60]
    items = listing(n_a_class)
    plan = make_plan(items, Options("hdf5", split=fractions, seed=seed), "h5")
    assert plan.splits == tuple(fractions)
    for split, fraction in fractions.items():
        rows = np.concatenate([shard.rows for shard in plan.shards if shard.split == split])
        assert abs(len(rows) - fraction * len(items)) <= 1
        counts = np.bincount(items.columns["label"][rows], minlength=len(n_a_class))
        for n, count in zip(n_a_class, counts.tolist(), strict=True):
            assert abs(count - fraction * n) <= 1, (split, n, count)


@given(n=st.integers(10, 200), fractions=st.sampled_from(FRACTIONS), order=st.randoms(use_true_random=False))
def test_the_listing_s_order_does_not_matter(n: int, fractions: dict[str, float], order: object) -> None:
    keys = [f"{i}.jpg" for i in range(n)]
    shuffled = list(keys)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    schema = Schema((Field("image", "image", "uint8", (None,) * 3, "mixed"),))
    options = Options("tfrecord", split=fractions, shard_size=50)
    plans = []
    for some in (keys, shuffled):
        items = Listing(some, np.full(n, 10), schema)
        plan = make_plan(items, options, "tfrecord")
        plans.append([[some[i] for i in shard.rows.tolist()] for shard in plan.shards])
    assert plans[0] == plans[1]


def test_more_files_move_few_samples() -> None:
    """DESIGN 4: adding files moves next to none from one split to another."""
    options = Options("tfrecord", split=FRACTIONS[0])
    before, after = listing([200, 100, 50]), listing([210, 100, 50])
    names = {key.rpartition("/")[2]: key for key in before.keys}
    assert len(names) == len(before)
    items = Listing(
        keys=[*before.keys, *[f"c000/new{i}.jpg" for i in range(10)]],
        sizes=after.sizes,
        schema=before.schema,
        columns={"label": np.r_[before.columns["label"], np.zeros(10, np.int64)]},
    )
    old = keys_of(make_plan(before, options, "tfrecord"), before)
    new = keys_of(make_plan(items, options, "tfrecord"), items)
    moved = sum(len(old[split] - new[split]) for split in old)
    assert moved <= 4


def test_the_seed_chooses_the_split_and_the_order() -> None:
    items = listing([100])
    plans = [make_plan(items, Options("tfrecord", split=FRACTIONS[0], seed=s), "tfrecord") for s in (0, 1, 0)]
    assert keys_of(plans[0], items) != keys_of(plans[1], items)
    assert plans[0].shards[0].rows.tolist() == plans[2].shards[0].rows.tolist()
    assert plans[0].shards[0].rows.tolist() != sorted(plans[0].shards[0].rows.tolist())


def test_seeds_of_many_digits_differ() -> None:
    keys = [f"{i}" for i in range(50)]
    assert key_hashes(keys, 10**17 + 1).tolist() != key_hashes(keys, 10**17 + 2).tolist()


def test_classes_are_spread_over_shards() -> None:
    """A shard is a fair sample of its split, though folders list one class after the other."""
    items = listing([500, 500], sizes=[10] * 1000)
    for shard in make_plan(items, Options("tfrecord", shard_size=1000), "tfrecord").shards:
        share = items.columns["label"][shard.rows].mean()
        assert 0.3 < share < 0.7


@given(n=st.integers(1, 50), block=st.integers(1, 9))
def test_blocks_stay_together(n: int, block: int) -> None:
    hashes = key_hashes([str(i) for i in range(n)], 3, block)
    assert hashes.shape == (n,)
    assert hashes.min() >= 0
    for start in range(0, n, block):
        assert len(set(hashes[start : start + block].tolist())) == 1
    assert len(set(hashes.tolist())) == -(-n // block)


@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=60), wanted=st.integers(1, 3000))
def test_shards_are_of_about_equal_bytes(sizes: list[int], wanted: int) -> None:
    sizes_ = np.array(sizes, np.int64)
    parts = cut(np.arange(len(sizes)), sizes_, wanted)
    assert np.concatenate(parts).tolist() == list(range(len(sizes)))
    assert all(part.size for part in parts)
    assert len(parts) <= max(1, -(-sum(sizes) // wanted))
    share = sum(sizes) / min(max(1, -(-sum(sizes) // wanted)), len(sizes))
    assert all(sizes_[part].sum() <= share + 2 * max(sizes) for part in parts)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UsageError, match="'test' would be empty"):
        make_plan(listing([3]), Options("tfrecord", split={"train": 0.98, "test": 0.02}), "tfrecord")


@pytest.mark.parametrize(
    "text",
    [
        *("", "train", "train=", "train=x", "=0.5", "train=0.5", "train=0.9,val=0.2", "train=1.5,val=-0.5", "a b=1"),
        *("../x=1", "train=nan", "train=inf,val=0.1", "train=0.5,train=0.5", "1a=1", "train=0.9,,val=0.1"),
    ],
)
def test_splits_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        Options("tfrecord", split=parse_split(text))


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5.2", "12 parsecs", "1e9", "0x10", "MB", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        size(text)


@given(n=st.integers(0, 10**12))
def test_sizes(n: int) -> None:
    assert size(n) == size(str(n)) == size(f"{n}B") == n
    assert size(f"{n} KB") == size(f"{n}k") == n * 1000
    assert size(f"{n}KiB") == n * 1024
