"""Pass 1: what there is and what shall be written, known before anything is. `look` finds it, `Survey.planned` plans it.

>>> survey = look(Path("sample_data/images"), Path("/no/such/out"), Options("tfrecord"), (None, None), append=False)
>>> survey.n_items, len(survey.planned().plan.shards)
(1840, 2)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamkit.convert.append import Before
from streamkit.convert.assign import NOTHING
from streamkit.convert.compression import Choice
from streamkit.convert.items import Items, find_items
from streamkit.convert.measure import measure
from streamkit.convert.options import Options
from streamkit.convert.plan import Plan, make_plan
from streamkit.convert.publish import source_facts
from streamkit.errors import did_you_mean
from streamkit.schema import Schema
from streamkit.shards import shard_format
from streamkit.sources import Listing


@dataclass(frozen=True)
class Survey:
    """What there is to convert.

    Attributes:
        src: the source.
        final: where the dataset shall lie.
        options: the user's.
        items: what is converted; with `before`, the new items only.
        facts: what the manifest will say of the source.
        n_items: items found.
        source_nbytes: their size [B].
        before: the dataset that is appended to.
    """

    src: Path
    final: Path
    options: Options
    items: Items
    facts: Mapping[str, Any]
    n_items: int
    source_nbytes: int
    before: Before | None = None

    def planned(self) -> Planned:
        """What shall be written. Raises UsageError: a split that would be empty."""
        before, options, listing = self.before, self.options, self.items.listing
        schema, compression, sizes = measure(self.items, options)
        if before is not None:
            schema, compression = before.storage(schema), Choice(options.compression)
        there = NOTHING if before is None else before.there(options)
        plan = make_plan(listing, options, shard_format(options.format).extension, sizes, there)
        notices = (*listing.notices, *_remarks(schema, options, listing))
        whole = plan if before is None else before.plan(plan)
        return Planned(schema, plan, whole, compression, notices, self._least_nbytes(schema))

    def _least_nbytes(self, schema: Schema) -> int | None:
        """What is stored as it is takes at least as much room as in the source; of anything else who knows."""
        as_is = all(field.encoding in ("raw", "mixed") for field in schema.payloads) and not self.options.reencodes
        return int(self.items.listing.sizes.sum()) if as_is and self.items.sizes is None else None


@dataclass(frozen=True)
class Planned:
    """What shall be written.

    Attributes:
        schema: how fields are stored.
        plan: the shards to write.
        whole: these and the shards that are there already.
        compression: what --compression came to, and why.
        notices: what the user should know of it.
        nbytes: room that the new shards take at least [B], where it is known.
    """

    schema: Schema
    plan: Plan
    whole: Plan
    compression: Choice
    notices: tuple[str, ...]
    nbytes: int | None = None


def look(src: Path, final: Path, options: Options, beside: tuple[Path | None, Path | None], append: bool) -> Survey:
    """Find the items. `beside`: labels and masks.

    Raises:
        UsageError: nothing there to append to, or one of the reasons of `find_items`.
        SourceError: see `find_items`.
    """
    before = Before.load(final, options) if append else None
    items = find_items(src, *beside, options)
    facts = source_facts(items.listing)
    if before is None:
        return Survey(src, final, options, items, facts, facts["items"], facts["bytes"])
    new = before.new_items(items)
    n_items = len(new.listing) + len(items.listing.bad)
    nbytes = int(new.listing.sizes.sum())
    facts = before.source_facts(facts, items.listing, n_items, nbytes)
    return Survey(src, final, options, new, facts, n_items, nbytes, before)


_SPLITS = ("train", "val", "test")  # what splits are called as a rule


def _remarks(schema: Schema, options: Options, listing: Listing) -> Iterator[str]:
    """What the user asked for and does not get, or may not have meant."""
    if options.shard_nbytes < 100_000:
        yield f"a shard size of {options.shard_nbytes} bytes makes many small files; write 128MB for megabytes"
    for name in options.split or {}:
        if name not in _SPLITS and not name.startswith(_SPLITS) and (meant := did_you_mean(name, _SPLITS)):
            yield f"a split is called {name!r}. {meant.strip()}"
    if options.compression not in ("auto", "none"):
        for field in schema.payloads:
            if field.kind == "array" and field.encoding == "raw" and field.name not in listing.arrays:
                yield f"{field.name} is not compressed: arrays of many shapes lie flat in HDF5; TFRecord compresses them"
    if options.reencodes and not any(field.is_image for field in schema):
        yield "--encode and --resize act on pictures, and there are none"
