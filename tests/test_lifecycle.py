"""What a loader leaves behind, and what it survives: forks, pickles, kills, limits. FAULTS cases 72 to 80.

Case 75 (threads and descriptors after early stop, exception, garbage collection) and case 77 (cursors of something else) are
in test_loader.py, too; case 79's digests of converted folders in test_convert.py.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pyarrow as pa
import pytest
import reading
from reading import convert

import streamkit
from streamkit import Loader, UsageError, index
from streamkit.manifest import Manifest

N = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lifecycle")
    convert(reading.numbered(root / "in", N), root / "table", shard_size=900, compression="none")
    rng = np.random.default_rng(0)
    np.save(root / "rows.npy", np.cumsum(rng.integers(-1, 2, (400, 64)), axis=1).astype(np.float32))
    convert(root / "rows.npy", root / "chunked", "hdf5", compression="gzip")
    return root


def numbers(loader: Any) -> list[list[int]]:
    return [[int(v) for v in (batch[0] if isinstance(batch, tuple) else batch)[:, 0]] for batch in loader]


def _tell(loader: Any, results: Any) -> None:
    results.put(numbers(loader))


@pytest.mark.fault(72, 73)
@pytest.mark.parametrize("name", ["table", "chunked"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_read_what_the_parent_reads(made: Path, name: str, method: str) -> None:
    """FAULTS 72 and 73: forked after files were opened and threads ran, or pickled to a fresh process; four at once."""
    loader = Loader(made / name, batch_size=16, num_workers=2)
    truth = numbers(loader.held(0))
    context = multiprocessing.get_context(method)
    results = context.Queue()
    children = [context.Process(target=_tell, args=(loader, results)) for _ in range(4 if method == "fork" else 1)]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [truth] * len(children)
    for child in children:
        child.join(30)
        assert child.exitcode == 0


@pytest.mark.fault(74)
def test_a_killed_worker_of_pytorch_is_an_error_soon_and_leaves_no_process(made: Path) -> None:
    """FAULTS 74, in a process of its own: PyTorch raises from a signal's handler, wherever the program then is."""
    pytest.importorskip("torch")
    code = """if True:
        import json, multiprocessing, os, signal, sys, time
        import streamkit
        stream = iter(streamkit.Loader(sys.argv[1], batch_size=1, num_workers=1).as_torch(num_workers=2, prefetch_factor=1))
        next(stream)
        first, second = multiprocessing.active_children()
        started = time.monotonic()
        try:
            os.kill(first.pid, signal.SIGKILL)
            try:
                list(stream)
            except OSError:
                time.sleep(30)  # the dead worker's socket was met before the signal of its death, whose handler raises here
        except RuntimeError as error:
            said, took = str(error), time.monotonic() - started
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        del stream
        second.join(20)
        print(json.dumps([first.pid, said, took, len(multiprocessing.active_children())]), flush=True)
        os._exit(0)  # PyTorch's threads may meet the pipe of the dead worker while Python ends
    """
    pid, said, took, n_left = reading.run_python(code, made / "table")
    assert re.search(rf"worker .*{pid}.* (exited|killed)", said) and took < 30 and n_left == 0


def test_a_sequence_starts_no_process(made: Path) -> None:
    before = set(multiprocessing.active_children())
    sequence = Loader(made / "table").as_keras(workers=2, use_multiprocessing=True)
    sequence.on_epoch_begin()
    sequence[0]
    assert set(multiprocessing.active_children()) == before
    sequence.on_epoch_end()


@pytest.mark.fault(75)
@pytest.mark.parametrize("way", ["as_tf", "as_torch", "as_keras", "mixture"])
def test_frontends_leave_no_thread_and_no_descriptor(made: Path, way: str) -> None:
    """FAULTS 75: a loop that breaks off, and one that an exception ends."""
    if way == "as_torch":
        pytest.importorskip("torch")

    def stop(how: str) -> None:
        loader = Loader(made / "table", batch_size=4, num_workers=3)
        batches: Any = streamkit.mix({made / "table": 1}, batch_size=4) if way == "mixture" else getattr(loader, way)()
        if way == "as_keras":
            batches.on_epoch_begin()
        for _ in batches if way != "as_keras" else (batches[i] for i in range(3)):
            if how == "break":
                break
            raise ZeroDivisionError
        if way == "as_keras":
            batches.on_epoch_end()

    stop("break")  # what frameworks start once, they keep
    assert reading.settles(lambda: not reading.our_threads() and not reading.descriptors_in(made), 30)
    before = reading.n_descriptors()
    for how in ("break", "raise"):
        try:
            stop(how)
        except ZeroDivisionError:
            pass
    assert reading.settles(lambda: not reading.our_threads() and not reading.descriptors_in(made), 30)
    assert reading.settles(lambda: reading.n_descriptors() <= before, 30)


@pytest.mark.fault(75)
def test_ctrl_c_ends_a_loop_at_once_and_quietly(made: Path) -> None:
    """FAULTS 75: KeyboardInterrupt comes through, and the process ends with its threads."""
    code = """if True:
        import sys, time, streamkit
        try:
            while True:
                for batch in loader if "loader" in globals() else (loader := streamkit.Loader(sys.argv[1], batch_size=4)):
                    print("on", flush=True)
                    time.sleep(0.01)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(made / "table")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "on\n"
    run.send_signal(signal.SIGINT)
    said, errors = run.communicate(timeout=10)
    assert said.splitlines()[-1] == "interrupted" and errors == "" and run.returncode == 0


@pytest.mark.fault(76)
def test_ten_thousand_shards_under_few_descriptors(tmp_path: Path) -> None:
    """FAULTS 76: `ulimit -n 64`, mapped and by position. The shards are one file under 10,000 names."""
    out = convert(reading.numbered(tmp_path / "in", 2), tmp_path / "out", compression="none")
    manifest = Manifest.load(out)
    split = manifest.split()
    first, table = split.shards[0], index.Index(out / split.index, split.samples).table()
    names = [f"train-{i:05d}.tfrecord" for i in range(10_000)]
    for name in names[1:]:
        os.link(out / first.file, out / name)
    columns = {name: table.column(name).to_pylist() * len(names) for name in table.column_names}
    columns["shard"] = [name for name in names for _ in range(2)]
    index.write(out / split.index, [pa.table(columns, schema=table.schema)])
    changed = dataclasses.replace(
        split,
        samples=2 * len(names),
        nbytes=split.nbytes * len(names),
        index_digest=blake3.blake3((out / split.index).read_bytes()).hexdigest(),
        shards=tuple(dataclasses.replace(first, file=name) for name in names),
    )
    (out / "manifest.json").write_text(dataclasses.replace(manifest, splits={"train": changed}).dump())
    code = """if True:
        import json, resource, sys, streamkit
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        print(json.dumps([
            sum(len(x) for x, _ in streamkit.Loader(sys.argv[1], batch_size=256, memory_budget=budget))
            for budget in ("1GiB", "1MB")
        ]))
    """
    assert reading.run_python(code, out) == [20_000, 20_000]


@pytest.mark.fault(77)
@pytest.mark.parametrize(
    ("options", "says"),
    [({"seed": 2}, "seed"), ({"batch_size": 8}, "global_batch"), ({"shuffle": False}, "shuffle")],
)
def test_a_cursor_of_something_else_says_what_differs(made: Path, options: dict[str, Any], says: str) -> None:
    """FAULTS 77: exit code 2. The same of another version of the dataset."""
    cursor = Loader(made / "table", batch_size=4).cursor_at(3)
    with pytest.raises(UsageError, match=rf"{says} \(cursor") as caught:
        Loader(made / "table", **{"batch_size": 4, **options}).resume(cursor)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"dataset \(cursor"):
        Loader(made / "chunked", batch_size=4).resume(cursor)


# In a process of its own, as forking that of the tests, with all its frameworks, takes much longer.
DYING = """
import json, os, random, signal, sys
import streamkit
from pathlib import Path

out, work = sys.argv[1], Path(sys.argv[2])
place = work / "cursor.json"

def live(kill_after_s):  # the last life ends with the epoch that it came into, and one more
    if kill_after_s is not None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, kill_after_s)
    loader = streamkit.Loader(out, batch_size=4, seed=7, num_workers=1)
    step = 0
    if place.exists():
        saved = json.loads(place.read_text())
        loader.resume(saved["cursor"])
        step = saved["step"]
    n_left = 2
    with open(work / "log", "ab", buffering=0) as file:
        while n_left or kill_after_s is not None:
            n_left -= 1
            for x, _ in loader:
                file.write(json.dumps([step, [int(v) for v in x[:, 0]]]).encode() + b"\\n")
                step += 1
                (work / "next.json").write_text(json.dumps({"cursor": loader.cursor_at(step), "step": step}))
                os.replace(work / "next.json", place)

chance, n_killed = random.Random(0), 0
while True:
    child = os.fork()
    if not child:
        live(chance.uniform(0.002, 0.02) if n_killed < 100 else None)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    n_killed += 1
print(n_killed)
"""


@pytest.mark.fault(78)
def test_a_hundred_kills_lose_and_repeat_nothing(made: Path, tmp_path: Path) -> None:
    """FAULTS 78: kill -9 anywhere between a step and its checkpoint; what was trained equals the undisturbed run."""
    assert reading.run_python(DYING, made / "table", tmp_path) == 100
    trained: dict[int, list[int]] = {}
    for line in (tmp_path / "log").read_text().splitlines():
        step, rows = json.loads(line)
        assert trained.setdefault(step, rows) == rows  # a step done again, as its checkpoint was lost, is the same one
    whole = Loader(made / "table", batch_size=4, seed=7, num_workers=1)
    n_epochs, rest = divmod(len(trained), len(whole))
    assert n_epochs >= 2 and rest == 0
    truth = [batch for _ in range(n_epochs) for batch in numbers(whole)]
    assert [trained[step] for step in range(len(truth))] == truth


@pytest.mark.fault(79)
def test_the_order_is_the_same_whatever_the_environment(made: Path) -> None:
    """FAULTS 79: hash seed, locale, time zone, a clock ten years on and files from the future."""
    out = Path(shutil.copytree(made / "table", made / "future"))
    for file in out.iterdir():
        os.utime(file, (4e9, 4e9))
    code = """if True:
        import json, sys, time
        real, time.time = time.time, lambda: real() + 3e8
        import streamkit
        print(json.dumps([[int(v) for v in x[:, 0]] for x, _ in streamkit.Loader(sys.argv[1], balance=True, seed=5)]))
    """
    expected = numbers(Loader(made / "table", balance=True, seed=5))
    for env in ({"PYTHONHASHSEED": "0", "LANG": "C", "TZ": "Asia/Tokyo"}, {"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8"}):
        assert reading.run_python(code, out, **env) == expected


@pytest.mark.fault(80)
def test_a_tiny_dev_shm_is_named(made: Path) -> None:
    """FAULTS 80: PyTorch's workers hand batches over in /dev/shm; 1 MiB of it is too little, and the error says so."""
    pytest.importorskip("torch")
    mount = "mount -t tmpfs -o size=1m none /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system")
    code = """if True:
        import sys, streamkit
        loader = streamkit.Loader(sys.argv[1], batch_size=16000, rows=list(range(400)) * 40)
        try:
            list(loader.as_torch(num_workers=1))
        except streamkit.ResourceError as error:
            print(error)
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # tests may lie in /dev/shm themselves
        out = shutil.copytree(made / "chunked", Path(folder) / "out")
        command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", code, str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    assert "1 workers need 4096000 bytes of /dev/shm, which has 10" in done.stdout, done.stdout
