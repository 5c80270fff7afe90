"""What the user may choose about a conversion: parsed once, frozen, and written into the manifest.

>>> Options(format="tfrecord", encode="jpeg:85", resize="256", shard_size="64MB").shard_nbytes
64000000
>>> Options(format="hdf5", compression="zlib")
Traceback (most recent call last):
streamkit.errors.UsageError: compression is 'zlib'. For hdf5 choose auto, none, gzip[:1-9], lzf, zstd[:1-22], lz4 or blosc2
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from streamkit.codecs.image import MAX_PIXELS
from streamkit.errors import UsageError
from streamkit.units import size


@dataclass(frozen=True)
class Options:
    """Options that change the bytes of a dataset; the manifest holds them. See `streamkit convert --help`.

    `labels` and `masks` say that there are some; what they say is part of the source.
    """

    format: str
    split: Mapping[str, float] | None = None
    encode: str = "keep"
    resize: str | None = None
    compression: str = "auto"
    check: str = "decode"
    shard_size: str | int = "128MB"
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    labels: bool = False
    masks: bool = False
    group_by: str | None = None
    on_duplicate: str = "keep"
    tile: str | None = None
    window: int | None = None
    stride: str | None = None

    def __post_init__(self) -> None:
        if self.format not in ("tfrecord", "hdf5"):
            raise UsageError(
                f"the format is {self.format!r}, expected tfrecord or hdf5", hint="Pass --format tfrecord."
            )
        if not re.fullmatch(r"keep|png|raw|(jpeg|webp)(:([1-9]\d?|100))?", self.encode):
            raise UsageError(f"encode is {self.encode!r}", hint="Choose keep, jpeg[:1-100], png, webp[:1-100] or raw")
        if self.resize is not None and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", str(self.resize)):
            raise UsageError(f"resize is {self.resize!r}", hint="Write N for the short side, or HxW")
        self._check_cuts()
        codecs = {
            "tfrecord": (r"auto|none|zlib(:[1-9])?", "auto, none or zlib[:1-9]"),
            "hdf5": (
                r"auto|none|gzip(:[1-9])?|lzf|zstd(:([1-9]|1\d|2[0-2]))?|lz4|blosc2",
                "auto, none, gzip[:1-9], lzf, zstd[:1-22], lz4 or blosc2",
            ),
        }
        pattern, choices = codecs[self.format]
        if not re.fullmatch(pattern, self.compression):
            raise UsageError(f"compression is {self.compression!r}", hint=f"For {self.format} choose {choices}")
        if self.check not in ("decode", "header"):
            raise UsageError(f"check is {self.check!r}, expected decode or header")
        if self.on_duplicate not in ("keep", "drop", "fail"):
            raise UsageError(f"on_duplicate is {self.on_duplicate!r}, expected keep, drop or fail")
        if self.shard_nbytes < 1:
            raise UsageError(f"shard_size is {self.shard_size!r}, expected at least one byte")
        if self.split is not None:
            self._check_split(self.split)

    def _check_cuts(self) -> None:
        if self.tile is not None and not re.fullmatch(_SIZE, self.tile):
            raise UsageError(f"tile is {self.tile!r}", hint="Write HxW, such as 512x512")
        if self.window is not None and self.window < 1:
            raise UsageError(f"window is {self.window!r}, expected at least one row")
        if self.tile is not None and self.window is not None:
            raise UsageError("tile cuts pictures and window cuts arrays", hint="Choose one of them")
        if self.stride is not None:
            pattern = _SIZE if self.tile is not None else r"[1-9]\d*"
            if self.tile is None and self.window is None:
                raise UsageError("stride goes with tile or window")
            if not re.fullmatch(pattern, self.stride):
                raise UsageError(f"stride is {self.stride!r}", hint="Write HxW for tiles, a number of rows for windows")

    @staticmethod
    def _check_split(split: Mapping[str, float]) -> None:
        if not split or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in split):
            raise UsageError(f"split names are {list(split)}, expected letters and digits", hint="train=0.9,val=0.1")
        if not all(f > 0 for f in split.values()) or not abs(sum(split.values()) - 1) <= 1e-6:
            given = ",".join(f"{name}={fraction:g}" for name, fraction in split.items())
            raise UsageError(f"split fractions are {given}", hint="Give fractions over 0 that add up to 1")

    @property
    def shard_nbytes(self) -> int:
        """Wanted size of a shard [B]."""
        return size(self.shard_size)

    @property
    def reencodes(self) -> bool:
        """True when pictures do not pass through untouched."""
        return self.encode != "keep" or self.resize is not None or self.tile is not None

    @property
    def exact_size(self) -> tuple[int, int] | None:
        """(height, width) of --resize HxW, or None."""
        if self.resize is None or "x" not in str(self.resize):
            return None
        return _height_width(self.resize)

    @property
    def short_side(self) -> int | None:
        """N of --resize N, or None."""
        return int(self.resize) if self.resize is not None and "x" not in str(self.resize) else None

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of a tile [pixel]."""
        return _height_width(str(self.tile))

    @property
    def tile_stride(self) -> tuple[int, int]:
        """(down, right) from one tile to the next [pixel]; its own size by default."""
        return _height_width(str(self.stride or self.tile))

    @property
    def window_stride(self) -> int:
        """Rows from one window to the next; its own length by default."""
        return int(self.stride or self.window or 1)

    def to_json(self) -> dict[str, Any]:
        out = asdict(self)
        out["split"] = None if self.split is None else dict(self.split)
        out["shard_size"] = self.shard_nbytes
        return out


_SIZE = r"[1-9]\d*x[1-9]\d*"


def _height_width(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def parse_split(text: str) -> dict[str, float]:
    """ "train=0.9,val=0.1" as a dict, in the order written."""
    out: dict[str, float] = {}
    for part in text.split(","):
        name, _, fraction = part.strip().partition("=")
        try:
            out[name] = float(fraction)
        except ValueError:
            raise UsageError(f"{part!r} is no split", hint="Write it like train=0.9,val=0.1") from None
    return out
