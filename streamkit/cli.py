"""The command line: the commands of `streamkit.commands`, and what their errors become.

Facts go to stdout, progress and warnings to stderr; the exit code is that of the error's class (see `errors`).

    >>> parser().parse_args(["convert", "raw", "out", "--format", "hdf5"]).format
    'hdf5'
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from streamkit.commands import NAMES
from streamkit.errors import StreamkitError, UsageError, did_you_mean
from streamkit.terminal import mute, say
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
    """Errors are UsageErrors, with the option or command that was probably meant."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        known: list[str] = list(self._option_string_actions)
        meant = ""
        for word in self.words:
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                meant = f"{name} is not known. {did_you_mean(name, known)}"
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong is not None:
            meant = did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2]))
        raise UsageError(message, hint=f"{meant}See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    # A plugin library is loaded by name from data otherwise; reading needs only codecs that are named.
    os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")
    # NumPy's linear algebra is not used; starting its threads would be a tenth of a short command.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    debug = "--debug" in (sys.argv if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda *_: _terminate(argv))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail
    try:
        args = parser().parse_args(argv)
        args.run(args)
        return 0
    except StreamkitError as error:
        if debug:
            raise
        for key, reason in getattr(error, "bad", ()):
            say(f"bad item {key}: {reason}")
        say(str(error), is_error=True)
        return error.exit_code
    except MemoryError:
        if debug:
            raise
        say("out of memory: lower --workers or --shard-size and run it again; it continues", is_error=True)
        return 5
    except KeyboardInterrupt:
        say(f"interrupted{_continues(argv)}")
        return 130
    except BrokenPipeError:
        mute()  # the reader went away, which is no error
        return 0


def _terminate(argv: Sequence[str] | None) -> NoReturn:
    say(f"terminated{_continues(argv)}")
    raise SystemExit(128 + signal.SIGTERM)


def _continues(argv: Sequence[str] | None) -> str:
    """What a stopped conversion, and it alone, can promise."""
    words = sys.argv[1:] if argv is None else argv
    return "; the same command continues where it stopped" if "convert" in words[:1] else ""


if __name__ == "__main__":
    sys.exit(main())
