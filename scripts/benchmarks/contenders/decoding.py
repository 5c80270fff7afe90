"""Decoding as the peers' users would in Python or TensorFlow when they care for speed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.tasks import Task

IN_PYTHON = "simplejpeg fast DCT + cv2 linear"
IN_TENSORFLOW = "decode_jpeg fast DCT + resize bilinear"


def in_python(task: Task) -> Any:
    """JPEG bytes -> uint8 array of the task's shape."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    height, width = task.shape[:2]
    random = np.random.default_rng(0)

    def decode(jpeg: bytes) -> Any:
        picture = simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True)
        flipped = False
        if task.augment:
            picture = picture[random_box(random, *picture.shape[:2])]
            flipped = random.random() < 0.5
        if picture.shape[:2] != (height, width):
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        return cv2.flip(picture, 1) if flipped else picture

    return decode


def random_box(random: np.random.Generator, height: int, width: int) -> tuple[slice, slice]:
    """8 to 100 % of the area, ratio 3:4 to 4:3; the whole picture when ten tries do not fit."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return slice(top, top + h), slice(left, left + w)
    return slice(None), slice(None)


def in_tensorflow(task: Task) -> Any:
    """JPEG bytes, scalar tensor -> uint8 tensor of the task's shape; under augment only the crop's rows are decoded."""
    import tensorflow as tf

    def decode(jpeg: Any) -> Any:
        if not task.augment:
            picture = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_FAST")
            if task.shape[0] == 32:  # stored in the wanted size
                return tf.ensure_shape(picture, task.shape)
        else:
            begin, size, _ = tf.image.sample_distorted_bounding_box(
                tf.io.extract_jpeg_shape(jpeg),
                tf.zeros([1, 1, 4]) + tf.constant([0.0, 0, 1, 1]),
                aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=(0.08, 1.0),
                min_object_covered=0.0,
            )
            window = tf.concat([begin[:2], size[:2]], 0)
            picture = tf.io.decode_and_crop_jpeg(jpeg, window, channels=3, dct_method="INTEGER_FAST")
            picture = tf.image.random_flip_left_right(picture)
        return tf.cast(tf.image.resize(picture, task.shape[:2]), tf.uint8)

    return decode
