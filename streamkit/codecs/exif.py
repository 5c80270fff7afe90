"""Which way up a JPEG is, by its EXIF block, without opening it as a picture: a hundred times as fast.

>>> jpeg_orientation(bytes.fromhex("ffd8 ffda"))
1
"""

from __future__ import annotations

import struct
from typing import Any

_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers that no length follows
_ORIENTATION, _SHORT = 0x0112, 3
_SMALL_NBYTES = 1 << 14
_UNSAID = 0
_XMP_ORIENTATION = b"tiff:Orientation"  # counts where the EXIF block does not say it


def jpeg_orientation(data: Any) -> int | None:
    """The orientation, 1 to 8, or None where another must look: a block that is odd, or XMP that says it instead.

    Args:
        data: the file's bytes.

    Source: ISO/IEC 10918-1, B.1.1; Exif 2.3, 4.5.2 and 4.6.2.
    """
    if len(data) <= _SMALL_NBYTES and b"Exif\0\0" not in (file := bytes(data)) and _XMP_ORIENTATION not in file:
        return 1  # a tenth of the time of walking over the markers, which of a small file is most of all
    at, blocks = 2, 0
    unsaid: int | None = 1  # the answer where no block says it
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (_SOS, _EOI):
            return unsaid
        if marker == 0xFF or marker in _ALONE:  # 0xFF fills up
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == _APP1 and data[at + 4 : at + 10] == b"Exif\0\0":
            blocks += 1
            found = _orientation(data[at + 10 : end]) if blocks == 1 else None
            if found != _UNSAID:
                return found
        elif marker == _APP1 and _XMP_ORIENTATION in bytes(data[at + 4 : end]):
            unsaid = None
        at = end
    return unsaid if at + 4 > len(data) else None


def _orientation(block: Any) -> int | None:
    """The tag's value in the first directory of a TIFF block, _UNSAID where it is not there, None where the block is odd."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", block, 4)
        (n,) = struct.unpack_from(f"{order}H", block, at)
        for entry in range(at + 2, at + 2 + 12 * n, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", block, entry)
            if tag == _ORIENTATION:
                good = kind == _SHORT and count == 1
                return (value if 1 <= value <= 8 else 1) if good else None
    except struct.error:
        return None  # the block ends early
    return _UNSAID
