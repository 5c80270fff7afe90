"""What the user asked to see of a dataset: which fields, how large, in which dtype, arranged how. Pure.

>>> from streamkit.schema import Field
>>> label = Field("label", "label", "int64", (), class_names=("a", "b"))
>>> schema = Schema((Field("x", "array", "float32", (4,)), label))
>>> View().outputs(schema)
('x', 'label')
>>> View().structure({"x": 1, "label": 2}, schema)
(1, 2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamkit.codecs.pillow import MAX_PIXELS
from streamkit.codecs.resize import INTERPOLATIONS
from streamkit.errors import UsageError
from streamkit.schema import Field, Schema
from streamkit.units import flag, whole

COLOR_MODES = {"grayscale": 1, "rgb": 3, "rgba": 4}
LABEL_MODES = ("int", "categorical", "binary", None)


def extra(name: str, schema: Schema) -> Spec | None:
    """What `fields` may ask for beyond the schema: a sample's "key", and whether it is "padding" of a batch."""
    if name == "key":
        return Spec((), "string")
    return Spec((), "bool") if name == "padding" and name not in schema else None


class Spec(NamedTuple):
    """What one output looks like: shape of a sample (None for an axis that varies) and dtype ("string" for text)."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class View:
    """How samples are delivered; arguments of `streamkit.Loader` with the same names."""

    image_size: tuple[int, int] | None = None
    dtype: str = "float32"
    color_mode: str = "rgb"
    label_mode: str | None = "int"
    interpolation: str = "bilinear"
    crop_to_aspect_ratio: bool = False
    crop: str | None = None
    flip: bool = False
    fields: str | tuple[str, ...] | None = None
    pad_to: str | int | tuple[int, ...] = "batch"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.color_mode not in COLOR_MODES:
            raise UsageError(f"color_mode is {self.color_mode!r}, expected one of {', '.join(COLOR_MODES)}")
        if self.label_mode not in LABEL_MODES:
            raise UsageError(f'label_mode is {self.label_mode!r}, expected "int", "categorical", "binary" or None')
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation is {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
        if self.dtype not in ("uint8", "float16", "float32", "float64"):
            raise UsageError(f"dtype is {self.dtype!r}, expected uint8, float16, float32 or float64")
        size = self.image_size
        pair = isinstance(size, tuple) and len(size) == 2 and all(whole("image_size", s) and s > 0 for s in size)
        if size is not None and not pair:
            raise UsageError(f"image_size is {size!r}, expected (height, width)")
        if self.crop not in (None, "random", "center"):
            raise UsageError(f'crop is {self.crop!r}, expected "random", "center" or None')
        if self.crop is not None and size is None:
            raise UsageError(f"crop={self.crop!r} needs a size to resize to", hint="Pass image_size=(height, width).")
        for name in ("crop_to_aspect_ratio", "flip"):
            flag(name, getattr(self, name))
        if not (type(self.max_pixels) is int and self.max_pixels > 0):
            raise UsageError(f"max_pixels is {self.max_pixels!r}, expected a number of pixels")
        numbers = self.pad_to if isinstance(self.pad_to, tuple) else (self.pad_to,)
        if self.pad_to != "batch" and not (numbers and all(type(n) is int and n > 0 for n in numbers)):
            raise UsageError(f'pad_to is {self.pad_to!r}, expected "batch", a number of rows, or several')

    @property
    def crops(self) -> bool:
        """True when a part of each picture is cut out before resizing."""
        return self.crop is not None or self.crop_to_aspect_ratio

    def outputs(self, schema: Schema) -> tuple[str, ...]:
        """Names of the fields delivered, in order: those asked for, else payloads and then columns."""
        if self.fields is not None:
            names = (self.fields,) if isinstance(self.fields, str) else tuple(self.fields)
            return tuple(name if extra(name, schema) else schema[name].name for name in names)
        columns = [f.name for f in schema.columns if f.kind != "label" or self.label_mode is not None]
        return tuple(f.name for f in schema.payloads) + tuple(columns)

    def specs(self, schema: Schema, batched: bool, image_statistics: Mapping[str, Any]) -> dict[str, Spec]:
        """What each output looks like.

        Raises:
            UsageError: pictures of different sizes in batches, or a label mode that does not fit the classes.
        """
        out: dict[str, Spec] = {}
        for name in self.outputs(schema):
            if (found := extra(name, schema)) is not None:
                out[name] = found
                continue
            field = schema[name]
            if field.is_image and batched and None in self.size(field):
                raise _sizes_differ(image_statistics)
            if field.is_image:
                dtype = self.dtype if field.kind == "image" else field.dtype
                out[name] = Spec((*self.size(field), self.n_channels(field)), dtype)
            elif field.kind == "label":
                out[name] = _label_spec(field, self.label_mode)
            elif field.is_payload:
                shape = list(field.shape)
                if isinstance(self.pad_to, int) and shape and shape[0] is None and batched:
                    shape[0] = self.pad_to
                out[name] = Spec(tuple(shape), field.dtype)
                if not field.fixed and batched and self.fields is None:
                    n = field.n_varying
                    out[f"{name}_length"] = Spec((), "int32") if n == 1 else Spec((n,), "int32")
            else:
                out[name] = Spec((), field.dtype)
        return out

    def size(self, field: Field) -> tuple[int | None, int | None]:
        """(height, width) [pixel] of a picture as delivered; None where samples keep their own."""
        height, width = self.image_size or field.shape[:2]
        return height, width

    def n_channels(self, field: Field) -> int:
        """Channels of a picture as delivered."""
        return 1 if field.kind == "mask" else COLOR_MODES[self.color_mode]

    def structure(self, batch: dict[str, Any], schema: Schema) -> Any:
        """One value an output -> as delivered: bare, (payload, label) or the dict; `fields` decides first."""
        if isinstance(self.fields, str):
            return batch[self.fields]
        if self.fields is not None:
            return tuple(batch[name] for name in self.fields)
        names = list(batch)
        if len(names) == 1:
            return batch[names[0]]
        if len(names) == 2 and schema.label is not None and names[1] == schema.label.name:
            return batch[names[0]], batch[names[1]]
        return batch


def _sizes_differ(statistics: Mapping[str, Any]) -> UsageError:
    sizes = "x".join("-".join(map(str, statistics[side])) for side in ("height", "width") if side in statistics)
    return UsageError(
        f"images differ in size ({sizes or 'see the index'}, height x width), so they do not stack",
        hint="Pass image_size=(height, width), or batch_size=None for single samples.",
    )


def _label_spec(field: Field, mode: str | None) -> Spec:
    if mode in (None, "int"):
        return Spec((), "int32")
    n = len(field.class_names or ())
    if mode == "binary":
        if n != 2:
            raise UsageError(f'label_mode="binary" needs 2 classes, there are {n}', hint='Use "int" or "categorical".')
        return Spec((1,), "float32")
    if not n:
        raise UsageError('label_mode="categorical" needs class names, and this label has none', hint='Use "int".')
    return Spec((n,), "float32")


def needed_extras(view: View, schema: Schema, names: Sequence[str]) -> tuple[str, ...]:
    """Index columns that decoding the named fields needs besides their ranges."""
    fields = [schema[name] for name in names if not extra(name, schema)]
    images = [f for f in fields if f.kind == "image"]
    out: list[str] = []
    if any(f.is_encoded_image for f in images):
        out.append("orientation")
        if any(f.shape[2] in (None, 4) for f in images):
            out.append("channels")
    if view.crops and any(f.is_image for f in fields):
        out += ["height", "width"]
    if "key" in names:
        out.append("key")
    return tuple(out)
