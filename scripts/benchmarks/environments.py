"""A peer's own environment: .venv-peers/NAME, made when it is first wanted from the pinned list in the peer's file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers"


class NotInstallable(Exception):
    """This peer cannot be had here; the message says why in one line."""


def python_of(contender: str) -> Path:
    """The Python that runs a contender.

    Raises:
        NotInstallable: a package of it could not be installed.
    """
    module = import_module(f"benchmarks.contenders.{contender}")
    if contender in ("limits", "streamkit"):
        return Path(sys.executable)
    folder, built, apt = PEERS / contender, getattr(module, "BUILT", ()), getattr(module, "APT", ())
    wanted = hashlib.sha256(repr((module.REQUIREMENTS, built)).encode()).hexdigest()[:16]
    python, stamp = folder / "bin" / "python", folder / f"installed-{wanted}"
    if not stamp.exists():
        print(f"installing {contender} into {folder.relative_to(ROOT)} (minutes, the first time)", file=sys.stderr)
        _debian(apt)
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *module.REQUIREMENTS])
        if built:
            _run([*pip, "--no-build-isolation", *built])
        stamp.touch()
    return python


def _debian(packages: tuple[str, ...]) -> None:
    if not packages or subprocess.run(["dpkg", "-s", *packages], capture_output=True).returncode == 0:
        return
    if shutil.which("apt-get") is None or os.getuid() != 0:
        raise NotInstallable(f"needs the Debian packages {' '.join(packages)}")
    _run(["apt-get", "update", "-qq"])
    _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.lower().startswith(("error", "e:"))]
        reason = (errors or done.stderr.splitlines() or ["no message"])[-1]
        raise NotInstallable(f"{Path(command[0]).name} failed: {reason[:150]}")
