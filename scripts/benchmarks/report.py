"""Results to text: tables, targets, the README section. Pure: what is not in a result is never said.

>>> ratios([2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
3.0
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tasks import TASKS, Target, Task

RESULTS = Path(__file__).resolve().parents[1] / "benchmark_results"
BEGIN, END = "<!-- benchmark: written by scripts/benchmark --readme -->", "<!-- benchmark ends -->"
NOTHING_YET = "No results are kept yet; `scripts/benchmark --save --readme` measures and writes this section."
LEGEND = """Figures are samples per CPU-second of all processes, medians over
rounds in which all contenders take turns; "x" is how many times as much, so below 1 the other is ahead. The limit is the bare
operation with as many threads: tar or cp of the same files, simplejpeg and OpenCV, a NumPy gather from memory, inflating the
same chunks, for R6 importing TensorFlow and 0.4 s; it keeps no index and no sums, and a better way of doing the same can beat
it. Whole processes convert, imports included. Versions, wall time, memory, targets and what does not shuffle:
`scripts/benchmark --table`."""

Measure = Mapping[str, Any]
Result = Mapping[str, Any]


def kept(name: str) -> Result | None:
    """The saved result of a task."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def load() -> list[Result]:
    """Saved results of TASKS, in the tasks' order."""
    return [result for name in TASKS if (result := kept(name)) is not None]


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median of each round's own ratio: what slows a whole round down slows both."""
    return median(a / b for a, b in zip(theirs, ours, strict=False))


def cost(measure: Measure, by: str) -> list[float]:
    """Seconds a sample of each round, or MiB."""
    if by == "memory":
        return [measure["memory_mib"]]
    return [seconds / measure["samples"] for seconds in measure[by]]


def measured(result: Result, contender: str, way: str = "") -> list[Measure]:
    found = (m for m in result["measures"] if m["contender"] == contender and m["way"].startswith(way))
    return [m for m in found if m["cpu"]]


def advantage(result: Result, ours: Measure, theirs: str, by: str = "cpu") -> tuple[float, str] | None:
    """How many times as much `theirs` costs, and who that is; of several the cheapest. None where none was measured."""
    if theirs == "peers":
        others = [m for m in result["measures"] if m["contender"] not in ("streamkit", "limits") and m["cpu"]]
        others = [m for m in others if "not shuffled" not in m["settings"]]
    else:
        contender, _, way = theirs.partition(": ")
        others = [m for m in measured(result, contender, way) if m is not ours]
    found = [(ratios(cost(m, by), cost(ours, by)), f"{m['contender']}: {m['way']}") for m in others]
    return min(found, default=None)


def verdict(result: Result, target: Target, ours: Measure) -> tuple[str, str, bool | None]:
    """What was found, what was wanted, and whether it was reached; None where there is nothing to compare with."""
    if target.unit:
        by = {"per CPU-s": "cpu", "s": "wall", "MiB": "memory"}[target.unit]
        found = median(cost(ours, by))
        if target.unit == "per CPU-s":
            return f"{1 / found:,.0f} {target.unit}", f">= {target.factor:,g}", 1 / found >= target.factor
        return f"{found:.2f} {target.unit}", f"< {target.factor:g}", found < target.factor
    wanted = f">= {target.factor:g} x {target.theirs}" + ("" if target.by == "cpu" else f", {target.by}")
    pair = advantage(result, ours, target.theirs, target.by)
    if pair is None:
        return "not compared", wanted, None
    return f"{pair[0]:.2f} x {pair[1]}", wanted, pair[0] >= target.factor


def targets(results: Sequence[Result]) -> str:
    """Target by target."""
    lines = ["| task | streamkit | found | wanted | |", "|---|---|---|---|---|"]
    for result in results:
        for target in TASKS[result["task"]].targets:
            for ours in measured(result, "streamkit", target.ours):
                found, wanted, met = verdict(result, target, ours)
                word = {True: "met", False: "missed", None: ""}[met]
                lines.append(f"| {result['task']} | {ours['way']} | {found} | {wanted} | {word} |")
    return "\n".join(lines)


def table(result: Result) -> str:
    """One task in full: every contender and way, with its settings."""
    task, facts = TASKS[result["task"]], result["facts"]
    lines = [
        f"**{task.name}: {task.title}.** {contract(task)}",
        "",
        f"| contender | way | {heading(task)} | streamkit's first way is ahead | peak MiB | settings |",
        "|---|---|" + "---|" * (1 + heading(task).count("|")) + "---|---|---|",
    ]
    first = next(iter(measured(result, "streamkit")), None)
    for m in result["measures"]:
        if not m["cpu"]:
            blanks = " |" * heading(task).count("|")
            lines.append(f"| {m['contender']} | {m['way']} | {m['note']} |{blanks} | | {m['settings']} |")
            continue
        ahead = ""
        if first is not None and m is not first:
            ahead = f"{ratios(cost(m, task.figure), cost(first, task.figure)):.2f} x"
        settings = "; ".join(part for part in (m["settings"], m["note"]) if part)
        lines.append(
            f"| {m['contender']} | {m['way']} | {figures(task, m)} | {ahead} | {m['peak_mib']:,.0f} | {settings} |"
        )
    load = " to ".join(f"{value:.1f}" for value in facts["load"])
    return "\n".join([*lines, "", f"{facts['rounds']} rounds, {machine(facts)}, load {load}.", versions(result)])


def contract(task: Task) -> str:
    if task.kind == "write":
        return "Whole processes."
    return f"Batches of {task.batch_size}, {task.dtype} {task.shape}, shuffled."


def heading(task: Task) -> str:
    if task.kind == "start":
        return "seconds to the first batch (best)"
    if task.figure == "memory":
        return "MiB beyond the imports"
    return "samples per CPU-s (median) | per s (best)"


def figures(task: Task, m: Measure) -> str:
    if task.kind == "start":
        return f"{median(m['wall']):.2f} ({min(m['wall']):.2f})"
    if task.figure == "memory":
        return f"{m['memory_mib']:,.0f}"
    startup = f", {m['startup']:.1f} CPU-s of it imports" if m["startup"] else ""
    return f"{1 / median(cost(m, 'cpu')):,.0f}{startup} | {1 / min(cost(m, 'wall')):,.0f}"


def machine(facts: Mapping[str, Any]) -> str:
    return f"{facts['machine'].strip()}, {facts['cores']} cores, Python {facts['python']}, {facts['date']}"


def versions(result: Result) -> str:
    found = {
        m["contender"]: ", ".join(f"{name} {version}" for name, version in sorted(m["versions"].items()))
        for m in result["measures"]
        if m["versions"]
    }
    return "; ".join(f"{contender}: {text}" for contender, text in found.items()) + "." if found else ""


def summary(results: Sequence[Result]) -> str:
    """The README's table: streamkit's ways beside the machine's limit and the best peer."""
    lines = [
        "| task | streamkit | figure | x the limit | best peer that shuffles | x that peer |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        task = TASKS[result["task"]]
        if not task.name[0].isupper():
            continue  # those beside the limits alone; --table has them
        for ours in measured(result, "streamkit"):
            limit = advantage(result, ours, "limits", task.figure)
            peer = advantage(result, ours, "peers", task.figure)
            share = "" if limit is None else f"{limit[0]:.2f}"
            who, ahead = ("", "") if peer is None else (peer[1], f"{peer[0]:.2f}")
            way = ", ".join(part for part in (ours["way"], ours["settings"] if task.kind == "write" else "") if part)
            lines.append(f"| {task.name}: {task.title} | {way} | {short(task, ours)} | {share} | {who} | {ahead} |")
    return "\n".join(lines)


def short(task: Task, m: Measure) -> str:
    if task.kind == "start":
        return f"{median(m['wall']):.2f} s"
    if task.figure == "memory":
        return f"{m['memory_mib']:,.0f} MiB"
    if task.figure == "wall":
        return f"{1 / min(cost(m, 'wall')):,.0f}/s"
    return f"{1 / median(cost(m, 'cpu')):,.0f} per CPU-s"


def section(results: Sequence[Result], growth: str = "") -> str:
    """What stands between the README's markers; `growth` is what that task has to say."""
    if not results:
        return NOTHING_YET
    settings: dict[str, list[str]] = {}
    for result in results:
        for m in result["measures"]:
            if m["contender"] not in ("streamkit", "limits") and m["cpu"] and m["settings"]:
                settings.setdefault(f"{m['contender']}: {m['way']} ({m['settings']})", []).append(result["task"])
    absent = {m["contender"]: m["note"] for result in results for m in result["measures"] if not m["cpu"] and m["note"]}
    lines = [summary(results), "", f"Measured on {machine(results[-1]['facts'])}. {LEGEND}"]
    cores = [line for result in results if result["task"].startswith("cores-") for line in scaling(result)]
    if cores:
        lines += ["", f"Two workers or threads beside one, wall time: {'; '.join(cores)}."]
    if settings:
        lines += ["", "Peers ran with their fast settings:", ""]
        lines += [f"- {', '.join(tasks)}: {who}" for who, tasks in settings.items()]
    if absent:
        lines += ["", "Without a figure: " + "; ".join(f"{name} ({note})" for name, note in absent.items()) + "."]
    if growth:
        lines += ["", growth]
    return "\n".join(lines)


def scaling(result: Result) -> list[str]:
    """How many times as fast two are as one, target by target."""
    task = TASKS[result["task"]]
    pairs = [
        (ours, advantage(result, ours, t.theirs, t.by))
        for t in task.targets
        for ours in measured(result, "streamkit", t.ours)
    ]
    what = task.title.partition(": ")[2]
    return [f"{what}, {ours['way']}: {found[0]:.2f}" for ours, found in pairs if found is not None]


def rewritten(readme: str, text: str) -> str:
    """The README with `text` between the markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"the README needs the lines {BEGIN!r} and {END!r}, once each and in this order")
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"
