"""One self-contained page about a training run: curves, memory over time, and what each technique made of the model.

>>> found = facts_of({"model": "small_cnn"}, {"loss": [1.0, float("nan")]}, [(0.0, {"host": 5})], [], [])
>>> found["curves"]
{'loss': [1.0, None]}
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from streamkit.reports.page import write_page

_MAX_POINTS = 1000  # of memory over time; a run of days has more readings than a screen has pixels


def facts_of(
    facts: Mapping[str, Any],
    history: Mapping[str, Sequence[float]],
    memory: Sequence[tuple[float, Mapping[str, int]]],
    estimate: Sequence[tuple[str, int]],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the page shows, as JSON-able values.

    Args:
        facts: name -> value, for the head.
        history: metric -> value of each epoch.
        memory: (seconds, name -> bytes) of each reading.
        estimate: (what for, bytes) of a step, counted from the model.
        rows: `Row` of streamkit.training.comparing as dicts.
    """
    thin = memory[:: max(1, math.ceil(len(memory) / _MAX_POINTS))]
    names = sorted({name for _, reading in thin for name in reading})
    return {
        "facts": [[name, str(value)] for name, value in facts.items()],
        "curves": {name: [_finite(float(v)) for v in values] for name, values in history.items()},
        "seconds": memory[-1][0] if memory else 0.0,
        "memory": {name: [reading.get(name) for _, reading in thin] for name in names},
        "estimate": [list(pair) for pair in estimate],
        "rows": [{name: _finite(value) for name, value in row.items()} for row in rows],
    }


def write_report(
    path: str | os.PathLike[str],
    facts: Mapping[str, Any],
    history: Mapping[str, Sequence[float]],
    monitor: Any,
    estimate: Any,
    rows: Sequence[Any],
) -> None:
    """Write the page.

    Args:
        path: of the file.
        facts: name -> value, for the head; "dataset" makes the title.
        history: of `fit`.
        monitor: the MemoryMonitor of the run.
        estimate: an `Estimate`, or None.
        rows: of `compare`; the peak of a step of the first stands beside the estimate.

    Raises:
        ResourceError: it cannot be written.
    """
    readings = [
        (at, {n: v for n, v in dataclasses.asdict(memory).items() if v is not None and n.endswith("_nbytes")})
        for at, memory in monitor.samples
    ]
    counted = [] if estimate is None else [*dataclasses.asdict(estimate).items(), ("together", estimate.total_nbytes)]
    if counted and rows and rows[0].step_nbytes is not None:
        counted.append(("measured peak", rows[0].step_nbytes))
    data = facts_of(facts, history, readings, counted, [dataclasses.asdict(row) for row in rows])
    data["missing"] = monitor.missing
    title = f"{os.path.basename(os.path.abspath(str(facts['dataset'])))}: training"
    data["title"] = title
    write_page(path, title, data, ["charts.js", "training.js"])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
