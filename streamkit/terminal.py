"""How commands speak: facts on stdout, as text or JSON; progress and remarks on stderr; and colour, where it is wanted.

Source of the rule for colour: no-color.org.

>>> tick = progress_bar(10)    # nothing is shown when stderr is no terminal
>>> tick(3)
>>> show("cat  ███")    # nor colour
cat  ███
>>> show_json({"max": float("inf")})
{
 "max": null
}
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from streamkit.errors import ResourceError, one_line


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
    """Facts on stdout, bars in colour.

    Raises:
        ResourceError: stdout cannot be written. That nobody reads it any more is no error, and changes no exit code.
    """
    try:
        print(re.sub("█+", lambda bar: _painted(bar[0], _CYAN, sys.stdout), text), flush=True)
    except BrokenPipeError:
        mute()
    except OSError as error:
        mute()
        raise ResourceError(
            f"cannot be written: {error.strerror or error}",
            path="stdout",
            hint="Send it elsewhere, or free space there, and run it again.",
        ) from error


def mute() -> None:
    """Lead what stdout still holds into nothing; Python would try again at its end, and complain a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_json(facts: Mapping[str, Any]) -> None:
    """Facts on stdout as JSON, which has no word for numbers that are not finite: they are null. Raises as `show`."""
    show(json.dumps(_sayable(facts), indent=1, allow_nan=False))


def _sayable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _sayable(v) for name, v in value.items()}
    return [_sayable(v) for v in value] if isinstance(value, (list, tuple)) else value


def _painted(text: str, color: str, stream: TextIO | None) -> str:
    """`stream` is None where it was closed before the start (`>&-`)."""
    if stream is None or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{color}m{text}\x1b[0m"
