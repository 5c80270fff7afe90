"""One shard's work, start to end: open its items, encode them, write the shard, record it in the journal.

A `Job` holds all it needs and pickles small, so that it runs in this process, in a worker process or on another machine
alike; which of them, never shows in the bytes.

    >>> Job.__dataclass_fields__["file"].type
    'str'
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streamkit.atomic import replacing
from streamkit.convert.duplicates import COLUMN, content_column, content_digest
from streamkit.convert.encode import IMAGE_FACTS, Encoder
from streamkit.convert.journal import Part, chunk_table, summarise, write_part
from streamkit.convert.options import Options
from streamkit.digest import file_digest
from streamkit.errors import ResourceError
from streamkit.index import column, strings
from streamkit.manifest import WORK_FOLDER
from streamkit.schema import Schema
from streamkit.shards import Places, Record, shard_format
from streamkit.sources.listing import BadItem, Ragged, Sample, Source
from streamkit.splits import Shard

_FACT_TYPES = {"width": np.int32, "height": np.int32, "channels": np.uint8, "orientation": np.uint8}


@dataclass(frozen=True)
class Job:
    """One shard to write.

    Attributes:
        source: where its items come from.
        keys: of its items, in record order.
        columns: column field -> values, (n,).
        arrays: payload field -> values, for those that the listing holds.
        schema: how fields are stored.
        options: the user's.
        out: the dataset's folder.
        file: the shard's name.
        keep_going: leave bad items out instead of giving the shard up.
        items: see `items_digest`.
        compare: note a digest of each sample's content.
        n_whole: pictures that are decoded whole for the statistics.
        leave: copies to leave out, key -> reason; None before copies were looked for.
    """

    source: Source
    keys: Sequence[str]
    columns: Mapping[str, npt.NDArray[Any]]
    arrays: Mapping[str, Ragged]
    schema: Schema
    options: Options
    out: Path
    file: str
    keep_going: bool
    items: str
    compare: bool = False
    n_whole: int = 0
    leave: Mapping[str, str] | None = None

    def run(self, progress: Callable[[int], None] | None = None) -> Part:
        """Write the shard and its part. With bad items and not `keep_going`, nothing is written."""
        encoder = Encoder(self.schema, self.options, self.n_whole)
        bad: list[BadItem] = []
        keys: list[str] = []
        facts: dict[str, list[Any]] = defaultdict(list)
        rows: list[int] = []
        contents: list[bytes] = []

        def records() -> Iterator[Record]:
            samples = self.source.samples(self.keys)
            for i, (key, sample) in enumerate(zip(self.keys, samples, strict=True)):
                made: Record | BadItem = (
                    sample if isinstance(sample, BadItem) else self._record(encoder, i, key, sample)
                )
                if progress is not None:
                    progress(1)
                if isinstance(made, BadItem):
                    bad.append(made)
                    continue
                keys.append(key)
                rows.append(i)
                if self.compare and isinstance(sample, Sample):
                    contents.append(content_digest(sample))
                for name, value in made.facts.items():
                    facts[name].append(value)
                yield made

        with replacing(self.out / self.file) as path:
            places = shard_format(self.options.format).write_shard(path, self.schema, records())
            if bad and not self.keep_going:
                raise _GaveUp(tuple(bad))
            shard = Shard(self.file, places.n, path.stat().st_size, places.digest or file_digest(path))
        part = Part(shard, summarise(facts), tuple(bad), self.items, self.leave is not None)
        columns = {name: values[rows] for name, values in self.columns.items()}
        index = index_table(self.schema, self.file, keys, columns, facts, places)
        if self.compare:
            index = index.append_column(COLUMN, content_column(contents))
        write_part(self.out / WORK_FOLDER, part, index, chunk_table(places, self.file))
        return part

    def _record(self, encoder: Encoder, i: int, key: str, sample: Sample | BadItem) -> Record | BadItem:
        if isinstance(sample, BadItem):
            return sample
        if self.leave is not None and key in self.leave:
            return BadItem(key, self.leave[key])
        payloads = sample.payloads
        if self.arrays:
            payloads = {**payloads, **{name: values[i] for name, values in self.arrays.items()}}
        return encoder.record(key, payloads, {name: values[i] for name, values in self.columns.items()})


class _GaveUp(Exception):
    """Ends the writing of a shard that has bad items, so that it is not published."""

    def __init__(self, bad: tuple[BadItem, ...]) -> None:
        super().__init__(bad)
        self.bad = bad


def run_job(job: Job, progress: Callable[[int], None] | None = None) -> Part | tuple[BadItem, ...]:
    """The finished part, or the bad items for which the shard was given up."""
    try:
        return job.run(progress)
    except _GaveUp as gave_up:
        return gave_up.bad
    except MemoryError:
        raise ResourceError(
            "out of memory while writing this shard",
            shard=job.file,
            key=job.keys[0] if len(job.keys) == 1 else None,
            hint="Lower --workers or --shard-size and run it again: it continues.",
        ) from None


def index_table(
    schema: Schema,
    file: str,
    keys: Sequence[str],
    columns: Mapping[str, npt.NDArray[Any]],
    facts: Mapping[str, Sequence[Any]],
    places: Places,
) -> pa.Table:
    """A shard's rows of the index, in the column order of the format."""
    out: dict[str, Any] = {"key": strings(keys), "shard": strings([file] * len(keys))}
    for field in schema.payloads:
        kinds = ("chunk", "row") if field.chunk_rows is not None else ("offset", "length", "crc32c")
        for kind in kinds:
            out[f"{field.name}.{kind}"] = column(places.ranges[f"{field.name}.{kind}"])
        if field.n_varying > 1 and not field.is_encoded_image:
            shapes = np.array(facts.get(f"{field.name}.shape", []), np.int32).reshape(-1)
            out[f"{field.name}.shape"] = pa.FixedSizeListArray.from_arrays(column(shapes), len(field.shape))
    for field in schema.columns:
        values = columns[field.name]
        out[field.name] = column(values) if field.kind != "string" else strings(values.tolist())
    for name in IMAGE_FACTS:
        if name in facts:
            out[name] = column(np.array(facts[name], _FACT_TYPES[name]))
    return pa.table(out)
