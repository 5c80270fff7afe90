"""Numbers by chance, any of them had alone: keyed bijections of [0, n), and hashes to [0, 1).

An alternating Feistel network permutes as many bits as n takes; values outside go round until they are inside.

    >>> values = permute(np.arange(10), 10, (1, 0))
    >>> sorted(values.tolist()) == list(range(10)), int(permute(7, 10, (1, 0))) == values[7]
    (True, np.True_)
    >>> bool((uniform((1, 0), np.arange(1000)).mean() - 0.5) < 0.05)
    True
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_ROUNDS = 8
_MIN_BITS = 6  # below 64 values the halves are too narrow to mix; cycle walking from 64 costs nothing
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd: Knuth's multiplicative hashing


def permute(positions: npt.ArrayLike, n: int, key: tuple[int, ...]) -> Ints:
    """Map positions to values by a bijection of [0, n) chosen by `key`.

    Args:
        positions: integers in [0, n), any shape.
        n: size of the domain, below 2**62.
        key: integers such as (seed, epoch); any change gives an unrelated bijection.

    Returns:
        int64 array of the same shape, values in [0, n).

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), cycle walking.
    """
    shape = np.shape(positions)
    x = np.array(positions, dtype=np.uint64).reshape(-1)
    if n <= 1:
        return x.astype(np.int64).reshape(shape)
    bits = max((n - 1).bit_length(), _MIN_BITS)
    low_bits = bits // 2
    keys = _round_keys(tuple(map(int, key)))  # as Python's: repr and hash of NumPy's integers differ
    y = _feistel(x, bits, low_bits, keys)
    outside = np.flatnonzero(y >= n)
    while outside.size:  # fewer than half are outside each time, so this ends after about log2(size) turns
        y[outside] = _feistel(y[outside], bits, low_bits, keys)
        outside = outside[y[outside] >= n]
    return y.astype(np.int64).reshape(shape)


def permute_each(positions: Ints, sizes: Ints, seed: int, *keys: Ints) -> Ints:
    """As `permute`, each element by a bijection of its own: of [0, sizes[i]), chosen by `seed` and keys[...][i].

    Args:
        positions, sizes, keys: int64, all of one length; positions[i] in [0, sizes[i]).
        seed: any integer.
    """
    x = positions.astype(np.uint64)
    bits = np.maximum(np.frexp(sizes - 1.0)[1].astype(np.int64), _MIN_BITS)  # bit lengths
    low_bits = bits // 2
    chosen = np.full(x.shape, _round_keys((int(seed),))[0])
    for key in keys:
        chosen = _mixed(np.bitwise_xor(chosen, key.astype(np.uint64)))
    rounds = _mixed(chosen + (np.arange(_ROUNDS, dtype=np.uint64) * _MULTIPLIER)[:, None])
    left = np.flatnonzero(sizes > 1)
    while left.size:
        x[left] = _feistel(x[left], bits[left], low_bits[left], rounds[:, left])
        left = left[x[left] >= sizes[left].astype(np.uint64)]
    return x.astype(np.int64)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection in which every bit counts. Source: Steele, Lea and Flood (2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(x: npt.NDArray[np.uint64], bits: Any, low_bits: Any, keys: npt.NDArray[np.uint64]) -> Any:
    """Of numbers below 2**bits; `bits` and `low_bits` one for all, or as many as there are, and so for each round's key."""
    one, shift = np.uint64(1), np.asarray(low_bits).astype(np.uint64)
    high_mask = (one << np.asarray(bits - low_bits).astype(np.uint64)) - one
    low_mask = (one << shift) - one
    high, low = x >> shift, x & low_mask
    for i in range(0, _ROUNDS, 2):  # each half is changed by a hash of the other: always invertible
        high ^= _hash(low, keys[i]) & high_mask
        low ^= _hash(high, keys[i + 1]) & low_mask
    return (high << shift) | low


def _hash(x: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    h = (x ^ key) * _MULTIPLIER
    h ^= h >> np.uint64(29)
    h *= _MULTIPLIER
    return h >> np.uint64(32)


def uniform(key: tuple[int, ...], numbers: Ints) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each of `numbers`: a hash, so any of them is had alone. float64, same shape."""
    keys = _round_keys(tuple(map(int, key)))  # NumPy's integers print otherwise than Python's
    h = _hash(_hash(numbers.astype(np.uint64), keys[0]), keys[1])
    return _hash(h, keys[2]) / float(1 << 32)


@lru_cache(maxsize=256)
def _round_keys(key: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
