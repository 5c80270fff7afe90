"""Arrays: numbers <-> little-endian C-order bytes, and the filters of chunked HDF5 undone outside libhdf5.

>>> import numpy as np
>>> rows = np.arange(6, dtype=">i4").reshape(2, 3)
>>> stored = compress(to_bytes(rows))
>>> from_bytes(inflate(stored, 24), "int32", (2, 3)).tolist()
[[0, 1, 2], [3, 4, 5]]
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class BadArray(ValueError):
    """Bytes that are not the array they should be; the message is the reason."""


def to_bytes(array: Array) -> memoryview:
    """The array's bytes, little-endian and in C order; no copy when it lies so already."""
    little = np.asarray(array)
    if not little.flags.c_contiguous or little.dtype.str[0] == ">":
        little = np.ascontiguousarray(little, dtype=little.dtype.newbyteorder("<"))
    return memoryview(little.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def from_bytes(data: Any, dtype: str, shape: tuple[int | None, ...]) -> Array:
    """The array of little-endian C-order bytes.

    Args:
        data: bytes-like.
        dtype: NumPy name of the values.
        shape: at most one None, which is found from the length.

    Raises:
        BadArray: the length does not fit the shape.
    """
    values = np.frombuffer(data, np.uint8)
    item = np.dtype(dtype).newbyteorder("<")
    known = math.prod(d for d in shape if d is not None) * item.itemsize
    if None in shape:
        n, rest = divmod(len(values), known) if known else (0, len(values))
        shape = tuple(n if d is None else d for d in shape)
        if rest:
            raise BadArray(f"{len(values)} bytes are no whole number of {known}-byte rows")
    elif len(values) != known:
        raise BadArray(f"{len(values)} bytes, expected {known} for {dtype} {shape}")
    return values.view(item).reshape(tuple(d for d in shape if d is not None))


def compress(data: Any, level: int = 6) -> bytes:
    """zlib-compress a payload, as TFDS's `zlib` tensor encoding does."""
    return zlib.compress(data, level)


def inflate(data: Any, limit: int) -> bytes:
    """Undo `compress`; BadArray when damaged or when more than `limit` bytes come out."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise BadArray(f"damaged zlib data: {error}") from None
    if len(out) > limit or not stream.eof:
        raise BadArray(f"zlib data of more than {limit} bytes" if len(out) > limit else "zlib data is cut short")
    return out


def varints(data: Any) -> Array:
    """The int64 values of protobuf's packed base-128 numbers, as an int64 list of tf.train.Example holds them.

    Raises:
        BadArray: the bytes end inside a number, or one takes more than 10.

    >>> varints(bytes([1, 0xAC, 2] + [255] * 9 + [1])).tolist()
    [1, 300, -1]
    """
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if octets.size and (not ends.size or ends[-1] != octets.size - 1):
        raise BadArray("a list of numbers that ends inside one")
    starts = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    places = np.arange(octets.size) - np.repeat(starts, ends - starts + 1)
    if places.max(initial=0) > 9:
        raise BadArray("a number of over 10 bytes")
    parts = (octets & np.uint8(0x7F)).astype(np.uint64) << (7 * places).astype(np.uint64)
    return (np.add.reduceat(parts, starts) if ends.size else parts).view(np.int64)


def decode_chunk(data: Any, filters: tuple[str, ...], itemsize: int, nbytes: int, room: Array | None = None) -> Array:
    """Undo an HDF5 chunk's filters.

    Args:
        data: the chunk as stored.
        filters: names in the order applied when writing, from FILTERS.
        itemsize: size of one value [B], which shuffle needs.
        nbytes: decoded size of a chunk [B].
        room: uint8 (nbytes,) where the chunk may be decoded in place.

    Returns:
        uint8 (nbytes,); in `room` where the last codec could write there.

    Raises:
        BadArray: damaged, or another size comes out.
    """
    out: Any = data
    for name in reversed(filters):
        try:
            direct = room is not None and name in _DIRECT and name == filters[0]
            out = FILTERS[name](out, itemsize, room if direct else nbytes)
        except BadArray:
            raise
        except Exception as error:  # each codec library has its own kinds
            raise BadArray(f"damaged {name} chunk: {error}") from None
    pixels = np.frombuffer(out, np.uint8)
    if pixels.size != nbytes:
        raise BadArray(f"a chunk of {pixels.size} bytes, expected {nbytes}")
    return pixels


def _gzip(data: Any, itemsize: int, room: Any) -> Any:
    # libdeflate knows the size beforehand: 394 MB/s on image pixels, zlib 202, zlib-ng 313, ISA-L 264.
    return _codec("deflate_decode")(data, itemsize, room)


def _bigendian(data: Any, itemsize: int, nbytes: int) -> Any:
    return np.frombuffer(data, f">u{itemsize}").astype(f"<u{itemsize}")


def _shuffle(data: Any, itemsize: int, nbytes: int) -> Any:
    # HDF5 stores all first bytes, then all second bytes, ...; a rest shorter than a value stays at the end.
    values = np.frombuffer(data, np.uint8)
    n = values.size // itemsize
    out = np.empty_like(values)
    out[: n * itemsize].reshape(n, itemsize)[:] = values[: n * itemsize].reshape(itemsize, n).T
    out[n * itemsize :] = values[n * itemsize :]
    return out


def _fletcher32(data: Any, itemsize: int, nbytes: int) -> Any:
    return memoryview(data)[:-4]  # the index's crc32c has already vouched for every byte


def _lzf(data: Any, itemsize: int, nbytes: int) -> Any:
    if len(data) == nbytes:
        return data  # it did not shrink, and libhdf5 then leaves out a filter that is optional, as h5py's lzf is
    return _codec("lzf_decode")(data, itemsize, nbytes)


def _codec(name: str) -> Callable[[Any, int, Any], Any]:
    def decode(data: Any, itemsize: int, room: Any) -> Any:
        import imagecodecs

        return getattr(imagecodecs, name)(data, out=room)

    return decode


def _blosc2(data: Any, itemsize: int, nbytes: int) -> Any:
    """The filter stores a frame of one chunk, whose values may lie in blocks of several axes.

    Source: C-Blosc2, README_CFRAME_FORMAT.rst and README_B2ND_METALAYER.rst.
    """
    frame = bytes(data)
    if frame[2:10] != b"b2frame\0":
        raise BadArray("a blosc2 chunk that is no frame")
    header_nbytes = int.from_bytes(frame[11:15], "big")
    decoded_nbytes = int.from_bytes(frame[30:38], "big")
    stored_nbytes = int.from_bytes(frame[39:47], "big")
    if decoded_nbytes > 64 * nbytes + (1 << 20):
        raise BadArray(f"a blosc2 chunk of {decoded_nbytes} bytes, expected {nbytes}")
    decode = _codec("blosc2_decode")
    if stored_nbytes == 0:  # no chunk, only its place in the list of offsets: a sign for "all zeros"
        offset = bytes(decode(frame[header_nbytes:], 1, 8))
        if offset[7] != 0x81:
            raise BadArray(f"a blosc2 chunk of the special kind {offset[7]:#x}")
        return bytes(nbytes)
    values = decode(frame[header_nbytes : header_nbytes + stored_nbytes], itemsize, decoded_nbytes)
    name = frame.find(b"\xa4b2nd\xd2", 0, header_nbytes)
    return (
        values if name < 0 else _in_order(values, frame, int.from_bytes(frame[name + 6 : name + 10], "big"), itemsize)
    )


def _in_order(values: Any, frame: bytes, at: int, itemsize: int) -> Any:
    """Undo the blocks of several axes that the b2nd layer at byte `at` of a frame's header describes."""
    n_axes = frame[at + 7]
    chunk_at = at + 8 + 1 + 9 * n_axes + 1  # behind the shape; each size has a type byte in front
    block_at = chunk_at + 5 * n_axes + 1
    chunk, block = (
        [int.from_bytes(frame[start + 5 * i + 1 : start + 5 * i + 5], "big") for i in range(n_axes)]
        for start in (chunk_at, block_at)
    )
    n_blocks = [-(-c // b) for c, b in zip(chunk, block, strict=True)]
    blocks = np.frombuffer(values, f"V{itemsize}").reshape(*n_blocks, *block)
    axes = [axis for i in range(n_axes) for axis in (i, n_axes + i)]
    whole = blocks.transpose(axes).reshape([n * b for n, b in zip(n_blocks, block, strict=True)])
    return np.ascontiguousarray(whole[tuple(slice(c) for c in chunk)]).reshape(-1).view(np.uint8)


_DIRECT = ("gzip", "zstd", "lz4")  # these take an array to write to instead of the size

# HDF5 filter name -> how to undo it: (data, itemsize, decoded size of the chunk) -> bytes-like. "bigendian" is none of
# HDF5's: it stands first in the pipeline of values that adopted files hold in that order.
FILTERS: dict[str, Callable[[Any, int, Any], Any]] = {
    "bigendian": _bigendian,
    "shuffle": _shuffle,
    "gzip": _gzip,
    "fletcher32": _fletcher32,
    "lzf": _lzf,
    "zstd": _codec("zstd_decode"),
    "lz4": _codec("lz4h5_decode"),
    "blosc2": _blosc2,
}
