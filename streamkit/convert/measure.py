"""What must be looked at before a conversion can be planned: headers of pictures that will be re-encoded, and whether
compression pays. Everything else is known from names and sizes.

    >>> measure.__name__
    'measure'
"""

from __future__ import annotations

import numpy as np

from streamkit.codecs import array as arrays
from streamkit.codecs import image
from streamkit.convert.encode import raw_image_field, storage_schema, target_size
from streamkit.convert.items import Items
from streamkit.convert.options import Options
from streamkit.schema import Schema
from streamkit.sources import BadItem, Listing, Source
from streamkit.sources.headers import read_headers
from streamkit.sources.listing import Ints


def measure(items: Items, options: Options) -> tuple[Schema, Ints | None]:
    """The storage schema, and expected bytes of each item where they are not those of the source."""
    source, listing = items.source, items.listing
    compression = _compression(source, listing, options)
    schema = storage_schema(listing.schema, options, compression, listing.arrays)
    pictures = [f for f in schema if f.is_image]
    if not pictures or not options.reencodes:
        return schema, items.sizes
    infos = read_headers(source, listing, options.max_pixels) if items.infos is None else items.infos
    if options.encode == "raw":
        good = [info for info in infos if isinstance(info, image.Info)]
        fields = {f.name: raw_image_field(f, good, options) for f in pictures}
        known = Schema(tuple(fields.get(f.name, f) for f in listing.schema))
        schema = storage_schema(
            known, options, compression, listing.arrays
        )  # only a shape that is known can be chunked
    sizes = (listing.sizes if items.sizes is None else items.sizes).copy()
    for i, info in enumerate(infos):
        if isinstance(info, image.Info):
            height, width = target_size(info.height, info.width, options)
            if options.encode == "raw":
                sizes[i] = height * width * (schema[pictures[0].name].shape[-1] or info.channels)
            else:  # re-encoded at about the same bits a pixel
                sizes[i] = max(512, sizes[i] * height * width // (info.height * info.width))
    return schema, sizes


def _compression(source: Source, listing: Listing, options: Options) -> str:
    """What --compression comes to: auto compresses arrays only where a sample of them shrinks by a quarter."""
    if options.compression != "auto":
        return options.compression
    fields = [f for f in listing.schema if f.kind == "array" and f.name not in listing.arrays]
    if not fields or (options.format == "hdf5" and not all(f.fixed for f in fields)):
        return "none"
    step = max(1, len(listing) // 16)
    keys = [listing.keys[i] for i in range(0, len(listing), step)][:16]
    raw = packed = 0
    for key in keys:
        for sample in source.samples([key]):
            if isinstance(sample, BadItem):
                continue
            for field in fields:
                data = arrays.to_bytes(sample.payloads[field.name])[: 1 << 20]
                planes = np.frombuffer(data, np.uint8)
                if options.format == "hdf5":
                    planes = np.ascontiguousarray(planes.reshape(-1, np.dtype(field.dtype).itemsize).T)
                raw += len(data)
                packed += len(arrays.compress(planes.tobytes(), 1))
    pays = raw and packed < 0.75 * raw
    return {"tfrecord": "zlib", "hdf5": "gzip"}[options.format] if pays else "none"
