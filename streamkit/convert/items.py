"""What a conversion converts: the source with its labels and masks beside it, and columns that collide settled.

>>> source, listing, _ = find_items(Path("sample_data/images"), None, None, Options("tfrecord"))
>>> len(listing), listing.schema.label.class_names[:2]
(1840, ('circle', 'cross'))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from streamkit.codecs import image
from streamkit.convert.encode import target_size
from streamkit.convert.measure import Headers, headers
from streamkit.convert.options import Options
from streamkit.errors import UsageError
from streamkit.schema import Schema
from streamkit.sources import Listing, Source, open_source
from streamkit.sources.fields import INDEX_COLUMNS, free_name, reserved
from streamkit.sources.labelled import Labelled, gives_label
from streamkit.sources.labels import read_labels
from streamkit.sources.masks import Masked


def find_items(
    src: Path, labels: Path | None, masks: Path | None, options: Options
) -> tuple[Source, Listing, Headers | None]:
    """The source, its items, and the headers of its pictures where they had to be read."""
    read = None if labels is None else read_labels(labels)
    source = open_source(src, class_folders=read is None or not gives_label(read))
    if labels is not None:
        source = Labelled(source, str(src), str(labels), options.group_by, read)
    if masks is not None:
        _check_masks(src, masks)
        source = Masked(source, str(masks))
    listing = source.listing()
    infos = None
    if len(listing) and _needs_headers(listing):
        infos = headers(source, listing, options)
        listing = settle(listing, infos, options)
    return source, listing, infos


def _check_masks(src: Path, masks: Path) -> None:
    if not masks.is_dir():
        raise UsageError("this folder of masks does not exist", path=masks)
    if src.resolve() in (masks.resolve(), *masks.resolve().parents):
        raise UsageError(
            "the masks lie inside the source", path=masks, hint="Give the folder of pictures alone as SRC."
        )


def _needs_headers(listing: Listing) -> bool:
    return "image" in listing.schema and any(name in listing.schema for name in INDEX_COLUMNS)


def settle(listing: Listing, infos: Headers, options: Options) -> Listing:
    """Drop columns that the index will have of pictures anyway, if they are equal to it; else rename them to NAME_1.

    Args:
        listing: the items.
        infos: the pictures' headers; bad ones do not count.
        options: what --resize makes of the sizes.
    """
    good = [i for i, info in enumerate(infos) if isinstance(info, image.Info)]
    of_index: dict[str, Sequence[int]] = {}
    sizes = [target_size(info.height, info.width, options) for info in infos if isinstance(info, image.Info)]
    of_index["height"], of_index["width"] = [h for h, _ in sizes], [w for _, w in sizes]
    of_index["channels"] = [info.channels for info in infos if isinstance(info, image.Info)]
    fields, columns, arrays = list(listing.schema), dict(listing.columns), dict(listing.arrays)
    notices = []
    for field in [f for f in listing.schema if f.name in INDEX_COLUMNS]:
        name = field.name
        fields.remove(field)
        values = columns.pop(name, None)
        if values is not None and name in of_index and np.array_equal(np.asarray(values)[good], of_index[name]):
            continue
        free = free_name(name, {*reserved(Schema(tuple(fields))), *INDEX_COLUMNS})
        fields.append(replace(field, name=free))
        if values is None:
            arrays[free] = arrays.pop(name)
        else:
            columns[free] = values
        notices.append(f"the column {name} became {free}: it is not what the index says of the pictures")
    return replace(
        listing,
        schema=Schema(tuple(fields)),
        columns=columns,
        arrays=arrays,
        notices=(*listing.notices, *notices),
    )
