"""Which item goes to which split: exact fractions in every class, or whole groups. Pure.

>>> group_of = np.array([0, 0, 0, 1, 2, 2])
>>> split_groups(group_of, np.arange(3), np.zeros(6, np.int64), np.array([0.5, 0.5])).tolist()
[0, 0, 0, 1, 1, 1]
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streamkit.convert.options import Options
from streamkit.errors import UsageError
from streamkit.sources.listing import Ints, Listing


def item_hashes(listing: Listing, seed: int) -> Ints:
    """Hash of each item; what was cut from one item, or lies compressed together, shares one, so that it stays together."""
    if listing.parent is None:
        return key_hashes(listing.keys, seed, listing.block)
    _, first = np.unique(listing.parent, return_index=True)
    return key_hashes([listing.keys[i] for i in first.tolist()], seed)[listing.parent]


def key_hashes(keys: Sequence[str], seed: int, block: int = 1) -> Ints:
    """63-bit hash of each key, salted by the seed; runs of `block` rows share the hash of their first."""
    salted = hashlib.blake2b(digest_size=8, key=str(seed).encode()[:64])
    digests = bytearray()
    for i in range(0, len(keys), block):
        one = salted.copy()  # half the cost of another one
        one.update(keys[i].encode())
        digests += one.digest()
    out = (np.frombuffer(digests, "<u8") >> 1).astype(np.int64)
    return np.repeat(out, block)[: len(keys)] if block > 1 else out


@dataclass(frozen=True)
class There:
    """What a dataset that is appended to has already; nothing, for a new one.

    Attributes:
        samples: split -> number of samples.
        shards: split -> number of the next shard.
        groups: value of --group-by, as text -> its split.
    """

    samples: Mapping[str, int] = field(default_factory=dict)
    shards: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


NOTHING = There()


def assign_splits(
    listing: Listing, options: Options, hashes: Ints, there: There = NOTHING
) -> tuple[Sequence[str], Ints]:
    """Split names and the number of each item's split: folders if there are any, else fractions, else all "train".

    Args:
        listing: the items.
        options: `split` and `group_by` are used.
        hashes: of the items, int64 (n,): each split gets the lowest ones of what is left, in each class.
        there: samples count towards the fractions, groups stay in their split.

    Raises:
        UsageError: fractions for split folders, groups without fractions, or a column that is not there.
    """
    grouped = groups(listing, options, hashes)
    if listing.split_of is not None:
        if options.split is not None:
            folders = ", ".join(listing.split_names)
            raise UsageError(f"the source has split folders already ({folders})", hint="Leave --split out.")
        return listing.split_names, listing.split_of
    if options.split is None:
        return ("train",), np.zeros(len(listing), np.int64)
    names = sorted(options.split)  # the order they were written in must not matter: the manifest does not keep it
    fractions = np.array([options.split[name] for name in names]) / sum(options.split.values())
    label = listing.schema.label
    classes = listing.columns["label"] if label is not None else np.zeros(len(listing), np.int64)
    written = tuple(options.split)
    as_written = np.array([written.index(name) for name in names])
    counts = np.array([there.samples.get(name, 0) for name in names])
    owed = fractions * counts.sum() - counts  # what each split is short of over the classes so far [samples]
    if grouped is not None:
        split_of = as_written[split_groups(*grouped, classes, fractions, owed)]
        return written, _known_groups(split_of, written, listing, options, there)
    split_of = np.empty(len(listing), np.int64)
    order = np.lexsort((hashes, classes))
    starts = np.flatnonzero(np.r_[True, np.diff(classes[order]) != 0]) if len(order) else np.empty(0, np.int64)
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        ideal = fractions * (stop - start)
        counts = np.floor(ideal + 1e-9).astype(np.int64)
        owed += ideal - counts
        # Whoever is owed most is rounded up, so that fractions hold for the whole even when classes are tiny.
        up = np.argsort(-owed, kind="stable")[: stop - start - counts.sum()]
        counts[up] += 1
        owed[up] -= 1
        split_of[order[start:stop]] = np.repeat(np.arange(len(fractions)), counts)
    return written, as_written[split_of]


def _known_groups(split_of: Ints, names: Sequence[str], listing: Listing, options: Options, there: There) -> Ints:
    """`split_of`, but for items of groups that are in some split already."""
    if not there.groups:
        return split_of
    out = split_of.copy()
    for i, value in enumerate(listing.columns[str(options.group_by)].tolist()):
        if str(value) in there.groups:
            out[i] = names.index(there.groups[str(value)])
    return out


def groups(listing: Listing, options: Options, hashes: Ints) -> tuple[Ints, Ints] | None:
    """The number of each item's group, int64 (n,), and each group's hash. None where every item is a group of its own."""
    name = options.group_by
    if name is None:
        if listing.parent is None:
            return None
        return listing.parent, hashes[np.unique(listing.parent, return_index=True)[1]]
    if options.split is None:
        raise UsageError("group_by keeps groups in one split, and there are no fractions", hint="Pass --split too.")
    if name not in listing.columns:
        there = ", ".join(sorted(listing.columns)) or "none"
        raise UsageError(f"there is no column {name!r} to group by", hint=f"Columns with one value an item: {there}.")
    numbers: dict[object, int] = {}
    values = listing.columns[name].tolist()
    group_of = np.fromiter((numbers.setdefault(v, len(numbers)) for v in values), np.int64, len(values))
    return group_of, key_hashes([str(value) for value in numbers], options.seed)


def split_groups(
    group_of: Ints,
    hashes: Ints,
    classes: Ints,
    fractions: npt.NDArray[np.float64],
    owed: npt.NDArray[np.float64] | None = None,
) -> Ints:
    """The number of each item's split, int64 (n,), equal for equal groups, near the fractions in each class.

    Args:
        group_of: number of each item's group, from 0, int64 (n,).
        hashes: of the groups, which decide their order.
        classes: of the items, int64 (n,); groups of several classes count as a class of their own.
        fractions: of the splits; they sum to 1.
        owed: what each split is short of before [samples]; None for nothing.

    Groups lie one after the other in the order of their hashes, and each goes where its middle lies: so one more moves few.
    """
    n_groups = len(hashes)
    size = np.bincount(group_of, minlength=n_groups)
    low, high = np.full(n_groups, np.iinfo(np.int64).max), np.full(n_groups, np.iinfo(np.int64).min)
    np.minimum.at(low, group_of, classes)
    np.maximum.at(high, group_of, classes)
    mixed = int(classes.max(initial=0)) + 1
    stratum = np.where(low == high, low, mixed)
    split_of = np.empty(n_groups, np.int64)
    owed = np.zeros(len(fractions)) if owed is None else owed.copy()  # over the strata so far
    for one in np.unique(stratum):
        members = np.flatnonzero(stratum == one)
        members = members[np.argsort(hashes[members], kind="stable")]
        ends = np.cumsum(size[members])
        wanted = np.maximum(fractions * ends[-1] + owed, 0)
        borders = np.cumsum(wanted / wanted.sum() * ends[-1])[:-1]
        split_of[members] = np.searchsorted(borders, ends - size[members] / 2, side="right")
        got = np.bincount(split_of[members], weights=size[members], minlength=len(fractions))
        owed += fractions * ends[-1] - got
    return split_of[group_of]
