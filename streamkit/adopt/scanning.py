"""Scanning TFRecord files: what every feature of every record holds, and where.

>>> import numpy as np
    >>> seen = Seen()
>>> seen.add(0, example.Feature("float", np.ones(2, np.float32), 7, 15), 100)
>>> seen.end(2)    # the second record lacks it
>>> seen.counts.tolist(), seen.starts.tolist()
([2, 0], [107, 0])
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

from crc32c import crc32c

from streamkit.adopt.part import Wishes
from streamkit.codecs import image
from streamkit.convert.encode import IMAGE_FACTS
from streamkit.errors import DamagedError, SourceError
from streamkit.shards import example
from streamkit.shards.tfrecord import read_records

MAX_TEXT_NBYTES = 1024


class Seen:
    """What one feature held in each record of a file: how many values, where [B], their crc32c; and what may matter."""

    def __init__(self) -> None:
        self.kind = ""
        self.counts, self.starts, self.lengths, self.crcs = array("i"), array("q"), array("q"), array("I")
        self.numbers = array("d")  # of single floats, which are float32
        self.integers = array("q")
        self.texts: list[str] | None = []
        self.facts: dict[str, list[Any]] | None = {}  # None: not all are pictures

    def add(self, record: int, feature: example.Feature, base: int, picture: bool = False) -> None:
        """Note a feature of record `record`, whose Example begins at byte `base`. `picture`: it must be one.

        Raises ValueError (`BadImage`) where it is none, or where the kind changes.
        """
        count = len(feature.values)
        if count == 0:
            return
        if self.kind not in ("", feature.kind):
            raise ValueError(f"it holds {feature.kind} values, {self.kind} values before")
        self.kind = feature.kind
        self.end(record)
        self.counts.append(count)
        self.starts.append(base + feature.start if feature.start >= 0 else -1)
        self.lengths.append(feature.stop - feature.start)
        value = feature.values[0]
        if feature.kind == "bytes":
            self.crcs.append(crc32c(value))
            self._picture(value, picture)
            self._text(value)
        else:
            self.crcs.append(0)  # the caller has the bytes
        self.numbers.append(float(value) if feature.kind == "float" else 0.0)
        self.integers.append(int(value) if feature.kind == "int64" else 0)

    def end(self, n: int) -> None:
        """Records up to number `n` that had nothing of it are noted as such."""
        missing = n - len(self.counts)
        for values in (self.counts, self.starts, self.lengths, self.crcs, self.numbers, self.integers):
            values.extend([0] * missing)
        if self.texts is not None:
            self.texts.extend([""] * missing)

    def _picture(self, value: memoryview, must: bool) -> None:
        if self.facts is None or not (must or image.looks_like_image(value)):
            if self.facts:
                raise image.BadImage("it is no picture, and those before are")
            self.facts = None
            return
        info = image.probe(value)
        for name, fact in zip((*IMAGE_FACTS, "format"), (*info[1:], info.format), strict=True):
            self.facts.setdefault(name, []).append(fact)

    def _text(self, value: memoryview) -> None:
        if self.texts is None or len(value) > MAX_TEXT_NBYTES:
            self.texts = None
            return
        try:
            self.texts.append(bytes(value).decode())
        except UnicodeDecodeError:
            self.texts = None


def scan(path: Path, wishes: Wishes) -> tuple[int, dict[str, Seen]]:
    """Read every record of a file, crcs checked: their number, and what was seen of each feature.

    Raises:
        SourceError: damaged, or not Examples; names the record.
    """
    seen: dict[str, Seen] = {}
    n = 0
    try:
        for n, (base, data) in enumerate(read_records(path), 1):
            if example.is_sequence(data):
                raise SourceError("holds tf.train.SequenceExample records, not Example", path=path, hint=_SEQUENCES)
            for name, feature in example.parse(data).items():
                one = seen.get(name)
                if one is None:
                    one = seen[name] = Seen()
                try:
                    picture = wishes.kind_of(name, name.replace("/", "_")) == "image"
                    one.add(n - 1, feature, base, picture)
                except ValueError as error:
                    raise SourceError(f"feature {name}: {error}", path=path, record=n - 1) from None
                if feature.kind != "bytes" and feature.start > 0:
                    one.crcs[-1] = crc32c(data[feature.start : feature.stop])
    except example.BadExample as error:
        raise SourceError(f"holds no tf.train.Example: {error}", path=path, record=n - 1, hint=_OTHERS) from None
    except DamagedError as error:
        raise SourceError(error.what, path=path, record=error.record, offset=error.offset) from None
    for one in seen.values():
        one.end(n)
    return n, seen


_SEQUENCES = (
    "Write each one as an Example with tf.train.Example(features=...): context as it is, each feature list joined to "
    "one list, or one Example a step; then index that."
)
_OTHERS = "Only records of tf.train.Example can be adopted."
