"""`streamkit index`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["a.h5", "b.h5", "--out", "out"]).files
['a.h5', 'b.h5']
"""

from __future__ import annotations

import argparse

from streamkit.terminal import progress_bar, say, show, show_json

HELP = "adopt TFRecord or HDF5 files, or an image folder, as they are"
DESCRIPTION = "Make a dataset of files that exist, without rewriting anything: only where everything lies is stored."
EXAMPLE = "streamkit index train.h5 val.h5 --out indexed/ --label class"


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("files", nargs="+", metavar="FILE|FOLDER", help="TFRecord or HDF5 files, or one folder of images")
    p.add_argument("--out", required=True, metavar="OUT", help="folder to make")
    p.add_argument("--field", action="append", metavar="NAME=image", help="this field holds pictures (repeatable)")
    p.add_argument("--label", metavar="NAME", help="this field is the label: whole numbers, or text")
    p.add_argument("--root", metavar="DIR", help="store paths relative to this folder; with root= they are found again")


def run(args: argparse.Namespace) -> None:
    from streamkit.adopt import adopt
    from streamkit.reports.adoption import as_json, as_text

    adoption = adopt(
        args.files,
        args.out,
        field=args.field,
        label=args.label,
        root=args.root,
        progress=None if args.quiet else progress_bar,
    )
    if not args.quiet:
        for notice in adoption.notices:
            say(f"note: {notice}")
    facts = as_json(adoption.out, adoption.root, adoption.manifest)
    if args.json:
        show_json(facts)
    else:
        show(as_text(facts, adoption.seconds))
