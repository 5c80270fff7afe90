"""Fixtures and settings of the whole suite: small raw sources, made once, and hypothesis without chance or clock."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import hypothesis
import numpy as np
import pytest
from converting import class_folders, encoded, noise, picture, rotated, write_files
from harming import make_all, make_sources
from serving import AWS, s3_server

from streamkit.remote import connection
from streamkit.training import comparing

# The same examples on every run and machine; nothing is stored between runs; a slow machine is no failure.
hypothesis.settings.register_profile(
    "streamkit",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("streamkit")


def pytest_configure() -> None:
    """For tests and doctests alike: what streamkit notes among a user's own files goes to a folder of the run."""
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="streamkit-state-")
    comparing._TIMED_S = 0.05  # a row's images a second may be rough here


def pytest_collection_finish() -> None:
    """Keep the million objects of the frameworks' modules out of every later collection; each takes half a second else."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ.pop("XDG_STATE_HOME"), ignore_errors=True)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """`streamkit.cli.main` takes over SIGTERM, which a test run must not keep."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures: colour JPEG, colour PNG, gray JPEG, gray PNG and two that EXIF turns on their side."""
    return write_files(
        tmp_path_factory.mktemp("photos"),
        {
            "cat/colour.jpg": encoded(picture(20, 32, seed=1), "JPEG", quality=90),
            "cat/colour.png": encoded(noise(18, 14, seed=2)),
            "cat/gray.jpg": encoded(picture(24, 20, 1, seed=3), "JPEG"),
            "cat/turned.jpg": rotated(picture(20, 30, seed=4), 6),
            "dog/big.jpg": encoded(picture(60, 48, seed=5), "JPEG", quality=95),
            "dog/gray.png": encoded(noise(10, 11, 1, seed=6)),
            "dog/mirrored.jpg": rotated(picture(22, 30, seed=7), 5),
            "dog/small.jpg": encoded(picture(9, 7, seed=8), "JPEG"),
        },
    )


@pytest.fixture(scope="session")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small JPEG files in 3 classes, for what needs several shards."""
    return class_folders(tmp_path_factory.mktemp("many"), {"bird": 14, "cat": 30, "dog": 16})


@pytest.fixture(scope="session")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 float32 .npy files of shape (0 to 23, 3) in two class folders."""
    root = tmp_path_factory.mktemp("ragged")
    for i in range(24):
        folder = root / ("walk" if i % 2 else "run")
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{i:02d}.npy", np.random.default_rng(i).normal(size=(i, 3)).astype(np.float32))
    return root


@pytest.fixture(scope="session")
def ragged_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 int16 .npy files of which two axes vary: (i, 12 - i, 2)."""
    root = tmp_path_factory.mktemp("ragged_twice")
    for i in range(12):
        np.save(root / f"{i:02d}.npy", np.arange(i * (12 - i) * 2, dtype=np.int16).reshape(i, 12 - i, 2))
    return root


@pytest.fixture(scope="session")
def table() -> dict[str, np.ndarray]:
    """The arrays of the table files: 50 rows of a payload that shrinks and one that does not, a label, two columns."""
    rng = np.random.default_rng(0)
    return {
        "signal": np.cumsum(rng.integers(-1, 2, (50, 40, 2)), axis=1).astype(np.float32),
        "spectrum": rng.normal(size=(50, 7)),
        "y": rng.integers(0, 4, 50),
        "weight": rng.random(50).astype(np.float32),
        "day": np.arange(50, dtype=np.int16) - 25,
    }


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory, table: dict[str, np.ndarray]) -> Path:
    """The same table as stored and deflated .npz, as contiguous and chunked .h5; and rows.npy, its `signal` alone."""
    root = tmp_path_factory.mktemp("tables")
    np.savez(root / "stored.npz", **table)
    np.savez_compressed(root / "deflated.npz", **table)
    with h5py.File(root / "contiguous.h5", "w") as file:
        for name, values in table.items():
            file[name] = values
    with h5py.File(root / "chunked.h5", "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values, chunks=(8, *values.shape[1:]), compression="gzip", shuffle=True)
    np.save(root / "rows.npy", table["signal"])
    return root


@pytest.fixture(scope="session")
def harm_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the datasets that get harmed are made of; see harming.py."""
    return make_sources(tmp_path_factory.mktemp("harm-sources"))


@pytest.fixture(scope="session")
def datasets(harm_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of every format and codec, by the names of harming.KINDS."""
    return make_all(tmp_path_factory.mktemp("harm"), harm_sources)


@pytest.fixture
def copied(datasets: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a private copy of one of them, to be harmed."""
    return lambda name: Path(shutil.copytree(datasets / name, tmp_path / name))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of an S3 server with the bucket "data"; the environment names it and holds credentials, as a user's does."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # of another module's server
    connection._open.clear()
    facts = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (AWS | facts).items():
            patch.setenv(name, value)
        with s3_server() as url:
            patch.setenv("AWS_ENDPOINT_URL", url)
            yield url
