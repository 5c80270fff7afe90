"""libjpeg-turbo called from C for many JPEGs at once: the one that Pillow or imagecodecs brought along, or the system's.

simplejpeg decodes a picture a call. Of one of 32 x 32 the pixels take 7 us of a core and what is around them 2 us more, but
25 us where two threads hand Python's lock to each other for each of them.

>>> import simplejpeg
>>> data = np.frombuffer(simplejpeg.encode_jpeg(np.full((8, 16, 3), 100, np.uint8), 95), np.uint8)
>>> files = Files(data, np.array([0]), np.array([len(data)]), np.ones(1, bool))
>>> decode_alike(files, np.empty((1, 8, 16, 3), np.uint8)).tolist() if available() else [[8, 16]]
[[8, 16]]
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamkit import native

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# In the order of `struct turbo`. Those that skip and crop are libjpeg-turbo's alone.
_FUNCTIONS = (
    *("jpeg_std_error", "jpeg_CreateDecompress", "jpeg_destroy_decompress", "jpeg_mem_src", "jpeg_read_header"),
    *("jpeg_start_decompress", "jpeg_read_scanlines", "jpeg_skip_scanlines", "jpeg_crop_scanline"),
    *("jpeg_finish_decompress", "jpeg_abort_decompress"),
)
_VERSIONS = ((62, 632), (80, 656))  # JPEG_LIB_VERSION, and the size of jpeg_decompress_struct [B] where pointers take 8
_PACKAGES = (("PIL", "pillow.libs/libjpeg*.so*"), ("imagecodecs", "imagecodecs.libs/libjpeg-*.so*"))
_SYSTEM = ("libjpeg.so.62", "libjpeg.so.8")


class Files(NamedTuple):
    """Pictures' files in memory.

    Attributes:
        memory: where they lie, uint8, contiguous.
        starts, lengths: of each [B], int64 (n,).
        plain: which may be decoded here: those not to be turned, and not of four channels; bool (n,).
    """

    memory: Bytes
    starts: Ints
    lengths: Ints
    plain: npt.NDArray[np.bool_]

    def data(self, i: int) -> memoryview:
        """One file's bytes."""
        start = int(self.starts[i])
        return memoryview(self.memory)[start : start + int(self.lengths[i])]  # type: ignore[arg-type]

    def behind(self, i: int) -> Files:
        """Those from number `i` on."""
        return Files(self.memory, self.starts[i:], self.lengths[i:], self.plain[i:])


class _Wish(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("channels", "accurate", "upper_alone", "max_nbytes")]


def available() -> bool:
    """True where the C code is in use and finds the library; without it nothing changes but the speed."""
    return _turbo() is not None


# Only where `available()`; what could not be decoded here may be damaged, too large, turned, or no JPEG.


def decode_alike(files: Files, out: Bytes) -> npt.NDArray[np.int32]:
    """Decode JPEGs of one size by the fast DCT into `out` (n, height, width, channels), uint8, C-contiguous; what each has
    become, int32 (n, 2): (height, width), or (0, 0) where it could not be."""
    shapes = np.empty((len(out), 2), np.int32)
    shapes[:1] = out.shape[1:3]
    _call(_Wish(out.shape[3], 0, 0, out.nbytes), files, None, None, out.nbytes, out, shapes)
    return shapes


def decode_first(
    files: Files,
    least: Ints,
    boxes: npt.NDArray[np.float64] | None,
    channels: int,
    accurate: bool,
    upper_alone: bool,
    out: Bytes,
    enough: int,
) -> npt.NDArray[np.int32]:
    """Decode JPEGs, or parts of them, one behind the other.

    Args:
        files: at least one.
        least: (height, width) each must be decoded at, int64 (n, 2), as `codecs.image.decode` has it; (0, 0): its own size.
        boxes: the part wanted: top, left, height and width as shares of the whole, float64 (n, 4); None for all of it.
        channels: 1, 3 or 4 wanted.
        accurate: take the accurate DCT instead of the fast one.
        upper_alone: read nothing below the part, so that damage there is not found.
        out: uint8, contiguous; what it has beyond `enough` is the limit of a picture decoded whole.
        enough: bytes after which it ends.

    Returns:
        int32 (k, 2): the (height, width) of the pictures or parts that it came to; (0, 0), which only the last can be, where
        it could not be.
    """
    shapes = np.zeros((len(files.starts), 2), np.int32)
    wish = _Wish(channels, accurate, upper_alone, out.nbytes - enough)
    return shapes[: _call(wish, files, least, boxes, enough, out, shapes)]


def _call(
    wish: _Wish,
    files: Files,
    least: Ints | None,
    boxes: npt.NDArray[np.float64] | None,
    enough: int,
    out: Bytes,
    shapes: npt.NDArray[np.int32],
) -> int:
    turbo = _turbo()
    assert turbo is not None, "ask available() first"
    function, library = turbo
    starts, lengths = (np.ascontiguousarray(values, np.int64) for values in (files.starts, files.lengths))
    if len(starts) and ((starts < 0) | (lengths < 0) | (starts + lengths > files.memory.nbytes)).any():
        raise ValueError("a file would leave the memory it lies in")
    plain = np.ascontiguousarray(files.plain)
    sizes = None if least is None else np.ascontiguousarray(least, np.int32)
    boxes = None if boxes is None else np.ascontiguousarray(boxes, np.float64)
    arrays = (native.address(a) for a in (files.memory, starts, lengths, plain, sizes, boxes))
    room = enough, native.address(out), native.address(shapes)
    n_done = function(library, ctypes.byref(wish), len(starts), *arrays, *room)
    if not n_done and len(starts):
        raise MemoryError("no memory for a JPEG decoder")
    return int(n_done)


@functools.cache
def _turbo() -> tuple[Any, Any] | None:
    """The C function and the library's functions for it; None without either, or where the library is another."""
    compiled = native.library()
    if compiled is None:
        return None
    pointer: Any = ctypes.c_void_p
    compiled.streamkit_jpegs.restype = compiled.streamkit_jpegs_fit.restype = ctypes.c_int64
    compiled.streamkit_jpegs.argtypes = [
        pointer,
        pointer,
        ctypes.c_int64,
        *[pointer] * 6,
        ctypes.c_int64,
        pointer,
        pointer,
    ]
    compiled.streamkit_jpegs_fit.argtypes = [pointer]
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
            addresses = [ctypes.cast(getattr(library, name), pointer).value for name in _FUNCTIONS]
        except (OSError, AttributeError):
            continue
        for version in _VERSIONS:
            table = (pointer * (len(_FUNCTIONS) + 2))(*addresses, *version)
            if compiled.streamkit_jpegs_fit(table):
                return compiled.streamkit_jpegs, table
    return None


def _libraries() -> Iterator[str]:
    """Where libjpeg-turbo may be."""
    for package, pattern in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from sorted(map(str, Path(spec.origin).parent.parent.glob(pattern)))
    yield from _SYSTEM
