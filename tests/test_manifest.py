"""The manifest: what is dumped is parsed, and what is altered is refused with one of streamkit's own errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import blake3
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import streamkit
from streamkit.errors import DamagedError, FormatVersionError, RefusedError, StreamkitError, UsageError
from streamkit.manifest import FORMAT_VERSION, MAX_NBYTES, Manifest
from streamkit.schema import Field, Schema
from streamkit.splits import Shard, Split
from streamkit.strict import canonical, plain_name

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
COUNT = st.integers(0, 2**53)
PLAIN = st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(PLAIN, unique=True, min_size=1, max_size=5))
    splits = {}
    for i in range(draw(st.integers(1, 3))):
        mine = names[i :: draw(st.integers(1, 3)) + i] if i == 0 else [f"{n}-{i}" for n in names[:2]]
        counts = [(draw(COUNT), draw(COUNT)) for _ in mine]
        shards = tuple(Shard(n, k, 16 * k + more, draw(HEX)) for n, (k, more) in zip(mine, counts, strict=True))
        splits[f"split{i}"] = Split(
            f"split{i}", sum(s.samples for s in shards), sum(s.nbytes for s in shards), f"index-{i}", draw(HEX), shards
        )
    assume(
        len({s.file for split in splits.values() for s in split.shards}) == sum(len(s.shards) for s in splits.values())
    )
    schema = Schema(
        (
            Field("image", "image", "uint8", (None, None, draw(st.sampled_from([1, 3, None]))), "jpeg"),
            Field("x", "array", "float32", (draw(st.integers(1, 9)), 4), "shuffle+gzip", draw(st.integers(1, 99))),
            Field("label", "label", "int64", (), class_names=tuple(draw(st.lists(TEXT, max_size=4)))),
        )
    )
    return Manifest(
        format=draw(st.sampled_from(["tfrecord", "hdf5"])),
        schema=schema,
        splits=splits,
        options=draw(st.dictionaries(TEXT, JSON, max_size=3)),
        source=draw(st.dictionaries(TEXT, JSON, max_size=3)),
        statistics=draw(st.dictionaries(TEXT, JSON, max_size=3)),
        skipped=draw(COUNT),
    )


@given(manifest=manifests())
def test_what_is_dumped_is_parsed(manifest: Manifest) -> None:
    text = manifest.dump()
    back = Manifest.parse(text)
    assert back == manifest
    assert back.dump() == text
    assert back.dataset_id == manifest.dataset_id == json.loads(text)["dataset_id"]
    assert text.isascii()


def small() -> Manifest:
    shard = Shard("train-00000.h5", 3, 100, "ab" * 32)
    split = Split("train", 3, 100, "index-train.parquet", "cd" * 32, (shard,), "chunks-train.parquet", "ef" * 32)
    schema = Schema(
        (Field("label", "label", "int64", (), class_names=("ä", "b")), Field("x", "array", "float32", (4,)))
    )
    counts = {"class_counts": {"train": {"ä": 1, "b": 2}}}
    return Manifest("hdf5", schema, {"train": split}, {"seed": 0}, {"items": 3}, counts)


@pytest.mark.fault(48)
def test_every_flipped_byte_is_found() -> None:
    """FAULTS 48. Each byte of the file, three ways; whatever it hits, the error is one of three and has one line."""
    text = small().dump().encode()
    for at in range(len(text)):
        for bit in (0, 3, 7):
            with pytest.raises((DamagedError, RefusedError, FormatVersionError)) as caught:
                Manifest.parse(text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :], "out/manifest.json")
            assert "\n" not in str(caught.value)


@pytest.mark.fault(48)
def test_every_cut_is_found() -> None:
    text = small().dump().encode()
    for size in range(len(text) - 1):
        with pytest.raises(DamagedError):
            Manifest.parse(text[:size])


@given(data=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_other_content_is_no_manifest(data: bytes) -> None:
    with pytest.raises((DamagedError, FormatVersionError, RefusedError)):
        Manifest.parse(data)


def signed(**changes: Any) -> bytes:
    """A manifest with other facts and a right digest: what a hostile writer can make."""
    data = json.loads(small().dump())
    data.pop("dataset_id")
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = data
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    data["dataset_id"] = blake3.blake3(canonical(data).encode()).hexdigest()
    return canonical(data).encode()


HOSTILE_COUNTS = [-1, 2**63, 1e308, 1.5, "3", None, True, [], {}]
ESCAPES = [
    "../x",
    "/etc/passwd",
    "C:\\x",
    "..%2f",
    "a\0b",
    "",
    ".",
    "..",
    "a/b",
    "file:x",
    "a\nb",
    "\x1b[0m",
    "x" * 300,
]
ESCAPES += ["http://169.254.169.254/", "s3::x", None, 3, ["x"]]


def test_the_signed_manifest_itself_is_good() -> None:
    assert Manifest.parse(signed()) == small()


@pytest.mark.fault(90)
@pytest.mark.parametrize("value", HOSTILE_COUNTS, ids=repr)
@pytest.mark.parametrize(
    "place", ["splits__train__samples", "splits__train__bytes", "splits__train__shards__0__bytes", "skipped"]
)
def test_counts_are_counts(place: str, value: Any) -> None:
    """FAULTS 90."""
    with pytest.raises((DamagedError, RefusedError)):
        Manifest.parse(signed(**{place: value}))


@pytest.mark.fault(81)
@pytest.mark.parametrize("name", ESCAPES, ids=lambda name: repr(name)[:20])
@pytest.mark.parametrize("place", ["shards__0__file", "index__file", "chunks__file"])
def test_names_stay_in_the_folder(place: str, name: Any) -> None:
    """FAULTS 81."""
    if name is None and place == "chunks__file":
        return  # that is how a split without chunks is spelled
    with pytest.raises((RefusedError, DamagedError)):
        Manifest.parse(signed(**{f"splits__train__{place}": name}))


@given(name=st.text(max_size=30))
def test_plain_names_are_one_part_of_a_path(name: str) -> None:
    try:
        assert plain_name(name) == name
    except RefusedError:
        return
    assert (Path("/root/out") / name).resolve().parent == Path("/root/out")
    assert name.isprintable() and name


@pytest.mark.parametrize(
    "changes",
    [
        {"splits__train__samples": 4},
        {"splits": []},
        {"splits": {"train": None}},
        {"splits__train__shards": None},
        {"splits__train__shards": [1]},
        {"splits__train__index": "index-train.parquet"},
        {"splits__train__chunks": "x"},
        {"splits__train__index": ...},
        {"schema": ...},
        {"schema": []},
        {"schema": {"x": 3}},
        {"schema__x__dtype": "object"},
        {"schema__x__dtype": "O"},
        {"schema__x__dtype": ["f4"]},
        {"schema__x__dtype": "V8"},
        {"schema__x__dtype": "i4,(f"},
        {"schema__x__dtype": "i4,f4"},
        {"schema__x__dtype": "(2,3)f4"},
        {"schema__x__kind": "pickle"},
        {"schema__x__shape": [-1]},
        {"schema__x__shape": 4},
        {"schema__x__shape": [True]},
        {"schema__x__shape": [1] * 9},
        {"schema__y": {"kind": "image", "dtype": "uint8", "shape": [0, 16, 3], "encoding": "jpeg"}},
        {"schema__x__shape": "44"},
        {"schema__x__chunk_rows": "many"},
        {"schema__x__chunk_rows": 0},
        {"schema__x__chunk_rows": -3},
        {"schema__label__class_names": "ab"},
        {"schema__label__class_names": [1, 2]},
        {"schema__a/../b": {"kind": "array", "dtype": "uint8", "shape": []}},
        {"format": "pickle"},
        {"format": None},
        {"options": None},
        {"options": []},
        {"statistics": 3},
        {"source": "x"},
        {"streamkit_version": ...},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_facts_of_the_wrong_kind(changes: dict[str, Any]) -> None:
    with pytest.raises((DamagedError, RefusedError)) as caught:
        Manifest.parse(signed(**changes))
    assert "\n" not in str(caught.value)


def test_a_shard_is_named_once() -> None:
    shard = json.loads(small().dump())["splits"]["train"]["shards"][0]
    with pytest.raises(DamagedError, match="twice"):
        Manifest.parse(signed(splits__train__shards=[shard, shard], splits__train__samples=6, splits__train__bytes=200))


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", DamagedError),
        (b'{"format_version": 1, "format_version": 1}', DamagedError),
        (b'{"format_version": NaN}', DamagedError),
        (b'{"format_version": 1e999}', FormatVersionError),
        (b"[" * 100_000, RefusedError),
        (b'{"a":' * 100_000, RefusedError),
        (b'{"format_version": 99, "streamkit_version": "7.0"}', FormatVersionError),
        (b'{"format_version": "1"}', FormatVersionError),
        (b'{"format_version": true}', DamagedError),
        (b"\xff\xfe\x00", DamagedError),
        (b'{"format_version": 1, "dataset_id": []}', DamagedError),
        (b'{"format_version": 1, "n": ' + b"9" * 5000 + b"}", DamagedError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_texts(text: bytes, error: type[StreamkitError]) -> None:
    with pytest.raises(error):
        Manifest.parse(text)


@pytest.mark.fault(48)
def test_deep_nesting_with_a_right_digest_is_refused() -> None:
    deep: Any = 0
    for _ in range(300):
        deep = [deep]
    with pytest.raises((RefusedError, DamagedError)):
        Manifest.parse(signed(options__x=deep))


@pytest.mark.fault(48)
def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(5 << 40)
    with pytest.raises(RefusedError, match=str(MAX_NBYTES)):
        streamkit.open(tmp_path)


@pytest.mark.fault(49)
def test_the_version_is_looked_at_first() -> None:
    """FAULTS 49: even where all the rest is wrong, and the needed release is named."""
    with pytest.raises(FormatVersionError, match=r"streamkit >= 9\.1"):
        Manifest.parse(b'{"format_version": %d, "streamkit_version": "9.1", "x": 3}' % (FORMAT_VERSION + 1))


@pytest.mark.fault(50)
def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    """FAULTS 50."""
    with pytest.raises(UsageError, match="does not exist"):
        streamkit.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no dataset: it is empty"):
        streamkit.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no dataset"):
        streamkit.open(tmp_path)
    with pytest.raises(UsageError, match="a file"):
        streamkit.open(tmp_path / "file")
    (tmp_path / "train-00000.tfrecord").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"manifest.json is missing.*copy, or convert again into a new folder"):
        streamkit.open(tmp_path)
    (tmp_path / ".streamkit").mkdir()
    with pytest.raises(DamagedError, match="never finished"):
        streamkit.open(tmp_path)


def test_class_weights_balance() -> None:
    weights = small().class_weights("train")
    assert weights == {0: 3 / 2, 1: 3 / 4}
    with pytest.raises(UsageError, match="class counts"):
        small().class_weights("val")


def test_splits_by_name() -> None:
    manifest = small()
    assert manifest.split() is manifest.split("train")
    two = dataclasses.replace(
        manifest, splits={**manifest.splits, "val": Split("val", 0, 0, "index-val.parquet", "", ())}
    )
    with pytest.raises(UsageError, match="train, val"):
        two.split()
    with pytest.raises(UsageError, match="no split 'test'"):
        two.split("test")
