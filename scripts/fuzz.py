#!/usr/bin/env python
"""Fuzz one parser with coverage (atheris), beginning with the corpus that is there, and write the corpus it leaves.

Example: pip install -e .[fuzz] && python scripts/fuzz.py manifest 600
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import atheris

with atheris.instrument_imports(include=["streamkit", "fuzzing", "lying"]):
    import fuzzing

LIMITS = ["-rss_limit_mb=512", "-timeout=5", "-max_len=8192", "-print_final_stats=1"]


def keep(target: str, inputs: set[bytes]) -> None:
    """Write the corpus as one line an input, the short ones first."""
    fuzzing.CORPUS.mkdir(exist_ok=True)
    lines = [base64.b64encode(data).decode() for data in sorted(inputs, key=lambda data: (len(data), data)) if data]
    (fuzzing.CORPUS / f"{target}.txt").write_text("\n".join([*lines, ""]))


def main(target: str, seconds: str) -> int:
    """Fuzz in a child, because libFuzzer ends its process. It keeps what covers something new."""
    if seconds.startswith("-"):
        atheris.Setup([sys.argv[0], *sys.argv[2:]], fuzzing.TARGETS[target])
        atheris.Fuzz()
    with tempfile.TemporaryDirectory() as name:
        start, grown = Path(name, "start"), Path(name, "grown")
        start.mkdir()
        grown.mkdir()
        known = fuzzing.found(target) if (fuzzing.CORPUS / f"{target}.txt").exists() else []
        for i, data in enumerate([*fuzzing.seeds(target), *known]):
            (start / f"{i:04d}").write_bytes(data)
        command = [sys.executable, __file__, target, f"-max_total_time={seconds}", *LIMITS, grown, start]
        code = subprocess.call(command)
        keep(target, {*known, *(path.read_bytes() for path in grown.iterdir())})
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
