"""What the README and the notebook tell people to type runs as it stands."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from converting import ROOT, class_folders, example, python, write_records

import streamkit.reports.bench as measuring
from streamkit.cli import main, parser

README = (ROOT / "README.md").read_text("utf-8")
HOW_TO = README.split("\n## How to\n")[1].split("\n## ")[0]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def commands(text: str) -> list[list[str]]:
    """The words of each streamkit command in a block of shell lines."""
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words]


def test_every_command_in_the_readme_parses() -> None:
    shown = [words for kind, text in BLOCK.findall(README) if kind == "sh" for words in commands(text)]
    ours = [words[1:] for words in shown if words[0] == "streamkit"]
    assert len(ours) >= 10
    for words in ours:
        parser().parse_args(words)


def test_how_to_has_the_usual_jobs() -> None:
    titles = re.findall(r"^### (.*)", HOW_TO, re.M)
    for word in ("images", "CSV", "RAM", "TFRecords", "HDF5", "S3", "stop", "GPUs", "speed", "memory"):
        assert any(word in title for title in titles), word


def test_how_to_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """Every line of the section, in its order, in one folder; data, `model` and a real S3 server are all that is given."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    keras, tf = pytest.importorskip("keras"), pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "photos", {"cat": 12, "dog": 8}, size=(40, 48))
    (tmp_path / "series").mkdir()
    with h5py.File("data.h5", "w") as file:
        file["x"], file["y"] = np.random.default_rng(0).normal(size=(40, 16)), np.arange(40) % 2
    class_folders(tmp_path, {"pictures": 12}, size=(40, 48))
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    rows = [f"{name},{'ab'[i % 2]},{20 + i},p{i // 3}" for i, name in enumerate(names)]
    Path("labels.csv").write_text("\n".join(["file,label,age,patient", *rows]))
    pictures = [(tmp_path / "pictures" / name).read_bytes() for name in names]
    records = [example(tf, pixels=picture, **{"class": i % 2}) for i, picture in enumerate(pictures)]
    write_records(tf, Path("old.tfrecord"), records)
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    given: dict[str, Any] = {"model": model}
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(measuring, "bench", functools.partial(measuring.bench, budget_s=0.02))
    for kind, text in BLOCK.findall(HOW_TO):
        if kind == "python":
            exec(compile(text, "README.md", "exec"), given)
        else:
            for words in commands(text):
                assert main([*words[1:], "--quiet"]) == 0, words
    assert len(given["rest"]) == 2  # 16 samples in batches of 4, two of them trained before
    assert "at most" in sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert (tmp_path / "out.html").stat().st_size > 10_000


NOTEBOOK = ROOT / "scripts" / "quickstart.ipynb"
EXECUTE = """
import json, sys, nbformat, nbclient
book = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(book, timeout=240, resources={"metadata": {"path": sys.argv[2]}}).execute()
print(json.dumps(book))
"""


def test_the_notebook_runs_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run = python(EXECUTE, NOTEBOOK, tmp_path, env={"PATH": path, "JUPYTER_PLATFORM_DIRS": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    book = json.loads(run.stdout.splitlines()[-1])
    said = ["".join(str(part) for part in cell.get("outputs", ())) for cell in book["cells"]]
    assert "1,840 samples" in "".join(said)
    assert "val_accuracy" in "".join(said)
    assert "'text/plain': 'True'" in said[-1]


def test_the_notebook_is_kept_without_outputs_and_in_the_readme_s_words() -> None:
    book = json.loads(NOTEBOOK.read_text("utf-8"))
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in book["cells"] if cell["cell_type"] == "code"
    )
    first = "".join(book["cells"][0]["source"]).split("\n\n", 1)[1].strip()
    assert " ".join(first.split()) in " ".join(README.split())
