"""Faults at exact points: work on a dataset is stopped before its Nth system call of a kind, or that call is made to fail.

Run as a script, in a process that has imported everything once; each point is a forked child under strace, so a point costs
little more than the work. What came of each is printed as one line of JSON.

    python injecting.py WORK SOURCE FORMAT JOB FAULT N

JOB is a key of JOBS. FAULT is kill, the name of an errno, or power: killed, and what the disk does not have yet is gone. N is
the number of points at most: some of every system call, the others by chance.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import reading
from converting import digests

import streamkit

CHANGES = (
    "write pwrite64 writev pwritev fsync fdatasync rename renameat renameat2 unlink unlinkat mkdir rmdir ftruncate"
)
SECONDS = 60
PR_SET_PTRACER = 0x59616D61  # Source: prctl(2); needed where only parents may trace (Yama)
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # Source: fs/ext4/ext4.h, EXT4_GOING_FLAGS_NOLOGFLUSH
Job = Callable[[Path, Path, str], None]  # of source, output, format


def convert(source: Path, out: Path, format: str, **options: Any) -> None:
    split = {"train": 0.5, "val": 0.5}
    streamkit.convert(source, out, format=format, shard_size=900, workers=1, split=split, **options)


def nothing(source: Path, out: Path, format: str) -> None:
    pass


def another_dataset(source: Path, out: Path, format: str) -> None:
    convert(source, out, format, seed=7)


def damaged(source: Path, out: Path, format: str) -> None:
    """Of every kind of file one: shards, an index, a file beside them."""
    convert(source, out, format)
    for file in ("train-00000", "train-00001", "index-val", "val" if format == "hdf5" else "features"):
        reading.flip(next(out.glob(f"{file}.*")), 60)


def one_damaged(source: Path, out: Path, format: str) -> None:
    """One record, beside files of somebody else."""
    convert(source, out, format)
    row = pq.read_table(out / "index-train.parquet").to_pylist()[0]
    reading.flip(out / row["shard"], row["image.offset"] + 9)
    (out / "notes.txt").write_text("mine")
    (out / "runs").mkdir()
    (out / "runs" / "last.keras").write_text("mine")


def half(source: Path, out: Path, format: str) -> None:
    part = source.with_name("half")
    if not part.exists():
        shutil.copytree(source, part, ignore=lambda _, names: [name for name in names if name == "0001.jpg"])
    convert(part, out, format)


def overwrite(source: Path, out: Path, format: str) -> None:
    convert(source, out, format, overwrite=True)


def append(source: Path, out: Path, format: str) -> None:
    convert(source, out, format, append=True)


def repair(source: Path, out: Path, format: str) -> None:
    streamkit.repair(out, source=source, workers=1)


def drop(source: Path, out: Path, format: str) -> None:
    streamkit.repair(out, drop=True, workers=1)


# What lies there before, and what is then done to it.
JOBS: dict[str, tuple[Job, Job]] = {
    "convert": (nothing, convert),
    "overwrite": (another_dataset, overwrite),
    "append": (half, append),
    "repair": (damaged, repair),
    "drop": (one_damaged, drop),
}


def stopped_child(job: Callable[[], None]) -> int:
    """A child that waits to be traced, then does the job and exits with the error's code."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, os.WUNTRACED)
        return pid
    code = 99
    try:
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        job()
        code = 0
    except streamkit.StreamkitError as error:
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def traced(job: Callable[[], None], *arguments: str) -> tuple[int, bool]:
    """Do the job under strace; its exit code (minus a signal's number), and whether it hung."""
    pid = stopped_child(job)
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(pid), *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    while not re.search(r"TracerPid:\t[1-9]", Path(f"/proc/{pid}/status").read_text()):
        if strace.poll() is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SystemExit(f"strace cannot trace: {strace.stderr.read().decode() if strace.stderr else ''}")
        time.sleep(0.001)
    os.kill(pid, signal.SIGCONT)
    deadline, hung = time.monotonic() + SECONDS, False
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline and not hung:
            hung = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    strace.communicate()
    return os.waitstatus_to_exitcode(found[1]), hung


@contextmanager
def disk(image: Path, place: Path) -> Iterator[Path]:
    """A small ext4 file system in a file, mounted; only this mount namespace sees it."""
    place.mkdir(exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mount(image, place)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def mount(image: Path, place: Path) -> None:
    subprocess.run(["mount", "-o", "loop", image, place], check=True)


def power_cut(image: Path, place: Path) -> None:
    """What was not yet written to the disk is gone; then the machine starts again."""
    fd = os.open(place, os.O_RDONLY)
    fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    os.close(fd)
    subprocess.run(["umount", place], check=True)
    mount(image, place)


class Faults:
    """One job, disturbed at one point after another. Arguments as the script's."""

    def __init__(self, work: Path, source: Path, format: str, job: str, fault: str) -> None:
        self.work, self.source, self.format, self.job, self.fault = work, source, format, job, fault
        self.place, self.image = work / "disk", work / "image"
        self.prepare, self.do = (lambda out, f=f: f(source, out, format) for f in JOBS[job])
        self.prepare(work / "whole")
        self.before = digests(work / "whole")
        self.do(work / "whole")
        self.expected = digests(work / "whole")

    def points(self, n: int) -> list[tuple[str, int]]:
        """System calls of the undisturbed job, by name and number, at most `n`: some of each name."""
        calls = CHANGES if self.inject == "signal=KILL" else f"{CHANGES} close"
        self.prepare(self.work / "count")
        log = self.work / "log"
        code, _ = traced(lambda: self.do(self.work / "count"), "-o", str(log), "-e", f"trace={calls.replace(' ', ',')}")
        assert code == 0, code
        shutil.rmtree(self.work / "count")
        seen: Counter[str] = Counter()
        numbers: dict[str, list[tuple[str, int]]] = {}
        for name in re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE):
            seen[name] += 1
            numbers.setdefault(name, []).append((name, seen[name]))
        chance = random.Random(f"{self.format} {self.job} {self.fault}")
        by_rank = [(rank, point) for of in numbers.values() for rank, point in enumerate(chance.sample(of, len(of)))]
        return [point for _, point in sorted(by_rank)[:n]]

    @property
    def inject(self) -> str:
        return "signal=KILL" if self.fault in ("kill", "power") else f"error={self.fault}"

    def disturb(self, name: str, number: int) -> str:
        """What comes of a fault at one point."""
        with disk(self.image, self.place) if self.fault == "power" else folder(self.place) as place:
            return self._outcome(place / "out", name, number)

    def _outcome(self, out: Path, name: str, number: int) -> str:
        arguments = ["-e", f"trace={name}", "-e", f"inject={name}:{self.inject}:when={number}"]
        self.prepare(out)
        if self.fault == "power":
            os.sync()
        code, hung = traced(lambda: self.do(out), *arguments)
        if hung:
            return "hung"
        if self.fault == "power":
            power_cut(self.image, self.place)
        # Where closing fails, it may be a file of the source (3) or a shard that is read (4).
        right = (-9,) if self.inject == "signal=KILL" else (0, 3, 4, 5) if name == "close" else (0, 5)
        if code not in right:
            return f"lost: exit code {code}"
        there = (out / "manifest.json").exists()
        if self.job != "convert" and not there:
            return "lost: the old one is gone and the new one not there"
        if there and not self._is_right(out):
            return "lost: what was published is damaged"
        self.do(out)
        return "survived" if digests(out) == self.expected else "lost: other bytes after the next run"

    def _is_right(self, out: Path) -> bool:
        """Whether a disturbed dataset is whole, or was damaged before and is mended file by file."""
        files = digests(out)
        if self.job == "repair":  # its files come back one by one, nothing else changes
            return all(files[name] in (self.before[name], whole) for name, whole in self.expected.items())
        damage = {problem.file for problem in streamkit.verify(out, workers=1).problems}
        if self.job == "drop":  # all of the old one or all of the new one
            return not damage or all(files.get(name) == digest for name, digest in self.before.items())
        if self.job == "append":  # what lies beside the shards is replaced just before the manifest, file by file
            damage -= set(streamkit.open(out).files)
        return not damage

    def after_success(self) -> str:
        """The power is cut when the job has said that it is done."""
        with disk(self.image, self.place) as place:
            self.prepare(place / "out")
            os.sync()
            self.do(place / "out")
            power_cut(self.image, place)
            there = digests(place / "out") if (place / "out").exists() else {}
            odd = sorted(set(there.items()) ^ set(self.expected.items()))
            return f"lost: success was said, and other files are there: {odd[:3]}" if odd else "survived"


@contextmanager
def folder(place: Path) -> Iterator[Path]:
    place.mkdir()
    yield place
    shutil.rmtree(place)


def main(work: str, source: str, format: str, job: str, fault: str, n: str) -> None:
    faults = Faults(Path(work), Path(source), format, job, fault)
    for name, number in faults.points(int(n)):
        print(json.dumps({"point": f"{name} {number}", "outcome": faults.disturb(name, number)}), flush=True)
    if fault == "power":
        print(json.dumps({"point": "success", "outcome": faults.after_success()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
