"""The closing table of a conversion, and the same as JSON.

>>> as_text.__name__
'as_text'
"""

from __future__ import annotations

from typing import Any

from streamkit.convert import Report
from streamkit.reports.text import human, schema_table, table


def as_json(report: Report) -> dict[str, Any]:
    """Facts of a conversion, JSON-able."""
    splits: dict[str, dict[str, Any]] = {}
    for name in report.plan.splits:
        shards = [shard for shard in report.plan.shards if shard.split == name]
        splits[name] = {"samples": sum(len(s.rows) for s in shards), "shards": len(shards)}
        if report.manifest is not None:
            split = report.manifest.splits[name]
            splits[name] = {"samples": split.samples, "shards": len(split.shards), "bytes": split.nbytes}
    schema = report.schema if report.manifest is None else report.manifest.schema
    return {
        "out": report.out,
        "dataset_id": None if report.manifest is None else report.manifest.dataset_id,
        "already_done": report.already_done,
        "dry_run": report.manifest is None,
        "items": report.n_items,
        "source_bytes": report.source_nbytes,
        "samples": sum(s["samples"] for s in splits.values()),
        "classes": len(schema.label.class_names or ()) if schema.label else 0,
        "bytes": sum(s.get("bytes", 0) for s in splits.values()),
        "splits": splits,
        "fields": schema.to_json(),
        "skipped": [{"key": b.key, "reason": b.reason} for b in report.skipped],
        "leaks": [
            {"key": d.key, "split": d.split, "first": d.first, "first_split": d.first_split} for d in report.leaks
        ],
        "seconds": round(report.seconds, 3),
    }


def as_text(report: Report) -> str:
    """The closing table."""
    facts = as_json(report)
    if report.already_done:
        head = f"{report.out} is finished and unchanged: nothing to do."
    elif report.manifest is None:
        head = f"Dry run: nothing was written to {report.out}."
    else:
        head = f"{report.out} is ready."
    splits = [("split", "samples", "shards", "size")]
    for name, s in facts["splits"].items():
        splits.append((name, str(s["samples"]), str(s["shards"]), human(s["bytes"]) if "bytes" in s else "-"))
    size_out = f" -> {human(facts['bytes'])}" if report.manifest is not None else ""
    classes = f", {facts['classes']} classes" if facts["classes"] else ""
    skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
    tail = (
        f"{facts['samples']} samples{classes}{skipped}: {human(facts['source_bytes'])}{size_out} "
        f"in {report.seconds:.1f} s"
    )
    if report.leaks:
        tail += f"\n{len(report.leaks)} samples have the content of one in another split (see --on-duplicate)"
    return "\n\n".join([head, table(splits), schema_table(facts["fields"]), tail])
