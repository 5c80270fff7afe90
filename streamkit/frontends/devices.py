"""Batches on an accelerator before they are asked for. Each framework is imported only when it is the one.

A transfer runs beside the step before it: `ahead` hands a batch out when the next one's has begun (double buffering).

>>> list(ahead(str.upper, iter("abc")))
['A', 'B', 'C']
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from streamkit.errors import UsageError

Move = Callable[[Any], Any]


def ahead(move: Move, batches: Generator[Any, None, None] | Any) -> Generator[Any, None, None]:
    """`move(batch)` of each, begun one batch before it is delivered."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(move(batch))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def is_of_jax(device: Any) -> bool:
    """True for a device or sharding of JAX."""
    return type(device).__module__.partition(".")[0] in ("jax", "jaxlib")


def mover(framework: str, device: Any) -> Move:
    """How a batch goes to a device.

    Args:
        framework: "tensorflow", "jax" or "torch".
        device: as that framework names it: "GPU:0"; "gpu:0" or a jax.Device or sharding; "cuda:0".

    Raises:
        UsageError: the framework knows no such device.
    """
    try:
        one = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[framework](device)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UsageError(f"device is {device!r}, which {framework} does not know: {error}") from error
    return lambda batch: _each(one, batch)


def _each(move: Move, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _each(move, v) for name, v in value.items()}
    if isinstance(value, (tuple, list)):  # PyTorch's DataLoader makes lists of tuples
        return tuple(_each(move, v) for v in value)
    return value if isinstance(value, str) or getattr(value, "dtype", None) == np.dtype(object) else move(value)


def _tensorflow(device: Any) -> Move:
    import tensorflow as tf

    wanted, known = tf.DeviceSpec.from_string(device), tf.config.list_logical_devices()
    there = [tf.DeviceSpec.from_string(one.name) for one in known]
    # Asked for what it does not have, TensorFlow takes the CPU and says nothing.
    if not any(
        wanted.device_type in (None, one.device_type) and wanted.device_index in (None, one.device_index)
        for one in there
    ):
        raise ValueError(f"it has {', '.join(one.name for one in known)}")

    def move(value: Any) -> Any:
        with tf.device(device):
            return tf.identity(value)

    return move


def _jax(device: Any) -> Move:
    import jax

    if isinstance(device, str):
        platform, _, number = device.partition(":")
        device = jax.devices(platform)[int(number or 0)]
    return lambda value: jax.device_put(value, device)


def _torch(device: Any) -> Move:
    import torch

    target = torch.device(device)
    pin = target.type == "cuda"  # only from pinned memory does a copy run beside the computation

    def move(value: Any) -> Any:
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            return value
        tensor = torch.as_tensor(value)
        return (tensor.pin_memory() if pin and not tensor.is_pinned() else tensor).to(target, non_blocking=pin)

    return move
