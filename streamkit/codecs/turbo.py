"""libjpeg-turbo called from C for many JPEGs at once: the one that Pillow or imagecodecs brought along, or the system's.

simplejpeg decodes a picture a call, and OpenCV resizes one. Of a picture of 32 x 32 the pixels take 7 us of a core and what
is around them 2 us more, but 25 us where two threads hand Python's lock to each other for each of them.

>>> import simplejpeg
>>> data = np.frombuffer(simplejpeg.encode_jpeg(np.full((8, 16, 3), 100, np.uint8), 95), np.uint8)
>>> files = Files(data, np.array([0]), np.array([len(data)]), np.ones(1, bool))
>>> how = How(accurate=False, upper_alone=False, max_pixels=1000)
>>> bool(decode_into(files, np.zeros((1, 2)), None, None, how, np.empty((1, 4, 6, 3), np.uint8))) if available() else True
True
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
    *("jpeg_finish_decompress", "jpeg_has_multiple_scans", "jpeg_abort_decompress"),
)
_SINCE_3 = "jpeg12_read_scanlines"  # before that, skipping and cropping had errors
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

    def one(self, i: int) -> Files:
        """Number `i` alone."""
        only = slice(i, i + 1)
        return Files(self.memory, self.starts[only], self.lengths[only], self.plain[only])


class How(NamedTuple):
    """How to decode.

    Attributes:
        accurate: take the accurate DCT instead of the fast one.
        upper_alone: nothing below the part wanted need be looked at: the picture is known to be whole.
        max_pixels: limit on width x height of what is decoded, before a part is cut out and resized.
        resizing: else a part that is not as large as wanted is left alone.
    """

    accurate: bool
    upper_alone: bool
    max_pixels: int
    resizing: bool = True


class _Wish(ctypes.Structure):
    _names = "fitting", "resizing", "height", "width", "channels", "accurate", "upper_alone", "max_nbytes"
    _fields_ = [(name, ctypes.c_int64) for name in _names]


def available() -> bool:
    """True where the C code is in use and finds the library; without it nothing changes but the speed."""
    return _turbo() is not None


# Only where `available()`; what is not done here is damaged, too large, not plain, or no JPEG.


def decode_into(
    files: Files,
    least: Ints,
    boxes: npt.NDArray[np.float64] | None,
    mirrored: npt.NDArray[np.bool_] | None,
    how: How,
    out: Bytes,
) -> npt.NDArray[np.bool_]:
    """Decode JPEGs, or parts of them, each resized (bilinear) into its slot of `out` (n, height, width, channels), uint8,
    C-contiguous. The other arguments are those of `codecs.plain.decode_into`. Returns which are done, bool (n,)."""
    if out.ndim != 4 or len(out) != len(files.starts) or out.shape[3] not in (1, 3, 4) or not out.flags.c_contiguous:
        raise ValueError(f"{len(files.starts)} pictures do not fit into {out.shape}")
    if out.dtype != np.uint8 or not all(out.shape[1:]):
        raise ValueError(f"no picture is {out.dtype} {out.shape[1:]}")
    return _call(files, least, boxes, mirrored, how, out.shape[1:], out)[:, 0] > 0


def decode_part(
    files: Files, least: Ints, boxes: npt.NDArray[np.float64] | None, how: How, channels: int, out: Bytes
) -> tuple[int, int]:
    """Decode one JPEG, or its part, as it comes, to the beginning of `out`, uint8 of max_pixels x channels at least; its
    (height, width), or (0, 0)."""
    if out.nbytes < how.max_pixels * channels or len(files.starts) != 1:
        raise ValueError("no room for a picture of max_pixels")
    height, width = _call(files, least, boxes, None, how, (0, 0, channels), out)[0].tolist()
    return height, width


def _call(
    files: Files,
    least: Ints,
    boxes: npt.NDArray[np.float64] | None,
    mirrored: npt.NDArray[np.bool_] | None,
    how: How,
    slot: tuple[int, ...],
    out: Bytes,
) -> npt.NDArray[np.int32]:
    turbo = _turbo()
    assert turbo is not None, "ask available() first"
    function, library = turbo
    starts, lengths = (np.ascontiguousarray(values, np.int64) for values in (files.starts, files.lengths))
    if len(starts) and ((starts < 0) | (lengths < 0) | (starts + lengths > files.memory.nbytes)).any():
        raise ValueError("a file would leave the memory it lies in")
    if len({len(values) for values in (*files[1:], least, boxes, mirrored) if values is not None}) != 1:
        raise ValueError("not as many boxes, sizes or marks as files")
    shapes = np.empty((len(starts), 2), np.int32)
    wish = _Wish(any(slot[:2]), how.resizing, *slot, how.accurate, how.upper_alone, how.max_pixels * slot[2])
    plain, sizes = np.ascontiguousarray(files.plain, bool), np.ascontiguousarray(least, np.int32).reshape(-1, 2)
    parts = None if boxes is None else np.ascontiguousarray(boxes, np.float64).reshape(-1, 4)
    marks = None if mirrored is None else np.ascontiguousarray(mirrored, bool)
    arrays = (files.memory, starts, lengths, plain, sizes, parts, marks, out, shapes)
    function(library, ctypes.byref(wish), len(starts), *map(native.address, arrays))
    return shapes


@functools.cache
def _turbo() -> tuple[Any, Any] | None:
    """The C function and the library's functions for it; None without either, or where the library is another."""
    code = native.compiled()
    if code is None:
        return None
    pointer: Any = ctypes.c_void_p
    code.streamkit_jpegs.restype, code.streamkit_jpegs_fit.restype = None, ctypes.c_int64
    code.streamkit_jpegs.argtypes = [pointer, pointer, ctypes.c_int64, *[pointer] * 9]
    code.streamkit_jpegs_fit.argtypes = [pointer]
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
            getattr(library, _SINCE_3)
            addresses = [ctypes.cast(getattr(library, name), pointer).value for name in _FUNCTIONS]
        except (OSError, AttributeError):
            continue
        for version in _VERSIONS:
            table = (pointer * (len(_FUNCTIONS) + 2))(*addresses, *version)
            if code.streamkit_jpegs_fit(table):
                return code.streamkit_jpegs, table
    return None


def _libraries() -> Iterator[str]:
    """Where libjpeg-turbo may be."""
    for package, pattern in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from sorted(map(str, Path(spec.origin).parent.parent.glob(pattern)))
    yield from _SYSTEM
