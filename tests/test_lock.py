"""One converter at a time per output, whatever moment the next one comes at."""

from __future__ import annotations

from pathlib import Path

from converting import python

RACE = """
import sys
from pathlib import Path
from streamkit.convert.lock import Lock
from streamkit.errors import BusyError
out, n = Path(sys.argv[1]), 0
for _ in range(400):
    try:
        with Lock(out) as lock:
            mine = out / "mine"
            mine.touch(exist_ok=False)  # nobody else is inside
            mine.unlink()
            lock.remove()
            n += 1
    except BusyError:
        pass
print(n)
"""
TWO = """
import subprocess, sys
both = [subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE, text=True) for _ in range(2)]
print([int(process.communicate()[0]) for process in both])
"""


def test_one_ends_while_the_next_one_comes(tmp_path: Path) -> None:
    """Many times over: nobody enters beside another, and no one is told anything but that it is busy."""
    run = python(TWO, RACE, tmp_path)
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    assert min(eval(run.stdout)) > 0
    assert list(tmp_path.iterdir()) == []
