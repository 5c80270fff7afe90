"""The closing table of `streamkit index`, and the same as JSON.

>>> shape_text([None, 3]), shape_text([])
('?x3', 'scalar')
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamkit.manifest import Manifest
from streamkit.reports.text import human, table


def as_json(out: str, root: str, manifest: Manifest) -> dict[str, Any]:
    """Facts of an adopted dataset, JSON-able."""
    splits = {
        name: {"samples": s.samples, "files": len(s.shards), "bytes": s.nbytes} for name, s in manifest.splits.items()
    }
    return {
        "out": out,
        "root": root,
        "dataset_id": manifest.dataset_id,
        "format": manifest.format,
        "samples": sum(s["samples"] for s in splits.values()),
        "bytes": sum(s["bytes"] for s in splits.values()),
        "classes": len(manifest.class_names),
        "splits": splits,
        "fields": manifest.schema.to_json(),
    }


def as_text(facts: dict[str, Any], seconds: float) -> str:
    """The closing table; `facts` as `as_json` gives them."""
    loose = facts["format"] == "folder"
    splits = [("split", "samples", "size") if loose else ("split", "samples", "files", "size")]
    for name, s in facts["splits"].items():
        files = () if loose else (str(s["files"]),)
        splits.append((name, str(s["samples"]), *files, human(s["bytes"])))
    fields = [("field", "kind", "dtype", "shape", "encoding")]
    for name, f in facts["fields"].items():
        fields.append((name, f["kind"], f["dtype"], shape_text(f["shape"]), f.get("encoding", "-")))
    classes = f", {facts['classes']} classes" if facts["classes"] else ""
    tail = f"{facts['samples']} samples{classes}: {human(facts['bytes'])} left where they are, in {seconds:.1f} s"
    head = f"{facts['out']} is ready; its files lie in {facts['root']}."
    return "\n\n".join([head, table(splits), table(fields), tail])


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape as people read it."""
    return "x".join("?" if d is None else str(d) for d in shape) or "scalar"
