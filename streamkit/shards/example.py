"""tf.train.Example as bytes: a small writer and reader that know where each payload begins.

An Example is {features: {feature: map<name, Feature>}}; a Feature holds one list of bytes, floats or int64. Map entries
are written sorted by name, so equal samples give equal bytes.

Source: tensorflow/core/example/feature.proto and the protobuf encoding.

    >>> head = bytes_entry(b"x", 3)
    >>> body = head + b"abc"
    >>> features = parse(frame(len(body)) + body)
    >>> features["x"].start, features["x"].stop
    (13, 16)
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_LEN = 2  # protobuf wire type: length-delimited


class BadExample(ValueError):
    """Bytes that are no tf.train.Example; the message is the reason."""


class Feature(NamedTuple):
    """One feature: kind "bytes", "float" or "int64"; its values; and where they lie in the Example.

    Of several bytes values only the place of the first is told. Numbers that are not packed, as few writers leave them,
    have no one place: start and stop are -1.
    """

    kind: str
    values: Any
    start: int
    stop: int


def varint(n: int) -> bytes:
    """Protobuf's base-128 form of an unsigned integer."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _message(field: int, body: bytes) -> bytes:
    return bytes([field << 3 | _LEN]) + varint(len(body)) + body


@lru_cache(maxsize=4096)
def bytes_entry(name: bytes, length: int) -> bytes:
    """What stands before a bytes value of that length in its map entry; nothing stands after it."""
    list_head = b"\x0a" + varint(length)
    feature_head = b"\x0a" + varint(len(list_head) + length) + list_head
    key = _message(1, name)
    value_head = b"\x12" + varint(len(feature_head) + length) + feature_head
    return b"\x0a" + varint(len(key) + len(value_head) + length) + key + value_head


@lru_cache(maxsize=65536)
def int64_entry(name: bytes, values: tuple[int, ...]) -> bytes:
    """The whole map entry of an int64 list."""
    packed = b"".join(varint(v & 0xFFFFFFFFFFFFFFFF) for v in values)
    return _message(1, _message(1, name) + _message(2, _message(3, _message(1, packed))))


def float_entry(name: bytes, values: tuple[float, ...]) -> bytes:
    """The whole map entry of a float list (float32; what is beyond it becomes infinite)."""
    with np.errstate(over="ignore"):
        packed = np.array(values, np.float64).astype("<f4").tobytes()
    return _message(1, _message(1, name) + _message(2, _message(2, _message(1, packed))))


@lru_cache(maxsize=4096)
def frame(length: int) -> bytes:
    """What stands before the map entries of an Example whose entries take `length` bytes."""
    return b"\x0a" + varint(length)


def parse(data: Any) -> dict[str, Feature]:
    """All features of a serialised Example.

    Raises:
        BadExample: not an Example, or cut short.
    """
    out: dict[str, Feature] = {}
    view = memoryview(data)
    try:
        for number, start, stop in _fields(view, 0, len(view)):
            if number == 1:
                for entry, a, b in _fields(view, start, stop):
                    if entry == 1:
                        name, feature = _entry(view, a, b)
                        out[name] = feature
    except (IndexError, UnicodeDecodeError, struct.error, ValueError) as error:
        raise BadExample(str(error) or "cut short") from None
    return out


def _entry(view: memoryview, start: int, stop: int) -> tuple[str, Feature]:
    name, feature = "", Feature("bytes", [], 0, 0)
    for number, a, b in _fields(view, start, stop):
        if number == 1:
            name = bytes(view[a:b]).decode()
        elif number == 2:
            for kind, c, d in _fields(view, a, b):
                feature = _feature(view, kind, c, d)
    return name, feature


def _feature(view: memoryview, kind: int, start: int, stop: int) -> Feature:
    parts = list(_fields(view, start, stop, scalars=True))
    if kind == 1:
        spans = [(a, b) for _, a, b in parts]
        first = spans[0] if spans else (0, 0)
        return Feature("bytes", [view[a:b] for a, b in spans], *first)
    if kind == 2:
        floats = [np.frombuffer(view[a:b], "<f4") for _, a, b in parts]
        return Feature("float", np.concatenate(floats) if floats else np.empty(0, np.float32), *_place(parts))
    ints: list[int] = []
    for _, a, b in parts:
        while a < b:
            value, a = _varint(view, a)
            ints.append(value - (1 << 64) if value >> 63 else value)
    values: npt.NDArray[np.int64] = np.array(ints, np.int64)
    return Feature("int64", values, *_place(parts))


def _place(parts: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Where the numbers of a list lie, if they lie together."""
    return (0, 0) if not parts else parts[0][1:] if len(parts) == 1 else (-1, -1)


def is_sequence(data: Any) -> bool:
    """True for a tf.train.SequenceExample: {context: Features, feature_lists: FeatureLists}, of which `parse` sees only
    the context."""
    view = memoryview(data)
    return any(number == 2 for number, _, _ in _fields(view, 0, len(view)))


def _fields(view: memoryview, at: int, end: int, scalars: bool = False) -> Any:
    """(field number, first byte, past-the-last byte) of each field of a message; `scalars` allows unpacked values."""
    while at < end:
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == _LEN:
            length, at = _varint(view, at)
            stop = at + length
        elif wire == 0 and scalars:
            stop = _varint(view, at)[1]
        elif wire == 5 and scalars:
            stop = at + 4
        else:
            raise BadExample(f"wire type {wire} at byte {at}")
        if stop > end:
            raise BadExample(f"a field of {stop - at} bytes at byte {at} leaves its message")
        yield tag >> 3, at, stop
        at = stop


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise BadExample(f"a varint of over 10 bytes at byte {at}")
