"""Metadata of image files: the orientation, and files without all the rest.

Pillow refuses some files for their metadata alone: an ICC profile of an unknown compression, a comment
with a wrong checksum, a broken entry of an EXIF block. Such a file is read without it.
"""

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

ORIENTATION = 0x0112  # the entry of an EXIF block that says how the image is to be turned
EXIF_BEGINS = b"Exif\0\0"  # before the block in a JPEG
_PNG_BEGINS, _JPEG_BEGINS = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_APP0, _APP1, _APP14, _APP15, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA  # markers in a JPEG
# Chunks of a PNG that change its pixels, besides those with an upper-case initial.
_SHOWN_CHUNKS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
_TIFF_BEGINS = {b"II*\0": "<", b"MM\0*": ">"}  # with the order of their bytes
# Entries of a TIFF that describe its values and colours: sizes, strips, tiles, palettes, tables.
_SHOWN_ENTRIES = frozenset((
    254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338,
    339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
))  # fmt: skip


def without_metadata(data: bytes) -> bytes:
    """A JPEG, PNG or TIFF file, which may be broken, with its pixels and orientation alone; any other file as it is.

    >>> begin, end = b"\\xff\\xd8", b"\\xff\\xda\\0\\2\\xff\\xd9"
    >>> without_metadata(begin + b"\\xff\\xfe\\0\\7hello" + end) == begin + end
    True
    """
    if data.startswith(_PNG_BEGINS):
        return _bare_png(data)
    if data.startswith(_JPEG_BEGINS):
        return _bare_jpeg(data)
    if data[:4] in _TIFF_BEGINS:
        return _bare_tiff(data, _TIFF_BEGINS[data[:4]])
    return data


def orientation_in(block: bytes) -> int | None:
    """The EXIF orientation, 1 to 8, or None; no other entry is read.

    The block may have ``Exif`` before it, or be a TIFF file, which begins as one.

    >>> block = Image.Exif()
    >>> block[ORIENTATION] = 6
    >>> orientation_in(block.tobytes()), orientation_in(b"")
    (6, None)
    """
    block = block.removeprefix(EXIF_BEGINS)
    order = _TIFF_BEGINS.get(block[:4])
    if order is None:
        return None
    found = (_orientation_of(entry, order) for entry in _entries(block, order))
    return next((orientation for orientation in found if orientation), None)


def _entries(block: bytes, order: str) -> Iterator[bytes]:
    """The complete entries of the first directory, 12 bytes each."""
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
    except struct.error:
        return
    places = range(start + 2, start + 2 + 12 * count, 12)
    yield from (block[place : place + 12] for place in places if place + 12 <= len(block))


def _orientation_of(entry: bytes, order: str) -> int | None:
    """The orientation, when the entry is that: one 16-bit number."""
    tag, kind, values, value = struct.unpack(f"{order}HHIH2x", entry)
    return value if (tag, kind, values) == (ORIENTATION, 3, 1) and 1 <= value <= 8 else None


def _bare_png(data: bytes) -> bytes:
    kept, exif = [], b""
    for kind, whole in _chunks(data):
        if kind == b"eXIf":
            exif = whole[8:-4]
        elif kind[:1].isupper() or kind in _SHOWN_CHUNKS:
            kept.append(whole)
    if exif and kept and (small := _orientation_alone(exif)):
        body = b"eXIf" + small
        kept.insert(1, struct.pack(">I", len(small)) + body + struct.pack(">I", zlib.crc32(body)))
    return _PNG_BEGINS + b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind of each chunk of a PNG, and the whole of it; the last one may be cut short."""
    place = len(_PNG_BEGINS)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, data[place : place + 12 + length]
        place += 12 + length


def _bare_jpeg(data: bytes) -> bytes:
    place, kept, exif = 2, [data[:2]], b""
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SCAN:
            break
        segment = data[place : place + 2 + length]
        if marker == _APP1 and segment[4:].startswith(EXIF_BEGINS):
            exif = exif or segment[4 + len(EXIF_BEGINS) :]
        elif marker in (_APP0, _APP14) or not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            kept.append(segment)  # APP14 says which colours the values stand for
        place += 2 + length
    if exif and (small := _orientation_alone(exif)):
        body = EXIF_BEGINS + small
        kept.insert(1, b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body)
    return b"".join(kept) + data[place:]


def _bare_tiff(data: bytes, order: str) -> bytes:
    """The file with fewer entries in its first directory; all else stays in its place."""
    entries = list(_entries(data, order))
    kept = [entry for entry in entries if _is_shown(entry, order)]
    if len(kept) == len(entries):
        return data
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    following = data[start + 2 + 12 * len(entries) :][:4].ljust(4, b"\0")  # where the next directory is
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + following
    return data[:start] + directory + data[start + len(directory) :]


def _is_shown(entry: bytes, order: str) -> bool:
    tag = struct.unpack_from(f"{order}H", entry)[0]
    return tag in _SHOWN_ENTRIES or _orientation_of(entry, order) is not None


def _orientation_alone(exif: bytes) -> bytes:
    """An EXIF block with the orientation of another one; nothing when that has none."""
    orientation = orientation_in(exif)
    if orientation is None:
        return b""
    alone = Image.Exif()
    alone[ORIENTATION] = orientation
    return alone.tobytes().removeprefix(EXIF_BEGINS)
