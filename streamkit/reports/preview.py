"""A page that shows a dataset: pictures and plots of a fair sample, classes, sizes, and what was skipped.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
>>> found = preview(out, n_samples=20)
>>> found["samples"], len(found["items"]), found["items"][0]["views"][0]["kind"]
(1840, 20, 'image')
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from streamkit.convert import skipped
from streamkit.errors import UsageError
from streamkit.manifest import Manifest
from streamkit.remote.address import local_only
from streamkit.reports import sampling, views
from streamkit.reports.info import info
from streamkit.reports.page import page_file, write_page
from streamkit.reports.samples import read
from streamkit.schema import Schema

N_SAMPLES = 300
_N_POINTS = 1500
_MAX_SKIPPED = 500
_MAX_CLASSES = 1000
_SIDES = ("xmin", "ymin", "xmax", "ymax")
Progress = Callable[[int], Callable[[int], None]]


def write_preview(
    path: str | os.PathLike[str],
    html: str | os.PathLike[str],
    n_samples: int = N_SAMPLES,
    progress: Progress | None = None,
    root: str | os.PathLike[str] | None = None,
) -> None:
    """Write the page of a dataset to `html`; arguments and errors as `preview`.

    Raises:
        ResourceError: `html` is no file or cannot be written, which is found before a sample is read.
    """
    page_file(html)  # reading the samples may take minutes
    data = preview(path, n_samples, progress, root)
    write_page(html, f"{data['name']}: {data['samples']:,} samples", data, ["charts.js", "preview.js"])


def preview(
    path: str | os.PathLike[str],
    n_samples: int = N_SAMPLES,
    progress: Progress | None = None,
    root: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """What the page shows, JSON-able.

    Args:
        path: the dataset's folder.
        n_samples: samples to show, drawn with equal chance from all splits together where there are more.
        progress: called with a number of samples; what it returns is called with 1 for each one done.
        root: of adopted files: the folder they lie in, where it is not the one recorded.

    Raises:
        UsageError: no such dataset.
        DamagedError: unfinished, altered, or a drawn sample is damaged.
    """
    if n_samples < 1:
        raise UsageError(f"{n_samples} samples are to be shown, expected 1 or more")
    folder = local_only(path, "preview")
    facts = info(path)
    manifest = Manifest.load(path)
    drawn = _drawn(manifest, n_samples)
    tick = progress(sum(map(len, drawn.values()))) if progress is not None else None
    light = _Light()
    items = []
    for split, rows in drawn.items():
        for sample in read(path, split, rows, root) if len(rows) else ():
            items.append({"split": split} | _item(manifest.schema, sample, light))
            if tick is not None:
                tick(1)
    return {
        "name": folder.resolve().name,
        "format": manifest.format,
        "samples": facts["samples"],
        "bytes": facts["bytes"],
        "dataset_id": manifest.dataset_id,
        "splits": facts["splits"],
        "fields": {n: {k: v for k, v in f.items() if k != "class_names"} for n, f in facts["fields"].items()},
        **_classes(manifest, facts["classes"]),
        "items": items,
        "sizes": _sizes(folder, manifest),
        "light": light.facts(),
        "columns": _columns(folder, manifest),
        "skipped": {"count": manifest.skipped, "items": _skipped(folder, manifest.skipped)},
    }


def _drawn(manifest: Manifest, n_samples: int) -> dict[str, Any]:
    """Rows of each split, drawn from all splits together."""
    counts = [split.samples for split in manifest.splits.values()]
    starts = np.cumsum([0, *counts])
    rows = sampling.fair_rows(int(starts[-1]), n_samples)
    cut = np.split(rows, np.searchsorted(rows, starts[1:-1]))
    return {name: part - start for name, part, start in zip(manifest.splits, cut, starts, strict=False)}


def _classes(manifest: Manifest, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The classes, of very many those with most samples: a page of all would never be drawn."""
    names = manifest.class_names or sorted({name for c in counts.values() for name in c}, key=lambda n: (len(n), n))
    totals = [sum(c.get(name, 0) for c in counts.values()) for name in names]
    largest = sorted(sorted(range(len(names)), key=lambda i: -totals[i])[:_MAX_CLASSES])
    shown = [{"name": names[i], "count": totals[i]} for i in largest]
    n_left = sum(totals) - sum(totals[i] for i in largest)
    return {"classes": shown, "more_classes": {"count": len(names) - len(shown), "samples": n_left}}


class _Light:
    """Brightness of the drawn pictures, and mean and standard deviation of their channels over all pixels."""

    def __init__(self) -> None:
        self.brightness: list[float] = []
        self.n, self.total, self.squares = 0, np.zeros(3), np.zeros(3)

    def add(self, pixels: Any) -> None:
        flat = pixels.reshape(-1, pixels.shape[2]).astype(np.float32)
        mean = flat.mean(axis=0, dtype=np.float64)
        self.brightness.append(float(mean @ [0.299, 0.587, 0.114]))  # luma. Source: ITU-R BT.601
        self.n += len(flat)
        self.total += flat.sum(axis=0, dtype=np.float64)
        self.squares += np.square(flat).sum(axis=0, dtype=np.float64)

    def facts(self) -> dict[str, Any] | None:
        if not self.brightness:
            return None
        mean = self.total / self.n
        std = np.sqrt(np.maximum(0, self.squares / self.n - mean**2))
        bins = np.histogram(self.brightness, views.N_BINS, (0, 256))[0]
        return {"bins": bins.tolist(), "mean": np.round(mean, 2).tolist(), "std": np.round(std, 2).tolist()}


def _item(schema: Schema, sample: dict[str, Any], light: _Light) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    boxes = _box_prefixes(schema)
    size: tuple[int, int] | None = None
    for field in sorted(schema, key=lambda f: ("image", "mask").index(f.kind) if f.is_image else 2):
        value = sample[field.name]
        if field.kind == "image":
            light.add(value)
            size = size or value.shape[:2]
            shown.append({"field": field.name} | views.picture(value))
        elif field.kind == "mask":
            shown.append({"field": field.name} | views.mask(value))
        elif field.kind != "label" and field.name.rpartition("/")[0] not in (boxes if size else ()):
            shown.append(views.view(field.name, value))
    for prefix in boxes if size else ():
        corners = np.stack([np.asarray(sample[f"{prefix}/{side}"], np.float64) for side in _SIDES], axis=-1)
        at = views.relative_boxes(corners, size[1], size[0]) if size else []
        shown.append({"field": prefix, "kind": "boxes", "boxes": at, "names": _box_names(schema, sample, prefix)})
    label = schema.label
    value = None if label is None else int(sample[label.name])
    return {"key": str(sample["key"]), "label": _label(schema, value), "views": shown}


def _label(schema: Schema, value: int | None) -> str | None:
    if value is None or schema.label is None:
        return None
    return schema.label.class_names[value] if schema.label.class_names is not None else str(value)


def _box_prefixes(schema: Schema) -> list[str]:
    """Prefixes such as "objects" of which there are xmin, ymin, xmax and ymax."""
    prefixes = {f.name.rpartition("/")[0] for f in schema} - {""}
    return sorted(p for p in prefixes if all(f"{p}/{side}" in schema for side in _SIDES))


def _box_names(schema: Schema, sample: dict[str, Any], prefix: str) -> list[str]:
    """What each box shows, where the dataset says so."""
    for part in ("class", "label"):
        name = f"{prefix}/{part}"
        if name in schema:
            names = schema[name].class_names
            return [names[int(v)] if names is not None else str(v) for v in np.asarray(sample[name]).reshape(-1)]
    return []


def _sizes(root: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Widths and heights of a fair part of the images, for a scatter plot."""
    if not any(f.is_image for f in manifest.schema):
        return None
    parts = [sampling.columns(root, s, ["width", "height"]) for s in manifest.splits.values() if s.samples]
    pairs = [np.stack([p["width"], p["height"]], axis=1) for p in parts if len(p) == 2]
    if not pairs:
        return None
    together = np.concatenate(pairs)
    points, counts = np.unique(
        together[sampling.fair_rows(len(together), _N_POINTS)].astype(np.int64), axis=0, return_counts=True
    )
    return {"points": np.column_stack([points, counts]).tolist()}


def _columns(root: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """A histogram of each number column."""
    out = []
    for field in manifest.schema.columns:
        if field.kind != "number":
            continue
        parts = [sampling.columns(root, s, [field.name]) for s in manifest.splits.values() if s.samples]
        values = np.concatenate([p[field.name] for p in parts]).astype(np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            out.append({"name": field.name} | views.histogram(finite))
    return out


def _skipped(root: Path, count: int) -> list[dict[str, str]]:
    """The first of the items that were left out."""
    return [{"key": item.key, "reason": item.reason} for item in skipped.read(root, _MAX_SKIPPED)] if count else []
