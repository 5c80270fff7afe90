"""--compression auto: a sample of the arrays goes through every codec of the format, and what pays is kept.

A codec pays where it leaves at most WANTED_RATIO of the bytes, and where reading what is left and decoding it take at most
WANTED_COST of the time that reading everything takes. The ratio is measured; the speeds are fixed figures, so that the
choice hangs on the data, the options and the codecs' libraries alone, and the same command gives the same bytes on every
machine. How fast they decode here and now is measured too, to be shown, and has no part in the choice.

    >>> trials = [Trial(codec, ratio, 65536) for codec, ratio in (("none", 1), ("gzip", 0.5), ("lz4", 0.55), ("zstd", 0.8))]
    >>> [round(trial.cost * 1e9, 1) for trial in trials]     # nanoseconds a byte
    [10.0, 7.5, 6.5, 9.7]
    >>> best(trials).codec
    'lz4'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.codecs import array as arrays
from streamkit.convert.options import Options
from streamkit.schema import Field
from streamkit.sources import BadItem, Listing, Source
from streamkit.sources.headers import same_split

CODECS = {"tfrecord": ("zlib",), "hdf5": ("gzip", "lzf", "zstd", "lz4", "blosc2")}
WANTED_RATIO = 0.75
WANTED_COST = 0.9
# What a core's share of a disk or of a network brings [B/s]. Source: one request to S3 brings 85 to 90 MB/s (Best practices
# design patterns: optimizing Amazon S3 performance), a hard disk 150 to 250, a solid one over 500.
READ_SPEED = 100e6
# Decoded bytes a second and core, shuffle undone too [B/s]: rounded medians over random walks, weather, telemetry, class
# maps and noise in chunks of 64 KB on an AMD EPYC, with `arrays.decode_chunk` and `arrays.inflate`.
DECODE_SPEED = {"zlib": 200e6, "gzip": 400e6, "lzf": 400e6, "zstd": 600e6, "lz4": 1000e6, "blosc2": 1000e6}
CALL_S = 2e-6  # what a decoder's call costs besides its bytes [s], measured there on arrays of 16 bytes

_SAMPLE_NBYTES = 1 << 20
_BLOCK_NBYTES = 1 << 20  # of a sample, and of a chunk of samples, that is larger, the beginning
_N_SAMPLES = (16, 2048)  # at least, at most


@dataclass(frozen=True)
class Trial:
    """What a codec did to the sample.

    Attributes:
        codec: its name as an option, or "none".
        ratio: stored bytes a byte of the sample.
        block_nbytes: what is decoded in one call, on average [B].
        decode_speed: decoded bytes a second, as measured now [B/s]; None for "none".
    """

    codec: str
    ratio: float
    block_nbytes: float
    decode_speed: float | None = None

    @property
    def cost(self) -> float:
        """Time to read and decode a byte, by the fixed figures [s]."""
        if self.codec == "none":
            return self.ratio / READ_SPEED
        return self.ratio / READ_SPEED + 1 / DECODE_SPEED[self.codec] + CALL_S / self.block_nbytes


class Choice(NamedTuple):
    """The codec chosen, what it was chosen from, and the sample's size: samples, bytes."""

    codec: str
    trials: tuple[Trial, ...] = ()
    n_samples: int = 0
    nbytes: int = 0


def best(trials: Sequence[Trial]) -> Trial:
    """The cheapest of those that pay; else the first, which is "none"."""
    none = trials[0]
    paying = [t for t in trials if t.ratio <= WANTED_RATIO and t.cost <= WANTED_COST * none.cost]
    return min(paying, key=lambda trial: trial.cost, default=none)


def choose(source: Source, listing: Listing, options: Options) -> Choice:
    """What --compression comes to for a source: what was asked for, or the best of the trials."""
    if options.compression != "auto":
        return Choice(options.compression)
    fields = [f for f in listing.schema if f.kind == "array" and f.name not in listing.arrays and f.sample_nbytes]
    if options.format == "hdf5":
        fields = [f for f in fields if f.fixed]  # the others lie flat, which no filter acts on
    n_samples = n_blocks = nbytes = 0
    stored = dict.fromkeys(CODECS[options.format], 0)
    seconds = dict.fromkeys(stored, 0.0)
    for n, field, block in _blocks(source, listing, fields, options.format):
        n_samples, n_blocks, nbytes = n, n_blocks + 1, nbytes + block.nbytes
        for codec in stored:
            data, decode = _packed(block, field, codec)
            if not stored[codec]:
                decode()  # the first call loads a library
            started = time.thread_time()
            decode()
            seconds[codec] += time.thread_time() - started
            stored[codec] += len(data)
    if not nbytes:
        return Choice("none")
    size = nbytes / n_blocks
    packed = (Trial(codec, stored[codec] / nbytes, size, nbytes / max(seconds[codec], 1e-9)) for codec in stored)
    trials = (Trial("none", 1.0, size), *packed)
    return Choice(best(trials).codec, trials, n_samples, nbytes)


def _blocks(
    source: Source, listing: Listing, fields: Sequence[Field], format: str
) -> Iterator[tuple[int, Field, npt.NDArray[Any]]]:
    """Samples read so far, and what is compressed as one: a sample's values, or for HDF5 those of a chunk of samples."""
    if not fields or not len(listing):
        return
    from streamkit.shards.chunked import chunk_rows

    wanted = _SAMPLE_NBYTES // sum(field.sample_nbytes for field in fields)
    n = int(np.clip(wanted, *_N_SAMPLES))
    rows = np.unique(np.linspace(0, len(listing) - 1, n).astype(np.int64))
    waiting: dict[str, list[memoryview]] = {field.name: [] for field in fields}
    n_read = 0
    for keys in same_split(rows, listing):
        for sample in source.samples(keys):
            if isinstance(sample, BadItem):
                continue
            n_read += 1
            for field in fields:
                waiting[field.name].append(arrays.to_bytes(sample.payloads[field.name])[:_BLOCK_NBYTES])
                if format == "tfrecord" or len(waiting[field.name]) == chunk_rows(field.sample_nbytes):
                    yield n_read, field, _joined(waiting[field.name], field)
                    waiting[field.name] = []
    for field in fields:
        if waiting[field.name]:
            yield n_read, field, _joined(waiting[field.name], field)


def _joined(parts: Sequence[memoryview], field: Field) -> npt.NDArray[Any]:
    dtype = np.dtype(field.dtype).newbyteorder("<")
    data = b"".join(parts)
    return np.frombuffer(data, dtype, len(data) // dtype.itemsize)


def _packed(block: npt.NDArray[Any], field: Field, codec: str) -> tuple[bytes, Callable[[], Any]]:
    """The block as it would be stored, and what decodes it as the loader does."""
    if codec == "zlib":
        data = arrays.compress(block.tobytes())
        return data, lambda: arrays.inflate(data, block.nbytes)
    from streamkit.shards.chunked import FILTERS, packed

    data = packed(block, "+".join(FILTERS[codec]))
    return data, lambda: arrays.decode_chunk(data, FILTERS[codec], block.itemsize, block.nbytes)
