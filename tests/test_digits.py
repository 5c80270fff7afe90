"""Something real is learned: scikit-learn's handwritten digits, from a folder of PNG files through convert and train."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import train
from converting import ROOT, needs, python

import streamkit


def test_digits_are_told_apart_after_ten_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("sklearn")
    import make_digits

    monkeypatch.setattr(sys, "argv", ["make_digits.py", str(tmp_path / "raw")])
    make_digits.main()
    report = streamkit.convert(tmp_path / "raw", tmp_path / "out", format="tfrecord", workers=1)
    assert report.n_items == 1797
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "out"), "--epochs", "10"])
    capsys.readouterr()
    assert train.main() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("epoch 10/10 ")
    assert float(last.split("val_accuracy: ")[1].split()[0]) >= 0.97


FORMS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import keras
import numpy as np
from benchmark_memory import digits, digits_network, trained
from streamkit.training.factoring import low_rank, separable

data, short = digits(), {}

def accuracy(model):
    return float((np.argmax(model.predict(data["val"], verbose=0), 1) == data["val_y"]).mean())

keras.utils.set_random_seed(0)
dense = trained(digits_network(), data, 8, 3e-3)
for name, form in (("low rank", low_rank(dense, energy=0.9)), ("separable", separable(dense, 4))):
    assert form.count_params() < dense.count_params()
    keras.utils.set_random_seed(0)
    short[name] = accuracy(dense) - accuracy(trained(form, data, 2, 1e-3))
print(json.dumps([accuracy(dense), short]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_smaller_layers_lose_at_most_two_points_after_two_epochs(backend: str) -> None:
    needs(backend, "sklearn")
    run = python(FORMS, ROOT / "scripts", env={"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert run.returncode == 0, run.stderr[-3000:]
    before, short = json.loads(run.stdout.splitlines()[-1])
    assert before >= 0.97 and all(lost <= 0.02 for lost in short.values()), (before, short)
