"""What a terminal shows beside the facts: progress and remarks, on stderr.

>>> tick = progress_bar(10)    # nothing is shown when stderr is no terminal
>>> tick(3)
"""

from __future__ import annotations

import sys
from collections.abc import Callable

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


def say(text: str) -> None:
    """One remark, one line."""
    print(f"streamkit: {one_line(text)}", file=sys.stderr)
