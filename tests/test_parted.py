"""Batches that several threads make: the same as one thread makes, damaged samples included."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import reading
from reading import convert
from test_skipping import SKIP, harm, keys

import streamkit
from streamkit import DamagedError, Loader
from streamkit.sizing import Sizing

VIEW: dict[str, Any] = {"image_size": (48, 40), "crop": "random", "flip": True, "dtype": "uint8"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 JPEGs in three classes."""
    folder = tmp_path_factory.mktemp("pictures")
    source = reading.picture_folder(folder / "in", [(60 + i % 7, 50 + i % 5) for i in range(200)])
    return convert(source, folder / "out", check="header")


def parts(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Every batch is made in `n` parts."""
    monkeypatch.setattr(Sizing, "n_parts_of", lambda sizing, place: n)


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("options", [{}, {"dtype": "float32", "label_mode": "categorical"}, {"drop_remainder": True}])
def test_batches_of_several_threads_are_those_of_one(
    pictures: Path, options: dict[str, Any], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(pictures, batch_size=48, num_workers=3, **VIEW | options)
    truth = [loader.batch(1, i) for i in range(len(loader))]
    parts(monkeypatch, n)
    assert reading.all_same(truth, list(loader.held(1)))
    assert reading.all_same(truth[2:], list(loader.held(1, batch=2)))


def test_the_first_batch_of_an_epoch_is_made_by_all_threads() -> None:
    large = Sizing(1 << 20, 64, 100, 3, 1 << 30, decoding=True)
    assert [large.n_parts_of(place) for place in (0, 1, 2, 3, 99)] == [3, 3, 2, 2, 1]
    assert Sizing(1 << 20, 64, 100, 3, 1 << 30).n_parts_of(0) == 1  # what is not decoded is there at once


def test_the_first_batches_are_there_one_after_the_other() -> None:
    """Not as many as there are threads at once, when the first of them has long been used up."""
    n_threads, work = 16, 1.0
    sizing = Sizing(150_000, 256, 100, n_threads, 4 << 30, decoding=True)
    free, ready = [0.0] * n_threads, []
    for place in range(64):
        parts = sizing.n_parts_of(place)
        ended = []
        for _ in range(parts):
            ended.append(min(free) + work / parts)
            free[free.index(min(free))] = ended[-1]
        ready.append(max(ended))
    used = ready[0]
    for place, end in enumerate(ready):  # by someone who takes half as long again as all threads together
        assert end <= used + 0.05 * work, place
        used = max(used, end) + 1.5 * work / n_threads
    assert ready[-1] < 64 * work / n_threads + work


@pytest.mark.parametrize("budget", [1 << 20, 100 << 20, 400 << 20, 4 << 30])
def test_no_thread_is_idle_where_few_batches_fit(budget: int) -> None:
    sizing = Sizing(1 << 20, 64, 100, 16, budget, decoding=True)
    assert sizing.n_parts == 4 if sizing.depth < 4 else sizing.n_parts * sizing.depth >= 16  # 16 samples a part


@pytest.mark.parametrize("budget", [1 << 20, 300 << 20, 900 << 20, 2 << 30, 4 << 30])
@pytest.mark.parametrize("n_threads", [0, 1, 2, 16])
def test_sharing_a_batch_takes_no_more_than_the_budget(budget: int, n_threads: int) -> None:
    large = {"scratch_nbytes": 128 << 20, "picture_nbytes": 96 << 20}  # of pictures of 24 million pixels
    sizing = Sizing(750_000, 256, 100, n_threads, budget, **large, decoding=True)
    alone = Sizing(750_000, 256, 100, n_threads, budget, **large)
    assert sizing.depth == alone.depth and sizing.bound_nbytes <= max(budget, alone.bound_nbytes)
    assert n_threads < 2 or budget < 4 << 30 or sizing.n_parts_of(0) > 1


@pytest.mark.fault(51)
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_remainder": True}])
def test_a_bad_text_beside_a_picture_is_left_out_by_however_many_threads(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for i in range(96):
            picture = reading.encoded(reading.photo(40, 40, i), "JPEG")
            for name, data in ((f"{i:03d}.jpg", picture), (f"{i:03d}.txt", b"text %d" % i)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    out = convert(tmp_path / "in.tar", tmp_path / "out")
    index = streamkit.open(out).index()
    (text,) = (field.name for field in streamkit.open(out).schema if field.kind == "text")
    reading.flip(out / index.column("shard")[5].as_py(), index.column(f"{text}.offset")[5].as_py() + 1, bits=0x80)
    options = options | {"batch_size": 64, "dtype": "uint8", **SKIP}
    truth = list(Loader(out, **options, num_workers=0))
    parts(monkeypatch, 3)
    loader = Loader(out, **options, num_workers=3)
    assert reading.all_same(truth, list(loader)) and len(loader.bad) == 1


def test_nothing_is_made_twice_where_nothing_is_bad(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(*arguments: Any) -> None:
        raise AssertionError("a batch was made whole")

    parts(monkeypatch, 50)
    monkeypatch.setattr(Loader, "_make", whole)
    for options in (VIEW, {"image_size": (60, 50), "dtype": "uint8"}):
        assert len(list(Loader(pictures, batch_size=48, num_workers=3, **options))) == 5  # the last has 8 samples


@pytest.mark.fault(51)
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_bad_samples_are_left_out_of_parts_as_of_whole_batches(
    pictures: Path, tmp_path: Path, drop_remainder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(pictures, tmp_path / "out")
    lost = harm(out, [3, 50, 51, 130])
    options = VIEW | {"batch_size": 48, "fields": ("key", "image"), "drop_remainder": drop_remainder, **SKIP}
    truth = list(Loader(out, **options, num_workers=0))
    parts(monkeypatch, 3)
    loader = Loader(out, **options, num_workers=3)
    for epoch in range(2):  # in the second they are known
        assert epoch or reading.all_same(truth, list(loader.held(0)))
        assert not lost & set(keys(loader)) and {error.key for error in loader.bad} == lost


@pytest.mark.fault(51)
def test_damage_in_a_part_is_told_when_its_batch_comes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(pictures, tmp_path / "out")
    harm(out, [130, 100])
    loader = Loader(out, shuffle=False, batch_size=48, num_workers=3, **VIEW)
    parts(monkeypatch, 3)
    delivered = []
    with pytest.raises(DamagedError) as caught:
        for batch in loader:
            delivered.append(batch)
    assert (
        len(delivered) == 2 and caught.value.key == reading.keys_of(out)[100]
    )  # the first of them, in the batch's order


def test_too_many_bad_samples_end_it(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = shutil.copytree(pictures, tmp_path / "out")
    harm(out, list(range(40, 60)))
    parts(monkeypatch, 3)
    loader = Loader(out, batch_size=48, num_workers=3, on_corrupt="skip", max_bad=0.05, **VIEW)
    with pytest.raises(DamagedError, match=r"max_bad=0\.05"):
        list(loader)


def test_an_early_stop_leaves_no_thread(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts(monkeypatch, 3)
    for _ in Loader(pictures, batch_size=16, num_workers=3, **VIEW):
        break
    assert reading.settles(lambda: not reading.our_threads())
