"""Faults by chance: random bits flipped in, and random cuts of, every file of a dataset. FAULTS cases 41, 42 and 48.

Whatever is hit, a sample that is delivered is the sample that was stored, everything else is an error of streamkit's own, and
it comes at once. STREAMKIT_FAULT_SEEDS sets the number of tries a case; the suite takes 30.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harming import KINDS

import streamkit
from streamkit import StreamkitError

SEEDS = int(os.environ.get("STREAMKIT_FAULT_SEEDS", "30"))
Samples = dict[str, Any]


@contextmanager
def at_once(seconds: int = 20) -> Iterator[None]:
    """A hang is an error."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError("this hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def samples(path: Path, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, values of the sample), all splits; ends with the first error."""
    manifest = streamkit.open(path)
    names = [field.name for field in manifest.schema]
    for split in sorted(manifest.splits):
        loader = streamkit.Loader(
            path, split=split, batch_size=None, fields=["key", *names], shuffle=False, num_workers=0, **options
        )
        for key, *values in loader:
            yield str(key), [np.asarray(value).tobytes() for value in values]


def flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    # Every fourth cut takes a few bytes only, where framing and footers end.
    left = len(data) - rng.randint(1, 24) if rng.random() < 0.25 else rng.randrange(len(data))
    del data[max(0, left) :]


def kinds_of_files(path: Path) -> dict[str, list[str]]:
    manifest = streamkit.open(path)
    splits = manifest.splits.values()
    return {
        "shard": [shard.file for split in splits for shard in split.shards],
        "index": [split.index for split in splits] + [split.chunks for split in splits if split.chunks is not None],
        "manifest": ["manifest.json"],
    }


TRIES = {"shard": SEEDS, "index": -(-SEEDS // 5), "manifest": -(-SEEDS // 5)}
HARMS = [
    pytest.param(flip, "shard", marks=pytest.mark.fault(41)),
    pytest.param(cut, "shard", marks=pytest.mark.fault(42)),
    *(pytest.param(harm, kind, marks=pytest.mark.fault(48)) for kind in ("index", "manifest") for harm in (flip, cut)),
]


@pytest.mark.parametrize(("harm", "kind"), HARMS)
@pytest.mark.parametrize("name", KINDS)
def test_nothing_wrong_is_delivered_and_nothing_is_overlooked(
    copied: Callable[[str], Path],
    name: str,
    kind: str,
    harm: Callable[[bytearray, random.Random], None],
    record_property: Callable[[str, object], None],
) -> None:
    path = copied(name)
    truth = dict(samples(path, {}))
    files = kinds_of_files(path)[kind]
    rng = random.Random(f"{name} {kind} {harm.__name__}")
    for seed in range(TRIES[kind]):
        file = path / rng.choice(files)
        whole = file.read_bytes()
        harmed = bytearray(whole)
        harm(harmed, rng)
        file.write_bytes(harmed)
        with at_once():
            delivered: Samples = {}
            try:
                for key, values in samples(path, {}):
                    delivered[key] = values
            except StreamkitError as error:
                assert error.exit_code in (4, 8, 9) and "\n" not in str(error), (seed, file.name)
            assert all(truth.get(key) == values for key, values in delivered.items()), (seed, file.name)
            try:
                found = not streamkit.verify(path, workers=1).ok
            except StreamkitError as error:
                found = error.exit_code in (8, 9)
            only_the_last_newline = kind == "manifest" and whole == bytes(harmed) + b"\n"
            assert found or only_the_last_newline, (seed, file.name)
            if kind == "shard" and seed % 3 == 0:
                skipped = dict(samples(path, {"on_corrupt": "skip", "max_bad": 1.0}))
                assert all(truth[key] == values for key, values in skipped.items()), (seed, file.name)
                assert len(skipped) >= len(delivered)
        file.write_bytes(whole)
        record_property("survived", 1)


@pytest.mark.fault(41, 42, 48)
@pytest.mark.parametrize("name", ["table-tfrecord", "table-gzip", "pictures-hdf5"])
def test_repair_by_chance(
    harm_sources: Path,
    datasets: Path,
    copied: Callable[[str], Path],
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Whatever was hit, but the manifest: the source brings back every byte."""
    from converting import digests
    from harming import raw_of

    path = copied(name)
    whole = digests(path)
    rng = random.Random(name)
    manifest = streamkit.open(path)
    files = [*kinds_of_files(path)["shard"], *kinds_of_files(path)["index"], *manifest.files]
    for _ in range(max(1, SEEDS // 10)):
        for file in rng.sample(files, 3):
            data = bytearray((path / file).read_bytes())
            rng.choice([flip, cut])(data, rng)
            (path / file).write_bytes(data)
        streamkit.repair(path, source=raw_of(harm_sources, name), workers=1)
        assert digests(path) == whole
        record_property("survived", 1)
    shutil.rmtree(path)


@pytest.mark.fault(1)
def test_conversions_killed_at_random_times(
    harm_sources: Path, datasets: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Case 1: no manifest, or the whole dataset; the same command again makes what an undisturbed run makes."""
    from converting import ROOT, cli, digests

    options = ["--format", "tfrecord", "--shard-size", "6KB", "--workers", "2"]
    command = ["convert", harm_sources / "pictures", tmp_path / "out", *options]
    rng = random.Random(1)
    for _ in range(max(1, SEEDS // 30)):
        process = subprocess.Popen(
            [sys.executable, "-m", "streamkit", *map(str, command)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.3, 1.5))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if (tmp_path / "out" / "manifest.json").exists():
            assert streamkit.verify(tmp_path / "out").ok
        done = cli(*command)
        assert done.returncode == 0, done.stderr
        assert digests(tmp_path / "out") == digests(datasets / "pictures-tfrecord")
        shutil.rmtree(tmp_path / "out")
        record_property("survived", 1)
