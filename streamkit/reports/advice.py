"""What would make a dataset faster to read: each change is tried on a sample, with its gain, its bytes and its fidelity.

>>> decibels(np.zeros((2, 2, 3)), np.full((2, 2, 3), 255.0))
0.0
>>> Change("--resize 256", 3.0, 0.29, 38.2).text()
'--resize 256 at conversion would make it about 3.0x faster, -71 % bytes, PSNR 38.2 dB'
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamkit.codecs.resize import recolor
from streamkit.convert.encode import Encoder
from streamkit.convert.options import Options
from streamkit.payloads import Payloads
from streamkit.reader import Reader
from streamkit.reports.stages import Pictures, Size, picture_seconds
from streamkit.schema import Field, Schema
from streamkit.shards.record import Record

MIN_GAIN = 1.15  # less is not worth converting again
_MAX_TRIED = 64  # pictures
_SAME_DB = 99.0


@dataclass(frozen=True)
class Change:
    """One change that was tried.

    Attributes:
        what: the option to pass.
        gain: how many times as many samples a CPU second.
        bytes_ratio: stored bytes after / before.
        psnr: of the pictures delivered, against those of now [dB]; None where the values stay the same.
    """

    what: str
    gain: float
    bytes_ratio: float
    psnr: float | None

    def text(self) -> str:
        """One line."""
        percent = round(100 * (self.bytes_ratio - 1))
        fidelity = "the same values" if self.psnr is None else f"PSNR {self.psnr:.1f} dB"
        where = "at conversion" if self.what.startswith("--") else "when reading"
        return f"{self.what} {where} would make it about {self.gain:.1f}x faster, {percent:+d} % bytes, {fidelity}"

    def to_json(self) -> dict[str, object]:
        return {"what": self.what, "gain": self.gain, "bytes_ratio": self.bytes_ratio, "psnr": self.psnr}


def changes(
    reader: Reader,
    rows: npt.NDArray[np.int64],
    seconds: Mapping[str, float],
    size: Size | None,
    floats_to_bytes: float,
    budget_s: float = 0.5,
) -> list[Change]:
    """Changes worth making, the one that helps most first.

    Args:
        reader: of the split.
        rows: rows to try them on.
        seconds: what each stage takes now [s a sample].
        size: (height, width) of the pictures delivered.
        floats_to_bytes: seconds a sample that `dtype="uint8"` saves.
        budget_s: time to measure each [s].
    """
    fields = [f for f in reader.fields if f.is_payload]
    found = list(_recodings(reader, fields, rows, seconds, size, budget_s))
    total = sum(seconds.values())
    if floats_to_bytes > 0:
        found.append(Change('dtype="uint8"', gain(total, floats_to_bytes), 1.0, None))
    if not any(f.is_encoded_image for f in fields) and seconds["decode"]:
        found.append(_unpacked(reader, fields, total, seconds))
    return sorted((c for c in found if c.gain >= MIN_GAIN), key=lambda c: -c.gain)


def gain(total: float, saved: float) -> float:
    """How many times as fast it is when `saved` of `total` seconds a sample go away."""
    return round(total / max(total - saved, total / 100), 2)


def _unpacked(reader: Reader, fields: Sequence[Field], total: float, seconds: Mapping[str, float]) -> Change:
    """Arrays without compression: nothing to inflate, more bytes to read and check."""
    raw = sum(_decoded_nbytes(reader, f) for f in fields)
    stored = reader.split.nbytes / max(1, reader.split.samples)
    ratio = max(1.0, raw / stored)
    more = (ratio - 1) * (seconds["read"] + seconds["check"])
    return Change("--compression none", gain(total, seconds["decode"] - more), round(ratio, 3), None)


def _decoded_nbytes(reader: Reader, field: Field) -> float:
    if field.fixed:
        return field.sample_nbytes
    rows = np.arange(min(_MAX_TRIED, reader.split.samples))
    return float(np.mean([values.nbytes for values in Payloads(reader).decoded(field, rows)]))


def _recodings(
    reader: Reader,
    fields: Sequence[Field],
    rows: npt.NDArray[np.int64],
    seconds: Mapping[str, float],
    size: Size | None,
    budget_s: float,
) -> Iterator[Change]:
    """Images stored smaller, or in a way that decodes faster."""
    images = [f for f in fields if f.kind == "image" and f.is_encoded_image]
    if len(images) != 1 or size is None:
        return
    stored = [bytes(data) for data in Payloads(reader).stored(images[0], rows[:_MAX_TRIED])]
    short = math.ceil(max(size) * 8 / 7 / 16) * 16  # 256 for 224: room for random crops
    height, width = size
    tries = {f"--resize {short}": Options("tfrecord", resize=str(short))}
    tries["--encode jpeg:95"] = Options("tfrecord", encode="jpeg:95")
    exact = f"{height}x{width}"
    tries[f"--resize {exact} --encode raw"] = Options("tfrecord", resize=exact, encode="raw")
    for what, options in tries.items():
        change = _tried(what, options, images[0], stored, seconds, size, budget_s)
        if change is not None:
            yield change


def _tried(
    what: str,
    options: Options,
    field: Field,
    stored: Sequence[bytes],
    seconds: Mapping[str, float],
    size: Size,
    budget_s: float,
) -> Change | None:
    """Convert the pictures so, and time them again; None where the change does not apply to them."""
    encoder = Encoder(
        Schema((Field(field.name, "image", "uint8", field.shape, "raw" if options.encode == "raw" else "mixed"),)),
        options,
    )
    records = [encoder.record(str(i), {field.name: data}, {}) for i, data in enumerate(stored)]
    datas = [bytes(r.payloads[field.name]) for r in records if isinstance(r, Record)]
    if len(datas) != len(stored):
        return None
    # Timed again side by side, because a busy machine is not as fast now as it was for the table.
    now = picture_seconds(stored, size, budget_s=budget_s)
    then = _raw(datas, size) if options.encode == "raw" else picture_seconds(datas, size, budget_s=budget_s)
    ratio = then.nbytes / now.nbytes
    total = sum(seconds.values())
    left = (then.decode + then.resize) / (now.decode + now.resize)
    saved = (1 - left) * (seconds["decode"] + seconds["resize"])
    saved -= (ratio - 1) * (seconds["read"] + seconds["check"])
    pairs = zip(now.delivered, then.delivered, strict=False)
    psnr = float(np.mean([decibels(a, b) for a, b in pairs]))
    return Change(what, gain(total, saved), round(ratio, 3), round(psnr, 1))


def _raw(datas: Sequence[bytes], size: Size) -> Pictures:
    """Pictures stored as pixels of the wanted size: nothing is left to decode."""
    pixels = [np.frombuffer(data, np.uint8).reshape(*size, -1) for data in datas]
    return Pictures(0.0, 0.0, float(np.mean([len(data) for data in datas])), [recolor(p, 3) for p in pixels])


def decibels(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    """Peak signal-to-noise ratio of two pictures of values 0 to 255 [dB]; at most 99."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return _SAME_DB if error == 0 else min(_SAME_DB, 10 * math.log10(255**2 / error))
