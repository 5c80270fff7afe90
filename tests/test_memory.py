"""A memory budget that is kept: under a hard limit, over many epochs, while decoding, and with batches on a device."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pyarrow as pa
import pytest
import reading
from reading import convert

import streamkit
from streamkit import Loader, index
from streamkit.manifest import Manifest

LIMIT = 192 << 20  # of data, the interpreter's and its libraries' included; 128 MiB are taken before the first batch
SHARD = 48 << 20
ROW = 16 << 10


def repeated(folder: Path, n_times: int) -> Path:
    """A dataset of n shards of 48 MiB that are one file under n names: it is read n times as it would be from n files."""
    np.save(folder / "x.npy", np.random.default_rng(0).random((SHARD // ROW, ROW // 4), np.float32))
    out = convert(folder / "x.npy", folder / "out", compression="none", shard_size="1GB")
    (folder / "x.npy").unlink()
    manifest = Manifest.load(out)
    split = manifest.split()
    first, table = split.shards[0], index.Index(out / split.index, split.samples).table()
    names = [f"train-{i:05d}.tfrecord" for i in range(n_times)]
    for name in names[1:]:
        os.link(out / first.file, out / name)
    at = table.column_names.index("shard")
    index.write(
        out / split.index, (table.set_column(at, "shard", pa.array([n] * len(table), pa.string())) for n in names)
    )
    changed = dataclasses.replace(
        split,
        samples=split.samples * n_times,
        nbytes=split.nbytes * n_times,
        index_digest=blake3.blake3((out / split.index).read_bytes()).hexdigest(),
        shards=tuple(dataclasses.replace(first, file=name) for name in names),
    )
    (out / "manifest.json").write_text(dataclasses.replace(manifest, splits={"train": changed}).dump())
    return out


STREAM = """
import sys, streamkit
loader = streamkit.Loader(sys.argv[1], batch_size=64, num_workers=2, memory_budget="32MiB")
n, kept = 0, []
for batch in loader:
    n += len(batch)
    if sys.argv[2] == "keep":
        kept.append(batch)
print(n, loader)
"""


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit of util-linux")
def test_four_times_the_limit_streams_under_it_and_what_keeps_it_fails(tmp_path: Path) -> None:
    """`prlimit --data`: 768 MiB through 192. The control keeps the batches, and must not come through."""
    out = repeated(tmp_path, 4 * LIMIT // SHARD)
    assert Manifest.load(out).split().nbytes > 4 * LIMIT
    done = {}
    for what in ("stream", "keep"):
        command = ["prlimit", f"--data={LIMIT}", sys.executable, "-c", STREAM, str(out), what]
        done[what] = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=reading.ROOT)
    assert done["stream"].returncode == 0, done["stream"].stderr[-2000:]
    found = re.fullmatch(
        r"(\d+) <Loader: (\d+) samples, \d+ batches, at most (\d+) MiB of memory>\n", done["stream"].stdout
    )
    assert found is not None and int(found[1]) == int(found[2]) == 4 * LIMIT // ROW and int(found[3]) <= 32
    assert done["keep"].returncode != 0 and "MemoryError" in done["keep"].stderr


ANONYMOUS = """
import json, sys, streamkit
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
"""


def test_memory_is_flat_over_40_epochs(tmp_path: Path) -> None:
    code = f"""{ANONYMOUS}
loader = streamkit.Loader(sys.argv[1], batch_size=16, num_workers=2, memory_budget="16MiB", balance=True)
found = []
for _ in range(40):
    for batch in loader: pass
    found.append(anonymous())
print(json.dumps(found))
"""
    np.savez(tmp_path / "t.npz", x=np.zeros((1500, 64, 64), np.float32), y=np.arange(1500) % 7)
    found = reading.run_python(code, convert(tmp_path / "t.npz", tmp_path / "out", compression="none"))
    # The heap of each thread fills and empties by some MiB, and takes some epochs to reach its size: a trend over many
    # epochs tells that from a leak, two halves of few epochs do not. 150,000 batches stay between 40 and 54 MiB.
    assert np.polyfit(range(37), found[3:], 1)[0] < 0.4 * (1 << 20), found
    assert max(found) - min(found) < 20 << 20, found  # 40 epochs are 960 MiB


def test_decoding_pictures_stays_within_the_bound(tmp_path: Path) -> None:
    code = f"""{ANONYMOUS}
loader = streamkit.Loader(
    sys.argv[1], batch_size=16, image_size=(200, 200), num_workers=2, memory_budget="64MiB", crop="random"
)
loader[0]
before, peak = anonymous(), 0
for _ in range(3):
    for batch in loader:
        peak = max(peak, anonymous())
print(json.dumps([peak - before, loader.memory_bound, loader.memory_budget]))
"""
    source = reading.picture_folder(tmp_path / "in", [(700, 900)] * 96)
    grown, bound, budget = reading.run_python(code, convert(source, tmp_path / "out"))
    assert grown < bound + (8 << 20), (grown, bound)  # 8 MiB for the interpreter and the threads' stacks
    assert bound <= budget


@pytest.mark.parametrize("num_workers", [0, 1, 2, 16])
@pytest.mark.parametrize("budget", ["4MiB", "64MiB", "1GiB"])
def test_the_bound_stays_within_the_budget_whatever_the_threads(tmp_path: Path, num_workers: int, budget: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((600, 64, 64), np.float32))
    out = convert(tmp_path / "x.npy", tmp_path / "out", compression="none")
    loader = Loader(out, batch_size=32, num_workers=num_workers, memory_budget=budget)  # half a MiB a batch
    assert loader.memory_bound <= loader.memory_budget
    half = loader.within(loader.memory_budget // 4)
    assert half.depth <= loader.depth and half.memory_bound <= loader.memory_bound
    assert reading.all_same(list(half.held(0)), list(loader.held(0)))


def test_batches_go_to_a_device_ahead_of_use(tmp_path: Path) -> None:
    """PyTorch's "meta" stands for an accelerator; TensorFlow and JAX are asked in test_replicas.py, with two devices."""
    torch = pytest.importorskip("torch")
    out = convert(reading.numbered(tmp_path / "in", 10), tmp_path / "out")
    options: dict[str, Any] = {"batch_size": 4, "fields": ("x", "label", "key")}
    batches = list(Loader(out, device="meta", **options).as_torch())
    assert [x.device.type for x, _, _ in batches] == ["meta"] * 3 and [len(x) for x, _, _ in batches] == [4, 4, 2]
    assert isinstance(batches[0][2], np.ndarray)  # text stays
    on_cpu = list(Loader(out, device=torch.device("cpu"), **options).as_torch())
    plain = list(Loader(out, **options))
    assert all((a[0].numpy() == b[0]).all() for a, b in zip(on_cpu, plain, strict=True))
    for way in ("as_torch", "as_tf"):
        with pytest.raises(streamkit.UsageError, match="device is 'nowhere'"):
            list(getattr(Loader(out, device="nowhere", **options), way)())
