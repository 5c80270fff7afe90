"""Run every test that holds a numbered fault case, and print what came of each: case, tries, survived, lost, hung.

A try is survived when what is delivered is what was stored, what is published is whole, and the rest is an error of
streamkit's own that comes at once. A test that ends early counts the tries before. What needs root or a missing tool is
skipped, and counted as skipped; cases that no test names are listed.

Tests say which cases they hold: `@pytest.mark.fault(41, 42)`. Those of a new part of streamkit need no word here.

Example: STREAMKIT_FAULT_SEEDS=5000 python scripts/faults.py -k flip
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"
CASES = set(range(1, 91))
OUTCOMES = ("survived", "lost", "hung")
HANGS = ("this hangs", "TimeoutExpired")


def named_cases() -> dict[int, list[str]]:
    """Case number -> the files of tests that name it."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                for argument in node.args:
                    found[ast.literal_eval(argument)].append(path.name)
    return found


class Table:
    """Collects a row a test while pytest runs; of tests that count their tries, a row for each of its parameters."""

    def __init__(self) -> None:
        self.cases: dict[str, tuple[int, ...]] = {}
        self.rows: dict[tuple[str, tuple[int, ...]], Counter[str]] = defaultdict(Counter)
        self.skipped: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = item.iter_markers("fault")
            self.cases[item.nodeid] = tuple(sorted({n for mark in marks for n in mark.args}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[f"{name.partition('[')[0]}: {reason}"] += 1
            return
        if report.when != "call" and not report.failed:
            return
        counted = Counter(dict.fromkeys(OUTCOMES, 0))
        for key, value in report.user_properties:
            if key in OUTCOMES:
                counted[key] += int(str(value))
        row = self.rows[name if counted.total() else name.partition("[")[0], self.cases[report.nodeid]]
        row["survived"] += counted["survived"] or int(report.passed)
        row["lost"] += counted["lost"]
        row["hung"] += counted["hung"]
        if report.failed and not counted["lost"] + counted["hung"]:  # of a try that the test did not count
            row["hung" if any(word in str(report.longrepr) for word in HANGS) else "lost"] += 1

    def __str__(self) -> str:
        lines = [("FAULTS", "case", "tries", *OUTCOMES)]
        for (name, cases), row in sorted(self.rows.items(), key=lambda item: (item[0][1], item[0][0])):
            numbers = " ".join(map(str, cases))
            lines.append((numbers, name.removeprefix("test_"), str(row.total()), *(str(row[c]) for c in OUTCOMES)))
        whole: Counter[str] = sum(self.rows.values(), Counter())
        lines.append(("", "all", str(whole.total()), *(str(whole[c]) for c in OUTCOMES)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in lines]
        text.append(f"skipped: {self.skipped.total()}")
        text += [f"  {n} x {what}" for what, n in sorted(self.skipped.items())]
        text.append(f"cases that no test names: {' '.join(map(str, sorted(CASES - set(named_cases()))))}")
        return "\n".join(text)


def main(arguments: list[str]) -> int:
    """Run them; return pytest's exit code."""
    table = Table()
    code = pytest.main(["-q", "-m", "fault", str(TESTS), *arguments], plugins=[table])
    print(table)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
