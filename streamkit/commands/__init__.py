"""One module a command: HELP, DESCRIPTION, EXAMPLE, `arguments(parser)` and `run(args)`, a few lines over one library call.

The module's name is the command's; `NAMES` is the order that `streamkit --help` shows.

    >>> NAMES[0]
    'convert'
"""

NAMES = ("convert", "index", "info", "verify", "repair", "preview", "bench", "completion")
