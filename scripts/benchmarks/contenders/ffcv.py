"""FFCV: its own file format, pages and compiled pipelines. It re-encodes pictures when it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import arrays, files, has_pictures
from benchmarks.tasks import Task, Way

REQUIREMENTS: tuple[str, ...] = (
    "torch==2.13.0",
    "numba==0.60.0",
    "numpy==2.0.2",
    "opencv-python-headless==4.11.0.86",
    "pillow==12.0.0",
    "simplejpeg==1.9.0",
    "tqdm",
    "psutil",
    "pandas<3",
    "setuptools<81",
    "wheel",
)
BUILT = ("ffcv==1.0.2",)  # compiled against Debian's libraries and what is installed above
APT = ("libopencv-dev", "libturbojpeg0-dev", "pkg-config")


def ways(task: Task) -> list[Way]:
    if task.kind == "write":
        return [Way("DatasetWriter", "two workers")] if task.name in ("W1", "W2", "W3") else []
    if task.name not in ("R1", "R2", "R3", "R3b", "R4", "R6"):
        return []
    decoder = {
        "R1": "pictures re-encoded as JPEG, centre crop and resize",
        "R2": "pictures re-encoded as JPEG",
        "R3": "pictures re-encoded as JPEG",
        "R6": "pictures re-encoded as JPEG, centre crop and resize",
    }.get(task.name, "NDArrayField")
    return [Way("Loader", f"RANDOM order, OS cache, two threads, {decoder}")]


def load() -> None:
    import ffcv

    assert ffcv


class _Pictures:
    def __init__(self, source: Path) -> None:
        self.files = files(source)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        import simplejpeg

        file, label = self.files[i]
        return simplejpeg.decode_jpeg(file.read_bytes(), "RGB"), label


class _Arrays:
    def __init__(self, source: Path) -> None:
        self.x, self.y = arrays(source)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return np.array(self.x[i]), int(self.y[i])


def write(task: Task, way: Way, source: Path, out: Path) -> None:
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    if has_pictures(source):
        field, samples = RGBImageField(write_mode="jpg"), _Pictures(source)
    else:
        samples = _Arrays(source)
        field = NDArrayField(samples.x.dtype, samples.x.shape[1:])
    DatasetWriter(str(out), {"x": field, "y": IntField()}, num_workers=2).from_indexed_dataset(samples)


def open(task: Task, way: Way, source: Path, out: Path) -> Callable[[], Iterable[Any]]:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.fields.rgb_image import (
        CenterCropRGBImageDecoder,
        RandomResizedCropRGBImageDecoder,
        SimpleRGBImageDecoder,
    )
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip

    if task.augment:
        decoders: list[Any] = [RandomResizedCropRGBImageDecoder(task.shape[:2]), RandomHorizontalFlip()]
    elif task.data == "photos":
        decoders = [CenterCropRGBImageDecoder(task.shape[:2], ratio=1)]
    else:
        decoders = [SimpleRGBImageDecoder()] if has_pictures(source) else [NDArrayDecoder()]
    loader = Loader(
        str(out),
        batch_size=task.batch_size,
        num_workers=2,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={"x": decoders, "y": [IntDecoder()]},
    )
    return lambda: loader
