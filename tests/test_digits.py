"""Something real is learned: scikit-learn's handwritten digits, from a folder of PNG files through convert and train."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import train

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
