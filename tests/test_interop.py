"""Nobody is locked in: TensorFlow, TFDS, h5py, pandas and pyarrow read what streamkit writes, without streamkit."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
from converting import (
    arrays,
    assert_same_picture,
    columns,
    encoded,
    index_rows,
    noise,
    payloads,
    picture,
    pillow,
    saved,
    write_files,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import streamkit
from streamkit.codecs import image
from streamkit.schema import Field, Schema
from streamkit.shards import Record, example, shard_format
from streamkit.shards.tfrecord import read_records

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")
pd = pytest.importorskip("pandas")
pq = pytest.importorskip("pyarrow.parquet")

# The Example writer against TensorFlow's parser

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=32)
VALUES = st.one_of(
    st.tuples(st.just("bytes"), st.binary(max_size=200)),
    st.tuples(st.just("int64"), st.lists(INTS, min_size=1, max_size=4).map(tuple)),
    st.tuples(st.just("float"), st.lists(FLOATS, min_size=1, max_size=4).map(tuple)),
)


def our_example(features: dict[str, tuple[str, Any]]) -> bytes:
    """An Example by streamkit's writer, entries sorted by name as the shards have them."""
    body = b""
    for name, (kind, value) in sorted((name.encode(), value) for name, value in features.items()):
        if kind == "bytes":
            body += example.bytes_entry(name, len(value)) + value
        else:
            body += (example.int64_entry if kind == "int64" else example.float_entry)(name, value)
    return example.frame(len(body)) + body


def their_example(features: dict[str, tuple[str, Any]]) -> Any:
    """The same Example by TensorFlow's protobuf."""
    lists = {
        "bytes": lambda v: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])),
        "int64": lambda v: tf.train.Feature(int64_list=tf.train.Int64List(value=v)),
        "float": lambda v: tf.train.Feature(float_list=tf.train.FloatList(value=v)),
    }
    feature = {name: lists[kind](value) for name, (kind, value) in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature))


@given(features=st.dictionaries(NAMES, VALUES, max_size=5))
@settings(max_examples=300)
def test_the_writer_writes_what_protobuf_writes(features: dict[str, tuple[str, Any]]) -> None:
    """Byte for byte, but for names that begin like another: protobuf's own implementations order those differently."""
    ours, theirs = our_example(features), their_example(features)
    assert tf.train.Example.FromString(ours) == theirs or "nan" in str(theirs)
    names = [name.encode() for name in features]
    if not any(a != b and a.startswith(b) for a in names for b in names):
        assert theirs.SerializeToString(deterministic=True) == ours
    else:
        assert len(theirs.SerializeToString()) == len(ours)


@given(features=st.dictionaries(NAMES, VALUES, max_size=5))
@settings(max_examples=150)
def test_the_parser_reads_what_protobuf_writes(features: dict[str, tuple[str, Any]]) -> None:
    data = their_example(features).SerializeToString()
    found = example.parse(data)
    assert set(found) == set(features)
    for name, (kind, value) in features.items():
        assert found[name].kind == kind
        if kind == "bytes":
            assert bytes(found[name].values[0]) == value
            assert data[found[name].start : found[name].stop] == value
        else:
            np.testing.assert_array_equal(found[name].values, np.array(value, "f4" if kind == "float" else "i8"))


@given(
    data=st.binary(max_size=80), features=st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), at=st.integers(0, 99)
)
@settings(max_examples=300)
def test_the_parser_raises_bad_example_and_nothing_else(data: bytes, features: Any, at: int) -> None:
    good = our_example(features)
    at %= len(good)
    for harmed in (data, good[:at] + data, good[:at] + data + good[at + len(data) :], good[:at]):
        try:
            example.parse(harmed)
        except example.BadExample as error:
            assert str(error)


def records(n: int = 20) -> tuple[Schema, list[Record], list[np.ndarray]]:
    schema = Schema(
        (
            Field("image", "image", "uint8", (None, None, 3), "png"),
            Field("packed", "array", "int16", (None, 3), "zlib"),
            Field("label", "label", "int64", (), class_names=("a", "b")),
            Field("weight", "number", "float32"),
            Field("word", "string", "string"),
        )
    )
    made, values = [], []
    for i in range(n):
        value = np.random.default_rng(i).integers(-9, 9, (i, 3), np.int16)
        values.append(value)
        stored = {"image": encoded(noise(5, 4 + i, 3, i)), "packed": zlib.compress(value.tobytes())}
        made.append(Record(str(i), stored, {"label": -i, "weight": i / 8, "word": f"é{i}"}, {}))
    return schema, made, values


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    quality=st.integers(1, 100),
    subsampling=st.integers(0, 2),
    mode=st.sampled_from(["RGB", "L"]),
    progressive=st.booleans(),
)
def test_a_jpeg_has_the_pixels_that_tensorflow_gives_it(
    size: tuple[int, int], quality: int, subsampling: int, mode: str, progressive: bool
) -> None:
    """Bit for bit: tf.io.decode_jpeg takes the fast DCT by default. Pillow's accurate one is near."""
    pixels = PIL.Image.fromarray(picture(*size)).convert(mode)
    data = saved(pixels, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    ours = image.decode(data, channels=len(mode))
    np.testing.assert_array_equal(ours, tf.io.decode_jpeg(data, channels=len(mode)).numpy())
    accurate = np.asarray(PIL.Image.open(io.BytesIO(data))).reshape(ours.shape)
    assert np.abs(ours.astype(int) - accurate).max() <= 16


def test_stock_tensorflow_reads_the_records(tmp_path: Path) -> None:
    """TensorFlow checks both crcs of every record itself."""
    schema, made, values = records()
    path = tmp_path / "s.tfrecord"
    shard_format("tfrecord").write_shard(path, schema, made)
    spec = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "packed": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "weight": tf.io.FixedLenFeature([], tf.float32),
        "word": tf.io.FixedLenFeature([], tf.string),
    }
    found = [tf.io.parse_single_example(data, spec) for data in tf.data.TFRecordDataset(str(path))]
    assert len(found) == len(made)
    for record, parsed, value in zip(made, found, values, strict=True):
        assert parsed["image"].numpy() == record.payloads["image"]
        assert parsed["label"].numpy() == record.columns["label"]
        assert parsed["weight"].numpy() == record.columns["weight"]
        assert parsed["word"].numpy().decode() == record.columns["word"]
        raw = tf.io.decode_raw(tf.io.decode_compressed(parsed["packed"], "ZLIB"), tf.int16)
        np.testing.assert_array_equal(raw.numpy().reshape(-1, 3), value)


def test_the_shard_is_the_file_that_tensorflow_writes(tmp_path: Path) -> None:
    schema, made, _ = records()
    path = tmp_path / "ours.tfrecord"
    shard_format("tfrecord").write_shard(path, schema, made)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs.tfrecord")) as writer:
        for _, data in read_records(path):
            writer.write(tf.train.Example.FromString(bytes(data)).SerializeToString(deterministic=True))
    assert path.read_bytes() == (tmp_path / "theirs.tfrecord").read_bytes()


def test_a_float64_column_beyond_float32_does_not_stop_a_conversion(tmp_path: Path) -> None:
    """tf.train.Example knows float32 only; the index holds the value itself."""
    np.savez(tmp_path / "t.npz", x=np.zeros((3, 4)), far=np.array([1e300, -1e300, 0.1]))
    streamkit.convert(tmp_path / "t.npz", tmp_path / "out", format="tfrecord", workers=1)
    assert sorted(columns(tmp_path / "out", "far").values()) == [-1e300, 0.1, 1e300]


# TFDS

ONE_BY_ONE = tfds.ReadConfig(interleave_cycle_length=1, add_tfds_id=False)


def through_tfds(out: Path, split: str = "train") -> list[Any]:
    builder = tfds.builder_from_directory(str(out))
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=ONE_BY_ONE)
    found = list(tfds.as_numpy(dataset))
    assert builder.info.splits[split].num_examples == len(found)
    return found


def test_tfds_reads_photos(photos: Path, tmp_path: Path) -> None:
    """RGB and gray, JPEG and PNG: our pixels (but TFDS does not turn by EXIF, which the README says)."""
    out = tmp_path / "out"
    streamkit.convert(photos, out, format="tfrecord", shard_size=2000, workers=1)
    assert len(list(out.glob("train-*.tfrecord"))) > 1
    rows, stored = index_rows(out), payloads(out)
    found = through_tfds(out)
    assert len(found) == len(rows) == 8
    names = tfds.builder_from_directory(str(out)).info.features["label"].names
    assert names == ["cat", "dog"]
    for row, sample in zip(rows, found, strict=True):
        assert names[sample["label"]] == row["key"].split("/")[0]
        if row["orientation"] == 1:
            ours = image.decode(stored[row["key"]], channels=3)
            np.testing.assert_array_equal(sample["image"], ours)
            pixels = pillow(stored[row["key"]])
            assert_same_picture(ours, np.broadcast_to(pixels, ours.shape), row["key"])


def test_tfds_reads_gray_photos_as_gray(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(noise(6, 5 + i, 1, i)) for i in range(4)}
    out = tmp_path / "out"
    streamkit.convert(write_files(tmp_path / "src", files), out, format="tfrecord", workers=1)
    for row, sample in zip(index_rows(out), through_tfds(out), strict=True):
        assert sample["image"].shape[2] == 1
        np.testing.assert_array_equal(sample["image"], pillow(files[row["key"]]))


@pytest.mark.parametrize("compression", ["none", "zlib", "zlib:9", "auto"])
def test_tfds_reads_tables(tables: Path, table: dict[str, np.ndarray], tmp_path: Path, compression: str) -> None:
    out = tmp_path / "out"
    split = {"train": 0.8, "val": 0.2}
    streamkit.convert(
        tables / "stored.npz", out, format="tfrecord", compression=compression, split=split, shard_size=4000, workers=1
    )
    for name in split:
        for row, sample in zip(index_rows(out, name), through_tfds(out, name), strict=True):
            i = int(row["key"].partition("#")[2])
            assert set(sample) == {"signal", "spectrum", "label", "weight", "day"}
            np.testing.assert_array_equal(sample["signal"], table["signal"][i])
            np.testing.assert_array_equal(sample["spectrum"], table["spectrum"][i])
            assert sample["spectrum"].dtype == np.float64
            assert sample["label"] == table["y"][i]
            assert sample["weight"] == table["weight"][i]
            assert sample["day"] == table["day"][i]


@pytest.mark.parametrize("compression", ["none", "zlib"])
@pytest.mark.parametrize("source", ["ragged", "ragged_twice"])
def test_tfds_reads_ragged_arrays(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, compression: str
) -> None:
    root, out = request.getfixturevalue(source), tmp_path / "out"
    streamkit.convert(root, out, format="tfrecord", compression=compression, shard_size=1000, workers=1)
    rows, found = index_rows(out), through_tfds(out)
    assert len(rows) == len(list(root.rglob("*.npy")))
    for row, sample in zip(rows, found, strict=True):
        expected = np.load(root / row["key"])
        assert sample["array"].dtype == expected.dtype
        np.testing.assert_array_equal(sample["array"], expected)


@pytest.mark.parametrize("resize", ["12x10", None])
def test_tfds_reads_raw_pictures(photos: Path, tmp_path: Path, resize: str | None) -> None:
    """Raw pixels are upright already, so here nothing needs turning."""
    out = tmp_path / "out"
    streamkit.convert(photos, out, format="tfrecord", encode="raw", resize=resize, workers=1)
    stored = arrays(out, name="image")
    for row, sample in zip(index_rows(out), through_tfds(out), strict=True):
        np.testing.assert_array_equal(sample["image"], stored[row["key"]])
        assert sample["image"].shape == (row["height"], row["width"], 3)
        if resize is None and row["key"].endswith(".png"):
            pixels = pillow((photos / row["key"]).read_bytes())
            np.testing.assert_array_equal(sample["image"], np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def test_tfds_reads_odd_class_names(tmp_path: Path) -> None:
    """One name a line in label.labels.txt: a line break in a folder's name must not become a class."""
    jpeg = encoded(picture(8, 8), "JPEG")
    names = ["a\nb", "é", "x\ty"]
    out = tmp_path / "out"
    streamkit.convert(
        write_files(tmp_path / "src", {f"{n}/1.jpg": jpeg for n in names}), out, format="tfrecord", workers=1
    )
    assert list(streamkit.open(out).class_names) == sorted(names)
    assert len(through_tfds(out)) == 3
    assert tfds.builder_from_directory(str(out)).info.features["label"].num_classes == 3


# h5py alone


def joined(out: Path, split: str = "train") -> tuple[h5py.File, list[h5py.File]]:
    """train.h5 and all its shards, open."""
    return h5py.File(out / f"{split}.h5"), [h5py.File(path) for path in sorted(out.glob(f"{split}-*.h5"))]


def test_h5py_reads_photos_as_flat_bytes(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    streamkit.convert(photos, out, format="hdf5", shard_size=2000, workers=1)
    whole, shards = joined(out)
    keys = [row["key"] for row in index_rows(out)]
    at = 0
    for shard in shards:
        data, offsets = shard["image"], shard["image_offsets"][:]
        assert data.dtype == np.uint8 and data.chunks is None and offsets.dtype == np.int64
        for i in range(len(offsets) - 1):
            assert data[offsets[i] : offsets[i + 1]].tobytes() == (photos / keys[at]).read_bytes()
            at += 1
    assert at == len(keys) and len(shards) > 1
    np.testing.assert_array_equal(whole["image"][:], np.concatenate([shard["image"][:] for shard in shards]))
    offsets = whole["image_offsets"][:]
    assert [whole["image"][a:b].tobytes() for a, b in zip(offsets, offsets[1:])] == [  # noqa: B905, RUF007
        (photos / key).read_bytes() for key in keys
    ]
    np.testing.assert_array_equal(whole["label"][:], np.concatenate([shard["label"][:] for shard in shards]))
    names = [name.decode() for name in whole["label"].attrs["class_names"]]
    assert [names[i] for i in whole["label"][:]] == [key.split("/")[0] for key in keys]


@pytest.mark.parametrize("compression", ["none", "gzip", "gzip:9", "lzf", "zstd", "zstd:12", "lz4", "blosc2"])
def test_h5py_reads_tables_as_natural_datasets(
    tables: Path, table: dict[str, np.ndarray], tmp_path: Path, compression: str
) -> None:
    out = tmp_path / "out"
    streamkit.convert(tables / "chunked.h5", out, format="hdf5", compression=compression, shard_size=4000, workers=1)
    whole, shards = joined(out)
    rows = [int(row["key"].partition("#")[2]) for row in index_rows(out)]
    assert sorted(rows) == list(range(50)) and len(shards) > 1
    for name, ours in (("signal", "signal"), ("spectrum", "spectrum"), ("y", "label"), ("day", "day")):
        expected = table[name][rows]
        np.testing.assert_array_equal(np.concatenate([shard[ours][:] for shard in shards]), expected)
        np.testing.assert_array_equal(whole[ours][:], expected)
        assert whole[ours].shape == expected.shape
        assert whole[ours].is_virtual
    signal = shards[0]["signal"]
    assert (signal.chunks is None) == (compression == "none")
    filters = signal.id.get_create_plist().get_nfilters()
    assert filters == {"none": 0, "blosc2": 1}.get(compression, 2)


def test_h5py_reads_raw_pictures(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    streamkit.convert(photos, out, format="hdf5", encode="raw", resize="12x10", shard_size=1000, workers=1)
    whole, shards = joined(out)
    assert whole["image"].shape == (8, 12, 10, 3) and whole["image"].dtype == np.uint8
    np.testing.assert_array_equal(whole["image"][:], np.concatenate([shard["image"][:] for shard in shards]))
    np.testing.assert_array_equal(whole["image"][:], np.stack(list(arrays(out, name="image").values())))


def test_h5py_reads_compressed_raw_pictures(photos: Path, tmp_path: Path) -> None:
    """--compression is the user's word for raw pictures too."""
    out = tmp_path / "out"
    streamkit.convert(
        photos, out, format="hdf5", encode="raw", resize="12x10", compression="gzip", shard_size=1000, workers=1
    )
    plain = tmp_path / "plain"
    streamkit.convert(photos, plain, format="hdf5", encode="raw", resize="12x10", shard_size=1000, workers=1)
    whole, shards = joined(out)
    assert shards[0]["image"].compression == "gzip"
    np.testing.assert_array_equal(whole["image"][:], joined(plain)[0]["image"][:])


@pytest.mark.parametrize("source", ["ragged", "ragged_twice"])
def test_h5py_reads_ragged_arrays(request: pytest.FixtureRequest, tmp_path: Path, source: str) -> None:
    root, out = request.getfixturevalue(source), tmp_path / "out"
    streamkit.convert(root, out, format="hdf5", shard_size=1000, workers=1)
    whole, shards = joined(out)
    rows = index_rows(out)
    dtype = np.load(next(root.rglob("*.npy"))).dtype
    offsets = whole["array_offsets"][:]
    for i, row in enumerate(rows):
        expected = np.load(root / row["key"])
        data = whole["array"][offsets[i] : offsets[i + 1]]
        shape = whole["array_shapes"][i] if "array_shapes" in whole else (-1, *expected.shape[1:])
        np.testing.assert_array_equal(data.view(dtype).reshape(shape), expected)
    assert ("array_shapes" in whole) == (source == "ragged_twice")
    assert sum(len(shard["array_offsets"]) - 1 for shard in shards) == len(rows) == len(offsets) - 1


def test_ragged_arrays_that_are_all_empty(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(4):
        np.save(tmp_path / f"src/{i}.npy", np.zeros((0, i, 2), np.float32))
    streamkit.convert(tmp_path / "src", tmp_path / "out", format="hdf5", shard_size=200, workers=1)
    whole, _ = joined(tmp_path / "out")
    assert whole["array_offsets"][:].tolist() == [0] * 5
    assert whole["array"].shape == (0,)


def test_the_joined_file_holds_no_payload(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(400, 1000)))
    out = tmp_path / "out"
    streamkit.convert(tmp_path / "x.npy", out, format="hdf5", shard_size="500KB", workers=1)
    assert len(list(out.glob("train-*.h5"))) >= 6
    assert (out / "train.h5").stat().st_size < 20_000


def test_a_moved_folder_still_joins(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are named relative to the joined file, from whatever folder it is opened."""
    out = tmp_path / "out"
    streamkit.convert(photos, out, format="hdf5", shard_size=2000, workers=1)
    before = joined(out)[0]["image"][:]
    shutil.copytree(out, tmp_path / "deep" / "moved")
    shutil.rmtree(out)
    monkeypatch.chdir(tmp_path / "deep")
    with h5py.File(os.path.join("moved", "train.h5")) as file:
        np.testing.assert_array_equal(file["image"][:], before)


def test_thousands_of_long_class_names(tmp_path: Path) -> None:
    """HDF5 attributes end at 64 KB; class names do not."""
    names = [f"class-{i:04d}-{'n' * 40}" for i in range(1500)]
    root = write_files(tmp_path / "src", {f"{n}/1.png": b"" for n in names})
    png = encoded(picture(2, 2))
    for n in names:
        (root / n / "1.png").write_bytes(png)
    out = tmp_path / "out"
    streamkit.convert(root, out, format="hdf5", check="header", workers=1)
    assert list(streamkit.open(out).class_names) == names
    for path in (out / "train.h5", out / "train-00000.h5"):
        with h5py.File(path) as file:
            assert sorted(file["label"][:].tolist()) == list(range(1500))
            assert [name.decode() for name in file["label_class_names"][:]] == names


# The index, by pandas and pyarrow

RANGES = {"offset": "int64", "length": "int64", "crc32c": "uint32"}


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_pandas_and_pyarrow_read_the_index(photos: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    streamkit.convert(photos, out, format=format, shard_size=2000, workers=1)
    manifest = streamkit.open(out)
    frame = pd.read_parquet(out / "index-train.parquet")
    assert list(frame.columns) == [
        *("key", "shard", "image.offset", "image.length", "image.crc32c"),
        *("label", "width", "height", "channels", "orientation"),
    ]
    assert {name: str(frame[f"image.{name}"].dtype) for name in RANGES} == RANGES
    assert sorted(frame["key"]) == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    assert [manifest.class_names[i] for i in frame["label"]] == [key.split("/")[0] for key in frame["key"]]
    for row in frame.itertuples():
        height, width, channels = pillow((photos / row.key).read_bytes()).shape
        assert (row.height, row.width, row.channels) == (height, width, channels)
    groups = pq.ParquetFile(out / "index-train.parquet").metadata
    shards = manifest.splits["train"].shards
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [s.samples for s in shards]
    assert frame["shard"].tolist() == [s.file for s in shards for _ in range(s.samples)]
    table = manifest.index("train")
    assert table.to_pandas().equals(frame)


def test_the_index_of_chunked_tables(tables: Path, table: dict[str, np.ndarray], tmp_path: Path) -> None:
    """NAME.chunk counts through the chunk table of the whole split, across shards and fields."""
    out = tmp_path / "out"
    streamkit.convert(tables / "stored.npz", out, format="hdf5", compression="gzip", shard_size=4000, workers=1)
    frame, chunks = pd.read_parquet(out / "index-train.parquet"), pd.read_parquet(out / "chunks-train.parquet")
    assert list(chunks.columns) == ["shard", "offset", "length", "crc32c"]
    manifest = streamkit.open(out)
    for name in ("signal", "spectrum"):
        field = manifest.schema[name]
        for row in frame.itertuples(index=False):
            place = dict(zip(frame.columns, row, strict=True))
            chunk = chunks.iloc[place[f"{name}.chunk"]]
            assert chunk["shard"] == place["shard"]
            data = (out / chunk["shard"]).read_bytes()[chunk["offset"] : chunk["offset"] + chunk["length"]]
            planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(np.dtype(field.dtype).itemsize, -1)
            values = planes.T.copy().view(field.dtype).reshape(field.chunk_rows, *field.shape)
            i = int(place["key"].partition("#")[2])
            np.testing.assert_array_equal(values[place[f"{name}.row"]], table[name][i])
    assert columns(out, "label") == {f"stored.npz#{i}": v for i, v in enumerate(table["y"].tolist())}


def test_the_length_of_a_record_is_little_endian(tmp_path: Path) -> None:
    """The framing of DESIGN 3, by hand."""
    schema, made, _ = records(1)
    path = tmp_path / "s.tfrecord"
    shard_format("tfrecord").write_shard(path, schema, made)
    data = path.read_bytes()
    assert struct.unpack("<Q", data[:8])[0] == len(data) - 16
