"""Statistics gathered while converting: what they say is true, and workers, splits into shards and options do not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import class_folders, encoded, noise, payloads, picture, pillow, write_files

import streamkit
from streamkit.convert import moments
from streamkit.reports.info import as_text, info


def convert(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    options = {"format": "tfrecord", "workers": 1} | options
    return dict(streamkit.convert(source, out, **options).manifest.statistics)  # type: ignore[union-attr]


def true_moments(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every picture counts the same."""
    images = [pillow(data).astype(np.float64) for data in payloads(out).values()]
    images = [np.repeat(i, 3, 2) if i.shape[2] == 1 else i[:, :, :3] for i in images]
    mean = np.mean([i.mean((0, 1)) for i in images], axis=0)
    return mean, np.sqrt(np.mean([(i**2).mean((0, 1)) for i in images], axis=0) - mean**2)


def test_mean_and_spread_of_pictures(tmp_path: Path) -> None:
    files = {f"{i}.jpg": encoded(picture(96, 160, seed=i), "JPEG") for i in range(8)}
    files |= {f"{i}.png": encoded(picture(40, 24, c, seed=i)) for i, c in ((8, 1), (9, 3), (10, 4))}
    found = convert(write_files(tmp_path / "src", files), tmp_path / "out")["image"]
    mean, std = true_moments(tmp_path / "out")
    np.testing.assert_allclose(found["mean"], mean, atol=1.5)  # a JPEG's is that of an eighth of its size
    np.testing.assert_allclose(found["std"], std, atol=0.5)
    assert found["std_of"] == 11 and found["width"] == [24, 160] and found["height"] == [40, 96]
    assert "channel mean: " in as_text(info(tmp_path / "out"))


@pytest.mark.parametrize("options", [{"encode": "png"}, {"encode": "raw"}, {"tile": "16x16"}, {"resize": 24}])
def test_statistics_are_those_of_what_is_stored(tmp_path: Path, options: dict[str, Any]) -> None:
    files = {f"{i}.png": encoded(picture(32, 48, seed=i)) for i in range(5)}
    found = convert(write_files(tmp_path / "src", files), tmp_path / "out", **options)["image"]
    batches = streamkit.Loader(tmp_path / "out", batch_size=1, fields="image", shuffle=False)
    images = np.stack([batch[0] for batch in batches]).astype(np.float64)
    np.testing.assert_allclose(found["mean"], images.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(found["std"], images.std((0, 1, 2)), atol=1e-3)


def test_gray_pictures_have_one_channel(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", {f"{i}.png": encoded(noise(9, 9, 1, seed=i)) for i in range(3)})
    found = convert(source, tmp_path / "out")["image"]
    assert len(found["mean"]) == len(found["std"]) == 1


def test_nothing_is_said_that_was_not_looked_at(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 3})
    assert "mean" not in convert(source, tmp_path / "out", check="header")["image"]


def test_workers_do_not_show(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 30, "b": 20})
    found = [convert(source, tmp_path / str(n), workers=n, shard_size="3KB") for n in (1, 3)]
    assert found[0] == found[1]
    n_shards = len(streamkit.open(tmp_path / "1").splits["train"].shards)
    assert n_shards > 5 and found[0]["image"]["std_of"] == 50


def test_few_pictures_are_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkit.convert.writing.N_WHOLE", 8)
    source = class_folders(tmp_path / "src", {"a": 40})
    assert convert(source, tmp_path / "out")["image"]["std_of"] == 8


def test_what_is_appended_counts(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 10, "b": 10})
    convert(source, tmp_path / "out")
    write_files(source, {f"a/new{i}.jpg": encoded(noise(16, 16, seed=i), "JPEG") for i in range(12)})
    grown = convert(source, tmp_path / "out", append=True)
    anew = convert(source, tmp_path / "anew")
    assert grown["class_counts"] == anew["class_counts"]
    np.testing.assert_allclose(grown["image"]["mean"], anew["image"]["mean"], atol=1e-3)
    np.testing.assert_allclose(grown["image"]["std"], anew["image"]["std"], atol=1.5)
    assert grown["image"]["std_of"] == 32


@pytest.mark.fault(36)
def test_values_that_are_no_numbers_are_kept_and_counted(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    values[1, 2], values[3, 0], values[3, 1] = np.nan, np.inf, -np.inf
    values[5, 3] = np.frombuffer(b"\x01\x00\xa0\x7f", np.float32)[0]  # a NaN with bits of its own
    np.save(tmp_path / "x.npy", values)
    for format in ("tfrecord", "hdf5"):
        found = convert(tmp_path / "x.npy", tmp_path / format, format=format)
        assert found["arrays"] == {"array": {"not_finite": {"nan": 2, "inf": 2}}}
        rows = streamkit.Loader(tmp_path / format, batch_size=6, shuffle=False, fields=("key", "array"))[0]
        order = np.argsort([int(key.rpartition("#")[2]) for key in rows[0]])
        assert rows[1][order].tobytes() == values.tobytes()
        assert "2 values are NaN, 2 infinite" in as_text(info(tmp_path / format))


def test_sums_of_shards_add_up() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (5, 7, 3), np.uint8) for _ in range(9)]
    facts = [{"mean": [m.mean for m in part], "whole": part} for part in _parts([moments.of_pixels(i) for i in images])]
    found = moments.totals([moments.summed(part) for part in facts])
    stack = np.stack(images).astype(np.float64)
    np.testing.assert_allclose(found["mean"], stack.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["std"], stack.std((0, 1, 2)), atol=1e-4)
    assert moments.totals([]) == {"not_finite": {}}


def _parts(values: list[Any]) -> list[list[Any]]:
    return [values[:2], values[2:8], values[8:]]
