"""Every numbered fault case has a test that names it with `@pytest.mark.fault(...)`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import faults
import pytest


def test_every_case_is_named() -> None:
    named = faults.named_cases()
    assert set(named) == faults.CASES


def test_the_table_counts_what_became_of_each_try() -> None:
    """Tries that a test counted, as they were; of the others a timeout is a hang, and another failure a loss."""
    tried = [("survived", 1), ("survived", 1), ("hung", 1), ("lost", 1)]
    reports = [
        ("test_a[x]", True, "2 of 4 are no survivors", tried),
        ("test_b", True, "subprocess.TimeoutExpired: Command timed out after 120 seconds", []),
        ("test_b", True, "AssertionError", []),
        ("test_b", False, "", []),
    ]
    table = faults.Table()
    for name, failed, text, counted in reports:
        node = f"tests/test_x.py::{name}"
        table.cases[node] = (1,)
        table.pytest_runtest_logreport(
            pytest.TestReport(
                node, ("", 0, ""), {}, "failed" if failed else "passed", text, "call", (), 0.1, 0, 0, counted
            )
        )
    assert dict(table.rows["test_a[x]", (1,)]) == {"survived": 2, "lost": 1, "hung": 1}
    assert dict(table.rows["test_b", (1,)]) == {"survived": 1, "lost": 1, "hung": 1}


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("-h", 0), ("many", 2)])
def test_usage_installs_nothing(tmp_path: Path, argument: str, code: int) -> None:
    """Alone in a folder without scripts/setup, which would install."""
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(Path(faults.__file__).with_name("faults"), tmp_path / "scripts")
    run = subprocess.run([script, argument], capture_output=True, text=True, timeout=30)
    assert run.returncode == code, run.stderr
    assert "usage: scripts/faults [TRIES]" in (run.stderr if code else run.stdout)
