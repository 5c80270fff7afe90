"""The closing table of a conversion, and the same as JSON.

>>> as_text.__name__
'as_text'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamkit.convert import Report, skipped
from streamkit.convert.compression import READ_SPEED, Choice
from streamkit.convert.duplicates import Duplicate
from streamkit.reports.text import human, schema_table, table
from streamkit.sources.cuts import whole_of

_SHOWN = 20


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
        "compression": None if report.compression is None else _compression(report.compression),
        "splits": splits,
        "fields": schema.to_json(),
        "skipped": [{"key": b.key, "reason": b.reason} for b in report.skipped],
        "leaks": [
            {"key": d.key, "split": d.split, "first": d.first, "first_split": d.first_split} for d in report.leaks
        ],
        "seconds": round(report.seconds, 3),
    }


def _compression(choice: Choice) -> dict[str, Any]:
    """The codec, and of each that was tried the part of the sample's bytes that it left."""
    return {"codec": choice.codec, "tried": {trial.codec: round(trial.ratio, 4) for trial in choice.trials}}


def compression_table(choice: Choice | None) -> list[str]:
    """Lines that say what --compression auto chose and why; none where nothing was tried.

    >>> from streamkit.convert.compression import Trial
    >>> trials = (Trial("none", 1.0, 65536), Trial("gzip", 0.5, 65536, 4e8))
    >>> print(*compression_table(Choice("gzip", trials, 16, 1 << 20)), sep="\\n")
    compression gzip, by 16 samples (1.0 MB), reading at 100 MB/s:
    codec  size   read and decode  decoded here and now
    none   100 %  10.0 ns/byte     -
    gzip   50 %   7.5 ns/byte      400 MB/s
    """
    if choice is None or not choice.trials:
        return []
    rows = [("codec", "size", "read and decode", "decoded here and now")]
    for trial in choice.trials:
        speed = "-" if trial.decode_speed is None else f"{trial.decode_speed / 1e6:.0f} MB/s"
        rows.append((trial.codec, f"{trial.ratio * 100:.0f} %", f"{trial.cost * 1e9:.1f} ns/byte", speed))
    sample = f"{choice.n_samples} samples ({human(choice.nbytes)})"
    head = f"compression {choice.codec}, by {sample}, reading at {READ_SPEED / 1e6:.0f} MB/s:"
    return [head, *table(rows).splitlines()]


def leak_lines(leaks: Sequence[Duplicate], cut: bool) -> list[str]:
    """Lines that name samples of the same content in two splits, the first of them.

    Args:
        leaks: the samples.
        cut: they are tiles or windows: what they were cut from is named, once.

    >>> twins = [Duplicate(f"b.png#0,{x}", "val", f"a.png#0,{x}", "train", "val-00000.tfrecord") for x in (0, 16)]
    >>> leak_lines(twins, cut=True)
    ['same content in two splits: a.png (train) and b.png (val)']
    """
    if cut:
        leaks = [leak._replace(key=whole_of(leak.key), first=whole_of(leak.first)) for leak in leaks]
    lines = list(dict.fromkeys(f"same content in two splits: {leak}" for leak in leaks))
    more = [f"... and {len(lines) - _SHOWN} more; --json lists all"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + more


def as_text(report: Report) -> str:
    """The closing table."""
    facts = as_json(report)
    if report.already_done:
        head = f"{report.out} is finished and unchanged: nothing to do."
        if n_dropped := sum(map(skipped.is_dropped, report.skipped)):
            lacks = f"the {n_dropped} record{'s' * (n_dropped != 1)} that repair dropped"
            head = f"{report.out} is finished, without {lacks}; --append converts them again."
    elif report.manifest is None:
        head = f"Dry run: nothing was written to {report.out}."
    else:
        head = f"{report.out} is ready."
    splits = [("split", "samples", "shards", "size")]
    for name, s in facts["splits"].items():
        splits.append((name, str(s["samples"]), str(s["shards"]), human(s["bytes"]) if "bytes" in s else "-"))
    size_out = f" -> {human(facts['bytes'])}" if report.manifest is not None else ""
    classes = f", {facts['classes']} classes" if facts["classes"] else ""
    left_out = f", {len(report.skipped)} skipped" if report.skipped else ""
    tail = (
        f"{facts['samples']} samples{classes}{left_out}: {human(facts['source_bytes'])}{size_out} "
        f"in {report.seconds:.1f} s"
    )
    if report.leaks:
        tail += f"\n{len(report.leaks)} samples have the content of one in another split (see --on-duplicate)"
    return "\n\n".join([head, table(splits), schema_table(facts["fields"]), tail])
