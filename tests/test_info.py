"""`streamkit info`: true numbers, no payload read, and files that other tools accept."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import FORMATS, class_folders, cli, encoded, index_rows, picture, write_files
from hypothesis import given
from hypothesis import strategies as st
from reading import convert, flip, numbered

import streamkit
import streamkit.commands.bench
from streamkit.cli import main
from streamkit.errors import DamagedError, UsageError
from streamkit.reports import sampling
from streamkit.reports.croissant import croissant, write_croissant
from streamkit.reports.dali import record_places, write_dali_index
from streamkit.reports.info import as_text, info
from streamkit.reports.samples import samples
from streamkit.reports.text import bar, table


@pytest.mark.parametrize("format", FORMATS)
def test_facts_are_those_of_the_index(tmp_path: Path, photos: Path, format: str) -> None:
    out = convert(photos, tmp_path / "out", format, split={"train": 0.75, "val": 0.25})
    facts = info(out)
    rows = {split: index_rows(out, split) for split in ("train", "val")}
    assert facts["samples"] == sum(map(len, rows.values())) == 8
    for split, of_split in rows.items():
        counts = Counter(("cat", "dog")[row["label"]] for row in of_split)
        assert {k: n for k, n in facts["classes"][split].items() if n} == counts
    for side in ("width", "height"):
        values = sorted(row[side] for of_split in rows.values() for row in of_split)
        assert facts["image_size"][side] == {"min": values[0], "median": values[3], "max": values[-1]}
    pixels = sum(r["width"] * r["height"] for of_split in rows.values() for r in of_split)
    mean_channels = sum(r["channels"] for of_split in rows.values() for r in of_split) / 8
    assert facts["decoded_bytes"] == pytest.approx(pixels * mean_channels, rel=0.2)
    assert facts["bytes"] == sum(path.stat().st_size for path in out.glob("*-0*.*"))
    assert facts["ratio"] == round(facts["decoded_bytes"] / facts["bytes"], 3)


def test_ragged_arrays_have_a_size_where_they_are_stored_as_they_are(tmp_path: Path, ragged: Path) -> None:
    nbytes = sum(np.load(path).nbytes for path in ragged.rglob("*.npy"))
    plain = convert(ragged, tmp_path / "plain", "hdf5", compression="none", split={"train": 0.75, "val": 0.25})
    assert info(plain)["decoded_bytes"] == nbytes
    assert info(convert(ragged, tmp_path / "packed", compression="zlib"))["decoded_bytes"] is None


def test_columns_have_their_ranges(tmp_path: Path) -> None:
    weight = np.linspace(-2, 3, 40).astype(np.float32)
    out = convert(numbered(tmp_path / "src", 40, weight=weight), tmp_path / "out", "hdf5")
    assert info(out)["columns"] == {"weight": {"min": -2.0, "max": 3.0}}
    assert "weight: -2.0 to 3.0" in as_text(info(out))


def test_no_payload_is_read(tmp_path: Path, many_photos: Path) -> None:
    out = convert(many_photos, tmp_path / "out", shard_size="4KB")
    before = info(out)
    assert before["splits"]["train"]["shards"] > 3
    for shard in out.glob("*.tfrecord"):
        shard.unlink()
    assert info(out) == before


def test_of_a_large_index_a_part_is_read_and_said(
    tmp_path: Path, many_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(many_photos, tmp_path / "out", shard_size="4KB")
    whole = info(out)
    monkeypatch.setattr(sampling, "MAX_ROWS", 20)
    part = info(out)
    assert part["image_size"].pop("rows_looked_at") < 60 == whole["image_size"].pop("rows_looked_at")
    assert part == whole  # these pictures are all of one size; extremes are exact anyway
    assert "medians of " in as_text(info(out))


@given(n=st.integers(0, 500), wanted=st.integers(1, 60))
def test_what_is_spread_or_drawn_is_distinct_and_in_order(n: int, wanted: int) -> None:
    for found in (sampling.spread(n, wanted), sampling.fair_rows(n, wanted).tolist()):
        assert len(found) == min(n, wanted)
        assert found == sorted(set(found))
        assert not found or (found[0] >= 0 and found[-1] < n)


def test_drawing_is_fair() -> None:
    rows = sampling.fair_rows(100_000, 2000)
    assert abs(rows.mean() - 50_000) < 2500
    assert np.bincount(rows // 10_000, minlength=10).min() > 140


@given(value=st.floats(0, 100), width=st.integers(1, 40))
def test_bars_are_in_proportion(value: float, width: int) -> None:
    text = bar(value, 100, width)
    assert len(text) <= width
    assert bool(text) == (value > 0)
    assert len(text) >= width * value / 100 - 0.5


def test_tables_are_aligned_for_wide_and_combining_characters() -> None:
    rows = [("class", "n"), ("猫", "1"), ("한국어", "22"), ("e\u0301le\u0300ve", "3"), ("żółw", "4")]
    lines = table(rows).splitlines()
    assert lines == ["class   n", "猫      1", "한국어  22", "e\u0301le\u0300ve   3", "żółw    4"]


def test_many_classes_are_cut_and_counted(tmp_path: Path) -> None:
    out = convert(class_folders(tmp_path / "src", {f"c{i:02}": 1 + i % 3 for i in range(40)}), tmp_path / "out")
    assert "and 10 more; samples a class: 1 to 3 (median 2)" in as_text(info(out))
    assert len(info(out)["classes"]["train"]) == 40


# The command


@pytest.mark.parametrize("format", FORMATS)
def test_samples_are_the_source_s(tmp_path: Path, ragged: Path, format: str) -> None:
    out = convert(ragged, tmp_path / "out", format)
    found = samples(out, 24)["train"]
    assert len({s["key"] for s in found}) == 24
    for sample in found:
        source = np.load(ragged / sample["key"])
        assert sample["array"]["shape"] == list(source.shape)
        assert sample["label"]["class"] == sample["key"].partition("/")[0]
        if source.size:
            assert sample["array"]["first"] == source.ravel()[:5].tolist()
            assert sample["array"]["mean"] == pytest.approx(float(source.mean(dtype=np.float64)))


def test_the_command_prints_json_and_tables(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(convert(photos, tmp_path / "out"))
    assert main(["info", out, "--json", "--samples", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fields"]["image"]["kind"] == "image"
    assert len(facts["values"]["train"]) == 2
    assert main(["info", out, "--samples", "1"]) == 0
    text = capsys.readouterr().out
    for part in ("split", "train", "cat", "█", "image size: width 7 to", "uint8"):
        assert part in text


def strict(text: str) -> Any:
    """What a parser makes of it that knows no more than JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_json_whatever_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = np.array([np.inf, -np.inf, np.nan, 1.5], np.float32)
    source, out, page = numbered(tmp_path / "src", 4, weight=weight), tmp_path / "out", tmp_path / "page.html"
    np.save(tmp_path / "x.npy", np.stack([weight, weight]))
    for args in (
        ["convert", source, out, "--format", "hdf5"],
        ["convert", tmp_path / "x.npy", tmp_path / "x", "--format", "tfrecord", "--dry-run"],
        ["convert", tmp_path / "x.npy", tmp_path / "x", "--format", "tfrecord"],
        ["info", out, "--samples", "4"],
        ["info", tmp_path / "x", "--samples", "2"],
        ["verify", out],
        ["repair", out, "--drop"],
        ["preview", out, "--html", page],
        ["index", out / "train-00000.h5", "--out", tmp_path / "adopted"],
    ):
        assert main([*map(str, args), "--json", "--quiet"]) == 0
        found = strict(capsys.readouterr().out)
        if args[:2] == ["info", out]:
            assert found["columns"]["weight"] == {"min": None, "max": None}
            values = {s["key"]: s["weight"]["value"] for s in found["values"]["train"]}
            assert sorted(values.values(), key=str) == [1.5, None, None, None]
    assert main(["info", str(out)]) == 0
    assert "weight: -inf to inf" in capsys.readouterr().out


def test_names_from_a_source_cannot_forge_output(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", {"a\x1b[31m\nb/x.png": encoded(picture(4, 4))})
    run = cli("info", convert(source, tmp_path / "out"), "--samples", "1")
    assert run.returncode == 0
    assert "\x1b" not in run.stdout
    assert r"a\x1b[31m\nb" in run.stdout


def test_a_folder_s_name_need_not_be_utf8(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(photos, tmp_path / "out").rename(os.fsdecode(os.fsencode(tmp_path) + b"/im\xff"))
    target = out.with_suffix(".html")
    assert main(["info", str(out), "--samples", "1", "--json"]) == 0
    facts = strict(capsys.readouterr().out)
    assert facts["out"] == str(out)
    assert facts["image_size"]["width"]["min"] == 7
    assert main(["info", str(out), "--croissant", "--dali-index"]) == 0
    monkeypatch.setattr(streamkit.commands.bench, "_tensorflow", lambda: None)
    for command in (["preview"], ["bench", "--image-size", "8x8"]):
        assert main([command[0], str(out), "--html", str(target), "--samples", "4", *command[1:]]) == 0
        assert r"<title>im\udcff: " in target.read_text("utf-8")
    assert main(["verify", str(out), "--full"]) == 0


def test_errors_name_the_next_step(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "none")]) == 2
    assert main(["info", str(photos)]) == 2
    out = convert(photos, tmp_path / "out")
    assert main(["info", str(out), "--samples", "-1"]) == 2
    (out / "index-train.parquet").write_bytes(b"PAR1")
    assert main(["info", str(out)]) == 4
    assert "index-train.parquet" in capsys.readouterr().err


# For other tools


def test_dali_index_is_that_of_its_own_tool(tmp_path: Path, many_photos: Path) -> None:
    out = convert(many_photos, tmp_path / "out", shard_size="4KB")
    written = write_dali_index(out)
    assert len(written) == len(list(out.glob("*.tfrecord"))) > 3
    for path in written:
        assert path.read_text() == dali_s_own(path.with_suffix(".tfrecord"))


def dali_s_own(path: Path) -> str:
    """What DALI's tools/tfrecord2idx does, read through instead of jumped over."""
    lines = []
    data = path.read_bytes()
    at = 0
    while at < len(data):
        (length,) = struct.unpack("<q", data[at : at + 8])
        lines.append(f"{at} {8 + 4 + length + 4}")
        at += 8 + 4 + length + 4
    return "".join(f"{line}\n" for line in lines)


def test_dali_index_refuses_what_is_no_tfrecord_or_damaged(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="--format tfrecord"):
        write_dali_index(convert(photos, tmp_path / "h5", "hdf5"))
    out = convert(photos, tmp_path / "out")
    shard = out / "train-00000.tfrecord"
    flip(shard, 0)
    with pytest.raises(DamagedError, match=r"record 0 at byte 0: the record's length is damaged"):
        write_dali_index(out)
    flip(shard, 0)
    whole = shard.read_bytes()
    places = list(record_places(shard))
    for cut, reason in (
        (places[-1][0], "records, the manifest"),
        (places[-1][0] + 5, "ends"),
        (len(whole) - 1, "ends"),
    ):
        shard.write_bytes(whole[:cut])
        with pytest.raises(DamagedError, match=reason):
            write_dali_index(out)
    shard.unlink()
    with pytest.raises(DamagedError, match="missing"):
        write_dali_index(out)
    assert not list(out.glob("*.idx"))


@pytest.mark.filterwarnings("ignore:::mlcroissant", "ignore:::rdflib", "ignore:::absl")
@pytest.mark.parametrize("format", FORMATS)
def test_mlcroissant_validates_and_loads_the_index(tmp_path: Path, many_photos: Path, format: str) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")

    out = convert(many_photos, tmp_path / "out", format, split={"train": 0.8, "val": 0.2})
    found = mlcroissant.Dataset(write_croissant(out))
    assert not found.metadata.issues.errors
    assert {r["classes/name"] for r in found.records("classes")} == {"bird", "cat", "dog"}
    for split in ("train", "val"):
        records = list(found.records(split))
        rows = index_rows(out, split)
        assert [r[f"{split}/key"].decode() for r in records] == [row["key"] for row in rows]
        for name in ("image.offset", "image.length", "label", "width"):
            assert [r[f"{split}/{name}"] for r in records] == [row[name] for row in rows]


def adopted(tmp_path: Path, source: Path, where: str, out: str) -> Path:
    """A dataset of TFRecord files that lie in `where`, with their names as TensorFlow Datasets gives them."""
    made = convert(source, tmp_path / "made", shard_size="4KB")
    (tmp_path / where).mkdir(parents=True)
    for i, shard in enumerate(sorted(made.glob("*.tfrecord"))):
        shard.rename(tmp_path / where / f"photos-train.tfrecord-{i:05}-of-00009")
    streamkit.index(sorted((tmp_path / where).iterdir()), tmp_path / out)
    return tmp_path / out


def test_adopted_files_elsewhere_are_not_written_to_nor_described(
    tmp_path: Path, many_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = adopted(tmp_path, many_photos, "files", "out")
    assert main(["info", str(out), "--dali-index"]) == 2
    assert "its adopted files lie elsewhere, where nothing is written. Run DALI's own" in capsys.readouterr().err
    assert main(["info", str(out), "--croissant"]) == 0
    assert "croissant.json lists the index alone, and not the adopted files" in capsys.readouterr().err
    found = json.loads((out / "croissant.json").read_text())
    assert [file["name"] for file in found["distribution"]] == ["index-train.parquet"]
    assert "the index alone" in found["description"]


def test_adopted_files_inside_are_as_one_s_own(
    tmp_path: Path, many_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = adopted(tmp_path, many_photos, "out/data", "out")
    names = {path.relative_to(out).as_posix() for path in out.glob("data/*")}
    assert {path.relative_to(out).as_posix() for path in write_dali_index(out)} == {f"{name}.idx" for name in names}
    assert set(croissant(out)["distribution"][1]["includes"]) == names
    assert main(["info", str(out), "--croissant"]) == 0
    assert "index alone" not in capsys.readouterr().err


def test_croissant_tells_nothing_of_the_machine(tmp_path: Path, photos: Path) -> None:
    out = convert(photos, tmp_path / "out")
    text = json.dumps(croissant(out))
    assert str(tmp_path) not in text
    assert write_croissant(out).read_text() == write_croissant(out).read_text()
