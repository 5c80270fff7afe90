"""What a dataset asks to be learnt, from its manifest alone: known, or refused, before a framework is loaded.

>>> import tempfile, streamkit
>>> out = tempfile.mkdtemp() + "/out"
>>> manifest = streamkit.convert("sample_data/series", out, format="hdf5", workers=1) and streamkit.open(out)
>>> task = task_of(manifest)
>>> task.shape, task.splits, len(task.label.class_names)
((64, 2), ('train', 'val'), 3)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamkit.errors import UsageError
from streamkit.loader import Loader
from streamkit.manifest import Manifest
from streamkit.schema import Field


@dataclass(frozen=True)
class Task:
    """Which field to tell which classes from, and in which splits.

    Attributes:
        field, label: of the schema.
        shape: of one sample as it comes.
        splits: to train on, and to validate on or None.
        judged: split that the trained model is measured on: one that training has not seen, if there is one.
        image_size: (height, width) that images are resized to, None for as they are.
    """

    field: Field
    label: Field
    shape: tuple[int | None, ...]
    splits: tuple[str, str | None]
    judged: str
    image_size: tuple[int, int] | None = None


def task_of(manifest: Manifest, image_size: tuple[int, int] | None = None) -> Task:
    """The task of a dataset of single images or arrays with a class each.

    Raises:
        UsageError: there is nothing to learn, or no network here learns from such samples.
    """
    label = manifest.schema.label
    if label is None or not label.class_names:
        raise UsageError("this dataset has no label with classes, so there is nothing to learn")
    if len(label.class_names) < 2:
        raise UsageError(f"all samples are of the class {label.class_names[0]!r}, so there is nothing to learn")
    payloads = manifest.schema.payloads
    if len(payloads) != 1 or payloads[0].kind not in ("image", "array"):
        kinds = ", ".join(f"{field.name} ({field.kind})" for field in payloads)
        raise UsageError(f"a sample holds {kinds}, expected one image or one array")
    field = payloads[0]
    if field.kind == "image":
        if image_size is None and None in field.shape[:2]:
            raise UsageError("images differ in size, so they do not stack", hint="Pass --image-size HxW.")
        return Task(field, label, (*(image_size or field.shape[:2]), 3), *_splits(manifest), image_size)
    if image_size is not None:
        raise UsageError("--image-size is for images, and this dataset holds arrays")
    tokens = len(field.shape) == 1 and field.dtype.lstrip("u").startswith("int")
    if not tokens and (len(field.shape) not in (2, 3) or None in field.shape):
        what = "a fixed (time, channels) or (height, width, bands), or whole numbers of shape (time,)"
        raise UsageError(f"arrays have shape {field.shape}, expected {what}")
    return Task(field, label, (None,) if tokens else field.shape, *_splits(manifest))


def _splits(manifest: Manifest) -> tuple[tuple[str, str | None], str]:
    """((to train on, to validate on), to judge by). What is judged by in the end, training does not look at before."""
    names = [name for name, split in manifest.splits.items() if split.samples]
    if len(names) == 1:
        return (names[0], None), names[0]
    if "train" not in names:
        raise UsageError(f"there is no split train with samples; splits are {', '.join(manifest.splits)}")
    val = "val" if "val" in names else None
    return ("train", val), next(name for name in ("test", "val", "train") if name in names)


def tokens_of(out: str | Path, task: Task) -> tuple[int, int]:
    """(largest token + 1, length of the longest text), from one pass over all of them.

    Raises:
        UsageError: there is a token below 0.
    """
    largest = longest = 0
    for split in {*task.splits, task.judged} - {None}:
        for x in Loader(out, split=split, batch_size=256, shuffle=False, fields=task.field.name):
            tokens = x[task.field.name] if isinstance(x, dict) else x
            if tokens.size and tokens.min() < 0:
                raise UsageError(f"there is a token {tokens.min()}, expected whole numbers from 0 on")
            largest, longest = max(largest, int(tokens.max(initial=0))), max(longest, tokens.shape[1])
    return largest + 1, longest
