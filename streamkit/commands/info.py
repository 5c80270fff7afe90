"""`streamkit info`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["out", "--samples", "3"]).samples
3
"""

from __future__ import annotations

import argparse

from streamkit.terminal import say, show, show_json

HELP = "show what a dataset holds: splits, fields, classes, sizes"
DESCRIPTION = "Show what a dataset holds. Reads the manifest and a bounded part of the index: at once at any size."
EXAMPLE = "streamkit info out/ --samples 3"


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("out", metavar="OUT", help="folder of the dataset")
    p.add_argument("--samples", type=int, default=0, metavar="N", help="show the values of N samples of each split too")
    p.add_argument("--root", metavar="DIR", help="with --samples: where adopted files lie, if not where indexed")
    p.add_argument("--dali-index", action="store_true", help="write an .idx file for NVIDIA DALI beside each TFRecord")
    p.add_argument("--croissant", action="store_true", help="write MLCommons Croissant metadata to OUT/croissant.json")


def run(args: argparse.Namespace) -> None:
    from streamkit.errors import UsageError
    from streamkit.reports import croissant, dali, info, samples

    if args.samples < 0:
        raise UsageError(f"--samples is {args.samples}, expected 0 or more")
    if args.root is not None and not args.samples:
        raise UsageError("--root goes with --samples: nothing else of info reads the files")
    facts = info.info(args.out)
    if args.samples:
        facts["values"] = samples.samples(args.out, args.samples, args.root)
    written = dali.write_dali_index(args.out) if args.dali_index else []
    if args.croissant:
        written.append(croissant.write_croissant(args.out))
        if not croissant.describes_files(args.out) and not args.quiet:
            say(f"note: {written[-1]} lists the index alone, and not the adopted files")
    if written:
        facts["written"] = [str(path) for path in written]
    if args.json:
        show_json(facts)
        return
    show(info.as_text(facts))
    if args.samples:
        show("\n" + samples.as_text(facts["values"]))
    if written and not args.quiet:
        say(f"wrote {written[0]}" + (f" and {len(written) - 1} more" if len(written) > 1 else ""))
