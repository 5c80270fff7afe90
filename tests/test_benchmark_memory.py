"""scripts/benchmark_memory measures a technique, and says why when a part of it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from converting import needs

SCRIPTS = Path(__file__).parents[1] / "scripts"
# One process for all: importing it takes seconds, and chooses the backend of Keras.
SCRIPT = """
import sys
import benchmark_memory
sys.argv = ["benchmark_memory", "--only", "with ReLU"]
benchmark_memory.main()
print(benchmark_memory.with_heads(["a", "- b", "- c", "d", "- cc"], "c"))
sys.stdout.flush()
benchmark_memory.child("numpy", "raise SystemExit('no such converter')")
"""


@pytest.mark.slow
def test_one_technique_is_measured_and_a_part_that_fails_says_why() -> None:
    needs("jax")
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": "-1"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    assert "benchmark_memory: the part on numpy ended with 1\nno such converter" in run.stderr
    *_, row, names = run.stdout.splitlines()
    assert names == "['a', '- c', 'd', '- cc']"
    _, technique, parameters, peak, *_ = (cell.strip() for cell in row.split("|"))
    assert (technique, parameters) == ("three convolutions with ReLU, batch 128", "57,450")
    output_mb = 128 * 32 * 32 * 64 * 4 / 1e6  # of one of the convolutions
    assert output_mb < float(peak.removesuffix(" MB")) < 20 * output_mb
