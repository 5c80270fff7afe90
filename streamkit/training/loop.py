"""`fit`: model.fit that goes on exactly where it was killed, in the middle of an epoch too.

    >>> import keras, tempfile, streamkit
    >>> out, run = tempfile.mkdtemp() + "/out", tempfile.mkdtemp()
    >>> _ = streamkit.convert("sample_data/series", out, format="hdf5", workers=1)
    >>> loader = streamkit.Loader(out, split="train", batch_size=64)
    >>> model = keras.Sequential([keras.Input(loader.specs["array"].shape), keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> len(fit(model, loader, epochs=1, run_dir=run, verbose=0).history["loss"])
    1
    >>> len(fit(model, loader, epochs=3, run_dir=run, verbose=0).history["loss"])    # two more
    3

A callback alone cannot do it: `model.fit` counts batches from the beginning of an epoch, so the rest of one would shift
every border after it. So each epoch, or rest of one, is a `model.fit` of its own here, and callbacks see one long one.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from streamkit.arguments import refuses_unknown
from streamkit.errors import UsageError
from streamkit.replicas import refuse_workers_of_keras
from streamkit.training.feeding import Feed
from streamkit.training.interrupting import Held, held
from streamkit.training.refusing import refuse_foreign, refuse_uncompiled, warn_of_eager_steps
from streamkit.training.state import FILE_NAME, Arrays, State, build, plain_rate, put_back, random_states, refuse_others
from streamkit.units import whole


@refuses_unknown("streamkit.training.fit")
def fit(
    model: Any,
    loader: Any,
    *,
    epochs: int,
    run_dir: str | Path,
    every_steps: int = 1000,
    validation: Any = None,
    callbacks: Iterable[Any] = (),
    class_weight: dict[int, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    verbose: Any = "auto",
) -> Any:
    """Train, saving the whole state in `run_dir`; called again with the same one, continue where the last save was.

    The sequence of batches, and on one device the weights, equal those of a run that was never stopped: weights,
    optimizer (with accumulated gradients and loss scale), metrics of the epoch under way, learning rate, random states,
    the history and what Keras' callbacks count (wait, best, ...) are all restored. Epoch k of the run is epoch k of the loader.

    Ctrl-C and SIGTERM end the step under way, save, and do then what they did before; a second one does it at once.

    Args:
        model: a compiled Keras model, made and compiled as before when the run is continued.
        loader: a `streamkit.Loader`, or what its as_tf() or as_keras() gave, which then is the way that batches go. If it
            has a device, they are there ahead of use; see `streamkit.training.devices` for several devices.
            With several shards, the one with index 0 saves; another number of shards may continue with the same global
            batch.
        epochs: epochs of the whole run.
        run_dir: folder for the state, made if it is missing.
        every_steps: steps between two saves; the end of every epoch is saved too.
        validation: a loader (its epoch 0, each time the same), or anything that `validation_data` of Keras may be.
        callbacks: Keras callbacks. They see batch numbers of the whole epoch, and on_train_begin once.
        class_weight, verbose: as in `model.fit`.
        settings: JSON-able values by name that the training depends on and its variables do not show, such as the
            decay of a learning rate; saved, and a run begun with others is not continued. A run goes on with the plain
            learning rate that it had; a model compiled with another is a warning.

    Returns:
        `keras.callbacks.History` of the whole run, epochs before the interruption included.

    Raises:
        UsageError: the run in `run_dir` is one of another dataset, split, seed, batch size, model, backend or settings;
            says which.
            Or the model is not compiled, `run_dir` is a dataset or a file, or `every_steps` is below 1.
            Or the model is to train on several workers of tf.distribute, which Keras 3 cannot; or batches do not divide
            among the devices of keras.distribution.
        DamagedError: the saved state is cut or altered.
        ResourceError: it cannot be written.
    """
    refuse_workers_of_keras(getattr(model, "distribute_strategy", None))
    refuse_uncompiled(model)
    warn_of_eager_steps(model)
    if (whole("every_steps", every_steps) or 0) < 1:
        raise UsageError(f"every_steps is {every_steps}, expected at least 1")
    feed = Feed.of(loader)
    refuse_foreign(Path(run_dir))
    file = Path(run_dir) / FILE_NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    callbacks = list(callbacks)
    for callback in callbacks:
        if getattr(callback, "restore_best_weights", False):
            raise UsageError(
                "EarlyStopping(restore_best_weights=True) keeps them in memory only, where a kill loses them",
                hint="Keep them with keras.callbacks.ModelCheckpoint(save_best_only=True).",
            )
    facts = {"epochs": epochs, "settings": dict(settings or {}), "learning_rate": plain_rate(model)}
    loop = _Loop(callbacks, model, feed, file, every_steps, facts, verbose)
    loop.resume()
    with _ended_once(model), _closed_on_error(callbacks), held() as loop.signals:
        while loop.epoch < epochs and not loop.stopped:
            with feed.open(loop.epoch, loop.batch) as batches:
                model.fit(
                    batches,
                    steps_per_epoch=feed.steps(loop.batch),
                    **_validation(validation),
                    initial_epoch=loop.epoch,
                    epochs=loop.epoch + 1,
                    callbacks=loop,
                    shuffle=False,  # the loader has shuffled, over the whole split
                    class_weight=class_weight,
                )
    loop.end()
    return loop.history


def _validation(source: Any) -> dict[str, Any]:
    if not hasattr(getattr(source, "loader", source), "cursor_at"):
        return {"validation_data": source}
    feed = Feed.of(source)
    return {"validation_data": feed.epoch(0), "validation_steps": feed.steps()}


@contextmanager
def _ended_once(model: Any) -> Iterator[None]:
    """Keras ends each `fit` by copying moving averages, if the optimizer keeps any, into the weights; we end once."""
    optimizer = model.optimizer
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values
    optimizer.finalize_variable_values(model.trainable_variables)


@contextmanager
def _closed_on_error(callbacks: list[Any]) -> Iterator[None]:
    """Keras tells callbacks nothing when training raises; those with a `close` let go of what they hold open."""
    try:
        yield
    except BaseException:
        for callback in callbacks:
            if hasattr(callback, "close"):
                callback.close()
        raise


class _Loop(keras.callbacks.CallbackList):
    """The callbacks of the run, called as if the epochs were one `fit`, and the place where the run is.

    It saves here and not in a callback, because one with on_train_batch_end makes Keras wait for the device every step.

    Attributes:
        epoch, batch: where the next `model.fit` begins.
        stopped: a callback ended the run.
    """

    def __init__(
        self,
        callbacks: list[Any],
        model: Any,
        feed: Feed,
        file: Path,
        every_steps: int,
        facts: dict[str, Any],
        verbose: Any,
    ) -> None:
        n = len(feed.loader)
        options = {"add_history": True, "add_progbar": verbose != 0, "verbose": verbose}
        super().__init__(callbacks, model=model, epochs=facts["epochs"], steps=n, **options)
        self.loader, self.file, self.every_steps, self.n_batches = feed.loader, file, every_steps, n
        self.facts, self.signals = facts, Held()
        self.epoch, self.batch, self.stopped = 0, 0, False
        self._chance: Arrays = random_states()
        self._state: State | None = None
        self._begun = False
        self._saved = 0

    @property
    def history(self) -> Any:
        return self._history

    def resume(self) -> None:
        """Take up the run in `file`, if there is one."""
        if not self.file.exists():
            return
        self._state = state = State.load(self.file)
        refuse_others(state.facts.get("settings"), self.facts["settings"], self.file)
        twin, compiled = self.loader.held(0), self.facts["learning_rate"]
        try:
            twin.resume(state.facts["cursor"])
            self.epoch, self.batch = twin.begin_epoch()
            build(self.model, self.loader.batch(self.epoch, self.batch))
            state.put_into(self.model)
        except UsageError as error:
            raise UsageError(error.what, path=self.file, hint=error.hint or "Pass another run_dir.") from error
        begun = self.facts["learning_rate"] = state.facts.get("learning_rate")
        if begun is not None and compiled not in (
            begun,
            now := plain_rate(self.model),
        ):  # callbacks may have changed it
            what = f"this run was begun with learning rate {begun:g} and goes on with {now:g}, not {compiled:g}"
            warnings.warn(f"{self.file}: {what} as compiled. For that, pass another run_dir.", stacklevel=4)
        self.stopped, self._chance = state.facts["stopped"], state.chance
        self._saved = self.epoch * self.n_batches + self.batch
        self._history.history = {name: list(values) for name, values in state.facts["history"].items()}
        self._history.epoch = list(range(self.epoch))

    def _save(self) -> None:
        self._saved = self.epoch * self.n_batches + self.batch
        if self.loader.shard_index == 0:
            facts = self.facts | {
                "cursor": self.loader.cursor_at(self._saved),
                "stopped": self.stopped,
                "history": self._history.history,
                "callbacks": {name: _counts(callback) for name, callback in self._named()},
            }
            State.of(self.model, facts).save(self.file)

    def _named(self) -> Iterator[tuple[str, Any]]:
        seen: Counter[str] = Counter()
        for callback in self.callbacks:
            name = type(callback).__name__
            yield f"{name} {seen[name]}", callback
            seen[name] += 1

    # What Keras calls

    def on_train_begin(self, logs: Any = None) -> None:
        if self._begun:
            return
        self._begun = True
        epochs = getattr(self._history, "epoch", [])
        super().on_train_begin(logs)
        self._history.epoch = epochs
        if self._state is not None:
            saved = self._state.facts["callbacks"]
            for name, callback in self._named():
                vars(callback).update(saved.get(name, {}))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._first = self.batch
        if self._state is not None and self.batch:  # again, as Keras has reset the metrics, half an epoch's
            self._state.put_into(self.model)
        self._state = None
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0:  # between two epochs Keras on PyTorch draws random numbers, how many depends on what is built
            put_back(self._chance)
        super().on_train_batch_begin(self._first + batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(self._first + batch, logs)
        # With steps_per_execution the last execution may hold fewer batches than Keras says.
        self.batch = min(self._first + batch + 1, self.n_batches)
        step = self.epoch * self.n_batches + self.batch
        due = step // self.every_steps > self._saved // self.every_steps
        if self.batch < self.n_batches and (due or self.signals.came):
            self._save()
            self.signals.let_through()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.stopped = bool(self.model.stop_training)
        if self.batch >= self.n_batches:
            self.epoch, self.batch = self.epoch + 1, 0
        self._chance = random_states()
        self._save()
        self.signals.let_through()

    def on_train_end(self, logs: Any = None) -> None:
        """Not yet: see `end`."""

    def end(self) -> None:
        """The end of the whole run, if there was anything left of it."""
        if self._begun:
            super().on_train_end()


# What EarlyStopping, ReduceLROnPlateau and ModelCheckpoint count; a callback of one's own may use the same names.
_COUNTED = ("best", "best_epoch", "cooldown_counter", "stopped_epoch", "wait")


def _counts(callback: Any) -> dict[str, Any]:
    found = {name: vars(callback)[name] for name in _COUNTED if name in vars(callback)}
    return {name: None if value is None else float(value) for name, value in found.items()}
