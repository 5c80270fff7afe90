"""All that a model to train depends on, as one value; the same job makes the same model in any process.

>>> from streamkit.training.networks import Design
>>> model = built(Job(Design("small_cnn"), (32, 3), "float32", 4, rate=1e-3, n_updates=100), accumulate=2)
>>> model.optimizer.gradient_accumulation_steps, model.output_shape
(2, (None, 4))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from streamkit.training.networks import Design, network


@dataclass(frozen=True)
class Job:
    """What to train, and how far; another process can build it too, to try how large a batch may be.

    Attributes:
        design: of the network.
        shape, dtype: of one sample.
        n_classes: that it tells apart.
        rate: highest learning rate.
        n_updates: of the weights, in the whole training.
    """

    design: Design
    shape: tuple[int | None, ...]
    dtype: str
    n_classes: int
    rate: float
    n_updates: int


def built(job: Job, accumulate: int) -> Any:
    """The compiled model; `accumulate` steps make one update."""
    model = network(job.design, job.shape, job.dtype, job.n_classes)
    return compiled(model, job.rate, job.n_updates, accumulate)


def compiled(model: Any, rate: float, n_updates: int, accumulate: int) -> Any:
    """The model, with a learning rate that rises for the first twentieth of its updates and falls along a cosine."""
    n_warm_up = n_updates // 20
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_updates - n_warm_up), warmup_target=rate, warmup_steps=n_warm_up
    )
    if not n_warm_up:
        schedule = keras.optimizers.schedules.CosineDecay(rate, n_updates)
    steps = accumulate if accumulate > 1 else None
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.05, gradient_accumulation_steps=steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],  # by name, one logit would make it a binary one
    )
    return model
