"""Arguments that do not exist: what was meant, and the words that do here what they do in Keras' folder reader.

>>> @refuses_unknown("streamkit.Loader")
... def load(path, *, image_size=None): ...
>>> load("out", imagesize=(8, 8))
Traceback (most recent call last):
    ...
streamkit.arguments.ArgumentError: there is no argument 'imagesize'. Did you mean 'image_size'? See help(streamkit.Loader).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from streamkit.errors import UsageError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

_PART = 'Write split="train[:80%]" and split="train[80%:]", or convert with --split train=0.8,val=0.2.'
_LOADER = {
    "directory": "Give the folder that `streamkit convert` made, as the first argument.",
    "validation_split": _PART,
    "subset": _PART,
    "labels": "Labels were stored by `streamkit convert`, from folders or --labels; label_mode=None leaves them out.",
    "class_names": "Classes got their numbers in `streamkit convert`; streamkit.open(OUT).class_names lists them.",
    "follow_links": "Leave it out: what is read was settled by `streamkit convert`.",
    "verbose": "Leave it out: nothing is printed.",
    "pad_to_aspect_ratio": 'Leave it out, or cut instead with crop_to_aspect_ratio=True or crop="center".',
    "data_format": "Leave it out: channels come last.",
    "pin_memory": "Pass it to Loader(...).as_torch().",
}
_OF_LOADER = "Pass it to the loader."
_FIT = {
    "validation_data": "Pass validation=.",
    "validation_split": _PART,
    "batch_size": _OF_LOADER,
    "shuffle": _OF_LOADER,
    "initial_epoch": "Leave it out: the run goes on where it was.",
}
# What to write in place of arguments of Keras, by the function that lacks them.
_INSTEAD = {"streamkit.Loader": _LOADER, "streamkit.training.fit": _FIT}


class ArgumentError(UsageError, TypeError):
    """An argument that does not exist (exit code 2); a TypeError too, as Python's own error would be."""


def refuses_unknown(title: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function that users know as `title`: an error for arguments by unknown names that says what to write."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: P.args, **options: P.kwargs) -> R:
            for name in options:
                if name not in known:
                    hint = _INSTEAD[title].get(name) or f"{did_you_mean(name, known)}See help({title})."
                    raise ArgumentError(f"there is no argument {name!r}", hint=hint)
            return function(*args, **options)

        return checked

    return decorate
