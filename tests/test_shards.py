"""Both shard formats keep one promise: `write_shard` says where every payload lies, and `index_shard` finds the same."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from converting import EXTENSION, both
from crc32c import crc32c
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamkit.codecs import array as codec
from streamkit.digest import file_digest
from streamkit.errors import DamagedError, RefusedError
from streamkit.schema import Field, Schema
from streamkit.shards import Places, Record, shard_format
from streamkit.shards.chunked import chunk_rows
from streamkit.shards.tfrecord import read_records

CODECS = ("gzip", "gzip:9", "lzf", "zstd", "zstd:19", "lz4", "blosc2")


# What is written


def write(
    format: str, folder: Path, schema: Schema, records: list[Record], name: str = "s-00000"
) -> tuple[Path, Places]:
    path = folder / f"{name}.{EXTENSION[format]}"
    path.unlink(missing_ok=True)
    return path, shard_format(format).write_shard(path, schema, iter(records))


def simple(n: int = 5) -> tuple[Schema, list[Record]]:
    """A schema and records with an encoded image and a label."""
    schema = Schema((Field("image", "image", "uint8", (None, None, 3), "jpeg"), Field("label", "label", "int64")))
    records = [Record(f"{i}.jpg", {"image": bytes([i]) * (100 + 37 * i)}, {"label": i - 2}, {}) for i in range(n)]
    return schema, records


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "int8": st.integers(-(2**7), 2**7 - 1),
    "uint8": st.integers(0, 2**8 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float32": st.floats(width=32),
    "float64": st.floats(width=32),
    "bool": st.booleans(),
}


def field(name: str) -> st.SearchStrategy[Field]:
    return st.one_of(
        st.just(Field(name, "image", "uint8", (None, None, None), "mixed")),
        st.just(Field(name, "bytes", "uint8", (None,))),
        st.builds(
            lambda shape, dtype: Field(name, "array", dtype, tuple(shape)),
            st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=3),
            st.sampled_from(["uint8", "int16", "float32", "float64", "bool", "complex64"]),
        ),
        st.builds(lambda dtype: Field(name, "number", dtype), st.sampled_from(list(COLUMNS))),
        st.just(Field(name, "label", "int64")),
        st.just(Field(name, "string", "string")),
    )


def is_clear(names: list[str]) -> bool:
    """No name is another's with a suffix that HDF5 datasets carry; hypothesis would find that, and it is known."""
    return len(set(names)) == len(names) and not any(n.endswith(("_offsets", "_shapes")) for n in names)


@st.composite
def shards(draw: st.DrawFn) -> tuple[Schema, list[Record]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4).filter(is_clear))
    schema = Schema(tuple(draw(field(name)) for name in names))
    assume(schema.payloads)
    records = []
    for i in range(draw(st.integers(1, 6))):
        stored: dict[str, Any] = {}
        columns: dict[str, Any] = {}
        facts: dict[str, Any] = {}
        for f in schema:
            if f.kind == "array":
                shape = tuple(draw(st.integers(0, 3)) if d is None else d for d in f.shape)
                nbytes = int(np.prod(shape)) * np.dtype(f.dtype).itemsize
                stored[f.name] = draw(st.binary(min_size=nbytes, max_size=nbytes))
                facts[f"{f.name}.shape"] = shape
            elif f.is_payload:
                stored[f.name] = draw(st.binary(max_size=300))
            elif f.kind == "string":
                columns[f.name] = draw(st.text(st.characters(codec="utf-8"), max_size=8))
            else:
                columns[f.name] = draw(COLUMNS[f.dtype])
        records.append(Record(f"item {i}", stored, columns, facts))
    return schema, records


def assert_same(a: Places, b: Places) -> None:
    assert a.n == b.n
    assert set(a.ranges) == set(b.ranges)
    for name, values in a.ranges.items():
        np.testing.assert_array_equal(values, b.ranges[name], err_msg=name)
        assert values.shape == (a.n,)
    assert (a.chunks is None) == (b.chunks is None)
    for name, values in (a.chunks or {}).items():
        np.testing.assert_array_equal(values, b.chunks[name], err_msg=name)  # type: ignore[index]


@both
@given(shard=shards())
@settings(max_examples=80)
def test_places_lead_to_the_payloads(format: str, tmp_path: Path, shard: tuple[Schema, list[Record]]) -> None:
    schema, records = shard
    path, places = write(format, tmp_path, schema, records)
    data = path.read_bytes()
    assert places.n == len(records)
    for f in schema.payloads:
        for i, record in enumerate(records):
            offset, length = int(places.ranges[f"{f.name}.offset"][i]), int(places.ranges[f"{f.name}.length"][i])
            assert data[offset : offset + length] == record.payloads[f.name]
            assert int(places.ranges[f"{f.name}.crc32c"][i]) == crc32c(record.payloads[f.name])
    assert_same(shard_format(format).index_shard(path, schema), places)


@both
@given(shard=shards())
@settings(max_examples=40)
def test_equal_records_give_equal_bytes(format: str, tmp_path: Path, shard: tuple[Schema, list[Record]]) -> None:
    schema, records = shard
    first = write(format, tmp_path, schema, records, "a")[0].read_bytes()
    second = write(format, tmp_path, schema, records, "b")[0].read_bytes()
    assert first == second


@both
def test_no_clock_in_the_bytes(format: str, tmp_path: Path) -> None:
    """HDF5 can note modification times to the second, so the second file is written in another second."""
    schema, records = chunked("gzip")[:2] if format == "hdf5" else simple()
    schema = Schema((*schema, Field("word", "string", "string"), Field("n", "label", "int64", class_names=("a",))))
    records = [r._replace(columns={**r.columns, "word": "é", "n": 0}) for r in records]
    first = write(format, tmp_path, schema, records, "a")[0].read_bytes()
    time.sleep(1.1)
    assert write(format, tmp_path, schema, records, "b")[0].read_bytes() == first


@both
def test_many_records_and_many_bytes(format: str, tmp_path: Path) -> None:
    """More records than one vectored write takes (1024), and more bytes than the writer holds back (1 MB)."""
    schema = Schema((Field("a", "bytes", "uint8", (None,)), Field("b", "array", "int32", (3,))))
    rng = np.random.default_rng(0)
    records = [
        Record(str(i), {"a": rng.bytes(int(rng.integers(0, 3000))), "b": rng.bytes(12)}, {}, {}) for i in range(2600)
    ]
    path, places = write(format, tmp_path, schema, records)
    data = path.read_bytes()
    assert len(data) > 3_000_000
    for name in "ab":
        offsets, lengths = places.ranges[f"{name}.offset"].tolist(), places.ranges[f"{name}.length"].tolist()
        assert all(data[o : o + n] == r.payloads[name] for o, n, r in zip(offsets, lengths, records, strict=True))
    assert_same(shard_format(format).index_shard(path, schema), places)


@pytest.mark.parametrize("short", [False, True])
@both
def test_one_large_record_among_many_small_ones(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """More parts than a call takes and more bytes than are joined; and a disk that takes a part of each write."""
    if short:
        writev, pwritev = os.writev, os.pwritev
        monkeypatch.setattr(os, "writev", lambda fd, parts: writev(fd, [bytes(memoryview(parts[0])[:1000])]))
        monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [bytes(memoryview(parts[0])[:1000])], at))
    schema = Schema((Field("a", "bytes", "uint8", (None,)),))
    sizes = [100] * 700 + [3 << 20] + [5] * 700
    records = [Record(str(i), {"a": bytes([i % 251]) * n}, {}, {}) for i, n in enumerate(sizes)]
    path, places = write(format, tmp_path, schema, records)
    assert_same(shard_format(format).index_shard(path, schema), places)
    assert places.digest in ("", file_digest(path)) and bool(places.digest) == (format == "tfrecord")
    data, offsets = path.read_bytes(), places.ranges["a.offset"].tolist()
    assert all(data[o : o + n] == r.payloads["a"] for o, n, r in zip(offsets, sizes, records, strict=True))


@both
def test_no_record_at_all(format: str, tmp_path: Path) -> None:
    schema, _ = simple()
    path, places = write(format, tmp_path, schema, [])
    assert places.n == 0
    assert_same(shard_format(format).index_shard(path, schema), places)


def test_the_crc_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # Source: RFC 3720, B.4 and the catalogue of CRCs


# Chunked HDF5


def chunked(
    pipeline: str, n: int = 9, rows: int = 4, dtype: str = "float32"
) -> tuple[Schema, list[Record], np.ndarray]:
    """`n` samples of shape (5, 3) in chunks of `rows`, stored through a pipeline of filters."""
    encoding = pipeline if pipeline.startswith("blosc2") else f"shuffle+{pipeline}"
    schema = Schema((Field("x", "array", dtype, (5, 3), encoding, rows),))
    values = np.cumsum(np.random.default_rng(n).integers(-2, 3, (n, 5, 3)), axis=1).astype(dtype)
    return schema, [Record(str(i), {"x": codec.to_bytes(v)}, {}, {}) for i, v in enumerate(values)], values


@pytest.mark.parametrize("pipeline", CODECS)
@pytest.mark.parametrize("n, rows", [(8, 4), (9, 4), (3, 4), (1, 1), (0, 4)])
def test_chunks_lead_to_the_samples(tmp_path: Path, pipeline: str, n: int, rows: int) -> None:
    schema, records, values = chunked(pipeline, n, rows)
    path, places = write("hdf5", tmp_path, schema, records)
    data = path.read_bytes()
    assert places.chunks is not None
    assert len(places.chunks["offset"]) == -(-n // rows)
    filters = tuple(schema["x"].encoding.partition(":")[0].split("+"))
    for i in range(n):
        chunk, row = int(places.ranges["x.chunk"][i]), int(places.ranges["x.row"][i])
        offset, length = int(places.chunks["offset"][chunk]), int(places.chunks["length"][chunk])
        stored = data[offset : offset + length]
        assert crc32c(stored) == int(places.chunks["crc32c"][chunk])
        decoded = codec.decode_chunk(stored, filters, 4, rows * 60)
        np.testing.assert_array_equal(decoded.view("<f4").reshape(rows, 5, 3)[row], values[i])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"][:], values.reshape(n, 5, 3))
    assert_same(shard_format("hdf5").index_shard(path, schema), places)
    assert write("hdf5", tmp_path, schema, records, "again")[0].read_bytes() == data


def test_chunks_are_about_64_kb() -> None:
    for nbytes in (1, 12, 100, 5000, 40_000, 65_536, 70_000, 10**7):
        rows = chunk_rows(nbytes)
        assert rows == 1 or (rows - 1) * nbytes < 64 * 1024 <= rows * nbytes


# Damage


@both
def test_every_cut_is_seen(format: str, tmp_path: Path) -> None:
    """A file cut anywhere raises DamagedError; cut between two TFRecords it has fewer records than the manifest says."""
    schema, records = simple()
    path, places = write(format, tmp_path, schema, records)
    data = path.read_bytes()
    for size in [0, 1, 11, 12, *range(13, len(data), 29), len(data) - 1]:
        path.write_bytes(data[:size])
        try:
            found = shard_format(format).index_shard(path, schema)
        except DamagedError as error:
            assert error.shard == path.name
        else:
            assert found.n < places.n, f"cut at {size} of {len(data)}"


def test_every_flip_in_a_tfrecord_is_named(tmp_path: Path) -> None:
    schema, records = simple()
    path, _ = write("tfrecord", tmp_path, schema, records)
    data = path.read_bytes()
    starts = [start - 12 for start, _ in read_records(path)]
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        with pytest.raises(DamagedError) as caught:
            shard_format("tfrecord").index_shard(path, schema)
        assert caught.value.record == sum(start <= at for start in starts) - 1


def test_flips_in_hdf5_raise_nothing_but_damaged(tmp_path: Path) -> None:
    """A flip in a payload changes its crc32c; one in the layout raises, moves a range, or hits what nobody reads."""
    for schema, records in (simple(), chunked("gzip")[:2]):
        path, places = write("hdf5", tmp_path, schema, records)
        data = path.read_bytes()
        covered = np.zeros(len(data), bool)
        named = (places.chunks, "") if places.chunks is not None else (places.ranges, "image.")
        for offset, length in zip(named[0][f"{named[1]}offset"], named[0][f"{named[1]}length"], strict=True):
            covered[int(offset) : int(offset + length)] = True
        for at in range(0, len(data), 9):
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
            try:
                found = shard_format("hdf5").index_shard(path, schema)
            except (DamagedError, RefusedError):
                continue
            if covered[at]:
                with pytest.raises(AssertionError):
                    assert_same(found, places)


@both
@pytest.mark.parametrize("content", [b"", b"\0" * 600, b"<html>404</html>", b"\x89HDF\r\n\x1a\n" + b"\xff" * 500])
def test_other_files_are_damaged_shards(format: str, tmp_path: Path, content: bytes) -> None:
    schema, _ = simple()
    path = tmp_path / f"s-00000.{EXTENSION[format]}"
    path.write_bytes(content)
    if format == "tfrecord" and not content:
        assert shard_format(format).index_shard(path, schema).n == 0  # the manifest's count catches it
        return
    with pytest.raises(DamagedError, match=path.name):
        shard_format(format).index_shard(path, schema)


@both
def test_a_missing_shard(format: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="s-00000"):
        shard_format(format).index_shard(tmp_path / f"s-00000.{EXTENSION[format]}", simple()[0])


@both
def test_a_shard_of_other_fields(format: str, tmp_path: Path) -> None:
    schema, records = simple()
    path, _ = write(format, tmp_path, schema, records)
    with pytest.raises(DamagedError):
        shard_format(format).index_shard(path, Schema((Field("sound", "bytes", "uint8", (None,)),)))
    with pytest.raises(DamagedError):
        shard_format(format).index_shard(path, Schema((Field("label", "bytes", "uint8", (None,)),)))


def test_a_huge_length_is_not_allocated(tmp_path: Path) -> None:
    from streamkit.shards.tfrecord import masked

    length = struct.pack("<Q", 1 << 60)
    path = tmp_path / "s-00000.tfrecord"
    path.write_bytes(length + struct.pack("<I", masked(crc32c(length))) + b"x" * 100)
    with pytest.raises(DamagedError, match="limit"):
        shard_format("tfrecord").index_shard(path, simple()[0])


@pytest.mark.parametrize("link", ["soft", "external", "virtual", "external storage"])
def test_links_out_of_an_hdf5_shard_are_not_followed(tmp_path: Path, link: str) -> None:
    schema = Schema((Field("x", "array", "uint8", (4,)),))
    secret = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = secret
    (tmp_path / "other.bin").write_bytes(secret.tobytes())
    path = tmp_path / "s-00000.h5"
    with h5py.File(path, "w") as file:
        if link == "soft":
            file["y"] = secret
            file["x"] = h5py.SoftLink("/y")
        elif link == "external":
            file["x"] = h5py.ExternalLink("other.h5", "/x")
        elif link == "virtual":
            layout = h5py.VirtualLayout((3, 4), np.uint8)
            layout[:] = h5py.VirtualSource("other.h5", "x", (3, 4))
            file.create_virtual_dataset("x", layout)
        else:
            file.create_dataset("x", (3, 4), np.uint8, external=[(str(tmp_path / "other.bin"), 0, 12)])
    with pytest.raises((DamagedError, RefusedError)):
        shard_format("hdf5").index_shard(path, schema)
