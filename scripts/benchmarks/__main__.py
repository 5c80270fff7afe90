"""Measure streamkit beside its peers and the machine's own limits, all taking turns in one run.

Each peer runs in an environment of its own (.venv-peers/NAME, made when first wanted) with its best honest settings. What
cannot be installed is reported as such. Figures are CPU-seconds of whole process trees, wall time and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import conversion, growth, measure, remote, report, streaming
from benchmarks.contenders import NAMES
from benchmarks.environments import ROOT
from benchmarks.tasks import TASKS, chosen

OTHERS: dict[str, Any] = {
    "conversion": conversion,
    "growth": growth,
    "remote": remote,
    "streaming": streaming,
}  # tasks that no peer takes part in


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description=__doc__,
        epilog="example: scripts/benchmark --tasks R1,R4 --peers tfdata,grain --data DIR --save --readme",
    )
    parser.add_argument("--tasks", default="all", help="comma-separated; see --list. Default: all")
    parser.add_argument("--peers", default="all", help=f"some of {', '.join(NAMES[2:])}; none. Default: all")
    parser.add_argument("--data", type=Path, help="folder with small_jpegs.tar and photos/; without it data is drawn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the data, for trying; never with --save")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--save", action="store_true", help="keep the results in scripts/benchmark_results")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the kept results and targets")
    parser.add_argument(
        "--readme", action="store_true", help='write the README\'s "How fast" from the kept results; alone: only that'
    )
    parser.add_argument("--list", action="store_true", help="list tasks and contenders")
    args = parser.parse_args()
    if args.save and args.scale != 1:
        parser.error("--save keeps whole runs only: leave --scale away")
    return args


def listing() -> str:
    tasks = [f"{task.name:18} {task.title}" for task in TASKS.values()]
    return "\n".join(
        [*tasks, *(f"{name:18} {room.TITLE}" for name, room in OTHERS.items()), "", f"contenders: {', '.join(NAMES)}"]
    )


def print_tables(results: Sequence[Mapping[str, Any]], whole: bool = True) -> None:
    for result in results:
        print(OTHERS.get(result["task"], report).table(result), end="\n\n")
    if whole:  # targets are about all of the data
        print(report.targets([result for result in results if result["task"] not in OTHERS]))


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    peers = {"all": NAMES[2:], "none": ()}.get(args.peers, tuple(args.peers.split(",")))
    if unknown := set(peers) - set(NAMES):
        raise SystemExit(f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join(NAMES[2:])}")
    contenders = tuple(dict.fromkeys((*NAMES[:2], *peers)))
    results = []
    with tempfile.TemporaryDirectory(prefix="streamkit-benchmark-") as folder:
        work = Path(folder)
        (work / "data").mkdir()
        names = chosen(args.tasks)
        for i, name in enumerate(names):
            print(f"{name} ...", file=sys.stderr)
            if name == "growth":
                result = growth.run(work, args.rounds, args.scale)
            elif name == "conversion":
                result = conversion.run(args.data, work, args.rounds, args.scale)
            elif name == "remote":
                result = remote.run(work, args.rounds, args.scale)
            elif name == "streaming":
                result = streaming.run(args.data, work, args.rounds, args.scale)
            else:
                result = measure.run(TASKS[name], contenders, args.data, work, args.rounds, args.scale)
                if TASKS[name].data not in {TASKS[later].data for later in names[i + 1 :] if later in TASKS}:
                    for made in ("data", "out"):  # room in the page cache for what comes next
                        shutil.rmtree(work / made / TASKS[name].data)
            results.append(result)
            if args.save:
                report.RESULTS.mkdir(exist_ok=True)
                (report.RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
                if name == "growth":
                    (report.RESULTS / "growth.svg").write_text(growth.picture(result))
    return results


def main() -> None:
    args = arguments()
    if args.list:
        print(listing())
        return
    if args.table:
        kept = [result for name in OTHERS if (result := report.kept(name)) is not None]
        print_tables([*report.load(), *kept])
    elif args.save or not args.readme:
        results = measured(args)
        if args.json:
            print(json.dumps(results, indent=1))
        else:
            print_tables(results, args.scale == 1)
    if args.readme:
        readme, kept = ROOT / "README.md", report.kept("growth")
        text = report.section(report.load(), growth.sentence(kept) if kept else "")
        readme.write_text(report.rewritten(readme.read_text(), text))


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
