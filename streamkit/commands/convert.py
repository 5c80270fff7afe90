"""`streamkit convert`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["raw", "out", "--format", "hdf5"]).format
'hdf5'
"""

from __future__ import annotations

import argparse

from streamkit.terminal import progress_bar, say, show, show_json

HELP = "make a dataset of a folder of images or arrays, or of a table file"
DESCRIPTION = "Make a dataset. The same command again continues an interrupted conversion."
EXAMPLE = "streamkit convert photos/ out/ --format tfrecord --split train=0.9,val=0.1"


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "source", metavar="SRC", help="folder of images, arrays or texts, or a file or folder of rows or tars"
    )
    p.add_argument("out", metavar="OUT", help="folder to make")
    p.add_argument("--format", required=True, choices=("tfrecord", "hdf5"))
    p.add_argument("--split", metavar="NAME=F,...", help="stratified fractions, such as train=0.9,val=0.1")
    p.add_argument("--labels", metavar="FILE", help="CSV, TSV, JSONL, Parquet, COCO json, VOC XML or folder of them")
    p.add_argument("--masks", metavar="DIR", help="a mask for each picture, of the same path without suffix")
    p.add_argument("--group-by", metavar="COLUMN", help="samples of equal values stay in one split")
    p.add_argument(
        "--on-duplicate",
        default="keep",
        choices=("keep", "drop", "fail"),
        help="of samples of the same content: keep all (default; two splits are reported), drop all but one, or fail",
    )
    p.add_argument(
        "--encode",
        default="keep",
        metavar="HOW",
        help="keep (default), jpeg[:Q] (Q is 90 by default), png, webp[:Q] or raw; png, and webp without a quality, are "
        "lossless and large: webp:90 is like jpeg",
    )
    p.add_argument("--resize", metavar="N|HxW", help="short side N (never enlarges), or exactly HxW")
    p.add_argument("--tile", metavar="HxW", help="cut pictures into tiles, the last one shifted inwards")
    p.add_argument("--window", type=int, metavar="N", help="cut .npy arrays into windows of N rows")
    p.add_argument("--stride", metavar="HxW|M", help="from one tile or window to the next (default: side by side)")
    p.add_argument(
        "--compression",
        default="auto",
        metavar="CODEC",
        help="of arrays: auto (default), none, zlib[:L] (tfrecord), gzip[:L], lzf, zstd[:L], lz4, blosc2 (hdf5)",
    )
    p.add_argument("--check", default="decode", choices=("decode", "header"), help="what is read of every image")
    p.add_argument("--shard-size", default="128MB", metavar="SIZE", help="wanted size of a shard (default 128MB)")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core); never changes the result")
    p.add_argument("--cluster", metavar="tcp://HOST:PORT", help="write shards on the workers of this Dask scheduler")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="salts the order of samples and the splits")
    p.add_argument("--max-pixels", default="64M", metavar="N", help="larger pictures are refused (default 64M)")
    p.add_argument(
        "--on-bad",
        default="fail",
        choices=("fail", "skip", "quarantine"),
        help="bad items: nothing is published (default), they are left out, or copied to OUT-quarantine as well",
    )
    p.add_argument("--append", action="store_true", help="add new items as new shards; what is there does not move")
    p.add_argument(
        "--overwrite", action="store_true", help="replace a dataset that is there, once the new one is whole"
    )
    p.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")


def run(args: argparse.Namespace) -> None:
    from streamkit.convert import convert
    from streamkit.convert.options import parse_split
    from streamkit.reports.conversion import as_json, as_text, compression_table, leak_lines
    from streamkit.units import size

    report = convert(
        args.source,
        args.out,
        format=args.format,
        split=None if args.split is None else parse_split(args.split),
        encode=args.encode,
        resize=args.resize,
        tile=args.tile,
        window=args.window,
        stride=args.stride,
        compression=args.compression,
        check=args.check,
        shard_size=args.shard_size,
        workers=args.workers,
        cluster=args.cluster,
        seed=args.seed,
        labels=args.labels,
        masks=args.masks,
        group_by=args.group_by,
        on_duplicate=args.on_duplicate,
        max_pixels=size(args.max_pixels),
        on_bad=args.on_bad,
        append=args.append,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        progress=None if args.quiet else progress_bar,
    )
    if not args.quiet:
        for notice in report.notices:
            say(f"note: {notice}")
        for line in compression_table(report.compression):
            say(line)
        for bad in report.skipped:
            say(f"skipped {bad.key}: {bad.reason}")
        for line in leak_lines(report.leaks, cut=args.tile is not None or args.window is not None):
            say(line)
    added = {"added": report.n_added} if args.append else {}
    if args.json:
        show_json(as_json(report) | added)
        return
    show(as_text(report))
    if added and report.manifest is not None:
        show(f"{report.n_added} of these samples were added")
