"""Pass 2: every shard of the plan gets written, by whatever executor; then bad items and identical content are judged.

>>> bad_items((BadItem("a.jpg", "empty file"),), 3).exit_code
3
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from streamkit.convert.append import Before
from streamkit.convert.copies import known_copies
from streamkit.convert.duplicates import Duplicate, find_duplicates
from streamkit.convert.executor import N_ELSEWHERE, Progress, Result, run_here, run_in, run_in_pool
from streamkit.convert.journal import Journal, Part, items_digest
from streamkit.convert.moments import N_WHOLE
from streamkit.convert.options import Options
from streamkit.convert.plan import Plan, ShardPlan
from streamkit.convert.work import Job
from streamkit.errors import SourceError
from streamkit.schema import Schema
from streamkit.sources import BadItem, Listing, Source


@dataclass(frozen=True)
class Writing:
    """All shards of a plan: what they are made of, and where they are noted.

    `keep_going`: bad items are left out. `executor`: where jobs run, if not here and in worker processes of our own.
    """

    source: Source
    listing: Listing
    plan: Plan
    schema: Schema
    options: Options
    journal: Journal
    workers: int | None
    keep_going: bool
    executor: Executor | None = None
    before: Before | None = None

    def run(self, progress: Callable[[int], Progress] | None) -> tuple[dict[str, Part], list[Duplicate]]:
        """Write every shard that the journal does not have: the parts by file, and the copies there were.

        Raises:
            SourceError: after the last shard, if items are bad or copies not wanted; `.bad` lists them all.
        """
        parts = {shard.file: part for shard in self.plan.shards if (part := self._finished(shard)) is not None}
        tick = progress(len(self.listing)) if progress is not None else None
        if tick is not None:
            tick(sum(len(shard.rows) for shard in self.plan.shards if shard.file in parts))
        bad: list[BadItem] = [] if self.keep_going else list(self.listing.bad)
        todo = [shard for shard in self.plan.shards if shard.file not in parts]
        for result in self._results(map(self._job, todo), len(todo), tick):
            if isinstance(result, Part):
                parts[result.shard.file] = result
            else:
                bad += result
        if bad:
            raise bad_items(bad, self._n_items)
        copies = find_duplicates(self.plan, parts, self.journal) if self._compares else []
        if self.before is not None and self._compares:
            known = known_copies(self.before, self.plan, parts, self.journal)
            copies = sorted({copy.key: copy for copy in (*copies, *known)}.values())
        if copies and self.options.on_duplicate == "fail":
            raise bad_items([copy.as_bad() for copy in copies], self._n_items, "pass --on-duplicate drop")
        if copies and self.options.on_duplicate == "drop":
            parts |= self._without(copies)
        self._check_splits(parts)
        return parts, copies

    @property
    def _n_items(self) -> int:
        return len(self.listing) + len(self.listing.bad)

    @property
    def _compares(self) -> bool:
        splits = {*self.plan.splits, *(self.before.manifest.splits if self.before is not None else ())}
        return len(splits) > 1 or self.options.on_duplicate != "keep"

    def _finished(self, shard: ShardPlan) -> Part | None:
        part = self.journal.finished(shard.file)
        if (
            part is None
            or part.items != self._items(shard, self._keys(shard))
            or part.dropped
            or (part.bad and not self.keep_going)
        ):
            return None
        return part

    def _job(self, shard: ShardPlan) -> Job:
        keys = self._keys(shard)
        return Job(
            source=self.source,
            keys=keys,
            columns={name: values[shard.rows] for name, values in self.listing.columns.items()},
            arrays={name: values.take(shard.rows) for name, values in self.listing.arrays.items()},
            schema=self.schema,
            options=self.options,
            out=self.journal.out,
            file=shard.file,
            keep_going=self.keep_going,
            items=self._items(shard, keys),
            compare=self._compares,
            n_whole=-(-N_WHOLE // len(self.plan.shards)),
        )

    def _keys(self, shard: ShardPlan) -> list[str]:
        return [self.listing.keys[i] for i in shard.rows.tolist()]

    def _items(self, shard: ShardPlan, keys: Sequence[str]) -> str:
        listing = self.listing
        beside: dict[str, Any] = {name: values[shard.rows] for name, values in listing.columns.items()}
        beside |= {name: values.take(shard.rows) for name, values in listing.arrays.items()}
        return items_digest(keys, listing.sizes[shard.rows], beside, self.schema)

    def _results(self, jobs: Iterator[Job], n: int, tick: Progress | None) -> Iterator[Result]:
        if self.executor is not None:
            return run_in(self.executor, jobs, self.workers or N_ELSEWHERE, tick)
        n_workers = min(self.workers or len(os.sched_getaffinity(0)), n)
        return run_here(jobs, tick) if n_workers <= 1 else run_in_pool(jobs, n_workers, tick)

    def _without(self, copies: Iterable[Duplicate]) -> Mapping[str, Part]:
        """Write the shards that hold copies again, without them."""
        leave: dict[str, dict[str, str]] = {}
        for copy in copies:
            leave.setdefault(copy.file, {})[copy.key] = copy.as_bad().reason
        todo = [shard for shard in self.plan.shards if shard.file in leave]
        jobs = (replace(self._job(shard), keep_going=True, leave=leave[shard.file]) for shard in todo)
        return {part.shard.file: part for part in self._results(jobs, len(todo), None) if isinstance(part, Part)}

    def _check_splits(self, parts: Mapping[str, Part]) -> None:
        there = self.before.manifest.splits if self.before is not None else {}
        for name in self.plan.splits:
            if name not in there and not any(
                parts[shard.file].shard.samples for shard in self.plan.shards if shard.split == name
            ):
                raise SourceError(f"no item of split {name!r} could be converted", hint="See why with --on-bad fail.")


def bad_items(
    bad: Sequence[BadItem], n_items: int, otherwise: str = "pass --on-bad skip or quarantine", there: bool = False
) -> SourceError:
    """The error that ends a conversion under --on-bad fail, or an adoption; `.bad` lists every item.

    Args:
        bad: the items.
        n_items: items of the source.
        otherwise: what can be done without mending them.
        there: the dataset lies there without them.
    """
    bad = sorted(bad)
    first = "; ".join(f"{b.key}: {b.reason}" for b in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    hint = f"Nothing was published. Mend or remove them and run it again, or {otherwise}."
    if there:
        hint = f"The dataset is there without them. Mend them and pass --overwrite, or {otherwise}."
    error = SourceError(f"{len(bad)} of {n_items} items cannot be converted ({first}{more})", hint=hint)
    error.bad = tuple((b.key, b.reason) for b in bad)
    return error
