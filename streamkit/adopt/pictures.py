"""An image folder where it stands: every file is one range, from its first byte to its last. Class folders are labels.

Every file is read once, for its header and its crc32c. Rows stand in the order of their keys' hashes, as in a converted
dataset, so that "train[:80%]" is a fair part of every class.

    >>> from streamkit.sources.folder import ImageFolder
    >>> fields, parts = adopt_pictures(ImageFolder("sample_data/images/val"))
    >>> [f.name for f in fields], parts[0].places.n, parts[0].file
    (['image', 'label'], 240, 'train')
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from crc32c import crc32c

from streamkit.adopt.part import Part
from streamkit.codecs import image
from streamkit.convert.assign import key_hashes
from streamkit.convert.encode import IMAGE_FACTS
from streamkit.convert.publish import source_facts
from streamkit.convert.writing import bad_items
from streamkit.schema import Field
from streamkit.shards import Places
from streamkit.shards.record import range_columns
from streamkit.sources.folder import ImageFolder
from streamkit.sources.listing import BadItem, Ints, Listing
from streamkit.sources.splits import SplitFolders

OTHERWISE = "use `streamkit convert`: its --on-bad skip leaves them out, its --max-pixels takes larger pictures"


def adopt_pictures(
    source: ImageFolder | SplitFolders, listing: Listing | None = None, tick: Callable[[int], None] | None = None
) -> tuple[list[Field], list[Part]]:
    """Fields, and one part a split.

    Args:
        source: the folder.
        listing: its listing, if it was made already.
        tick: called with 1 for each file read.

    Raises:
        SourceError: files that are no pictures, are empty, or cannot be read; `.bad` lists them all.
    """
    listing = source.listing() if listing is None else listing
    bad = list(listing.bad)
    hashes = key_hashes(listing.keys, 0)
    names = listing.split_names or ("train",)
    split_of = np.zeros(len(listing), np.int64) if listing.split_of is None else listing.split_of
    parts = []
    for number, split in enumerate(names):
        rows = np.flatnonzero(split_of == number)
        rows = rows[np.argsort(hashes[rows], kind="stable")]
        if rows.size:
            parts.append(_part(source, listing, split, rows, bad, tick))
    if bad:
        raise bad_items(tuple(sorted(bad)), len(listing) + len(listing.bad), OTHERWISE)
    return list(listing.schema), parts


def _part(
    source: ImageFolder | SplitFolders,
    listing: Listing,
    split: str,
    rows: Ints,
    bad: list[BadItem],
    tick: Callable[[int], None] | None,
) -> Part:
    keys = [listing.keys[i] for i in rows.tolist()]
    crcs = np.zeros(len(rows), np.uint32)
    lengths = np.zeros(len(rows), np.int64)
    facts = {name: np.zeros(len(rows), np.int32) for name in IMAGE_FACTS}
    formats = [""] * len(rows)
    for i, sample in enumerate(source.samples(keys)):
        if tick is not None:
            tick(1)
        if isinstance(sample, BadItem):
            bad.append(sample)
            continue
        data = sample.payloads["image"]
        try:
            info = image.probe(data)
        except image.RefusedImage:  # whose own text names an option of other commands
            bad.append(BadItem(keys[i], f"more than {image.MAX_PIXELS} pixels", refused=True))
            continue
        except image.BadImage as error:
            bad.append(BadItem(keys[i], str(error)))
            continue
        crcs[i], lengths[i] = crc32c(data), len(data)
        for name, fact in zip(IMAGE_FACTS, info[1:], strict=True):
            facts[name][i] = fact
        formats[i] = info.format
    places = Places(len(rows), range_columns("image", np.zeros(len(rows)), lengths, crcs))
    columns = {name: values[rows] for name, values in listing.columns.items()}
    told = {name: values.tolist() for name, values in facts.items()} | {"format": formats}
    digest = source_facts(Listing(keys, lengths, listing.schema))["fingerprint"]
    return Part(split, split, int(lengths.sum()), digest, keys, places, columns, told)
