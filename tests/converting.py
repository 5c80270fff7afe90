"""What the converting side's tests share: small raw files, and ways to read a dataset without streamkit's reader."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from crc32c import crc32c

from streamkit.manifest import Manifest

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("tfrecord", "hdf5")
both = pytest.mark.parametrize("format", FORMATS)
# For what takes seconds and runs the same code: the second format by `-m slow`.
one_quickly = pytest.mark.parametrize("format", ["tfrecord", pytest.param("hdf5", marks=pytest.mark.slow)])
EXTENSION = {"tfrecord": "tfrecord", "hdf5": "h5"}
EXIF_ORIENTATION = 0x0112


# Raw files


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth coloured waves, uint8 (height, width, channels): JPEG keeps them well, and no two seeds are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = [
        np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + rng.uniform(0, 6)) * 110 + 128 for _ in range(channels)
    ]
    return np.stack(planes, axis=2).astype(np.uint8)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels, uint8 (height, width, channels): they do not compress."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """A picture file made by Pillow; `mode` converts first."""
    image = PIL.Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    return saved(image if mode is None else image.convert(mode), format, **options)


def saved(image: PIL.Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rotated(pixels: np.ndarray, orientation: int, format: str = "JPEG") -> bytes:
    """A picture file with an EXIF orientation tag."""
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(pixels, format, exif=exif)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Source: PNG specification, 5.3."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_exif(png: bytes, exif: bytes) -> bytes:
    """A PNG with any bytes as its EXIF block."""
    at = png.index(b"IDAT") - 4
    return png[:at] + png_chunk(b"eXIf", exif) + png[at:]


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by relative name, with the folders they need."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def class_folders(root: Path, n_a_class: Mapping[str, int], size: tuple[int, int] = (12, 16)) -> Path:
    """JPEG files in class folders: "cat/0003.jpg" is different from every other."""
    seed = 0
    for name, n in n_a_class.items():
        for i in range(n):
            seed += 1
            write_files(root, {f"{name}/{i:04d}.jpg": encoded(picture(*size, seed=seed), "JPEG")})
    return root


def example(tf: Any, **features: Any) -> bytes:
    """A serialised tf.train.Example by TensorFlow itself: bytes, str, ints and floats, or lists of them."""
    made = {}
    for name, value in features.items():
        values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
        values = [v.encode() if isinstance(v, str) else v for v in values]
        if not values:
            made[name] = tf.train.Feature()
        elif isinstance(values[0], bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        elif isinstance(values[0], (float, np.floating)):
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return bytes(tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString())


def write_records(tf: Any, path: Path, records: Iterable[bytes], compression: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            writer.write(record)
    return path


# Datasets, read by other means than streamkit's


def pillow(data: bytes) -> np.ndarray:
    """Pixels of a picture file, upright, uint8 (height, width, channels): Pillow's, of JPEGs those of the fast DCT.

    Pillow has no fast DCT, which is TensorFlow's default and so ours; test_interop holds both to TensorFlow itself.
    """
    import PIL.ImageOps
    import simplejpeg

    with PIL.Image.open(io.BytesIO(data)) as image:
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            decoded = simplejpeg.decode_jpeg(data, "GRAY" if image.mode == "L" else "RGB", fastdct=True)
            turned = PIL.Image.fromarray(decoded.squeeze(2) if image.mode == "L" else decoded)
            turned.getexif()[274] = image.getexif().get(274, 1)
            pixels = np.asarray(PIL.ImageOps.exif_transpose(turned))
        else:
            pixels = np.asarray(PIL.ImageOps.exif_transpose(image))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures [dB]."""
    assert a.shape == b.shape
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def assert_same_picture(pixels: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Equal; but for a JPEG equal as near as two inverse DCTs are, which is far nearer than any wrong turn or channel."""
    assert pixels.shape == expected.shape
    if name.lower().endswith((".jpg", ".jpeg")):
        assert int(np.abs(pixels.astype(int) - expected.astype(int)).max()) <= 6
    else:
        np.testing.assert_array_equal(pixels, expected)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too, by relative path."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def index_rows(out: Path, split: str = "train") -> list[dict[str, Any]]:
    """The index of a split, one dict a row, in record order."""
    rows: list[dict[str, Any]] = pq.read_table(out / Manifest.load(out).splits[split].index).to_pylist()
    return rows


def payloads(out: Path, split: str = "train", name: str = "image") -> dict[str, bytes]:
    """key -> stored bytes at the range that the index gives, checked against its crc32c."""
    found = {}
    for row in index_rows(out, split):
        with open(out / row["shard"], "rb") as file:
            file.seek(row[f"{name}.offset"])
            data = file.read(row[f"{name}.length"])
        assert len(data) == row[f"{name}.length"]
        assert crc32c(data) == row[f"{name}.crc32c"]
        found[row["key"]] = data
    return found


def arrays(out: Path, split: str = "train", name: str = "array") -> dict[str, np.ndarray]:
    """key -> array, by the manifest's schema and plain NumPy, zlib and h5py."""
    field = Manifest.load(out).schema[name]
    rows = index_rows(out, split)
    if field.chunk_rows is not None:
        with h5py.File(out / f"{split}.h5", "r") as file:
            values = file[name][:]
        return {row["key"]: value for row, value in zip(rows, values, strict=True)}
    found = {}
    for row, data in zip(rows, payloads(out, split, name).values(), strict=True):
        if field.encoding == "zlib":
            data = zlib.decompress(data)
        shape = row.get(f"{name}.shape") or [-1 if d is None else d for d in field.shape]
        found[row["key"]] = np.frombuffer(data, np.dtype(field.dtype).newbyteorder("<")).reshape(shape)
    return found


def columns(out: Path, name: str, split: str = "train") -> dict[str, Any]:
    """key -> value of an index column."""
    return {row["key"]: row[name] for row in index_rows(out, split)}


# Other processes


def cli(*args: Any, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "streamkit", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        **options,
    )


def python(script: str, *args: Any, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with the tests' folder importable."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def needs(*names: str) -> None:
    """Skip where one of these is not installed. None is imported: JAX, once loaded, minds every fork of the process."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def without_root_powers() -> Callable[[], None] | None:
    """A preexec_fn that makes file permissions hold for root too; None where they hold anyway.

    Source: capabilities(7): what is not in the bounding set is not gained by execve.
    """
    if os.geteuid() != 0:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2

    def drop() -> None:
        for capability in (dac_override, dac_read_search):
            if libc.prctl(drop_from_bounding_set, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl")

    return drop
