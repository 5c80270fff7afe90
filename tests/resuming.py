"""Runs of `streamkit.training.fit` that are killed and continued: one process a backend, which forks a life at a time.

    KERAS_BACKEND=jax python resuming.py OUT WORK N_KILLS [CASE ...]

Prints JSON: case -> [lives that were killed, largest difference of a weight or metric to the run that was not].
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    for name in ("tensorflow", "sklearn"):  # as where they are not installed: Keras imports both if it can, for seconds
        sys.modules[name] = None  # type: ignore[assignment]

import keras
import numpy as np

import streamkit
from streamkit.training import fit
from streamkit.training.pruning import PolynomialDecay, Prune

EPOCHS, EVERY = 3, 2
CASES = {
    "float32, pruned": ("float32", None, "as_keras"),
    "mixed_float16, accumulated": ("mixed_float16", 4, ""),
}


def model_of(policy: str, accumulate: int | None) -> Any:
    """Small, with everything that has state: Dropout, batch statistics, moments and their schedule, averages of weights."""
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(policy)
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.4)]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3, dtype="float32")])
    rate = keras.optimizers.schedules.CosineDecay(0.05, 60)
    optimizer = keras.optimizers.Adam(rate, gradient_accumulation_steps=accumulate, use_ema=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


class Kill(keras.callbacks.Callback):
    """SIGKILL to its own process in the step after `left` steps."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def live(out: str, run: Path, case: str, kill_after: int | None) -> None:
    """Train to the end and write the result down, or die before."""
    policy, accumulate, way = CASES[case]
    loader = streamkit.Loader(out, batch_size=8, seed=5, num_workers=1)
    callbacks: list[Any] = [keras.callbacks.EarlyStopping("loss", patience=9)]
    if "pruned" in case:
        callbacks.append(Prune(PolynomialDecay(0.5, begin=3, end=17, every=3)))
    if kill_after is not None:
        callbacks.append(Kill(kill_after))
    model = model_of(policy, accumulate)
    source = getattr(loader, way)() if way else loader
    options = {"every_steps": EVERY, "callbacks": callbacks, "verbose": 0}
    history = fit(model, source, epochs=EPOCHS, run_dir=run, validation=loader, **options).history
    values = [keras.ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]
    flat = [np.asarray(value, np.float64).ravel() for value in (*values, *history.values(), [callbacks[0].best])]
    np.save(run / "result.npy", np.concatenate(flat))


def forked(*arguments: Any) -> int:
    """Exit status of a life in a child process."""
    child = os.fork()
    if not child:
        live(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(out: str, work: Path, n_kills: int, *cases: str) -> None:
    n_steps = EPOCHS * len(streamkit.Loader(out, batch_size=8))
    found = {}
    for case in cases or CASES:
        whole, broken = work / case / "whole", work / case / "broken"
        assert forked(out, whole, case, None) == 0
        chance, n_killed = random.Random(case), 0
        while True:
            # Many kills come so soon after one another that the run goes on from every state that was saved.
            longest = max(EVERY, n_steps // (n_kills + 1))
            kill_after = chance.randint(EVERY, longest) if n_killed < n_kills else None
            status = forked(out, broken, case, kill_after)
            if status == 0:
                break
            assert status == -signal.SIGKILL, status
            n_killed += 1
        a, b = (np.load(run / "result.npy") for run in (whole, broken))
        found[case] = [n_killed, float(np.abs(a - b).max()) if a.shape == b.shape else -1.0]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
