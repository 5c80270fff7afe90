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
from streamkit.sources.listing import BadItem, Ints, Listing, Source

Headers = Sequence[image.Info | BadItem]


def read_headers(source: Source, listing: Listing, max_pixels: int = image.MAX_PIXELS) -> Headers:
    """The header of each item's image, or why it has none."""
    out: list[image.Info | BadItem] = []
    for start in range(0, len(listing), 1024):
        for part in same_split(np.arange(start, min(start + 1024, len(listing))), listing):
            for key, sample in zip(part, source.samples(part), strict=True):
                if isinstance(sample, BadItem):
                    out.append(sample)
                    continue
                try:
                    out.append(image.probe(sample.payloads["image"], max_pixels))
                except image.BadImage as error:
                    out.append(BadItem(key, str(error), error.refused))
    return out


def same_split(rows: Ints, listing: Listing) -> Iterator[list[str]]:
    """Keys of ascending rows, cut where the split changes: sources of split folders read one folder at a time."""
    numbers = np.zeros(len(rows)) if listing.split_of is None else listing.split_of[rows]
    for part in np.split(rows, np.flatnonzero(np.diff(numbers)) + 1):
        yield [listing.keys[i] for i in part.tolist()]
