"""The reader gives exactly the bytes that were stored, or an error that names the place."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import re
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pyarrow as pa
import pytest
import reading
from reading import CODECS, FORMATS, stored

import streamkit
from streamkit import DamagedError, StreamkitError, native, storage
from streamkit import mapped as mapping
from streamkit.codecs.array import decode_chunk
from streamkit.reader import Reader
from streamkit.readplan import ReadPlan
from streamkit.storage import FEW_OPEN

N = 400


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets of a numbered table, of pictures and of ragged arrays, in many small shards."""
    root = tmp_path_factory.mktemp("reader")
    table = reading.numbered(root / "table", N)
    pictures = reading.picture_folder(root / "pictures", [(20 + i % 7, 30 - i % 5) for i in range(60)])
    ragged = reading.ragged_folder(root / "ragged", [i % 6 for i in range(40)])
    for format in FORMATS:
        reading.convert(table, root / f"table-{format}", format, shard_size=1500, compression="none")
        reading.convert(pictures, root / f"pictures-{format}", format, shard_size="6KB")
        reading.convert(ragged, root / f"ragged-{format}", format, shard_size=300, compression="none")
    reading.convert(table, root / "table-big", shard_size="16KB", compression="none")
    reading.convert(table, root / "table-zlib", "tfrecord", shard_size=1500, compression="zlib")
    reading.convert(table, root / "table-gzip", "hdf5", shard_size="6KB", compression="gzip")
    return root


def no_maps(*arguments: object) -> None:
    raise OSError


@pytest.fixture(params=["mapped", "positional", "python"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The three ways to the bytes: shards mapped, positional reads in C, and the same without the compiled part."""
    if request.param != "python" and not native.available():
        pytest.skip("streamkit/ranges.c was not built")
    if request.param == "positional":
        monkeypatch.setattr("streamkit.reader.Maps", no_maps)
    if request.param == "python":
        monkeypatch.setattr(native, "_library", None)
        monkeypatch.setenv("STREAMKIT_NATIVE", "0")
    return str(request.param)


@pytest.fixture
def copy_of(made: Path, tmp_path: Path):
    """A private copy of one of the datasets, to be harmed."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(made / name, tmp_path / name))

    return copy


def row_sets(n: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    sets = [np.arange(n), np.arange(n)[::-1], np.array([0]), np.array([n - 1]), np.array([], np.int64)]
    sets += [random.integers(0, n, size) for size in (1, 2, 7, 50, 3 * n)]  # with rows that repeat
    return [np.asarray(s, np.int64) for s in sets]


# The bytes are the source's


@pytest.mark.parametrize("format", FORMATS)
def test_picture_bytes_are_the_source_files_bytes(made: Path, format: str, how: str) -> None:
    path = made / f"pictures-{format}"
    reader = reading.reader_of(path)
    assert len(reader.split.shards) > 5
    source = [(made / "pictures" / key).read_bytes() for key in reading.keys_of(path)]
    for rows in row_sets(len(source)):
        assert stored(reader, "image", rows) == [source[r] for r in rows]


@pytest.mark.parametrize("name", ["table-tfrecord", "table-hdf5", "table-zlib"])
def test_array_bytes_are_the_source_rows(made: Path, name: str, how: str) -> None:
    reader = reading.reader_of(made / name)
    assert len(reader.split.shards) > 3
    numbers = [reading.row_of(key) for key in reading.keys_of(made / name)]
    assert sorted(numbers) == list(range(N))
    for rows in row_sets(N):
        found = stored(reader, "x", rows)
        if name == "table-zlib":
            found = [zlib.decompress(data) for data in found]
        assert found == [np.full(16, numbers[r], "<f4").tobytes() for r in rows]


@pytest.mark.parametrize("format", FORMATS)
def test_empty_payloads_are_read_among_others(made: Path, format: str, how: str) -> None:
    path = made / f"ragged-{format}"
    reader = reading.reader_of(path)
    source = [np.load(made / "ragged" / key) for key in reading.keys_of(path)]
    assert sum(a.size == 0 for a in source) > 3
    for rows in row_sets(len(source)):
        assert stored(reader, "array", rows) == [source[r].tobytes() for r in rows]


def test_more_touching_ranges_than_one_system_call_takes(tmp_path: Path, how: str) -> None:
    table = reading.numbered(tmp_path / "in", 3000, width=1)
    reader = reading.reader_of(reading.convert(table, tmp_path / "out", "hdf5", compression="none"))
    assert np.unique(np.diff(reader.columns["x.offset"])).tolist() == [4]  # they do touch
    found = np.frombuffer(b"".join(stored(reader, "x", np.arange(3000))), "<f4")
    assert found.tolist() == [reading.row_of(key) for key in reading.keys_of(tmp_path / "out")]


def test_the_plan_groups_by_shard_and_ascends_in_each() -> None:
    random = np.random.default_rng(1)
    shard_starts = np.array([0, 10, 10, 35, 60])
    offsets_of_row = random.permutation(60) * 100
    for size in (0, 1, 40, 200):
        rows = random.integers(0, 60, size)
        plan = ReadPlan.of(rows, shard_starts, offsets_of_row[rows])
        assert sorted(slot for _, slots in plan.shards for slot in slots) == list(range(size))
        assert len({shard for shard, _ in plan.shards}) == len(plan.shards)
        for shard, slots in plan.shards:
            mine = rows[list(slots)]
            assert ((shard_starts[shard] <= mine) & (mine < shard_starts[shard + 1])).all()
            assert (np.diff(offsets_of_row[mine]) >= 0).all()


# Chunked HDF5


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_chunked_hdf5_reads_as_h5py_reads_it(tmp_path: Path, codec: str, dtype: str) -> None:
    n = 700
    rows = np.cumsum(np.random.default_rng(0).integers(0, 3, (n, 9, 31)), 2).astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    out = reading.convert(tmp_path / "rows.npy", tmp_path / "out", "hdf5", compression=codec, shard_size="150KB")
    reader = reading.reader_of(out)
    field = reader.manifest.schema["array"]
    assert field.chunk_rows is not None and codec in field.encoding and len(reader.split.shards) > 1
    by_h5py = []
    for shard in reader.split.shards:
        with h5py.File(out / shard.file) as file:
            by_h5py.append(file["array"][:])
            assert len(by_h5py[-1]) % field.chunk_rows  # the last chunk is not full
    truth = np.concatenate(by_h5py)
    assert np.array_equal(truth, rows[[reading.row_of(key) for key in reading.keys_of(out)]])
    for chosen in row_sets(n):
        found = np.empty((len(chosen), 9, 31), dtype)
        reader.read_chunked(field, chosen, found)
        assert found.tobytes() == truth[chosen].tobytes()


FILTERS = {
    "gzip": ({"compression": "gzip"}, ("gzip",)),
    "shuffle+gzip": ({"compression": "gzip", "shuffle": True}, ("shuffle", "gzip")),
    "shuffle+lzf": ({"compression": "lzf", "shuffle": True}, ("shuffle", "lzf")),
    "shuffle+gzip+fletcher32": (
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        ("shuffle", "gzip", "fletcher32"),
    ),
    "zstd": (dict(hdf5plugin.Zstd()), ("zstd",)),
    "shuffle+lz4": (dict(hdf5plugin.LZ4()) | {"shuffle": True}, ("shuffle", "lz4")),
    "lz4 in blocks": (dict(hdf5plugin.LZ4(nbytes=256)), ("lz4",)),
    "blosc2": (dict(hdf5plugin.Blosc2()), ("blosc2",)),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("kind", ["smooth", "noise", "zeros"])
def test_filters_are_undone_as_libhdf5_does(tmp_path: Path, name: str, kind: str) -> None:
    options, filters = FILTERS[name]
    random = np.random.default_rng(2)
    smooth = np.arange(420.0).reshape(60, 7)
    rows = {"smooth": smooth, "noise": random.random((60, 7)), "zeros": 0 * smooth}[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=rows, chunks=(25, 7), **options)
        for i in range(3):
            mask, data = dataset.id.read_direct_chunk((25 * i, 0))
            assert mask == 0
            found = decode_chunk(data, filters, 8, 25 * 7 * 8).view("<f8").reshape(25, 7)
            n_real = min(25, 60 - 25 * i)  # the last chunk is filled up
            assert np.array_equal(found[:n_real], rows[25 * i : 25 * i + n_real])


@pytest.mark.parametrize("shape", [(3000,), (90, 700), (40, 33, 35, 3), (5, 300, 301, 3)])
def test_blosc2_keeps_blocks_of_several_axes_and_they_are_put_in_order(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    n_chunk = shape[0] // 2
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=rows, chunks=(n_chunk, *shape[1:]), **hdf5plugin.Blosc2())
        _, data = dataset.id.read_direct_chunk((0,) * len(shape))
    found = decode_chunk(data, ("blosc2",), 4, rows[:n_chunk].nbytes)
    assert np.array_equal(found.view("<i4").reshape(rows[:n_chunk].shape), rows[:n_chunk])


@pytest.mark.parametrize("codec", CODECS)
def test_noise_that_does_not_compress_reads_right_too(tmp_path: Path, codec: str) -> None:
    # Some filters then store a chunk as it is, and only its filter mask says so.
    rows = np.random.default_rng(3).integers(0, 256, (40, 5000), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    out = reading.convert(tmp_path / "rows.npy", tmp_path / "out", "hdf5", compression=codec)
    loader = streamkit.Loader(out, batch_size=40, shuffle=False, fields=("array", "key"))
    values, keys = loader[0]
    assert np.array_equal(values, rows[[reading.row_of(key) for key in keys]])


# Damage


@pytest.mark.parametrize("name", ["pictures-tfrecord", "pictures-hdf5", "table-tfrecord", "table-hdf5", "table-zlib"])
def test_one_flipped_bit_is_found_and_named(copy_of, name: str, how: str) -> None:
    path = copy_of(name)
    field = "image" if name.startswith("pictures") else "x"
    index = streamkit.open(path).index("train").to_pydict()
    reader = reading.reader_of(path)
    random = np.random.default_rng(4)
    n = len(index["key"])
    first_of = {shard: index["shard"].index(shard) for shard in index["shard"]}
    for _ in range(25):
        row = int(random.integers(n))
        at = index[f"{field}.offset"][row] + int(random.integers(index[f"{field}.length"][row]))
        bit = 1 << int(random.integers(8))
        others = np.delete(np.arange(n), row)
        good = stored(reader, field, others)
        reading.flip(path / index["shard"][row], at, bit)
        with pytest.raises(DamagedError) as caught:
            stored(reader, field, np.arange(n))
        error = caught.value
        assert (error.shard, error.key) == (index["shard"][row], index["key"][row])
        assert error.record == row - first_of[error.shard]
        assert f"{error.shard} record {error.record} ({error.key}): crc32c is" in str(error)
        assert "streamkit verify" in str(error) and error.exit_code == 4
        assert stored(reader, field, others) == good  # the others can still be read
        reading.flip(path / index["shard"][row], at, bit)
    assert len(stored(reader, field, np.arange(n))) == n


def test_one_flipped_bit_of_a_chunk_is_found_and_named(copy_of) -> None:
    path = copy_of("table-gzip")
    chunks = pa.parquet.read_table(path / "chunks-train.parquet").to_pydict()
    index = streamkit.open(path).index("train").to_pydict()
    chunk = len(chunks["offset"]) - 1
    reading.flip(path / chunks["shard"][chunk], chunks["offset"][chunk] + chunks["length"][chunk] // 2)
    reader = reading.reader_of(path)
    field = reader.manifest.schema["x"]
    with pytest.raises(DamagedError, match="crc32c is") as caught:
        reader.read_chunked(field, np.arange(N), np.empty((N, 16), np.float32))
    harmed = {key for key, c in zip(index["key"], index["x.chunk"], strict=True) if c == chunk}
    assert caught.value.shard == chunks["shard"][chunk] and caught.value.key in harmed
    with pytest.raises(DamagedError):  # also the second time: an error is not kept as if it were a chunk
        reader.read_chunked(field, np.array([index["x.chunk"].index(chunk)]), np.empty((1, 16), np.float32))


@pytest.mark.parametrize("batch_size", [4, 1])  # of 1, several are made in one task
@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_reaches_the_user_through_the_loader(copy_of, num_workers: int, batch_size: int) -> None:
    path = copy_of("pictures-tfrecord")
    index = streamkit.open(path).index("train").to_pydict()
    reading.flip(path / index["shard"][41], index["image.offset"][41] + 100)
    loader = streamkit.Loader(path, batch_size=batch_size, image_size=(8, 8), shuffle=False, num_workers=num_workers)
    delivered = 0
    with pytest.raises(DamagedError) as caught:
        for _ in loader:
            delivered += 1
    assert delivered == 41 // batch_size and caught.value.key == index["key"][41]


def test_undecodable_bytes_with_a_right_checksum_are_named_too(copy_of) -> None:
    path = copy_of("table-zlib")
    index = streamkit.open(path).index("train").to_pydict()
    shard, offset, length = (index[n][5] for n in ("shard", "x.offset", "x.length"))
    with open(path / shard, "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * length)

    def vouch(crcs: np.ndarray) -> np.ndarray:
        from crc32c import crc32c

        crcs[5] = crc32c(b"\0" * length)
        return crcs

    reading.alter_index(path, reading.with_column("x.crc32c", vouch))
    with pytest.raises(DamagedError, match="zlib") as caught:
        streamkit.Loader(path, batch_size=10, shuffle=False)[0]
    assert caught.value.key == index["key"][5] and caught.value.record == 5


@pytest.mark.parametrize("name", ["table-tfrecord", "table-hdf5", "table-gzip"])
@pytest.mark.parametrize("change", [-1, -2000, 1])
def test_a_shard_of_another_size_is_found_at_open(copy_of, name: str, change: int) -> None:
    path = copy_of(name)
    shard = streamkit.open(path).splits["train"].shards[1]
    os.truncate(path / shard.file, max(0, shard.nbytes + change))
    with pytest.raises(DamagedError, match=f"the manifest says {shard.nbytes}") as caught:
        streamkit.Loader(path)
    assert caught.value.shard == shard.file


@pytest.mark.parametrize("left", ["nothing", "half"])
def test_a_shard_cut_while_it_is_being_read(copy_of, left: str, how: str) -> None:
    path = copy_of("table-big")
    index = streamkit.open(path).index("train").to_pydict()
    loader = streamkit.Loader(path, batch_size=N, shuffle=False)
    shard = index["shard"][-1]
    size = os.path.getsize(path / shard)
    assert size > 4 * 4096  # so that whole pages vanish, which a mapping answers with SIGBUS
    os.truncate(path / shard, 0 if left == "nothing" else size // 2)
    with pytest.raises(DamagedError, match=r"cut|ends|crc32c") as caught:
        loader[0]
    assert caught.value.shard == shard
    assert caught.value.key == index["key"][index["shard"].index(shard) + caught.value.record]


@pytest.mark.fault(43)
def test_a_missing_shard(copy_of, how: str) -> None:
    path = copy_of("table-tfrecord")
    shard = streamkit.open(path).splits["train"].shards[2].file
    opened_before = streamkit.Loader(path, batch_size=N)
    (path / shard).unlink()
    with pytest.raises(DamagedError, match="missing") as caught:
        streamkit.Loader(path)
    assert caught.value.shard == shard
    try:
        x, _ = opened_before[0]
    except DamagedError as error:  # or it reads the bytes that it holds open
        assert "missing" in str(error) and error.shard == shard
    else:
        assert sorted(x[:, 0].tolist()) == list(range(N))


def test_a_shard_that_became_a_link_is_not_followed(copy_of, tmp_path: Path, how: str) -> None:
    path = copy_of("table-tfrecord")
    shard = streamkit.open(path).splits["train"].shards[2].file
    opened_before = streamkit.Loader(path, batch_size=N)
    shutil.move(path / shard, tmp_path / "elsewhere")
    (path / shard).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StreamkitError):
        streamkit.Loader(path)
    if how != "mapped":  # what is mapped is the file that was checked
        with pytest.raises(StreamkitError):
            opened_before[0]


@pytest.mark.parametrize("file", ["index-train.parquet", "chunks-train.parquet"])
def test_an_altered_index_is_found_by_its_digest(copy_of, file: str) -> None:
    path = copy_of("table-gzip")
    reading.flip(path / file, 40)
    with pytest.raises(DamagedError, match="digest") as caught:
        streamkit.Loader(path)
    assert caught.value.path == str(path / file)
    (path / file).unlink()
    with pytest.raises(DamagedError) as caught:
        streamkit.Loader(path)
    assert caught.value.path == str(path / file)


def test_an_altered_manifest_is_found_by_its_digest(copy_of) -> None:
    path = copy_of("table-tfrecord")
    text = (path / "manifest.json").read_text()
    for old, new in [(f'"samples": {N}', f'"samples": {N - 1}'), ('"seed": 0', '"seed": 1'), ("float32", "float16")]:
        assert old in text
        (path / "manifest.json").write_text(text.replace(old, new, 1))
        with pytest.raises(DamagedError, match="altered"):
            streamkit.Loader(path)


# An index that lies, with digests that agree


LIES = {
    "behind the end": ("x.offset", lambda v: np.where(np.arange(len(v)) == 9, 2**40, v)),
    "just behind the end": ("x.offset", lambda v: v + 100),
    "before the start": ("x.offset", lambda v: np.where(np.arange(len(v)) == 9, -1, v)),
    "largest integer": ("x.offset", lambda v: np.where(np.arange(len(v)) == 9, 2**63 - 1, v)),
    "longer than the shard": ("x.length", lambda v: np.where(np.arange(len(v)) == 9, 2**30, v)),
    "negative length": ("x.length", lambda v: np.where(np.arange(len(v)) == 9, -5, v)),
    "shorter than a sample": ("x.length", lambda v: np.where(np.arange(len(v)) == 9, 60, v)),
    "offsets are text": ("x.offset", lambda v: [str(n) for n in v]),
    "offsets are fractions": ("x.offset", lambda v: v + 0.5),
    "offsets are absent": ("x.offset", lambda v: [None] * len(v)),
    "checksums are absent": ("x.crc32c", lambda v: [None] * len(v)),
    "label of no class": ("label", lambda v: v + 3),
    "negative label": ("label", lambda v: v - 1),
    "labels are text": ("label", lambda v: [str(n) for n in v]),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("label_mode", ["int", "categorical"])
def test_an_index_that_lies_is_damage_and_never_another_error(copy_of, name: str, label_mode: str) -> None:
    path = copy_of("table-tfrecord")
    reading.alter_index(path, reading.with_column(*LIES[name]))
    with pytest.raises(DamagedError):
        for _ in streamkit.Loader(path, shuffle=False, label_mode=label_mode):
            pass


CHUNK_LIES = {
    "no such chunk": (False, "x.chunk", lambda v: v + 1),
    "negative chunk": (False, "x.chunk", lambda v: v - 1),
    "no such row in the chunk": (False, "x.row", lambda v: v + 5000),
    "negative row": (False, "x.row", lambda v: v - 1),
    "chunk behind the end": (True, "offset", lambda v: v + 2**40),
    "chunk before the start": (True, "offset", lambda v: v - 2**40),
    "chunk of no shard": (True, "shard", lambda v: ["../../etc/passwd"] * len(v)),
    "chunk of wrong bytes": (True, "crc32c", lambda v: v ^ 1),
}


@pytest.mark.parametrize("name", CHUNK_LIES)
def test_a_chunk_table_that_lies_is_damage_and_never_another_error(copy_of, name: str) -> None:
    path = copy_of("table-gzip")
    in_chunks, column, values = CHUNK_LIES[name]
    reading.alter_index(path, reading.with_column(column, values), chunks=in_chunks)
    with pytest.raises(DamagedError):
        for _ in streamkit.Loader(path, shuffle=False):
            pass


def test_an_index_without_a_column_or_with_too_few_rows(copy_of) -> None:
    path = copy_of("table-tfrecord")
    reading.alter_index(path, lambda table: table.drop_columns(["x.crc32c"]))
    with pytest.raises(DamagedError, match=re.escape("'x.crc32c'")):
        streamkit.Loader(path)
    reading.alter_index(path, lambda table: table.slice(0, N - 1))
    with pytest.raises(DamagedError, match=f"{N - 1} rows, the manifest says {N}"):
        streamkit.Loader(path)


# Descriptors, processes, threads


@pytest.mark.fault(75, 76)
def test_descriptors_stay_few_and_go_with_the_reader(tmp_path: Path, how: str) -> None:
    table = reading.numbered(tmp_path / "in", 100, width=64)
    out = reading.convert(table, tmp_path / "out", shard_size=256, compression="none")
    reader = reading.reader_of(out)
    assert len(reader.split.shards) == 100
    stored(reader, "x", np.arange(100))
    assert bool(reading.descriptors_in(out)) == (how != "mapped")
    del reader
    assert reading.settles(lambda: not reading.descriptors_in(out))


@pytest.mark.fault(75)
@pytest.mark.parametrize(
    ("limit", "n_elsewhere", "n_most"), [(4096, 0, 100), (256, 0, 64), (64, 0, 16), (2, 0, 1), (4096, 4000, FEW_OPEN)]
)
@pytest.mark.parametrize("at_once", [True, False])
def test_descriptors_are_a_share_of_what_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, n_elsewhere: int, n_most: int, at_once: bool
) -> None:
    names = [f"{i:03d}" for i in range(100)]
    for name in names:
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(storage.resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(storage, "n_descriptors", lambda: n_elsewhere)
    files, memory = storage.Files(tmp_path), np.zeros(300, np.uint8)
    one = np.ones(1, np.int64)
    parts = [storage.Part(name, 0 * one, 3 * one, 3 * i * one, None) for i, name in enumerate(names)]
    for some in [parts] if at_once else [[part] for part in parts]:
        files.read_parts(some, memory)
    assert bytes(memory) == "".join(names).encode()
    assert len(reading.descriptors_in(tmp_path)) == n_most
    files.close()


def test_of_several_files_the_failing_range_is_named(tmp_path: Path) -> None:
    """The number counts over all parts, also past many files that are opened."""
    for i in range(80):
        (tmp_path / f"{i}").write_bytes(bytes(4))
    two, memory = np.arange(2), np.zeros(320, np.uint8)
    parts = [storage.Part(f"{i}", 2 * two, 0 * two + 2, 4 * i + 2 * two, None) for i in range(80)]
    files = storage.Files(tmp_path)
    files.read_parts(parts, memory)
    os.truncate(tmp_path / "70", 3)
    with pytest.raises(native.BadRange, match="ends inside") as cut:
        files.read_parts(parts, memory)
    fresh = storage.Files(tmp_path)
    (tmp_path / "50").unlink()
    with pytest.raises(native.BadRange, match="missing") as missing:
        fresh.read_parts(parts, memory)
    assert (cut.value.i, missing.value.i) == (141, 100)
    with pytest.raises(native.BadRange):
        fresh.read_parts(parts[60:], memory)
    files.close()
    fresh.close()
    assert not reading.descriptors_in(tmp_path)  # none is taken as in use for good


@pytest.mark.fault(75)
@pytest.mark.skipif(not native.available(), reason="files are mapped by the C code")
def test_a_reader_of_mapped_files_holds_no_descriptor(made: Path) -> None:
    """Hundreds of loaders may wait for the garbage collector at once."""
    path = made / "pictures-tfrecord"
    before = reading.descriptors_in(path)  # of the process' others, some may come and go with what ran before
    readers = [reading.reader_of(path) for _ in range(3)]
    assert readers and reading.descriptors_in(path) == before


@pytest.mark.skipif(not native.available(), reason="files are mapped by the C code")
def test_large_splits_are_read_by_position_while_pages_come_from_the_disk(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, mapped = itertools.count(0, 0), 0
    monkeypatch.setattr("streamkit.reader.available_memory", lambda: 1)
    monkeypatch.setattr(mapping, "_n_fetched", lambda: next(fetched))
    copy = native.copy

    def counted(*arguments: Any) -> None:
        nonlocal mapped
        mapped += 1
        copy(*arguments)

    monkeypatch.setattr(native, "copy", counted)
    reader, rows = reading.reader_of(made / "table-tfrecord"), np.arange(N)
    expected = stored(reader, "x", rows)
    assert mapped == 1
    fetched = itertools.count(0, N)  # every page comes from the disk
    calls = []
    for _ in range(100):
        before = mapped
        assert stored(reader, "x", rows) == expected
        calls.append(mapped - before)
    assert [i for i, n in enumerate(calls) if n] == [0, 17, 50]  # tried again, and less and less often
    fetched = itertools.count(0, 0)
    for _ in range(100):
        stored(reader, "x", rows)
    assert not reader._maps.skips() and mapped > 60  # type: ignore[union-attr]


@pytest.mark.fault(76)
def test_a_hundred_shards_under_a_low_descriptor_limit(tmp_path: Path) -> None:
    table = reading.numbered(tmp_path / "in", 300, width=64)
    out = reading.convert(table, tmp_path / "out", shard_size=3 * 256, compression="none")
    code = """if True:
        import json, resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        import streamkit
        loader = streamkit.Loader(sys.argv[1], batch_size=50, num_workers=4)
        epochs = [sorted(int(v) for x, _ in loader for v in x[:, 0]) for _ in range(3)]
        print(json.dumps([len(loader.manifest.splits["train"].shards), epochs]))
    """
    n_shards, epochs = reading.run_python(code, out)
    assert n_shards == 100 and epochs == [list(range(300))] * 3


def read_in_child(reader: Reader, rows: np.ndarray, queue) -> None:
    queue.put([np.frombuffer(data, "<f4")[0] for data in stored(reader, "x", rows)])


@pytest.mark.fault(72)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_read_right_after_the_parent_has_read(made: Path, method: str, how: str) -> None:
    context = multiprocessing.get_context(method)
    reader = reading.reader_of(made / "table-tfrecord")
    numbers = [reading.row_of(key) for key in reading.keys_of(made / "table-tfrecord")]
    stored(reader, "x", np.arange(N))  # descriptors are open now
    random = np.random.default_rng(5)
    work = []
    for _ in range(3 if method == "fork" else 1):
        rows, queue = random.integers(0, N, 200), context.SimpleQueue()
        child = context.Process(target=read_in_child, args=(reader, rows, queue))
        child.start()
        work.append((child, rows, queue))
    mine = random.integers(0, N, 200)
    assert [np.frombuffer(d, "<f4")[0] for d in stored(reader, "x", mine)] == [numbers[r] for r in mine]
    for child, rows, queue in work:
        assert queue.get() == [numbers[r] for r in rows]
        child.join()
        assert child.exitcode == 0
    assert len(stored(reader, "x", np.arange(N))) == N  # a child that ended closed nothing of its parent's


@pytest.mark.fault(73)
def test_pickle_keeps_facts_and_no_handles(made: Path) -> None:
    reader = reading.reader_of(made / "pictures-hdf5")
    stored(reader, "image", np.arange(60))
    data = pickle.dumps(reader)
    assert len(data) < 20_000
    assert stored(pickle.loads(data), "image", np.arange(60)) == stored(reader, "image", np.arange(60))


@pytest.mark.parametrize("name", ["table-tfrecord", "pictures-hdf5"])
def test_eight_threads_read_what_one_reads(made: Path, name: str, how: str) -> None:
    reader = reading.reader_of(made / name)
    field, n = reader.manifest.schema.payloads[0].name, reader.split.samples
    serial = stored(reader, field, np.arange(n))
    row_sets = [np.random.default_rng(seed).integers(0, n, 40) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda rows: stored(reader, field, rows), row_sets))
    assert found == [[serial[r] for r in rows] for rows in row_sets]


def test_eight_threads_read_chunks_right_when_few_can_be_kept(made: Path) -> None:
    path = made / "table-gzip"
    full = reading.reader_of(path)
    reader = Reader(path, full.manifest, full.split, full.fields, kept_nbytes=1)
    field = reader.manifest.schema["x"]
    assert len(reader.chunk_table["offset"]) > 3
    numbers = np.array([reading.row_of(key) for key in reading.keys_of(path)])

    def first_values(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, N, 40)
        out = np.empty((40, 16), np.float32)
        reader.read_chunked(field, rows, out)
        return np.array_equal(out, np.repeat(numbers[rows][:, None], 16, 1))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(first_values, range(64)))
