"""Headers of all pictures of a listing: sizes and channels, before anything is decoded.

>>> from streamkit.sources import open_source
>>> source = open_source("sample_data/images/val")
>>> read_headers(source, source.listing())[0]
Info(format='jpeg', width=32, height=32, channels=3, orientation=1)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from streamkit.codecs import image
from streamkit.sources.listing import BadItem, Listing, Source

Headers = Sequence[image.Info | BadItem]


def read_headers(source: Source, listing: Listing, max_pixels: int = image.MAX_PIXELS) -> Headers:
    """The header of each item's image, or why it has none."""
    out: list[image.Info | BadItem] = []
    for start in range(0, len(listing), 1024):
        keys = [listing.keys[i] for i in range(start, min(start + 1024, len(listing)))]
        for part in _same_split(keys, listing, start):
            for key, sample in zip(part, source.samples(part), strict=True):
                if isinstance(sample, BadItem):
                    out.append(sample)
                    continue
                try:
                    out.append(image.probe(sample.payloads["image"], max_pixels))
                except image.BadImage as error:
                    out.append(BadItem(key, str(error), error.refused))
    return out


def _same_split(keys: list[str], listing: Listing, start: int) -> Iterator[list[str]]:
    """`keys` cut where the split changes: sources of split folders read one folder at a time."""
    if listing.split_of is None:
        yield keys
        return
    numbers = listing.split_of[start : start + len(keys)]
    for part in np.split(np.arange(len(keys)), np.flatnonzero(np.diff(numbers)) + 1):
        yield [keys[i] for i in part]
