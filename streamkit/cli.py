"""The command line: the commands of `streamkit.commands`, and what their errors become.

Facts go to stdout, progress and warnings to stderr; the exit code is that of the error's class (see `errors`).

    >>> parser().parse_args(["convert", "raw", "out", "--format", "hdf5"]).format
    'hdf5'
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from streamkit.commands import NAMES
from streamkit.errors import StreamkitError, UsageError
from streamkit.terminal import say
from streamkit.version import __version__


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = _Parser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress and no remarks")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    common.add_argument("--json", action="store_true", help="print facts as JSON")
    top = _Parser(prog="streamkit", description="Raw images and arrays -> standard shards -> training batches.")
    top.add_argument("--version", action="version", version=f"streamkit {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name in NAMES:
        command = importlib.import_module(f"streamkit.commands.{name}")
        p = commands.add_parser(
            name,
            parents=[common],
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=f"example: {command.EXAMPLE}",
        )
        command.arguments(p)
        p.set_defaults(run=command.run)
    return top


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    # A plugin library is loaded by name from data otherwise; reading needs only codecs that are named.
    os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")
    # NumPy's linear algebra is not used; starting its threads would be a tenth of a short command.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
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
            say(f"bad item {key}: {reason}")
        say(str(error))
        return error.exit_code
    except MemoryError:
        if debug:
            raise
        say("out of memory: lower --workers or --shard-size and run it again; it continues")
        return 5
    except KeyboardInterrupt:
        say("interrupted; the same command continues where it stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away, which is no error
        return 0


def _terminate(signum: int, frame: object) -> NoReturn:
    say("terminated; the same command continues where it stopped")
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
