"""TFRecord files of any tf.train.Example: the schema by scanning every record, payloads as ranges inside the records.

    bytes    pictures by content          image, and the index's columns about it
             text of at most 1 KB         a string column; "" where it is missing
             other                        uint8 array (what tf.io.decode_raw gives)
    float    always one                   float32 column
             more                         float32 array: packed floats are little-endian already
    int64    always one                   int64 column, or the label
             more                         int64 array, stored as the varints that they are

One rule for lists: of equal length in all records, an array of that shape; else one whose length varies, which is 0 where
a record lacks the feature. A label or a picture that a record lacks is an error; a feature that has no single place
(several bytes values, numbers that are not packed, a second picture) is left out, with a notice.

    >>> import tempfile, streamkit
    >>> folder = Path(tempfile.mkdtemp(), "out")
    >>> _ = streamkit.convert("sample_data/images", folder, format="tfrecord", workers=1)
    >>> fields, parts, notices = adopt_examples(folder, ["val-00000.tfrecord"], ["val"], Wishes({}))
    >>> [(field.name, field.kind) for field in fields], parts[0].places.n
    ([('image', 'image'), ('label', 'label')], 240)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.adopt.part import Part, Wishes, field_name, label_field
from streamkit.adopt.scanning import Seen, scan
from streamkit.convert.encode import IMAGE_FACTS
from streamkit.digest import file_digest
from streamkit.errors import SourceError, UsageError
from streamkit.schema import Field
from streamkit.shards import Places
from streamkit.shards.record import range_columns
from streamkit.sources.listing import RowKeys

_DTYPES = {"bytes": "uint8", "float": "float32", "int64": "int64"}
_ENCODINGS = {"bytes": "raw", "float": "raw", "int64": "varint"}


def adopt_examples(
    root: Path, files: Sequence[str], splits: Sequence[str], wishes: Wishes
) -> tuple[list[Field], list[Part], list[str]]:
    """Fields, one part a file, and notices.

    Raises:
        SourceError: nothing to adopt, a label or picture missing in some record, features of changing kind.
        UsageError: a wish that names no feature, or does not fit one.
    """
    scans = [scan(root / file, wishes) for file in files]
    met = sorted({name for _, seen in scans for name in seen})
    names = [name for name in met if any(name in seen and seen[name].kind for _, seen in scans)]
    wishes.check([*names, *(name.replace("/", "_") for name in names)])
    made = _Made(files, [n for n, _ in scans], wishes)
    made.notices += [f"{name} is empty in every record: it was left out" for name in met if name not in names]
    for name in names:
        made.take(name, [seen.get(name) or _never(n) for n, seen in scans])
    if not made.fields:
        raise SourceError("no feature can be adopted", path=root / files[0], hint="; ".join(made.notices))
    made.settle_picture_columns()
    parts = []
    for i, (file, split) in enumerate(zip(files, splits, strict=True)):
        path = root / file
        n = scans[i][0]
        parts.append(
            Part(
                split,
                file,
                path.stat().st_size,
                file_digest(path),
                RowKeys(file, n),
                Places(n, made.ranges[i]),
                made.columns[i],
                made.facts[i],
            )
        )
    return made.fields, parts, made.notices


def _never(n: int) -> Seen:
    seen = Seen()
    seen.end(n)
    return seen


class _Made:
    """Fields as they are decided, with their ranges, columns and facts in each file."""

    def __init__(self, files: Sequence[str], sizes: Sequence[int], wishes: Wishes) -> None:
        self.files, self.sizes, self.wishes = files, sizes, wishes
        self.fields: list[Field] = []
        self.notices: list[str] = []
        self.ranges: list[dict[str, Any]] = [{} for _ in files]
        self.columns: list[dict[str, npt.NDArray[Any]]] = [{} for _ in files]
        self.facts: list[dict[str, list[Any]]] = [{} for _ in files]

    def take(self, name: str, seen: Sequence[Seen]) -> None:
        """Decide what feature `name` becomes; `seen` in each file."""
        kinds = sorted({s.kind for s in seen} - {""})
        if len(kinds) > 1:
            raise SourceError(f"feature {name} holds {kinds[0]} values in some files, {kinds[1]} values in others")
        kind, own = kinds[0], field_name(name, [f.name for f in self.fields])
        wish = self.wishes.kind_of(name, own)
        if wish == "image" and kind != "bytes":
            raise UsageError(f"{name} holds {kind} values, which are no picture")
        counts = [np.asarray(s.counts) for s in seen]
        once = all((c == 1).all() for c in counts)
        texts = kind == "bytes" and all(s.texts is not None for s in seen)
        if self.wishes.is_label(name, own) and (self.wishes.label is not None or (kind == "int64" and once)):
            self._label(name, seen, kind, counts, texts)
        elif kind == "bytes" and max(int(c.max(initial=0)) for c in counts) > 1:
            self._leave(name, wish, "holds several bytes values in some records, and a range is one")
        elif any(-1 in np.asarray(s.starts) for s in seen) and not once:
            self._leave(name, wish, "holds numbers that are not packed, which lie in many places")
        elif kind == "bytes" and all(s.facts is not None for s in seen if s.kind):
            self._picture(name, own, wish, seen, counts)
        elif texts:
            self._column(Field(own, "string", "string"), [_objects(s.texts or []) for s in seen])
        elif kind == "float" and once:
            self._column(Field(own, "number", "float32"), [np.array(s.numbers, np.float32) for s in seen])
        elif kind == "int64" and once:
            self._column(Field(own, "number", "int64"), [np.array(s.integers, np.int64) for s in seen])
        else:
            sizes = [np.asarray(s.lengths) for s in seen] if kind == "bytes" else counts
            known = {int(v) for values in sizes for v in np.unique(values)}
            length = known.pop() if len(known) == 1 else None
            field = Field(own, "array", _DTYPES[kind], (length,), _ENCODINGS[kind])
            self._payload(field, seen)

    def _leave(self, name: str, wish: str | None, reason: str) -> None:
        if wish is not None:
            raise UsageError(f"feature {name} {reason}")
        self.notices.append(f"{name} {reason}: it was left out")

    def _label(self, name: str, seen: Sequence[Seen], kind: str, counts: Sequence[Any], texts: bool) -> None:
        for file, count in zip(self.files, counts, strict=True):
            if (count != 1).any():
                record = int(np.argmax(count != 1))
                raise SourceError(f"{int(count[record])} values of the label {name}, not one", path=file, record=record)
        if kind == "bytes" and not texts:
            raise UsageError(f"{name} is no text, and a label is a whole number or text")
        values = {
            "bytes": [_objects(s.texts or []) for s in seen],
            "float": [np.array(s.numbers, np.float32) for s in seen],
            "int64": [np.array(s.integers, np.int64) for s in seen],
        }[kind]
        field, numbers = label_field(values, name)
        if any(f.name == "label" for f in self.fields):
            raise SourceError(f"{name} would be a second field label", hint="Choose the label with --label NAME.")
        self._column(field, numbers)

    def _column(self, field: Field, values: Sequence[npt.NDArray[Any]]) -> None:
        self.fields.append(field)
        for columns, own in zip(self.columns, values, strict=True):
            columns[field.name] = own

    def _picture(self, name: str, own: str, wish: str | None, seen: Sequence[Seen], counts: Sequence[Any]) -> None:
        for file, count in zip(self.files, counts, strict=True):
            if (count != 1).any():
                raise SourceError(f"no picture {name}", path=file, record=int(np.argmax(count != 1)))
        if any(f.kind == "image" for f in self.fields):
            self._leave(name, wish, "is a second picture, and the index tells the size of one")
            return
        self._payload(Field(own, "image", "uint8", (None, None, None), "mixed"), seen)
        for facts, s in zip(self.facts, seen, strict=True):
            facts.update(s.facts or {})

    def _payload(self, field: Field, seen: Sequence[Seen]) -> None:
        self.fields.append(field)
        for ranges, s in zip(self.ranges, seen, strict=True):
            ranges |= range_columns(field.name, s.starts, s.lengths, s.crcs)

    def settle_picture_columns(self) -> None:
        """A feature named as a column of the index about pictures goes where it says the same, else gets another name."""
        if not any(f.kind == "image" for f in self.fields):
            return
        for field in [f for f in self.fields if f.name in IMAGE_FACTS]:
            self.fields.remove(field)
            if field.is_payload:
                raise SourceError(f"the index needs the name {field.name!r} itself", hint="Rename that feature.")
            values = [columns.pop(field.name) for columns in self.columns]
            told = [np.array(facts[field.name]) for facts in self.facts]
            if all(np.array_equal(a, b) for a, b in zip(values, told, strict=True)):
                continue
            self.notices.append(f"{field.name} is not what the pictures say, and became {field.name}_1")
            self._column(Field(f"{field.name}_1", field.kind, field.dtype), values)


def _objects(texts: Sequence[str]) -> npt.NDArray[Any]:
    out = np.empty(len(texts), object)
    out[:] = texts
    return out
