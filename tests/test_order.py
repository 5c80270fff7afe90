"""The order is arithmetic: a keyed bijection whose every position is reachable at once, cut evenly into batches."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit.bijection import permute
from streamkit.errors import UsageError
from streamkit.order import Batches, Cursor, Order

FINGERPRINT = {"dataset": "d1", "split": "train", "seed": 0}

GOLDEN_10 = [1, 4, 6, 8, 0, 9, 5, 3, 2, 7]
GOLDEN_HEAD = [9347, 28570, 70695, 33824, 27078, 21382, 42412, 90892]
GOLDEN_DIGEST = "41269c8d0f02b189990e2fb9ebf4659e278760e79a1622d6422cf3e5e48632bf"
GOLDEN_WINDOWED = "c6ec643a09ca4b5895643fdd560a5b76e0caa738647bf447368b7e327e8be196"


def is_bijection(values: np.ndarray, n: int) -> bool:
    return values.dtype == np.int64 and np.array_equal(np.sort(values), np.arange(n))


def chi_square_limit(dof: int) -> float:
    """A value that chi-square with `dof` degrees of freedom exceeds about once in a million draws (Wilson-Hilferty)."""
    return dof * (1 - 2 / (9 * dof) + 4.75 * math.sqrt(2 / (9 * dof))) ** 3


# The bijection


@pytest.mark.parametrize("first", range(0, 301, 50))
def test_permute_is_a_bijection_of_every_small_domain(first: int) -> None:
    for n in range(first, min(first + 50, 301)):
        assert is_bijection(permute(np.arange(n), n, (7, n)), n), n


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(n=st.integers(301, 60_000), key=st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**40)))
def test_permute_is_a_bijection_of_large_domains(n: int, key: tuple[int, int]) -> None:
    assert is_bijection(permute(np.arange(n), n, key), n)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(n=st.integers(1, 2**62 - 1), seed=st.integers(), data=st.data())
def test_permute_of_a_huge_domain_stays_inside_and_is_one_to_one(n: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=30, unique=True))
    values = permute(positions, n, (seed,))
    assert values.min() >= 0 and values.max() < n
    assert len(set(values.tolist())) == len(positions)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(n=st.integers(1, 5000), data=st.data())
def test_permute_maps_each_position_by_itself(n: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=24)))
    whole = permute(np.arange(n), n, (3, 4))
    assert np.array_equal(permute(positions, n, (3, 4)), whole[positions])
    assert np.array_equal(permute(positions.reshape(1, -1), n, (3, 4)), whole[positions][None])


@pytest.mark.parametrize("n", [20, 1000, 70_000])
def test_another_seed_or_epoch_is_another_order(n: int) -> None:
    keys = [(seed, epoch) for seed in (-1, 0, 1, 2**64, 2**64 + 1) for epoch in (0, 1, 2**33)]
    orders = {permute(np.arange(n), n, key).tobytes() for key in keys}
    assert len(orders) == len(keys)


def test_the_order_is_the_same_on_every_machine_and_release() -> None:
    # A golden on purpose. A cursor saved by one release, on one machine, must name the same samples in the next, so these
    # numbers may never change: if this test fails, every saved cursor and every published seed has become worthless.
    assert Order(10, seed=0).rows(0, 0, 10).tolist() == GOLDEN_10
    rows = Order(100_003, seed=12345).rows(7, 0, 100_003)
    assert rows[:8].tolist() == GOLDEN_HEAD
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == GOLDEN_DIGEST
    windowed = Order(100, seed=5, bounds=np.arange(0, 101, 10), window=3).rows(2, 0, 100)
    assert hashlib.sha256(windowed.astype("<i8").tobytes()).hexdigest() == GOLDEN_WINDOWED


# How evenly it shuffles


@pytest.mark.parametrize("n", range(3, 9))
def test_every_row_reaches_every_position_equally_often(n: int) -> None:
    n_seeds = 300
    counts = np.zeros((n, n))
    for seed in range(n_seeds):
        counts[np.arange(n), permute(np.arange(n), n, (seed, 0))] += 1
    statistic = ((counts - n_seeds / n) ** 2 / (n_seeds / n)).sum()
    assert statistic < chi_square_limit((n - 1) ** 2), counts


def test_all_orders_of_four_rows_come_equally_often() -> None:
    n_seeds, n_orders = 480, math.factorial(4)
    orders = [permute(np.arange(4), 4, (0, epoch)).tobytes() for epoch in range(n_seeds)]
    counts = np.array([orders.count(order) for order in set(orders)] + [0] * (n_orders - len(set(orders))))
    assert ((counts - n_seeds / n_orders) ** 2 / (n_seeds / n_orders)).sum() < chi_square_limit(n_orders - 1)


def imbalance(rows: np.ndarray, n_classes: int, batch_size: int) -> float:
    """Mean squared deviation of per-batch class counts from the share expected, in units of its variance (about 1)."""
    n = len(rows)
    classes = rows * n_classes // n  # sorted by class, the worst case for a shuffle
    per_batch = np.stack([(classes.reshape(-1, batch_size) == c).sum(1) for c in range(n_classes)], 1)
    share = 1 / n_classes
    variance = batch_size * share * (1 - share) * (n - batch_size) / (n - 1)  # hypergeometric
    return float(((per_batch - batch_size * share) ** 2).mean() / variance)


@pytest.mark.parametrize(("n", "batch_size"), [(1000, 20), (10_000, 50), (60_000, 120)])
def test_batches_of_class_sorted_data_are_as_mixed_as_by_a_true_permutation(n: int, batch_size: int) -> None:
    random = np.random.default_rng(0)
    true = np.array([imbalance(random.permutation(n), 10, batch_size) for _ in range(60)])
    ours = np.array([imbalance(Order(n, seed=s).rows(s, 0, n), 10, batch_size) for s in range(12)])
    assert abs(ours.mean() - true.mean()) < 5 * true.std() / math.sqrt(len(ours))
    assert np.abs(ours - true.mean()).max() < 6 * true.std()
    assert imbalance(np.arange(n), 10, batch_size) > 5  # the measure does see an order that is not shuffled


def test_neighbours_do_not_stay_neighbours_and_epochs_are_unrelated() -> None:
    n = 20_000
    first, second = (Order(n, seed=3).rows(epoch, 0, n) for epoch in (0, 1))
    # In a true permutation the number of pairs (r, r + 1) delivered one after the other is about Poisson(1).
    assert (np.diff(first) == 1).sum() < 8 and (np.diff(first) == -1).sum() < 8
    assert (first == second).sum() < 8
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 5 / math.sqrt(n)


# Order: asked in any way


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(n=st.integers(1, 40_000), epoch=st.integers(0, 1000), data=st.data())
def test_rows_do_not_depend_on_how_positions_are_asked(n: int, epoch: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    order = Order(n, seed=9)
    part = order.rows(epoch, start, stop)
    assert part.dtype == np.int64
    assert np.array_equal(part, order.rows(epoch, 0, n)[start:stop])
    assert np.array_equal(part, pickle.loads(pickle.dumps(order)).rows(epoch, start, stop))


@pytest.mark.parametrize("edge", [8_191, 8_192, 8_193, 16_384])
def test_rows_across_block_borders(edge: int) -> None:
    n = 50_000
    order = Order(n, seed=1)
    whole = permute(np.arange(n), n, (1, 4))
    assert np.array_equal(order.rows(4, edge - 3, edge + 3), whole[edge - 3 : edge + 3])
    assert np.array_equal(order.rows(4, edge - 20_000 if edge > 20_000 else 0, n)[-1:], whole[-1:])


def test_a_caller_cannot_change_the_order_through_what_it_was_given() -> None:
    order = Order(1000, seed=2)
    before = order.rows(0, 0, 1000).copy()
    given_out = order.rows(0, 0, 1000)
    try:
        given_out[:] = 0
    except ValueError:  # read-only is as good as a copy
        pass
    assert np.array_equal(order.rows(0, 0, 1000), before)


def test_without_shuffling_the_order_is_storage_order_in_every_epoch() -> None:
    order = Order(100, seed=5, shuffle=False)
    for epoch in (0, 1, 17):
        assert order.rows(epoch, 0, 100).tolist() == list(range(100))
        assert order.rows(epoch, 13, 19).tolist() == list(range(13, 19))


# Windowed: rows that share chunks


chunk_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(sizes=chunk_sizes, window=st.integers(1, 50), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_windowed_order_is_a_bijection_that_opens_no_more_chunks_than_its_window(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    bounds = np.cumsum([0, *sizes])
    n = int(bounds[-1])
    rows = Order(n, seed=seed, bounds=bounds, window=window).rows(epoch, 0, n)
    assert is_bijection(rows, n)
    chunk = np.searchsorted(bounds, rows, side="right") - 1
    first = {c: i for i, c in reversed(list(enumerate(chunk.tolist())))}
    last = {c: i for i, c in enumerate(chunk.tolist())}
    begins, ends = np.array([first[c] for c in sorted(first)]), np.array([last[c] for c in sorted(last)])
    opened = [((begins <= i) & (i <= ends)).sum() for i in range(n)]
    assert max(opened) <= window


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(sizes=chunk_sizes, window=st.integers(1, 9), data=st.data())
def test_windowed_rows_do_not_depend_on_how_positions_are_asked(
    sizes: list[int], window: int, data: st.DataObject
) -> None:
    bounds = np.cumsum([0, *sizes])
    n = int(bounds[-1])
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    order = Order(n, seed=4, bounds=bounds, window=window)
    assert np.array_equal(order.rows(3, start, stop), order.rows(3, 0, n)[start:stop])


def test_windowed_order_across_block_borders() -> None:
    bounds = np.arange(0, 50_001, 100)
    order = Order(50_000, seed=4, bounds=bounds, window=7)
    parts = [order.rows(1, i, min(i + 777, 50_000)) for i in range(0, 50_000, 777)]
    assert is_bijection(np.concatenate(parts), 50_000)
    assert np.array_equal(np.concatenate(parts), order.rows(1, 0, 50_000))


def test_windowed_order_moves_chunks_over_the_whole_epoch_and_mixes_rows_inside_the_window() -> None:
    bounds = np.arange(0, 10_001, 10)
    order = Order(10_000, seed=0, bounds=bounds, window=20)
    rows = order.rows(0, 0, 10_000)
    chunk = rows // 10
    assert abs(np.corrcoef(chunk, np.arange(10_000))[0, 1]) < 0.1  # chunks come from everywhere
    assert (np.diff(rows) == 1).mean() < 0.05  # rows of a chunk do not follow one another
    assert not np.array_equal(rows, order.rows(1, 0, 10_000))


# Batches


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(n=st.integers(0, 500), batch_size=st.integers(1, 40), num_shards=st.integers(1, 7), drop=st.booleans())
def test_shards_partition_each_global_batch_into_equal_parts(
    n: int, batch_size: int, num_shards: int, drop: bool
) -> None:
    shards = [Batches(n, batch_size, drop, r, num_shards) for r in range(num_shards)]
    assert len({len(shard) for shard in shards}) == 1
    done = 0
    for g in range(len(shards[0])):
        parts = [shard.positions(g) for shard in shards]
        sizes = {stop - start for start, stop in parts}
        assert len(sizes) == 1 and 0 < sizes.pop() <= batch_size
        assert parts[0][0] == g * batch_size * num_shards == done
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        done = parts[-1][1]
    left = n - done
    if drop:
        assert left == n % (batch_size * num_shards)
    else:
        assert left == n % num_shards  # only what cannot be shared out evenly


@pytest.mark.parametrize(
    ("n", "drop", "num_shards", "lengths"),
    [
        (10, False, 1, [4, 4, 2]),
        (10, True, 1, [4, 4]),
        (12, True, 1, [4, 4, 4]),
        (3, True, 1, []),
        (17, False, 2, [4, 4]),  # the rest of one sample is smaller than the number of shards
        (19, False, 2, [4, 4, 1]),  # three are left: one each, the third is dropped
        (0, False, 1, []),
    ],
)
def test_remainder_rule(n: int, drop: bool, num_shards: int, lengths: list[int]) -> None:
    batches = Batches(n, 4, drop, 0, num_shards)
    assert [b - a for a, b in map(batches.positions, range(len(batches)))] == lengths


def test_batches_refuse_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="batch_size is 0"):
        Batches(10, 0)
    with pytest.raises(UsageError, match="shard_index is 2, expected 0 to 1"):
        Batches(10, 4, False, 2, 2)
    with pytest.raises(UsageError, match="shard_index is -1"):
        Batches(10, 4, False, -1, 2)
    for number in (-1, 3):
        with pytest.raises(IndexError, match="3 batches"):
            Batches(10, 4).positions(number)


# Cursor


def test_a_cursor_survives_its_json() -> None:
    cursor = Cursor(2, 96, FINGERPRINT)
    assert Cursor.parse(cursor.to_json(), FINGERPRINT) == cursor


@pytest.mark.parametrize("name", sorted(FINGERPRINT))
def test_a_cursor_of_something_else_is_refused_and_names_what_differs(name: str) -> None:
    data = Cursor(2, 96, FINGERPRINT | {name: "other"}).to_json()
    with pytest.raises(UsageError) as caught:
        Cursor.parse(data, FINGERPRINT)
    text = str(caught.value)
    assert f"{name} (cursor 'other', here {FINGERPRINT[name]!r})" in text
    assert not any(f"{other} (" in text for other in FINGERPRINT if other != name)


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        [],
        {},
        {"epoch": 0, "position": 0},
        {"epoch": "one", "position": 0, "fingerprint": {}},
        {"epoch": 0, "position": None, "fingerprint": {}},
        {"epoch": 0, "position": 0, "fingerprint": 4},
    ],
)
def test_what_is_no_cursor_is_refused(data: object) -> None:
    with pytest.raises(UsageError, match="no cursor"):
        Cursor.parse(data, FINGERPRINT)


@pytest.mark.parametrize(("epoch", "position"), [(-1, 0), (0, -32)])
def test_a_cursor_points_at_no_negative_place(epoch: int, position: int) -> None:
    with pytest.raises(UsageError, match="must be >= 0"):
        Cursor.parse({"epoch": epoch, "position": position, "fingerprint": FINGERPRINT}, FINGERPRINT)
