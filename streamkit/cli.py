"""The command line: spelling only. Each command is a few lines over one library call.

Facts go to stdout, progress and warnings to stderr; the exit code is that of the error's class (see `errors`).

    >>> parser().parse_args(["convert", "raw", "out", "--format", "hdf5"]).format
    'hdf5'
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from streamkit.errors import StreamkitError, UsageError, one_line
from streamkit.version import __version__


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress and no remarks")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    common.add_argument("--json", action="store_true", help="print facts as JSON")
    top = _Parser(prog="streamkit", description="Raw images and arrays -> standard shards -> training batches.")
    top.add_argument("--version", action="version", version=f"streamkit {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _convert_arguments(commands, common)
    return top


def _convert_arguments(commands: Any, common: argparse.ArgumentParser) -> None:
    p = commands.add_parser(
        "convert",
        parents=[common],
        help="make a dataset of a folder of images or arrays, or of a table file",
        description="Make a dataset. The same command again continues an interrupted conversion.",
        epilog="example: streamkit convert photos/ out/ --format tfrecord --split train=0.9,val=0.1",
    )
    p.add_argument("source", metavar="SRC", help="folder of images or .npy files, or one .npy, .npz or .h5 of N rows")
    p.add_argument("out", metavar="OUT", help="folder to make")
    p.add_argument("--format", required=True, choices=("tfrecord", "hdf5"))
    p.add_argument("--split", metavar="NAME=F,...", help="stratified fractions, such as train=0.9,val=0.1")
    p.add_argument("--encode", default="keep", metavar="HOW", help="keep (default), jpeg[:Q], png, webp[:Q] or raw")
    p.add_argument("--resize", metavar="N|HxW", help="short side N (never enlarges), or exactly HxW")
    p.add_argument(
        "--compression",
        default="auto",
        metavar="CODEC",
        help="of arrays: auto (default), none, zlib[:L] (tfrecord), gzip[:L], lzf, zstd[:L], lz4, blosc2 (hdf5)",
    )
    p.add_argument("--check", default="decode", choices=("decode", "header"), help="what is read of every image")
    p.add_argument("--shard-size", default="128MB", metavar="SIZE", help="wanted size of a shard (default 128MB)")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core); never changes the result")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="salts the order of samples and the splits")
    p.add_argument("--max-pixels", default="64M", metavar="N", help="larger pictures are refused (default 64M)")
    p.add_argument("--on-bad", default="fail", choices=("fail", "skip"), help="what a bad item does (default: fail)")
    p.add_argument(
        "--overwrite", action="store_true", help="replace a dataset that is there, once the new one is whole"
    )
    p.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    p.set_defaults(run=_convert)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"See `{self.prog} --help`.")


def _convert(args: argparse.Namespace) -> None:
    from streamkit.convert import convert
    from streamkit.convert.options import parse_split
    from streamkit.reports.conversion import as_json, as_text
    from streamkit.units import size

    report = convert(
        args.source,
        args.out,
        format=args.format,
        split=None if args.split is None else parse_split(args.split),
        encode=args.encode,
        resize=args.resize,
        compression=args.compression,
        check=args.check,
        shard_size=args.shard_size,
        workers=args.workers,
        seed=args.seed,
        max_pixels=size(args.max_pixels),
        on_bad=args.on_bad,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        progress=None if args.quiet else _progress,
    )
    if not args.quiet:
        for notice in report.notices:
            _say(f"note: {notice}")
        for bad in report.skipped:
            _say(f"skipped {bad.key}: {bad.reason}")
    print(json.dumps(as_json(report), indent=1, sort_keys=True) if args.json else as_text(report))


def _progress(n_items: int) -> Callable[[int], None]:
    """A progress bar with rate and time left on a terminal, shown for what takes longer than two seconds."""
    if not sys.stderr.isatty():
        return lambda n: None
    from tqdm import tqdm

    bar = tqdm(total=n_items, unit=" items", unit_scale=True, delay=2, leave=False, file=sys.stderr)

    def tick(n: int) -> None:
        bar.update(n)
        if bar.n >= n_items:
            bar.close()

    return tick


def _say(text: str) -> None:
    print(f"streamkit: {one_line(text)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    # A plugin library is loaded by name from data otherwise; reading needs only codecs that are named.
    os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")
    debug = "--debug" in (sys.argv if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        args = parser().parse_args(argv)
        args.run(args)
        sys.stdout.flush()
        return 0
    except StreamkitError as error:
        if debug:
            raise
        for key, reason in getattr(error, "bad", ()):
            _say(f"bad item {key}: {reason}")
        _say(str(error))
        return error.exit_code
    except MemoryError:
        if debug:
            raise
        _say("out of memory: lower --workers or --shard-size and run it again; it continues")
        return 5
    except KeyboardInterrupt:
        _say("interrupted; the same command continues where it stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away, which is no error
        return 0


def _terminate(signum: int, frame: object) -> NoReturn:
    _say("terminated; the same command continues where it stopped")
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
