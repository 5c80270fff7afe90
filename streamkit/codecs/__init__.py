"""Bytes <-> arrays: `image` for pictures, `array` for numbers. Pure functions; no files, no datasets.

>>> import numpy as np
>>> from streamkit.codecs import image
>>> picture = np.zeros((4, 6, 3), np.uint8)
>>> image.decode(image.encode(picture, "png"), channels=3).shape
(4, 6, 3)
"""
