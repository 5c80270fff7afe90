"""What `verify` found, as a table and as JSON.

>>> from streamkit.health import Problem, Repair, Report
>>> print(as_text(Report("out", problems=(Problem("train-00000.h5", "is missing"),))))
out is damaged: 1 problem in 1 file.
<BLANKLINE>
shard           record  key  reason
train-00000.h5  -       -    is missing
"""

from __future__ import annotations

from typing import Any

from streamkit.errors import one_line
from streamkit.health import Problem, Repair, Report
from streamkit.reports.text import human, table

_SHOWN = 20


def as_json(report: Report) -> dict[str, Any]:
    """The report, JSON-able: every problem with its shard, record, key and reason."""
    return {
        "out": report.out,
        "ok": report.ok,
        "mode": report.mode,
        "samples": report.n_samples,
        "shards": report.n_shards,
        "bytes_read": report.nbytes,
        "problems": [problem.to_json() for problem in report.problems],
        "seconds": round(report.seconds, 3),
    }


def as_text(report: Report) -> str:
    """One line for a whole dataset; else a table of the first problems."""
    if report.ok and report.mode == "quick":  # less than "is whole": no byte of a sample was looked at
        return (
            f"{one_line(report.out)}: sizes, headers and the index are right of {report.n_samples} samples in "
            f"{_shards(report.n_shards)}. Their bytes were not read; without --quick they are."
        )
    if report.ok:
        return (
            f"{one_line(report.out)} is whole: {report.n_samples} samples in {_shards(report.n_shards)}, "
            f"{human(report.nbytes)} read in {report.seconds:.1f} s."
        )
    return f"{one_line(report.out)} is damaged: {counted(report)}.\n\n{problem_table(report.problems)}"


def _shards(n: int) -> str:
    return f"{n} shard{'s' * (n != 1)}"


def counted(report: Report) -> str:
    """ "3 problems in 2 files"."""
    n, n_files = len(report.problems), len(report.damaged_files)
    return f"{n} problem{'s' * (n != 1)} in {n_files} file{'s' * (n_files != 1)}"


def problem_table(problems: tuple[Problem, ...]) -> str:
    """The first problems, and how many more there are."""
    rows = [("shard", "record", "key", "reason")]
    for p in problems[:_SHOWN]:
        record = "-" if p.record is None else str(p.record)
        rows.append((one_line(p.file), record, "-" if p.key is None else one_line(p.key), one_line(p.reason)))
    more = f"\n... and {len(problems) - _SHOWN} more; --json lists all" if len(problems) > _SHOWN else ""
    return table(rows) + more


def repair_json(repair: Repair) -> dict[str, Any]:
    """What a repair did, JSON-able."""
    return {
        "out": repair.out,
        "problems": len(repair.problems),
        "rewritten": list(repair.rewritten),
        "lost": [problem.to_json() for problem in repair.lost],
        "aside": list(repair.aside),
        "samples": repair.n_samples,
        "seconds": round(repair.seconds, 3),
    }


def repair_text(repair: Repair) -> str:
    """What a repair did, in a line and a table."""
    out = one_line(repair.out)
    if not repair.problems:
        if repair.decoded:
            return f"{out} is whole, and every sample decodes: nothing to do."
        return (
            f"{out} holds the bytes that were written: nothing to do. Samples that do not decode (`streamkit verify --full`) "
            "are the source's own; --drop leaves them out."
        )
    n = len(repair.rewritten)
    head = f"{out} is whole again: {n} file{'s' * (n != 1)} mended ({', '.join(map(one_line, repair.rewritten[:3]))}"
    head += f" and {n - 3} more), " if n > 3 else "), "
    head += f"{repair.n_samples} samples in {repair.seconds:.1f} s."
    if repair.aside:
        head += f" What lay in their place is kept as {', '.join(map(one_line, repair.aside))}."
    if not repair.lost:
        return head
    lost = "1 record is" if len(repair.lost) == 1 else f"{len(repair.lost)} records are"
    return f"{head}\n\n{lost} lost:\n\n{problem_table(repair.lost)}"
