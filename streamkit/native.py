"""The few lines in C, and the same in Python where they were not built: bring ranges into memory, check each crc32c, put
rows together, resize a picture. What decodes JPEGs is called by codecs/turbo.py, what lists folders and reads files whole by
sources/files.py.

Measured, 16 KiB rows in random order from the page cache: a Python loop of preadv and crc32c 5.0 us a row, one C call of
the same 4.2, a C copy out of a mapped file 1.9 to 2.4, a bare NumPy gather from memory 1.9 to 2.4. Half of a pread is
the system call; the copy sums while it copies, and writes large batches past the caches.

    >>> memory = np.zeros(4, np.uint8)
    >>> with open(__file__, "rb") as file:
    ...     read(np.array([file.fileno()]), np.array([3]), np.array([3]), memory, np.array([1]), None)
    >>> bytes(memory)
    b'\\x00The'
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class BadRange(Exception):
    """A range whose bytes are not what the index says: number `i` of those asked for. The reader names its record."""

    def __init__(self, i: int, reason: str) -> None:
        super().__init__(reason)
        self.i, self.reason = i, reason


_ABI = 8  # streamkit_abi() of the source that these calls are written for


def _load() -> Any:
    """The compiled library, or None where it was not built of this source or the processor lacks the crc32c instruction."""
    if os.environ.get("STREAMKIT_NATIVE") == "0":
        return None
    for path in sorted(Path(__file__).parent.glob("_ranges*.so")):
        library = ctypes.CDLL(str(path), use_errno=True)
        if hasattr(library, "streamkit_abi") and library.streamkit_abi() == _ABI and library.streamkit_supported():
            pointer: Any = ctypes.c_void_p
            number: Any = ctypes.c_int64
            library.streamkit_read.restype = library.streamkit_copy.restype = number
            rest = [pointer, pointer, pointer, number, pointer, pointer, pointer, pointer]
            library.streamkit_read.argtypes = [pointer, number, *rest]
            library.streamkit_copy.argtypes = [number, *rest]
            library.streamkit_pass.restype = number
            library.streamkit_pass.argtypes = [ctypes.c_int, number, number, pointer, number, *[pointer] * 5]
            library.streamkit_map.restype = pointer
            library.streamkit_map.argtypes = [ctypes.c_int, number]
            library.streamkit_unmap.argtypes = [pointer, number]
            library.streamkit_gather.restype = None
            rows, runs, lines = [number, pointer], [number, pointer, number], [number, pointer]
            library.streamkit_gather.argtypes = [*rows, pointer, number, *runs, *lines]
            library.streamkit_resize.restype = number
            library.streamkit_resize.argtypes = [*[number] * 3, pointer, *[number] * 3, pointer]
            return library
    return None


_library = _load()


def available() -> bool:
    """True where the C code is in use; without it nothing changes but the speed."""
    return _library is not None


def compiled() -> Any:
    """The C code as ctypes loaded it; None where it is not in use."""
    return _library


def map_file(fd: int, nbytes: int) -> int:
    """Map an open file; its address. `copy` from it raises BadRange where the file was cut. OSError when it cannot be."""
    _library.streamkit_guard()
    address = _library.streamkit_map(fd, nbytes)
    if not address:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(address)


def unmapper() -> Any:
    """The function (address, nbytes) that undoes `map_file`, for a finalizer to hold on to."""
    return _library.streamkit_unmap


def read(
    fds: npt.NDArray[Any],
    offsets: Ints,
    lengths: Ints,
    memory: Bytes,
    places: Ints,
    crcs: npt.NDArray[np.uint32] | None,
) -> None:
    """Read ranges of open files.

    Args:
        fds: descriptor of each range's file, integers (n,).
        offsets, lengths: of the ranges in their files [B], int64 (n,); neighbours that touch are read in one call.
        memory: where the bytes go, uint8, contiguous.
        places: where each range begins in `memory` [B], int64 (n,).
        crcs: expected crc32c of each range, uint32 (n,); None to skip.

    Raises:
        BadRange: cut short, or another crc32c.
        OSError: the system refused.
    """
    if _library is None:
        sums = None if crcs is None else crcs.tolist()
        _read(fds.tolist(), offsets.tolist(), lengths.tolist(), memory, places.tolist(), sums)
    else:
        fds = np.ascontiguousarray(fds, np.int32)
        _call(functools.partial(_library.streamkit_read, address(fds)), offsets, lengths, memory, places, crcs)


def copy(sources: Ints, lengths: Ints, memory: Bytes, places: Ints, crcs: npt.NDArray[np.uint32] | None) -> None:
    """As `read`, from mapped files: `sources` are addresses in memory. Only where `available()`."""
    _call(_library.streamkit_copy, sources, lengths, memory, places, crcs)


class Sums:
    """crc32c of ranges of a file, found while a pass reads the file block by block.

    Args:
        offsets, lengths: of the ranges [B], int64 (n,), ascending and apart; nothing is read beyond the blocks if not.

    Attributes:
        crcs: uint32 (n,), of the first `done` ranges.
        done: ranges that have come by whole.
    """

    def __init__(self, offsets: Ints, lengths: Ints) -> None:
        self.offsets, self.lengths = (np.ascontiguousarray(values, np.int64) for values in (offsets, lengths))
        self.crcs = np.zeros(len(offsets), np.uint32)
        self._done = ctypes.c_int64()
        self._carry = ctypes.c_uint32()  # of the range that goes on in the next block; in C without the last complement
        places = (address(self.offsets), address(self.lengths), address(self.crcs))
        self._state = (len(self.crcs), *places, ctypes.byref(self._done), ctypes.byref(self._carry))

    @property
    def done(self) -> int:
        return self._done.value

    def read(self, fd: int, at: int, block: Bytes) -> int:
        """Read the block that begins at byte `at` of an open file, the one behind the last; the bytes read, 0 at its end.

        Raises:
            OSError: the system refused.
        """
        if _library is None:
            got = os.preadv(fd, [memoryview(block)], at)  # type: ignore[arg-type]
            self._sum(memoryview(block)[:got], at)  # type: ignore[arg-type]
            return got
        got = _library.streamkit_pass(fd, at, block.nbytes, address(block), *self._state)
        if got < 0:
            raise OSError(-got, os.strerror(-got))
        return int(got)

    def _sum(self, block: memoryview, start: int) -> None:
        stop = start + len(block)
        for i in range(self.done, len(self.crcs)):
            begin, end = int(self.offsets[i]), int(self.offsets[i] + self.lengths[i])
            if begin >= stop and end > stop:
                return
            part = block[max(begin, start) - start : max(0, min(end, stop) - start)]
            self._carry.value = crc32c(part, self._carry.value if begin < start else 0)
            if end > stop:
                return
            self.crcs[i], self._done.value = self._carry.value, i + 1


def _call(
    function: Any, starts: Ints, lengths: Ints, memory: Bytes, places: Ints, crcs: npt.NDArray[np.uint32] | None
) -> None:
    starts, lengths, places = (np.ascontiguousarray(values, np.int64) for values in (starts, lengths, places))
    crcs = None if crcs is None else np.ascontiguousarray(crcs, np.uint32)
    reason, found = ctypes.c_int32(), ctypes.c_uint32()
    n = len(starts)
    done = function(
        n,
        address(starts),
        address(lengths),
        address(memory),
        memory.nbytes,
        address(places),
        address(crcs),
        ctypes.byref(reason),
        ctypes.byref(found),
    )
    if done < n:
        _fail(done, reason.value, found.value, crcs)


def gather(
    sources: Sequence[Bytes], which: Ints, offsets: Ints, starts: npt.NDArray[np.int32], run_nbytes: int, memory: Bytes
) -> None:
    """Put rows together from runs of bytes.

    Args:
        sources: where the runs lie, uint8, contiguous.
        which: number of each row's source, int64 (n,).
        offsets: where each row begins in its source [B], int64 (n,), multiples of `run_nbytes`.
        starts: where the runs of a row begin behind that [B], in the order of the row's bytes; likewise.
        run_nbytes: length of every run [B].
        memory: the rows, uint8 (n, len(starts) * run_nbytes), each contiguous.
    """
    ends = offsets + int(starts.max(initial=0)) + run_nbytes
    sizes = np.array([source.nbytes for source in sources], np.int64)
    if memory.shape != (len(offsets), len(starts) * run_nbytes) or (ends > sizes[which]).any() or (offsets < 0).any():
        raise ValueError(_NO_ROOM)
    if _library is None:
        runs = [source.view(f"V{run_nbytes}") for source in sources]
        for row, source, offset in zip(memory, which.tolist(), offsets.tolist(), strict=True):
            row.view(f"V{run_nbytes}")[:] = runs[source][(offset + starts) // run_nbytes]
        return
    bases = np.array([address(source) for source in sources], np.int64)[which] + offsets
    starts = np.ascontiguousarray(starts, np.int32)
    lines = np.sort(starts)[np.flatnonzero(np.diff(np.sort(starts) >> 6, prepend=-1))[:_MAX_LINES]]
    _library.streamkit_gather(
        len(bases),
        address(bases),
        address(memory),
        memory.strides[0],
        len(starts),
        address(starts),
        run_nbytes,
        len(lines),
        address(lines),
    )


def resize(pixels: Bytes, out: Bytes) -> bool:
    """Resize a picture (height, width, channels) into `out`, contiguous, of as many channels: bilinear, as OpenCV's
    INTER_LINEAR_EXACT. False where that must be asked: without the C code, or for pixels that do not lie in lines."""
    (height, width, channels), (line, *rest) = pixels.shape, pixels.strides
    if _library is None or not pixels.size or rest != [channels, 1] or line < 0 or not out.flags.c_contiguous:
        return False
    if out.shape[2] != channels or pixels.dtype != np.uint8 or out.dtype != np.uint8:
        raise ValueError("pixels and their place must be uint8 and have as many channels")
    if not _library.streamkit_resize(height, width, channels, address(pixels), line, *out.shape[:2], address(out)):
        raise MemoryError("no memory for a line of pixels")
    return True


_MAX_LINES = 512  # of a row that are fetched ahead: what the nearest cache holds
_NO_ROOM = "a range would leave the memory it is read into"


def address(array: npt.NDArray[Any] | None) -> int | None:
    """Where an array lies in memory; None of None."""
    # array.ctypes.data makes an object on the way, at three times the price
    return None if array is None else array.__array_interface__["data"][0]


def _fail(i: int, reason: int, found: int, crcs: npt.NDArray[np.uint32] | None) -> NoReturn:
    if reason == 0 and crcs is not None:
        raise BadRange(i, f"crc32c is {found:08x}, the index says {int(crcs[i]):08x}")
    if reason == -1:
        raise BadRange(i, "the file ends inside this range")
    if reason == -3:
        raise ValueError(_NO_ROOM)
    if reason == -2:
        raise BadRange(i, "the file was cut while it was read, or its disk failed")
    if reason == errno.EIO:
        raise BadRange(i, "its disk failed: the bytes cannot be read")
    raise OSError(reason, os.strerror(reason))


def _read(
    fds: list[int], offsets: list[int], lengths: list[int], memory: Bytes, places: list[int], crcs: list[int] | None
) -> None:
    view = memoryview(memory)  # type: ignore[arg-type]
    for i, (fd, offset, length, place) in enumerate(zip(fds, offsets, lengths, places, strict=True)):
        if place < 0 or length < 0 or place + length > memory.nbytes:
            raise ValueError(_NO_ROOM)
        part = view[place : place + length]
        done = 0
        while done < length:
            try:
                got = os.preadv(fd, [part[done:]], offset + done)
            except OSError as error:
                _fail(i, error.errno or errno.EIO, 0, None)
            if got == 0:
                _fail(i, -1, 0, None)
            done += got
        if crcs is not None and (found := crc32c(part)) != crcs[i]:
            raise BadRange(i, f"crc32c is {found:08x}, the index says {crcs[i]:08x}")
