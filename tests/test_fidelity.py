"""How near pictures come to the same decoded and resized in float64: figures for shrinking 1 to 8 times."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from converting import saved
from reading import convert

from streamkit.codecs.resize import INTERPOLATIONS
from streamkit.loader import Loader

FACTORS = (1.0, 1.3, 1.7, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
HEIGHT, WIDTH = 360, 481


def natural(seed: int) -> bytes:
    """A JPEG with the spectrum of photos: amplitudes fall with frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency).real for _ in range(3)]
    pixels = np.stack([planes[0] + 0.3 * plane for plane in planes], axis=-1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 128
    return saved(PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), "JPEG", quality=90)


def triangle(n: int, m: int) -> np.ndarray:
    """Weights (m, n) of the antialiased linear filter: its support grows with the factor."""
    scale = n / m
    centres = (np.arange(m) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(n) + 0.5 - centres[:, None]) / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def box(n: int, m: int) -> np.ndarray:
    """Weights (m, n) of the mean over what a pixel covers."""
    edges, low = np.arange(m + 1) * n / m, np.arange(n)
    weights = np.maximum(0, np.minimum(low + 1, edges[1:, None]) - np.maximum(low, edges[:-1, None]))
    return weights / weights.sum(axis=1, keepdims=True)


def exact(data: bytes, size: tuple[int, int], filter: Callable[[int, int], np.ndarray]) -> np.ndarray:
    pixels = np.asarray(PIL.Image.open(io.BytesIO(data))).astype(np.float64)  # Pillow takes the accurate DCT
    return np.einsum("ih,hwc,jw->ijc", filter(HEIGHT, size[0]), pixels, filter(WIDTH, size[1]), optimize=True)


def decibel(pixels: np.ndarray, reference: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((pixels.astype(np.float64) - reference) ** 2)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("fidelity")
    datas = {f"{seed}.jpg": natural(seed) for seed in range(2)}
    (folder / "in").mkdir()
    for name, data in datas.items():
        (folder / "in" / name).write_bytes(data)
    return convert(folder / "in", folder / "out"), datas


def loaded(out: Path, size: tuple[int, int], interpolation: str) -> dict[str, np.ndarray]:
    loader = Loader(
        out, batch_size=2, image_size=size, dtype="uint8", interpolation=interpolation, fields=("key", "image")
    )
    return dict(zip(*loader[0], strict=True))


def size_at(factor: float) -> tuple[int, int]:
    return int(HEIGHT / factor), int(WIDTH / factor)


@pytest.mark.parametrize("factor", FACTORS)
def test_bilinear_is_at_least_as_faithful_as_that_of_tensorflow(
    photos: tuple[Path, dict[str, bytes]], factor: float
) -> None:
    tf = pytest.importorskip("tensorflow")
    out, datas = photos
    size = size_at(factor)
    for key, pixels in loaded(out, size, "bilinear").items():
        reference = exact(datas[key], size, triangle)
        theirs = tf.image.resize(tf.io.decode_jpeg(datas[key]), size, antialias=False).numpy()
        # Theirs stays float32; rounding to uint8 costs a little.
        assert decibel(pixels, reference) > decibel(theirs, reference) - 0.15


@pytest.mark.parametrize("factor", FACTORS[1:])
@pytest.mark.parametrize("interpolation, filter, least", [("area", box, 57), ("antialias", triangle, 57)])
def test_exact_interpolations_are_exact(
    photos: tuple[Path, dict[str, bytes]],
    interpolation: str,
    filter: Callable[[int, int], np.ndarray],
    least: float,
    factor: float,
) -> None:
    out, datas = photos
    size = size_at(factor)
    for key, pixels in loaded(out, size, interpolation).items():
        assert decibel(pixels, exact(datas[key], size, filter)) >= least


def test_every_interpolation_is_its_own(photos: tuple[Path, dict[str, bytes]]) -> None:
    found = {name: loaded(photos[0], size_at(2.5), name)["0.jpg"] for name in INTERPOLATIONS}
    for a in found:
        for b in found:
            assert a == b or not np.array_equal(found[a], found[b])


def test_nearest_takes_pixels_and_mixes_none(photos: tuple[Path, dict[str, bytes]]) -> None:
    import tensorflow as tf

    out, datas = photos
    for key, pixels in loaded(out, (90, 120), "nearest").items():
        there = {tuple(p) for p in tf.io.decode_jpeg(datas[key]).numpy().reshape(-1, 3)}
        assert all(tuple(p) in there for p in pixels.reshape(-1, 3))


@pytest.mark.parametrize("factor", FACTORS[1:])
def test_resizing_at_conversion_averages(photos: tuple[Path, dict[str, bytes]], tmp_path: Path, factor: float) -> None:
    out, datas = photos
    size = size_at(factor)
    made = convert(out.parent / "in", tmp_path / "out", encode="png", resize=f"{size[0]}x{size[1]}")
    images, keys = Loader(made, batch_size=2, dtype="uint8", fields=("image", "key"))[0]
    for pixels, key in zip(images, keys, strict=True):
        assert decibel(pixels, exact(datas[key], size, box)) >= 57
