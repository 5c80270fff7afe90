"""Large pictures cut into tiles. A picture is decoded once for the tiles that follow one another, and held alone.

>>> from streamkit.sources import open_source
>>> tiled = Tiled(open_source("sample_data/images/val"), (20, 20), (20, 20))
>>> listing = tiled.listing()
>>> listing.keys[3].rpartition("#")[2], listing.columns["tile_x"][:4].tolist()
('12,12', [0, 12, 0, 12])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from streamkit.codecs import image
from streamkit.sources import boxes
from streamkit.sources.cuts import as_bad, by_parent, cut_listing, origin_of, parents_of, starts, whole_of
from streamkit.sources.headers import Headers, read_headers
from streamkit.sources.listing import BadItem, Ints, Listing, Picture, Sample, Source

COLUMNS = ("tile_y", "tile_x")


@dataclass(frozen=True)
class Tiled:
    """A source of pictures, and of their masks, cut into tiles.

    Attributes:
        source: of whole pictures.
        size: of a tile, (height, width) [pixel]; a smaller picture is one smaller tile.
        stride: from one tile to the next, (down, right) [pixel]; the last one is shifted inwards.
        max_pixels: of a whole picture.
    """

    source: Source
    size: tuple[int, int]
    stride: tuple[int, int]
    max_pixels: int = image.MAX_PIXELS

    def listing(self) -> Listing:
        found = self.source.listing()
        return self.cut(found, read_headers(self.source, found, self.max_pixels))[0]

    def cut(self, found: Listing, infos: Headers) -> tuple[Listing, Headers, Ints]:
        """The listing of all tiles of the listed pictures, the header that each would have, and its share of the bytes.

        Where tiles overlap, these shares are more than the picture; the listing's sizes sum up to it.
        """
        listing = cut_listing(found, [self._origins(info) for info in infos], COLUMNS)
        whole = [(info, n) for info, n in zip(infos, found.sizes.tolist(), strict=True) if isinstance(info, image.Info)]
        tiles, sizes = [], []
        for info, nbytes in (whole[parent] for parent in parents_of(listing).tolist()):
            height, width = min(self.size[0], info.height), min(self.size[1], info.width)
            tiles.append(image.Info(info.format, width, height, info.channels, 1))
            sizes.append(nbytes * height * width // (info.height * info.width))
        return boxes.in_tiles(listing, tiles), tiles, np.array(sizes, np.int64)

    def _origins(self, info: image.Info | BadItem) -> Ints | BadItem:
        if isinstance(info, BadItem):
            return info
        down = starts(info.height, self.size[0], self.stride[0])
        right = starts(info.width, self.size[1], self.stride[1])
        return np.array([(y, x) for y in down for x in right], np.int64)

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        runs = list(by_parent(keys))
        for (_, pieces), sample in zip(runs, self.source.samples([parent for parent, _ in runs]), strict=True):
            if isinstance(sample, BadItem):
                yield from as_bad(pieces, sample)
                continue
            try:
                whole = self._decoded(sample.payloads)
            except image.BadImage as error:
                yield from as_bad(pieces, BadItem("", str(error), error.refused))
                continue
            content = blake3.blake3(sample.payloads["image"]).digest()
            for key in pieces:
                yield self._tile(key, whole, content)

    def _decoded(self, payloads: dict[str, Any]) -> dict[str, Picture]:
        """The image and its mask. The image comes last: it may lie in the buffer that the next JPEG is decoded into."""
        out = {}
        for name, data in sorted(payloads.items(), reverse=True):
            if name not in ("image", "mask"):
                continue
            mask = name == "mask"
            info = image.probe(data, self.max_pixels)
            image.check_crcs(data)
            channels = 1 if mask else image.pixel_channels(info)
            pixels = image.decode(
                data,
                channels=channels,
                orientation=info.orientation,
                n_stored=info.channels,
                max_pixels=self.max_pixels,
                mask=mask,
            )
            out[name] = Picture(pixels.copy() if mask else pixels, info.format)
        return out

    def _tile(self, key: str, whole: dict[str, Picture], content: bytes) -> Sample | BadItem:
        y, x = origin_of(key)
        height, width = whole["image"].pixels.shape[:2]
        for name, picture in whole.items():
            if picture.pixels.shape[:2] != (height, width):
                sizes = "{}x{} pixels, the image {}x{}".format(*picture.pixels.shape[:2], height, width)
                return BadItem(key, f"its {name} is {sizes} (height x width)")
        if y + min(self.size[0], height) > height or x + min(self.size[1], width) > width:
            return BadItem(key, f"the picture is {height}x{width} pixels now, smaller than when it was listed")
        tiles: dict[str, Any] = {
            name: Picture(pixels[y : y + self.size[0], x : x + self.size[1]], format)
            for name, (pixels, format) in sorted(whole.items())
        }
        return Sample(tiles, blake3.blake3(content + f"#{y},{x}".encode()).digest(16))

    def file(self, key: str) -> Path | None:
        return self.source.file(whole_of(key))
