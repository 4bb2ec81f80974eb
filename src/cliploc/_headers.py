"""What decoding a picture file would cost, read from its structure before Pillow decodes anything.

Pillow and its libraries do what a file says, however often it says it: a JPEG of 20 kB may hold 9,000 scans, each of
which costs a pass over all pixels. The functions here only walk the structure, in time linear in the file's size, and
stop at a limit.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_SCANS = 200  # of a JPEG; a progressive one has about ten
MAX_SEGMENTS = 5_000  # of a JPEG, 64 kB each: far more than any metadata needs
MAX_JUNK = 64 << 10  # bytes between the segments of a JPEG's header
MAX_COMMENT_BLOCKS = 4_000  # of up to 255 bytes, before a GIF's first frame
MAX_BLOCKS = 200_000  # of a GIF that are walked to count its frames
MAX_FRAMES = 1_000  # of a GIF; further ones are not counted
MAX_TAGS = 65_535  # of a TIFF directory

# Any but fill bytes, escaped 0xFF and restart markers, which are part of a scan's data.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END, _SCAN, _EXIF = 0xD9, 0xDA, 0xE1
_ALONE = (0x01, 0xD8)  # markers without a length
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_POINTERS = (0x8769, 0x8825, 0xA005)  # tags that name another directory: Exif, GPS, interoperability


class CostlyError(Exception):
    """The file would cost far more than a picture of its size does; the text says what it holds."""


@dataclass(frozen=True)
class Structure:
    """What the walk over a file found."""

    scans: int = 1  # passes over all pixels that decoding takes
    frames: int = 1  # of a GIF, counted up to `MAX_FRAMES` + 1; 1 of all others, whose headers say it


def examine(file: BinaryIO, header_only: bool = False) -> Structure:
    """Walks over the structure of a JPEG, GIF or TIFF file; other formats have nothing that could be repeated.

    Args:
        header_only: whether only the header will be read, so that scans and frames need not be counted.
    """
    start = file.read(8)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(file, header_only)
    if start.startswith((b"GIF87a", b"GIF89a")):
        return _gif(file, header_only)
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        _check_directories(file)
    return Structure()


def has_costly_exif(info: Mapping[Any, Any]) -> bool:
    """Whether EXIF data, as they lie in `Image.info`, claim far more than they hold."""
    found = info.get("exif")
    if found is None and "Raw profile type exif" in info:  # ImageMagick's way to put it into a PNG
        try:
            found = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
        except ValueError:
            return False
    if not isinstance(found, bytes):
        return False
    try:
        _check_exif(found)
    except CostlyError:
        return True
    return False


# ---------------------------------------------------------------------------------------------------------------- JPEG
def _jpeg(file: BinaryIO, header_only: bool) -> Structure:
    """Counts scans as libjpeg meets them: segment by segment, up to the end of the first picture."""
    file.seek(2)
    scans = 0
    exif: list[bytes] = []
    for _ in range(MAX_SEGMENTS):
        marker = _next_marker(file, None if scans else MAX_JUNK)
        if marker is None or marker == _END:
            break
        if marker in _ALONE:
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        if length < 0:
            break  # damaged, as the decoder will say
        if marker == _SCAN:
            scans += 1
            if scans == 1:
                _check_exif(b"".join(exif))
            if header_only:
                return Structure()
            if scans > MAX_SCANS:
                raise CostlyError(f"more than {MAX_SCANS} scans")
        if marker == _EXIF and not scans:
            content = file.read(length)
            if content.startswith(b"Exif\0\0"):
                exif.append(content[6:])  # Pillow joins them, too
        else:
            file.seek(length, os.SEEK_CUR)
    else:
        raise CostlyError(f"more than {MAX_SEGMENTS:,} segments")
    return Structure(scans=max(1, scans))


def _next_marker(file: BinaryIO, most: int | None) -> int | None:
    """The next marker, with the file behind it; None at the file's end."""
    passed, size = 0, 2  # it mostly is right here
    last = b""
    while chunk := file.read(size):
        found = _MARKER.search(last + chunk)
        if found:
            file.seek(found.end() - len(last) - len(chunk), os.SEEK_CUR)
            return found.group()[1]
        last = chunk[-1:] if chunk.endswith(b"\xff") else b""
        passed, size = passed + len(chunk), min(size * 16, 64 << 10)
        if most is not None and passed > most:
            raise CostlyError(f"{most >> 10} kB of junk in its header")
    return None


# ----------------------------------------------------------------------------------------------------------------- GIF
def _gif(file: BinaryIO, header_only: bool) -> Structure:
    """Counts frames; what lies before the first one is bounded, for Pillow joins comments block by block."""
    file.seek(10)
    _skip_colours(file, behind=2)
    frames = blocks = 0
    while frames <= MAX_FRAMES and blocks < MAX_BLOCKS:
        kind = file.read(1)
        if kind in (b"", b";"):
            break
        if kind == b",":
            frames += 1
            if header_only:
                break
            file.seek(8, os.SEEK_CUR)
            _skip_colours(file, behind=0)
            file.seek(1, os.SEEK_CUR)
            blocks += _skip_blocks(file, MAX_BLOCKS - blocks)
        elif kind == b"!":
            file.seek(1, os.SEEK_CUR)
            blocks += _skip_blocks(file, MAX_BLOCKS - blocks)
        else:
            blocks += 1  # junk
        if not frames and blocks > MAX_COMMENT_BLOCKS:
            raise CostlyError(f"more than {MAX_COMMENT_BLOCKS:,} blocks of comments")
    return Structure(frames=max(1, frames))


def _skip_colours(file: BinaryIO, behind: int) -> None:
    """The palette, if the next byte says that there is one, and `behind` bytes before it."""
    flags = int.from_bytes(file.read(1), "big")
    file.seek(behind + (3 << (flags & 7) + 1 if flags & 128 else 0), os.SEEK_CUR)


def _skip_blocks(file: BinaryIO, most: int) -> int:
    """Skips blocks of at most 255 bytes, up to an empty one → their number."""
    for number in range(most):
        size = file.read(1)
        if size in (b"", b"\0"):
            return number
        file.seek(size[0], os.SEEK_CUR)
    return most


# ------------------------------------------------------------------------------------------------------- TIFF and EXIF
def _check_exif(content: bytes) -> None:
    while content.startswith(b"Exif\0\0"):
        content = content[6:]
    if content.startswith((b"II", b"MM")):
        _check_directories(io.BytesIO(content))


def _check_directories(file: BinaryIO) -> None:
    """Refuses directories whose tags all claim the same large piece of the file: each would be read by itself."""
    there = file.seek(0, os.SEEK_END)
    file.seek(0)
    header = file.read(16).ljust(16, b"\0")
    order = "<" if header.startswith(b"II") else ">"
    big = header[2:4] in (b"+\0", b"\0+")
    number, offset, entry = ("Q", "Q", "HHQQ") if big else ("H", "I", "HHII")
    inline = struct.calcsize(offset)  # bytes of a value that stands in its entry
    waiting = list(struct.unpack_from(order + offset, header, 8 if big else 4))
    seen: set[int] = set()
    claimed = 0
    while waiting and len(seen) <= len(_POINTERS) * 2:
        place = waiting.pop()
        if place in seen or place >= there:
            continue
        seen.add(place)
        file.seek(place)
        tags = int.from_bytes(file.read(struct.calcsize(number)), "little" if order == "<" else "big")
        if tags > MAX_TAGS:
            raise CostlyError(f"a directory of {tags:,} tags")
        size = struct.calcsize(order + entry)
        entries = file.read(tags * size)
        for tag, kind, count, value in struct.iter_unpack(order + entry, entries[: len(entries) // size * size]):
            length = _TYPE_BYTES.get(kind, 0) * count
            if length > inline:
                claimed += min(length, there)
            elif tag in _POINTERS:
                waiting.append(value if order == "<" else value >> 8 * (inline - length))
    if claimed > 2 * there:
        raise CostlyError(f"tags that claim {claimed >> 20:,} MB of a file of {there >> 10:,} kB")
