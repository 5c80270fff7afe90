"""A process forked while the loader works in threads can work with it too, whatever those were at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reading
from converting import python

# In a process of its own, as forking that of the tests, with all its frameworks, takes twenty times as long.
FORKING = """
import os, sys, threading, time
import numpy as np, streamkit
loader = streamkit.Loader(sys.argv[1], batch_size=1, num_workers=2)
expected = loader.batch(0, 0)
stop = threading.Event()

def read():
    while not stop.is_set():
        for _ in loader:
            pass

reader = threading.Thread(target=read)
sys.setswitchinterval(1e-5)  # else a thread is rarely stopped with a lock in its hand
reader.start()
try:
    for _ in range(40):
        if (child := os.fork()) == 0:
            os._exit(not np.array_equal(loader.batch(0, 0), expected))
        ends = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < ends:
            time.sleep(0.001)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert ended[1] == 0, "stuck" if ended == (0, 0) else ended
finally:
    stop.set()
    reader.join()
print("through")
"""


@pytest.mark.parametrize("compression", [pytest.param("none", marks=pytest.mark.slow), "gzip"])
def test_children_forked_in_mid_epoch(tmp_path: Path, compression: str) -> None:
    """FAULTS 72: the child's copy of a lock may be held by a thread that it does not have."""
    np.save(tmp_path / "x.npy", np.arange(400 * 50, dtype=np.float32).reshape(400, 50))
    out = reading.convert(tmp_path / "x.npy", tmp_path / "out", format="hdf5", compression=compression)
    run = python(FORKING, out)
    assert (run.returncode, run.stdout) == (0, "through\n"), run.stderr[-3000:]
