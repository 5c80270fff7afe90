"""Run the tests that inject faults and print what came of each: case, tries, survived, lost, hung.

A try is survived when what is delivered is what was stored, and the rest is an error of streamkit's own that comes at once. A
case that ends early counts the tries before; what needs a missing tool is skipped, and counted as skipped.

Example: STREAMKIT_FAULT_SEEDS=5000 python scripts/faults.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"


class Table:
    """Collects one row a case while pytest runs."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, int, int, int]] = []
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.skipped:
            self.skipped.append(name)
        elif report.when == "call" or report.failed:
            survived = sum(value for key, value in report.user_properties if key == "survived") or int(report.passed)
            hung = int(report.failed and "this hangs" in str(report.longrepr))
            lost = int(report.failed and not hung)
            self.rows.append((name, survived + hung + lost, survived, lost, hung))

    def __str__(self) -> str:
        total = ("all", *(sum(row[i] for row in self.rows) for i in range(1, 5)))
        head = ("case", "tries", "survived", "lost", "hung")
        rows = [tuple(map(str, row)) for row in (head, *self.rows, total)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, f"{len(self.skipped)} skipped {' '.join(self.skipped)}".rstrip()])


def main() -> int:
    """Run them; return pytest's exit code."""
    table = Table()
    code = pytest.main(["-q", str(TESTS / "test_faults.py"), str(TESTS / "test_hostile.py")], plugins=[table])
    print(table)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
