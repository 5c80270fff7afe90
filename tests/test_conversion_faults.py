"""FAULTS 1 to 17 where no other file holds them: full and failing disks, locks, limits, sources that change.

`pytest -m fault` runs every numbered case; `grep "fault(7)"` finds one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import EXTENSION, ROOT, both, class_folders, cli, digests, encoded, picture, python, write_files

import streamkit
from streamkit import ResourceError, SourceError, native
from streamkit.cli import main
from streamkit.convert import room


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("src"), {"a": 6, "b": 6}, (10, 10))


# Power


@pytest.mark.fault(4)
@both
def test_what_is_published_lies_on_the_disk(
    source: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is on the disk before it gets its name, the name before the manifest's, and the manifest comes last."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(fd: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def noted_replace(old: Any, new: Any) -> None:
        assert done[-1] == ("sync", os.fspath(old)), "a name before its bytes"
        assert os.path.getsize(old) > 0, "a name for nothing"
        done.append(("name", os.fspath(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    out = tmp_path / "out"
    streamkit.convert(source, out, format=format, shard_size=1200, workers=1)
    names = [Path(path).name for what, path in done if what == "name"]
    assert names[-1] == "manifest.json"
    last = done.index(("name", str(out / "manifest.json")))
    for i, (what, path) in enumerate(done[:last]):
        assert what == "sync" or ("sync", str(Path(path).parent)) in done[i:last], (
            f"{path} was named, not its folder kept"
        )
    assert ("sync", str(out)) in done[last:]


# Disks

FAILING = """
import errno, os, sys
from pathlib import Path
from converting import digests
from streamkit.cli import main

source, work, format, number, names = sys.argv[1:]
number = getattr(errno, number)
calls = 0

def failing(function, last):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == last:
            raise OSError(number, os.strerror(number), args[0] if isinstance(args[0], (str, os.PathLike)) else None)
        return function(*args, **options)
    return call

def convert(out):
    return main(["convert", source, out, "--format", format, "--shard-size", "4KB", "--workers", "1", "--quiet"])

sys.stdout = open(os.devnull, "w")
convert(f"{work}/whole")
whole = digests(Path(work, "whole"))
for last in range(1, 200):
    out = f"{work}/{last}"
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{out}.err", os.O_WRONLY | os.O_CREAT), 2)
        for name in names.split():
            setattr(os, name, failing(getattr(os, name), last))
        os._exit(convert(out))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = Path(f"{out}.err").read_text()
    if code == 0:
        break
    assert code == 5, (last, code, said)
    assert len(said.splitlines()) == 1 and said.startswith("streamkit: ") and "Traceback" not in said, (last, said)
    assert not [name for name in os.listdir(out) if ".tmp-" in name], (last, os.listdir(out))
    assert convert(out) == 0 and digests(Path(out)) == whole, last
sys.__stdout__.write(f"points {last - 1}\\n")
"""


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    ("format", "number", "calls"),
    [
        ("tfrecord", "EIO", "fsync replace"),
        pytest.param("tfrecord", "ENOSPC", "fsync replace", marks=pytest.mark.slow),
        ("hdf5", "EIO", "replace pwritev"),
    ],
)
def test_a_disk_that_fails_at_every_step(source: Path, tmp_path: Path, format: str, number: str, calls: str) -> None:
    """Exit 5 in one line; nothing half-written stays; the same command gives the same bytes."""
    run = python(FAILING, source, tmp_path, format, number, calls)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout.split()[-1]) >= 8


def in_small_room(options: str, script: str, *names: object) -> subprocess.CompletedProcess[str]:
    """A shell script in a mount namespace of its own, $ROOM being a tmpfs mounted with `options`; $1, $2, ... `names`."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces for this user")
    room = f"set -e; ROOM=$(mktemp -d); mount -t tmpfs -o {options} tmpfs $ROOM; {script}"
    command = ["unshare", "-rm", "bash", "-c", room, "bash", *map(str, names)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


CONVERT = "$PYTHON -m streamkit convert $1 $ROOM/out --format $2 --shard-size 20KB --workers 1 --quiet"


@pytest.mark.fault(6)
@pytest.mark.fault(7)
@both
def test_a_full_disk(tmp_path: Path, format: str) -> None:
    """Known to be too small: refused before anything is written. Else: exit 5 says how much is left; then it goes on."""
    source = class_folders(tmp_path / "src", {"a": 60}, (60, 60))
    script = f"""
    {CONVERT} || echo early $?; ls $ROOM
    {CONVERT} --encode png || echo late $?
    find $ROOM -name '*.tmp-*'
    mount -o remount,size=9m $ROOM; {CONVERT} --encode png; cp -r $ROOM/out $3"""
    run = in_small_room("size=60k", script, source, format, tmp_path / "grown")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[:2] == ["early 5", "late 5"], run.stdout
    early, late = run.stderr.splitlines()[:2]
    assert re.search(r"needs \d+ bytes more, and \d+ are free at /", early)
    assert "no space left on the device" in late and re.search(r"\d+ bytes are free at /", late)
    assert "continues" in late and EXTENSION[format] in late
    streamkit.convert(source, tmp_path / "whole", format=format, encode="png", shard_size="20KB", workers=1)
    assert digests(tmp_path / "grown") == digests(tmp_path / "whole")


@pytest.mark.fault(8)
@pytest.mark.fault(10)
def test_no_inodes_and_a_read_only_disk(source: Path, tmp_path: Path) -> None:
    script = f"{CONVERT} || echo inodes $?; rm -rf $ROOM/*; mount -o remount,ro $ROOM; {CONVERT} || echo read-only $?"
    run = in_small_room("nr_inodes=8", script.replace("20KB", "1200"), source, "tfrecord")
    assert run.stdout.split() == ["inodes", "5", "read-only", "5"], run.stderr
    inodes, read_only = run.stderr.splitlines()
    assert "no inodes left at /" in inodes
    assert "the file system is read-only" in read_only


@pytest.mark.fault(10)
def test_an_output_that_is_not_ours_to_write_is_told_before_the_source_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.os, "access", lambda path, mode: False)
    monkeypatch.setattr("streamkit.convert.run.look", lambda *args: pytest.fail("the source was read"))
    (tmp_path / "src").mkdir()
    with pytest.raises(ResourceError, match="write access"):
        streamkit.convert(tmp_path / "src", tmp_path / "new" / "out", format="tfrecord")


@pytest.mark.fault(9)
def test_a_file_size_limit_names_the_limit(source: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys; from streamkit.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
    )
    args = ("convert", source, tmp_path / "out", "--format", "tfrecord", "--workers", 1)
    run = python(f"{script} sys.exit(main(sys.argv[1:]))", *args)
    assert run.returncode == 5 and "(3000 bytes)" in run.stderr and "train-00000" in run.stderr, run.stderr


# Signals and locks


def start(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streamkit", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not ready() and process.poll() is None:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = encoded(picture(320, 400), "JPEG", quality=90)
    return write_files(tmp_path_factory.mktemp("slow"), {f"a/{i:03d}.jpg": data + b"%03d" % i for i in range(14)})


SLOWLY = ("--format", "tfrecord", "--encode", "png", "--shard-size", "30KB", "--workers", 2)


@pytest.mark.fault(3)
def test_a_second_interrupt_is_no_traceback_either(slow_source: Path, tmp_path: Path) -> None:
    process = start("convert", slow_source, tmp_path / "out", *SLOWLY)
    until(lambda: bool(list((tmp_path / "out").glob("train-*"))), process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "Traceback" not in stderr, stderr


@pytest.mark.fault(11)
@pytest.mark.fault(12)
def test_two_converters_and_a_lock_left_behind(slow_source: Path, tmp_path: Path) -> None:
    """The second is told at once who is at work; what a dead one left is taken over, and that is told, too."""
    args = ("convert", slow_source, tmp_path / "out", *SLOWLY)
    first = start(*args)
    lock = tmp_path / "out" / ".streamkit" / "lock"
    until(lambda: lock.exists() and bool(lock.read_text()), first)
    os.kill(first.pid, signal.SIGSTOP)  # at work for as long as the second one needs
    second = cli(*args)
    assert second.returncode == 7, second.stderr
    assert f"process {first.pid} on {os.uname().nodename} since 2" in second.stderr and str(lock) in second.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    third = cli(*args)
    assert third.returncode == 0, third.stderr
    assert f"went on with what process {first.pid} on {os.uname().nodename}" in third.stderr
    assert not lock.exists()


@pytest.mark.fault(13)
def test_what_lies_at_the_output_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path / "out", {f"mine{i}.txt": b"dear" for i in range(5)})
    args = ["convert", str(source), str(tmp_path / "out"), "--format", "tfrecord"]
    for more in ([], ["--overwrite"]):
        assert main([*args, *more]) == 2
        assert "mine0.txt, mine1.txt, mine2.txt" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 5


# Sources and memory


@pytest.mark.fault(15)
def test_a_file_that_changes_while_it_is_read(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(source, tmp_path / "src")
    victim = tmp_path / "src" / "b" / "0003.jpg"
    read = os.read

    def while_written(fd: int, n: int) -> bytes:
        data = read(fd, n)
        if os.readlink(f"/proc/self/fd/{fd}") == str(victim):
            with open(victim, "ab") as file:
                file.write(b"more")
        return data

    monkeypatch.setattr(os, "read", while_written)
    monkeypatch.setattr(native, "_library", None)  # what is compiled cannot be met half way: see test_files.py
    with pytest.raises(SourceError) as caught:
        streamkit.convert(tmp_path / "src", tmp_path / "out", format="tfrecord", workers=1)
    ((key, reason),) = caught.value.bad
    assert key == "b/0003.jpg" and reason.startswith("changed while it was read")


LIMITED = """
import resource, sys
import numpy as np, pyarrow.parquet, h5py, hdf5plugin, imagecodecs
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), int(sys.argv[1])))
if sys.argv[2] == "control":
    np.load(sys.argv[3]) + 1
else:
    from streamkit.cli import main
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.fault(17)
def test_more_data_than_memory(tmp_path: Path) -> None:
    """Rows of a table come in bounded memory; one sample that is too large ends in one line. Reading all does fail."""
    (tmp_path / "big").mkdir()
    np.lib.format.open_memmap(tmp_path / "big/rows.npy", "w+", np.float32, (6000, 200, 200))  # 0.96 GB, a hole on disk
    limit, table = 700_000_000, tmp_path / "big/rows.npy"
    options = ("--format", "hdf5", "--compression", "lz4", "--shard-size", "20MB", "--workers", 1)
    run = python(LIMITED, limit, "convert", table, tmp_path / "out", *options)
    assert run.returncode == 0, run.stderr
    assert python(LIMITED, limit, "control", table).returncode == 1
    run = python(LIMITED, limit, "convert", tmp_path / "big", tmp_path / "one", "--format", "tfrecord", "--workers", 1)
    assert run.returncode == 5, run.stderr
    assert "out of memory" in run.stderr and "rows.npy" in run.stderr and "Traceback" not in run.stderr
