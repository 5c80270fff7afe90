"""What a dataset is, as facts and as a table: from the manifest and a bounded part of the index, so at once at any size.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/series", out, format="hdf5", workers=1)
>>> found = info(out)
>>> found["samples"], found["classes"]["val"]["sine"], found["decoded_bytes"]
(225, 15, 115200)
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamkit.errors import one_line
from streamkit.manifest import Manifest
from streamkit.remote.address import Address, place
from streamkit.reports import sampling
from streamkit.reports.text import bar, human, schema_table, table
from streamkit.schema import Field
from streamkit.splits import Split

_MAX_CLASSES = 30  # shown; the JSON has all
_SIDES = ("width", "height")


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Facts of a dataset, JSON-able. No payload is read, and of the index at most `sampling.MAX_ROWS` rows a split.

    Args:
        path: the dataset's folder, or its address on a server.

    Returns:
        out, dataset_id, format, samples, bytes, source_bytes, decoded_bytes (None where only decoding tells), ratio
        (decoded / stored), skipped, splits, fields, classes (split -> class -> count), image_size, columns (number
        columns: smallest and largest value), options and statistics as the manifest holds them.

    Raises:
        UsageError: no such dataset.
        DamagedError: unfinished, altered, or its index cannot be read.
    """
    manifest = Manifest.load(path)
    root = place(path)
    nbytes = sum(s.nbytes for s in manifest.splits.values())
    decoded = _decoded_nbytes(root, manifest)
    numbers = [f.name for f in manifest.schema.columns if f.kind == "number"]
    found = [sampling.ranges(root, split, numbers) for split in manifest.splits.values() if split.samples]
    return {
        "out": os.fspath(root),
        "dataset_id": manifest.dataset_id,
        "format": manifest.format,
        "streamkit_version": manifest.streamkit_version,
        "samples": sum(s.samples for s in manifest.splits.values()),
        "bytes": nbytes,
        "source_bytes": manifest.source.get("bytes"),
        "decoded_bytes": decoded,
        "ratio": round(decoded / nbytes, 3) if decoded and nbytes else None,
        "skipped": manifest.skipped,
        "splits": {
            s.name: {"samples": s.samples, "shards": len(s.shards), "bytes": s.nbytes} for s in manifest.splits.values()
        },
        "fields": manifest.schema.to_json(),
        "classes": manifest.statistics.get("class_counts", {}),
        "image_size": _image_size(root, manifest),
        "columns": {
            name: {"min": min(r[name][0] for r in found), "max": max(r[name][1] for r in found)}
            for name in numbers
            if found and all(name in r for r in found)
        },
        "options": dict(manifest.options),
        "statistics": dict(manifest.statistics),
    }


def _image_size(root: Path | Address, manifest: Manifest) -> dict[str, Any] | None:
    """Width and height [pixel]: smallest and largest exact, the median of the rows that were looked at."""
    if not any(f.is_image for f in manifest.schema):
        return None
    parts = [(s, sampling.columns(root, s, _SIDES)) for s in manifest.splits.values() if s.samples]
    if not parts or not all(side in columns for _, columns in parts for side in _SIDES):
        return None
    exact = [sampling.ranges(root, split, _SIDES) for split, _ in parts]
    out: dict[str, Any] = {"rows_looked_at": sum(len(columns["width"]) for _, columns in parts)}
    for side in _SIDES:
        values = np.concatenate([columns[side] for _, columns in parts])
        bounds = [found.get(side, (int(values.min()), int(values.max()))) for found in exact]
        out[side] = {
            "min": int(min(low for low, _ in bounds)),
            "median": int(np.partition(values, (len(values) - 1) // 2)[(len(values) - 1) // 2]),
            "max": int(max(high for _, high in bounds)),
        }
    return out


def _decoded_nbytes(root: Path | Address, manifest: Manifest) -> int | None:
    """Bytes of all payloads as arrays; None where a field's size is known to its samples only."""
    total = 0
    n_samples = sum(s.samples for s in manifest.splits.values())
    for field in manifest.schema.payloads:
        if field.fixed and field.dtype != "string":
            total += field.sample_nbytes * n_samples
        elif field.kind == "image" and "pixels" in manifest.statistics.get("image", {}):
            total += round(manifest.statistics["image"]["pixels"] * _mean_channels(root, manifest, field))
        elif field.encoding == "raw":
            total += round(sum(s.samples * _mean(root, s, f"{field.name}.length") for s in manifest.splits.values()))
        else:
            return None
    return total


def _mean(root: Path | Address, split: Split, name: str) -> float:
    values = sampling.columns(root, split, [name]).get(name, np.zeros(0))
    return float(values.mean()) if len(values) else 0.0


def _mean_channels(root: Path | Address, manifest: Manifest, field: Field) -> float:
    if field.shape[2] is not None:
        return field.shape[2]
    parts = [(s.samples, sampling.columns(root, s, ["channels"])) for s in manifest.splits.values() if s.samples]
    known = [(n, float(c["channels"].mean())) for n, c in parts if "channels" in c]
    return sum(n * mean for n, mean in known) / sum(n for n, _ in known) if known else 3.0


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts as tables."""
    n_classes = len({name for counts in facts["classes"].values() for name in counts})
    head = f"{facts['out']}: {facts['format']}, {facts['samples']:,} samples"
    head += f", {n_classes:,} classes, {human(facts['bytes'])}" if n_classes else f", {human(facts['bytes'])}"
    splits = [("split", "samples", "shards", "size")]
    for name, s in facts["splits"].items():
        splits.append((one_line(name), str(s["samples"]), str(s["shards"]), human(s["bytes"])))
    parts = [one_line(head), table(splits), schema_table(facts["fields"])]
    if n_classes:
        parts.append(_class_table(facts["classes"]))
    return "\n\n".join([*parts, "\n".join(_remarks(facts))])


def _class_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    names = list(dict.fromkeys(name for of_split in counts.values() for name in of_split))
    totals = {name: sum(c.get(name, 0) for c in counts.values()) for name in names}
    largest, n = max(totals.values(), default=0), sum(totals.values())
    rows = [("class", *map(one_line, counts), "share", "")]
    for name in names[:_MAX_CLASSES]:
        of_splits = (str(c.get(name, 0)) for c in counts.values())
        share = f"{100 * totals[name] / max(1, n):.1f} %"
        rows.append((one_line(name), *of_splits, share, bar(totals[name], largest)))
    text = table(rows)
    if len(names) > _MAX_CLASSES:
        sizes = sorted(totals.values())
        text += f"\nand {len(names) - _MAX_CLASSES:,} more; samples a class: {sizes[0]} to {sizes[-1]}"
        text += f" (median {statistics.median_low(sizes)})"
    return text


def _remarks(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    size = facts["image_size"]
    if size is not None:
        spans = [f"{side} {s['min']} to {s['max']} (median {s['median']})" for side in _SIDES if (s := size[side])]
        part = size["rows_looked_at"] < facts["samples"]
        note = f"; medians of {size['rows_looked_at']:,} rows" if part else ""
        lines.append(f"image size: {', '.join(spans)}{note}")
    image = facts["statistics"].get("image", {})
    for name, note in (("mean", ""), ("std", f" (of {image.get('std_of')} images)")):
        if name in image:
            lines.append(f"channel {name}: {', '.join(f'{value:.1f}' for value in image[name])}{note}")
    for name, counted in facts["statistics"].get("arrays", {}).items():
        counts = counted["not_finite"]
        lines.append(f"{one_line(name)}: {counts['nan']} values are NaN, {counts['inf']} infinite")
    for name, column in facts["columns"].items():
        lines.append(f"{one_line(name)}: {column['min']} to {column['max']}")
    source = "" if facts["source_bytes"] is None else f"source {human(facts['source_bytes'])} -> "
    decoded = "" if facts["ratio"] is None else f", {human(facts['decoded_bytes'])} decoded ({facts['ratio']:.2f}x)"
    lines.append(f"bytes: {source}stored {human(facts['bytes'])}{decoded}")
    if facts["skipped"]:
        lines.append(f"skipped: {facts['skipped']} items; skipped.jsonl names them with their reasons")
    return lines
