"""What is found of one adopted file, and what the user said about its fields.

>>> Wishes.parse(["x/raw=image"], "y").kind_of("x/raw", "x_raw")
'image'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import SourceError, UsageError
from streamkit.schema import Field
from streamkit.shards import Places
from streamkit.sources.table import LABEL_NAMES

MAX_CLASSES = 100_000
_RESERVED = ("key", "shard")


@dataclass(frozen=True)
class Part:
    """One adopted file's rows of the index.

    Attributes:
        split: the split it belongs to.
        file: its path below the root; of an image folder the split's name.
        nbytes: its size [B].
        digest: BLAKE3 (hex) of its bytes.
        keys: one a row.
        places: where the payloads lie.
        columns: column field -> values (n,).
        facts: further index columns, see `Record.facts`.
    """

    split: str
    file: str
    nbytes: int
    digest: str
    keys: Sequence[str]
    places: Places
    columns: Mapping[str, npt.NDArray[Any]]
    facts: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wishes:
    """What --field and --label say. Names may be spelled as the file does ("image/encoded") or as the field is called."""

    kinds: Mapping[str, str]
    label: str | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, str] | Iterable[str] | None, label: str | None) -> Wishes:
        """From NAME=image texts, or a dict of the same. Raises UsageError."""
        if not isinstance(fields, Mapping):
            pairs = [text.partition("=") for text in fields or ()]
            fields = {name: kind for name, _, kind in pairs}
        for name, kind in fields.items():
            if not name or kind != "image":
                raise UsageError(f"field is {name}={kind}", hint="Write NAME=image.")
        return cls(dict(fields), label)

    def kind_of(self, *names: str) -> str | None:
        """The kind wished for a field with these spellings."""
        return next((self.kinds[name] for name in names if name in self.kinds), None)

    def is_label(self, *names: str) -> bool:
        """True for the label: the one named, else an integer `label`, `labels`, `y` or `image/class/label`."""
        if self.label is not None:
            return self.label in names
        return any(name in (*LABEL_NAMES, "image/class/label") for name in names)

    def check(self, known: Iterable[str]) -> None:
        """Raise UsageError when a name is none of the `known` spellings."""
        known = set(known)
        for name in [*self.kinds, *([] if self.label is None else [self.label])]:
            if name not in known:
                raise UsageError(f"there is no field {name!r}", hint=f"There are {', '.join(sorted(known))}.")


def field_name(name: str, taken: Iterable[str]) -> str:
    """The field's name for a feature's: "/" is no part of one, and the index needs some names itself.

    >>> field_name("image/encoded", ()), field_name("key", ())
    ('image_encoded', 'key_1')
    """
    made = name.replace("/", "_")
    if made in _RESERVED:
        made = f"{made}_1"
    if made in taken:
        raise SourceError(f"two features would be the field {made}", hint="Rename one of them.")
    return made


def label_field(values: Sequence[npt.NDArray[Any]], name: str) -> tuple[Field, list[npt.NDArray[np.int64]]]:
    """The field `label`, and its class numbers in each file. Text is numbered in sorted order.

    Args:
        values: integers or text (n,), one array a file.
        name: what the file calls it, for messages.
    """
    if any(v.dtype.kind == "O" for v in values):
        texts = sorted({text for v in values for text in v.tolist()})
        if len(texts) > MAX_CLASSES:
            raise SourceError(f"{name} has {len(texts)} different values, which are no classes")
        number = {text: i for i, text in enumerate(texts)}
        numbers = [np.fromiter((number[t] for t in v.tolist()), np.int64, len(v)) for v in values]
        return Field("label", "label", "int64", class_names=tuple(texts)), numbers
    if any(v.dtype.kind not in "iu" for v in values):
        raise UsageError(f"{name} is {values[0].dtype}, and a label is a whole number or text")
    low = min((int(v.min()) for v in values if v.size), default=0)
    high = max((int(v.max()) for v in values if v.size), default=0)
    if high > 2**63 - 1:
        raise SourceError(f"{name} goes up to {high}, beyond int64")
    names = [str(i) for i in range(high + 1)] if low >= 0 and high < MAX_CLASSES else None
    field = Field("label", "label", "int64", class_names=None if names is None else tuple(names))
    return field, [v.astype(np.int64) for v in values]
