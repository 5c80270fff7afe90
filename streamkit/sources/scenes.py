"""TIFF files that no picture holds: of more than 8 bits, of other bands, or of over 64 Mpx. Read in windows, never whole.

One scene is one array (height, width, bands); with --tile each tile is, and only the tiles' strips are read. Tiles of gray
or RGB scenes of 8 bits are pictures again.

>>> import tempfile, tifffile
>>> folder = tempfile.mkdtemp()
>>> tifffile.imwrite(folder + "/a.tif", np.zeros((20, 30, 5), np.uint16), planarconfig="contig", photometric="minisblack")
>>> scenes = scene_folder(folder, scan(folder), True)
>>> scenes.listing().schema["array"].shape
(20, 30, 5)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkit.codecs import image
from streamkit.schema import Field
from streamkit.sources import boxes
from streamkit.sources.cuts import as_bad, by_parent, cut_listing, origin_of, parents_of, starts, whole_of
from streamkit.sources.folder import Found, folder_listing, scan, unreadable
from streamkit.sources.headers import Headers
from streamkit.sources.listing import BadItem, Ints, Listing, Picture, Sample, Source, path_of
from streamkit.sources.splits import SplitFolders
from streamkit.sources.tiles import COLUMNS

if TYPE_CHECKING:
    from streamkit.sources.tiff import Info

EXTENSIONS = (".tif", ".tiff")


@dataclass(frozen=True)
class Scenes:
    """A folder of TIFF files, one scene a file.

    Attributes:
        root: the folder.
        found: what a walk met already; it does not travel to workers.
        class_folders: whether folders name classes.
        tile: (height, width) of the tiles that keys `path#y,x` mean; None for whole scenes.
        as_pictures: tiles are pictures, because all scenes are plain.
    """

    root: str
    found: Found | None = field(default=None, compare=False, repr=False)
    class_folders: bool = True
    tile: tuple[int, int] | None = None
    as_pictures: bool = False

    def listing(self) -> Listing:
        found = self.found or scan(self.root)
        good: list[tuple[str, int]] = []
        infos: list[Info] = []
        for key, size in found.images:
            info = probed(self.file(key), key)
            if isinstance(info, BadItem):
                found.bad.append(info)
                continue
            first = infos[0] if infos else info
            if (info.dtype, info.bands) == (first.dtype, first.bands):
                good.append((key, size))
                infos.append(info)
            else:
                reason = f"is {info.bands} bands of {info.dtype}, but {good[0][0]} is {first.bands} of {first.dtype}"
                found.bad.append(BadItem(key, reason))
        return folder_listing(found, good, self._field(infos), self.class_folders)

    def _field(self, infos: Sequence[Info]) -> Field:
        if self.as_pictures:
            return Field("image", "image", "uint8", (None, None, None), "mixed")
        if not infos:
            return Field("array", "array", "uint8", (None, None, 1))
        most = self.tile or (1 << 62, 1 << 62)
        heights = {min(info.height, most[0]) for info in infos}
        widths = {min(info.width, most[1]) for info in infos}
        shape = (*(sides.pop() if len(sides) == 1 else None for sides in (heights, widths)), infos[0].bands)
        return Field("array", "array", infos[0].dtype, shape)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "found": None}

    def file(self, key: str) -> Path:
        return Path(self.root, path_of(key))

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        from streamkit.sources import tiff

        runs = ((key, [key]) for key in keys) if self.tile is None else by_parent(keys)
        for parent, pieces in runs:
            done = 0
            try:
                with tiff.opened(str(self.file(parent))) as scene:
                    for piece in pieces:
                        sample = self._sample(piece, scene)
                        done += 1
                        yield sample
            except tiff.BadTiff as error:
                yield from as_bad(pieces[done:], BadItem(parent, str(error), error.refused))
            except OSError as error:
                yield from as_bad(pieces[done:], BadItem(parent, unreadable(error)))

    def _sample(self, key: str, scene: Any) -> Sample | BadItem:
        info: Info = scene.info
        if self.tile is None:
            return Sample({"array": scene.window(0, 0, info.height, info.width)})
        y, x = origin_of(key)
        height, width = min(self.tile[0], info.height), min(self.tile[1], info.width)
        if y + height > info.height or x + width > info.width:
            return BadItem(key, f"the scene is {info.height}x{info.width} pixels now, smaller than when it was listed")
        values = scene.window(y, x, height, width)
        # Tiles of nothing are equal by nature: that is no leak.
        content = None if values.any() else bytes(16)
        return Sample({"image": Picture(values, "tiff")} if self.as_pictures else {"array": values}, content)


def probed(path: Path, key: str) -> Info | BadItem:
    """A file's header, or why it has none."""
    from streamkit.sources import tiff

    try:
        return tiff.probe(str(path))
    except tiff.BadTiff as error:
        return BadItem(key, str(error), error.refused)
    except OSError as error:
        return BadItem(key, unreadable(error))


def scene_folder(root: str, found: Found, class_folders: bool, tile: tuple[int, int] | None = None) -> Scenes | None:
    """The scenes of a folder; None where something else than TIFF lies in it, or they are pictures.

    Of the first 64 files, one that is more than a picture makes all of them scenes.
    """
    if not found.images or not all(key.lower().endswith(EXTENSIONS) for key, _ in found.images):
        return None
    seen = [probed(Path(root, path_of(key)), key) for key, _ in found.images[:64]]
    infos = [info for info in seen if not isinstance(info, BadItem)]
    if all(info.picture and info.height * info.width <= image.MAX_PIXELS for info in infos):
        return None
    return Scenes(root, found, class_folders, tile, tile is not None and all(info.is_plain for info in infos))


def has_scenes(source: Source) -> bool:
    """True for scenes, in split folders too."""
    if isinstance(source, SplitFolders):
        return any(has_scenes(part) for _, _, part in source.parts)
    return isinstance(source, Scenes)


@dataclass(frozen=True)
class TiledScenes:
    """Scenes, with labels perhaps, cut into tiles of `size` that begin `stride` apart, (down, right) [pixel]."""

    source: Source
    size: tuple[int, int]
    stride: tuple[int, int]

    def listing(self) -> Listing:
        return self.cut(self.source.listing())[0]

    def cut(self, found: Listing) -> tuple[Listing, Headers, Ints]:
        """The listing of all tiles, the header that each would have as a picture, and its bytes before compression."""
        infos = [probed(Path(str(self.source.file(key))), key) for key in found.keys]
        listing = cut_listing(found, [self._origins(info) for info in infos], COLUMNS)
        whole = [info for info in infos if not isinstance(info, BadItem)]
        tiles, sizes = [], []
        for info in (whole[parent] for parent in parents_of(listing).tolist()):
            height, width = min(self.size[0], info.height), min(self.size[1], info.width)
            tiles.append(image.Info("tiff", width, height, info.bands, 1))
            sizes.append(height * width * info.bands * np.dtype(info.dtype).itemsize)
        return boxes.in_tiles(listing, tiles), tiles, np.array(sizes, np.int64)

    def _origins(self, info: Info | BadItem) -> Ints | BadItem:
        if isinstance(info, BadItem):
            return info
        down = starts(info.height, self.size[0], self.stride[0])
        right = starts(info.width, self.size[1], self.stride[1])
        return np.array([(y, x) for y in down for x in right], np.int64)

    def samples(self, keys: Sequence[str]) -> Iterator[Sample | BadItem]:
        return self.source.samples(keys)

    def file(self, key: str) -> Path | None:
        return self.source.file(whole_of(key))
