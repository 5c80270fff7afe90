"""scripts/benchmark: what it makes of results, what it holds contenders to, and one small run of it."""

from __future__ import annotations

import doctest
import importlib
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import child, conversion, data, growth, measure, plot, remote, report, streaming, tasks
from benchmarks.contenders import NAMES
from benchmarks.tasks import TASKS, Target
from converting import ROOT
from hypothesis import given
from hypothesis import strategies as st

SECONDS = st.floats(1e-3, 1e3)


def one(contender: str, way: str, *cpu: float, **facts: Any) -> dict[str, Any]:
    """A measure of 100 samples a round."""
    base = {"contender": contender, "way": way, "settings": "", "note": "", "versions": {}, "samples": 100}
    memory = {"startup": None, "peak_mib": 50.0, "memory_mib": 10.0}
    return base | memory | {"cpu": list(cpu), "wall": list(cpu)} | facts


def result(*measures: dict[str, Any], task: str = "R4") -> dict[str, Any]:
    facts = {"machine": "m", "cores": 2, "python": "3.11", "date": "2026-01-01", "load": [0.1, 0.2], "rounds": 2}
    return {"task": task, "facts": facts, "measures": list(measures)}


LIMIT = one("limits", "NumPy gather", 1.0, 2.0)
OURS = one("streamkit", "NumPy, hdf5", 1.0, 2.5)
FFCV = one("ffcv", "Loader", 2.0, 4.0, settings="two threads")
ABSENT = one("grain", "ArrayRecord", note="not installable: no wheel")


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1), st.floats(0.1, 10))
def test_the_median_of_ratios_ignores_what_slows_whole_rounds_down(rounds: list[tuple[float, float]], k: float) -> None:
    theirs, ours = ([pair[i] for pair in rounds] for i in (0, 1))
    found = report.ratios(theirs, ours)
    slowed = report.ratios([theirs[0] * k, *theirs[1:]], [ours[0] * k, *ours[1:]])
    assert slowed == pytest.approx(found)
    assert min(a / b for a, b in rounds) <= found <= max(a / b for a, b in rounds)


def test_a_table_shows_every_contender_and_why_one_has_no_figure() -> None:
    rows = report.table(result(LIMIT, OURS, FFCV, ABSENT)).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("|")]
    assert len({len(row) for row in cells}) == 1
    body = {row[0]: row for row in cells[2:]}
    assert body["streamkit"][2] == f"{100 / 1.75:,.0f}"
    assert body["grain"][2] == "not installable: no wheel"
    assert body["ffcv"][-1] == "two threads"


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("NumPy", "limits", 0.85), True),  # rounds: 1.0 and 0.8, so 0.9
        (Target("NumPy", "limits", 0.95), False),
        (Target("NumPy", "peers", 1.7), True),
        (Target("NumPy", "ffcv: Loader", 2.1, "wall"), False),
        (Target("NumPy", "grain", 1), None),
        (Target("NumPy", "", 57, unit="per CPU-s"), True),
        (Target("NumPy", "", 58, unit="per CPU-s"), False),
        (Target("NumPy", "", 10.5, unit="MiB"), True),
    ],
)
def test_a_target_is_met_missed_or_not_compared(target: Target, met: bool | None) -> None:
    assert report.verdict(result(LIMIT, OURS, FFCV, ABSENT), target, OURS)[2] is met


def test_who_does_not_shuffle_is_no_peer_in_a_shuffled_task() -> None:
    fast = one("h5py", "contiguous slices", 0.1, 0.1, settings="not shuffled")
    pair = report.advantage(result(OURS, FFCV, fast), OURS, "peers")
    assert pair is not None and pair[1] == "ffcv: Loader"


@given(st.text(), st.text(), st.text())
def test_only_what_stands_between_the_markers_changes(head: str, old: str, tail: str) -> None:
    readme = f"{head}{report.BEGIN}{old}{report.END}{tail}"
    once = report.rewritten(readme, "new")
    assert once.startswith(head + report.BEGIN) and once.endswith(report.END + tail)
    assert report.rewritten(once, "new") == once


@pytest.mark.parametrize("readme", ["", report.BEGIN, report.END + report.BEGIN, report.BEGIN * 2 + report.END])
def test_a_readme_without_its_markers_is_left_alone(readme: str) -> None:
    with pytest.raises(ValueError, match="README needs the lines"):
        report.rewritten(readme, "new")


def test_the_readme_claims_what_the_kept_results_say_and_nothing_else() -> None:
    readme = (ROOT / "README.md").read_text()
    flat = report.kept("growth")
    text = report.section(report.load(), growth.sentence(flat) if flat else "")
    assert report.rewritten(readme, text) == readme


def test_bounds_of_a_conversion_are_judged_by_medians() -> None:
    seconds = {"import": 0.5, "tar": 1, "cheapest decode": 3, "check header": 1.9, "check decode": 4, "again": 11}
    ways = {name: {"cpu": [9.0, s, s], "wall": [s, s, 99.0]} for name, s in seconds.items()}
    ways["cheapest decode, gray"] = {"cpu": [2.0], "wall": [2.0]}
    ways["check decode, 2 workers"] = {"cpu": [4.0], "wall": [2.0]}
    facts = {"task": "conversion", "facts": {"rounds": 3, "load": [0.1, 2.0]}, "photos": 4000, "ways": ways}
    found = conversion.bounds(facts)
    assert [round(value, 2) for _, value, _, _ in found] == [1.9, 1.4, 0.89, 1.14, 2.0, 11.0]
    assert [met for *_, met in found] == [False, True, True, False, True, False]
    assert "| 1,000 | 2.0 | 64 MiB |" in conversion.table(facts | {"memory": [[1000, 2.0, 64.0]]})


def test_growth_is_told_in_one_sentence_and_drawn() -> None:
    flat = [[10, 2.0], [1000, 3.0]]
    facts = {"points": dict.fromkeys(("rows", "shards", "classes", "open", "first batch"), flat)}
    assert "from 10 to 1,000 rows 1.50 times" in growth.sentence(facts)
    assert growth.picture(facts).count("<polyline") == 5 and "| rows | 10: 2, 1,000: 3 | 1.50 |" in growth.table(facts)


def test_the_section_names_settings_and_who_is_missing() -> None:
    text = report.section([result(LIMIT, OURS, FFCV, ABSENT)])
    assert "- R4: ffcv: Loader (two threads)" in text and "grain (not installable: no wheel)" in text
    assert "| 0.90 | ffcv: Loader | 1.80 |" in text


def test_the_section_tells_how_two_workers_do_beside_one() -> None:
    ways = ("check decode, 1 worker", "check decode, 2 workers", "check header, 1 worker", "check header, 2 workers")
    four = (one("streamkit", way, seconds) for way, seconds in zip(ways, (8.0, 4.0, 3.0, 2.0), strict=True))
    text = report.section([result(*four, task="cores-W")])
    assert "convert photos, check decode, 2 workers: 2.00; convert photos, check header, 2 workers: 1.50." in text


def test_the_contract_sees_shapes_labels_and_content() -> None:
    x, y = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(3, 2, 4), np.array([0, 2, 2])
    found = child.check([(x[:2], y[:2]), (x[2:], y[2:, None])])
    assert found == {
        "shape": [2, 2, 4],
        "rest": [1, 2, 4],
        "dtype": "uint8",
        "classes": [1, 0, 2],
        "mean": x.mean(),
        "classes_a_batch": 1.5,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_contender_has_its_functions_and_says_its_settings(name: str) -> None:
    module = importlib.import_module(f"benchmarks.contenders.{name}")
    ways = {task.name: module.ways(task) for task in TASKS.values()}
    for task, found in ways.items():
        assert len({way.name for way in found}) == len(found), task
        assert name in ("limits", "streamkit") or all(way.settings for way in found), task
    wanted = {"open": any(TASKS[task].kind != "write" for task, found in ways.items() if found), "load": True}
    wanted["write"] = any(way.form for found in ways.values() for way in found)
    functions: dict[str, Callable[..., Any] | None] = {verb: getattr(module, verb, None) for verb in wanted}
    assert all(callable(functions[verb]) for verb, needed in wanted.items() if needed)


def test_every_target_names_a_way_of_streamkit_and_somebody_to_compare_with() -> None:
    ways = {name: importlib.import_module(f"benchmarks.contenders.{name}").ways for name in NAMES}
    for task in TASKS.values():
        for target in task.targets:
            assert any(way.name.startswith(target.ours) for way in ways["streamkit"](task)), (task.name, target)
            contender, _, way_name = target.theirs.partition(": ")
            if contender not in ("", "peers"):
                assert any(w.name.startswith(way_name) for w in ways[contender](task)), (task.name, target)


@pytest.mark.parametrize("task", ["R3b", "W3"])
def test_a_small_run_measures_every_way(task: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    found = measure.run(TASKS[task], ("limits", "streamkit"), None, tmp_path, rounds=1, scale=0)
    assert [m["note"] for m in found["measures"]] == [""] * len(found["measures"])
    for m in found["measures"]:
        assert len(m["cpu"]) == len(m["wall"]) == 1 and m["cpu"][0] > 0
    assert "streamkit" in report.table(found)


def test_a_contender_that_fails_says_so_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    source = data.make("raw", None, tmp_path, 0)
    (source / "y.npy").write_bytes(b"damaged")
    monkeypatch.setattr(data, "classes", lambda _: [30] * 10)
    found = measure.run(TASKS["R3b"], ("limits",), None, tmp_path, rounds=1, scale=0)
    assert found["measures"][0]["note"].startswith("failed: ") and not found["measures"][0]["cpu"]


def test_tasks_are_chosen_by_name_or_beginning() -> None:
    assert tasks.chosen("all")[-1] == "growth"
    with pytest.raises(SystemExit, match="no task 'R9'"):
        tasks.chosen("R9")


def test_a_plot_is_well_formed_and_self_contained() -> None:
    text = plot.svg([("s & s", "rows", {"open <1>": [[10, 1.0], [1000, 2.0]]})])
    tree = xml.etree.ElementTree.fromstring(text)
    assert "open <1>" in list(tree.itertext()) and "href" not in text


@pytest.mark.parametrize("module", [report, tasks, plot])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_the_share_of_a_server_s_bandwidth_is_measured_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RATES", (200,))
    monkeypatch.setattr(remote, "LATENCY_S", 0.001)
    monkeypatch.setattr(remote, "_SAMPLES", {"1 KB": (1_000, 600)})
    result = remote.run(tmp_path, rounds=1, scale=1)
    assert len(result["points"]) == 3 and all(p["loader"] > 0 < p["gives"] for p in result["points"])
    assert remote.table(result).count("| 1 KB |") == 3


@pytest.mark.slow
def test_what_shuffling_and_opening_cost_is_measured_and_shown(tmp_path: Path) -> None:
    result = streaming.run(None, tmp_path, rounds=1, scale=0.01)
    assert result["rows"] == 100_000 and result["open_s"] > 0
    shown = streaming.table(result)
    assert shown.count("shuffled over storage order") == 4 and "open 100,000 rows" in shown
