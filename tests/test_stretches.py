"""Small samples on a server: brought many in one request, in windows, and never a wrong byte or one too many kept."""

from __future__ import annotations

import itertools
import pickle
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Served, served

import streamkit
from streamkit import Loader, native
from streamkit.blocks import wait_until
from streamkit.errors import DamagedError, RemoteError, ResourceError, UsageError
from streamkit.kept import Stretches
from streamkit.order import Order
from streamkit.remote import patience
from streamkit.remote.requests import STRETCH_NBYTES
from streamkit.stretches import Spans

N, SHARDS = 6000, 3
BUDGET = "8MiB"  # a window of two stretches of 256 KiB, and of what is kept eight


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = patience.Patience(n_tries=4, total_s=4.0, answer_s=0.5, first_wait_s=0.01, longest_wait_s=0.05)
    monkeypatch.setattr(patience, "PATIENCE", quick)


@pytest.fixture(scope="module")
def rows_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 rows of 1 KiB with their number in each value, and a text beside them: 6.5 MB in several TFRecord shards."""
    root = tmp_path_factory.mktemp("stretches")
    np.savez(root / "t.npz", x=np.repeat(np.arange(N, dtype=np.int32)[:, None], 256, axis=1), y=np.arange(N) * 8 // N)
    streamkit.convert(root / "t.npz", root / "out", format="tfrecord", compression="none", workers=1, shard_size="2MB")
    return root / "out"


@pytest.fixture
def server(rows_set: Path) -> Iterator[Served]:
    with served(rows_set) as there:
        yield there


def loader(path: Any, **options: Any) -> Loader:
    return Loader(path, **{"batch_size": 64, "memory_budget": BUDGET, "seed": 3, **options})


def numbers(batches: Any) -> list[list[int]]:
    """The rows' numbers, batch by batch; every value of a row must have it."""
    out = []
    for values, labels in batches:
        assert (values == values[:, :1]).all() and np.array_equal(labels, values[:, 0].astype(np.int64) * 8 // N)
        out.append(values[:, 0].tolist())
    return out


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def stored_numbers(folder: Path) -> list[int]:
    """The number of each stored row."""
    return [int(values[0]) for values in np.concatenate([x for x, _ in Loader(folder, shuffle=False)])]


def asked(server: Served) -> list[tuple[int, int]]:
    spans = [span for name, span in server.asked if name.endswith(".tfrecord")]
    ends = [span.removeprefix("bytes=").split("-") for span in spans]
    return [(int(a), int(b) + 1) for a, b in ends]


@pytest.mark.parametrize("num_workers", [0, 1, 16])
@pytest.mark.parametrize("in_c", [True, False])
def test_every_row_comes_once_and_its_bytes_come_once(
    server: Served, num_workers: int, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_c:
        monkeypatch.setattr(native, "available", lambda: False)
    found = numbers(loader(server.url, num_workers=num_workers))
    assert sorted(flat(found)) == list(range(N)) and [len(rows) for rows in found[:-1]] == [64] * (N // 64)
    stored = sum(path.stat().st_size for path in server.folder.glob("*.tfrecord"))
    assert sum(b - a for a, b in asked(server)) < 1.25 * stored
    assert len(asked(server)) < N / 50
    again = loader(server.url)
    assert again.shuffle_report()["window_samples"] < N / 2 and numbers(again) == found


def test_a_window_holds_what_the_budget_says_and_the_cursor_knows(server: Served, rows_set: Path) -> None:
    small, large = loader(server.url), loader(server.url, memory_budget="16MiB")
    assert large.shuffle_report()["window_samples"] > small.shuffle_report()["window_samples"]
    assert small.memory_bound <= 8 << 20
    report = large.shuffle_report()
    assert 0 < report["window_nbytes"] <= 1 << 20 and abs(report["rank_correlation"]) < 0.5
    with pytest.raises(UsageError, match=r"window \(cursor"):
        small.resume(large.cursor_at(3))
    with pytest.raises(UsageError, match=r"window \(cursor"):
        small.resume(loader(rows_set).cursor_at(3))
    whole = numbers(small)
    later = loader(server.url)
    later.resume(small.cursor_at(len(small) + 41))
    assert numbers(later) == numbers(small)[41:] and sorted(flat(whole)) == list(range(N))


def test_what_fits_whole_comes_in_the_order_of_a_folder_here(server: Served, rows_set: Path) -> None:
    there = loader(server.url, memory_budget="1GiB")
    assert numbers(there) == numbers(loader(rows_set, memory_budget="1GiB"))
    n = len(asked(server))
    assert n < 60
    assert sorted(flat(numbers(there))) == list(range(N)) and len(asked(server)) == n  # the second epoch asks nothing


def test_replicas_bring_their_shares(server: Served) -> None:
    whole, stored = (
        numbers(loader(server.url, batch_size=64)),
        sum(f.stat().st_size for f in server.folder.glob("*.tf*")),
    )
    server.asked.clear()
    parts = [numbers(loader(server.url, batch_size=32, shard_index=i, num_shards=2)) for i in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert sum(b - a for a, b in asked(server)) < 1.7 * stored  # windows of two stretches: often one is in both halves


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=60),
    window=st.integers(1, 20),
    global_batch=st.integers(1, 70),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_an_order_in_parts_is_a_bijection_within_windows(
    sizes: list[int], window: int, global_batch: int, epoch: int, data: st.DataObject
) -> None:
    bounds = np.cumsum([0, *sizes])
    n = int(bounds[-1])
    parts, whole = (Order(n, 5, True, bounds, window, size) for size in (global_batch, 1))
    rows = parts.rows(epoch, 0, n)
    assert sorted(rows.tolist()) == list(range(n))
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert np.array_equal(parts.rows(epoch, start, stop), rows[start:stop])
    _, starts = np.unique(np.searchsorted(bounds, rows, side="right"), return_index=True)
    assert len(starts) == len(sizes)
    assert {tuple(sorted(set(w))) for w in windows_of(rows, whole, epoch)} == {
        tuple(sorted(set(w))) for w in windows_of(whole.rows(epoch, 0, n), whole, epoch)
    }


def windows_of(rows: Any, order: Order, epoch: int) -> list[list[int]]:
    """The rows of each window, as long as the windows of `order`."""
    from streamkit.order import _chunk_order

    starts = _chunk_order(order, epoch)[2]
    return [rows[a:b].tolist() for a, b in itertools.pairwise(starts.tolist())]


@pytest.mark.parametrize("n_shards", [2, 4, 8, 32])
def test_who_makes_a_share_of_every_batch_needs_that_share_of_the_chunks(n_shards: int) -> None:
    bounds, size = np.arange(0, 64_001, 16), 64
    rows = Order(64_000, 1, True, bounds, 256, size).rows(0, 0, 64_000).reshape(-1, n_shards, size // n_shards)
    n_needed = [len(np.unique(rows[:, i] // 16)) for i in range(n_shards)]
    assert max(n_needed) < 1.3 * 4000 / n_shards + 32


# Faults


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "short", "flip", "flips", "html", "hang", "ignore"])
@pytest.mark.fault(53, 54, 55, 56, 57, 58, 59, 60)
def test_passing_faults_are_not_noticed(server: Served, fault: str) -> None:
    for path in server.folder.glob("*.tfrecord"):
        server.faults[path.name] = [fault] * (1 if fault in ("flip", "flips", "hang") else 2)
    assert sorted(flat(numbers(loader(server.url)))) == list(range(N))


@pytest.mark.parametrize("budget", [BUDGET, "1GiB"])
def test_a_row_that_is_wrong_at_rest_is_named_and_may_be_left_out(tmp_path: Path, rows_set: Path, budget: str) -> None:
    folder = Path(shutil.copytree(rows_set, tmp_path / "ds"))
    place = streamkit.open(folder).index().slice(2345, 1).to_pylist()[0]
    with open(folder / place["shard"], "r+b") as file:
        file.seek(place["x.offset"] + 9)
        file.write(b"?")
    with served(folder) as server:
        with pytest.raises(DamagedError, match="crc32c is") as caught:
            list(loader(server.url, memory_budget=budget))
        assert caught.value.key == place["key"]
        skipping = loader(server.url, on_corrupt="skip", memory_budget=budget)
        (lost,) = set(range(N)) - set(flat(numbers(skipping)))
        assert lost == stored_numbers(rows_set)[2345]
        assert [error.key for error in skipping.bad] == [place["key"]]


@pytest.mark.fault(62)
def test_a_missing_shard_is_damage(server: Served) -> None:
    streaming = loader(server.url)
    server.always["train-00001.tfrecord"] = "404"
    with pytest.raises(DamagedError, match=r"train-00001\.tfrecord record .*this shard is missing"):
        list(streaming)


@pytest.mark.parametrize("fault", ["503", "hang"])
def test_a_server_that_never_answers_right_ends_in_a_remote_error(server: Served, fault: str) -> None:
    streaming = loader(server.url)
    for path in server.folder.glob("*.tfrecord"):
        server.always[path.name] = fault
    with pytest.raises(RemoteError, match="tried 4 times"):
        list(streaming)
    under_way = streaming._reader._stretches
    assert under_way is not None and wait_until(lambda: under_way._nbytes == 0, 10)
    server.always.clear()
    streaming.epoch = 0
    assert sorted(flat(numbers(streaming))) == list(range(N))  # nothing of the failure is kept


def brought(server: Served) -> int:
    return sum(b - a for a, b in asked(server))


def test_without_room_rows_are_read_by_themselves(server: Served) -> None:
    streaming = loader(server.url, rows=range(1000))
    stretches = streaming._reader._stretches
    assert stretches is not None
    stretches.budget = STRETCH_NBYTES - 1000  # for none
    assert len(flat(numbers(streaming))) == 1000 and not stretches._held
    assert stretches._nbytes == stretches._busy_nbytes == 0
    tiny = loader(server.url, memory_budget="2MiB")
    assert tiny._reader._stretches is None and tiny.shuffle_report()["window_samples"] == N


def test_few_chosen_rows_are_read_by_themselves(server: Served) -> None:
    chosen = np.arange(0, N, 200)
    found = numbers(loader(server.url, rows=chosen, batch_size=20))
    assert sorted(flat(found)) == sorted(np.array(stored_numbers(server.folder))[chosen].tolist())
    assert brought(server) < 40 * len(chosen) * 1024


@pytest.mark.parametrize("budget", [BUDGET, "1GiB"])
def test_half_of_the_rows_come_in_stretches_too(server: Served, budget: str) -> None:
    found = flat(numbers(loader(server.url, rows=np.arange(0, N, 2), memory_budget=budget)))
    assert sorted(found) == sorted(stored_numbers(server.folder)[::2])
    assert len(asked(server)) < 60 and brought(server) < 1.25 * stored_nbytes(server)


def test_rows_in_any_order_come_from_what_is_kept_whole(server: Served) -> None:
    chosen = np.random.default_rng(0).permutation(N)[: N // 2]
    found = flat(numbers(loader(server.url, rows=chosen, memory_budget="1GiB")))
    assert sorted(found) == sorted(np.array(stored_numbers(server.folder))[chosen].tolist()) and len(asked(server)) < 60
    server.asked.clear()
    assert (
        len(flat(numbers(loader(server.url, rows=chosen[:500])))) == 500
    )  # where not all is kept, no stretch is worth it
    assert brought(server) < 500 * (33 << 10)


def test_equal_shares_of_classes_come_from_what_is_kept_whole(server: Served) -> None:
    streaming = loader(server.url, balance=True, memory_budget="1GiB")
    assert len(flat(numbers(streaming))) == N and len(flat(numbers(streaming))) == N
    assert brought(server) < 1.1 * stored_nbytes(server)


def stored_nbytes(server: Served) -> int:
    return sum(path.stat().st_size for path in server.folder.glob("*.tfrecord"))


def test_the_next_window_is_on_its_way_before_it_is_wanted(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: list[int] = []
    expect = Stretches.expect
    monkeypatch.setattr(Stretches, "expect", lambda self, rows: (ahead.extend(rows.tolist()), expect(self, rows))[1])
    streaming = loader(server.url, num_workers=2, batch_size=16, memory_budget="32MiB")
    found = flat(numbers(streaming))
    assert len(ahead) > N / 2 and len(set(ahead)) == len(ahead)  # each once
    window = streaming.shuffle_report()["window_samples"]
    stored = {number: row for row, number in enumerate(stored_numbers(server.folder))}
    places = {stored[number]: i for i, number in enumerate(found)}
    assert min(places[row] for row in ahead) >= window // 2


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_nobody_waits_for_what_was_never_begun(
    server: Served, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], num_workers: int
) -> None:
    streaming, n = loader(server.url, num_workers=num_workers), itertools.count()
    files: Any = streaming._reader.files
    begin = files.begin

    def failing(parts: Any, ended: Any) -> None:
        if next(n) == 2:
            raise failure("once")
        begin(parts, ended)

    monkeypatch.setattr(files, "begin", failing)
    with pytest.raises((failure, ResourceError)):
        list(streaming)
    streaming.epoch = 0
    assert sorted(flat(numbers(streaming))) == list(range(N))
    stretches = streaming._reader._stretches
    assert stretches is not None and wait_until(lambda: stretches._busy_nbytes == 0, 10)
    assert all(stretch.n_users == 0 for stretch in stretches._held.values())


def test_what_is_kept_is_what_is_counted(server: Served) -> None:
    """Also while one of those asked for together does not come: the others go when they are not wanted any more."""
    streaming = loader(server.url)
    stretches = streaming._reader._stretches
    assert stretches is not None
    stretches.budget = 3 * STRETCH_NBYTES
    server.faults["train-00000.tfrecord"] = ["hang"]
    firsts = stretches.bounds[:3]
    stretches.expect(firsts)
    assert wait_until(lambda: sum(s.ended.is_set() for s in stretches._held.values()) == 2, 5)
    alive = [weakref.ref(s.memory) for s in stretches._held.values() if s.memory is not None]
    stretches.expect(stretches.bounds[8:10])
    assert wait_until(lambda: not any(ref() is not None for ref in alive), 0.4)
    assert stretches._nbytes <= stretches.budget


def test_several_processes_and_mixtures_share_a_budget(server: Served) -> None:
    streaming = loader(server.url)
    assert streaming.within(4 << 20).memory_bound <= 4 << 20
    assert streaming._reader.stretches_nbytes == 1 << 20
    half = pickle.loads(pickle.dumps(loader(server.url).within(4 << 20)))
    assert half._reader.stretches_nbytes == 1 << 20
    server.asked.clear()
    assert sorted(flat(numbers(half))) == list(range(N)) and brought(server) < 1.6 * stored_nbytes(server)
    many = streaming.within(1 << 20)  # too little for windows of the whole budget's size
    assert streaming._reader.stretches_nbytes == 0
    assert sorted(flat(numbers(many))) == list(range(N))
    for budget in (None, "64MiB"):
        mixture = streamkit.mix(
            {server.url: 1, f"{server.url}/": 1}, batch_size=64, memory_budget=budget, num_workers=4
        )
        assert mixture.depth > 1 and mixture.memory_bound <= (1 << 30 if budget is None else 64 << 20)
        assert len(flat(numbers(mixture))) == 2 * N


def test_rows_of_another_size_than_most_count_as_what_they_are(tmp_path: Path) -> None:
    for name, n, width in (("a", 4000, 8), ("b", 300, 6000)):
        (tmp_path / name).mkdir()
        for i in range(n):
            (tmp_path / name / f"{name}{i:04}.txt").write_text(f"{i:08}" * width)
    streamkit.convert(tmp_path / "a", tmp_path / "out", format="tfrecord", compression="none", workers=1)
    for path in (tmp_path / "b").iterdir():
        path.rename(tmp_path / "a" / path.name)
    streamkit.convert(tmp_path / "a", tmp_path / "out", format="tfrecord", compression="none", workers=1, append=True)
    with served(tmp_path / "out") as server:
        wanted = range(4000, 4300)
        found = list(loader(server.url, rows=wanted, memory_budget="32MiB", batch_size=16))
        assert sum(map(len, found)) == 300 and brought(server) < 1.3 * 300 * 48_000


def test_a_small_field_beside_a_large_one_is_read_by_itself(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((400, 7500), np.float32), t=np.arange(1600).reshape(400, 4))
    streamkit.convert(tmp_path / "t.npz", tmp_path / "out", format="tfrecord", compression="none", workers=1)
    with served(tmp_path / "out") as server:
        (one,) = list(loader(server.url, fields="t", batch_size=400))
        assert sorted(one[:, 0].tolist()) == list(range(0, 1600, 4)) and brought(server) < 400 * (32 + (32 << 10))
        server.asked.clear()
        both = list(loader(server.url, fields=("x", "t"), memory_budget="1GiB"))
        assert sum(len(t) for _, t in both) == 400 and len(asked(server)) < 60
        server.asked.clear()
        assert sum(map(len, loader(server.url, fields="key"))) == 400 and not asked(server)


def test_stored_order_balance_and_one_field_are_as_of_a_folder_here(server: Served, rows_set: Path) -> None:
    for options in (
        {"shuffle": False},
        {"balance": True, "rows": range(1000)},
        {"fields": "label", "memory_budget": "1GiB"},
    ):
        here, there = (list(loader(path, **options)) for path in (rows_set, server.url))
        assert all(
            map(np.array_equal, *(map(np.concatenate, zip(*map(split, some), strict=True)) for some in (here, there)))
        )


def split(batch: Any) -> tuple[Any, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def test_it_pickles_and_forgets_what_it_kept(server: Served) -> None:
    first = loader(server.url)
    found = numbers(first)
    twin = pickle.loads(pickle.dumps(first))
    twin.epoch = 0
    assert len(pickle.dumps(first)) < 100_000 and numbers(twin) == found


def test_broken_off_and_begun_again(server: Served) -> None:
    streaming = loader(server.url)
    for i in range(4):
        streaming.epoch = 0
        iterator = iter(streaming)
        for _ in range(i):
            next(iterator)
        iterator.close()
    streaming.epoch = 0
    assert sorted(flat(numbers(streaming))) == list(range(N))
    assert wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("streamkit")], 10)


def test_fields_far_apart_are_runs_of_their_own_and_one_that_is_scattered_is_none() -> None:
    near, far = np.arange(4) * 100, 10**6 + np.arange(4) * 100
    spans = Spans.of({"a": (near, np.full(4, 90)), "b": (far, np.full(4, 100)), "c": (near * 10**6, np.full(4, 9))})
    assert spans.runs == [(0, 390), (10**6, 10**6 + 400)] and spans.nbytes == 790
    assert spans.shifts == {"a": 0, "b": 390 - 10**6}
    assert Spans.of({"a": (near[:0], near[:0])}).runs == Spans.of({}).runs == []


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_several_fields_come_together(tmp_path: Path, format: str) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "t.npz", a=np.repeat(np.arange(2000)[:, None], 64, axis=1), b=rng.random((2000, 8)))
    out = tmp_path / "out"
    streamkit.convert(tmp_path / "t.npz", out, format=format, compression="none", workers=1, shard_size="400KB")
    with served(out) as server:
        options = {"batch_size": 50, "memory_budget": "9MiB", "fields": ("a", "b", "key")}
        found = list(Loader(server.url, **options))
        here = {key: (a, b) for a, b, keys in Loader(out, **options) for key, a, b in zip(keys, a, b, strict=True)}
        seen = [key for *_, keys in found for key in keys]
        assert sorted(seen) == sorted(here)
        for a, b, keys in found:
            for i, key in enumerate(keys):
                assert np.array_equal(a[i], here[key][0]) and np.array_equal(b[i], here[key][1])
