"""`streamkit verify`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["out", "--quick"]).quick
True
"""

from __future__ import annotations

import argparse
import functools

from streamkit.terminal import progress_bar, show, show_json

HELP = "check every size, count, digest and index entry of a dataset"
DESCRIPTION = (
    "Check a dataset; nothing is written. Damage is listed with shard, record and key, and ends with exit code 4."
)
EXAMPLE = "streamkit verify out/ --json"


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("out", metavar="OUT", help="the dataset's folder")
    how = p.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="sizes and headers only")
    how.add_argument("--full", action="store_true", help="decode every payload as well")
    p.add_argument("--root", metavar="DIR", help="where adopted files lie, if not where they were indexed")
    p.add_argument("--max-pixels", metavar="N", default="64M", help="with --full: larger pictures are refused (64M)")
    p.add_argument("--workers", type=int, metavar="N", help="shards read at once (default: one a core)")


def run(args: argparse.Namespace) -> None:
    from streamkit.errors import DamagedError, RefusedError
    from streamkit.health import verify
    from streamkit.reports.health import as_json, as_text, counted
    from streamkit.units import size

    report = verify(
        args.out,
        quick=args.quick,
        full=args.full,
        workers=args.workers,
        root=args.root,
        max_pixels=size(args.max_pixels),
        progress=None if args.quiet else functools.partial(progress_bar, unit="B"),
    )
    if args.json:
        show_json(as_json(report))
    else:
        show(as_text(report))
    if not report.ok:
        raise (RefusedError if report.refused else DamagedError)(counted(report), path=args.out, hint=report.hint)
