"""What is measured: each task's data, contract and targets. Nothing here runs anything.

The contract of a reading task: every sample once an epoch in full shuffle, batches (x, y) of `batch_size`, one of them
shorter, x of `shape` and `dtype`, y the class numbers. Pictures are JPEG files in class folders; arrays are x.npy and
y.npy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Way(NamedTuple):
    """One way in which a contender does a task.

    `settings` is what the table says about it; `form` what its `write` has to make first, None where it reads the source
    itself; `n_batches` ends an epoch early where a whole one would take hours; `note` says why it cannot run now.
    """

    name: str
    settings: str
    form: str | None = "data"
    n_batches: int | None = None
    note: str = ""


class Target(NamedTuple):
    """Ways of streamkit that begin with `ours` shall cost at most 1/factor of what `theirs` costs.

    `theirs` is "CONTENDER", "CONTENDER: WAY", or "peers": the best of them. `by` is cpu, wall or memory. With a `unit`,
    `factor` is an absolute bound instead: "per CPU-s" at least, "s" and "MiB" at most.
    """

    ours: str
    theirs: str
    factor: float
    by: str = "cpu"
    unit: str = ""


@dataclass(frozen=True)
class Task:
    """One line of the comparison. `kind` is read, write (whole processes) or start (process start to first batch)."""

    name: str
    title: str
    kind: str
    data: str
    targets: tuple[Target, ...] = ()
    batch_size: int = 256
    shape: tuple[int, ...] = ()
    dtype: str = "uint8"
    augment: bool = False  # random resized crop (8 to 100 % of the area, ratio 3:4 to 4:3) and flip
    figure: str = "cpu"  # what the table leads with: cpu, wall or memory


_PHOTO = {"data": "photos", "batch_size": 64, "shape": (224, 224, 3)}
_LONG = {"data": "more-photos"}  # an epoch whose beginning and end are not most of it
_TINY = {"shape": (32, 32, 3)}
_ROW = {"data": "rows", "shape": (64, 64), "dtype": "float32"}


def _read(name: str, title: str, *targets: Target, **contract: object) -> Task:
    return Task(name, title, "read", targets=targets, **contract)  # type: ignore[arg-type]


def _write(name: str, title: str, data: str, *targets: Target, **contract: object) -> Task:
    return Task(name, title, "write", data, targets, **contract)  # type: ignore[arg-type]


def _cores(*ways: str) -> tuple[Target, ...]:
    return tuple(Target(f"{way}2 ", f"streamkit: {way}1 ", 1.85, "wall") for way in ways)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # streamkit beside the machine's own limits
        _write(
            "convert-small",
            "convert 10,000 tiny JPEGs, bytes kept, one worker",
            "tiny",
            Target("check decode", "", 6000, unit="per CPU-s"),
        ),
        _read("read-small", "tiny JPEGs, uint8", Target("NumPy", "limits", 0.65), data="tiny", **_TINY),
        _read(
            "read-small-float",
            "tiny JPEGs, float32",
            Target("NumPy", "limits", 0.65),
            data="tiny",
            dtype="float32",
            shape=(32, 32, 3),
        ),
        _read("rows", "float32 (64, 64), NumPy", Target("NumPy", "limits", 0.7), **_ROW),
        _read("rows-tf", "float32 (64, 64), tf.data", Target("tf.data", "limits", 0.3), **_ROW),
        _read("photos", "photos beside the bare decode", Target("", "limits", 0.8), **_PHOTO),
        *(
            _read(
                f"memory-{n}",
                f"memory of reading {n:,} rows of 16 KiB",
                figure="memory",
                **_ROW | {"data": f"rows-{n}"},
            )
            for n in (5_000, 20_000, 80_000)
        ),
        # streamkit beside its peers
        _write(
            "W1",
            "convert photos, bytes kept",
            "many-photos",
            Target("2 workers", "limits", 0.8),
            Target("2 workers", "peers", 1, "wall"),
        ),
        _write(
            "W2",
            "convert 50,000 tiny JPEGs, bytes kept",
            "many-tiny",
            Target("2 workers", "peers", 1, "wall"),
            Target("2 workers", "peers", 0.7),
        ),
        _write("W3", "convert 20,000 float32 (64, 64), uncompressed", "rows", Target("2 workers", "h5py", 1)),
        _read("R1", "photos to 224x224", Target("", "limits", 0.92), Target("", "peers", 1), **_PHOTO),
        _read("R1s", "photos after --resize 256", Target("resized", "streamkit: as they are", 2.8), **_PHOTO),
        _read(
            "R2",
            "photos, random resized crop and flip",
            Target("", "peers", 1),
            Target("NumPy", "streamkit: plain NumPy", 1),
            augment=True,
            **_PHOTO,
        ),
        _read("R3", "tiny JPEGs", Target("NumPy", "ffcv", 1), data="tiny", **_TINY),
        _read(
            "R3b",
            "32x32x3 stored raw",
            Target("NumPy", "limits", 0.5),
            Target("NumPy", "ffcv", 2),
            data="raw",
            **_TINY,
        ),
        _read(
            "R4",
            "float32 (64, 64)",
            Target("NumPy", "ffcv", 1.6),
            Target("NumPy", "limits", 0.85),
            Target("tf.data", "ffcv", 1),
            Target("tf.data", "tfdata", 5),
            **_ROW,
        ),
        *(
            _read(
                name,
                f"gzip-4 HDF5 of others, {chunks}",
                Target("", "h5py: sorted fancy indexing", 10),
                Target("", "limits", 0.7),
                data=data,
                **_TINY,
            )
            for name, chunks, data in (
                ("R5", "chunks of 64 samples", "gzip-64"),
                ("R5-guess", "h5py's own chunks", "gzip-guess"),
            )
        ),
        Task(
            "R6",
            "process start to first batch of photos",
            "start",
            targets=(
                Target("NumPy", "", 0.66, "wall", "s"),
                Target("NumPy", "grain", 1, "wall"),
                Target("tf.data", "limits: import tensorflow + 0.4 s", 1, "wall"),
            ),
            figure="wall",
            **_PHOTO,
        ),
        _read(
            "R7",
            "memory of a full shuffle of 1 million rows of 1 KiB",
            Target("NumPy", "tfdata", 10, "memory"),
            data="million",
            shape=(32, 32),
            figure="memory",
        ),
        _write(
            "cores-W",
            "two workers beside one: convert photos",
            "many-photos",
            *_cores("check decode, ", "check header, "),
            figure="wall",
        ),
        _read("cores-R", "two threads beside one: photos", *_cores(""), figure="wall", **_PHOTO | _LONG),
    )
}


def chosen(names: str) -> list[str]:
    """Tasks of a comma-separated list; "memory" also means memory-5000 and the like, "all" everything.

    >>> chosen("R1,memory")
    ['R1', 'memory-5000', 'memory-20000', 'memory-80000']
    """
    every = [*TASKS, "conversion", "remote", "streaming", "growth"]
    if names == "all":
        return every
    found = []
    for name in names.split(","):
        matching = [task for task in every if task == name or task.startswith(f"{name}-")]
        if not matching:
            raise SystemExit(f"there is no task {name!r}; there are {', '.join(every)}")
        found += matching
    return list(dict.fromkeys(found))
