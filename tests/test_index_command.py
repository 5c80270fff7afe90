"""Adopted files stream as they stand: equal to TensorFlow's and h5py's own reading, or refused with a reason that helps."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pyarrow.compute as pc
import pytest
import reading
from converting import class_folders, digests, encoded, example, picture, python, write_files, write_records
from hypothesis import given
from hypothesis import strategies as st
from test_bad_input import bomb

import streamkit
import streamkit.native
from streamkit import DamagedError, RefusedError, SourceError, StreamkitError, UsageError
from streamkit.cli import main
from streamkit.index import ADOPT_AGAIN
from streamkit.reports.bench import bench
from streamkit.splits import Shard

Loader = streamkit.Loader


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


def in_order(out: Path, **options: Any) -> Any:
    """All samples of a dataset in storage order, as one batch."""
    return Loader(out, batch_size=10**6, shuffle=False, **options)[0]


def named(out: Path, **options: Any) -> dict[str, Any]:
    """The same as a dict of all fields."""
    names = [f.name for f in streamkit.open(out).schema]
    return dict(zip(names, in_order(out, fields=tuple(names), **options), strict=True))


def adopt(files: Any, out: Path, **options: Any) -> Any:
    return streamkit.index(files, out, **options).manifest


# TFRecord


def test_every_kind_of_feature_reads_as_tensorflow_reads_it(tf: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "image/encoded": encoded(picture(12, 16, seed=i), "PNG"),
            "label": int(i % 3),
            "weight": float(rng.normal()),
            "vector": rng.normal(size=7).astype(np.float32),
            "boxes": rng.normal(size=i % 4).astype(np.float32),
            "tokens": rng.integers(-(2**62), 2**62, i % 5),
            "pair": rng.integers(-5, 300, 2),
            "name": f"bild {i} ü",
            "blob": bytes(rng.integers(128, 256, 6, np.uint8)),
            "blobs": bytes(rng.integers(128, 256, i % 3, np.uint8)),
        }
        for i in range(23)
    ]
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, **row) for row in rows])
    manifest = adopt(path, tmp_path / "out")
    assert {f.name: (f.kind, f.shape, f.encoding) for f in manifest.schema} == {
        "image_encoded": ("image", (12, 16, 3), "png"),
        "label": ("label", (), "raw"),
        "weight": ("number", (), "raw"),
        "vector": ("array", (7,), "raw"),
        "boxes": ("array", (None,), "raw"),
        "tokens": ("array", (None,), "varint"),
        "pair": ("array", (2,), "varint"),
        "name": ("string", (), "raw"),
        "blob": ("array", (6,), "raw"),
        "blobs": ("array", (None,), "raw"),
    }
    batch = named(tmp_path / "out", dtype="uint8")
    var, fixed = tf.io.VarLenFeature, tf.io.FixedLenFeature
    spec = {
        "image/encoded": fixed([], tf.string),
        "label": fixed([], tf.int64),
        "weight": fixed([], tf.float32),
        "vector": fixed([7], tf.float32),
        "boxes": var(tf.float32),
        "tokens": var(tf.int64),
        "pair": fixed([2], tf.int64),
        "name": fixed([], tf.string),
        "blob": fixed([], tf.string),
        "blobs": fixed([], tf.string),
    }
    for i, record in enumerate(tf.data.TFRecordDataset(str(path))):
        theirs = tf.io.parse_single_example(record, spec)
        np.testing.assert_array_equal(batch["image_encoded"][i], tf.io.decode_png(theirs["image/encoded"]).numpy())
        for name in ("label", "weight", "vector", "pair"):
            np.testing.assert_array_equal(batch[name][i], theirs[name].numpy())
        for name in ("boxes", "tokens"):
            values = tf.sparse.to_dense(theirs[name]).numpy()
            np.testing.assert_array_equal(batch[name][i][: len(values)], values)
            assert not batch[name][i][len(values) :].any()
        assert batch["name"][i] == theirs["name"].numpy().decode()
        for name in ("blob", "blobs"):
            values = tf.io.decode_raw(theirs[name], tf.uint8).numpy()
            np.testing.assert_array_equal(batch[name][i][: len(values)], values)
    lengths = in_order(tmp_path / "out", dtype="uint8")["tokens_length"]
    assert lengths.tolist() == [i % 5 for i in range(23)]


def test_features_that_some_records_lack_are_lists_of_varying_length(tf: Any, tmp_path: Path) -> None:
    rows = [{"a": 1.5, "b": [], "c": "x"}, {"a": 2.5, "b": 7}, {"b": 9, "c": "z"}]
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, **row) for row in rows])
    adopt(path, tmp_path / "out")
    batch = in_order(tmp_path / "out")
    assert (batch["a"].tolist(), batch["a_length"].tolist()) == ([[1.5], [2.5], [0]], [1, 1, 0])
    assert (batch["b"].tolist(), batch["b_length"].tolist()) == ([[0], [7], [9]], [0, 1, 1])
    assert batch["c"].tolist() == ["x", "", "z"]


def test_what_has_no_place_is_left_out_with_its_reason(tf: Any, tmp_path: Path) -> None:
    png = encoded(picture(4, 4))
    rows = [{"x": [1.0, 2.0], "words": ["a", "b"], "empty": [], "left": png, "right": png} for _ in range(3)]
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, **row) for row in rows])
    adoption = streamkit.index(path, tmp_path / "out")
    assert [f.name for f in adoption.manifest.schema] == ["left", "x"]
    assert [notice.split()[0] for notice in adoption.notices] == ["empty", "right", "words"]


def unpacked_floats(values: Sequence[float]) -> bytes:
    """An Example whose floats are not packed, as proto2 writers leave them. Source: the protobuf encoding."""

    def message(number: int, body: bytes) -> bytes:
        return bytes([number << 3 | 2, len(body)]) + body

    floats = b"".join(b"\x0d" + np.float32(v).tobytes() for v in values)
    return message(1, message(1, message(1, b"x") + message(2, message(2, floats))))


def test_numbers_that_are_not_packed_are_read_where_they_can_be(tf: Any, tmp_path: Path) -> None:
    records = [unpacked_floats([i]) for i in range(3)]
    assert tf.train.Example.FromString(records[2]).features.feature["x"].float_list.value == [2.0]
    adopt(write_records(tf, tmp_path / "one.tfrecord", records), tmp_path / "one")
    assert in_order(tmp_path / "one").tolist() == [0, 1, 2]
    path = write_records(tf, tmp_path / "two.tfrecord", [unpacked_floats([1, 2])] * 3)
    with pytest.raises(SourceError, match="not packed"):
        adopt(path, tmp_path / "two")


@pytest.mark.parametrize("how", ["--label", "text", "path"])
def test_the_label_is_named(tf: Any, tmp_path: Path, how: str) -> None:
    rows = [{"x": [1.0, 2.0], "image/class/label": i % 4, "kind": "cat" if i % 2 else "ant"} for i in range(8)]
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, **row) for row in rows])
    label = {"--label": "image_class_label", "text": "kind", "path": None}[how]
    manifest = adopt(path, tmp_path / "out", label=label)
    found = in_order(tmp_path / "out", fields="label")
    assert found.dtype == np.int32
    if how == "text":
        assert manifest.class_names == ["ant", "cat"]
        assert found.tolist() == [i % 2 for i in range(8)]
        assert manifest.class_weights() == {0: 1.0, 1: 1.0}
    else:
        assert manifest.class_names == ["0", "1", "2", "3"]
        assert found.tolist() == [i % 4 for i in range(8)]


def test_features_named_as_the_index_s_own_columns(tf: Any, tmp_path: Path) -> None:
    """`width` says what the pictures say and goes; `height` does not, and is kept under another name."""
    rows = [{"image": encoded(picture(4, 5 + i)), "width": 5 + i, "height": 100, "key": f"k{i}"} for i in range(3)]
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, **row) for row in rows])
    adoption = streamkit.index(path, tmp_path / "out")
    assert [f.name for f in adoption.manifest.schema] == ["height_1", "image", "key_1"]
    table = adoption.manifest.index("train")
    assert table.column("height").to_pylist() == [4, 4, 4]
    assert table.column("height_1").to_pylist() == [100, 100, 100]
    assert table.column("key").to_pylist() == ["a.tfrecord#0", "a.tfrecord#1", "a.tfrecord#2"]


BAD_RECORDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], type[StreamkitError], str]] = {
    "a picture is missing": ([{"p": b"png"}, {"y": 1}], {}, SourceError, r"record 1.*no picture p"),
    "not all are pictures": ([{"p": b"png"}, {"p": b"hello"}], {}, SourceError, r"record 1: feature p: .*no picture"),
    "a label is missing": ([{"x": [1.0], "c": 1}, {"x": [2.0]}], {"label": "c"}, SourceError, "record 1.*the label c"),
    "a kind changes": ([{"x": 1.0}, {"x": 1}], {}, SourceError, "record 1: feature x: it holds int64 values, float"),
    "no such field": ([{"x": 1.0}], {"label": "z"}, UsageError, "no field 'z'. There are x"),
    "a label of floats": ([{"x": 1.0}], {"label": "x"}, UsageError, "a label is a whole number or text"),
    "a picture of floats": ([{"x": 1.0}], {"field": ["x=image"]}, UsageError, "which are no picture"),
    "text as a picture": ([{"x": "text"}], {"field": ["x=image"]}, SourceError, "record 0: feature x"),
    "another kind": ([{"x": 1.0}], {"field": ["x=sound"]}, UsageError, "Write NAME=image"),
    "two of one name": ([{"a/b": 1.0, "a_b": 2.0}], {}, SourceError, "two features would be the field a_b"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_records_that_do_not_make_samples_are_named(tf: Any, tmp_path: Path, case: str) -> None:
    rows, options, kind, message = BAD_RECORDS[case]
    png = encoded(picture(4, 4))
    rows = [{name: png if value == b"png" else value for name, value in row.items()} for row in rows]
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, **row) for row in rows])
    with pytest.raises(kind, match=message):
        adopt(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def sequence(tf: Any) -> bytes:
    step = tf.train.FeatureList(feature=[tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))])
    lists = tf.train.FeatureLists(feature_list={"steps": step})
    return bytes(tf.train.SequenceExample(feature_lists=lists).SerializeToString())


FOREIGN: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "gzip": (
        lambda tf, p: write_records(tf, p, [example(tf, x=1.0)], "GZIP"),
        r"GZIP-compressed.*gunzip -c a.tfrecord",
    ),
    "zlib": (lambda tf, p: write_records(tf, p, [example(tf, x=1.0)], "ZLIB"), "ZLIB-compressed as a whole"),
    "sequences": (lambda tf, p: write_records(tf, p, [sequence(tf)]), "SequenceExample.*tf.train.Example"),
    "gzip of sequences": (lambda tf, p: write_records(tf, p, [sequence(tf)], "GZIP"), "gunzip.*as tf.train.Example"),
    "other records": (lambda tf, p: write_records(tf, p, [b"hello world"]), "record 0: holds no tf.train.Example"),
    "nothing in them": (lambda tf, p: write_records(tf, p, [example(tf)]), "no feature can be adopted"),
    "html": (lambda tf, p: p.write_bytes(b"<!DOCTYPE html><html>404"), "looks like HTML"),
    "lfs": (lambda tf, p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "empty": (lambda tf, p: p.write_bytes(b""), "empty file"),
    "a plain gzip": (lambda tf, p: p.write_bytes(gzip.compress(b"some text")), "neither TFRecord nor HDF5"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_that_cannot_be_adopted_say_what_to_do(tf: Any, tmp_path: Path, case: str) -> None:
    make, message = FOREIGN[case]
    make(tf, tmp_path / "a.tfrecord")
    with pytest.raises(SourceError, match=message):
        adopt(tmp_path / "a.tfrecord", tmp_path / "out")


def test_either_command_tells_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(SourceError) as caught:
        adopt(tmp_path / "a.csv", tmp_path / "out")
    assert "streamkit convert" in str(caught.value.hint)
    (tmp_path / "a.tfrecord").touch()
    with pytest.raises(UsageError) as refused:
        streamkit.convert(tmp_path / "a.tfrecord", tmp_path / "out", format="tfrecord")
    assert "streamkit index" in str(refused.value.hint)


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_damaged_record_is_named_while_indexing(tf: Any, tmp_path: Path, harm: str) -> None:
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, x=[float(i)] * 9) for i in range(5)])
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        reading.flip(path, path.stat().st_size - 10)
    with pytest.raises(SourceError, match="record 4"):
        adopt(path, tmp_path / "out")


# HDF5

DTYPES = ["u1", "i1", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "?", "<c8"]
STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "whole chunks": {"chunks": (4, 6, 5)},
    "whole chunks, gzip": {"chunks": (4, 6, 5), "compression": "gzip"},
    "split chunks": {"chunks": (5, 4, 2)},
    "split chunks, gzip, shuffle": {"chunks": (5, 4, 2), "compression": "gzip", "shuffle": True},
}


def values_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    raw = np.random.default_rng(1).integers(0, 100, shape)
    return raw.astype(dtype) if dtype != "?" else raw % 2 == 0


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_reads_as_h5py_reads_it(tmp_path: Path, dtype: str, storage: str) -> None:
    values = values_of(dtype, (13, 6, 5))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, **STORAGE[storage])
    adopt(tmp_path / "a.h5", tmp_path / "out")
    found = in_order(tmp_path / "out")
    assert found.dtype == values.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, values)


FILTERS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip"},
    "shuffle and gzip": {"compression": "gzip", "shuffle": True},
    "gzip and fletcher32": {"compression": "gzip", "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "shuffle and lzf": {"compression": "lzf", "shuffle": True},
    "zstd": dict(hdf5plugin.Zstd()),
    "lz4": dict(hdf5plugin.LZ4()),
    "blosc2": dict(hdf5plugin.Blosc2()),
}


@pytest.mark.parametrize("chunks", [(4, 8, 6), (7, 3, 4)], ids=["whole", "split"])
@pytest.mark.parametrize("content", ["smooth", "noise"])
@pytest.mark.parametrize("name", FILTERS)
def test_every_known_filter_reads_as_h5py_reads_it(
    tmp_path: Path, name: str, content: str, chunks: tuple[int, ...]
) -> None:
    """Noise does not shrink, so that HDF5 leaves filters out of single chunks."""
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2**31, (20, 8, 6)) if content == "noise" else np.arange(960).reshape(20, 8, 6) // 7
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values.astype(np.int32), chunks=chunks, **FILTERS[name])
    adopt(tmp_path / "a.h5", tmp_path / "out")
    np.testing.assert_array_equal(in_order(tmp_path / "out"), values)


@st.composite
def chunked(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """A shape, a chunk shape, and rows that are written, at random."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=4)))
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    written = draw(st.lists(st.integers(0, shape[0] - 1), max_size=shape[0], unique=True))
    return shape, chunks, written


@given(chunked(), st.sampled_from([None, "gzip"]), st.sampled_from([0, -3]), st.sampled_from(["<i2", ">i2"]))
def test_slabs_of_any_shape_read_as_h5py_reads_them(
    tmp_path_factory: pytest.TempPathFactory, made: Any, compression: str | None, fill: int, dtype: str
) -> None:
    """Chunks that split the samples, stick out at the edges or were never written."""
    shape, chunks, written = made
    folder = tmp_path_factory.mktemp("slabs")
    with h5py.File(folder / "a.h5", "w") as file:
        x = file.create_dataset("x", shape, dtype, chunks=chunks, compression=compression, fillvalue=fill)
        for row in written:
            x[row, : shape[1] // 2 + 1] = row + 1
        expected = x[:]
    adopt(folder / "a.h5", folder / "out")
    loader = Loader(folder / "out", batch_size=3, num_workers=0)
    seen = np.concatenate([np.asarray(loader.rows(0, i)) for i in range(len(loader))])
    assert sorted(seen.tolist()) == list(range(shape[0]))
    np.testing.assert_array_equal(np.concatenate(list(loader)), expected[seen])


def test_chunks_may_be_larger_than_the_dataset(tmp_path: Path) -> None:
    values = np.arange(3 * 5 * 5, dtype=np.float32).reshape(3, 5, 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(16, 8, 2), maxshape=(None, None, None), compression="gzip")
    adopt(tmp_path / "a.h5", tmp_path / "out")
    np.testing.assert_array_equal(in_order(tmp_path / "out"), values)


def test_files_with_a_user_block_and_the_latest_layout(tmp_path: Path) -> None:
    values = np.arange(40 * 6 * 4, dtype=np.int32).reshape(40, 6, 4)
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024, libver="latest") as file:
        file.create_dataset("plain", data=values)
        file.create_dataset("whole", data=values, chunks=(7, 6, 4), compression="gzip")
        file.create_dataset("split", data=values, chunks=(9, 3, 2), compression="gzip")
    adopt(tmp_path / "a.h5", tmp_path / "out")
    for name, found in named(tmp_path / "out").items():
        np.testing.assert_array_equal(found, values, err_msg=name)


def test_columns_labels_and_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train/x"] = rng.normal(size=(20, 3, 2))
        file["train/y"] = (np.arange(20) % 5).reshape(20, 1)
        file["time"] = np.arange(20, dtype=">f8")
        file["classes"] = np.arange(5)
    adoption = streamkit.index(tmp_path / "a.h5", tmp_path / "out", label="train/y")
    assert [(f.name, f.kind) for f in adoption.manifest.schema] == [
        ("label", "label"),
        ("time", "number"),
        ("train_x", "array"),
    ]
    assert adoption.notices == ("classes has 5 rows, not 20: it was left",)
    batch = named(tmp_path / "out", where=pc.field("label") == 3)
    assert batch["label"].tolist() == [3] * 4
    assert batch["time"].tolist() == [3, 8, 13, 18]
    assert batch["time"].dtype == np.dtype("f8")


def test_pixels_become_pictures_when_named(tmp_path: Path) -> None:
    pixels = np.stack([picture(12, 10, seed=i) for i in range(9)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = pixels
        file.create_dataset("gray", data=pixels[..., 0], chunks=(3, 5, 4), compression="gzip")
        file["y"] = np.arange(9) % 2
    adopt(tmp_path / "a.h5", tmp_path / "out", field={"x": "image", "gray": "image"})
    batch = named(tmp_path / "out", dtype="uint8")
    np.testing.assert_array_equal(batch["x"], pixels)
    np.testing.assert_array_equal(batch["gray"], np.repeat(pixels[..., :1], 3, axis=3))
    images, labels = next(iter(Loader(tmp_path / "out", fields=("x", "label"), image_size=(6, 5), batch_size=4)))
    assert (images.shape, images.dtype, labels.dtype) == ((4, 6, 5, 3), np.float32, np.int32)
    with pytest.raises(UsageError, match="y has one number a row"):
        adopt(tmp_path / "a.h5", tmp_path / "other", field={"y": "image"})


def link(kind: str) -> Callable[[Any, Path], None]:
    def make(file: Any, folder: Path) -> None:
        with h5py.File(folder / "other.h5", "w") as other:
            other["x"] = np.ones((4, 3))
        if kind == "soft":
            file["x"] = h5py.SoftLink("/nowhere")
        elif kind == "external link":
            file["x"] = h5py.ExternalLink("other.h5", "/x")
        elif kind == "external storage":
            file.create_dataset("x", (4, 3), "f4", external=[(str(folder / "raw.bin"), 0, 96)])
        else:
            layout = h5py.VirtualLayout((4, 3), "f8")
            layout[:] = h5py.VirtualSource("other.h5", "x", (4, 3))
            file.create_virtual_dataset("x", layout)

    return make


def scale_offset(file: Any, folder: Path) -> None:
    file.create_dataset("x", data=np.arange(40).reshape(8, 5), chunks=(2, 5), scaleoffset=0)


REFUSED: dict[str, tuple[Callable[[Any, Path], Any], type[StreamkitError], str]] = {
    "soft link": (link("soft"), RefusedError, "x is a link"),
    "external link": (link("external link"), RefusedError, "x is a link"),
    "external storage": (link("external storage"), RefusedError, "x lies in other files"),
    "virtual": (link("virtual"), RefusedError, "x lies in other files"),
    "unknown filter": (scale_offset, SourceError, "x went through the filter scaleoffset"),
    "vlen": (lambda f, _: f.create_dataset("x", (3, 2), h5py.vlen_dtype("u1")), SourceError, "x .*vlen"),
    "text": (lambda f, _: f.create_dataset("x", data=[["a"], ["b"]]), SourceError, "x is not an array of numbers"),
    "never written": (lambda f, _: f.create_dataset("x", (4, 3), "f4"), SourceError, "x was never written"),
    "columns alone": (lambda f, _: f.create_dataset("x", data=np.arange(4)), SourceError, "no payload"),
    "no rows": (lambda f, _: f.create_dataset("x", (0, 3), "f4"), SourceError, "no rows"),
    "nothing": (lambda f, _: None, SourceError, "no dataset of numbers"),
    "places without end": (
        lambda f, _: f.create_dataset("x", (10**12, 3), "u1", chunks=(1, 3)),
        SourceError,
        "places for 1000000000000 chunks",
    ),
    "a chunk as large as memory": (
        lambda f, _: f.create_dataset("x", (4, 1 << 30), "u1", chunks=(1, 1 << 30)),
        SourceError,
        "too much memory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hdf5_that_cannot_be_adopted_is_refused_with_its_reason(tmp_path: Path, case: str) -> None:
    make, kind, message = REFUSED[case]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, tmp_path)
    with pytest.raises(kind, match=message):
        adopt(tmp_path / "a.h5", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_compact_dataset_has_no_addresses(tmp_path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((3, 2))
        h5py.Dataset(h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, space, dcpl=plist))[:] = 1
    with pytest.raises(SourceError, match="compact"):
        adopt(tmp_path / "a.h5", tmp_path / "out")


def test_files_of_one_dataset_must_fit_together(tmp_path: Path) -> None:
    for name, shape in {"a.h5": (4, 3), "b.h5": (4, 2)}.items():
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = np.zeros(shape)
    with pytest.raises(SourceError, match=r"b.h5: x is float64 \(2,\) raw, in a.h5 it is float64 \(3,\) raw"):
        adopt([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out")


# Image folders


def test_an_image_folder_streams_as_its_conversion_does(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"cat": 11, "dog": 7})
    before = digests(source)
    adopt(source, tmp_path / "out")
    reading.convert(source, tmp_path / "converted")
    options = {"batch_size": 5, "image_size": (8, 10), "seed": 3, "crop": "random", "flip": True}
    ours, theirs = Loader(tmp_path / "out", **options), Loader(tmp_path / "converted", **options)
    assert ours.class_names == theirs.class_names == ["cat", "dog"]
    assert reading.keys_of(tmp_path / "out") == reading.keys_of(tmp_path / "converted")
    assert reading.all_same(list(ours), list(theirs))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["index-train.parquet", "manifest.json"]
    assert digests(source) == before


def test_split_folders_and_odd_names(tmp_path: Path) -> None:
    jpeg = encoded(picture(6, 6), "JPEG")
    names = ["train/a/ü b%2f:.jpg", "train/a/x\ny.jpg", "train/b/back\\slash.jpg", "valid/b/1.jpg"]
    source = write_files(tmp_path / "src", dict.fromkeys(names, jpeg))
    os.rename(source / names[0], os.fsencode(source) + b"/train/a/\xff\xfe.jpg")
    manifest = adopt(source, tmp_path / "out")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 3, "val": 1}
    for split in ("train", "val"):
        assert np.ptp(in_order(tmp_path / "out", split=split)[0], axis=0).max(initial=0) == 0


def test_bad_pictures_are_all_named(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 3})
    files = {"a/bomb.png": bomb(10_000, 10_000), "a/empty.jpg": b"", "a/html.png": b"<html>", "a/text.jpg": b"hello"}
    write_files(source, files)
    with pytest.raises(SourceError, match="4 of 7 items") as caught:
        adopt(source, tmp_path / "out")
    assert [key for key, _ in caught.value.bad] == sorted(files)
    assert dict(caught.value.bad)["a/bomb.png"] == "more than 64000000 pixels"  # `index` has no --max-pixels
    assert caught.value.hint.startswith(
        "Nothing was published. Mend or remove them and run it again, or use `streamkit c"
    )
    assert "pass --on-bad" not in str(caught.value)


@pytest.mark.parametrize("harm", ["gone", "longer", "flipped", "link"])
def test_a_picture_that_changed_is_named(tmp_path: Path, harm: str) -> None:
    source = class_folders(tmp_path / "src", {"a": 4})
    adopt(source, tmp_path / "out")
    path = source / "a" / "0002.jpg"
    if harm == "gone":
        path.unlink()
    elif harm == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    elif harm == "flipped":
        reading.flip(path, 200)
    else:
        shutil.copy(path, tmp_path / "copy.jpg")
        path.unlink()
        path.symlink_to(tmp_path / "copy.jpg")
    with pytest.raises(StreamkitError, match=r"0002\.jpg") as caught:
        list(Loader(tmp_path / "out", batch_size=2, num_workers=0))
    assert isinstance(caught.value, DamagedError) or harm == "link"


def test_keys_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 1})
    adopt(source, tmp_path / "out")
    for key in ("../src/a/0000.jpg", "/etc/passwd", "a/../a/0000.jpg"):
        reading.alter_index(tmp_path / "out", reading.with_column("key", [key]))
        with pytest.raises(RefusedError):
            list(Loader(tmp_path / "out", root=source, num_workers=0))


# Where the files lie


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Two HDF5 files in data/: x[i] is all i, in 40 rows; and what `index` makes of them in out/."""
    (tmp_path / "data").mkdir()
    for i, name in enumerate(("a.h5", "b.h5")):
        with h5py.File(tmp_path / "data" / name, "w") as file:
            rows = np.arange(20 * i, 20 * i + 20)
            file["x"] = np.repeat(rows.astype(np.float32)[:, None], 8, 1)
            file["y"] = rows % 4
    adopt([tmp_path / "data" / "a.h5", tmp_path / "data" / "b.h5"], tmp_path / "out")
    return tmp_path


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another user, who indexed nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))


def test_moved_together_the_files_are_found(arrays: Path) -> None:
    (arrays / "new").mkdir()
    shutil.move(arrays / "data", arrays / "new" / "data")
    shutil.move(arrays / "out", arrays / "new" / "out")
    assert sorted(in_order(arrays / "new" / "out")[0][:, 0].tolist()) == list(range(40))


def test_moved_alone_the_root_is_named(arrays: Path) -> None:
    shutil.move(arrays / "data", arrays / "elsewhere")
    with pytest.raises(DamagedError, match=r"missing.*root="):
        Loader(arrays / "out")
    (problem,) = streamkit.verify(arrays / "out").problems  # not one a file
    assert problem.file == str(arrays / "data") and "folder" in problem.reason
    assert streamkit.verify(arrays / "out", root=arrays / "elsewhere").ok
    assert len(in_order(arrays / "out", root=arrays / "elsewhere")[0]) == 40
    for seq in (streamkit.sequence(arrays / "out", root=arrays / "elsewhere", batch_size=40),):
        assert len(seq[0][0]) == 40


@pytest.mark.fault(81)
def test_a_stranger_s_manifest_opens_nothing_outside_its_folder(arrays: Path, stranger: None) -> None:
    """Case 81: what the manifest says is not followed out of its folder, until the user names the root."""
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    with pytest.raises(RefusedError, match=r"did not index them.*root="):
        Loader(arrays / "out")
    assert not [path for path in opened if path.startswith(str(arrays / "data"))]
    assert len(in_order(arrays / "out", root=arrays / "data")[0]) == 40


@pytest.mark.parametrize("gone", ["the folder", "files in it"])
def test_commands_are_told_the_root(tmp_path: Path, gone: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What advises --root has it, and none ends in a traceback."""
    data, out = reading.picture_folder(tmp_path / "data", [(8, 8)] * 8), str(tmp_path / "out")
    adopt(data, out)
    shutil.copytree(data, tmp_path / "new")
    shutil.rmtree(data)
    if gone != "the folder":
        data.mkdir()
    page = ["--html", str(tmp_path / "page.html")]
    for command in (["bench", out, "--samples", "4"], ["info", out, "--samples", "1"], ["preview", out, *page]):
        assert main(command) == 4
        stderr = capsys.readouterr().err.splitlines()[-1]
        assert "missing" in stderr and "--root" in stderr
        if command[0] != "bench":  # measures for seconds
            assert main([*command, "--root", str(tmp_path / "new")]) == 0
    assert bench(out, n_samples=4, budget_s=0.01, root=tmp_path / "new")["samples"] == 8
    capsys.readouterr()
    assert main(["info", out, "--root", str(tmp_path / "new")]) == 2
    assert "--samples" in capsys.readouterr().err


def test_files_inside_the_dataset_s_own_folder_need_no_root(arrays: Path, stranger: None) -> None:
    adopt([arrays / "data" / "a.h5"], arrays / "data")
    shutil.rmtree(arrays / "theirs")
    assert streamkit.open(arrays / "data").root == "."
    assert len(in_order(arrays / "data")[0]) == 20


@pytest.mark.parametrize("file", ["../a.h5", "/etc/passwd", "a/../../x", "a//b", "", ".", "a\\b", "a\nb"])
def test_shard_names_stay_below_the_root(file: str) -> None:
    with pytest.raises(RefusedError):
        Shard(file, 1, 1, "")


def test_paths_are_stored_below_the_root(arrays: Path) -> None:
    manifest = adopt([arrays / "data" / "a.h5"], arrays / "other", root=arrays)
    assert [s.file for s in manifest.splits["train"].shards] == ["data/a.h5"]
    assert manifest.root == ".."
    assert str(arrays) not in (arrays / "other" / "manifest.json").read_text()
    with pytest.raises(UsageError, match="does not lie below the root"):
        adopt([arrays / "data" / "a.h5"], arrays / "third", root=arrays / "out")
    with pytest.raises(UsageError, match="adopted files"):
        reading.convert(reading.numbered(arrays / "in", 5), arrays / "converted")
        Loader(arrays / "converted", root=arrays)


def test_a_user_who_cannot_keep_notes_is_told(arrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (arrays / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(arrays / "file"))
    adoption = streamkit.index(arrays / "data" / "a.h5", arrays / "other")
    assert "reading needs root=" in adoption.notices[-1]


def test_a_link_to_a_file_adopts_the_file(arrays: Path) -> None:
    (arrays / "link.h5").symlink_to(arrays / "data" / "a.h5")
    manifest = adopt(arrays / "link.h5", arrays / "other")
    assert [s.file for s in manifest.splits["train"].shards] == ["a.h5"]


# Damage


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_found_at_opening(arrays: Path, change: int) -> None:
    path = arrays / "data" / "b.h5"
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(DamagedError, match=r"b.h5: the file has \d+ bytes, the manifest says \d+.*streamkit index"):
        Loader(arrays / "out")


@pytest.mark.fault(41)
@pytest.mark.parametrize("chunks", [None, (5, 8), (5, 3)])
def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path, chunks: tuple[int, int] | None) -> None:
    """Case 41."""
    values = np.random.default_rng(0).integers(0, 9, (20, 8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", data=values, chunks=chunks, compression="gzip" if chunks else None)
        at = x.id.get_offset() + 9 * 64 if chunks is None else x.id.get_chunk_info_by_coord((5, 0)).byte_offset + 9
    adopt(tmp_path / "a.h5", tmp_path / "out")
    reading.flip(tmp_path / "a.h5", at)
    with pytest.raises(
        DamagedError, match=r"a.h5 record \d+ \(a.h5#\d+\): crc32c is .*run `streamkit index` again"
    ) as e:
        in_order(tmp_path / "out")
    assert e.value.record in range(5, 10)
    np.testing.assert_array_equal(in_order(tmp_path / "out", rows=range(5)), values[:5])


def test_a_flipped_bit_of_a_record_is_found_when_it_is_read(tf: Any, tmp_path: Path) -> None:
    path = write_records(tf, tmp_path / "a.tfrecord", [example(tf, x=[float(i)] * 9) for i in range(5)])
    adopt(path, tmp_path / "out")
    reading.flip(path, path.stat().st_size - 10)
    with pytest.raises(DamagedError, match=r"a.tfrecord record 4 \(a.tfrecord#4\): crc32c"):
        in_order(tmp_path / "out")


# As any dataset


@pytest.fixture(scope="module")
def slabs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows of (6, 4) in chunks of (16, 3, 2), so in 13 slabs, where x[i] is all i; in out/."""
    root = tmp_path_factory.mktemp("slabs")
    with h5py.File(root / "a.h5", "w") as file:
        rows = np.broadcast_to(np.arange(200, dtype=np.int32)[:, None, None], (200, 6, 4))
        file.create_dataset("x", data=rows, chunks=(16, 3, 2), compression="gzip")
        file["y"] = np.arange(200) % 3
    adopt(root / "a.h5", root / "out")
    return root / "out"


def order(batches: Iterable[Any]) -> list[int]:
    return [int(row) for x, _ in batches for row in x[:, 0, 0]]


def test_length_shuffle_resume_where_and_parts(slabs: Path) -> None:
    loader = Loader(slabs, batch_size=32, seed=5)
    assert len(loader) == 7
    epochs = [order(loader), order(loader)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(200))] * 2
    assert epochs[0] != epochs[1]
    resumed = Loader(slabs, batch_size=32, seed=5)
    resumed.resume(loader.cursor_at(3))
    assert order(resumed) == epochs[0][96:]
    assert sorted(order(Loader(slabs, split="train[:80%]"))) == list(range(160))
    assert sorted(order(Loader(slabs, where=pc.field("label") == 1))) == list(range(1, 200, 3))
    whole = [Loader(slabs, batch_size=16, seed=5, shard_index=i, num_shards=2) for i in (0, 1)]
    assert sorted(order(whole[0]) + order(whole[1])) == list(range(200))


def test_every_chunk_is_decoded_once_an_epoch(slabs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window keeps to what the budget holds, with threads that share slabs under way."""
    import streamkit.chunks

    calls: list[int] = []
    decode = streamkit.chunks.decode_chunk
    monkeypatch.setattr(streamkit.chunks, "decode_chunk", lambda *a: calls.append(1) or decode(*a))
    slab_nbytes = 16 * 24 * 4
    for budget, batch_size in ((32 * slab_nbytes, 10), (64 * slab_nbytes, 7)):
        loader = Loader(slabs, batch_size=batch_size, memory_budget=budget, num_workers=3)
        calls.clear()
        assert sorted(order(loader)) == list(range(200))
        assert len(calls) == 13 * 4


def test_slabs_without_the_compiled_part(slabs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = in_order(slabs)
    monkeypatch.setattr(streamkit.native, "_library", None)
    assert reading.same(in_order(slabs), expected)


def test_a_damaged_slab_is_an_error_in_every_thread(slabs: Path, tmp_path: Path) -> None:
    shutil.copytree(slabs.parent, tmp_path / "copy")
    with h5py.File(tmp_path / "copy" / "a.h5") as file:
        at = file["x"].id.get_chunk_info_by_coord((32, 3, 2)).byte_offset
    reading.flip(tmp_path / "copy" / "a.h5", at + 20)
    loader = Loader(tmp_path / "copy" / "out", batch_size=8, shuffle=False, num_workers=3)
    for i in range(2):
        with pytest.raises(DamagedError, match=r"a.h5 record (3[2-9]|4[0-7]) "):
            list(loader)
        assert i == 0 or order([loader[0]]) == list(range(8))


def test_tf_data_keras_and_threads_give_the_same(tf: Any, slabs: Path) -> None:
    options = {"batch_size": 32, "seed": 1}
    expected = list(Loader(slabs, num_workers=0, **options))
    dataset = streamkit.dataset(slabs, num_workers=3, **options)
    assert reading.all_same([(x.numpy(), y.numpy()) for x, y in dataset], expected)
    assert dataset.element_spec[0].shape == (None, 6, 4)
    seq = streamkit.sequence(slabs, **options)
    assert reading.all_same([seq[i] for i in range(len(seq))], expected)


@pytest.mark.fault(76)
def test_ten_thousand_files_under_64_descriptors(tmp_path: Path) -> None:
    """Case 76, for loose files and for many adopted ones."""
    jpeg = encoded(picture(4, 4), "JPEG")
    for i in range(2000):
        write_files(tmp_path / "src", {f"c{i % 3}/{i}.jpg": jpeg + b"\0" * (i % 3)})
    for i in range(100):
        (tmp_path / "h5").mkdir(exist_ok=True)
        with h5py.File(tmp_path / "h5" / f"{i:03d}.h5", "w") as file:
            file["x"] = np.full((2, 3), i)
    code = (
        "import resource, sys, streamkit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "for name, n in (('src', 2000), ('h5', 200)):\n"
        "    out = sys.argv[1] + '/out-' + name\n"
        "    streamkit.index(sys.argv[1] + '/' + name, out)\n"
        "    loader = streamkit.Loader(out, memory_budget='1MB')\n"
        "    batches = list(loader)\n"
        "    n_read = sum(len(b[0] if isinstance(b, tuple) else b) for b in batches)\n"
        "    assert n_read == loader.n_samples == n, n_read\n"
        "    assert len(streamkit.open(out).splits['train'].shards) == {'src': 1, 'h5': 100}[name]\n"
    )
    run = python(code, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]


# The command


def test_the_command_prints_schema_and_notes(arrays: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(arrays / "data" / name) for name in ("a.h5", "b.h5")]
    assert main(["index", *files, "--out", str(arrays / "cli"), "--label", "y"]) == 0
    said = capsys.readouterr()
    assert "x      array  float32  8       raw" in said.out
    assert "40 samples, 4 classes" in said.out
    assert main(["index", *files, "--out", str(arrays / "cli"), "--json", "--quiet"]) == 0
    assert '"samples": 40' in capsys.readouterr().out
    assert main(["index", str(arrays / "none.h5"), "--out", str(arrays / "x")]) == 2


def test_outputs_that_hold_something_else_are_kept(arrays: Path) -> None:
    file = arrays / "data" / "a.h5"
    reading.convert(reading.numbered(arrays / "in", 5), arrays / "converted")
    write_files(arrays / "full", {"precious.txt": b"x"})
    before = digests(arrays / "converted") | digests(arrays / "full")
    for name in ("converted", "full", "full/precious.txt"):
        with pytest.raises(UsageError, match="output"):
            adopt(file, arrays / name)
    assert digests(arrays / "converted") | digests(arrays / "full") == before


def test_indexing_again_brings_an_index_up_to_date(arrays: Path) -> None:
    files = [arrays / "data" / "a.h5", arrays / "data" / "b.h5"]
    before = digests(arrays / "out")
    adopt(files, arrays / "out")
    assert digests(arrays / "out") == before
    with h5py.File(files[1], "r+") as file:
        file["x"][:] = -1
    adopt(files, arrays / "out")
    assert in_order(arrays / "out")[0].min() == -1


def test_splits_are_told_by_file_names(tmp_path: Path) -> None:
    for name in ("set-train-00000-of-00002.h5", "set-train-00001-of-00002.h5", "set-validation.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = np.zeros((3, 2))
    manifest = adopt(tmp_path, tmp_path / "out")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 6, "val": 3}


@pytest.mark.parametrize("first", ["", "import streamkit.index", "import streamkit; streamkit.open; streamkit.Loader"])
def test_index_can_be_called_whatever_was_imported_first(tmp_path: Path, first: str) -> None:
    """`streamkit.index` is a function to users, and a module to Python's import system."""
    source = class_folders(tmp_path / "src", {"a": 2})
    code = f"import sys\n{first}\nimport streamkit\nstreamkit.index(sys.argv[1], sys.argv[2])\n"
    code += "print('tensorflow' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, source, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "False\n"), run.stderr


def test_a_tfrecord_made_here_is_adopted_as_it_is_read(tmp_path: Path) -> None:
    table = reading.numbered(tmp_path / "in", 30)
    reading.convert(table, tmp_path / "converted", "tfrecord", compression="zlib")
    adopt(tmp_path / "converted" / "train-00000.tfrecord", tmp_path / "out")
    here, there = in_order(tmp_path / "out"), in_order(tmp_path / "converted")
    assert here["label"].tolist() == there[1].tolist()
    for packed, length, row in zip(here["x"], here["x_length"], there[0], strict=True):
        assert zlib.decompress(bytes(packed[:length])) == row.tobytes()


@pytest.mark.parametrize("mode", [{}, {"quick": True}, {"full": True}])
@pytest.mark.parametrize("kind", ["folder", "tfrecord", "contiguous", "chunked", "slabs"])
def test_verify_checks_adopted_files(tmp_path: Path, kind: str, mode: dict[str, bool]) -> None:
    """No false alarm, and damage is named; repair leaves a user's own files alone."""
    source, out = tmp_path / "src", tmp_path / "out"
    source.mkdir()
    if kind == "folder":
        class_folders(source, {"a": 3})
        file = source / "a" / "0001.jpg"
    elif kind == "tfrecord":
        reading.convert(class_folders(tmp_path / "pictures", {"a": 8}), tmp_path / "made")
        file = Path(shutil.copy(tmp_path / "made" / "train-00000.tfrecord", source))
    else:
        chunks = {"contiguous": None, "chunked": (4, 8, 8), "slabs": (16, 3, 4)}[kind]
        file = source / "x.h5"
        with h5py.File(file, "w") as h5:
            values = np.random.default_rng(0).integers(0, 99, (40, 8, 8), np.int16)
            h5.create_dataset("x", data=values, chunks=chunks, compression=None if chunks is None else "gzip")
    adopt(source if kind == "folder" else file, out)
    assert streamkit.verify(out, **mode).ok
    with pytest.raises(UsageError, match="adopted"):
        streamkit.repair(out, drop=True)
    if mode.get("quick"):
        file.write_bytes(file.read_bytes() + b"x")
        assert not streamkit.verify(out, **mode).ok
        return
    before = file.read_bytes()
    at = before.rindex(values[39].tobytes()[:16]) if kind == "contiguous" else len(before) // 2
    reading.flip(file, at)
    report = streamkit.verify(out, **mode)
    assert not report.ok and report.hint == ADOPT_AGAIN
