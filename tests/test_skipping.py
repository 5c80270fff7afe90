"""on_corrupt="skip": exactly the bad samples are left out, counted and logged once; batches stay a pure function. Case 51."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reading
from harming import KINDS, N

import streamkit
from streamkit import DamagedError, UsageError
from streamkit.skipping import Skips

Copied = Callable[[str], Path]
SKIP: dict[str, Any] = {"on_corrupt": "skip", "max_bad": 1.0}


def harm(path: Path, rows: list[int]) -> set[str]:
    """Damage the payloads of these rows of split train; the keys of all that is lost with them."""
    manifest = streamkit.open(path)
    index = manifest.index("train").to_pylist()
    field = manifest.schema.payloads[0]
    lost = set()
    for row in rows:
        if field.chunk_rows is None:
            place, file = index[row][f"{field.name}.offset"], index[row]["shard"]
            lost.add(index[row]["key"])
        else:
            number = index[row][f"{field.name}.chunk"]
            chunk = reading.pq.read_table(path / "chunks-train.parquet").to_pylist()[number]
            place, file = chunk["offset"], chunk["shard"]
            lost |= {r["key"] for r in index if r[f"{field.name}.chunk"] == number}
        reading.flip(path / file, place + 1)
    return lost


def keys(batches: Any) -> list[str]:
    return [str(key) for batch in batches for key in np.atleast_1d(batch[0] if isinstance(batch, tuple) else batch)]


def view(name: str) -> dict[str, Any]:
    """Arguments that show key and payload."""
    field = {"pictures": "image", "table": "x", "ragged": "array"}[name.partition("-")[0]]
    sized = {"image_size": (16, 16)} if field == "image" else {}
    return {"split": "train", "fields": ("key", field), **sized}


@pytest.mark.fault(51)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_exactly_the_bad_samples_are_left_out(copied: Copied, name: str, num_workers: int) -> None:
    path = copied(name)
    every = reading.keys_of(path)
    rows = [6, 7, 25] if KINDS[name].get("compression") not in reading.CODECS else [6]
    if name.startswith("ragged"):  # some of these have no bytes that could be damaged
        rows = np.flatnonzero(np.asarray(streamkit.open(path).index().column("array.length")))[:3].tolist()
    lost = harm(path, rows)
    for batch_size in (8, None):
        loader = streamkit.Loader(path, batch_size=batch_size, num_workers=num_workers, **view(name), **SKIP)
        for _ in range(2):
            delivered = keys(loader)
            assert sorted(delivered) == sorted(set(every) - lost)
            assert {error.key for error in loader.bad} == lost
            assert len(delivered) + len(loader.bad) == len(every)


def test_other_samples_are_where_they_were_and_as_they_were(copied: Copied) -> None:
    path = copied("pictures-tfrecord")
    options = view("pictures") | {"batch_size": 8, "seed": 3, "crop": "random", "flip": True}
    before = list(streamkit.Loader(path, **options))
    lost = harm(path, [1, 9, 33])
    after = list(streamkit.Loader(path, **options, **SKIP))
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        good = np.array([key not in lost for key in old[0]])
        assert reading.same((old[0][good], old[1][good]), new)


def test_each_is_logged_once_with_its_place(copied: Copied, caplog: pytest.LogCaptureFixture) -> None:
    path = copied("table-tfrecord")
    lost = harm(path, [3, 30])
    loader = streamkit.Loader(path, batch_size=4, **view("table"), **SKIP)
    with caplog.at_level(logging.WARNING, "streamkit"):
        for _ in range(3):
            keys(loader)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("crc32c is" in text and f"skipped {path}/train-0" in text for text in said)
    assert {key for key in lost for text in said if f"({key})" in text} == lost


def test_full_batches_stay_full(copied: Copied) -> None:
    path = copied("table-tfrecord")
    lost = harm(path, [0, 1, 2, 20])
    loader = streamkit.Loader(path, batch_size=8, drop_remainder=True, shuffle=False, **view("table"), **SKIP)
    batches = list(loader)
    assert [len(key) for key, _ in batches] == [8] * (N // 8) and len(loader) == N // 8
    assert not lost & set(keys(batches))
    every = reading.keys_of(path)
    assert batches[0][0].tolist() == every[3:8] + every[8:11]  # the next good ones stand in


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_of_which_nothing_is_good_holds_the_next_good_sample(copied: Copied, shuffle: bool) -> None:
    path = copied("table-tfrecord")
    lost = harm(path, [10, 11, N - 1])
    loader = streamkit.Loader(path, batch_size=1, shuffle=shuffle, **view("table"), **SKIP)
    got = keys(loader)
    assert len(got) == N == len(loader) and set(got) == set(reading.keys_of(path)) - lost
    if not shuffle:
        every = reading.keys_of(path)
        assert got[10] == got[11] == got[12] == every[12] and got[-1] == every[0]


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_a_batch_is_the_same_whenever_and_wherever_it_is_made(copied: Copied, drop_remainder: bool) -> None:
    path = copied("table-tfrecord")
    harm(path, [3, 4, 5, 40, 41])
    options = view("table") | {"batch_size": 4, "seed": 5, "drop_remainder": drop_remainder} | SKIP
    first = streamkit.Loader(path, **options)
    epochs = [list(first), list(first)]
    for epoch in (1, 0):  # alone, backwards, and by one that has met nothing yet
        for i in reversed(range(len(first))):
            assert reading.same(streamkit.Loader(path, **options).batch(epoch, i), epochs[epoch][i])
    resumed = streamkit.Loader(path, **options)
    resumed.resume(json.loads(json.dumps(first.cursor_at(len(first) + 5))))
    assert reading.all_same(list(resumed), epochs[1][5:])
    again = pickle.loads(pickle.dumps(first))
    assert reading.same(again.batch(0, 2), epochs[0][2]) and len(again.bad) == len(first.bad) == 5


@pytest.mark.parametrize("batch_size", [8, None])
def test_every_frontend_gives_the_same(copied: Copied, batch_size: int | None) -> None:
    pytest.importorskip("torch")
    path = copied("table-tfrecord")
    harm(path, [3, 4, 40])
    options: dict[str, Any] = {"batch_size": batch_size, "seed": 1, "split": "train"} | SKIP
    expected = [x for x, _ in streamkit.Loader(path, **options)]
    assert sum(len(np.atleast_2d(x)) for x in expected) == N - 3
    tf = [x.numpy() for x, _ in streamkit.dataset(path, **options)]
    torch = [x.numpy() for x, _ in streamkit.Loader(path, **options).as_torch()]
    assert reading.all_same(tf, expected) and reading.all_same(torch, expected)
    if batch_size is not None:
        sequence = streamkit.sequence(path, **options)
        assert reading.all_same([sequence[i][0] for i in range(len(sequence))], expected)


def test_static_shapes_reach_tensorflow(copied: Copied) -> None:
    path = copied("table-tfrecord")
    harm(path, [3, 4, 40])
    made = streamkit.dataset(path, split="train", batch_size=8, drop_remainder=True, **SKIP)
    assert made.element_spec[0].shape.as_list() == [8, 16]
    assert [x.shape[0] for x, _ in made] == [8] * (N // 8)


def test_too_many_bad_samples_are_an_error(copied: Copied) -> None:
    path = copied("table-tfrecord")
    harm(path, [3, 30, 50])
    for allowed in (3 / N, 0.5, 1):
        assert len(keys(streamkit.Loader(path, **view("table"), on_corrupt="skip", max_bad=allowed))) == N - 3
    for allowed in (0.0, 0.001, 2.9 / N):
        loader = streamkit.Loader(path, **view("table"), on_corrupt="skip", max_bad=allowed)
        for _ in range(2):  # it stays an error
            with pytest.raises(DamagedError, match="samples are bad, more than max_bad") as caught:
                keys(loader)
        assert caught.value.key and "streamkit verify" in str(caught.value)
        assert re.search(r"Pass max_bad=0\.\d+ to go on without them\. ", str(caught.value))
    with pytest.raises(DamagedError, match="crc32c"):
        keys(streamkit.Loader(path, **view("table")))


WORKERS = [pytest.param("fork"), pytest.param("spawn"), pytest.param("forkserver", marks=pytest.mark.slow)]


@pytest.mark.fault(51)
@pytest.mark.parametrize("method", WORKERS)
def test_workers_of_pytorch_count_together(copied: Copied, tmp_path: Path, method: str) -> None:
    """In a process of its own, whose stderr shows what any of them logs. A persistent worker goes on where it was."""
    pytest.importorskip("torch")
    path = copied("table-tfrecord")
    lost = harm(path, [3, 20, 41, 55])
    code = """if True:
        import json, sys, warnings
        import streamkit
        warnings.filterwarnings("ignore", "This DataLoader will create")
        def loader(max_bad):
            return streamkit.Loader(sys.argv[1], batch_size=4, num_workers=1, on_corrupt="skip", max_bad=max_bad, seed=1)
        def torch(loader, **options):
            return loader.as_torch(num_workers=2, multiprocessing_context=sys.argv[2], **options)
        if __name__ == "__main__":
            told, all = [], loader(4 / 60)
            stream = torch(all, persistent_workers=True)
            for _ in range(2):
                told.append([x.tolist() for x, _ in stream])
            told.append([error.key for error in all.bad])
            few = loader(3 / 60)
            for one in (torch(few), few) if sys.argv[2] == "fork" else ():  # it stays an error
                try:
                    list(one)
                    told.append(None)
                except streamkit.DamagedError as error:
                    told.append([str(error), error.key, len(few.bad)])
            print(json.dumps(told))
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code.removeprefix("if True:\n")))
    command = [sys.executable, str(tmp_path / "run.py"), str(path), method]
    run = subprocess.run(command, cwd=reading.ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    *epochs, bad = (told := json.loads(run.stdout))[:3]
    alone = streamkit.Loader(path, batch_size=4, seed=1, **SKIP)
    assert epochs == [[x.tolist() for x, _ in alone] for _ in range(2)]
    assert len(bad) == 4 and set(bad) == lost
    said = [line for line in run.stderr.splitlines() if "skipped" in line]
    n_loaders = 2 if method == "fork" else 1
    assert len(said) == 4 * n_loaders and all(sum(f"({key})" in line for line in said) == n_loaders for key in lost), (
        said
    )
    if method == "fork":
        first, again = told[3:]
        assert first == again and "4 of 60 samples are bad, more than max_bad=0.05 allows" in first[0]
        assert first[1] in lost and first[2] == 4 and "\\n" not in first[0] and "Traceback" not in first[0]


def test_a_child_that_is_killed_leaves_what_it_met_and_nothing_else(copied: Copied) -> None:
    path = copied("table-tfrecord")
    lost = harm(path, [3, 41])
    before = reading.n_descriptors()
    loader = streamkit.Loader(path, batch_size=N, shuffle=False, num_workers=0, **view("table"), **SKIP)
    if not (child := os.fork()):
        keys(loader)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert {error.key for error in loader.bad} == lost
    os.truncate(path / "train-00000.tfrecord", 0)  # what is known to be bad is not read again
    copy = pickle.loads(pickle.dumps(loader))
    assert {error.key for error in copy.bad} == lost
    assert len(copy.rows(0, 0)) == N and not {error.key for error in copy.bad} - lost
    keys(copy)
    assert len(copy.bad) > len(loader.bad) == 2  # a copy counts for itself
    del loader, copy
    assert reading.settles(lambda: reading.n_descriptors() <= before)


def test_many_processes_that_meet_the_same_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Every row is one process's to log, and all of them see the rows in one order; one is killed in mid-line."""
    skips = Skips(n_samples=1000, max_bad=1)
    os.write(skips._ledger._fd, b'\n[7, "who was kill')
    rows = list(range(40))
    children = []
    for seed in range(6):
        if not (child := os.fork()):
            logging.getLogger("streamkit").handlers[:] = [logging.StreamHandler(os.fdopen(2, "w", closefd=False))]
            logging.getLogger("streamkit").propagate = False
            for row in random.Random(seed).sample(rows, len(rows)):
                skips.note(row, DamagedError("it is bad", shard="a.h5", record=row, key=f"\udcff{row}"))
            os._exit(list(skips.bad) != list(skips.bad) or len(skips.bad) != len(rows))
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    assert sorted(skips.bad) == rows and skips.bad[3].key == "\udcff3"
    said = capfd.readouterr().err.splitlines()
    assert len(said) == len(set(said)) == len(rows)


@pytest.mark.parametrize("name", ["table-tfrecord", "table-hdf5", "table-gzip", "pictures-hdf5"])
@pytest.mark.parametrize("what", ["missing", "cut", "trailing bytes"])
def test_a_whole_shard_may_be_bad(copied: Copied, name: str, what: str) -> None:
    path = copied(name)
    rows = streamkit.open(path).index("train").to_pylist()
    shard = path / rows[-1]["shard"]
    if what == "missing":
        shard.unlink()
    elif what == "cut":
        os.truncate(shard, shard.stat().st_size * 3 // 4)
    else:
        with open(shard, "ab") as file:
            file.write(b"more")
    with pytest.raises(DamagedError):
        streamkit.Loader(path, **view(name))
    loader = streamkit.Loader(path, batch_size=8, **view(name), **SKIP)
    got = keys(loader)
    assert sorted(got) == sorted({r["key"] for r in rows} - {error.key for error in loader.bad})
    here = {r["key"] for r in rows if r["shard"] == shard.name}
    assert {error.key for error in loader.bad} <= here
    if what == "missing":
        assert {error.key for error in loader.bad} == here
    elif what == "trailing bytes":
        assert not loader.bad


def test_nothing_good_at_all_is_an_error(copied: Copied) -> None:
    path = copied("table-tfrecord")
    for shard in streamkit.open(path).splits["train"].shards:
        (path / shard.file).unlink()
    with pytest.raises(DamagedError, match="missing"):
        keys(streamkit.Loader(path, **view("table"), **SKIP))


@pytest.mark.parametrize("wrong", [{"on_corrupt": "ignore"}, {"max_bad": -1}, {"max_bad": 2}, {"max_bad": "few"}])
def test_wrong_arguments(datasets: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        streamkit.Loader(datasets / "table-tfrecord", **wrong)


def test_a_pinned_dataset(datasets: Path) -> None:
    path = datasets / "table-tfrecord"
    pin = streamkit.open(path).dataset_id
    assert streamkit.open(path, manifest_digest=pin).dataset_id == pin
    assert len(streamkit.Loader(path, manifest_digest=pin)) > 0
    for call in (streamkit.open, streamkit.Loader):
        with pytest.raises(streamkit.RefusedError, match="manifest_digest"):
            call(path, manifest_digest="ab" * 32)
        for no_digest in ("abc", pin.upper(), f" {pin}", ""):
            with pytest.raises(UsageError, match=r"manifest_digest is .*expected 64"):
                call(path, manifest_digest=no_digest)
