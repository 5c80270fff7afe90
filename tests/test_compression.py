"""--compression: every codec in both directions, and auto's choice, which is the same whatever the clock says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from converting import arrays, cli, digests
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit.convert import compression
from streamkit.convert.compression import CODECS, DECODE_SPEED, WANTED_COST, WANTED_RATIO, Trial, best

assert hdf5plugin  # imported for the filters that it registers

NAMED = [("tfrecord", codec) for codec in ("zlib", "zlib:1", "zlib:9")] + [
    ("hdf5", codec) for codec in ("gzip", "gzip:1", "gzip:9", "lzf", "zstd", "zstd:1", "zstd:19", "lz4", "blosc2")
]


def rows(kind: str) -> np.ndarray:
    """300 samples that shrink, that do not, or that are all zeros."""
    rng = np.random.default_rng(0)
    if kind == "walks":
        return np.cumsum(rng.integers(-9, 10, (300, 40, 7)), axis=1).astype(np.int32)
    return {
        "noise": rng.integers(0, 256, (300, 123), np.uint8),
        "zeros": np.zeros((300, 9, 3), np.float64),
    }[kind]


@pytest.mark.parametrize("kind", ["walks", "noise", "zeros"])
@pytest.mark.parametrize(("format", "codec"), NAMED)
def test_every_codec_in_both_directions(tmp_path: Path, format: str, codec: str, kind: str) -> None:
    """h5py with hdf5plugin (or zlib alone) reads ours, and so does the loader, past libhdf5."""
    x = rows(kind)
    np.save(tmp_path / "rows.npy", x)
    out = tmp_path / "out"
    streamkit.convert(tmp_path / "rows.npy", out, format=format, compression=codec, shard_size=40_000, workers=1)
    field = streamkit.open(out).schema["array"]
    assert codec.partition(":")[0] in field.encoding.replace(":", "+").split("+")
    if format == "hdf5":
        with h5py.File(out / "train.h5") as file:
            order = [
                int(key.rpartition("#")[2]) for key in streamkit.open(out).index("train").column("key").to_pylist()
            ]
            np.testing.assert_array_equal(file["array"][:], x[order])
    else:
        for key, value in arrays(out).items():
            np.testing.assert_array_equal(value, x[int(key.rpartition("#")[2])])
    found = np.concatenate(list(streamkit.Loader(out, batch_size=64, shuffle=False)))
    keys = np.concatenate(list(streamkit.Loader(out, batch_size=64, shuffle=False, fields="key")))
    np.testing.assert_array_equal(found, x[[int(str(key).rpartition("#")[2]) for key in keys.tolist()]])


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_auto_keeps_what_pays(tmp_path: Path, format: str, capsys: Any) -> None:
    for kind in ("walks", "noise"):
        np.save(tmp_path / f"{kind}.npy", np.repeat(rows(kind), 8 if kind == "walks" else 1, axis=1))
        report = streamkit.convert(tmp_path / f"{kind}.npy", tmp_path / kind, format=format, workers=1)
        assert report.compression is not None
        assert [trial.codec for trial in report.compression.trials] == ["none", *CODECS[format]]
        stored = streamkit.open(tmp_path / kind).schema["array"].encoding
        assert (stored == "raw") == (kind == "noise") == (report.compression.codec == "none")
        if kind == "walks":
            (trial,) = [t for t in report.compression.trials if t.codec == report.compression.codec]
            shards = streamkit.open(tmp_path / kind).splits["train"].nbytes
            assert shards == pytest.approx(trial.ratio * rows(kind).nbytes * 8, rel=0.15)  # as the sample said


def test_auto_s_choice_is_no_matter_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte-identity: a machine on which every clock reads otherwise chooses the same."""
    np.save(tmp_path / "rows.npy", rows("walks"))
    for name, seconds in (("fast", 1e-9), ("slow", 5.0)):
        ticks = iter(range(10**9))
        monkeypatch.setattr(compression.time, "thread_time", lambda s=seconds, t=ticks: next(t) * s)
        streamkit.convert(tmp_path / "rows.npy", tmp_path / name, format="hdf5", workers=1)
    assert digests(tmp_path / "fast") == digests(tmp_path / "slow")


def test_the_table_goes_to_stderr(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows("walks"))
    run = cli("convert", tmp_path / "rows.npy", tmp_path / "out", "--format", "hdf5", "--json", "--dry-run")
    assert run.returncode == 0, run.stderr
    for codec in ("none", *CODECS["hdf5"]):
        assert f"streamkit: {codec} " in run.stderr
    assert '"tried"' in run.stdout and "MB/s" not in run.stdout


def test_a_broken_sample_is_left_to_the_conversion(tmp_path: Path) -> None:
    """Bad items are judged once, with the others; not while trying codecs."""
    (tmp_path / "src").mkdir()
    for i in range(6):
        np.save(tmp_path / f"src/{i}.npy", rows("walks")[i])
    (tmp_path / "src/3.npy").write_bytes(b"no array")
    report = streamkit.convert(tmp_path / "src", tmp_path / "out", format="hdf5", on_bad="skip", workers=1)
    assert [item.key for item in report.skipped] == ["3.npy"]


ratios = st.floats(0.001, 1.5)


@given(st.lists(ratios, min_size=5, max_size=5), st.floats(1, 1e6))
def test_the_best_pays_and_no_other_pays_more(found: list[float], block: float) -> None:
    trials = [Trial("none", 1.0, block), *(Trial(c, r, block) for c, r in zip(CODECS["hdf5"], found, strict=True))]
    chosen = best(trials)
    assert best(trials[:1] + trials[:0:-1]).cost == chosen.cost
    for trial in trials[1:]:
        pays = trial.ratio <= WANTED_RATIO and trial.cost <= WANTED_COST * trials[0].cost
        assert not pays or chosen.cost <= trial.cost
    assert chosen is trials[0] or (chosen.ratio <= WANTED_RATIO and chosen.cost <= WANTED_COST * trials[0].cost)


def test_every_codec_has_a_speed() -> None:
    assert {codec for codecs in CODECS.values() for codec in codecs} == DECODE_SPEED.keys()
