"""Labels: whatever kind of file they stand in, the same fields come out, and nothing is lost or paired wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from converting import both, cli, columns, digests, encoded, noise, one_quickly, picture, rotated, saved, write_files
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit.convert import Report
from streamkit.errors import RefusedError, SourceError, UsageError
from streamkit.sources.annotations import SIDES
from streamkit.sources.fields import free_name
from streamkit.sources.labelled import match
from streamkit.sources.labels import read_labels
from streamkit.sources.listing import Ragged


def convert(source: Path, out: Path, format: str = "tfrecord", **options: Any) -> Report:
    return streamkit.convert(source, out, format=format, **{"workers": 1, **options})


def by_key(out: Path, *names: str, split: str = "train") -> dict[str, tuple[Any, ...]]:
    """key -> values of fields, as the Loader gives single samples."""
    loader = streamkit.Loader(out, split=split, batch_size=None, shuffle=False, fields=("key", *names))
    return {key: tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in values) for key, *values in loader}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 12 x 16 without class folders."""
    root = tmp_path_factory.mktemp("flat")
    return write_files(root, {f"{i}.jpg": encoded(picture(12, 16, seed=i), "JPEG") for i in range(6)})


ROWS: list[dict[str, Any]] = [
    {"file": f"{i}.jpg", "label": "ba"[i % 2], "weight": i / 10, "count": i, "who": f"p{i % 3}", "good": i > 2}
    for i in range(6)
]


def as_csv(rows: list[dict[str, Any]], path: Path, delimiter: str = ",") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[("" if row.get(n) is None else str(row[n])) for n in names] for row in rows]
    path.write_text("\n".join(delimiter.join(line) for line in [names, *cells]) + "\n")
    return path


def as_tsv(rows: list[dict[str, Any]], path: Path) -> Path:
    return as_csv(rows, path.with_suffix(".tsv"), "\t")


def as_jsonl(rows: list[dict[str, Any]], path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return path


def as_parquet(rows: list[dict[str, Any]], path: Path) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS: list[Callable[[list[dict[str, Any]], Path], Path]] = [as_csv, as_tsv, as_jsonl, as_parquet]


# One row an item


@both
@pytest.mark.parametrize("write", WRITERS)
def test_one_row_an_item_makes_columns(
    flat: Path, tmp_path: Path, format: str, write: Callable[[list[dict[str, Any]], Path], Path]
) -> None:
    labels = write(list(reversed(ROWS)), tmp_path / "labels.csv")
    convert(flat, tmp_path / "out", format, labels=labels)
    manifest = streamkit.open(tmp_path / "out")
    assert {f.name: (f.kind, f.dtype) for f in manifest.schema} == {
        "image": ("image", "uint8"),
        "label": ("label", "int64"),
        "weight": ("number", "float64"),
        "count": ("number", "int64"),
        "who": ("string", "string"),
        "good": ("number", "bool"),
    }
    assert manifest.class_names == ["a", "b"]
    found = by_key(tmp_path / "out", "label", "weight", "count", "who", "good")
    assert found == {r["file"]: (int(r["label"] == "b"), r["weight"], r["count"], r["who"], r["good"]) for r in ROWS}
    batch = streamkit.Loader(tmp_path / "out", batch_size=6, shuffle=False)[0]
    assert batch["weight"].shape == batch["who"].shape == (6,)


@pytest.mark.parametrize("number", [False, True])
def test_a_row_that_repeats_another_is_left(tmp_path: Path, number: bool) -> None:
    """One item's row twice, word for word, is a mistake, and no reason to make lists of all columns."""
    pictures = write_files(tmp_path / "src", {f"{i}.png": encoded(picture(4, 4, seed=i)) for i in range(6)})
    rows = [{**row, "file": i} if number else {**row, "file": f"{i}.png"} for i, row in enumerate(ROWS)]
    report = convert(pictures, tmp_path / "out", labels=as_csv([*rows, rows[2], rows[2]], tmp_path / "twice.csv"))
    assert "twice.csv: 2 rows that repeat another were left" in report.notices
    convert(pictures, tmp_path / "once", labels=as_csv(rows, tmp_path / "once.csv"))
    assert by_key(tmp_path / "out", "label", "weight", "who") == by_key(tmp_path / "once", "label", "weight", "who")


def test_rows_that_differ_are_several(flat: Path, tmp_path: Path) -> None:
    """Where one item has rows that differ, those that are alike stay too."""
    several = [*ROWS, ROWS[2], {**ROWS[3], "weight": 9.0}]
    convert(flat, tmp_path / "out", labels=as_csv(several, tmp_path / "several.csv"))
    found = by_key(tmp_path / "out", "objects/weight")
    assert found["2.jpg"] == ([0.2, 0.2],) and found["3.jpg"] == ([0.3, 9.0],)


def test_nulls(flat: Path, tmp_path: Path) -> None:
    """Numbers become float64 with NaN, and said so; text becomes empty; an item without its label is a bad item."""
    rows = [{**row, "count": None if i == 1 else row["count"]} for i, row in enumerate(ROWS)]
    rows[2] |= {"who": None, "weight": None}
    rows[4] |= {"label": None}
    for i, write in enumerate(WRITERS):
        out = tmp_path / str(i)
        report = convert(flat, out, labels=write(rows, tmp_path / "labels.csv"), on_bad="skip")
        assert [b.key for b in report.skipped] == ["4.jpg"]
        assert any("count has 1 empty" in notice for notice in report.notices)
        found = by_key(out, "count", "who", "weight")
        assert np.isnan(found["1.jpg"][0]) and found["0.jpg"][0] == 0.0
        assert found["2.jpg"][1] == "" and np.isnan(found["2.jpg"][2])


def test_codes_stay_text(tmp_path: Path) -> None:
    """007 is no number, nor are dates; "NA" among texts is a text."""
    path = tmp_path / "x.csv"
    path.write_text("file,code,day,land,n\na,007,2024-01-02,NA,NA\nb,12,2024-01-03,DE,3\n")
    table = read_labels(path).table
    assert table.to_pydict() == {
        "code": ["007", "12"],
        "day": ["2024-01-02", "2024-01-03"],
        "land": ["NA", "DE"],
        "n": [None, 3],
    }


def test_quoted_cells_bom_and_a_pandas_index(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeff,name,text\r\n0,a.jpg,"two\nlines, ""quoted"""\r\n1,b.jpg,x\r\n'.encode())
    labels = read_labels(path)
    assert labels.files == ["a.jpg", "b.jpg"]
    assert labels.table.to_pydict() == {"text": ['two\nlines, "quoted"', "x"]}
    assert "without a name" in labels.notices[0]


def test_whole_numbers_are_classes_too(flat: Path, tmp_path: Path) -> None:
    labels = as_csv([{"file": r["file"], "label": r["count"] % 3} for r in ROWS], tmp_path / "x.csv")
    convert(flat, tmp_path / "out", labels=labels, split={"train": 0.5, "val": 0.5})
    assert streamkit.open(tmp_path / "out").class_names == ["0", "1", "2"]
    counts = streamkit.open(tmp_path / "out").statistics["class_counts"]
    assert counts["train"] == counts["val"] == {"0": 1, "1": 1, "2": 1}


@both
def test_lists_make_arrays(flat: Path, tmp_path: Path, format: str) -> None:
    rows = [
        {
            "file": f"{i}.jpg",
            "boxes": [[j, j, j + 1, j + 2] for j in range(i)],
            "vector": [i, i + 0.5],
            "tags": ["xyz"[j] for j in range(i % 3)],
            "seen": [{"name": "cat", "at": [j, j]} for j in range(i % 2)],
        }
        for i in range(6)
    ]
    for write in (as_jsonl, as_parquet):
        out = tmp_path / write.__name__
        convert(flat, out, format, labels=write(rows, tmp_path / "x"))
        schema = streamkit.open(out).schema
        assert {f.name: f.shape for f in schema if f.kind == "array"} == {
            "boxes": (None, 4),
            "vector": (2,),
            "tags": (None,),
            "seen/name": (None,),
            "seen/at": (None, 2),
        }
        assert schema["tags"].class_names == ("x", "y")
        found = by_key(out, "boxes", "vector", "tags", "seen/at")
        for i, row in enumerate(rows):
            tags = ["xyz".index(tag) for tag in row["tags"]]
            assert found[row["file"]] == (row["boxes"], row["vector"], tags, [[0, 0]] * (i % 2))
        batch = streamkit.Loader(out, batch_size=6, shuffle=False)[0]
        assert batch["boxes"].shape == (6, 5, 4) and batch["vector"].shape == (6, 2)
        assert sorted(batch["boxes_length"].tolist()) == list(range(6))


# Boxes: several rows an item, COCO, VOC

BOXES: dict[str, list[tuple[str, int, int, int, int]]] = {
    "0.jpg": [("dog", 1, 2, 3, 4), ("cat", 5, 6, 7, 8)],
    "1.jpg": [("cat", 0, 0, 9, 9)],
    "2.jpg": [("cat", 1, 1, 2, 2), ("cat", 1, 1, 2, 2), ("dog", 3, 3, 4, 5)],
    "3.jpg": [("dog", 0, 1, 2, 3)],
    "4.jpg": [("dog", 0, 1, 2, 3)],
    "5.jpg": [("cat", 10, 1, 12, 3)],
}


def box_csv(path: Path, boxes: dict[str, list[tuple[str, int, int, int, int]]] = BOXES) -> Path:
    rows = [
        {"filename": file, "width": 16, "height": 12, "class": box[0]} | dict(zip(SIDES, box[1:], strict=True))
        for file, some in boxes.items()
        for box in some
    ]
    return as_csv(rows, path / "boxes.csv")


def box_coco(path: Path) -> Path:
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    for i, (file, some) in enumerate(BOXES.items()):
        data["images"].append({"id": 10 * i, "file_name": file, "width": 16, "height": 12})
        for name, xmin, ymin, xmax, ymax in some:
            box = [xmin, ymin, xmax - xmin, ymax - ymin]
            category = 7 if name == "dog" else 3
            about = {"iscrowd": 0, "area": box[2] * box[3], "segmentation": [[1, 2, 3]]}
            data["annotations"].append(
                {"id": len(data["annotations"]), "image_id": 10 * i, "category_id": category, "bbox": box} | about
            )
    (path / "annotations.json").write_text(json.dumps(data))
    return path / "annotations.json"


def box_voc(path: Path) -> Path:
    folder = path / "voc"
    folder.mkdir()
    for file, some in BOXES.items():
        objects = "".join(
            f"<object><name>{b[0]}</name><pose>Left</pose><difficult>0</difficult><bndbox>"
            + "".join(f"<{side}>{v}</{side}>" for side, v in zip(SIDES, b[1:], strict=True))
            + "</bndbox></object>"
            for b in some
        )
        size = "<size><width>16</width><height>12</height><depth>3</depth></size>"
        (folder / f"{file}.xml").write_text(f"<annotation><filename>{file}</filename>{size}{objects}</annotation>")
    return folder


@both
@pytest.mark.parametrize("write", [box_csv, box_coco, box_voc])
def test_boxes(flat: Path, tmp_path: Path, format: str, write: Callable[[Path], Path]) -> None:
    """The same fields from all three; sizes that the index has itself are dropped without a word."""
    report = convert(flat, tmp_path / "out", format, labels=write(tmp_path))
    schema = streamkit.open(tmp_path / "out").schema
    names = tuple(f"objects/{name}" for name in ("class", *SIDES))
    assert {*names, "image"} <= {f.name for f in schema}
    assert not {"width", "height", "width_1", "height_1"} & {f.name for f in schema}
    assert not any("width" in notice for notice in report.notices)
    assert all(schema[name].shape == (None,) for name in names)
    assert schema["objects/class"].class_names == ("cat", "dog")
    found = by_key(tmp_path / "out", *names)
    for file, some in BOXES.items():
        expected = ([int(b[0] == "dog") for b in some], *([b[1 + i] for b in some] for i in range(4)))
        assert found[file] == expected
    loader = streamkit.Loader(tmp_path / "out", batch_size=6, shuffle=False, image_size=(12, 16))
    batch = loader[0]
    assert batch["objects/xmin"].shape == (6, 3)
    lengths = dict(zip(by_key(tmp_path / "out"), batch["objects/xmin_length"].tolist(), strict=True))
    assert lengths == {file: len(some) for file, some in BOXES.items()}


def test_boxes_are_variable_even_if_every_picture_has_one(flat: Path, tmp_path: Path) -> None:
    single = {file: some[:1] for file, some in BOXES.items()}
    convert(flat, tmp_path / "out", labels=box_csv(tmp_path, single))
    assert streamkit.open(tmp_path / "out").schema["objects/xmin"].shape == (None,)


@both
def test_a_picture_may_show_nothing(flat: Path, tmp_path: Path, format: str) -> None:
    data = {"images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(6)], "categories": [{"id": 1, "name": "cat"}]}
    data["annotations"] = [{"id": 0, "image_id": 2, "category_id": 1, "bbox": [1.5, 2, 3, 4]}]  # type: ignore[list-item]
    (tmp_path / "coco.json").write_text(json.dumps(data))
    convert(flat, tmp_path / "out", format, labels=tmp_path / "coco.json")
    found = by_key(tmp_path / "out", "objects/xmin", "objects/class")
    assert found == {f"{i}.jpg": ([1.5], [0]) if i == 2 else ([], []) for i in range(6)}
    assert streamkit.Loader(tmp_path / "out", batch_size=6)[0]["objects/xmin"].dtype == np.float64


def test_tensorflow_and_tfds_read_boxes(flat: Path, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")

    convert(flat, tmp_path / "out", labels=box_csv(tmp_path))
    keys = list(columns(tmp_path / "out", "key"))
    dataset = tfds.builder_from_directory(str(tmp_path / "out")).as_dataset(split="train", shuffle_files=False)
    for key, sample in zip(keys, dataset, strict=True):
        assert sample["objects"]["ymax"].numpy().tolist() == [b[4] for b in BOXES[key]]
        assert sample["objects"]["class"].numpy().tolist() == [int(b[0] == "dog") for b in BOXES[key]]
    wanted = {"objects/xmin": tf.io.FixedLenFeature([], tf.string)}
    for key, record in zip(keys, tf.data.TFRecordDataset(str(tmp_path / "out" / "train-00000.tfrecord")), strict=True):
        stored = tf.io.parse_single_example(record, wanted)["objects/xmin"]
        assert tf.io.decode_raw(stored, tf.int64).numpy().tolist() == [b[1] for b in BOXES[key]]


def test_h5py_reads_boxes(flat: Path, tmp_path: Path) -> None:
    convert(flat, tmp_path / "out", "hdf5", labels=box_csv(tmp_path), shard_size=1500)
    keys = list(columns(tmp_path / "out", "key"))
    with h5py.File(tmp_path / "out" / "train.h5") as file:
        offsets = file["objects/xmin_offsets"][:]
        for i, key in enumerate(keys):
            stored = file["objects/xmin"][offsets[i] : offsets[i + 1]].tobytes()
            assert np.frombuffer(stored, "<i8").tolist() == [b[1] for b in BOXES[key]]
        assert file["objects/class"].attrs["class_names"].tolist() == [b"cat", b"dog"]


# Sizes and other names that are taken


@pytest.mark.parametrize(("resize", "renamed"), [(None, False), (8, True)])
def test_sizes_of_the_label_file(flat: Path, tmp_path: Path, resize: int | None, renamed: bool) -> None:
    rows = [{"file": f"{i}.jpg", "width": 16, "height": 12} for i in range(6)]
    report = convert(flat, tmp_path / "out", labels=as_csv(rows, tmp_path / "x.csv"), resize=resize)
    schema = streamkit.open(tmp_path / "out").schema
    assert ("width_1" in schema, "height_1" in schema) == (renamed, renamed)
    assert any("width_1" in notice for notice in report.notices) == renamed
    if renamed:
        assert set(columns(tmp_path / "out", "width_1").values()) == {16}
        assert set(columns(tmp_path / "out", "width").values()) == {11}


def test_one_size_that_differs_keeps_the_column(flat: Path, tmp_path: Path) -> None:
    rows = [{"file": f"{i}.jpg", "width": 16 + (i == 3), "height": 12} for i in range(6)]
    convert(flat, tmp_path / "out", labels=as_csv(rows, tmp_path / "x.csv"))
    schema = streamkit.open(tmp_path / "out").schema
    assert "width_1" in schema and "height_1" not in schema


@both
def test_names_that_are_taken(flat: Path, tmp_path: Path, format: str) -> None:
    names = ("image", "key", "shard", "image.offset", "image_offsets", "key_1", "orientation", "channels")
    rows = [{"file": f"{i}.jpg"} | dict.fromkeys(names, i) for i in range(6)]
    convert(flat, tmp_path / "out", format, labels=as_csv(rows, tmp_path / "x.csv"))
    schema = streamkit.open(tmp_path / "out").schema
    added = {f.name for f in schema} - {"image"}
    assert added == {
        "image_1",
        "key_1",
        "shard_1",
        "image.offset_1",
        "image_offsets_1",
        "key_1_1",
        "orientation_1",
        "channels_1",
    }
    found = by_key(tmp_path / "out", *sorted(added))
    assert found == {f"{i}.jpg": (i,) * len(added) for i in range(6)}


@given(st.lists(st.sampled_from(["a", "a_1", "a_2", "b"]), unique=True))
def test_a_free_name_is_free(taken: list[str]) -> None:
    assert free_name("a", taken) not in taken
    assert free_name("z", taken) == "z"


# Which row is whose


@pytest.mark.fault(40)
def test_rows_without_items_and_items_without_rows(flat: Path, tmp_path: Path) -> None:
    """FAULTS 40: every one of them is listed, and nothing is published."""
    rows = [row for row in ROWS if row["file"] != "3.jpg"] + [{"file": "gone.jpg", "label": "a"}] * 2
    labels = as_csv(rows, tmp_path / "labels.csv")
    with pytest.raises(SourceError) as caught:
        convert(flat, tmp_path / "out", labels=labels)
    assert dict(caught.value.bad).keys() == {"3.jpg", "gone.jpg"}
    assert "no row in labels.csv" in dict(caught.value.bad)["3.jpg"]
    assert "not in the source" in dict(caught.value.bad)["gone.jpg"]
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "manifest.json").exists()
    report = convert(flat, tmp_path / "out", labels=labels, on_bad="skip")
    assert len(by_key(tmp_path / "out", "label")) == 5
    assert report.manifest is not None and report.manifest.skipped == 2


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_label_file_that_names_no_item_has_one_cause(flat: Path, tmp_path: Path, separator: str) -> None:
    """One error that shows what was compared; where the header holds another separator, it is that."""
    labels = as_csv(ROWS, tmp_path / "labels.csv", separator)
    with pytest.raises(SourceError, match="no row names an item of the source") as caught:
        convert(flat, tmp_path / "out", labels=labels, on_bad="skip")
    shown = labels.read_text().splitlines()[:2]
    assert all(repr(text) in caught.value.what for text in (*shown, "0.jpg")), caught.value.what
    assert f"The separator may be {separator!r}" in caught.value.hint
    other = as_csv([{**row, "file": f"x{row['file']}"} for row in ROWS], labels)
    with pytest.raises(SourceError, match=r"column 'file' names 'x0.jpg', and an item is '0.jpg'\. Name items by"):
        convert(flat, tmp_path / "out", labels=other)


def test_how_names_are_matched(tmp_path: Path) -> None:
    keys = ["a/1.jpg", "a/2.png", "b/1.jpg", "b/c/3.jpg", "b/c/4.jpg", "b/c/4.png"]
    beside = {"../img/a/1.jpg": "a/1.jpg"}
    cases = {
        "a/1.jpg": 0,
        "./a/1.jpg": 0,
        "a\\1.jpg": 0,
        "a/1": 0,
        "../img/a/1.jpg": 0,
        "2.png": 1,
        "2": 1,
        "1.jpg": -2,
        "c/3.jpg": 3,
        "c/3": 3,
        "4": -2,
        "4.png": 5,
        "/elsewhere/4.png": -1,
        "x.jpg": -1,
        "": -1,
    }
    assert dict(zip(cases, match(list(cases), keys, beside.get).tolist(), strict=True)) == cases


@given(st.lists(st.text("ab/.", min_size=1, max_size=6), unique=True, max_size=12), st.data())
def test_a_key_always_means_itself(keys: list[str], data: st.DataObject) -> None:
    keys = [key for key in keys if not key.startswith("./")]
    names = data.draw(st.permutations(keys))
    assert [keys[i] for i in match(names, keys, lambda name: None)] == names


def test_labels_beside_the_pictures(tmp_path: Path) -> None:
    """Names relative to the label file, to the source, and whole paths."""
    source = write_files(
        tmp_path / "set" / "img", {f"d/{i}.jpg": encoded(noise(4, 4, seed=i), "JPEG") for i in range(3)}
    )
    for names in (
        ["d/0.jpg", "d/1.jpg", "d/2.jpg"],
        [f"../img/d/{i}.jpg" for i in range(3)],
        [str(source / f"d/{i}.jpg") for i in range(3)],
    ):
        labels = write_files(tmp_path / "set", {"txt/l.csv": b""}) / "txt/l.csv"
        as_csv([{"file": name, "n": i} for i, name in enumerate(names)], labels)
        convert(source, tmp_path / "out", labels=labels, overwrite=True)
        assert columns(tmp_path / "out", "n") == {f"d/{i}.jpg": i for i in range(3)}


def test_the_label_of_the_file_goes_before_the_folder_s(tmp_path: Path) -> None:
    files = {f"{c}/{i}.jpg": encoded(noise(4, 4, seed=i), "JPEG") for i in range(2) for c in "xy"}
    source = write_files(tmp_path / "src", {**files, "beside.jpg": encoded(noise(4, 4, seed=9), "JPEG")})
    rows = [{"file": name, "n": 1, "label": "q" if name.endswith("0.jpg") else "r"} for name in [*files, "beside.jpg"]]
    convert(source, tmp_path / "own", labels=as_csv(rows, tmp_path / "x.csv"))
    assert streamkit.open(tmp_path / "own").class_names == ["q", "r"]
    assert len(by_key(tmp_path / "own", "label")) == 5
    (source / "beside.jpg").unlink()
    plain = [{"file": row["file"], "n": 1} for row in rows[:-1]]
    convert(source, tmp_path / "folders", labels=as_csv(plain, tmp_path / "x.csv"))
    assert streamkit.open(tmp_path / "folders").class_names == ["x", "y"]


def test_split_folders_with_labels(tmp_path: Path) -> None:
    files = {f"{s}/{i}.jpg": encoded(noise(4, 4, seed=i), "JPEG") for i in range(3) for s in ("train", "val")}
    source = write_files(tmp_path / "src", files)
    rows = [{"file": name, "label": name[0]} for name in files]
    convert(source, tmp_path / "out", labels=as_csv(rows, tmp_path / "x.csv"))
    for split, label in (("train", 0), ("val", 1)):
        assert set(columns(tmp_path / "out", "label", split).values()) == {label}


# Files that are no labels


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("x.csv", b"", SourceError),
        ("x.csv", b"file,a\n", SourceError),
        ("x.csv", b"file,a,a\n1,2,3\n", SourceError),
        ("x.csv", b"file,a\n1,2,3\n", SourceError),
        ("x.csv", b"file,a\n\xff,2\n", SourceError),
        ("x.jsonl", b"[1]\n", SourceError),
        ("x.jsonl", b"{]\n", SourceError),
        ("x.jsonl", b'{"file": "a", "x": 1}\n{"file": "b", "x": "text"}\n', SourceError),
        ("x.jsonl", b'{"file": null}\n', SourceError),
        ("x.jsonl", b'{"file": 1.5}\n', SourceError),
        ("x.jsonl", b"[" * 100_000, SourceError),
        ("x.parquet", b"PAR1", SourceError),
        ("x.json", b"{}", SourceError),
        ("x.json", b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2}]}', SourceError),
        ("x.json", b'{"images": 3}', SourceError),
        ("x.xml", b"<annotation>", SourceError),
        ("x.xml", b"<other/>", SourceError),
        ("x.xml", b"<annotation><object><name>x</name></object></annotation>", SourceError),
        ("x.xml", b'<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', RefusedError),
        ("x.txt", b"hello", UsageError),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_label_file(tmp_path: Path, name: str, data: bytes, error: type[Exception]) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=name.replace(".", r"\.")) as caught:
        read_labels(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_label_file_that_is_not_there(flat: Path, tmp_path: Path) -> None:
    run = cli("convert", flat, tmp_path / "out", "--format", "tfrecord", "--labels", tmp_path / "no.csv")
    assert run.returncode == 2 and "does not exist" in run.stderr


# Masks


def mask(i: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 5, (height, width), np.uint8)


def as_palette(values: np.ndarray) -> bytes:
    """A PNG whose palette gives the numbers colours that have nothing to do with them."""
    picture = PIL.Image.new("P", values.shape[::-1])
    picture.putdata(values.reshape(-1).tolist())
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9, 77, 1, 2])
    return saved(picture, "PNG")


@both
@pytest.mark.parametrize(
    "options", [{}, {"encode": "png"}, {"encode": "jpeg"}, {"encode": "raw"}, {"check": "header"}], ids=str
)
@pytest.mark.parametrize("palette", [False, True])
def test_masks_keep_every_number(
    flat: Path, tmp_path: Path, format: str, options: dict[str, Any], palette: bool
) -> None:
    masks = {f"{i}.png": as_palette(mask(i)) if palette else encoded(mask(i)) for i in range(6)}
    write_files(tmp_path / "masks", masks)
    convert(flat, tmp_path / "out", format, masks=tmp_path / "masks", **options)
    field = streamkit.open(tmp_path / "out").schema["mask"]
    assert (field.kind, field.shape) == ("mask", (12, 16, 1))
    loader = streamkit.Loader(tmp_path / "out", batch_size=6, shuffle=False, fields=("key", "mask", "image"))
    keys, found, images = loader[0]
    assert images.shape == (6, 12, 16, 3) and found.dtype == np.uint8
    for key, values in zip(keys, found, strict=True):
        np.testing.assert_array_equal(values[:, :, 0], mask(int(key[0])))


def test_masks_are_resized_to_the_nearest(flat: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "masks", {f"{i}.png": encoded(mask(i)) for i in range(6)})
    convert(flat, tmp_path / "out", masks=tmp_path / "masks", resize="24x32")
    keys, found = streamkit.Loader(tmp_path / "out", batch_size=6, fields=("key", "mask"))[0]
    for key, values in zip(keys, found, strict=True):
        np.testing.assert_array_equal(values[::2, ::2, 0], mask(int(key[0])))


def test_masks_of_three_channels_must_be_gray(flat: Path, tmp_path: Path) -> None:
    """One rule, whatever the format: numbers are gray values or palette indices, never colours."""
    for format, suffix in (("JPEG", "jpg"), ("PNG", "png")):
        beside = tmp_path / format
        for path in flat.iterdir():
            with PIL.Image.open(path) as image:
                gray = np.asarray(image.convert("L"))
            write_files(beside, {f"{path.stem}.{suffix}": encoded(np.stack([gray] * 3, axis=2), format)})
        convert(flat, tmp_path / f"out-{format}", masks=beside)
        stem = sorted(beside.iterdir())[0].stem
        with PIL.Image.open(flat / f"{stem}.jpg") as image:
            size = image.size[::-1]
        coloured = encoded(picture(*size, seed=5), format)
        write_files(beside, {f"{stem}.{suffix}": coloured})
        with pytest.raises(SourceError) as caught:
            convert(flat, tmp_path / "bad", masks=beside, overwrite=True)
        assert "colours" in dict(caught.value.bad)[f"{stem}.jpg"]


def test_masks_that_do_not_fit_are_bad_items(flat: Path, tmp_path: Path) -> None:
    masks = {
        "0.png": encoded(mask(0)),
        "1.png": encoded(mask(1, 16, 12)),
        "2.png": encoded(np.zeros((12, 16), np.uint16)),
        "3.png": encoded(noise(12, 16)),
        "4.png": b"hello",
        "other.png": encoded(mask(0)),
    }
    report = convert(flat, tmp_path / "out", masks=write_files(tmp_path / "masks", masks), on_bad="skip")
    reasons = {b.key: b.reason for b in report.skipped}
    assert set(reasons) == {f"{i}.jpg" for i in range(1, 6)}
    for i, said in {1: "16x12", 2: "16-bit", 3: "colours", 4: "unknown", 5: "no mask"}.items():
        assert said in reasons[f"{i}.jpg"]
    assert any("1 masks without a picture" in notice for notice in report.notices)


def test_a_turned_picture_and_its_upright_mask(tmp_path: Path) -> None:
    source = write_files(tmp_path / "src", {"a.jpg": rotated(picture(16, 12), 6)})
    masks = write_files(tmp_path / "masks", {"a.png": encoded(mask(0))})
    convert(source, tmp_path / "out", masks=masks)
    found = streamkit.Loader(tmp_path / "out", batch_size=1)[0]
    assert found["image"].shape == (1, 12, 16, 3)
    np.testing.assert_array_equal(found["mask"][0, :, :, 0], mask(0))


def test_masks_with_class_folders_and_split_folders(tmp_path: Path) -> None:
    names = [f"{split}/{c}/{i}" for split in ("train", "val") for c in "xy" for i in range(2)]
    source = write_files(tmp_path / "src", {f"{n}.jpg": encoded(picture(12, 16), "JPEG") for n in names})
    masks = write_files(tmp_path / "masks", {f"{n}.bmp": encoded(mask(i), "BMP") for i, n in enumerate(names)})
    convert(source, tmp_path / "out", masks=masks)
    for split in ("train", "val"):
        for key, values in by_key(tmp_path / "out", "mask", split=split).items():
            assert np.squeeze(values[0], 2).tolist() == mask(names.index(key[:-4])).tolist()


def test_masks_inside_the_source(tmp_path: Path) -> None:
    write_files(tmp_path, {"img/a.jpg": encoded(picture(4, 4), "JPEG"), "masks/a.png": encoded(mask(0, 4, 4))})
    with pytest.raises(UsageError, match="inside the source"):
        convert(tmp_path, tmp_path.parent / "out", masks=tmp_path / "masks")


# The same bytes


@one_quickly
def test_workers_change_nothing(flat: Path, tmp_path: Path, format: str) -> None:
    write_files(tmp_path / "masks", {f"{i}.png": encoded(mask(i)) for i in range(6)})
    args = ("--labels", box_csv(tmp_path), "--masks", tmp_path / "masks", "--format", format, "--shard-size", "1KB")
    for i, workers in enumerate((1, 3)):
        run = cli("convert", flat, tmp_path / f"out{i}", *args, "--workers", workers, env={"PYTHONHASHSEED": str(i)})
        assert run.returncode == 0, run.stderr
    found = digests(tmp_path / "out0")
    assert found == digests(tmp_path / "out1")
    assert len([name for name in found if name.startswith("train-0")]) > 2


def test_other_labels_are_another_source(flat: Path, tmp_path: Path) -> None:
    labels = as_csv(ROWS, tmp_path / "x.csv")
    convert(flat, tmp_path / "out", labels=labels)
    assert convert(flat, tmp_path / "out", labels=labels).already_done
    with pytest.raises(UsageError, match="labels is True there"):
        convert(flat, tmp_path / "out")
    as_csv([{**row, "weight": 1.5} for row in ROWS], labels)
    with pytest.raises(UsageError, match="source has changed"):
        convert(flat, tmp_path / "out", labels=labels)


# Ragged


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=8), st.data())
def test_ragged_takes_what_a_list_takes(lists: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged(np.array([value for one in lists for value in one], np.int64), np.cumsum([0, *map(len, lists)]))
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=10))
    taken = ragged.take(np.array(rows, np.int64))
    assert [taken[i].tolist() for i in range(len(taken))] == [lists[row] for row in rows]
