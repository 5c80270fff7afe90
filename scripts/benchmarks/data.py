"""The data of the tasks: real files from a folder where there is one, else drawn; and how contenders read the sources.

Only `make` needs Pillow and h5py, and runs beside streamkit; the rest serves every contender with NumPy alone.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

N_CLASSES = 10
SIZES = {
    "photos": 400,
    "more-photos": 2_000,
    "many-photos": 16_000,
    "tiny": 10_000,
    "many-tiny": 50_000,
    "raw": 50_000,
    "gzip-64": 50_000,
    "gzip-guess": 50_000,
    "rows": 20_000,
    "rows-5000": 5_000,
    "rows-20000": 20_000,
    "rows-80000": 80_000,
    "million": 1_000_000,
}


def files(source: Path) -> list[tuple[Path, int]]:
    """Every picture with its class number; classes sorted by name."""
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    return [(file, i) for i, folder in enumerate(classes) for file in sorted(folder.iterdir())]


def arrays(source: Path) -> tuple[Any, Any]:
    """x (N, ...), mapped, and y int64 (N,)."""
    return np.load(source / "x.npy", mmap_mode="r"), np.load(source / "y.npy")


def has_pictures(source: Path) -> bool:
    return not any(source.glob("x.*"))


def classes(source: Path) -> list[int]:
    """How many samples each class has: what an epoch must deliver."""
    labels = [label for _, label in files(source)] if has_pictures(source) else np.load(source / "y.npy")
    return np.bincount(labels).tolist()


def make(name: str, data: Path | None, work: Path, scale: float) -> Path:
    """The folder of one data set, made at the first call."""
    target = work / "data" / name
    if target.exists():
        return target
    n = max(300, int(SIZES[name] * scale))
    parts = target.with_name(f"{name}.part")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    if name == "photos":
        _copy(data / "photos", parts, n) if data and (data / "photos").exists() else _draw(parts, n, 400, 533)
    elif name == "tiny":
        if data and (data / "small_jpegs.tar").exists():
            shutil.unpack_archive(data / "small_jpegs.tar", parts / "unpacked")
            _copy(next(p for p in (parts / "unpacked").rglob("*.jpg")).parents[1], parts, n)
            shutil.rmtree(parts / "unpacked")
        else:
            _draw(parts, n, 32, 32)
    elif name.startswith(("more-", "many-")):
        _repeat(make(name.partition("-")[2], data, work, scale), parts, n)
    else:
        _arrays(name, parts, n, lambda: make("tiny", data, work, scale))
    parts.rename(target)
    return target


def _copy(source: Path, target: Path, n: int) -> None:
    found = files(source)
    for file, _ in found[:: max(1, len(found) // n)][:n]:
        (target / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, target / file.parent.name)


def _repeat(source: Path, target: Path, n: int) -> None:
    found = files(source)
    for i in range(n):
        file, _ = found[i % len(found)]
        (target / file.parent.name).mkdir(exist_ok=True)
        os.link(file, target / file.parent.name / f"{i // len(found):03d}_{file.name}")


def _draw(target: Path, n: int, height: int, width: int) -> None:
    """Smooth noise: JPEGs of about the size of real ones."""
    import PIL.Image

    rng = np.random.default_rng(0)
    for i in range(n):
        folder = target / f"class{i % N_CLASSES}"
        folder.mkdir(exist_ok=True)
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        smooth = coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)
        smooth.save(folder / f"{i:05d}.jpg", quality=90)


def _arrays(name: str, target: Path, n: int, tiny: Any) -> None:
    labels = np.arange(n) * N_CLASSES // n  # sorted by class, so that a poor shuffle shows
    np.save(target / "y.npy", labels)
    if name.startswith("gzip"):
        _gzip(target, _pixels(tiny(), n), labels, name == "gzip-guess")
    elif name == "raw":
        np.save(target / "x.npy", _pixels(tiny(), n))
    else:
        shape, dtype = ((32, 32), np.uint8) if name == "million" else ((64, 64), np.float32)
        x = np.lib.format.open_memmap(target / "x.npy", "w+", dtype, (n, *shape))
        rng = np.random.default_rng(0)
        for start in range(0, n, 5_000):
            part = x[start : start + 5_000]
            part[:] = rng.random(part.shape, np.float32) if dtype == np.float32 else rng.integers(0, 256, part.shape)


def _pixels(tiny: Path, n: int) -> Any:
    """n real pictures (32, 32, 3), repeated as need be."""
    import PIL.Image

    pictures = np.stack([np.asarray(PIL.Image.open(file).convert("RGB")) for file, _ in files(tiny)[:n]])
    return pictures[np.random.default_rng(0).permutation(n) % len(pictures)]


def _gzip(target: Path, x: Any, y: Any, guess: bool) -> None:
    import h5py

    with h5py.File(target / "x.h5", "w") as file:
        chunks = True if guess else (64, *x.shape[1:])
        file.create_dataset("image", data=x, chunks=chunks, compression="gzip", compression_opts=4)
        file.create_dataset("label", data=y)
