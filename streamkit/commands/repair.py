"""`streamkit repair`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["out", "--source", "raw"]).source
'raw'
"""

from __future__ import annotations

import argparse

from streamkit.terminal import progress_bar, show, show_json

HELP = "write exactly the damaged shards again, or drop damaged records"
DESCRIPTION = (
    "Make a damaged dataset whole: from its source, byte for byte; or with --drop without the damaged records."
)
EXAMPLE = "streamkit repair out/ --source photos/"


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("out", metavar="OUT", help="the dataset's folder")
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--source", metavar="SRC", help="what it was converted from, unchanged")
    how.add_argument("--drop", action="store_true", help="leave the damaged records out, and say which")
    p.add_argument("--labels", metavar="FILE", help="the labels that the conversion was given, if it was")
    p.add_argument("--masks", metavar="DIR", help="the masks that the conversion was given, if it was")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")


def run(args: argparse.Namespace) -> None:
    from streamkit.health import repair
    from streamkit.reports.health import repair_json, repair_text

    done = repair(
        args.out,
        source=args.source,
        labels=args.labels,
        masks=args.masks,
        drop=args.drop,
        workers=args.workers,
        progress=None if args.quiet else progress_bar,
    )
    if args.json:
        show_json(repair_json(done))
    else:
        show(repair_text(done))
