#!/usr/bin/env python3
"""Makes the small labelled data sets under sample_data/, for the README, the tests and scripts/train.py.

Two sets, both split at the top into train and val, one folder a class:

- images/: four shapes in 32x32 RGB, most of them JPEG, some PNG. Position, size, tilt, noise and both colours
  are random, so that the shape is as often the brighter as the darker part; all shapes have the same area. No
  pixel and no mean tells the class: a linear model fails where a small convolutional network learns.
- series/: three kinds of motion over time as .npy, float32, shape (64, 2), axis 0 time, axis 1 channel.

Every file has its own random stream, seeded by its place in the set: the same library versions give the same
bytes.

>>> image = draw_image(np.random.default_rng([SEED, 0]), "circle")
>>> image.shape, image.dtype
((32, 32, 3), dtype('uint8'))
>>> make_series(np.random.default_rng([SEED, 0]), "sine").shape
(64, 2)
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SEED = 20
SPLITS = ("train", "val")
SHAPES = ("circle", "cross", "square", "triangle")
DYNAMICS = ("autoregressive", "burst", "sine")
N_IMAGES = {"train": 400, "val": 60}  # per class
N_SERIES = {"train": 60, "val": 15}  # per class
IMAGE_SIZE = 32  # [pixel]
OVERSAMPLING = 4  # subpixels per pixel and axis, for smooth edges
PNG_EVERY = 16  # one image in so many is a PNG, the others are JPEG
JPEG_QUALITY = 85
N_STEPS = 64
MAX_TILT = np.deg2rad(20)  # turned all round, 1600 images teach a small network only 90 to 96 %
LUMA = np.array([0.299, 0.587, 0.114])  # Source: ITU-R BT.601


def shape_mask(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Says which points lie inside a shape of area pi around the origin.

    Args:
        shape: One of SHAPES.
        u: First coordinate of the points, any array shape, in units of the circle's radius.
        v: Second coordinate (down), same array shape and unit.

    Returns:
        Bool array of the same shape.
    """
    if shape == "circle":
        return u**2 + v**2 < 1.0
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < np.sqrt(np.pi) / 2
    if shape == "cross":  # arms as wide as a third of the whole: five of nine equal squares
        third = np.sqrt(np.pi / 5)
        return (np.minimum(abs(u), abs(v)) < third / 2) & (np.maximum(abs(u), abs(v)) < 1.5 * third)
    inradius = np.sqrt(np.pi / (3 * np.sqrt(3)))  # equilateral triangle: area = 3 sqrt(3) inradius^2
    return (v < inradius) & (np.sqrt(3) * abs(u) - v < 2 * inradius)


def draw_image(rng: np.random.Generator, shape: str) -> np.ndarray:
    """Draws one shape in random place, size, tilt and colours, with noise.

    Returns:
        uint8 array (IMAGE_SIZE, IMAGE_SIZE, 3), axes y (down), x, RGB, 0 to 255.
    """
    radius = rng.uniform(7.0, 9.5)  # [pixel]
    centre_y, centre_x = rng.uniform(13.0, IMAGE_SIZE - 13.0, size=2)
    angle = rng.uniform(-MAX_TILT, MAX_TILT)
    grid = (np.arange(IMAGE_SIZE * OVERSAMPLING) + 0.5) / OVERSAMPLING
    y, x = (grid[:, None] - centre_y) / radius, (grid[None, :] - centre_x) / radius
    mask = shape_mask(shape, np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x)
    cells = mask.reshape(IMAGE_SIZE, OVERSAMPLING, IMAGE_SIZE, OVERSAMPLING)
    coverage = cells.mean(axis=(1, 3))[:, :, None]

    colours = np.zeros((2, 3))
    while abs((colours[0] - colours[1]) @ LUMA) < 90:  # JPEG keeps little of a contrast in hue alone
        colours = rng.uniform(0.0, 255.0, size=(2, 3))
    noise = rng.normal(0.0, rng.uniform(0.0, 5.0), size=(IMAGE_SIZE, IMAGE_SIZE, 1))
    image = colours[0] + coverage * (colours[1] - colours[0]) + noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def make_series(rng: np.random.Generator, dynamics: str) -> np.ndarray:
    """Makes one time series; every kind gets about the same variance, so that the class is in the motion.

    Returns:
        float32 array (N_STEPS, 2), axes time, channel; mean 0, standard deviation 0.5 to 2, no unit.
    """
    t = np.arange(N_STEPS)[:, None]
    noise = rng.normal(size=(N_STEPS, 2))
    if dynamics == "sine":  # the second channel follows the first; both drift
        phase = rng.uniform(0.0, 2 * np.pi) - np.array([0.0, rng.uniform(0.5, 1.5)])
        drift = rng.normal(0.0, 1.0, size=2) * t / N_STEPS
        values = np.sin(2 * np.pi * t / rng.uniform(8.0, 20.0) + phase) + drift + 0.15 * noise
    elif dynamics == "burst":  # rest, and now and then a sudden rise or fall that dies away in both channels
        kicks = np.where(rng.random((N_STEPS, 1)) < 0.04, rng.choice([-1.0, 1.0], size=(N_STEPS, 1)), 0.0)
        kicks[rng.integers(8, N_STEPS - 16)] = 1.0
        values = _decay(kicks * rng.uniform(2.0, 4.0, size=2), rng.uniform(0.5, 0.8)) + 0.1 * noise
    else:
        values = _decay(noise, rng.uniform(0.2, 0.7))
    values = (values - values.mean(axis=0)) / values.std(axis=0) * rng.uniform(0.5, 2.0)
    return np.round(values, 4).astype(np.float32)  # rounded: processors differ in the last bit of a sine


def _decay(inputs: np.ndarray, factor: float) -> np.ndarray:
    values = inputs.copy()
    for step in range(1, len(values)):
        values[step] += factor * values[step - 1]
    return values


def write_images(folder: Path) -> None:
    for split_number, split in enumerate(SPLITS):
        for label, shape in enumerate(SHAPES):
            (folder / split / shape).mkdir(parents=True, exist_ok=True)
            for number in range(N_IMAGES[split]):
                rng = np.random.default_rng([SEED, 0, split_number, label, number])
                image = Image.fromarray(draw_image(rng, shape))
                path = folder / split / shape / f"{shape}-{number:04d}"
                if number % PNG_EVERY == PNG_EVERY - 1:
                    image.save(path.with_suffix(".png"), optimize=True)
                else:
                    image.save(path.with_suffix(".jpg"), quality=JPEG_QUALITY, optimize=True)


def write_series(folder: Path) -> None:
    for split_number, split in enumerate(SPLITS):
        for label, dynamics in enumerate(DYNAMICS):
            (folder / split / dynamics).mkdir(parents=True, exist_ok=True)
            for number in range(N_SERIES[split]):
                rng = np.random.default_rng([SEED, 1, split_number, label, number])
                path = folder / split / dynamics / f"{dynamics}-{number:04d}.npy"
                np.save(path, make_series(rng, dynamics))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the small labelled image and time series sets.")
    parser.add_argument("--out", type=Path, default=Path("sample_data"), help="default: %(default)s")
    out = parser.parse_args().out
    write_images(out / "images")
    write_series(out / "series")


if __name__ == "__main__":
    main()
