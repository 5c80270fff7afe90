"""Order as arithmetic: any position of any epoch is reachable at once, and the state is a cursor of a few integers.

A position is a sample's place in the global order of an epoch; `Order.rows` turns positions into rows by a keyed
bijection (an alternating Feistel network with cycle walking), so a full shuffle needs no memory. Rows that share
compressed chunks are shuffled chunk first, then row within a window of chunks; the interface is the same.

    >>> order = Order(10, seed=1)
    >>> rows = order.rows(epoch=0, start=0, stop=10)
    >>> sorted(rows.tolist()) == list(range(10)), (rows == order.rows(0, 0, 10)).all()
    (True, np.True_)
    >>> order.rows(0, 4, 6).tolist() == rows[4:6].tolist()
    True
    >>> Batches(n=10, batch_size=4).positions(2)
    (8, 10)
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamkit.errors import UsageError

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


class Rows(Protocol):
    """What is shuffled and sharded: positions of an epoch -> numbers of the chosen rows."""

    @property
    def n(self) -> int: ...
    def rows(self, epoch: int, start: int, stop: int) -> Ints: ...
    def around(self, start: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]: ...


def around(start: int, n: int, n_positions: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The `n` positions (or all) from `start` on, going round at the end, as two runs [start, stop)."""
    n = min(n, n_positions)
    first = min(n, n_positions - start)
    return (start, start + first), (0, n - first)


_BLOCK = 16_384  # positions computed at once: spreads NumPy's cost per call over many batches


@dataclass(frozen=True, eq=False)  # compared by identity, as `bounds` is an array
class Order:
    """The order of `n` chosen rows in every epoch.

    Attributes:
        n: number of chosen rows; the order yields numbers in [0, n).
        seed: any integer.
        shuffle: False gives storage order in every epoch.
        bounds: for chunked storage, the positions [0, ..., n] where a new chunk begins (int64, n_chunks + 1); else None.
        window: chunks whose rows are mixed with one another, for chunked storage.
    """

    n: int
    seed: int = 0
    shuffle: bool = True
    bounds: Any = None
    window: int = 1

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        """Rows at positions [start, stop) of the epoch: int64, in the order they are to be delivered."""
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        first, last = start // _BLOCK, max(start, stop - 1) // _BLOCK
        parts = [_cached_block(self, epoch, b) for b in range(first, last + 1)]
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return block[start - first * _BLOCK : stop - first * _BLOCK]

    def around(self, start: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The `n` positions (or all) from `start` on, going round at the end, as two runs [start, stop)."""
        return around(start, n, self.n)

    def span(self, epoch: int, start: int, stop: int) -> Ints:
        """As `rows`, but nothing is kept for next time."""
        positions = np.arange(start, stop, dtype=np.int64)
        if not self.shuffle:
            return positions
        if self.bounds is None:
            return permute(positions, self.n, (self.seed, epoch))
        return self._windowed(epoch, positions)

    def _windowed(self, epoch: int, positions: Ints) -> Ints:
        chunks, starts, window_starts = _chunk_order(self, epoch)
        out = np.empty_like(positions)
        if not len(positions):
            return out
        at, last = int(positions[0]), int(positions[-1])
        w = int(np.searchsorted(window_starts, at, side="right")) - 1
        while at <= last:
            base, end = int(window_starts[w]), int(window_starts[w + 1])
            stop = min(end, last + 1)
            inside = permute(np.arange(at - base, stop - base), end - base, (self.seed, epoch, w)) + base
            chunk = np.searchsorted(starts, inside, side="right") - 1
            out[at - positions[0] : stop - positions[0]] = self.bounds[chunks[chunk]] + (inside - starts[chunk])
            at, w = stop, w + 1
        return out


@lru_cache(maxsize=16)
def _cached_block(order: Order, epoch: int, number: int) -> Ints:
    block = order.span(epoch, number * _BLOCK, min((number + 1) * _BLOCK, order.n))
    block.setflags(write=False)  # callers get views of it
    return block


@lru_cache(maxsize=64)  # a balanced order has one a class
def _chunk_order(order: Order, epoch: int) -> tuple[Ints, Ints, Ints]:
    """Chunks in this epoch's order, the position where each begins, and the positions [0, ..., n] where windows begin."""
    n_chunks = len(order.bounds) - 1
    chunks = permute(np.arange(n_chunks), n_chunks, (order.seed, epoch))
    starts = np.zeros(n_chunks + 1, np.int64)
    np.cumsum(np.diff(order.bounds)[chunks], out=starts[1:])
    window_starts = np.append(starts[:-1][:: order.window], starts[-1])
    return chunks, starts, window_starts


@dataclass(frozen=True)
class Batches:
    """How an epoch of `n` positions is cut into batches, and which part of each belongs to this shard.

    With S shards, global batch g is positions [g*B*S, (g+1)*B*S) and shard r takes the r-th slice. The last global batch
    is divided evenly; a rest smaller than S is dropped, or with `pad` filled up with positions from the beginning again.
    """

    n: int
    batch_size: int
    drop_remainder: bool = False
    shard_index: int = 0
    num_shards: int = 1
    pad: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size is {self.batch_size}, expected at least 1, or None for single samples")
        if self.num_shards < 1:
            raise UsageError(f"num_shards is {self.num_shards}, expected at least 1")
        if not 0 <= self.shard_index < self.num_shards:
            raise UsageError(f"shard_index is {self.shard_index}, expected 0 to {self.num_shards - 1}")

    @property
    def global_size(self) -> int:
        """Samples in one global batch, over all shards."""
        return self.batch_size * self.num_shards

    def __len__(self) -> int:
        whole, rest = divmod(self.n, self.global_size)
        return whole + (not self.drop_remainder and rest >= (1 if self.pad else self.num_shards))

    def positions(self, batch: int) -> tuple[int, int]:
        """First and past-the-last position of this shard's part of global batch `batch`; beyond `n` it is padding."""
        if not 0 <= batch < len(self):
            raise IndexError(f"batch {batch} is outside the epoch's {len(self)} batches")
        start = batch * self.global_size
        rest = self.n - start
        part = min(self.batch_size, -(-rest // self.num_shards) if self.pad else rest // self.num_shards)
        first = start + self.shard_index * part
        return first, first + part

    def n_padding(self, batch: int) -> int:
        """Positions of this shard's part of global batch `batch` that are padding."""
        first, last = self.positions(batch)
        return max(0, last - max(first, self.n))


@dataclass(frozen=True)
class Cursor:
    """The resume state: which epoch, how many samples of its global order are done, and of what (`fingerprint`)."""

    epoch: int
    position: int
    fingerprint: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "fingerprint": dict(self.fingerprint)}

    @classmethod
    def parse(cls, data: Any, expected: Mapping[str, Any]) -> Cursor:
        """Check a cursor from outside against the fingerprint of the loader that is to resume from it.

        Raises:
            UsageError: not a cursor, or one of something else; the message says what differs.
        """
        try:
            epoch, position = operator.index(data["epoch"]), operator.index(data["position"])
            found = dict(data["fingerprint"])
        except (KeyError, TypeError, ValueError):
            raise UsageError("this is no cursor", hint="Pass what cursor_at() returned.") from None
        differs = [
            f"{name} (cursor {found.get(name)!r}, here {value!r})"
            for name, value in expected.items()
            if found.get(name) != value
        ]
        if differs:
            raise UsageError(f"this cursor belongs to something else: {'; '.join(differs)}")
        if epoch < 0 or position < 0:
            raise UsageError(f"the cursor points at epoch {epoch}, position {position}; both must be >= 0")
        return cls(epoch, position, found)
