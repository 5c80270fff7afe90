"""All that a model to train depends on, as one value; the same job makes the same model in any process.

>>> from streamkit.training.networks import Design
>>> model = built(Job(Design("small_cnn"), (32, 3), "float32", 4, rate=1e-3, n_updates=100), accumulate=2)
>>> model.optimizer.gradient_accumulation_steps, model.output_shape
(2, (None, 4))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import keras

from streamkit.errors import UsageError
from streamkit.training.networks import Design, network
from streamkit.training.searching import Choice


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


def chosen(job: Job, choice: Choice) -> Job:
    """The job with the learning rate and width of a choice."""
    return replace(job, rate=choice.rate, design=replace(job.design, width=choice.width))


def n_updates(epochs: int, n_steps: int, accumulate: int) -> int:
    """Updates of the weights in so many epochs of so many steps.

    Raises:
        UsageError: there would be none.
    """
    n = epochs * n_steps // accumulate
    if not n:
        raise UsageError(
            f"{epochs} x {n_steps} steps are fewer than the {accumulate} of one update, so nothing would be learnt",
            hint="Accumulate less (--accumulate, or N of --batch-size auto:N), or train longer.",
        )
    return n


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
    if keras.backend.backend() == "jax":
        # Keras says that XLA cannot compile these layers, which holds for TensorFlow's operations. One such layer,
        # and Keras compiles nothing of a step: it runs operation by operation. Copies and files of a model lose the mark.
        for layer in model._flatten_layers():
            if isinstance(layer, (keras.layers.RandomTranslation, keras.layers.RandomZoom)):
                layer.supports_jit = True
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.05, gradient_accumulation_steps=steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],  # by name, one logit would make it a binary one
    )
    return model


def settings(job: Job, choice: Choice, **others: Any) -> dict[str, Any]:
    """What a run of `streamkit.training.fit` must be continued with, by the flags of `scripts/train.py`.

    How many updates there are is left out: a run may be made longer.

    Args:
        others: more of them, dashes as underscores.
    """
    found = {**asdict(job.design), "rate": job.rate, "prune": choice.sparsity or None, **others}
    out = {f"--{name.replace('_', '-')}": value for name, value in found.items()}
    return out | ({"pruned between": [choice.begin, choice.end]} if choice.sparsity else {})
