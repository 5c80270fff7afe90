#!/usr/bin/env python3
"""Writes scikit-learn's handwritten digits as a folder of PNG files, split/class/number.png: something real to train on.

Needs scikit-learn, nothing from the network: the 1,797 pictures of 8 x 8 pixels come with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the handwritten digits as train/ and val/ folders of PNG files."
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    out: Path = parser.parse_args().out
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for place, number in enumerate(order):
        folder = out / ("val" if place % 5 == 0 else "train") / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * (255 / 16)).astype(np.uint8)  # 17 shades of gray
        PIL.Image.fromarray(pixels).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    main()
