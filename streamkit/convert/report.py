"""What a conversion tells when it is through, also where there was nothing to write.

>>> Report.__dataclass_fields__["already_done"].default
False
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamkit.convert.append import Before
from streamkit.convert.compression import Choice
from streamkit.convert.duplicates import Duplicate
from streamkit.convert.journal import Journal
from streamkit.convert.plan import Plan
from streamkit.convert.planning import Survey
from streamkit.manifest import WORK_FOLDER, Manifest
from streamkit.schema import Schema
from streamkit.sources import BadItem


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        out: the dataset's folder.
        schema: its fields (of a dry run, as planned).
        plan: splits and shards.
        manifest: None for a dry run.
        n_items: items found in the source.
        source_nbytes: their size [B].
        skipped: items left out, with reasons.
        leaks: samples of the same content in two splits.
        notices: what was left in the source, and other remarks.
        seconds: wall time [s].
        already_done: the dataset was there, finished and unchanged.
        compression: what --compression came to, and why; None where nothing was planned.
        n_added: samples that --append added.
    """

    out: str
    schema: Schema
    plan: Plan
    manifest: Manifest | None
    n_items: int
    source_nbytes: int
    skipped: tuple[BadItem, ...]
    notices: tuple[str, ...]
    seconds: float
    leaks: tuple[Duplicate, ...] = ()
    already_done: bool = False
    compression: Choice | None = None
    n_added: int = 0


def unchanged(survey: Survey, manifest: Manifest, left_out: Sequence[BadItem], notices: tuple[str, ...]) -> Report:
    """The report of a dataset that is there, finished, and made of the same but for items that were left out."""
    plan = Before(survey.final, manifest).plan(Plan((), ()))
    notices = (*survey.items.listing.notices, *notices)
    about = (str(survey.final), manifest.schema, plan, manifest, survey.n_items, survey.source_nbytes)
    return Report(*about, tuple(left_out), notices, 0.0, already_done=True)


def nothing_new(before: Before, n_items: int, notices: tuple[str, ...]) -> Report:
    """The report of an append that finds nothing to add; what a killed one left goes."""
    manifest = before.manifest
    if (before.root / WORK_FOLDER).exists():
        with Journal(before.root, {}, anew=True) as journal:
            journal.remove_strays({s.file for split in manifest.splits.values() for s in split.shards})
            journal.remove()
    plan = before.plan(Plan((), ()))
    return Report(str(before.root), manifest.schema, plan, manifest, n_items, 0, (), notices, 0.0, already_done=True)
