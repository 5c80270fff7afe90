"""What a terminal shows beside the facts: progress and remarks, on stderr; and colour, where it is wanted.

Source of the rule for colour: no-color.org.

>>> tick = progress_bar(10)    # nothing is shown when stderr is no terminal
>>> tick(3)
>>> show("cat  ███")    # nor colour
cat  ███
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import TextIO

from streamkit.errors import one_line


def progress_bar(n_items: int, unit: str = " items") -> Callable[[int], None]:
    """A progress bar with rate and time left on a terminal, shown for what takes longer than two seconds."""
    if not sys.stderr.isatty():
        return lambda n: None
    from tqdm import tqdm

    bar = tqdm(total=n_items, unit=unit, unit_scale=True, delay=2, leave=False, file=sys.stderr)

    def tick(n: int) -> None:
        bar.update(n)
        if bar.n >= n_items:
            bar.close()

    return tick


_RED, _CYAN = "31", "36"


def say(text: str, is_error: bool = False) -> None:
    """One remark, one line."""
    name = _painted("streamkit:", _RED, sys.stderr) if is_error else "streamkit:"
    print(f"{name} {one_line(text)}", file=sys.stderr)


def show(text: str) -> None:
    """Facts on stdout, bars in colour."""
    print(re.sub("█+", lambda bar: _painted(bar[0], _CYAN, sys.stdout), text))


def _painted(text: str, color: str, stream: TextIO) -> str:
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{color}m{text}\x1b[0m"
