"""What a check found: problems, each with its file and, where one is concerned, its record.

>>> Report("out", problems=(Problem("train-00000.h5", "is missing"),)).ok
False
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: shard, index or other file, by name.
        reason: what is wrong with it.
        record: number of the record in its shard (from 0), or None where it is about the file.
        key: key of that record, or None.
        refused: True where it was not opened, for safety.
    """

    file: str
    reason: str
    record: int | None = None
    key: str | None = None
    refused: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"shard": self.file, "record": self.record, "key": self.key, "reason": self.reason}


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        out: the dataset's folder.
        mode: "quick", "default" or "full".
        n_samples: samples that the manifest names.
        n_shards: shards that it names.
        nbytes: bytes read [B].
        problems: everything that is wrong, file by file, records ascending.
        seconds: wall time [s].
        hint: the next step where something is wrong, else "".
    """

    out: str
    mode: str = "default"
    n_samples: int = 0
    n_shards: int = 0
    nbytes: int = 0
    problems: tuple[Problem, ...] = ()
    seconds: float = 0.0
    hint: str = ""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems

    @property
    def refused(self) -> bool:
        """True when something was not opened, for safety."""
        return any(problem.refused for problem in self.problems)

    @property
    def damaged_files(self) -> tuple[str, ...]:
        """Names of the files that something is wrong with, each once."""
        return tuple(dict.fromkeys(problem.file for problem in self.problems))
