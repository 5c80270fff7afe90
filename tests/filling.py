"""Conversions into a file system that is too small: of bytes, or of inodes. A script, for a mount namespace of its own.

Each try ends with what the error said; then the file system grows and the same command goes on. One line of JSON a try.

    python filling.py WORK SOURCE FORMAT size|nr_inodes N
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from converting import digests
from injecting import convert

import streamkit

SAID = {"size": "no space left", "nr_inodes": "no inodes left"}


def mount(place: Path, option: str, *more: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([option, *more]), "tmpfs", place], check=True)


def one(source: Path, place: Path, format: str, what: str, amount: int, expected: dict[str, str]) -> str:
    out = place / "out"
    mount(place, f"{what}={amount}")
    try:
        try:
            convert(source, out, format)
        except streamkit.ResourceError as error:
            if SAID[what] not in str(error) or "\n" in str(error):
                return f"lost: it says {error}"
            left = [path.name for path in place.rglob(".*.tmp-*")]
            if left or (out / "manifest.json").exists():
                return f"lost: left behind {left}"
        mount(place, "size=64m", "nr_inodes=4096", "remount")
        convert(source, out, format)
        return "survived" if digests(out) == expected else "lost: other bytes after the next run"
    finally:
        subprocess.run(["umount", place], check=True)


def main(work: Path, source: Path, format: str, what: str, n: int) -> None:
    convert(source, work / "whole", format)
    expected = digests(work / "whole")
    needed = {
        "size": sum(-(-path.stat().st_size // 4096) for path in (work / "whole").iterdir()) * 4096,
        "nr_inodes": len(expected) + 2,
    }[what]
    chance = random.Random(f"{format} {what}")
    place = work / "small"
    place.mkdir()
    for _ in range(n):
        amount = chance.randint(4096, needed) if what == "size" else chance.randint(2, needed)
        outcome = one(source, place, format, what, amount, expected)
        print(json.dumps({"point": f"{what} {amount} of {needed}", "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
