"""scripts/train.py as its users run it, and the clock behind its `data_wait`."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import train as script
from converting import needs

import streamkit

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train.py"
NUMBER = r"\d+\.\d{4}"
VALIDATED = rf"epoch (\d+)/(\d+) loss: {NUMBER} accuracy: {NUMBER} val_loss: {NUMBER} val_accuracy: {NUMBER} "
COST = r"images/s: \d+ data_wait: \d+\.\d% step: \d+\.\dms host: \d+MB"
# As on a machine without TensorFlow: nothing finds it.
WITHOUT_TENSORFLOW = """
import runpy, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    # Nor scikit-learn, which Keras imports where it can: that takes a second.
    return None if name.split(".")[0] in ("tensorflow", "sklearn") else find(name, path, target)
PathFinder.find_spec = find_spec
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Or as where there is none at all.
WITHOUT_FRAMEWORKS = WITHOUT_TENSORFLOW.replace('"sklearn"', '"keras", "jax", "torch"')
# kill -9 after the first line of an epoch.
DYING = """
import builtins, os, runpy, signal, sys
say = print
def print_and_die(*args, **options):
    say(*args, **options)
    if any("epoch 2" in str(arg) for arg in args):
        os.kill(os.getpid(), signal.SIGKILL)
builtins.print = print_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a few images of sample_data, with train and val."""
    folder = tmp_path_factory.mktemp("train")
    for split, n in (("train", 20), ("val", 8)):
        for source in sorted((ROOT / "sample_data" / "images" / split).iterdir()):
            (folder / "raw" / split / source.name).mkdir(parents=True)
            for file in sorted(source.iterdir())[:n]:
                shutil.copy(file, folder / "raw" / split / source.name)
    streamkit.convert(folder / "raw", folder / "out", format="tfrecord", workers=1)
    return folder / "out"


def train(*arguments: str | Path, preamble: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script somewhere else than in the repository, which need not be installed."""
    python = [sys.executable] if preamble is None else [sys.executable, "-c", preamble]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*python, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"} | env,
        cwd=Path(arguments[0]).parent if Path(arguments[0]).is_absolute() else ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs the script in this process, where Keras is imported already."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = ["train.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        code = script.main()
        return subprocess.CompletedProcess(argv, code, *capsys.readouterr())

    return run


def lines(run: subprocess.CompletedProcess[str], pattern: str, n_epochs: int) -> list[str]:
    """The lines on stdout, after checking that there is one an epoch, of the right form."""
    assert run.returncode == 0, run.stderr
    found = run.stdout.splitlines()
    assert len(found) == n_epochs
    for epoch, line in enumerate(found, 1):
        assert re.fullmatch(pattern, line), line
        assert line.startswith(f"epoch {epoch}/{n_epochs} ")
    return found


def loss(line: str) -> float:
    return float(line.split("loss: ")[1].split()[0])


def test_tf_data_learns(images: Path, here: Here) -> None:
    pytest.importorskip("tensorflow")
    run = here(images, "--loader", "tf", "--epochs", "2", "--batch-size", "16")
    assert "leaves out" not in run.stderr  # 80 of 80
    first, last = lines(run, VALIDATED + COST, 2)
    assert loss(last) < loss(first)


def test_sequence_in_bfloat16(images: Path, here: Here, request: pytest.FixtureRequest) -> None:
    keras = pytest.importorskip("keras")
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    run = here(images, "--loader", "keras", "--precision", "mixed_bfloat16", "--epochs", "1", "--image-size", "12x10")
    lines(run, VALIDATED + COST, 1)


def test_scenes_of_four_bands_and_sixteen_bits(tmp_path: Path, here: Here) -> None:
    """A class is a brighter band, by less than the noise of a pixel; the range of the numbers is learnt."""
    rng = np.random.default_rng(0)
    for name, band in (("farm", 3), ("sea", 1)):
        scene = rng.integers(20_000, 40_000, (64, 64, 4), np.uint16)
        scene[..., band] += 15_000
        (tmp_path / "src" / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "src" / name / "0.tif", scene, photometric="minisblack", planarconfig="contig")
    streamkit.convert(tmp_path / "src", tmp_path / "out", format="hdf5", tile="8x8", workers=1)
    field = streamkit.open(tmp_path / "out").schema["array"]
    assert (field.dtype, field.shape) == ("uint16", (8, 8, 4))
    run = here(tmp_path / "out", "--epochs", "2", "--batch-size", "8", "--model", "small_cnn", "--rate", "0.01")
    last = lines(run, rf"epoch (\d+)/(\d+) loss: {NUMBER} accuracy: {NUMBER} {COST}", 2)[-1]
    assert float(last.split("accuracy: ")[1].split()[0]) >= 0.95


def test_arrays_without_tensorflow_and_without_validation(tmp_path: Path) -> None:
    needs("jax")
    source = ROOT / "sample_data" / "series" / "train"
    streamkit.convert(source, tmp_path / "out", format="hdf5", workers=1)
    run = train(tmp_path / "out", "--epochs", "2", preamble=WITHOUT_TENSORFLOW, KERAS_BACKEND="jax")
    first, last = lines(run, rf"epoch (\d+)/(\d+) loss: {NUMBER} accuracy: {NUMBER} {COST}", 2)
    assert loss(last) < loss(first)
    refused = train(tmp_path / "out", "--loader", "tf", preamble=WITHOUT_TENSORFLOW, KERAS_BACKEND="jax")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "train: --loader tf needs TensorFlow, which is not installed. Pass --loader keras.\n"


@pytest.mark.slow
def test_a_run_goes_on_in_its_folder(images: Path, tmp_path: Path) -> None:
    """Killed at the end of epoch 2, before that is saved, it trains the same epoch 2 again."""
    pytest.importorskip("torch")
    options = ("--epochs", "3", "--accumulate", "2", "--patience", "9", "--class-weights", "--backend", "torch")
    arguments = (images, *options, "--resume", tmp_path / "run")
    broken = train(*arguments, preamble=DYING)
    assert broken.returncode == -signal.SIGKILL
    first, second = broken.stdout.splitlines()
    run = train(*arguments)
    assert run.returncode == 0, run.stderr
    again, last = run.stdout.splitlines()
    assert again.split(" images/s")[0] == second.split(" images/s")[0]
    assert first.startswith("epoch 1/3") and last.startswith("epoch 3/3")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.keras", "last.keras", "state.npz"]


@pytest.mark.slow
def test_every_technique_in_one_run(images: Path, tmp_path: Path) -> None:
    needs("jax")
    logs, page = tmp_path / "logs", tmp_path / "report.html"
    memory = ("--batch-size", "auto:32", "--memory-limit", "100MB", "--remat", "--norm", "group")
    smaller = ("--prune", "0.5", "--low-rank", "0.9", "--fine-tune", "1", "--quantize", "int8")
    out = ("--log-dir", logs, "--profile", "--report", page)
    network = ("--model", "small_cnn", "--conv", "separable", "--width", "0.25", "--image-size", "8x8")
    run = train(images, "--epochs", "3", *memory, *smaller, *out, *network, KERAS_BACKEND="jax")
    assert run.returncode == 0, run.stderr
    assert re.search(r"^batch size 32 x 1 = 32: a step takes \d+ MB of 100 MB$", run.stderr, re.M)
    found = run.stdout.splitlines()
    assert [line.split(": ")[0] for line in found[3:]] == ["trained", "low rank 0.9", "int8 (Keras)"]
    assert all(re.fullmatch(VALIDATED + COST, line) for line in found[:3])
    assert "int8: Keras leaves " in run.stderr
    for name in ("epochs.csv", "memory.csv"):
        head, *rows = list(csv.reader((logs / name).read_text().splitlines()))
        assert len(rows) >= 3 and all(len(row) == len(head) for row in rows)
    assert list((logs / "profile").rglob("*.xplane.pb")) and list(logs.rglob("events.out.tfevents.*"))
    text = page.read_text()
    assert "low rank 0.9" in text and "src=" not in text and "href=" not in text


@pytest.mark.slow
def test_ragged_texts_as_tokens(tmp_path: Path) -> None:
    """Half of the texts hold token 7 somewhere; they are padded batch by batch."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for number in range(240):
        with_seven = number % 2
        tokens = rng.choice([1, 2, 3, 4, 5, 6, 8, 9], size=rng.integers(3, 30)).astype(np.int64)
        if with_seven:
            tokens[rng.integers(len(tokens))] = 7
        file = tmp_path / "raw" / ("with" if with_seven else "without") / f"{number:03d}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, tokens)
    streamkit.convert(
        tmp_path / "raw", tmp_path / "out", format="tfrecord", split={"train": 0.8, "val": 0.2}, workers=1
    )
    run = train(tmp_path / "out", "--epochs", "6", "--batch-size", "16", "--rate", "0.01", "--backend", "torch")
    last = lines(run, VALIDATED + COST, 6)[-1]
    assert float(last.split("val_accuracy: ")[1].split()[0]) >= 0.95


def test_auto_tries_texts_as_long_as_the_longest(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 40 texts is 200 tokens long, and the others 5; the batch is sized for the one, on each of the devices."""
    from streamkit.training import batching

    for number in range(40):
        file = tmp_path / "raw" / "ab"[number % 2] / f"{number}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.ones(200 if number == 7 else 5, np.int64))
    streamkit.convert(tmp_path / "raw", tmp_path / "out", format="hdf5", workers=1)
    asked: list[Any] = []

    def largest_batch(build: Any, like: Any, update: int, limit: int | None, largest: int, remember: Any) -> Any:
        asked.append((like[0].shape, update, largest))
        raise streamkit.ResourceError("asked")

    monkeypatch.setattr(batching, "largest_batch", largest_batch)
    for devices, expected in (("1", (64, 32)), ("2", (32, 16))):
        run = here(tmp_path / "out", "--batch-size", "auto:64", "--accumulate", "2", "--devices", devices)
        assert (run.returncode, run.stderr) == (5, "train: asked\n")
        assert asked.pop() == ((1, 200), *expected)


def test_a_run_s_callbacks_make_keras_wait_for_no_step(images: Path, here: Here, tmp_path: Path, fits: Calls) -> None:
    """With checkpoints and logs, too: Keras asks each callback whether a thread may call it."""
    import keras

    run = here(
        images, "--epochs", "1", "--image-size", "8x8", "--width", "0.25", "--resume", tmp_path / "run",
        "--log-dir", tmp_path / "logs", "--patience", "3",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    callbacks = fits[0]["callbacks"]
    names = {type(callback).__name__ for callback in callbacks}
    assert names >= {"MemoryMonitor", "EpochReport", "ModelCheckpoint", "TensorBoard", "CSVLogger", "EarlyStopping"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras.src.callbacks.callback_list.backend.IS_THREAD_SAFE", True)
        assert keras.callbacks.CallbackList(callbacks)._async_train


# A run in its folder, and what comes after it


Calls = list[dict[str, Any]]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Arguments of every call of `streamkit.training.fit`, which is called all the same."""
    import streamkit.training
    from streamkit.training.loop import fit

    calls: Calls = []

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append(options | {"model": arguments[0]})
        return fit(*arguments, **options)

    monkeypatch.setattr(streamkit.training, "fit", spy, raising=False)
    return calls


@pytest.fixture(scope="module")
def held_back(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images to train on, and 32 in a split test, twice as many of one class as of the others."""
    folder = tmp_path_factory.mktemp("held")
    shutil.copytree(images.parent / "raw" / "train", folder / "raw" / "train")
    shutil.copytree(images.parent / "raw" / "val", folder / "raw" / "test")
    for file in sorted((folder / "raw" / "train" / "circle").iterdir())[:10]:
        file.unlink()
    streamkit.convert(folder / "raw", folder / "out", format="hdf5", workers=1)
    return folder / "out"


def test_a_run_goes_on_as_it_was_begun(held_back: Path, tmp_path: Path, here: Here, fits: Calls) -> None:
    import keras

    folder = tmp_path / "run"
    options = ("--image-size", "8x8", "--width", "0.25", "--batch-size", "8", "--class-weights", "--resume", folder)
    begun = (*options, "--accumulate", "3", "--prune", "0.5")
    run = here(held_back, *begun, "--epochs", "1", "--save-every", "2")
    assert run.returncode == 0, run.stderr
    epoch, row = run.stdout.splitlines()
    assert re.fullmatch(rf"epoch 1/1 loss: {NUMBER} accuracy: {NUMBER} {COST}", epoch)  # test is not looked at before
    test = streamkit.Loader(held_back, split="test", batch_size=64, shuffle=False, dtype="uint8", image_size=(8, 8))
    ((x, y),) = test
    right = (keras.models.load_model(folder / "last.keras").predict(x, verbose=0).argmax(-1) == y).mean()
    assert "an epoch leaves out 6 of 70 samples, others each time: they fill no batch of 8\n" in run.stderr
    assert row.startswith("trained: ") and f"accuracy {right:.4f}, " in row and row.endswith(", on test")
    assert fits[0]["every_steps"] == 2

    refused = here(held_back, *options, "--accumulate", "2", "--rate", "0.1", "--epochs", "2")
    assert (refused.returncode, refused.stdout) == (2, "")
    told = "--rate 0.003, now 0.1, --prune 0.5, now none, --accumulate 3, now 2, pruned between"
    assert f"this run was begun with {told}" in refused.stderr
    refused = here(held_back, *begun, "--epochs", "1", "--precision", "mixed_bfloat16", "--image-size", "12x12")
    assert '--image-size [8, 8], now [12, 12], --precision "float32", now "mixed_bfloat16"' in refused.stderr

    fits.clear()
    run = here(held_back, *begun, "--epochs", "2", "--low-rank", "0.5", "--fine-tune", "1")
    assert run.returncode == 0, run.stderr
    assert "was begun for 1 epochs, now 2: " in run.stderr
    assert [line.split(": ")[0] for line in run.stdout.splitlines()[1:]] == ["trained", "low rank 0.5"]
    weights = streamkit.open(held_back).class_weights()
    assert [call["class_weight"] for call in fits] == [weights, weights] and weights[0] > weights[1]
    assert fits[1]["run_dir"] == folder / "low-rank-0.5-after-2"  # after more epochs it is tuned again
    assert fits[1]["model"].optimizer.gradient_accumulation_steps == 3


def test_what_is_searched_is_trained(
    held_back: Path, images: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    import streamkit.training
    from streamkit.training import searching
    from streamkit.training.pruning import Prune
    from streamkit.training.state import FILE_NAME

    best = searching.Choice(rate=0.01, width=0.25, sparsity=0.5, begin=0.2, end=0.5)
    searches, fits = [], []

    class Enough(Exception):
        """Nothing more of the run is of interest."""

    def search(*arguments: Any, **options: Any) -> Any:
        searches.append(options)
        return best, [{"trial": "00", "score": 0.9}]

    def fit(model: Any, *arguments: Any, **options: Any) -> Any:
        fits.append(options)
        raise Enough

    monkeypatch.setattr(searching, "search", search)
    monkeypatch.setattr(streamkit.training, "fit", fit, raising=False)
    folder = tmp_path / "run"
    options = ("--tune", "--class-weights", "--image-size", "8x8", "--resume", folder)
    with pytest.raises(Enough):
        here(images, *options, "--epochs", "3")
    (searched,), (trained,) = searches, fits
    weights = streamkit.open(images).class_weights()
    assert searched["fit"] == {"class_weight": weights} and trained["class_weight"] == weights
    assert searched["facts"]["dataset"] == streamkit.open(images).dataset_id
    (prune,) = (callback for callback in trained["callbacks"] if isinstance(callback, Prune))
    assert prune.schedule == best.prune(3 * 80 // 32).schedule != searching.Choice(0.01, 0.25, 0.5).prune(6).schedule
    assert trained["settings"].items() >= {"--rate": 0.01, "--width": 0.25, "--prune": 0.5}.items()

    # Made longer, a run asks for the same search again, which has its answer.
    facts = json.dumps({"version": 1, "backend": keras.backend.backend(), "epochs": 3})
    folder.mkdir()
    np.savez(folder / FILE_NAME, facts=np.frombuffer(facts.encode(), np.uint8))
    with pytest.raises(Enough):
        here(images, *options, "--epochs", "5")
    assert searches[1].items() == searched.items()


def test_training_that_would_never_update_is_refused(images: Path, here: Here) -> None:
    for options in (("--epochs", "1", "--accumulate", "3"), ("--accumulate", "11", "--low-rank", "0.9")):
        run = here(images, "--image-size", "8x8", *options)
        assert (run.returncode, run.stdout) == (2, "")
        assert "steps are fewer than the" in run.stderr


def test_damage_keeps_its_exit_code(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(images, out)
    (out / "manifest.json").unlink()
    run = train(out)
    assert (run.returncode, run.stdout) == (4, "")
    assert run.stderr.startswith(f"train: {out}: ")
    assert run.stderr.count("\n") == 1


def test_damage_is_found_inside_an_error_of_tensorflow(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    from streamkit.training.failures import streamkit_error

    out = tmp_path / "out"
    shutil.copytree(images, out)
    shard = out / "train-00000.tfrecord"
    shard.write_bytes(bytes(byte ^ 0xFF for byte in shard.read_bytes()))
    with pytest.raises(Exception, match="crc32c") as caught:
        next(iter(streamkit.dataset(out, split="train")))
    found = streamkit_error(caught.value)
    assert isinstance(found, streamkit.DamagedError)
    assert re.fullmatch(rf"{re.escape(str(shard))} record \d+ \(.*\): crc32c .*", str(found))
    assert streamkit_error(ValueError("KeyError: nothing of streamkit's")) is None


def test_what_cannot_be_trained_is_refused_in_one_line(
    images: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras
    from PIL import Image

    def refusal(out: Path, *options: str) -> str:
        run = here(out, *options)
        assert (run.returncode, run.stdout) == (2, "")
        (line,) = run.stderr.splitlines()
        return line

    assert refusal(tmp_path / "absent").startswith(f"train: {tmp_path / 'absent'}: this path does not exist")

    for name, side in (("a", 20), ("b", 30)):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        Image.new("RGB", (side, side)).save(tmp_path / "mixed" / name / f"{side}.png")
    streamkit.convert(tmp_path / "mixed", tmp_path / "mixed-out", format="tfrecord", workers=1)
    line = refusal(tmp_path / "mixed-out")
    assert line == "train: images differ in size, so they do not stack. Pass --image-size HxW."

    np.save(tmp_path / "x.npy", np.zeros((10, 8, 2), np.float32))
    streamkit.convert(tmp_path / "x.npy", tmp_path / "unlabelled", format="tfrecord", workers=1)
    assert refusal(tmp_path / "unlabelled").startswith("train: this dataset has no label")

    np.savez(tmp_path / "films.npz", array=np.zeros((10, 2, 4, 4, 2), np.float32), label=np.arange(10) % 2)
    streamkit.convert(tmp_path / "films.npz", tmp_path / "films", format="tfrecord", workers=1)
    assert refusal(tmp_path / "films").startswith("train: arrays have shape (2, 4, 4, 2), expected")

    shutil.rmtree(tmp_path / "mixed" / "b")
    streamkit.convert(tmp_path / "mixed", tmp_path / "one", format="tfrecord", workers=1)
    line = refusal(tmp_path / "one")
    assert line == "train: all samples are of the class 'a', so there is nothing to learn"

    series = ROOT / "sample_data" / "series" / "train"
    streamkit.convert(series, tmp_path / "series", format="tfrecord", workers=1)
    assert refusal(tmp_path / "series", "--image-size", "32x32").startswith("train: --image-size is for images")
    for size in ((), ("--batch-size", "auto")):  # which would try the network in another process
        assert "resnet takes images" in refusal(tmp_path / "series", "--model", "resnet", *size)
        assert "keeps moving averages" in refusal(tmp_path / "series", "--remat", *size)
    assert "only images are augmented" in refusal(tmp_path / "series", "--augment")
    line = refusal(images, "--devices", "2", "--batch-size", "33")
    assert line == "train: a batch of 33 samples does not divide among 2 devices. Take 32 or 34."
    assert "batch of 255 samples" in refusal(images, "--devices", "2", "--batch-size", "auto:255")
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    line = refusal(tmp_path / "series", "--devices", "2")
    assert line.startswith("train: 2 devices: Keras on PyTorch trains on one. ")


# Two devices that XLA, or TensorFlow, makes of one CPU; tells how every training batch lies on them.
DIVIDED = """
import os, runpy, sys
if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from streamkit.training.timing import EpochReport
count = EpochReport._n_samples
def n_samples(self, batch):
    x = keras.tree.flatten(batch)[0]
    where = [shard.data for shard in getattr(x, "addressable_shards", ())]
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        where = self._strategy.experimental_local_results(x)
    print("parts", *(len(part) for part in where), file=sys.stderr)
    return count(self, batch)
EpochReport._n_samples = n_samples
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_two_devices_share_every_batch_and_train_as_one(images: Path, tmp_path: Path, backend: str) -> None:
    """Every global batch is the same, so the epochs' figures are; of an odd number of samples to validate on one is left.

    TensorFlow's replicas draw what Dropout leaves out each for itself, so there they are alike only; test_replicas.py
    compares weights without it.
    """
    pytest.importorskip(backend)
    shutil.copytree(images.parent / "raw", tmp_path / "raw")
    next((tmp_path / "raw" / "val" / "circle").iterdir()).unlink()
    streamkit.convert(tmp_path / "raw", tmp_path / "out", format="tfrecord", workers=1)
    options = ("--epochs", "2", "--batch-size", "8", "--norm", "group", "--model", "small_cnn", "--width", "0.25")
    env = {"KERAS_BACKEND": backend, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    more = ("--devices", "2", "--low-rank", "0.9", "--fine-tune", "1", "--resume", tmp_path / "two")
    one = train(tmp_path / "out", *options, "--resume", tmp_path / "one", **env)
    two = train(tmp_path / "out", *options, *more, preamble=DIVIDED, **env)
    assert two.returncode == 0, two.stderr[-3000:]
    *found, trained, low_rank = two.stdout.splitlines()
    for line, other in zip(lines(one, VALIDATED + COST, 2), found, strict=True):
        assert re.fullmatch(VALIDATED + COST, other)
        assert loss(other) == pytest.approx(loss(line), rel=1e-3 if backend == "jax" else 0.2)
        assert loss(other.split("val_")[1]) == pytest.approx(loss(line.split("val_")[1]), rel=0.2)
    assert trained.startswith("trained: ") and low_rank.startswith("low rank 0.9: ")
    parts = [line for line in two.stderr.splitlines() if line.startswith("parts")]
    assert parts == ["parts 4 4"] * 2 * 10
    assert "val[:30] instead of val, so that 2 devices share every batch" in two.stderr


def test_one_logit_too_is_judged_by_the_class_that_it_says() -> None:
    """By its name alone, Keras would make "accuracy" a binary one, which compares the logit with the class."""
    from streamkit.training.job import Job, built
    from streamkit.training.networks import Design

    model = built(Job(Design("small_cnn", width=0.25), (8, 2), "float32", 1, rate=0.1, n_updates=1), accumulate=1)
    model.layers[-1].bias.assign([5.0])
    x = np.random.default_rng(0).normal(size=(8, 8, 2)).astype(np.float32)
    assert model.evaluate(x, np.zeros(8, np.int32), verbose=0, return_dict=True)["accuracy"] == 1.0


def test_what_keras_leaves_uncompiled_on_jax_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from streamkit.training.job import compiled
    from streamkit.training.networks import Design, network
    from streamkit.training.refusing import warn_of_eager_steps

    zoomed = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.RandomZoom(0.1), keras.layers.Flatten()])
    warn_of_eager_steps(zoomed)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.warns(UserWarning, match=r"sequential\w* is not compiled on JAX .* because of random_zoom"):
        warn_of_eager_steps(zoomed)
    augmented = network(Design("small_cnn", augment=True), (64, 64, 3), "uint8", 2)
    for model in (augmented, keras.models.clone_model(augmented)):
        assert any("random_zoom" in layer.name for layer in model.layers)
        warn_of_eager_steps(compiled(model, 1e-3, 10, 1))


@pytest.mark.parametrize("side, augment, expected", [(64, None, 3), (63, None, 0), (64, False, 0), (16, True, 3)])
def test_large_images_are_augmented_unless_told_otherwise(side: int, augment: bool | None, expected: int) -> None:
    from streamkit.training.networks import Design, network

    model = network(Design("separable_cnn", width=0.25, augment=augment), (side, side, 3), "uint8", 2)
    assert sum(type(layer).__name__.startswith("Random") for layer in model.layers) == expected


@pytest.mark.parametrize(
    "text, reason",
    [
        ("--profile", "needs --log-dir"),
        ("--tune", "needs --resume or --log-dir"),
        ("--tune --resume run --prune 0.5", "chooses how much to prune"),
        ("--save-every 5", "needs --resume"),
        ("--quantize tflite --model lstm", "no recurrent layer"),
        ("--memory-limit 1GB", "for --batch-size auto"),
        ("--batch-size auto:", "not a whole number"),
        ("--image-size 96", "not HxW"),
        ("--prune 1", "not a number between 0 and 1"),
    ],
)
def test_flags_that_contradict_are_refused(text: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    from streamkit.training.flags import parse_arguments

    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["out", *text.split()])
    assert reason in capsys.readouterr().err


def test_what_could_not_be_written_is_told_before_training(images: Path, tmp_path: Path, here: Here) -> None:
    before = sorted(images.iterdir())
    (tmp_path / "file").touch()
    report = tmp_path / "none" / "x.html"
    for option, path, reason in (
        ("--report", report, f"there is no folder {tmp_path / 'none'}. Make it, or write elsewhere."),
        ("--report", tmp_path, "this is a folder, expected a file to write. Name a file in it."),
        ("--resume", images, "a dataset lies here, and a run is kept in a folder of its own. Name another."),
        ("--log-dir", images, "a dataset lies here, and a run is kept in a folder of its own. Name another."),
        ("--resume", tmp_path / "file", "this is a file, and a run is kept in a folder. Name another."),
    ):
        run = here(images, option, path)
        assert (run.returncode, run.stdout, run.stderr) == (2, "", f"train: {path}: {reason}\n")
    assert sorted(images.iterdir()) == before


def test_mistakes_are_told_before_a_framework_is_loaded(images: Path) -> None:
    run = train(images, "--image-size", "8x8", "--loader", "tf", preamble=WITHOUT_FRAMEWORKS)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "train: --loader tf needs TensorFlow, which is not installed. Pass --loader keras.\n"


@pytest.mark.parametrize(
    "names, expected",
    [
        (["train", "val", "test"], (("train", "val"), "test")),
        (["train", "val"], (("train", "val"), "val")),
        (["train", "test"], (("train", None), "test")),
        (["all"], (("all", None), "all")),
    ],
)
def test_what_is_judged_by_is_not_looked_at_before(images: Path, names: list[str], expected: Any) -> None:
    from streamkit.training.task import task_of

    manifest = streamkit.open(images)
    splits = {name: manifest.split("val") for name in names}
    task = task_of(SimpleNamespace(schema=manifest.schema, splits=splits), (8, 8))
    assert (task.splits, task.judged) == expected


def test_help_shows_an_example() -> None:
    run = train("--help")
    assert run.returncode == 0
    assert "example: train.py" in run.stdout


@pytest.mark.parametrize("fetched", ["in the step", "before the step"])
@pytest.mark.parametrize("fetching, computing, share", [(1, 3, 0.25), (0, 4, 0.0), (4, 0, 1.0)])
def test_data_wait_is_the_share_of_fetching(
    monkeypatch: pytest.MonkeyPatch, fetched: str, fetching: int, computing: int, share: float
) -> None:
    """On a clock of its own: TensorFlow and JAX fetch inside the train function, PyTorch before it."""
    from streamkit.training import timing

    clock = 0.0

    def spend(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def batches() -> Any:
        while True:
            spend(fetching)
            yield np.zeros((8, 4)), np.zeros((8, 1))

    def step(source: Any) -> None:
        next(iter(source))
        spend(computing)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    report, source = timing.EpochReport(), batches()
    report.set_params({"epochs": 1})
    report.set_model(SimpleNamespace(train_function=step, steps_per_execution=1))
    report.on_train_begin()
    report.on_epoch_begin(0)
    for number in range(5):
        ready = source if fetched == "in the step" else [next(source)]
        report.on_train_batch_begin(number)
        report.model.train_function(ready)
        report.on_train_batch_end(number)
    report.on_epoch_end(0)
    assert report.data_wait == share
    assert report.images_per_second == 5 * 8 / (5 * 4)
    report.on_train_end()
    assert report.model.train_function is step


def test_a_fetch_that_the_device_does_not_wait_for_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are begun as soon as their batch is there, after 1, 2 and 3 s, and computed in turn, 3 s each."""
    from streamkit.training import timing

    clock = 0.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)

    def at(seconds: float, value: Any = None) -> Any:
        nonlocal clock
        clock = seconds
        return value

    batch = np.zeros((8, 4)), np.zeros((8, 1))
    source = (at(seconds, batch) for seconds in (1.0, 2.0, 3.0))
    report = timing.EpochReport()
    report.set_params({"epochs": 1})
    report.set_model(SimpleNamespace(train_function=next, steps_per_execution=1))
    report.on_train_begin()
    report.on_epoch_begin(0)
    for number in range(3):
        report.on_train_batch_begin(number)
        report.model.train_function(source)
    for number in (0, 2, 1):  # Keras' threads
        at(4.0 + 3 * number)
        report.on_train_batch_end(number)
    report.on_epoch_end(0)
    assert (report.data_wait, report.step_s) == (1 / 10, 10 / 3)


def test_keras_waits_for_no_step_because_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from streamkit.training.monitor import MemoryMonitor
    from streamkit.training.timing import EpochReport

    class Computing:
        """A metric that is there once the device has computed it."""

        done = threading.Event()

        def __float__(self) -> float:
            assert self.done.wait(60)
            return 1.0

    # As on JAX and PyTorch. On TensorFlow Keras waits at every step, whatever the callbacks are.
    monkeypatch.setattr("keras.src.callbacks.callback_list.backend.IS_THREAD_SAFE", True)
    report = EpochReport()
    model = SimpleNamespace(train_function=None, steps_per_execution=1)
    callbacks = keras.callbacks.CallbackList([MemoryMonitor(), report], model=model, epochs=1)
    callbacks.on_train_begin()
    report.on_epoch_begin(0)
    for number in range(3):
        callbacks.on_train_batch_end(number, {"loss": Computing()})
    assert report._ends == []
    Computing.done.set()
    callbacks.on_epoch_end(0, {})
    assert len(report._ends) == 3
    callbacks.on_train_end()


def test_data_wait_counts_the_time_that_batches_took(capsys: pytest.CaptureFixture[str]) -> None:
    seconds_a_batch, width = 0.05, 4
    import keras

    from streamkit.training.timing import EpochReport

    class Slow(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Any:
            time.sleep(seconds_a_batch)
            return np.zeros((512, width), np.float32), np.zeros((512, 1), np.float32)

    model = keras.Sequential([*(keras.layers.Dense(width) for _ in range(4)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    report = EpochReport()
    model.fit(Slow(), epochs=2, verbose=0, shuffle=False, callbacks=[report])
    # Only what holds on any machine: at least the sleeps were waited for, and no more than the epoch took.
    assert report.data_wait * report.step_s >= 0.99 * seconds_a_batch
    assert 0 < report.data_wait <= 1
    assert report.images_per_second < 512 / seconds_a_batch
    assert len(capsys.readouterr().out.splitlines()) == 2
