"""Faults of the machine at exact points: kills, failing system calls, full disks, power cuts, little memory. FAULTS 1 to 17.

After each, what is published is whole, and the same command again makes what an undisturbed run makes. Every test runs some
points of each kind; with STREAMKIT_FAULT_SEEDS of 300 or more all there are, of every format and job.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from converting import ROOT, class_folders, cli
from test_faults import SEEDS

import streamkit

ALL = SEEDS >= 300
N_POINTS = 100_000 if ALL else SEEDS // 6
SHORT = {
    ("tfrecord", "convert", "EIO"),
    ("hdf5", "convert", "ENOSPC"),
    ("hdf5", "overwrite", "kill"),
    ("tfrecord", "overwrite", "power"),
    ("tfrecord", "append", "kill"),
    ("hdf5", "repair", "kill"),
    ("hdf5", "drop", "kill"),
    ("tfrecord", "drop", "power"),
}
CASES = {
    "kill": pytest.mark.fault(2),
    "EIO": pytest.mark.fault(5),
    "ENOSPC": pytest.mark.fault(5),
    "power": pytest.mark.fault(2, 4),
}
POINTS = [
    pytest.param(format, job, fault, marks=cases)
    for fault, cases in CASES.items()
    for job in ("convert", "overwrite", "append", "repair", "drop")
    for format in ("tfrecord", "hdf5")
    if ALL or (format, job, fault) in SHORT
]


@cache
def may_mount() -> bool:
    """True where this user can mount in a namespace of its own."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    return (
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
    )


def outcomes(script: str, *args: object, record: Callable[[str, object], None]) -> None:
    """Run a script of this folder that disturbs at many points, in a mount namespace where that can be had."""
    command = [*(["unshare", "-m"] if may_mount() else []), sys.executable, str(ROOT / "tests" / script)]
    run = subprocess.run(
        [*command, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if run.returncode and "strace cannot trace" in run.stderr:
        pytest.skip("strace may not trace here")
    assert run.returncode == 0, run.stderr[-3000:]
    said = [json.loads(line) for line in run.stdout.splitlines()]
    assert said
    for line in said:
        record(line["outcome"].partition(":")[0], 1)
    assert not [line for line in said if line["outcome"] != "survived"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("format", "job", "fault"), POINTS)
def test_disturbed_at_exact_points(
    tmp_path: Path, format: str, job: str, fault: str, record_property: Callable[[str, object], None]
) -> None:
    if fault == "power" and not (may_mount() and shutil.which("mkfs.ext4") and os.path.exists("/dev/loop-control")):
        pytest.skip("cutting the power of a loop-mounted file system needs root, mkfs.ext4 and loop devices")
    source = class_folders(tmp_path / "src", {"a": 2, "b": 2}, (6, 6))
    (tmp_path / "work").mkdir()
    outcomes("injecting.py", tmp_path / "work", source, format, job, fault, N_POINTS, record=record_property)


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
@pytest.mark.parametrize(
    "what", [pytest.param("size", marks=pytest.mark.fault(6)), pytest.param("nr_inodes", marks=pytest.mark.fault(8))]
)
def test_a_file_system_that_is_too_small(
    tmp_path: Path, format: str, what: str, record_property: Callable[[str, object], None]
) -> None:
    if not may_mount():
        pytest.skip("mounting a small file system needs root")
    source = class_folders(tmp_path / "src", {"a": 2, "b": 2}, (6, 6))
    (tmp_path / "work").mkdir()
    outcomes("filling.py", tmp_path / "work", source, format, what, max(3, SEEDS // 10), record=record_property)


@pytest.mark.fault(17)
def test_an_array_that_memory_does_not_hold(tmp_path: Path) -> None:
    """One line that names it, under a limit of 300 MB; a sparse file holds the 700 MB."""
    (tmp_path / "src").mkdir()
    np.save(tmp_path / "src" / "small.npy", np.zeros(7, np.float32))
    values = np.lib.format.open_memmap(tmp_path / "src" / "big.npy", "w+", np.float32, (175_000_000,))
    del values
    limit = 300 << 20
    run = cli(
        *("convert", tmp_path / "src", tmp_path / "out", "--format", "hdf5", "--workers", 1),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert run.returncode == 5, run.stderr
    assert "big.npy" in run.stderr and "memory" in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


BAD_SECTORS = """
set -e
truncate -s 16M image; mkfs.ext4 -q -F image; mkdir disk; mount -o loop image disk
mv "$1/$2" last; cp -r "$1" disk/out; sync; cp last "disk/out/$2"; umount disk
first=$(debugfs -R "blocks /out/$2" image 2>/dev/null | cut -d' ' -f1)
mount -o loop image disk
truncate -s $((first * 1024)) image   # what lies behind cannot be read any more
set +e
"$3" -m streamkit verify disk/out
echo "code $?"
umount disk
"""


@pytest.mark.fault(52)
@pytest.mark.parametrize("file", ["index-train.parquet", "train-00000.tfrecord"])
def test_sectors_that_cannot_be_read(tmp_path: Path, file: str) -> None:
    """Told in a line, of an index too: a file that is mapped, and not read, takes the process down (SIGBUS)."""
    if not (may_mount() and shutil.which("debugfs") and os.path.exists("/dev/loop-control")):
        pytest.skip("a disk with bad sectors needs root, debugfs and loop devices")
    path = tmp_path / "out"
    streamkit.convert(ROOT / "sample_data" / "images", path, format="tfrecord", shard_size="500KB", workers=1)
    assert (path / "index-train.parquet").stat().st_size > 16 << 10  # smaller ones are read, not mapped, by blake3
    run = subprocess.run(
        ["unshare", "-m", "bash", "-c", BAD_SECTORS, "bash", str(path), file, sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0 and "code 4" in run.stdout, (run.stdout, run.stderr)
    assert file in run.stdout and "Input/output error" in run.stdout.replace("input", "Input")
    assert run.stderr.count("\n") == 1, run.stderr
