"""The whole state of a training run in one file that is replaced at once: a kill at any moment leaves the old or the new.

Weights files are not enough to go on exactly: they lack the states of seeds (so Dropout would repeat itself), gradients
accumulated so far, and metrics of the epoch under way. Here are all variables of model, optimizer and metrics, and the
random states that `keras.utils.set_random_seed` sets.

    >>> import keras, pathlib, tempfile
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> build(model, (np.ones((1, 2)), np.ones((1, 1))))
    >>> file = pathlib.Path(tempfile.mkdtemp()) / FILE_NAME
    >>> State.of(model, {"cursor": None}).save(file)
    >>> kernel = model.get_weights()[0]
    >>> model.layers[0].kernel.assign(kernel + 1) is None
    False
    >>> State.load(file).put_into(model)
    >>> bool((model.get_weights()[0] == kernel).all())
    True
"""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from streamkit.atomic import os_error, replacing
from streamkit.errors import DamagedError, FormatVersionError, UsageError

FILE_NAME = "state.npz"
_VERSION = 1
_AGAIN = "Delete it to train from the beginning."
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class State:
    """Everything that the rest of a run depends on.

    Attributes:
        facts: JSON-able: the cursor, the history so far, what callbacks count.
        variables: "model/0", ..., "optimizer/0", ..., "metrics/0", ... -> value.
        chance: random states of this process.
    """

    facts: Mapping[str, Any]
    variables: Arrays
    chance: Arrays

    @classmethod
    def of(cls, model: Any, facts: Mapping[str, Any]) -> State:
        values = {name: np.asarray(keras.ops.convert_to_numpy(v)) for name, v in _variables(model).items()}
        return cls({"version": _VERSION, "backend": keras.backend.backend(), **facts}, values, random_states())

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            ResourceError: the disk is full or refuses.
        """
        facts = np.frombuffer(json.dumps(self.facts).encode(), np.uint8)
        chance = {f"random/{name}": value for name, value in self.chance.items()}
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, facts=facts, **chance, **self.variables)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> State:
        """Read what `save` wrote.

        Raises:
            DamagedError: cut or altered.
            FormatVersionError: written by a newer release.
            UsageError: written on another backend.
        """
        facts = saved_facts(path)
        with _whole(path), open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "facts"}
        chance = {name.removeprefix("random/"): arrays.pop(name) for name in list(arrays) if name.startswith("random/")}
        return cls(facts, arrays, chance)

    def put_into(self, model: Any) -> None:
        """Assign every variable; the model must be built (see `build`).

        Raises:
            UsageError: another model, optimizer or loss scaling; the message says what differs.
        """
        here = _variables(model)
        for name in sorted(here.keys() | self.variables.keys()):
            saved, variable = self.variables.get(name), here.get(name)
            if saved is None or variable is None or tuple(saved.shape) != tuple(variable.shape):
                there = "nothing" if saved is None else f"shape {tuple(saved.shape)}"
                found = "nothing" if variable is None else f"{variable.path} of shape {tuple(variable.shape)}"
                raise UsageError(
                    f"this run trained another model or optimizer: {name} is {there} there, {found} here",
                    hint="Build and compile it as before, or pass another run_dir.",
                )
        for name, variable in here.items():
            value = self.variables[name]
            # NumPy's file format knows no bfloat16 and keeps it as bare bytes.
            variable.assign(value.view(_dtype(variable)) if value.dtype.kind == "V" else value)


def saved_facts(path: Path) -> dict[str, Any]:
    """The facts of a saved run, without reading its variables.

    Raises:
        DamagedError, FormatVersionError, UsageError: as `State.load`.
    """
    with _whole(path), open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        facts: dict[str, Any] = json.loads(file["facts"].tobytes())
        version, backend = facts["version"], facts["backend"]
    if version != _VERSION:
        raise FormatVersionError(f"version {version}, this release knows {_VERSION}", path=path, hint=_AGAIN)
    if backend != keras.backend.backend():
        what = f"this run was trained on {backend}, and this is {keras.backend.backend()}"
        raise UsageError(what, path=path, hint=f"Set KERAS_BACKEND={backend} to go on exactly.")
    return facts


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What reading raises, as errors of streamkit."""
    try:
        yield
    except OSError as error:
        raise os_error(error, path) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedError("this is no whole state of a run", path=path, hint=_AGAIN) from error


def refuse_others(begun: Mapping[str, Any] | None, now: Mapping[str, Any], path: Path) -> None:
    """Raise UsageError if a run was begun with other settings, naming each; None: it was saved without any."""
    if begun is None:
        return
    now = json.loads(json.dumps(now))  # tuples are lists there
    others = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
    if others:
        told = ", ".join(f"{name} {_said(begun.get(name))}, now {_said(now.get(name))}" for name in others)
        raise UsageError(f"this run was begun with {told}", path=path, hint="Go on with what it had, or begin another.")


def _said(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def build(model: Any, batch: Any) -> None:
    """Make all variables exist that training makes: of layers, loss, metrics and optimizer."""
    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    model.evaluate(x, y, sample_weight=weight, steps=1, verbose=0)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def plain_rate(model: Any) -> float | None:
    """The learning rate of a model's optimizer where it is a number; None where it is a schedule."""
    rate = getattr(model.optimizer, "inner_optimizer", model.optimizer).learning_rate
    return float(keras.ops.convert_to_numpy(rate)) if isinstance(rate, keras.Variable) else None


def _variables(model: Any) -> dict[str, Any]:
    groups = {
        "model": [*model.trainable_variables, *model.non_trainable_variables],
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    return {f"{group}/{i}": v for group, variables in groups.items() for i, v in enumerate(variables)}


def _dtype(variable: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(variable)).dtype


# Chance


def random_states() -> dict[str, npt.NDArray[Any]]:
    """States of the generators of Python, NumPy and PyTorch, as arrays. Those of Keras are variables of the layers."""
    _, internal, gauss = random.getstate()
    numpy_name, numpy_key, *numpy_rest = np.random.get_state()
    del numpy_name  # MT19937, the only one that the global generator has
    out = {
        "python": np.array(internal, np.uint32),
        "python_gauss": np.array([np.nan if gauss is None else gauss]),
        "numpy": np.asarray(numpy_key, np.uint32),
        "numpy_rest": np.array(numpy_rest, np.float64),
    }
    if keras.backend.backend() == "torch":
        import torch

        out["torch"] = torch.get_rng_state().numpy()
        for i, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()):
            out[f"torch_cuda_{i}"] = state.numpy()
    return out


def put_back(chance: Arrays) -> None:
    """Set the generators to what `random_states` found."""
    gauss = float(chance["python_gauss"][0])
    random.setstate((3, tuple(chance["python"].tolist()), None if np.isnan(gauss) else gauss))
    position, has_gauss, cached = chance["numpy_rest"].tolist()
    np.random.set_state(("MT19937", chance["numpy"], int(position), int(has_gauss), cached))
    if "torch" in chance:
        import torch

        torch.set_rng_state(torch.from_numpy(chance["torch"]))
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if f"torch_cuda_{i}" in chance:
                torch.cuda.set_rng_state(torch.from_numpy(chance[f"torch_cuda_{i}"]), i)
