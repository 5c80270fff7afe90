"""skipped.jsonl: the items that were left out of a dataset, with their reasons; written and read here alone.

>>> import tempfile, pathlib
>>> out = pathlib.Path(tempfile.mkdtemp())
>>> write(out, [BadItem("b.jpg", "broken JPEG"), BadItem("a.jpg", "is empty")])
>>> [item.key for item in read(out)], len(read(out, n_most=1))
(['a.jpg', 'b.jpg'], 1)
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from streamkit import strict
from streamkit.atomic import os_error, write_atomic
from streamkit.errors import DamagedError, RefusedError
from streamkit.guard import regular_file
from streamkit.sources.listing import BadItem

FILE_NAME = "skipped.jsonl"
_MAX_LINE_NBYTES = 1 << 20
_COPY = "has the same content as "
_DROPPED = ", and dropped by repair"


def copy_of(key: str, split: str) -> str:
    """Why an item is left out that has the content of another."""
    return f"{_COPY}{key} ({split})"


def dropped_from(shard: str) -> str:
    """Why a record is missing that `repair --drop` left out."""
    return f"damaged in {shard}{_DROPPED}"


def undecodable_in(shard: str, reason: str) -> str:
    """Why a record is missing that `repair --drop` left out as its stored bytes, the item's own, do not decode."""
    return f"does not decode in {shard}: {reason}"


def is_dropped(item: BadItem) -> bool:
    """True for a record that `repair --drop` left out; its item may be whole."""
    return item.reason.endswith(_DROPPED)


def is_bad(item: BadItem) -> bool:
    """True for an item that could not be converted.

    >>> is_bad(BadItem("a.jpg", "is empty")), is_bad(BadItem("b.jpg", copy_of("a.jpg", "val")))
    (True, False)
    """
    return not is_dropped(item) and not item.reason.startswith(_COPY)


def write(out: Path, bad: Sequence[BadItem]) -> None:
    """Write the list, in the order of the keys."""
    lines = (json.dumps({"key": b.key, "reason": b.reason}, sort_keys=True) for b in sorted(bad))
    write_atomic(out / FILE_NAME, ("\n".join(lines) + "\n").encode())


def read(root: Path, n_most: int | None = None) -> list[BadItem]:
    """The list, or the first of it.

    Raises:
        DamagedError: it is not there, or no such list.
        RefusedError: it is a link, a pipe or a device.
        ResourceError: it cannot be read.
    """
    path = root / FILE_NAME
    try:
        regular_file(path)
        with open(path, "rb") as file:
            lines = iter(lambda: file.readline(_MAX_LINE_NBYTES), b"")
            items = [strict.parse(line) for line in itertools.islice(lines, n_most)]
        return [BadItem(str(item["key"]), str(item["reason"])) for item in items]
    except RefusedError as error:
        raise RefusedError(error.what, path=path) from None
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is no list of skipped items: {error}"
        raise DamagedError(what, path=path, hint="Run `streamkit repair`.") from None
    except OSError as error:
        raise os_error(error, path) from error
