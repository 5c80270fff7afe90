"""Real values of a few samples, as facts and as lines.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> _ = streamkit.convert("sample_data/series", out, format="hdf5", workers=1)
>>> first = samples(out, 2)["train"][0]
>>> first["label"]["class"], first["array"]["shape"]
('sine', [64, 2])
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamkit.errors import one_line
from streamkit.loader import Loader
from streamkit.manifest import Manifest
from streamkit.reports.sampling import spread
from streamkit.schema import Field

_N_VALUES = 5
_N_CHARS = 60


def read(
    path: str | os.PathLike[str],
    split: str,
    rows: Sequence[int] | npt.NDArray[Any],
    root: str | os.PathLike[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Whole samples, decoded: field -> value, and "key". Pictures are uint8 (height, width, 3), labels whole numbers.

    Args:
        path: the dataset's folder, or its address.
        split: name of the split.
        rows: of it.
        root: of adopted files: the folder they lie in, where it is not the one recorded.

    Raises:
        DamagedError: a sample's bytes are not what the index says.
    """
    names = (*(f.name for f in Manifest.load(path).schema), "key")
    loader = Loader(
        path, split=split, batch_size=None, shuffle=False, dtype="uint8", rows=rows, fields=names, root=root
    )
    for values in loader:
        yield dict(zip(names, values, strict=True))


def samples(
    path: str | os.PathLike[str], n: int, root: str | os.PathLike[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """`n` samples of each split, evenly spread over its rows: split -> [{"key", field: facts}], JSON-able.

    `root` and errors as `read`.
    """
    manifest = Manifest.load(path)
    out: dict[str, list[dict[str, Any]]] = {}
    for split in manifest.splits.values():
        rows = spread(split.samples, n)
        found = read(path, split.name, rows, root) if rows else ()
        out[split.name] = [
            {"key": str(s["key"])} | {f.name: _facts(f, s[f.name]) for f in manifest.schema} for s in found
        ]
    return out


def _facts(field: Field, value: Any) -> dict[str, Any]:
    if field.kind == "label":
        names = field.class_names
        return {"value": int(value), "class": names[int(value)] if names is not None else None}
    if isinstance(value, (str, bytes)):
        return {"value": value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")}
    array = np.asarray(value)
    if array.ndim == 0:
        return {"value": array.item()}
    out: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.size and array.dtype.kind in "iufb":
        finite = array[np.isfinite(array)]
        if finite.size:
            out |= {
                "min": finite.min().item(),
                "mean": float(finite.mean(dtype=np.float64)),
                "max": finite.max().item(),
            }
        out["not_finite"] = int(array.size - finite.size)
        out["first"] = [v if np.isfinite(v) else str(v) for v in array.reshape(-1)[:_N_VALUES].tolist()]
    return out


def as_text(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One block a sample, one line a field."""
    lines = []
    for split, of_split in found.items():
        for sample in of_split:
            lines.append(f"{one_line(split)}: {one_line(sample['key'])}")
            lines += [f"  {one_line(name)}: {_line(facts)}" for name, facts in sample.items() if name != "key"]
    return "\n".join(lines)


def _line(facts: Mapping[str, Any]) -> str:
    if "value" in facts:
        text = one_line(facts["value"])
        text = text if len(text) <= _N_CHARS else text[: _N_CHARS - 3] + "..."
        return f"{text} ({one_line(facts['class'])})" if facts.get("class") is not None else text
    text = f"{facts['dtype']} {'x'.join(map(str, facts['shape']))}"
    if "mean" in facts:
        text += f", {facts['min']:.6g} to {facts['max']:.6g}, mean {facts['mean']:.6g}"
    if facts.get("not_finite"):
        text += f", {facts['not_finite']} not finite"
    if "first" in facts:
        text += f": {', '.join(v if isinstance(v, str) else f'{v:.6g}' for v in facts['first'])}, ..."
    return text
