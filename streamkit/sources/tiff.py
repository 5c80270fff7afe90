"""TIFF and GeoTIFF through tifffile: what a file holds, and windows of it, of any number of bands and any dtype.

A window is read from a memory map where the file is not compressed, else strip by strip or tile by tile; what was decoded
last is kept, because neighbours follow. Georeference is not kept. Of a file of several pages the first counts.

>>> import tempfile, tifffile
>>> path = tempfile.mkdtemp() + "/a.tif"
>>> tifffile.imwrite(path, np.arange(60, dtype=np.uint16).reshape(4, 5, 3), planarconfig="contig", compression="zlib")
>>> with opened(path) as scene:
...     scene.info, scene.window(1, 2, 2, 1).tolist()
(Info(height=4, width=5, bands=3, dtype='uint16', picture=False), [[[21, 22, 23]], [[36, 37, 38]]])
"""

from __future__ import annotations

import logging
import math
import struct
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile

from streamkit.codecs.sniff import looks_like
from streamkit.schema import MAX_NDIM

EXTENSIONS = (".tif", ".tiff")
KEPT_NBYTES = 128 << 20  # decoded strips or tiles of a file at work
MAX_SEGMENT_NBYTES = 1 << 30
_DAMAGED = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, struct.error, OverflowError,
    ZeroDivisionError, AssertionError, NotImplementedError, RecursionError, MemoryError,
)  # fmt: skip  # what tifffile and imagecodecs raise on damaged files
_GRAY, _RGB, _YCBCR = 1, 2, 6  # Source: TIFF 6.0, PhotometricInterpretation
_PLAIN_PHOTOMETRIC = (_GRAY, _RGB, _YCBCR)


class BadTiff(ValueError):
    """Bytes that are no TIFF that can be read; the message is the reason. `refused` marks a limit exceeded."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Info(NamedTuple):
    """What a file holds. `picture`: as Pillow would read it, nothing is lost but by its size."""

    height: int
    width: int
    bands: int
    dtype: str
    picture: bool

    @property
    def is_plain(self) -> bool:
        """True where tiles of it are pictures: gray or RGB of 8 bits, no palette."""
        return self.picture and self.dtype == "uint8" and self.bands in (1, 3)


def probe(path: str) -> Info:
    """The header. Raises BadTiff, OSError."""
    with opened(path) as scene:
        return scene.info


@contextmanager
def opened(path: str) -> Iterator[Scene]:
    """A file to read windows of. Raises BadTiff, OSError; so do its windows."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of oddities that are decided here
    with open(path, "rb") as file:
        head = file.read(512)
    try:
        with tifffile.TiffFile(path) as tif:
            yield Scene(path, tif)
    except BadTiff:
        raise
    except (PermissionError, FileNotFoundError):
        raise
    except _DAMAGED as error:
        reason = (
            looks_like(head) or f"damaged TIFF: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        raise BadTiff(reason) from None


class Scene:
    """The first page of a TIFF file under work. Made by `opened`."""

    def __init__(self, path: str, tif: Any) -> None:
        page = tif.pages[0]
        separate, depth, height, width, contiguous = (int(n) for n in page.shaped)
        dtype = page.dtype
        if dtype is None or dtype.kind not in "biufc" or depth != 1 or page.ndim > MAX_NDIM or min(page.shaped) < 1:
            raise BadTiff(f"is {dtype} of shape {page.shape}, expected numbers of (height, width, bands)")
        self.page, self.file, self.n_planes = page, tif.filehandle, separate
        self.info = Info(height, width, separate * contiguous, dtype.name, _is_picture(page, separate * contiguous))
        self.dtype = np.dtype(dtype.name)
        self._mapped: Any = None
        self._kept: OrderedDict[int, Any] = OrderedDict()
        if page.is_memmappable:
            stored = np.dtype(dtype).newbyteorder(tif.byteorder)
            shape = (separate, height, width, contiguous)
            if page.dataoffsets[0] + math.prod(shape) * stored.itemsize > self.file.size:
                raise BadTiff(f"shape {shape[1:]} of {dtype} needs more bytes than the file has")
            self._mapped = np.memmap(path, stored, "r", page.dataoffsets[0], shape)
            return
        self.size = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
        if min(self.size) < 1:
            raise BadTiff(f"its tiles or strips are {self.size[0]}x{self.size[1]} pixels")
        nbytes = self.size[0] * self.size[1] * contiguous * self.dtype.itemsize
        if nbytes > MAX_SEGMENT_NBYTES:
            raise BadTiff(
                f"one strip of {nbytes} bytes, the limit is {MAX_SEGMENT_NBYTES}: write it tiled first "
                "(gdal_translate -co TILED=YES)",
                refused=True,
            )
        self.grid = (-(-height // self.size[0]), -(-width // self.size[1]))
        n_segments = separate * self.grid[0] * self.grid[1]
        if len(page.dataoffsets) != n_segments or len(page.databytecounts) != n_segments:
            raise BadTiff(f"has {len(page.dataoffsets)} strips or tiles, its size asks for {n_segments}")
        self.n_kept = max(1, KEPT_NBYTES // nbytes)

    def window(self, y: int, x: int, height: int, width: int) -> npt.NDArray[Any]:
        """Values of a window that lies inside, (height, width, bands), in native byte order."""
        if self._mapped is not None:
            values = self._mapped[:, y : y + height, x : x + width]
            return np.moveaxis(values, 0, 2).reshape(height, width, -1).astype(self.dtype)
        out = np.zeros((self.n_planes, height, width, self.info.bands // self.n_planes), self.dtype)
        down, right = self.size
        for plane in range(self.n_planes):
            for row in range(y // down, -(-(y + height) // down)):
                for column in range(x // right, -(-(x + width) // right)):
                    values = self._segment((plane * self.grid[0] + row) * self.grid[1] + column)
                    if values is not None:
                        _copy(values, row * down, column * right, out[plane], y, x)
        return np.moveaxis(out, 0, 2).reshape(height, width, -1)

    def _segment(self, number: int) -> npt.NDArray[Any] | None:
        """A decoded strip or tile (rows, columns, bands); None where a sparse file has none."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        offset, nbytes = self.page.dataoffsets[number], self.page.databytecounts[number]
        if nbytes > min(self.file.size, MAX_SEGMENT_NBYTES):
            raise BadTiff(f"a strip or tile of {nbytes} bytes in a file of {self.file.size}")
        data = b""
        if nbytes:
            self.file.seek(offset)
            data = self.file.read(nbytes)
            if len(data) != nbytes:
                raise BadTiff(f"the file ends inside a strip or tile at byte {offset}")
        options: dict[str, Any] = {}
        if self.page.compression in (6, 7, 34892, 33007):  # JPEG
            options = {"jpegtables": self.page.jpegtables, "jpegheader": self.page.jpegheader}
        values = self.page.decode(data or None, number, **options)[0]
        values = None if values is None else values[0]
        self._kept[number] = values
        while len(self._kept) > self.n_kept:
            self._kept.popitem(last=False)
        return values


def _copy(values: npt.NDArray[Any], top: int, left: int, out: npt.NDArray[Any], y: int, x: int) -> None:
    """Copy what a segment at (top, left) and a window at (y, x) share."""
    y0, x0 = max(top, y), max(left, x)
    y1, x1 = min(top + values.shape[0], y + out.shape[0]), min(left + values.shape[1], x + out.shape[1])
    if y0 < y1 and x0 < x1:
        out[y0 - y : y1 - y, x0 - x : x1 - x] = values[y0 - top : y1 - top, x0 - left : x1 - left]


def _is_picture(page: Any, bands: int) -> bool:
    """True where 8 bits hold every value, and 1, 3 or 4 bands with alpha at most hold every band."""
    extra = page.extrasamples or ()
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    if bits > 8 or page.dtype.kind not in "bu" or bands > 4 or any(int(kind) == 0 for kind in extra):
        return False
    return bands in (1, 3, 4) or (bands == 2 and len(extra) == 1)
