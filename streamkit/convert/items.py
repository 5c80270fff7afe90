"""What a conversion converts: the source with its labels and masks beside it, and columns that collide settled.

>>> listing = find_items(Path("sample_data/images"), None, None, Options("tfrecord")).listing
>>> len(listing), listing.schema.label.class_names[:2]
(1840, ('circle', 'cross'))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit.codecs import image
from streamkit.convert.encode import target_size
from streamkit.convert.options import Options
from streamkit.errors import UsageError
from streamkit.schema import Schema
from streamkit.sources import Listing, Source, open_source
from streamkit.sources.boxes import has_boxes, scaled
from streamkit.sources.fields import INDEX_COLUMNS, free_name, reserved
from streamkit.sources.folder import ArrayFolder, Found
from streamkit.sources.headers import Headers, read_headers
from streamkit.sources.labelled import Labelled, gives_label
from streamkit.sources.labels import read_labels
from streamkit.sources.listing import Ints, key_of
from streamkit.sources.masks import Masked
from streamkit.sources.scenes import TiledScenes, has_scenes
from streamkit.sources.tiles import Tiled
from streamkit.sources.windows import Windowed


class Items(NamedTuple):
    """What is converted.

    Attributes:
        source: where samples come from.
        listing: the items, cut as asked.
        infos: headers of their pictures, where they had to be read.
        sizes: expected stored bytes of each, int64 (n,), where the listing's own are not.
    """

    source: Source
    listing: Listing
    infos: Headers | None = None
    sizes: Ints | None = None


def find_items(src: Path, labels: Path | None, masks: Path | None, options: Options) -> Items:
    """The source with everything beside it.

    Raises:
        UsageError: a path that does not exist, masks inside the source, or nothing there that could be cut as asked.
        SourceError: labels that cannot be read.
    """
    read = None if labels is None else read_labels(labels)
    opened = _open(src, options, class_folders=read is None or not gives_label(read))
    source: Source = opened
    if labels is not None:
        source = Labelled(source, str(src), str(labels), options.group_by, read)
    if masks is not None:
        _check_masks(src, masks)
        if has_scenes(opened):
            raise UsageError("masks belong to pictures, and these are scenes", path=masks, hint="Convert them apart.")
        source = Masked(source, str(masks))
    if options.window is not None:
        source = Windowed(source, options.window, options.window_stride)
    listing = source.listing()
    infos = sizes = None
    if options.window is not None:
        sizes = np.full(len(listing), sum(f.sample_nbytes for f in listing.schema.payloads))
    if options.tile is not None and has_scenes(opened):
        source = TiledScenes(source, options.tile_size, options.tile_stride)
        listing, infos, sizes = source.cut(listing)
    elif options.tile is not None or _needs_headers(listing) or (options.resize is not None and has_boxes(listing)):
        infos = read_headers(source, listing, options.max_pixels) if "image" in listing.schema else []
    if options.tile is not None and not isinstance(source, TiledScenes):
        source = Tiled(source, options.tile_size, options.tile_stride, options.max_pixels)
        if infos is None or "image" not in listing.schema:
            raise UsageError("tiles are cut from pictures, and there are none", path=src)
        listing, infos, sizes = source.cut(listing, infos)
    if infos is not None and options.resize is not None and has_boxes(listing):
        listing = scaled(listing, _factors(infos, options))
    if infos is not None and _needs_headers(listing):
        listing = settle(listing, infos, options)
    return Items(source, listing, infos, sizes)


def _open(src: Path, options: Options, class_folders: bool) -> Source:
    """The source itself; with --window, one .npy is an array of its own and not a table of rows."""
    if options.window is not None and src.is_file() and src.suffix.lower() == ".npy":
        found = Found(arrays=[(key_of(src.name), src.stat().st_size)])
        return ArrayFolder(str(src.parent), found, class_folders=False)
    return open_source(src, class_folders, options.tile_size if options.tile is not None else None)


def _factors(infos: Headers, options: Options) -> npt.NDArray[np.float64]:
    """How many times as (high, wide) --resize makes each picture, float64 (n, 2)."""
    out = np.ones((len(infos), 2))
    for i, info in enumerate(infos):
        if isinstance(info, image.Info):
            height, width = target_size(info.height, info.width, options)
            out[i] = height / info.height, width / info.width
    return out


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
