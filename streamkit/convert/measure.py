"""What must be looked at before a conversion can be planned: headers of pictures that will be re-encoded, and whether
compression pays. Everything else is known from names and sizes.

    >>> measure.__name__
    'measure'
"""

from __future__ import annotations

from typing import NamedTuple

from streamkit.codecs import image
from streamkit.convert.compression import Choice, choose
from streamkit.convert.encode import raw_image_field, storage_schema, target_size
from streamkit.convert.items import Items
from streamkit.convert.options import Options
from streamkit.schema import Schema
from streamkit.sources.headers import read_headers
from streamkit.sources.listing import Ints


class Measured(NamedTuple):
    """The storage schema, what compression came to, and expected bytes of each item where they are not the source's."""

    schema: Schema
    compression: Choice
    sizes: Ints | None


def measure(items: Items, options: Options) -> Measured:
    """Look at what the plan of a conversion needs to know."""
    source, listing = items.source, items.listing
    compression = choose(source, listing, options)
    schema = storage_schema(listing.schema, options, compression.codec, listing.arrays)
    pictures = [f for f in schema if f.is_image]
    if not pictures or not options.reencodes:
        return Measured(schema, compression, items.sizes)
    infos = read_headers(source, listing, options.max_pixels) if items.infos is None else items.infos
    if options.encode == "raw":
        good = [info for info in infos if isinstance(info, image.Info)]
        fields = {f.name: raw_image_field(f, good, options) for f in pictures}
        known = Schema(tuple(fields.get(f.name, f) for f in listing.schema))
        schema = storage_schema(known, options, compression.codec, listing.arrays)  # only known shapes can be chunked
    sizes = (listing.sizes if items.sizes is None else items.sizes).copy()
    for i, info in enumerate(infos):
        if isinstance(info, image.Info):
            height, width = target_size(info.height, info.width, options)
            if options.encode == "raw":
                sizes[i] = height * width * (schema[pictures[0].name].shape[-1] or info.channels)
            else:  # re-encoded at about the same bits a pixel
                sizes[i] = max(512, sizes[i] * height * width // (info.height * info.width))
    return Measured(schema, compression, sizes)
