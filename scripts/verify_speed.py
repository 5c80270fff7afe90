"""How fast `streamkit verify` is beside reading the same files and beside BLAKE3 hashing them, with equal threads.

The ways take turns, so that a busy machine slows all of them alike, and the median of each is taken. "BLAKE3" hashes bytes
that are in memory already, "both" reads the files and hashes what it read, as b3sum does. Files lie in the page cache, or
with --cold on the disk. (A file system in memory is no stand-in for the page cache: its files are mapped 4 KiB by 4 KiB.)

Example: python scripts/verify_speed.py --rounds 15
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3
import numpy as np

import streamkit

BLOCK_NBYTES = 1 << 20


def read(path: Path) -> None:
    """Read a file into one block of memory again and again."""
    block = bytearray(BLOCK_NBYTES)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass


def read_and_hash(path: Path) -> None:
    """The same, and BLAKE3 of each block while it is near."""
    block, hasher = bytearray(BLOCK_NBYTES), blake3.blake3()
    view = memoryview(block)
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(block):
            hasher.update(view[:got])


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time [s]."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--megabytes", type=int, default=512)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--folder", help="where the files lie (default: that of temporary files)")
    p.add_argument("--cold", action="store_true", help="drop the files from the page cache before each turn")
    args = p.parse_args()
    root = Path(tempfile.mkdtemp(prefix="streamkit-verify-", dir=args.folder))
    try:
        rows = np.random.default_rng(0).integers(0, 256, (args.megabytes * 64, 16384), np.uint8)
        np.save(root / "rows.npy", rows)
        del rows
        out = root / "out"
        streamkit.convert(root / "rows.npy", out, format="tfrecord", compression="none", shard_size="32MB")
        os.unlink(root / "rows.npy")
        paths = sorted(out.glob("*.tfrecord"))
        contents = [np.fromfile(path, np.uint8) for path in paths]
        nbytes = sum(len(data) for data in contents)

        with ThreadPoolExecutor(args.threads) as pool:
            ways: dict[str, Callable[[], object]] = {
                "read": lambda: list(pool.map(read, paths)),
                "BLAKE3": lambda: list(pool.map(lambda data: blake3.blake3(data).digest(), contents)),
                "both": lambda: list(pool.map(read_and_hash, paths)),
                "verify": lambda: streamkit.verify(out, workers=args.threads).ok or exit("it found damage"),
            }
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(args.rounds):
                for name, run in ways.items():
                    for path in paths if args.cold else ():
                        forget(path)
                    times[name].append(measured(run))
        speed = {}
        for name, found in times.items():
            wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
            speed[name] = nbytes / wall / 1e9, nbytes / cpu / 1e9
            print(f"{name:8} {speed[name][0]:6.2f} GB/s, {speed[name][1]:6.2f} GB a CPU-second")
        for i, what in enumerate(("wall time", "CPU time")):
            slower, both = min(speed["read"][i], speed["BLAKE3"][i]), speed["both"][i]
            verify = speed["verify"][i]
            print(
                f"verify, in {what}: {verify / slower:.0%} of the slower of read and BLAKE3, {verify / both:.0%} of both"
            )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
