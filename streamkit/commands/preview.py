"""`streamkit preview`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["out", "--html", "page.html"]).samples
300
"""

from __future__ import annotations

import argparse

from streamkit.terminal import progress_bar, say, show_json

HELP = "write a page with pictures, plots, classes and sizes of a dataset"
DESCRIPTION = "Write one self-contained page that shows a dataset: needs no network, and can be sent to others."
EXAMPLE = "streamkit preview out/ --html out.html"


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("out", metavar="OUT", help="folder of the dataset")
    p.add_argument("--html", required=True, metavar="FILE", help="page to write")
    p.add_argument("--samples", type=int, default=300, metavar="N", help="samples to show, drawn fairly (default 300)")
    p.add_argument("--root", metavar="DIR", help="where adopted files lie, if not where they were indexed")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from streamkit.reports.preview import write_preview

    write_preview(args.out, args.html, args.samples, None if args.quiet else progress_bar, args.root)
    if args.json:
        show_json({"html": args.html, "bytes": Path(args.html).stat().st_size})
    elif not args.quiet:
        say(f"wrote {args.html}; open it in a browser")
