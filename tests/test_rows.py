"""Rows of CSV, TSV, JSON Lines and Parquet as a source: every value comes back, and nothing is held that need not be."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from converting import (
    arrays,
    both,
    columns,
    digests,
    encoded,
    index_rows,
    one_quickly,
    payloads,
    picture,
    python,
    write_files,
)
from hypothesis import given

import streamkit
from streamkit.errors import RefusedError, SourceError, UsageError
from streamkit.sources import open_source, rowfiles, rows
from streamkit.sources.rowfiles import CsvRows, open_rows

TEXTS = ["plain", "", 'with "quotes", commas\nand a line', "Größe 寸", "x" * 300]


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> streamkit.convert.Report:
    return streamkit.convert(source, out, format=format, workers=1, **options)


def records(n: int = 23) -> list[dict[str, Any]]:
    return [
        {
            "text": TEXTS[i % len(TEXTS)] + str(i),
            "label": ["pos", "neg"][i % 2],
            "score": None if i % 5 == 0 else i / 4,
            "count": i,
            "ids": list(range(i % 4)),
            "vector": [i / 8, -1.0, 2.5],
        }
        for i in range(n)
    ]


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = [name for name in rows[0] if name not in ("ids", "vector")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, names, extrasaction="ignore", delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7, **options)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "a.csv": as_csv,
    "a.tsv": as_csv,
    "a.jsonl": as_jsonl,
    "a.parquet": as_parquet,
}


@both
@pytest.mark.parametrize("name", WRITERS)
def test_every_value_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, name: str) -> None:
    monkeypatch.setattr(rowfiles, "BLOCK_NBYTES", 512)
    rows = records()
    out = tmp_path / "out"
    report = convert(WRITERS[name](tmp_path / name, rows), out, format)
    assert report.n_items == len(rows)
    assert streamkit.open(out).class_names == ["neg", "pos"]
    texts = payloads(out, name="text")
    for i, row in enumerate(rows):
        assert texts[f"{name}#{i}"].decode() == row["text"]
    found = {int(row["key"].rpartition("#")[2]): row for row in index_rows(out)}
    for i, row in enumerate(rows):
        assert found[i]["count"] == row["count"] and found[i]["label"] == (row["label"] == "pos")
        assert np.isnan(found[i]["score"]) if row["score"] is None else found[i]["score"] == row["score"]
    if name in ("a.jsonl", "a.parquet"):
        ids, vectors = arrays(out, name="ids"), arrays(out, name="vector")
        for i, row in enumerate(rows):
            assert ids[f"{name}#{i}"].tolist() == row["ids"]
            assert vectors[f"{name}#{i}"].tolist() == row["vector"]
        assert streamkit.open(out).schema["ids"].shape == (None,)
        assert streamkit.open(out).schema["vector"].shape == (3,)


@pytest.mark.parametrize("name", WRITERS)
def test_batches_of_rows(tmp_path: Path, name: str) -> None:
    rows = records()
    convert(WRITERS[name](tmp_path / name, rows), tmp_path / "out")
    loader = streamkit.Loader(tmp_path / "out", batch_size=6, fields=("key", "text", "count"), seed=3)
    seen = 0
    for keys, texts, counts in loader:
        assert texts.dtype == object and texts.shape == (len(keys),)
        for key, text, count in zip(keys, texts, counts, strict=True):
            row = rows[int(key.rpartition("#")[2])]
            assert (text, count) == (row["text"], row["count"])
            seen += 1
    assert seen == len(rows)


@both
def test_tables_of_columns_alone(tmp_path: Path, format: str) -> None:
    (tmp_path / "iris.csv").write_text("a,b,class\n" + "".join(f"{i},{i / 2},{'xyz'[i % 3]}\n" for i in range(12)))
    convert(tmp_path / "iris.csv", tmp_path / "out", format, split="train=0.5,test=0.5")
    batch = next(iter(streamkit.Loader(tmp_path / "out", split="train", batch_size=6)))
    assert sorted(batch) == ["a", "b", "label"] and np.array_equal(batch["a"] / 2, batch["b"])
    assert streamkit.verify(tmp_path / "out").ok


@one_quickly
def test_workers_change_nothing(tmp_path: Path, format: str) -> None:
    source = as_jsonl(tmp_path / "a.jsonl", records(100))
    found = []
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        streamkit.convert(source, out, format=format, workers=workers, shard_size=4000, split="train=0.8,val=0.2")
        found.append(digests(out))
    assert len(found[0]) > 6 and found[0] == found[1]


def test_a_block_is_read_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_parquet(tmp_path / "a.parquet", records(70))
    read: list[int] = []
    one = rowfiles.ParquetRows.read
    monkeypatch.setattr(rowfiles.ParquetRows, "read", lambda *a, **o: (read.append(a[1].at), one(*a, **o))[1])
    convert(source, tmp_path / "out", split="train=0.8,val=0.2", shard_size=3000, compression="none")
    n_shards = sum(len(s.shards) for s in streamkit.open(tmp_path / "out").splits.values())
    assert n_shards > 3 and len(read) <= 10 + 2 * 10 + n_shards  # the survey; each split; and where shards cut a block


# Hugging Face


def image_rows(n: int) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": encoded(picture(10, 12, seed=i), "JPEG"), "path": f"{i}.jpg"},
            "label": i % 3,
            "caption": f"number {i}",
        }
        for i in range(n)
    ]


def hugging_face(path: Path, rows: list[dict[str, Any]], names: list[str] | None) -> Path:
    """As `datasets` writes it: {bytes, path} and its features in the metadata."""
    table = pa.Table.from_pylist(rows)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path


@both
def test_pictures_pass_through_with_their_class_names(tmp_path: Path, format: str) -> None:
    rows = image_rows(14)
    source = hugging_face(tmp_path / "a.parquet", rows, ["cat", "dog", "owl", "yak"])
    convert(source, tmp_path / "out", format)
    assert streamkit.open(tmp_path / "out").class_names == ["cat", "dog", "owl", "yak"]
    stored, captions = payloads(tmp_path / "out"), columns(tmp_path / "out", "caption")
    for i, row in enumerate(rows):
        assert stored[f"a.parquet#{i}"] == row["image"]["bytes"]
        assert captions[f"a.parquet#{i}"] == f"number {i}"
    loader = streamkit.Loader(tmp_path / "out", batch_size=7, fields=("image", "label"))
    assert next(iter(loader))[0].shape == (7, 10, 12, 3)


def test_files_named_after_splits(tmp_path: Path) -> None:
    rows = image_rows(13)
    names = ["a", "b", "c"]
    hugging_face(tmp_path / "hf" / "data" / "train-00000-of-00002.parquet", rows[:5], names)
    hugging_face(tmp_path / "hf" / "data" / "train-00001-of-00002.parquet", rows[5:9], names)
    hugging_face(tmp_path / "hf" / "data" / "validation-00000-of-00001.parquet", rows[9:], names)
    write_files(tmp_path / "hf", {"README.md": b"about", "README.txt": b"about"})
    convert(tmp_path / "hf", tmp_path / "out")
    splits = streamkit.open(tmp_path / "out").splits
    assert {name: split.samples for name, split in splits.items()} == {"train": 9, "val": 4}
    assert set(columns(tmp_path / "out", "key", "val")) == {
        f"data/validation-00000-of-00001.parquet#{i}" for i in range(4)
    }


def test_pictures_tile_and_have_masks(tmp_path: Path) -> None:
    rows = [
        {"mask": encoded(picture(20, 20, 1, seed=i)), "photo": encoded(picture(20, 20, seed=i)), "site": i % 2}
        for i in range(6)
    ]
    source = as_parquet(tmp_path / "a.parquet", rows)
    convert(source, tmp_path / "out", tile="10x10", group_by="site", split="train=0.5,val=0.5")
    assert sum(s.samples for s in streamkit.open(tmp_path / "out").splits.values()) == 24
    batch = next(iter(streamkit.Loader(tmp_path / "out", split="train", batch_size=4)))
    assert batch["image"].shape == (4, 10, 10, 3) and batch["mask"].shape == (4, 10, 10, 1)


# What is wrong with rows


@pytest.mark.fault(40)
def test_bad_rows_are_bad_items(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": 1}', "{broken", "[1, 2]", '{"text": "b"}', '{"text": "c", "label": 0}', ""]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(SourceError) as caught:
        convert(tmp_path / "a.jsonl", tmp_path / "out")
    assert [key for key, _ in caught.value.bad] == ["a.jsonl#1", "a.jsonl#2", "a.jsonl#3"]
    report = convert(tmp_path / "a.jsonl", tmp_path / "out", on_bad="skip")
    assert len(report.skipped) == 3
    assert {key: data.decode() for key, data in payloads(tmp_path / "out", name="text").items()} == {
        "a.jsonl#0": "a",
        "a.jsonl#4": "c",
    }


def test_pictures_that_are_none(tmp_path: Path) -> None:
    rows = image_rows(4)
    rows[1]["image"] = {"bytes": None, "path": "elsewhere.jpg"}
    rows[2]["image"] = None
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:100]
    with pytest.raises(SourceError) as caught:
        convert(hugging_face(tmp_path / "a.parquet", rows, None), tmp_path / "out")
    assert [key for key, _ in caught.value.bad] == ["a.parquet#1", "a.parquet#2", "a.parquet#3"]
    assert "path of a picture" in caught.value.bad[0][1]


def test_nulls_of_every_kind(tmp_path: Path) -> None:
    rows = [
        {"text": None, "n": None, "flag": None, "ids": None, "note": None},
        {"text": "t", "n": 2, "flag": True, "ids": [1, None], "note": "x"},
    ]
    convert(as_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out")
    schema = streamkit.open(tmp_path / "out").schema
    assert {f.name: f.dtype for f in schema} == {
        "text": "string",
        "n": "float64",
        "flag": "float64",
        "ids": "float64",
        "note": "string",
    }
    first = next(row for row in index_rows(tmp_path / "out") if row["key"].endswith("#0"))
    assert np.isnan(first["n"]) and np.isnan(first["flag"]) and first["note"] == ""
    ids = arrays(tmp_path / "out", name="ids")
    assert ids["a.jsonl#0"].shape == (0,) and ids["a.jsonl#1"][0] == 1 and np.isnan(ids["a.jsonl#1"][1])


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.csv", b"", SourceError),
        ("a.csv", b"a,b\n", SourceError),
        ("a.csv", b"a,a\n1,2\n", SourceError),
        ("a.csv", b"a,b\n1,2\n3\n", SourceError),
        ("a.csv", b"a,b\n\xff\xfe,2\n", SourceError),
        ("a.jsonl", b"\n\n", SourceError),
        ("a.jsonl", b'{"a": [1]}\n{"a": 5}\n', SourceError),
        ("a.jsonl", b'{"a": 1, "label": 2}\n{"a": "x", "label": 1}\n', SourceError),
        ("a.jsonl", b'{"a": [[1], [1, 2]]}\n', SourceError),
        ("a.parquet", b"<html>", SourceError),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", SourceError),
        ("a.flac", b"", UsageError),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, data: bytes, error: type[Exception]) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error) as caught:
        convert(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_table_of_another_separator_is_no_table_of_one_column(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.csv").write_text(separator.join("ab") + "\n" + separator.join("12") + "\n")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "a.csv")
    assert f"the separator may be {separator!r}" in str(caught.value) and "parted by ','" in str(caught.value.hint)


def test_files_of_several_kinds(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"a.csv": b"a,label\n1,2\n", "b.jsonl": b"{}\n"})
    with pytest.raises(SourceError, match="several kinds"):
        convert(tmp_path / "src", tmp_path / "out")


def test_cut_parquet_never_crashes(tmp_path: Path) -> None:
    whole = hugging_face(tmp_path / "a.parquet", image_rows(9), None).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(whole)
        if number % 2:
            data = data[: int(rng.integers(len(data)))]
        else:
            for at in rng.integers(len(data), size=3):
                data[at] ^= 1 << int(rng.integers(8))
        path = tmp_path / "b.parquet"
        path.write_bytes(data)
        try:
            source = open_source(path)
            list(source.samples(source.listing().keys))
        except streamkit.StreamkitError:
            continue


@pytest.mark.fault(84)
def test_a_dictionary_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is stored once and stands in every row: the file is small, what comes out of it is not."""
    monkeypatch.setattr(rows, "_MAX_BOMB_NBYTES", 1 << 20)
    one = encoded(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    table = pa.table({"image": pa.array([one]).dictionary_encode().take(pa.array([0] * 3000)).cast(pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert 3000 * len(one) > 1032 * (tmp_path / "a.parquet").stat().st_size
    with pytest.raises(RefusedError, match="come out of"):
        convert(tmp_path / "a.parquet", tmp_path / "out")


@given(
    st.lists(st.lists(st.text("ab,\"\n' \té", max_size=6), min_size=2, max_size=2), min_size=1, max_size=30),
    st.integers(1, 64),
)
def test_blocks_of_csv_end_between_records(tmp_path_factory: pytest.TempPathFactory, cells: Any, nbytes: int) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([["x", "y"], *cells])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rowfiles, "BLOCK_NBYTES", nbytes)
        opened = CsvRows(str(path), ",")
        pieces = [piece.table for block in opened.blocks() for piece in opened.read(block)]
    read = [[row["x"], row["y"]] for table in pieces for row in table.to_pylist()]
    assert read == cells


PEAK = """
import json, sys
from pathlib import Path
import streamkit
from streamkit.sources import rowfiles
rowfiles.BLOCK_NBYTES = 1 << 20
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
work = Path(sys.argv[1])
peaks = []
for name, n in (("small", 2_000), ("large", 10_000)):
    with open(work / f"{name}.jsonl", "w") as file:
        for i in range(n):
            file.write(json.dumps({"text": f"{i} " * 600, "label": i % 2}) + "\\n")
    streamkit.convert(work / f"{name}.jsonl", work / name, format="tfrecord", workers=1, shard_size="4MB")
    peaks.append(peak())
print((peaks[1] - peaks[0]) / (work / "large.jsonl").stat().st_size)
"""


def test_the_text_is_not_held(tmp_path: Path) -> None:
    """Five times the rows, 35 MB of text: a part of what is added comes on top."""
    run = python(PEAK, tmp_path)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 0.4, run.stdout


def test_tensorflow_and_h5py_read_texts(tmp_path: Path) -> None:
    rows = records()
    source = as_jsonl(tmp_path / "a.jsonl", rows)
    convert(source, tmp_path / "h5", "hdf5")
    with h5py.File(tmp_path / "h5" / "train.h5") as file:
        offsets, data = file["text_offsets"][:], bytes(file["text"][:])
    texts = [data[a:b].decode() for a, b in itertools.pairwise(offsets.tolist())]
    assert sorted(texts) == sorted(row["text"] for row in rows)
    tf = pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    convert(source, tmp_path / "tf")
    stock = tfds.builder_from_directory(str(tmp_path / "tf")).as_dataset(split="train")
    assert {e["text"].numpy().decode() for e in stock} == {row["text"] for row in rows}
    batches = streamkit.dataset(tmp_path / "tf", batch_size=8, fields=("text", "label"))
    assert batches.element_spec[0] == tf.TensorSpec((None,), tf.string)
    assert {t.decode() for x, _ in batches for t in x.numpy()} == {row["text"] for row in rows}
    texts, _ = streamkit.sequence(tmp_path / "tf", batch_size=8, fields=("text", "label"))[0]
    loader = streamkit.Loader(tmp_path / "tf", batch_size=8, fields=("text", "label"))
    assert [text.decode() for text in np.asarray(texts)] == loader[0][0].tolist()


def test_the_reader_of_a_file_is_known_by_its_suffix() -> None:
    assert isinstance(open_rows("x.TSV"), CsvRows) and open_rows("x.TSV").delimiter == "\t"  # type: ignore[attr-defined]
