"""--append: new items become new shards of a dataset that is there; nothing that is there moves.

What is there is read back as if a conversion had just written it, so that one way of publishing serves both. The index is
a new file: who reads by the old manifest keeps the old one.

    >>> merged_names(("cat", "dog"), ("ape", "dog"))
    ('cat', 'dog', 'ape')
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamkit import index
from streamkit.convert import skipped
from streamkit.convert.assign import There
from streamkit.convert.encode import IMAGE_FACTS
from streamkit.convert.items import Items
from streamkit.convert.journal import Part, summarise
from streamkit.convert.moments import as_sums
from streamkit.convert.options import Options
from streamkit.convert.plan import Plan, ShardPlan
from streamkit.errors import SourceError, UsageError
from streamkit.manifest import WORK_FOLDER, Manifest
from streamkit.schema import Field, Schema
from streamkit.sources import Listing
from streamkit.sources.listing import BadItem, Ragged


@dataclass(frozen=True)
class Before:
    """A dataset that is appended to."""

    root: Path
    manifest: Manifest

    @classmethod
    def load(cls, root: Path, options: Options) -> Before:
        """Raises UsageError when there is no dataset, or one of other options."""
        manifest = Manifest.load(root)
        differs = [
            f"{name} is {manifest.options.get(name)!r} there, {value!r} asked"
            for name, value in options.to_json().items()
            if manifest.options.get(name) != value
        ]
        if differs:
            raise UsageError(
                f"the dataset was made with other options: {'; '.join(differs)}", path=root, hint="Pass the same ones."
            )
        chunked = [field.name for field in manifest.schema if field.chunk_rows is not None]
        if options.on_duplicate != "keep" and chunked:
            raise UsageError(
                f"append cannot compare {chunked[0]}, which lies in chunks, with new items", hint="Convert all anew."
            )
        return cls(root, manifest)

    def skipped(self) -> list[BadItem]:
        """Items that were left out of it."""
        return skipped.read(self.root) if self.manifest.skipped else []

    def keys(self) -> set[str]:
        """Keys of all samples."""
        return {key for name in self.manifest.splits for key in self.keys_of(name)}

    def keys_of(self, split: str) -> list[str]:
        """Keys of a split's samples, in the order of its shards."""
        return list(self._table(split, ["key"]).column("key").to_pylist())

    def there(self, options: Options) -> There:
        """What the plan of new items must respect."""
        splits = self.manifest.splits.values()
        groups: dict[str, str] = {}
        if options.group_by is not None:
            for split in splits:
                values = self._table(split.name, [options.group_by]).column(0).to_pylist()
                groups |= dict.fromkeys(map(str, values), split.name)
        return There(
            samples={split.name: split.samples for split in splits},
            shards={
                split.name: 1 + max(int(s.file.rpartition("-")[2].split(".")[0]) for s in split.shards)
                for split in splits
            },
            groups=groups,
        )

    def _table(self, split: str, columns: Sequence[str]) -> pa.Table:
        return pq.read_table(self.root / self.manifest.splits[split].index, columns=list(columns))

    # New items

    def new_items(self, items: Items) -> Items:
        """The items that the dataset does not have, with its class numbers."""
        keys = self.keys()
        rows = np.array([i for i, key in enumerate(items.listing.keys) if key not in keys], np.int64)
        listing = items.listing.take(rows)
        return Items(
            items.source,
            self.with_classes(listing),
            None if items.infos is None else [items.infos[i] for i in rows.tolist()],
            None if items.sizes is None else items.sizes[rows],
        )

    def with_classes(self, listing: Listing) -> Listing:
        """Items with the dataset's class numbers; SourceError where they have other fields."""
        old = self.manifest.schema
        mine, theirs = ({(f.name, f.kind, f.dtype, len(f.shape)) for f in schema} for schema in (listing.schema, old))
        if mine != theirs:
            odd = ", ".join(sorted(f"{name} ({kind} {dtype})" for name, kind, dtype, _ in mine ^ theirs))
            raise SourceError(f"the new items have other fields than the dataset: {odd}", path=self.root)
        fields, columns, arrays = [], dict(listing.columns), dict(listing.arrays)
        for field in listing.schema:
            there = old[field.name].class_names
            if (there is None) != (field.class_names is None):
                raise SourceError(f"{field.name} has class names in one of dataset and source only", path=self.root)
            if there is not None and field.class_names is not None:
                names = merged_names(there, field.class_names)
                number = np.array([names.index(name) for name in field.class_names] or [0], np.int64)
                if field.name in columns:
                    columns[field.name] = number[columns[field.name]]
                else:
                    arrays[field.name] = Ragged(number[arrays[field.name].values], arrays[field.name].offsets)
                field = replace(field, class_names=names)
            fields.append(field)
        return replace(listing, schema=Schema(tuple(fields)), columns=columns, arrays=arrays)

    def storage(self, schema: Schema) -> Schema:
        """How new items are stored: arrays as those that are there."""
        return Schema(tuple(self._stored(field) for field in schema))

    def _stored(self, field: Field) -> Field:
        there = self.manifest.schema[field.name]
        if not field.is_payload or field.is_encoded_image:
            return field
        return replace(field, shape=there.shape, encoding=there.encoding, chunk_rows=there.chunk_rows)

    # Read back

    def plan(self, new: Plan) -> Plan:
        """The whole plan: shards that are there, then the new ones."""
        splits = tuple(self.manifest.splits)
        there = tuple(
            ShardPlan(split.name, shard.file, np.empty(0, np.int64))
            for split in self.manifest.splits.values()
            for shard in split.shards
        )
        return Plan((*splits, *(name for name in new.splits if name not in splits)), (*there, *new.shards))

    def parts(self) -> dict[str, Part]:
        """What a conversion would know of the shards that are there."""
        out = {}
        formats = {f.name: f.encoding for f in self.manifest.schema if f.is_encoded_image}
        for split in self.manifest.splits.values():
            for shard in split.shards:
                table = self.tables(shard.file)[0]
                facts = {n: index.numpy_of(table, n).tolist() for n in IMAGE_FACTS if n in table.column_names}
                for name, encoding in formats.items():
                    facts["format" if name == "image" else f"{name}.format"] = [encoding]
                out[shard.file] = Part(shard, summarise(facts), (), "")
        return out

    def tables(self, file: str) -> tuple[pa.Table, pa.Table | None]:
        """Index rows and chunk rows of a shard, as its part had them."""
        split = next(s for s in self.manifest.splits.values() if any(shard.file == file for shard in s.shards))
        number = [shard.file for shard in split.shards].index(file)
        table = pq.ParquetFile(self.root / split.index).read_row_group(number)
        if "channels" in table.column_names and "orientation" not in table.column_names:
            at = table.column_names.index("channels") + 1
            table = table.add_column(at, "orientation", index.column(np.ones(table.num_rows, np.uint8)))
        chunked = [f.name for f in self.manifest.schema if f.chunk_rows is not None]
        if not chunked:
            return table, None
        chunks = pq.read_table(self.root / str(split.chunks))
        of_shard = np.flatnonzero(index.numpy_of(chunks, "shard") == file)
        for name in chunked:  # chunk numbers of a part count from its shard
            at = table.column_names.index(f"{name}.chunk")
            own = index.column(index.numpy_of(table, f"{name}.chunk") - of_shard[0])
            table = table.set_column(at, f"{name}.chunk", own)
        return table, chunks.slice(of_shard[0], len(of_shard))

    def sums(self) -> dict[str, Any]:
        """The statistics that are there, as sums to add to."""
        return as_sums(self.manifest.statistics, sum(split.samples for split in self.manifest.splits.values()))

    @property
    def generation(self) -> int:
        """The number of the next index: 2 for the first one that is appended."""
        numbers = [re.search(r"\.(\d+)\.parquet$", split.index) for split in self.manifest.splits.values()]
        return 1 + max(int(found[1]) if found else 1 for found in numbers)

    def source_facts(self, facts: dict[str, Any], listing: Listing, n_new: int, new_nbytes: int) -> dict[str, Any]:
        """What the manifest says of the source, which may hold all items or the new ones only."""
        there = self.manifest.source
        if self.keys() <= set(listing.keys):
            return facts
        return {
            "items": int(there["items"]) + n_new,
            "bytes": int(there["bytes"]) + new_nbytes,
            "fingerprint": facts["fingerprint"],
        }


def merged_names(there: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Class names of both: those that are there keep their numbers."""
    known = Counter(there)
    return (*there, *(name for name in new if name not in known))


def interrupted(root: Path, manifest: Manifest) -> bool:
    """True where an --append to this dataset was begun and has not finished: files beside the shards may be its already."""
    try:
        plan = json.loads((root / WORK_FOLDER / "plan.json").read_text())
    except (OSError, ValueError):  # there is none, or none that could be gone on with
        return False
    return isinstance(plan, dict) and plan.get("append_to") == manifest.dataset_id
