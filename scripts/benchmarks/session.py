"""A contender's process: started, asked, watched, and ended with all its workers."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.child import descendants
from benchmarks.environments import ROOT

_SILENCE_S = 900  # no answer for so long is a failure
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Failed(Exception):
    """A contender's process ended or said nothing; the message is the last it wrote."""


class Peaks:
    """Watches the memory of a process tree from a thread: `resident` and `anonymous` are the highest sums seen, in MiB."""

    def __init__(self, pid: int) -> None:
        self.pid, self.resident, self.anonymous = pid, 0.0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def look(self) -> float:
        resident = anonymous = 0
        for pid in (self.pid, *descendants(self.pid)):
            try:
                _, all_pages, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            resident, anonymous = resident + all_pages, anonymous + all_pages - shared
        self.resident = max(self.resident, resident * _PAGE_MIB)
        self.anonymous = max(self.anonymous, anonymous * _PAGE_MIB)
        return anonymous * _PAGE_MIB

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Session:
    """A contender's process, kept alive over the rounds."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=environment(),
                start_new_session=True,
            )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _SILENCE_S)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise Failed(self.last_words() if ready else f"silent for {_SILENCE_S} s")
        return dict(json.loads(line))

    def last_words(self) -> str:
        said = [text.strip() for text in self.log.read_text(errors="replace").splitlines() if text.strip()]
        return (said or ["it ended without a word"])[-1][:200]

    def ask(self, verb: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{verb}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self.answer()

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own group: this process and its workers, nothing else
        except ProcessLookupError:
            pass  # all of it has ended
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
