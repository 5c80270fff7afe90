"""Hyperband over learning rate, width and pruning schedule, with an objective that prices size.

Accuracy alone never pays for sparsity: the search would take the least that it may. So the score is the validation
accuracy less a price for every doubling of what the model's file holds.

    >>> score(0.97, 2_000_000, price=0.01) < score(0.96, 500_000, price=0.01)
    True

Needs `pip install "streamkit[tune]"` (Keras Tuner).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import keras

from streamkit.errors import UsageError
from streamkit.training.pruning import PolynomialDecay, Prune, kernels


@dataclass(frozen=True)
class Choice:
    """What a trial tries.

    Attributes:
        rate: learning rate.
        width: of the network, see `networks.Design`.
        sparsity: share of zeros at the end, 0 for no pruning.
        begin, end: shares of the training between which pruning happens; left alone, the network learns first and
            recovers in the last third.
    """

    rate: float
    width: float
    sparsity: float
    begin: float = 1 / 6
    end: float = 2 / 3

    def prune(self, n_updates: int) -> Prune | None:
        """The callback that prunes a training of that many updates; None if nothing is pruned."""
        if not self.sparsity:
            return None
        begin, end = int(self.begin * n_updates), int(self.end * n_updates)
        schedule = PolynomialDecay(self.sparsity, begin=begin, end=end, every=max(1, (end - begin) // 20))
        return Prune(schedule, scope="global")


def score(accuracy: float, nbytes: float, price: float) -> float:
    """Accuracy, less `price` for every doubling of the size from 1 MB on; more than it for smaller ones."""
    return accuracy - price * math.log2(max(nbytes, 1) / 1e6)


def kept_nbytes(model: Any) -> float:
    """About what a compressed file of float32 weights takes: four bytes each that is not zero, and a bit for the others."""
    n = n_zeros = 0
    for variable in kernels(model):
        values = keras.ops.convert_to_numpy(variable)
        n_zeros += int((values == 0).sum())
    n = sum(math.prod(v.shape) for v in model.variables)
    return 4 * (n - n_zeros) + n / 8


class _Score(keras.callbacks.Callback):
    """Puts the score into the logs, where Hyperband looks for it."""

    def __init__(self, price: float) -> None:
        super().__init__()
        self.price = price

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert logs is not None
        logs["kept_mb"] = kept_nbytes(self.model) / 1e6
        logs["score"] = score(logs["val_accuracy"], kept_nbytes(self.model), self.price)


def search(
    build: Callable[[Choice], Any],
    data: Any,
    val_data: Any,
    steps: float,
    folder: Path,
    epochs: int,
    price: float = 0.01,
    seed: int = 0,
    fit: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Choice, list[dict[str, Any]]]:
    """Run Hyperband, or what is left of it in `folder`; trials share `data`, so files are opened and mapped once.

    Args:
        build: makes a compiled model, with the metric "accuracy".
        data, val_data: what `model.fit` takes.
        steps: updates of the optimizer in an epoch.
        folder: of trials and their weights; the same call again goes on after the last one that ended, and a call with
            other `epochs`, `price`, `seed`, `steps` or `facts` begins anew beside them.
        epochs: the most that one trial trains.
        price: accuracy that half the size is worth.
        seed: of the choices.
        fit: more arguments of `model.fit`.
        facts: JSON-able: what else a trial's score depends on, such as dataset and network.

    Returns:
        (the best choice, one dict a trial: its values, score, accuracy and size; best first).

    Raises:
        UsageError: Keras Tuner is not installed.
    """
    try:
        import keras_tuner
    except ImportError:
        raise UsageError("the search needs Keras Tuner", hint='Install "streamkit[tune]".') from None

    class Trial(keras_tuner.HyperModel):
        def build(self, hp: Any) -> Any:
            return build(_choice(hp))

        def fit(self, hp: Any, model: Any, *args: Any, **options: Any) -> Any:
            epochs = options["epochs"] - options.get("initial_epoch", 0)
            prune = _choice(hp).prune(int(steps * epochs))
            # Ahead of the callback that keeps the best epoch's weights.
            options["callbacks"] = [_Score(price), *([prune] if prune else []), *options["callbacks"]]
            return model.fit(*args, **options)

    tuner = keras_tuner.Hyperband(
        Trial(),
        objective=keras_tuner.Objective("score", "max"),
        max_epochs=epochs,
        directory=str(folder),
        project_name=f"hyperband-{_digest([epochs, price, seed, steps, facts])}",
        seed=seed,
        overwrite=False,
    )
    tuner.search(data, validation_data=val_data, shuffle=False, verbose=0, **(fit or {}))
    done = [t for t in tuner.oracle.trials.values() if t.score is not None]
    if not done:
        raise UsageError("no trial came to its end", path=folder)
    done.sort(key=lambda trial: -trial.score)
    return _choice(done[0].hyperparameters), [_facts(trial) for trial in done]


def _digest(facts: Any) -> str:
    return blake3.blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _choice(hp: Any) -> Choice:
    return Choice(
        rate=hp.Float("rate", 3e-4, 1e-2, sampling="log"),
        width=hp.Choice("width", [0.25, 0.5, 1.0]),
        sparsity=hp.Choice("sparsity", [0.0, 0.5, 0.8, 0.9]),
        begin=hp.Choice("begin", [0.0, 0.2]),
        end=hp.Choice("end", [0.5, 0.7]),
    )


def _facts(trial: Any) -> dict[str, Any]:
    metrics = {
        name: trial.metrics.get_best_value(name) for name in ("val_accuracy", "kept_mb") if trial.metrics.exists(name)
    }
    names = ("rate", "width", "sparsity", "begin", "end")
    return {
        "trial": trial.trial_id,
        **{n: trial.hyperparameters.values[n] for n in names},
        "score": trial.score,
        **metrics,
    }
