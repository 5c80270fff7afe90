"""Runs a task: a process a contender, all taking turns round by round, their clocks and memory read.

Figures are CPU-seconds of whole process trees, wall seconds, and the peak of resident memory summed over the tree (looked
at 20 times a second; pages that processes share count in each). On a shared machine wall time says little.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.environments import NotInstallable, python_of
from benchmarks.session import Failed, Peaks, Session
from benchmarks.tasks import Task, Way


@dataclass
class Measure:
    """What one way of one contender cost, round by round: `cpu` and `wall` [s] for `samples` each; memory in MiB."""

    contender: str
    way: str
    settings: str = ""
    note: str = ""  # why there are no figures
    versions: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    startup: float | None = None  # CPU-seconds of `cpu` that are imports, in whole processes
    peak_mib: float = 0.0  # resident
    memory_mib: float = 0.0  # anonymous, beyond what it was after the imports
    delivered: dict[str, Any] = field(default_factory=dict)


@dataclass
class Entry:
    """A way that takes part: how to start it and what was measured so far."""

    task: Task
    way: Way
    python: Path
    source: Path
    out: Path
    measure: Measure
    session: Session | None = None
    base_mib: float = 0.0

    def command(self, verb: str) -> list[str]:
        module = import_module(f"benchmarks.contenders.{self.measure.contender}")
        if verb != "serve" and hasattr(module, "command"):
            return list(module.command(self.way, self.source, self.out))
        names = (self.measure.contender, self.task.name, self.way.name, verb, str(self.source), str(self.out))
        return [str(self.python), "-m", "benchmarks.child", *names]

    @property
    def log(self) -> Path:
        return self.out.parent / f"{self.measure.contender}, {self.way.name}.log"


def run(
    task: Task, contenders: Sequence[str], folder: Path | None, work: Path, rounds: int, scale: float
) -> dict[str, Any]:
    """The result of one task, as it is saved."""
    begun = os.getloadavg()[0]
    source = data.make(task.data, folder, work, scale)
    counts = data.classes(source)
    measures, entries = [], []
    for contender in contenders:
        for way in import_module(f"benchmarks.contenders.{contender}").ways(task):
            measure = Measure(contender, way.name, way.settings, way.note, samples=sum(counts))
            measures.append(measure)
            try:
                python = python_of(contender)
            except NotInstallable as error:
                measure.note = f"not installable: {error}"
            if not measure.note:
                out = work / "out" / task.data / f"{contender}-{way.form}"
                entries.append(Entry(task, way, python, source, out, measure))
    (work / "out" / task.data).mkdir(parents=True, exist_ok=True)
    turns = {"read": _read, "write": _write, "start": _start}[task.kind]
    turns(entries, rounds, counts)
    return {
        "task": task.name,
        "facts": facts() | {"load": [begun, os.getloadavg()[0]], "rounds": rounds},
        "measures": [asdict(measure) for measure in measures],
    }


def facts() -> dict[str, Any]:
    model = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "machine": model[0] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _each(entries: Sequence[Entry], step: Any, *arguments: Any) -> list[Entry]:
    """Those for which the step worked; the others carry the reason."""
    left = []
    for entry in entries:
        try:
            step(entry, *arguments)
            left.append(entry)
        except Failed as error:
            entry.measure.note = f"failed: {error}"
            print(f"{entry.task.name} {entry.measure.contender} {entry.way.name}: {error}", file=sys.stderr)
            if entry.session:
                entry.session.close()
    return left


def _read(entries: Sequence[Entry], rounds: int, counts: list[int]) -> None:
    entries = _each(entries, _build)
    entries = _each(entries, _open)
    try:
        entries = _each(entries, _check, counts)
        _compare(entries)
        for _ in range(rounds):
            entries = _each(entries, _epoch)
    finally:
        for entry in entries:
            if entry.session:
                entry.session.close()


def _build(entry: Entry) -> None:
    if entry.way.form is not None and not entry.out.exists():
        session = Session(entry.command("write"), entry.log)
        try:
            session.answer()
            session.process.wait()
        except BaseException:
            _remove(entry.out)
            raise
        finally:
            session.close()


def _open(entry: Entry) -> None:
    entry.session = Session(entry.command("serve"), entry.log)
    entry.session.answer()
    entry.base_mib = Peaks(entry.session.process.pid).look()
    entry.measure.versions = _watched(entry, "open")["versions"]


def _watched(entry: Entry, verb: str) -> dict[str, Any]:
    assert entry.session is not None
    with Peaks(entry.session.process.pid) as peaks:
        found = entry.session.ask(verb)
    _remember(entry, peaks)
    return found


def _remember(entry: Entry, peaks: Peaks) -> None:
    entry.measure.peak_mib = max(entry.measure.peak_mib, peaks.resident)
    entry.measure.memory_mib = max(entry.measure.memory_mib, peaks.anonymous - entry.base_mib)


def _check(entry: Entry, counts: list[int]) -> None:
    """The first epoch warms up, and must keep the contract."""
    found, task = _watched(entry, "check"), entry.task
    entry.measure.delivered = {name: found[name] for name in ("mean", "classes_a_batch")}
    expected: dict[str, Any] = {"shape": [min(task.batch_size, sum(counts)), *task.shape], "dtype": task.dtype}
    if entry.way.n_batches is None:
        rest = sum(counts) % task.batch_size or task.batch_size
        expected |= {"classes": counts, "rest": [rest, *task.shape]}
    for name, value in expected.items():
        if found[name] != value:
            raise Failed(f"another contract: {name} is {found[name]}, expected {value}"[:200])


def _compare(entries: Sequence[Entry]) -> None:
    """All but the limits (which may deliver nothing) see the same pictures: means within a few gray levels."""
    means = [
        (e, e.measure.delivered["mean"]) for e in entries if e.measure.contender != "limits" and not e.way.n_batches
    ]
    for entry, mean in means[1:]:
        near = 8 if entry.task.augment else 4 if entry.task.shape[-1] == 3 else 1e-3
        if abs(mean - means[0][1]) > near:
            entry.measure.note = (
                f"another content: mean {mean:.2f}, {means[0][0].measure.contender} has {means[0][1]:.2f}"
            )
            print(f"{entry.task.name} {entry.measure.contender}: {entry.measure.note}", file=sys.stderr)


def _epoch(entry: Entry) -> None:
    found = _watched(entry, "epoch")
    entry.measure.samples = found["samples"]
    entry.measure.cpu.append(found["cpu"])
    entry.measure.wall.append(found["wall"])


def _write(entries: Sequence[Entry], rounds: int, counts: list[int]) -> None:
    for entry in entries:
        _remove(entry.out)  # another task may have left it
    for _ in range(rounds):
        entries = _each(entries, _whole, "write")


def _start(entries: Sequence[Entry], rounds: int, counts: list[int]) -> None:
    entries = _each(entries, _build)
    for entry in entries:
        entry.measure.samples = 1  # one start
    for _ in range(rounds):
        entries = _each(entries, _whole, "first")


def _whole(entry: Entry, verb: str) -> None:
    """One whole process, from its start to its end, or to its first batch."""
    if verb == "write":
        os.sync()  # what others wrote is not written back on this one's time
    started = time.perf_counter()
    session = Session(entry.command(verb), entry.log)
    try:
        with Peaks(session.process.pid) as peaks:
            assert session.process.stdout is not None
            line = session.process.stdout.readline()
            wall = time.perf_counter() - started
            _, status, used = os.wait4(session.process.pid, 0)
            session.process.returncode = os.waitstatus_to_exitcode(status)
        if verb == "write":
            wall = time.perf_counter() - started
    finally:
        session.close()
        if verb == "write":
            _remove(entry.out)
    if status:
        raise Failed(session.last_words())
    answer = json.loads(line) if line else {}
    entry.measure.cpu.append(used.ru_utime + used.ru_stime)
    entry.measure.wall.append(wall)
    entry.measure.startup = answer.get("startup")
    entry.measure.versions = answer.get("versions", {})
    _remember(entry, peaks)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
