"""Datasets that someone made to do harm: refused before anything outside them is opened. FAULTS cases 81 to 90."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import h5py
import numpy as np
import PIL.Image
import pytest
import reading
from converting import cli

import streamkit
from streamkit import DamagedError, RefusedError, StreamkitError
from streamkit.cli import main
from streamkit.reports.dali import write_dali_index
from streamkit.strict import canonical

Copied = Callable[[str], Path]
NAMES = [
    "../outside/secret",
    "/etc/passwd",
    "C:\\x",
    "..%2fsecret",
    "a\0b",
    "file:secret",
    "pipe:id",
    "s3::x",
    "http://169.254.169.254/latest",
    "",
    "..",
]
PLACES = ["shard", "index", "chunks", "side file", "split"]


def sign(path: Path, change: Callable[[dict[str, Any]], None] = lambda data: None, digests: bool = True) -> None:
    """Rewrite a manifest with other facts and digests that agree: what a hostile writer can do."""
    data = json.loads((path / "manifest.json").read_text())
    del data["dataset_id"]
    for split in data["splits"].values() if digests else ():
        for entry in (*split["shards"], split["index"], *([split["chunks"]] if "chunks" in split else [])):
            content = (path / entry["file"]).read_bytes()
            entry["digest"] = blake3.blake3(content).hexdigest()
            if "bytes" in entry:
                entry["bytes"] = len(content)
        split["bytes"] = sum(shard["bytes"] for shard in split["shards"])
    change(data)
    data["dataset_id"] = blake3.blake3(canonical(data).encode()).hexdigest()
    (path / "manifest.json").write_text(canonical(data))


def rename(place: str, name: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        split = data["splits"]["train"]
        if place == "shard":
            split["shards"][1]["file"] = name
        elif place == "side file":
            data["files"][name] = data["files"].pop("train.h5")
        elif place == "split":
            data["splits"][name] = data["splits"].pop("train")
        else:
            split[place]["file"] = name

    return change


# Each of these opens the dataset given in every way there is, and prints what it opened.
WATCHED = """
import json, os, sys
import streamkit, pyarrow.parquet, h5py, hdf5plugin, imagecodecs
from streamkit.health import decode, drop
opened, found = [], {}
def hook(event, args):
    if event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "exec", "pickle.find_class"):
        if event != "exec":
            opened.append((event, os.fsdecode(args[0]) if isinstance(args[0], (str, bytes)) else repr(args[0])))
sys.addaudithook(hook)
def read(path):
    for split in streamkit.open(path).splits:
        for batch in streamkit.Loader(path, split=split, num_workers=0, batch_size=None): pass
ways = {
    "read": read,
    "verify": lambda path: streamkit.verify(path, full=True, workers=1),
    "drop": lambda path: streamkit.repair(path, drop=True, workers=1),
}
for path in sys.argv[1:]:
    for way, go in ways.items():
        try:
            done = go(path)
            code = 9 if getattr(done, "refused", False) else 0 if getattr(done, "ok", True) else 4
        except streamkit.StreamkitError as error:
            code = error.exit_code
            assert str(error).isprintable(), repr(str(error))
        found.setdefault(path, {})[way] = code
print(json.dumps({"opened": opened, "codes": found}))
"""


@pytest.mark.fault(81, 82, 85)
def test_nothing_outside_the_dataset_is_opened(datasets: Path, tmp_path: Path) -> None:
    """Cases 81, 82 and 85, in one process whose every opening is watched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    secrets = {}
    paths = []

    def copy(title: str) -> Path:
        path = tmp_path / f"{len(paths):03d} {title}"
        paths.append(path)
        return Path(shutil.copytree(datasets / "table-gzip", path))

    for place in PLACES:
        for name in NAMES:
            sign(copy(place), rename(place, name))
    n_names = len(paths)
    for name in ("train-00001.h5", "index-train.parquet", "chunks-train.parquet", "train.h5", "manifest.json"):
        path = copy(f"link {name}")
        secrets[name] = outside / f"{len(secrets)}"
        shutil.move(path / name, secrets[name])
        (path / name).symlink_to(secrets[name])
    report = reading.run_python(WATCHED, *paths)
    codes = [report["codes"][str(path)] for path in paths]
    for path, code in zip(paths[:n_names], codes, strict=False):
        assert set(code.values()) == {9}, (path.name, code)
    for path, code in zip(paths[n_names:], codes[n_names:], strict=True):
        # What readers never open is no danger to them; `drop` makes it anew in the link's place.
        assert code == ({"read": 0, "verify": 9, "drop": 0} if "train.h5" in path.name else code), path.name
        assert code["verify"] == 9 and code["read"] in (0, 9), (path.name, code)
        assert "train.h5" in path.name or code["read"] == 9, (path.name, code)
    links = {str(path / path.name.rpartition(" ")[2]) for path in paths[n_names:]}
    assert len(report["opened"]) > 10
    for event, what in report["opened"]:
        assert event == "open", (event, what)
        assert not what.startswith(("/etc/passwd", "http", str(outside))), what
        # A link is opened with O_NOFOLLOW at most, which fails; and `drop` opens the new file of that name.
        assert what not in links or what.endswith("train.h5"), what
    for secret in secrets.values():
        assert secret.is_file()


@pytest.mark.fault(81)
def test_no_linked_folder_leads_out(datasets: Path, harm_sources: Path, tmp_path: Path) -> None:
    """Case 81: adopted files lie in folders, any of which may be a link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    shards = Path(shutil.copytree(datasets / "table-tfrecord", tmp_path / "shards"))
    name = "train-00001.tfrecord"
    reading.alter_index(
        shards, reading.with_column("shard", lambda v: [f"link/{name}" if shard == name else shard for shard in v])
    )
    shutil.move(shards / name, outside / name)
    (shards / "link").symlink_to(outside)

    def linked(data: dict[str, Any]) -> None:
        data["root"] = "."
        data["splits"]["train"]["shards"][1]["file"] = f"link/{name}"

    sign(shards, linked, digests=False)
    loose = Path(shutil.copytree(harm_sources / "pictures", tmp_path / "loose"))
    streamkit.index(loose, tmp_path / "adopted")
    for file in (tmp_path / "adopted").iterdir():
        shutil.move(file, loose)
    sign(loose, lambda data: data.update(root="."), digests=False)
    shutil.move(loose / "c1", outside)
    (loose / "c1").symlink_to(outside / "c1")
    report = reading.run_python(WATCHED, shards, loose)
    for path in (shards, loose):
        codes = report["codes"][str(path)]
        assert codes["read"] == codes["verify"] == 9, (path.name, codes)
    inside = [what for _, what in report["opened"] if what.startswith(str(tmp_path))]
    assert len(inside) > 10
    for what in inside:
        assert not what.startswith((str(outside), f"{shards}/link/", f"{loose}/c1/")), what
    with pytest.raises(RefusedError, match="leads out of the dataset"):
        write_dali_index(shards)
    assert not list(outside.glob("*.idx"))


@pytest.mark.fault(82)
@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "external storage"])
def test_hdf5_links_in_a_shard_are_not_followed(copied: Copied, tmp_path: Path, kind: str) -> None:
    """Case 82: reading takes byte ranges; where libhdf5 must look at a shard, its datasets have to lie in it."""
    path = copied("ragged-hdf5")
    (tmp_path / "other.bin").write_bytes(bytes(800))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["array_offsets"] = np.zeros(9, np.int64)
    with h5py.File(path / "train-00000.h5", "r+") as file:
        values = file["array_offsets"][:]
        del file["array_offsets"]
        if kind == "soft":
            file["hidden"] = values
            file["array_offsets"] = h5py.SoftLink("/hidden")
        elif kind == "external":
            file["array_offsets"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/array_offsets")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(values.shape, np.int64)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "array_offsets", values.shape)
            file.create_virtual_dataset("array_offsets", layout)
        else:
            place = [(str(tmp_path / "other.bin"), 0, values.nbytes)]
            file.create_dataset("array_offsets", values.shape, np.int64, external=place)
    sign(path)
    (path / "train-00001.h5").unlink()  # so that there is something to repair, and the joined file is made again
    with pytest.raises(DamagedError, match="array_offsets"):
        streamkit.repair(path, drop=True)
    assert not list(path.parent.glob(f".{path.name}.new/manifest.json"))


BOMBS: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "a shape": ("table-zlib", lambda d: d["schema"]["x"].update(shape=[1 << 40])),
    "a chunk": ("table-gzip", lambda d: d["schema"]["x"].update(chunk_rows=1 << 40)),
    "axes": ("table-zlib", lambda d: d["schema"]["x"].update(shape=[2] * 9)),
    "objects": ("table-zlib", lambda d: d["schema"]["x"].update(dtype="object")),
    "a filter": ("table-gzip", lambda d: d["schema"]["x"].update(encoding="shuffle+evil")),
    "an encoding": ("table-zlib", lambda d: d["schema"]["x"].update(encoding="pickle")),
    "samples": ("table-zlib", lambda d: d["splits"]["train"].update(samples=2**62)),
    "bytes": ("table-zlib", lambda d: d["splits"]["train"]["shards"][0].update(bytes=2**62)),
    "classes": ("table-zlib", lambda d: d["schema"]["label"].update(class_names=["a"])),
    "a version": ("table-zlib", lambda d: d.update(format_version=2)),
}


@pytest.mark.fault(83, 85, 90)
@pytest.mark.parametrize("name", BOMBS)
def test_facts_that_would_take_all_memory_or_run_code(copied: Copied, name: str) -> None:
    """Cases 83, 85 and 90."""
    dataset, change = BOMBS[name]
    path = copied(dataset)
    sign(path, change)
    with pytest.raises(StreamkitError) as caught:
        for _ in streamkit.Loader(path, split="train"):
            pass
    assert caught.value.exit_code in (4, 8, 9)
    try:
        assert name in ("a filter", "an encoding") or not streamkit.verify(path, full=True).ok
    except StreamkitError as error:
        assert error.exit_code in (8, 9)


@pytest.mark.fault(84)
def test_compressed_payloads_cannot_grow_beyond_their_shape(copied: Copied) -> None:
    """Case 84."""
    import zlib

    from crc32c import crc32c

    path = copied("table-zlib")
    row = streamkit.open(path).index("train").to_pylist()[0]
    bomb = zlib.compress(bytes(50 << 20), 9)
    data = (path / row["shard"]).read_bytes()
    (path / row["shard"]).write_bytes(data + bomb)
    n = streamkit.open(path).splits["train"].samples
    for column, value in (("x.offset", len(data)), ("x.length", len(bomb)), ("x.crc32c", crc32c(bomb))):
        first = np.arange(n) == 0
        reading.alter_index(path, reading.with_column(column, lambda v, f=first, x=value: np.where(f, x, v)))
    sign(path)
    with pytest.raises(DamagedError, match="zlib data of more than 64 bytes"):
        streamkit.Loader(path, shuffle=False)[0]


@pytest.mark.fault(87)
def test_terminal_escapes_in_names_do_not_reach_the_terminal(
    copied: Copied, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 87."""
    path = copied("table-tfrecord")
    evil = "\x1b[2J\x1b]0;owned\x07\nstreamkit: all is well\r\u202e"
    reading.alter_index(path, reading.with_column("key", lambda v: [f"{evil}{i}" for i in range(len(v))]))
    row = streamkit.open(path).index("train").to_pylist()[3]
    reading.flip(path / row["shard"], row["x.offset"])
    for command in (["verify"], ["verify", "--json"], ["repair", "--drop"]):
        main([command[0], str(path), *command[1:]])
        said = capsys.readouterr()
        for text in (said.out, said.err):
            assert "\x1b" not in text and "\x07" not in text and "\r" not in text
            assert not any(line.startswith("streamkit: all is well") for line in text.splitlines())
    with pytest.raises(StreamkitError):
        streamkit.repair(path)


@pytest.mark.fault(81)
@pytest.mark.parametrize("name", ["index-train.parquet", "manifest.json", "train-00000.tfrecord"])
def test_a_pipe_or_device_in_the_dataset_is_no_hang(copied: Copied, name: str) -> None:
    path = copied("table-tfrecord")
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(RefusedError, match="no regular file"):
        streamkit.Loader(path)


def test_the_exit_code_of_a_refusal(copied: Copied, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied("table-tfrecord")
    shutil.move(path / "train-00000.tfrecord", path.parent / "x")
    (path / "train-00000.tfrecord").symlink_to(path.parent / "x")
    assert main(["verify", str(path)]) == 9
    assert "this is a link" in capsys.readouterr().out


@pytest.mark.fault(84)
def test_a_compressed_table_that_declares_far_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    """Case 84: 62 KB that inflate to 64 MB are read in a pass that keeps the rows wanted, and no more."""
    import tracemalloc

    from streamkit.sources import open_source

    values = np.zeros((1 << 14, 1 << 10), np.float32)
    values[7], values[-1] = 7, 9
    np.savez_compressed(tmp_path / "bomb.npz", x=values)
    del values
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    tracemalloc.start()
    try:
        source = open_source(tmp_path / "bomb.npz")
        listing = source.listing()
        keys = [listing.keys[i] for i in (len(listing) - 1, 0, 7)]
        got = [float(sample.payloads["x"].max()) for sample in source.samples(keys)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got == [9, 0, 7] and len(listing) == 1 << 14
    assert peak < 8 << 20


def test_a_row_beyond_every_limit_is_refused(tmp_path: Path) -> None:
    from streamkit.sources.deflated import Deflated
    from streamkit.sources.npy import Header

    with pytest.raises(RefusedError, match="the limit is 1073741824"):
        Deflated(tmp_path / "x.npz", "x.npy", Header((2, 1 << 31), np.dtype(np.uint8), False, 128))


def test_a_damaged_compressed_table_is_bad_source_data(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).random((50, 8)), y=np.arange(50) % 3)
    reading.flip(tmp_path / "x.npz", (tmp_path / "x.npz").stat().st_size // 2)
    with pytest.raises(streamkit.SourceError):
        streamkit.convert(tmp_path / "x.npz", tmp_path / "out", format="tfrecord", workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


# Writes a file as soon as it is loaded.
CANARY = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void sing(void) { FILE *f = fopen(getenv("CANARY"), "w"); if (f) fclose(f); }
int H5PLget_plugin_type(void) { return 0; }
static const struct { int v; int id; unsigned e, d; const char *n; void *a, *b, *c; } plugin = {1, 31998, 1, 1, "x", 0, 0, 0};
const void *H5PLget_plugin_info(void) { return &plugin; }
"""
OPENING = "import sys, h5py\ntry: h5py.File(sys.argv[1])['x'][:]\nexcept OSError: pass"


@pytest.mark.fault(86)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="building a library needs gcc")
def test_no_library_is_loaded_because_data_wants_a_filter(copied: Copied, tmp_path: Path) -> None:
    """HDF5_PLUGIN_PATH leads to a library that a plain h5py loads to read the same file."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "canary.c").write_text(CANARY)
    library = tmp_path / "plugins" / "libcanary.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "canary.c"], check=True)
    space, plist = h5py.h5s.create_simple((64,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((64,))
    plist.set_filter(31999, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, space, dcpl=plist)
        made.write_direct_chunk((0,), bytes(64), 0)
    path = copied("table-gzip")
    shutil.copy(tmp_path / "evil.h5", path / "train-00000.h5")
    sign(path)
    song = tmp_path / "song"
    env = {**os.environ, "HDF5_PLUGIN_PATH": str(library.parent), "CANARY": str(song)}
    env.pop("HDF5_PLUGIN_PRELOAD", None)
    subprocess.run([sys.executable, "-c", OPENING, tmp_path / "evil.h5"], env=env, check=True)
    assert song.exists(), "the canary does not sing"
    song.unlink()
    for command in (
        ["index", tmp_path / "evil.h5", "--out", tmp_path / "out"],
        ["convert", tmp_path / "evil.h5", tmp_path / "out", "--format", "hdf5", "--workers", 1],
        ["verify", path, "--full"],
        ["repair", path, "--drop"],
        ["info", path],
    ):
        cli(*command, env=env)
        assert not song.exists(), command


@pytest.mark.fault(88)
def test_secrets_of_the_environment_are_said_nowhere(copied: Copied, tmp_path: Path) -> None:
    secret = "q7Zx0secretK3y"
    env = dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "HF_TOKEN"), secret)
    path = copied("table-tfrecord")
    reading.flip(path / "train-00000.tfrecord", 200)
    np.savez(tmp_path / "t.npz", x=np.zeros((9, 4), np.float32), y=np.arange(9) % 2)
    for command in (
        ["convert", tmp_path / "t.npz", tmp_path / "out", "--format", "tfrecord", "--workers", 1, "--debug"],
        ["verify", path, "--json", "--debug"],
        ["info", tmp_path / "nothing", "--debug"],
    ):
        run = cli(*command, env=env)
        assert secret not in run.stdout + run.stderr
    for file in (tmp_path / "out").iterdir():
        assert secret.encode() not in file.read_bytes()


BOMB = """
import json, resource, sys, streamkit
from streamkit.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes = []
for options in ({}, {"on_corrupt": "skip", "max_bad": 0.5, "shuffle": False}):
    try:
        loader = streamkit.Loader(sys.argv[1], image_size=(8, 8), num_workers=0, **options)
        codes.append([sum(len(images) for images, in zip(loader)), [type(e).__name__ for e in loader.bad]])
    except streamkit.StreamkitError as error:
        codes.append([error.exit_code, error.record is not None, "max_pixels=" in str(error)])
codes.append(main(["verify", "--full", "--quiet", "--json", sys.argv[1]]))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
codes.append(main(["verify", "--full", "--quiet", "--json", sys.argv[1], "--max-pixels", "200M"]))
print()
print(json.dumps([codes, grown >> 10]))
"""


@pytest.mark.fault(84)
def test_no_manifest_raises_the_limit_of_pictures(tmp_path: Path) -> None:
    """Case 84: 15 KB that are 120 million pixels; whoever made the dataset allowed them."""
    reading.picture_folder(tmp_path / "in", [(20, 30)] * 3, n_classes=0, format="PNG")
    PIL.Image.new("1", (10_000, 12_000)).save(tmp_path / "in/bomb.png")
    out = tmp_path / "out"
    reading.convert(tmp_path / "in", out, check="header", max_pixels=1 << 30)
    (default, skipping, verified, allowed), grown_mb = reading.run_python(BOMB, out)
    assert default == [9, True, True]
    assert skipping == [3, ["RefusedError"]]
    assert (verified, allowed) == (9, 0)
    assert grown_mb < 300
