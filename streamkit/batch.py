"""Rows -> batch: read, decode into the batch's slots, stack. Work is done once a batch wherever it can be.

`View` is what the user asked to see; `BatchMaker` makes it for any rows of a reader. Pure in the rows: the same rows give
the same batch in every thread and process.

    >>> import tempfile, streamkit
    >>> out = tempfile.mkdtemp() + "/out"
    >>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
    >>> manifest = streamkit.open(out)
    >>> reader = Reader(out, manifest, manifest.splits["val"], list(manifest.schema))
    >>> maker = BatchMaker(reader, View(), batched=True, buffers=Buffers(keep=2))
    >>> {name: values.shape for name, values in maker.make(np.array([5, 2, 2])).items()}
    {'image': (3, 32, 32, 3), 'label': (3,)}
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamkit.buffers import Buffers
from streamkit.errors import StreamkitError, UsageError
from streamkit.lengths import padded_to
from streamkit.payloads import Payloads
from streamkit.pictures import Pictures, Slots
from streamkit.reader import Reader
from streamkit.schema import Field
from streamkit.view import Spec, View, extra

Ints = npt.NDArray[np.int64]


class Maker(Protocol):
    """Makes the samples of rows."""

    specs: dict[str, Spec]

    def make(self, rows: Ints, epoch: int = 0) -> dict[str, npt.NDArray[Any]]: ...
    def make_each(self, rows: Ints, epoch: int = 0) -> list[dict[str, Any]]: ...
    def structure(self, values: dict[str, Any]) -> Any: ...
    def row_of(self, error: StreamkitError) -> int | None: ...


class BatchMaker:
    """Makes batches of a reader's rows as a view wants them.

    Args:
        reader: has loaded what the view's fields need.
        view: what to deliver.
        batched: False when samples are delivered one by one, so that sizes may differ.
        buffers: where batches lie.
        seed: of crops and flips.
    """

    def __init__(self, reader: Reader, view: View, batched: bool, buffers: Buffers, seed: int = 0) -> None:
        self.reader, self.view, self.batched, self.buffers = reader, view, batched, buffers
        schema = reader.manifest.schema
        self.names = view.outputs(schema)
        self.specs = view.specs(schema, batched, reader.manifest.statistics.get("image", {}))
        self.fields = {name: schema[name] for name in self.names if not extra(name, schema)}
        self.payloads = Payloads(reader)
        self.pictures = Pictures(self.payloads, view, buffers, seed)

    def structure(self, batch: dict[str, Any]) -> Any:
        """The batch as the user gets it: an array, a tuple or a dict."""
        return self.view.structure(batch, self.reader.manifest.schema)

    def row_of(self, error: StreamkitError) -> int | None:
        """The row that an error is about, when it is about one."""
        return self.reader.row_of(error)

    def make(self, rows: Ints, epoch: int = 0) -> dict[str, npt.NDArray[Any]]:
        """The batch of these rows: output name -> array with axis 0 the batch. Random crops and flips hang on the epoch.

        Raises:
            DamagedError: a row's bytes are not what the index says, or do not decode.
        """
        slots = self.slots(len(rows))
        self.fill(slots, rows, epoch)
        return self.finish(slots, rows)

    # The same in steps, of which the second may be taken by several threads, each for a run of rows

    def slots(self, n: int) -> dict[str, Slots]:
        """Where the pictures of `n` rows are to lie: output name -> slots."""
        return {name: self.pictures.slots(field, n) for name, field in self.fields.items() if field.is_image}

    def fill(self, slots: dict[str, Slots], rows: Ints, epoch: int) -> None:
        """Make the pictures of `rows` in as many slots."""
        for name, own in slots.items():
            self.pictures.fill(self.fields[name], rows, epoch, own)

    def finish(self, slots: dict[str, Slots], rows: Ints) -> dict[str, npt.NDArray[Any]]:
        """The batch of `rows`, whose pictures have been made."""
        out: dict[str, npt.NDArray[Any]] = {}
        for name in self.names:
            if name not in self.fields:
                out[name] = self.reader.columns["key"][rows] if name == "key" else np.zeros(len(rows), np.bool_)
                continue
            field = self.fields[name]
            if field.is_image:
                out[name] = slots[name].values
            elif not field.is_payload:
                out[name] = self._column(field, rows)
            elif field.fixed:
                out[name] = self._arrays(field, rows)
            else:
                values, lengths = self._ragged(field, rows)
                out[name] = values
                if f"{name}_length" in self.specs:
                    out[f"{name}_length"] = lengths
        return out

    def make_each(self, rows: Ints, epoch: int = 0) -> list[dict[str, Any]]:
        """The samples of these rows, one dict each, without a batch axis; sizes may differ."""
        parts = {name: self._each(name, rows, epoch) for name in self.names}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    def _each(self, name: str, rows: Ints, epoch: int) -> list[Any]:
        """One output's value of each row, the caller's to change."""
        field = self.fields.get(name)
        if field is None:
            return [self.reader.columns["key"][row] if name == "key" else np.False_ for row in rows]
        if field.is_image:
            return [self.pictures.single(field, np.array([row]), epoch) for row in rows]
        if field.is_payload and not field.fixed:
            return [np.require(value, requirements="W") for value in self.payloads.decoded(field, rows)]
        values = self._arrays(field, rows) if field.is_payload else self._column(field, rows)
        return list(values.copy() if values.ndim == 1 else map(np.copy, values))

    # Columns

    def _column(self, field: Field, rows: Ints) -> npt.NDArray[Any]:
        values = self.reader.columns[field.name][rows]
        if field.kind != "label":
            return values
        mode = self.view.label_mode or "int"
        if mode == "int":
            return values.astype(np.int32)
        if mode == "binary":
            return values.astype(np.float32)[:, None]
        out = self.buffers.empty((len(values), len(field.class_names or ())), np.float32)
        out[:] = 0
        out[np.arange(len(values)), values] = 1
        return out

    # Arrays

    def _arrays(self, field: Field, rows: Ints) -> npt.NDArray[Any]:
        if field.kind == "text":
            return self.payloads.texts(field, rows)
        shape = (len(rows), *(int(d or 0) for d in field.shape))
        out = self.buffers.empty(shape, field.dtype)
        self.payloads.raw_into(field, rows, out)
        return out

    def _ragged(self, field: Field, rows: Ints) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Values padded with zeros, and the sizes before padding of the axes that vary."""
        values = self.payloads.decoded(field, rows)
        varying = [axis for axis, d in enumerate(field.shape) if d is None]
        sizes = np.array([[v.shape[axis] for axis in varying] for v in values], np.int32).reshape(len(values), -1)
        shape = [int(d or 0) for d in field.shape]
        for column, axis in enumerate(varying):
            shape[axis] = int(sizes[:, column].max(initial=0))
        if self.view.pad_to != "batch" and varying and varying[0] == 0:
            borders = self.view.pad_to if isinstance(self.view.pad_to, tuple) else (int(self.view.pad_to),)
            border = padded_to(borders, shape[0])
            if border is None:
                longest = self.reader.index.key(int(rows[int(np.argmax(sizes[:, 0]))]))
                raise UsageError(
                    f"sample {longest} has {shape[0]} rows, pad_to is {self.view.pad_to}",
                    hint=f"Pass pad_to={shape[0]} or more.",
                )
            shape[0] = border
        out = self.buffers.empty((len(values), *shape), field.dtype)
        out[:] = 0
        for slot, value in zip(out, values, strict=True):
            slot[tuple(slice(0, n) for n in value.shape)] = value
        return out, sizes[:, 0] if len(varying) == 1 else sizes
