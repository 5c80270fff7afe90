"""`streamkit completion`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["bash"]).shell
'bash'
"""

from __future__ import annotations

import argparse

from streamkit.terminal import show

HELP = "print a script that completes commands, options and paths in a shell"
DESCRIPTION = (
    "Print a completion script. bash: source it from ~/.bashrc. zsh: source it after compinit, or save it as "
    "_streamkit in a folder of $fpath. "
    "fish: save it as ~/.config/fish/completions/streamkit.fish."
)
EXAMPLE = "streamkit completion bash"


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that will read it")


def run(args: argparse.Namespace) -> None:
    import shtab

    from streamkit.cli import parser

    top = parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in ("SRC", "OUT", "DIR", "FILE"):
                action.complete = shtab.FILE if action.metavar in ("SRC", "FILE") else shtab.DIRECTORY
    # shtab's zsh script takes `source` for a call from fpath, and fails; only `eval` registers it there
    show(shtab.complete(top, args.shell).replace("zsh_eval_context[-1] == eval", "zsh_eval_context[-1] == (eval|file)"))
