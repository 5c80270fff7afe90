"""Manners of the command line: what was meant, colour only where it is wanted, completion in real shells, a clean Ctrl-C."""

from __future__ import annotations

import io
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from converting import ROOT, class_folders, cli
from hypothesis import given
from hypothesis import strategies as st
from reading import convert, flip

from streamkit.cli import main
from streamkit.commands import NAMES
from streamkit.errors import UsageError, did_you_mean
from streamkit.manifest import Manifest
from streamkit.schema import Field, Schema
from streamkit.terminal import say, show


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["convrt", "a", "b"], "'convert'"),
        (["prevew", "a"], "'preview'"),
        (["convert", "a", "b", "--fromat", "hdf5"], "'--format'"),
        (["convert", "a", "b", "--format", "hdf"], "'hdf5'"),
        (["convert", "a", "b", "--format", "hdf5", "--splt=train=1"], "'--split'"),
        (["info", "a", "--croisant"], "'--croissant'"),
        (["bench", "a", "--batchsize", "3"], "'--batch-size'"),
        (["completion", "bsh"], "'bash'"),
    ],
)
def test_what_was_meant_is_named(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"Did you mean {meant}?" in said
    assert f"See `streamkit {words[0]} --help`." in said or "See `streamkit --help`." in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [["zzz"], ["info", "a", "--qqqqq"], ["convert", "a"], []])
def test_nothing_is_guessed_out_of_the_blue(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "Did you mean" not in capsys.readouterr().err


@given(word=st.text(max_size=8), known=st.lists(st.text(max_size=8), max_size=5))
def test_only_what_exists_is_meant(word: str, known: list[str]) -> None:
    hint = did_you_mean(word, known)
    assert hint == "" or any(hint == f"Did you mean {name!r}? " for name in known)


def test_splits_and_fields_are_named_too(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(photos, tmp_path / "out")
    with pytest.raises(UsageError, match=r"Did you mean 'train'\? Splits are train\."):
        Manifest.load(out).split("trian")
    with pytest.raises(UsageError, match="Did you mean 'label'"):
        Schema((Field("label", "label", "int64"),))["lable"]
    assert main(["bench", str(out), "--split", "tarin"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


# Colour


def on_a_terminal(*args: object) -> str:
    """What the command line writes to a terminal, stdout and stderr together."""
    ours, theirs = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "streamkit", *map(str, args)],
        cwd=ROOT,
        env={**clean, "TERM": "xterm-256color"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(ours)
    process.wait(30)
    return b"".join(parts).decode()


def test_colour_on_terminals_only(tmp_path: Path, photos: Path) -> None:
    out = convert(photos, tmp_path / "out")
    shown = on_a_terminal("info", out)
    assert "\x1b[36m█" in shown
    plain = cli("info", out).stdout
    assert "\x1b" not in plain
    assert shown.replace("\x1b[36m", "").replace("\x1b[0m", "").replace("\r\n", "\n") == plain


@pytest.mark.parametrize(
    ("env", "colored"),
    [({"TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], colored: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    show("cat ██")
    say("no", is_error=True)
    assert out.getvalue() == ("cat \x1b[36m██\x1b[0m\n" if colored else "cat ██\n")
    assert err.getvalue() == ("\x1b[31mstreamkit:\x1b[0m no\n" if colored else "streamkit: no\n")


def test_text_that_the_terminal_cannot_show_is_no_failure(tmp_path: Path) -> None:
    out = convert(class_folders(tmp_path / "src", {"żółw": 2}), tmp_path / "out")
    run = cli("info", out, env={"PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0
    assert r"\u017c" in run.stdout


@pytest.mark.parametrize("words", [["info", "--json"], ["info", "--samples", "1"], ["verify"]])
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, photos: Path, words: list[str]) -> None:
    out = convert(photos, tmp_path / "out")
    command = [sys.executable, "-m", "streamkit", words[0], str(out), *words[1:], "--quiet"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert run.returncode == 5
    assert run.stderr.startswith("streamkit: stdout: cannot be written: No space left on device. Send it elsewhere")
    assert run.stderr.count("\n") == 1
    ours, theirs = os.pipe()
    os.close(ours)  # as `head` does that has seen enough
    run = subprocess.run(command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(theirs)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_reader_that_went_away_changes_no_exit_code(tmp_path: Path, photos: Path) -> None:
    out = convert(photos, tmp_path / "out")
    flip(out / "train-00000.tfrecord", 300)
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "streamkit", "verify", str(out), "--quiet"]
    run = subprocess.run(command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(theirs)
    assert run.returncode == 4
    assert run.stderr.count("\n") == 1


# Completion


def completion(shell: str) -> str:
    run = cli("completion", shell)
    assert run.returncode == 0, run.stderr
    return run.stdout


def in_shell(shell: str, script: str, *args: str) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    run = subprocess.run([shell, *args, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_command_and_parse(shell: str, tmp_path: Path) -> None:
    text = completion(shell)
    assert all(name in text for name in NAMES)
    path = tmp_path / "script"
    path.write_text(text)
    in_shell(shell, f"{shell} -n {path}")


def test_bash_completes(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(completion("bash"))
    ask = (
        f'source {path}; complete_words() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_streamkit; '
        'echo "${COMPREPLY[@]}"; }; complete_words '
    )
    assert in_shell("bash", ask + "streamkit con") == ["convert"]
    assert in_shell("bash", ask + "streamkit convert --for") == ["--format"]
    assert set(in_shell("bash", ask + "streamkit convert --format ''")) == {"tfrecord", "hdf5"}


def test_zsh_completes_sourced_and_from_fpath(tmp_path: Path) -> None:
    path = tmp_path / "_streamkit"
    path.write_text(completion("zsh"))
    assert "== (eval|file) ]]" in path.read_text()
    begin = f"autoload -U compinit; fpath=({tmp_path} $fpath); compinit -u -d {tmp_path}/dump; "
    for how in (f"source {path}", f"source <(cat {path})", f'eval "$(cat {path})"'):
        assert in_shell("zsh", f"{begin}{how}; print $_comps[streamkit]", "-f") == ["_shtab_streamkit"]
    # what completion calls is stood in for: outside of its widget it cannot run
    call = "_arguments() { print called }; _streamkit; _streamkit"
    assert in_shell("zsh", f"{begin}print $_comps[streamkit]; {call}", "-f") == ["_streamkit", "called", "called"]


def test_fish_completes(tmp_path: Path) -> None:
    path = tmp_path / "script.fish"
    path.write_text(completion("fish"))
    ask = f"source {path}; complete -C "
    assert "convert" in in_shell("fish", ask + "'streamkit con'", "--no-config")
    assert "--format" in in_shell("fish", ask + "'streamkit convert --for'", "--no-config")


# Ctrl-C


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_one_line(tmp_path: Path, photos: Path, number: signal.Signals, code: int) -> None:
    """The signal comes from inside, in the middle of the work, so that no clock is needed."""
    out = convert(photos, tmp_path / "out")
    target = tmp_path / "page.html"
    script = (
        "import os, sys, streamkit.reports.views as views; from streamkit.cli import main;"
        f"views.picture = lambda pixels: os.kill(os.getpid(), {int(number)}) or __import__('time').sleep(30);"
        f"sys.exit(main(['preview', {str(out)!r}, '--html', {str(target)!r}]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == code
    assert run.stderr.strip() == {130: "streamkit: interrupted", 143: "streamkit: terminated"}[code]
    assert not target.exists()
    assert not list(tmp_path.glob(".page*"))
