"""Tables and schemas that a stranger made, digests agreeing: errors of streamkit's own, and `verify` calls none whole."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import blake3
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reading
from hypothesis import given
from hypothesis import strategies as st

import streamkit
from streamkit import DamagedError, StreamkitError
from streamkit.buffers import Buffers
from streamkit.chunks import chunk_nbytes, grid, runs
from streamkit.cli import main
from streamkit.codecs import array
from streamkit.places import apart
from streamkit.schema import FILTERS, Field
from streamkit.shards.joined import join_shards
from streamkit.strict import canonical

N = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ragged_twice: Path) -> Path:
    root = tmp_path_factory.mktemp("tables")
    table = reading.numbered(root / "in/table", N)
    reading.convert(table, root / "plain", shard_size=1500, compression="none")
    wide = reading.numbered(root / "in/wide", N, width=2048)
    reading.convert(wide, root / "gzip", "hdf5", shard_size=140_000, compression="gzip")
    reading.convert(reading.picture_folder(root / "in/pictures", [(20, 30)] * 8), root / "pictures")
    reading.convert(ragged_twice, root / "twice", compression="none")
    streamkit.index(root / "in/pictures", root / "in/pictures/adopted")
    shutil.copytree(root / "in/pictures", root / "loose")
    for file in (root / "loose/adopted").iterdir():
        shutil.move(file, root / "loose")
    signed(root / "loose", lambda data: data.update(root="."))
    return root


def signed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another manifest, whose dataset_id agrees."""
    data = json.loads((path / "manifest.json").read_text())
    del data["dataset_id"]
    change(data)
    data["dataset_id"] = blake3.blake3(canonical(data).encode()).hexdigest()
    (path / "manifest.json").write_text(canonical(data))


def replaced(name: str, values: Callable[[pa.Table], Any]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        new = values(table)
        new = new if isinstance(new, (pa.Array, pa.ChunkedArray)) else pa.array(new)
        return table.set_column(table.column_names.index(name), name, new)

    return change


def without(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


def texts(table: pa.Table) -> list[str]:
    return ["x"] * table.num_rows


def no_text(table: pa.Table) -> pa.Array:
    return pa.array([b"\xff%d" % i for i in range(table.num_rows)], pa.binary()).view(pa.string())


def shapes(value: Any, width: int) -> Callable[[pa.Table], pa.Array]:
    def of(table: pa.Table) -> pa.Array:
        others = [shape[:width] for shape in table.column("array.shape").to_pylist()[1:]]
        return pa.array([value, *others], pa.list_(pa.int32(), width))

    return of


INDEXES: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "no key": ("plain", without("key")),
    "keys are numbers": ("plain", replaced("key", lambda t: list(range(t.num_rows)))),
    "no shard": ("plain", without("shard")),
    "no label": ("plain", without("label")),
    "labels are text": ("plain", replaced("label", texts)),
    "a label is missing": ("plain", replaced("label", lambda t: [None, *t.column("label").to_pylist()[1:]])),
    "no crc32c": ("plain", without("x.crc32c")),
    "two offsets": ("plain", lambda t: t.append_column("x.offset", t.column("x.offset"))),
    "an offset is missing": ("plain", replaced("x.offset", lambda t: [None, *t.column("x.offset").to_pylist()[1:]])),
    "no shape": ("twice", without("array.shape")),
    "shapes are numbers": ("twice", replaced("array.shape", lambda t: list(range(t.num_rows)))),
    "shapes are text": ("twice", replaced("array.shape", texts)),
    "shapes of lists": ("twice", replaced("array.shape", lambda t: [[1] * (i % 3) for i in range(t.num_rows)])),
    "shapes of one axis": ("twice", replaced("array.shape", shapes([1], 1))),
    "a shape is missing": ("twice", replaced("array.shape", shapes(None, 3))),
    "a negative shape": ("twice", replaced("array.shape", shapes([-1, -2, 2], 3))),
    "a huge shape": ("twice", replaced("array.shape", shapes([2**31 - 1, 2**31 - 1, 2], 3))),
    "another last axis": ("twice", replaced("array.shape", shapes([1, 0, 3], 3))),
    "pictures without width": ("pictures", replaced("width", lambda t: [0] * t.num_rows)),
    "files of negative length": ("loose", replaced("image.length", lambda t: [-5] * t.num_rows)),
    "files of huge length": ("loose", replaced("image.length", lambda t: [1 << 45] * t.num_rows)),
    "names of files that are no text": ("loose", replaced("key", no_text)),
    "rows of a chunk out of order": ("gzip", replaced("x.row", lambda t: t.column("x.row").to_pylist()[::-1])),
    "another row of the chunk": ("gzip", replaced("x.row", lambda t: [1, *t.column("x.row").to_pylist()[1:]])),
    "another chunk": ("gzip", replaced("x.chunk", lambda t: [1, *t.column("x.chunk").to_pylist()[1:]])),
    "chunks of the next shard": ("gzip", replaced("x.chunk", lambda t: (t.column("x.chunk").to_numpy() + 1).tolist())),
}
CHUNKS: dict[str, Callable[[pa.Table], pa.Table]] = {
    **{f"no {name}": without(name) for name in ("shard", "offset", "length", "crc32c")},
    "offsets are text": replaced("offset", texts),
    "filter masks are text": lambda t: t.append_column("skipped", pa.array(["x"] * t.num_rows)),
    "shards are lists": replaced("shard", lambda t: [["a"]] * t.num_rows),
    "a stranger's shard": replaced("shard", texts),
    "shards out of order": replaced("shard", lambda t: t.column("shard").to_pylist()[::-1]),
    "a chunk that was never written": replaced("length", lambda t: [0, *t.column("length").to_pylist()[1:]]),
    "all chunks at one place": replaced("offset", lambda t: [t.column("offset")[0].as_py()] * t.num_rows),
}


def sparse(path: Path) -> None:
    """Four samples of a gigabyte each, none of which takes room on the disk."""
    streamkit.open(path)
    nbytes = 1 << 30
    os.truncate(path / "train-00000.tfrecord", 4 * nbytes)
    reading.alter_index(path, replaced("array.offset", lambda t: [i * nbytes for i in range(t.num_rows)]))
    reading.alter_index(path, replaced("array.length", lambda t: [nbytes] * t.num_rows))
    signed(path, lambda data: data["splits"]["train"].update(bytes=4 * nbytes))
    signed(path, lambda data: data["splits"]["train"]["shards"][0].update(bytes=4 * nbytes))


@pytest.mark.fault(83, 90)
def test_a_batch_that_memory_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading.ragged_folder(tmp_path / "in", [2, 3, 4, 5])
    sparse(reading.convert(tmp_path / "in", tmp_path / "out"))
    monkeypatch.setattr("streamkit.payloads.available_memory", lambda: 2 << 30)
    with pytest.raises(streamkit.ResourceError, match=r"4294967296 bytes stored.*batch_size"):
        streamkit.Loader(tmp_path / "out")[0]


def held(path: Path, **options: Any) -> int:
    """The exit code of reading; `verify`, in all its ways, and `info` must not fall over, and `verify` must object."""
    for full in (False, True):
        assert not streamkit.verify(path, full=full, workers=1).ok
    assert main(["info", str(path), "--quiet"]) in (0, 4, 9)
    with pytest.raises(StreamkitError) as caught:
        for _ in streamkit.Loader(path, **options):
            pass
    return caught.value.exit_code


def copied(made: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / name, tmp_path / name))


@pytest.mark.fault(90)
@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_is_none(made: Path, tmp_path: Path, name: str) -> None:
    path = copied(made, INDEXES[name][0], tmp_path)
    reading.alter_index(path, INDEXES[name][1])
    options = {"image_size": (8, 8), "crop": "center"} if INDEXES[name][0] in ("pictures", "loose") else {}
    assert held(path, **options) == 4


@pytest.mark.fault(90)
def test_ranges_that_overlap_are_refused(made: Path, tmp_path: Path) -> None:
    path = copied(made, "plain", tmp_path)
    for column in ("x.offset", "x.crc32c"):
        reading.alter_index(path, replaced(column, lambda t, c=column: t.column(c).to_numpy()[[0] * t.num_rows]))
    assert held(path) == 9
    assert main(["verify", str(path), "--quiet"]) == 9


@pytest.mark.fault(83, 90)
@pytest.mark.parametrize("encoding", ["PLAIN", "PLAIN_DICTIONARY", "DELTA_BYTE_ARRAY"])
def test_keys_that_unpack_to_far_more_than_the_index(made: Path, tmp_path: Path, encoding: str) -> None:
    """One value of 2 MB for every row, in an index of some KB: refused before it is unpacked."""
    path = copied(made, "plain", tmp_path)
    split = streamkit.open(path).splits["train"]
    table = replaced("key", lambda t: ["x" * (2 << 20)] * t.num_rows)(pq.read_table(path / split.index))
    options: dict[str, Any] = {"use_dictionary": ["key"]}
    if encoding != "PLAIN_DICTIONARY":
        options = {"use_dictionary": False, "column_encoding": {"key": encoding}}
    pq.write_table(table, path / split.index, compression="zstd", **options)
    del table
    digest = blake3.blake3((path / split.index).read_bytes()).hexdigest()
    signed(path, lambda data: data["splits"]["train"]["index"].update(digest=digest))
    assert (path / split.index).stat().st_size < 40_000
    code = """
import json, sys, pyarrow, streamkit
codes = []
for fields in ("key", ("x", "key"), "x"):
    try:
        codes.append(len(streamkit.Loader(sys.argv[1], fields=fields)[0]))
    except streamkit.RefusedError as error:
        codes.append(error.what)
print(json.dumps([codes, pyarrow.default_memory_pool().max_memory() >> 20]))
"""
    (*refused, n), mib = reading.run_python(code, path)
    assert refused == ["column 'key' takes over 67108864 bytes of text, the limit here"] * 2
    assert n == 32 and mib < 32


@pytest.mark.fault(83)
@pytest.mark.parametrize(("name", "n"), [("plain", 2_000), ("gzip", 2**40), ("loose", 2**20)])
def test_more_samples_than_a_file_can_hold(made: Path, tmp_path: Path, name: str, n: int) -> None:
    path = copied(made, name, tmp_path)

    def change(data: dict[str, Any]) -> None:
        split = data["splits"]["train"]
        split["samples"] += n - split["shards"][0]["samples"]
        split["shards"][0]["samples"] = n

    signed(path, change)
    with pytest.raises(DamagedError, match=f"{n} samples in [0-9]+ bytes"):
        streamkit.open(path)


@pytest.mark.fault(82, 83)
@pytest.mark.parametrize("n", [0, 3, 40_000_000])
def test_offsets_that_the_file_cannot_hold_are_not_read(ragged: Path, tmp_path: Path, n: int) -> None:
    """What `repair` asks libhdf5 for: 320 MB of offsets in a shard of some KB."""
    path = reading.convert(ragged, tmp_path / "out", "hdf5", shard_size=1000)
    with h5py.File(path / "train-00000.h5", "r+") as file:
        del file["array_offsets"]
        file.create_dataset("array_offsets", (n,), np.int64, chunks=(min(1024, n),) if n else None)
    shards = [(shard.file, shard.samples) for shard in streamkit.open(path).splits["train"].shards]
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match=r"cannot be read as a shard: .*'array'"):
            join_shards(path / "joined.h5", streamkit.open(path).schema, shards)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8)), max_size=4), st.integers(1, 3))
def test_runs_are_where_each_value_lies(axes: list[tuple[int, int]], rows: int) -> None:
    """Against the place of every value, one by one."""
    shape, inner = tuple(n for n, _ in axes), tuple(c for _, c in axes)
    field = Field("x", "array", "int16", shape, "gzip", rows, chunk_shape=inner)
    starts, nbytes = runs(field)
    found = [at for start in starts.tolist() for at in range(start, start + nbytes, 2)]
    expected = []
    for value in np.ndindex(*shape):
        chunk = sum(v // c * math.prod(grid(field)[i + 1 :]) for i, (v, c) in enumerate(zip(value, inner, strict=True)))
        inside = sum(v % c * math.prod(inner[i + 1 :]) for i, (v, c) in enumerate(zip(value, inner, strict=True)))
        expected.append(chunk * chunk_nbytes(field) + 2 * inside)
    assert found == expected


def test_the_runs_of_a_large_sample_take_little_memory() -> None:
    tracemalloc.start()
    try:
        starts, nbytes = runs(Field("x", "array", "uint8", (2000, 2000, 3), "gzip", 1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (starts.tolist(), nbytes) == ([0], 12_000_000) and peak < 1 << 20


@given(st.data())
def test_ranges_are_apart_as_one_by_one_comparison_says(data: Any) -> None:
    ranges = st.tuples(st.integers(0, 30), st.integers(0, 5))
    files = data.draw(st.lists(st.lists(ranges, max_size=6), max_size=4))
    alone = [
        all(a + n <= b or b + m <= a for (a, n), (b, m) in itertools.combinations(sorted(file), 2)) for file in files
    ]
    rows = np.array([one for file in files for one in file], np.int64).reshape(-1, 2)
    with mock.patch("streamkit.places._BLOCK", 3):
        assert apart(rows[:, 0], rows[:, 1], np.cumsum([0, *map(len, files)])) == all(alone)


@pytest.mark.fault(90)
@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_table_that_is_none(made: Path, tmp_path: Path, name: str) -> None:
    path = copied(made, "gzip", tmp_path)
    reading.alter_index(path, CHUNKS[name], chunks=True)
    assert held(path) == (9 if name == "all chunks at one place" else 4)


SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "an array of text": ("plain", {"dtype": "string"}),
    "an array of bytes": ("plain", {"dtype": "bytes"}),
    "text of numbers": ("plain", {"kind": "text"}),
    "a picture without axes": ("plain", {"kind": "image", "shape": []}),
    "a mask of floats": ("plain", {"kind": "mask", "shape": [4, 4, 1]}),
    "a picture of ten channels": ("plain", {"kind": "image", "dtype": "uint8", "shape": [2, 2, 10]}),
    "chunks of varying samples": ("gzip", {"shape": [None, None]}),
    "a label with axes": ("plain", {"kind": "label", "dtype": "int64"}),
    "an unknown filter": ("gzip", {"encoding": "shuffle+evil"}),
    "filters without end": ("gzip", {"encoding": "shuffle+" * 300_000 + "gzip"}),
    "varying big-endian arrays": ("plain", {"encoding": "bigendian", "shape": [None]}),
    "floats as varints": ("plain", {"encoding": "varint"}),
    "chunks of nothing": ("gzip", {"shape": [0]}),
}


LIES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "bytes of a split": ("plain", lambda split: split.update(bytes=7)),
    "a chunk table without its digest": ("gzip", lambda split: split["chunks"].pop("digest")),
    "a chunk table without its name": ("gzip", lambda split: split["chunks"].pop("file")),
}


@pytest.mark.fault(48)
@pytest.mark.parametrize("name", LIES)
def test_a_manifest_that_contradicts_itself(made: Path, tmp_path: Path, name: str) -> None:
    path = copied(made, LIES[name][0], tmp_path)
    signed(path, lambda data: LIES[name][1](data["splits"]["train"]))
    assert not streamkit.verify(path).ok
    with pytest.raises(DamagedError):
        streamkit.open(path)


@pytest.mark.fault(90)
def test_a_key_that_is_no_text_is_damage(made: Path, tmp_path: Path) -> None:
    """Wherever it is asked for: for samples, for the name of a damaged record, as a table."""
    path = copied(made, "plain", tmp_path)
    reading.alter_index(path, replaced("key", no_text))
    assert not streamkit.verify(path).ok
    for ask in (lambda: streamkit.Loader(path, fields="key"), lambda: streamkit.open(path).index("train")):
        with pytest.raises(DamagedError, match=r"the index cannot be read: .*(?i:utf-?8)"):
            ask()
    first = pq.read_table(path / "index-train.parquet", columns=["x.offset"]).column(0)[0].as_py()
    reading.flip(path / "train-00000.tfrecord", first)
    assert not streamkit.verify(path).ok
    with pytest.raises(DamagedError, match=r"the index cannot be read: .*(?i:utf-?8)"):
        streamkit.Loader(path, shuffle=False)[0]


@pytest.mark.fault(83)
def test_a_batch_larger_than_memory_is_named() -> None:
    with pytest.raises(streamkit.ResourceError, match=r"a batch of \d+ bytes.*smaller batch_size"):
        Buffers().empty((1 << 50,), np.float32)


@pytest.mark.fault(48)
def test_a_folder_of_pictures_holds_pictures(made: Path, tmp_path: Path) -> None:
    path = copied(made, "plain", tmp_path)
    signed(path, lambda data: data.update(format="folder", root="."))
    with pytest.raises(DamagedError, match="one payload, a picture"):
        streamkit.open(path)


@pytest.mark.fault(90)
def test_fields_that_share_chunks(tmp_path: Path) -> None:
    values = np.arange(N * 2048, dtype=np.float32).reshape(N, 2048)
    np.savez(tmp_path / "two.npz", x=values, z=-values)
    path = reading.convert(tmp_path / "two.npz", tmp_path / "out", "hdf5", compression="gzip")
    reading.alter_index(path, replaced("z.chunk", lambda t: t.column("x.chunk")))
    assert held(path) == 4


@pytest.mark.fault(49)
def test_facts_of_a_later_release_are_kept(made: Path, tmp_path: Path) -> None:
    """Case 49: optional facts that this release does not know, wherever they stand, belong to the dataset's id."""
    path = copied(made, "gzip", tmp_path)

    def change(data: dict[str, Any]) -> None:
        split = data["splits"]["train"]
        for facts in (data, data["schema"]["x"], split, split["index"], split["shards"][0], data["files"]["train.h5"]):
            facts["later"] = {"a": [1, None]}

    signed(path, change)
    text = (path / "manifest.json").read_text()
    manifest = streamkit.open(path)
    assert manifest.dump() == text and manifest.dataset_id == json.loads(text)["dataset_id"]
    assert len(streamkit.Loader(path, manifest_digest=manifest.dataset_id)) == 2
    without = dataclasses.replace(manifest, files={}).dump()
    assert "files" not in json.loads(without) and json.loads(without)["later"] == {"a": [1, None]}


@pytest.mark.fault(52)
def test_verify_finds_keys_that_are_there_twice(made: Path, tmp_path: Path) -> None:
    path = copied(made, "plain", tmp_path)
    reading.alter_index(path, replaced("key", lambda t: ["a", "a", *t.column("key").to_pylist()[2:]]))
    (problem,) = streamkit.verify(path).problems
    assert (problem.reason, problem.key) == ("1 keys are there more than once", "a")


@pytest.mark.fault(52)
@pytest.mark.parametrize("format", reading.FORMATS)
def test_verify_full_holds_the_index_s_columns_against_the_shards(tmp_path: Path, format: str) -> None:
    """Every kind of column comes back as it went in; one label moved on is found, with its record and key."""
    values = {
        "truth": np.arange(N) % 2 == 0,
        "small": np.arange(N, dtype=np.uint8),
        "large": np.arange(N, dtype=np.uint64) + 2**63,
        "precise": np.r_[np.nan, np.inf, 1e300, np.linspace(0, 1, N - 3)],
        "half": np.linspace(0, 1, N).astype(np.float16),
    }
    table = pa.table(
        {"text": ["some text"] * N, "word": ["ä" * i for i in range(N)]}
        | {name: pa.array(v) for name, v in values.items()}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    path = reading.convert(tmp_path / "in.parquet", tmp_path / "out", format, shard_size=1000)
    assert {"truth", "small", "large", "precise", "half", "word"} == {
        f.name for f in streamkit.open(path).schema.columns
    }
    assert streamkit.verify(path, full=True, workers=1).ok
    before = streamkit.open(path).index("train").to_pylist()
    first = streamkit.open(path).splits["train"].shards[0].samples
    reading.alter_index(
        path, reading.with_column("small", lambda v: np.where(np.arange(N) == first + 1, 77, v).astype("u1"))
    )
    reading.alter_index(path, replaced("word", lambda t: ["", *t.column("word").to_pylist()[1:]]))
    assert streamkit.verify(path, workers=1).ok
    found = {(p.file, p.record, p.key) for p in streamkit.verify(path, full=True, workers=1).problems}
    expected = {(before[first + 1]["shard"], 1, before[first + 1]["key"])}
    if before[0]["word"]:
        expected |= {(before[0]["shard"], 0, before[0]["key"])}
    assert found == expected


@pytest.mark.fault(82, 83, 90)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_contradicts_itself(made: Path, tmp_path: Path, name: str) -> None:
    path = copied(made, SCHEMAS[name][0], tmp_path)
    signed(path, lambda data: data["schema"]["x"].update(SCHEMAS[name][1]))
    refused = {
        "an array of bytes",
        "an unknown filter",
        "filters without end",
        "varying big-endian arrays",
        "floats as varints",
    }
    with pytest.raises(StreamkitError, match="field 'x'") as caught:
        streamkit.open(path)
    assert caught.value.exit_code == (9 if name in refused else 4) and len(str(caught.value)) < 500


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    "statistics",
    [
        {"class_counts": 3},
        {"class_counts": {"train": 3}},
        {"class_counts": {"train": {"0": "x"}}},
        {"image": 3},
        {"image": {"width": [1]}},
        {"image": {"mean": ["x"]}},
        {"image": {"pixels": -1}},
        {"arrays": {"x": {"not_finite": {"nan": 1}}}},
    ],
    ids=str,
)
def test_statistics_that_are_none(made: Path, tmp_path: Path, statistics: dict[str, Any]) -> None:
    path = copied(made, "pictures", tmp_path)
    signed(path, lambda data: data.update(statistics=statistics))
    assert main(["info", str(path), "--quiet"]) == 4
    with pytest.raises(DamagedError):
        streamkit.open(path)


def test_the_filters_of_the_schema_are_those_that_can_be_undone() -> None:
    assert {*FILTERS, "bigendian"} == set(array.FILTERS)


@pytest.mark.fault(41, 82)
@pytest.mark.parametrize("codec", reading.CODECS)
def test_chunks_of_any_bytes_are_arrays_or_errors(codec: str) -> None:
    """What a hostile writer gives the right crc32c: libraries of other people decode it, within the size expected."""
    from streamkit.shards.chunked import FILTERS as NAMES
    from streamkit.shards.chunked import packed

    rng, values = np.random.default_rng(0), np.arange(4096, dtype="<i4")
    names = NAMES[codec]
    good = packed(values, "+".join(names))
    assert array.decode_chunk(good, names, 4, values.nbytes).tobytes() == values.tobytes()
    for i in range(400):
        bad = bytearray(good[: int(rng.integers(1, len(good) + 1))] if i % 4 == 0 else good)
        for at in rng.integers(0, min(len(bad), 120 if i % 2 else len(bad)), int(rng.integers(1, 4))).tolist():
            bad[at] = int(rng.integers(0, 256))
        try:
            assert array.decode_chunk(bytes(bad), names, 4, values.nbytes).nbytes == values.nbytes
        except array.BadArray:
            continue


@pytest.mark.fault(41)
@pytest.mark.parametrize(("name", "column"), [("pictures", "image.offset"), ("plain", "x.offset"), ("gzip", "")])
def test_bench_tells_of_damage(
    made: Path, tmp_path: Path, name: str, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(made, name, tmp_path)
    split = streamkit.open(path).splits["train"]
    rows = pq.read_table(path / (split.index if column else str(split.chunks))).to_pylist()
    for row in rows:
        reading.flip(path / row["shard"], row[column or "offset"] + 8)
    assert main(["bench", str(path), "--quiet"]) == 4
    assert "cannot be read: crc32c is" in capsys.readouterr().err
