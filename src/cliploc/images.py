"""Any file or array → an upright RGB picture, or one line why not; only `open_picture` opens picture files."""

import contextlib
import hashlib
import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cliploc._files import picture_path
from cliploc._imports import install, not_installed
from cliploc.errors import InputError, UsageError

MAX_PIXELS = 120_000_000
MAX_BYTES = 12 * MAX_PIXELS  # of memory: what a picture of 8 bits takes to be decoded, turned and made RGB
WEBP_BYTES = 13  # that its library takes for a pixel, besides Pillow's own
BAND = 2**18  # pixels that are made RGB at once
MIN_SIDE = 8  # in a smaller picture there is nothing to localize
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"),
        *(".heic", ".heif"),  # also without pillow-heif: then each such file fails with the advice to install it
    }
)
# Those that the readers of YOLO's and VOC's layouts look for; supervision's are the fewest.
READ_BY_ALL = SUFFIXES - {".gif", ".ppm", ".pgm", ".avif", ".heic", ".heif"}
# Pillow's names of the formats that are read; MPO comes with JPEG, HEIF is there where pillow-heif has registered it.
# Of the others, EPS starts Ghostscript, and some read further files, or decode before their size is known.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF")
HEVC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")  # at the start of a HEIC file
GENERAL_BRANDS = (b"mif1", b"msf1")  # of HEIC or AVIF
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
MAX_SCANNED = 20 * MAX_PIXELS  # pixels of all scans of a progressive JPEG together; it mostly has about ten


@dataclass(frozen=True)
class Whole:
    """What is known of a picture that only a smaller copy is kept of."""

    size: tuple[int, int]  # width and height
    checksum: bytes  # see `Picture.checksum`
    read: Callable[[], Image.Image]  # decodes it again


@dataclass(frozen=True)
class Picture:
    """A decoded picture, or a smaller copy that stands for it until its pixels are needed."""

    source: str  # the file's path as given, or a name for a picture from memory
    image: Image.Image  # upright (EXIF orientation applied) RGB
    notes: tuple[str, ...] = ()  # what was done to it that a user may want to know
    whole: Whole | None = None  # what `image` is a smaller copy of; None where it is the picture itself

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture."""
        return self.image.size if self.whole is None else self.whole.size

    @property
    def pixels(self) -> Image.Image:
        """The whole picture, decoded again where only a copy is kept."""
        return self.image if self.whole is None else self.whole.read()

    @cached_property
    def checksum(self) -> bytes:
        """Tells pictures with other pixels apart."""
        if self.whole is not None:
            return self.whole.checksum
        pixels = np.asarray(self.image)
        digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.digest()


ImageLike = Union[str, "os.PathLike[str]", Image.Image, "npt.NDArray[np.generic]", Picture]


def pictures_in(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """One picture or several, as an iterable: a path counts as one picture, and so does an array `[H, W, 3]`."""
    if isinstance(images, np.ndarray):
        # With its channels first it is one picture, too, which is refused, and not three or four of greys.
        single = images.ndim < 3 or (images.ndim == 3 and not {3, 4}.isdisjoint((images.shape[0], images.shape[-1])))
        return [images] if single else images
    return [images] if isinstance(images, str) or not isinstance(images, Iterable) else images


def load(image: ImageLike, source: str = "image", max_pixels: int = MAX_PIXELS) -> Picture:
    """Path, PIL image or array `[H, W(, 3 | 4)]` (uint8, or 0–1) → upright RGB on white; nothing given is changed."""
    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        _check_size(image, source, max_pixels)
        return _upright_rgb(image, source)
    if isinstance(image, np.ndarray):
        return load(_from_array(image, source), source, max_pixels)
    if hasattr(image, "__array__"):  # a tensor: neither the order of its channels nor its range is known
        raise InputError(
            f"{source}: expected a path, a PIL image or a numpy array, got {type(image).__name__}: make it an array "
            "[H, W, 3] of uint8"
        )
    if not isinstance(image, str | os.PathLike):
        raise UsageError(f"expected a path, a PIL image or a numpy array, got {type(image).__name__}")
    with open_picture(image, max_pixels) as opened:
        return _upright_rgb(opened.image, opened.source, opened.notes)


@contextlib.contextmanager
def open_picture(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, header_only: bool = False
) -> Iterator[Picture]:
    """Opens a file by its content, checked before decoding; errors in the block become `InputError`."""
    name = os.fspath(path)
    checked = _checked_file(picture_path(path), name)
    try:
        # Warnings are not needed: a decompression bomb is refused by its size, and corrupt EXIF data do no harm.
        with _WITHOUT_WARNINGS, checked.open("rb") as file:
            scans, frames = examine(file, header_only)
            file.seek(0)
            with _opened(file, name) as image:
                _check_size(image, name, max_pixels)
                _check_cost(image, name, scans, header_only)
                yield Picture(name, image, _frames_note(image, frames))
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{name}: permission denied: change its permissions") from None
    except CostlyError as error:
        raise InputError(f"{name}: cannot be decoded: it has {error}: save it again as a plain picture") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name, "more than 178 million", max_pixels)) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture that can be read: expected JPEG, PNG, WebP or similar") from None
    except MemoryError:
        raise InputError(f"{name}: not enough memory to decode it: make it smaller") from None
    except Exception as error:  # damaged headers make Pillow's plugins raise whatever they trip over
        raise _damaged(name, error) from None


def small_png(content: bytes, longest: int) -> Image.Image:
    """A PNG that cliploc itself stored among its results, in the mode that it was stored in."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if max(image.size) > longest:
                raise InputError(_too_large("a stored PNG", f"{image.width}×{image.height}", longest**2))
            image.load()
            return image.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged("a stored PNG", error) from None


def picture_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the content of a file of this format; the options are Pillow's."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _opened(file: BinaryIO, name: str) -> Image.Image:
    """The picture of a file, by the reader of its format; nothing is decoded."""
    if "HEIF" in Image.OPEN or not _is_heic(file):
        try:
            return _by_pillow(file)
        except UnidentifiedImageError:
            Image.init()  # the readers of rarer formats, which take time to import
            file.seek(0)
            return _by_pillow(file)
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise not_installed(error, install("heic", f"{name}: a HEIC picture, which"), InputError) from None
    # Not registered with Pillow, which would change what everybody else in this process can open.
    reader: Callable[[BinaryIO], Image.Image] = HeifImageFile  # its own signature has no types
    return reader(file)


def _by_pillow(file: BinaryIO) -> Image.Image:
    Image.preinit()
    return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _is_heic(file: BinaryIO) -> bool:
    """Whether a file says at its start that it is HEIC; its position stays."""
    place = file.tell()
    start = file.read(12)
    size, kind, brand = int.from_bytes(start[:4], "big"), start[4:8], start[8:]
    others = file.read(min(max(size - 12, 0), 256))  # the version, and the brands it is compatible with
    file.seek(place)
    if kind != b"ftyp":
        return False
    return brand in HEVC_BRANDS or (brand in GENERAL_BRANDS and b"avif" not in others and b"avis" not in others)


class _WithoutWarnings:
    """Silences warnings while any thread is inside; of two `catch_warnings`, one would leave them off for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._silence = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._silence.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._silence.close()


_WITHOUT_WARNINGS = _WithoutWarnings()


def _checked_file(path: Path, name: str) -> Path:
    """The path, if it is a file with something in it; a device or a pipe could keep us waiting for ever."""
    if not name:
        raise InputError("expected a picture's path, got an empty one: check the path")
    try:
        status = path.stat()
    except PermissionError:
        raise InputError(f"{name}: permission denied for its folder: change its permissions") from None
    except (OSError, ValueError):  # also a name too long for the system, or with a null character
        advice = "download the picture first" if "://" in name else "check the path"
        raise InputError(f"{name}: no such file: {advice}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name}: is a folder, expected a picture: name its files, such as {name.rstrip('/')}/*.jpg")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name}: is a device or a pipe, expected a picture file: save the picture first")
    if status.st_size == 0:
        raise InputError(f"{name}: the file is empty (0 bytes): download it again")
    return path


def _check_size(image: Image.Image, source: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(_too_large(source, f"{width}×{height}", max_pixels))


def _check_cost(image: Image.Image, source: str, scans: int, header_only: bool) -> None:
    """Refuses a picture whose pixels would be decoded again and again, or that takes far more memory than others."""
    pixels = image.width * image.height
    if scans > 1 and scans * pixels > MAX_SCANNED:
        raise CostlyError(f"{scans} scans of {pixels / 1e6:.0f} million pixels")
    tiles: list[Any] = getattr(image, "tile", [])
    covered = 0
    for _, extents, *_ in tiles:  # of a TIFF, one for each strip and plane
        x0, y0, x1, y1 = extents or (0, 0, *image.size)
        covered += max(0, x1 - x0) * max(0, y1 - y0)
    if covered > pixels * max(len(image.getbands()), 4):
        raise CostlyError(f"{len(tiles):,} strips that cover it {covered // max(pixels, 1)} times")
    if header_only:
        return
    # Of each pixel: 4 bytes decoded, and then 8 in the library that reads the file, or while it is turned and made RGB.
    needed = pixels * (4 + (WEBP_BYTES if image.format == "WEBP" else 8))
    if needed > MAX_BYTES:
        size = f"{image.width}×{image.height} pixels of this {image.format}"
        raise InputError(
            f"{source}: {size} take {needed / 1e9:.2f} GB of memory, expected at most {MAX_BYTES / 1e9:.2f}: make it "
            "smaller first, or save it as JPEG or PNG"
        )


def _frames_note(image: Image.Image, frames_of_gif: int) -> tuple[str, ...]:
    """The note on a file with several frames; they are counted without reading the file, which may claim a million."""
    if image.format == "MPO":  # a camera's JPEG with an embedded preview: not worth a note
        return ()
    if image.format == "TIFF":
        return ("holds several pictures: the first is used",) if getattr(image, "is_animated", False) else ()
    frames = frames_of_gif if image.format == "GIF" else getattr(image, "n_frames", 1)  # the latter from the header
    if frames <= 1:
        return ()
    if image.format not in ANIMATED:
        return (f"holds {frames} pictures: the first is used",)
    number = f"over {frames - 1}" if image.format == "GIF" and frames > MAX_FRAMES else f"{frames}"
    return (f"animated, {number} frames: the first is used",)


def _upright_rgb(image: Image.Image, source: str, notes: tuple[str, ...] = ()) -> Picture:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{source}: {width}×{height} pixels, expected at least {MIN_SIDE}×{MIN_SIDE}: use a larger picture"
        )
    try:
        image.load()  # damaged pixels must be seen here, not be taken for damaged EXIF data below
        upright = image
        with contextlib.suppress(Exception):  # an unreadable orientation is none: the picture itself is fine
            upright = image if orientation(image) == 1 else ImageOps.exif_transpose(image)
        return Picture(source, _rgb(upright), notes)
    except MemoryError:
        raise InputError(f"{source}: not enough memory to decode {width}×{height} pixels: make it smaller") from None
    except Exception as error:  # Pillow's plugins raise whatever they trip over
        raise _damaged(source, error) from None


def orientation(image: Image.Image) -> int:
    """A picture's EXIF orientation, 1–8; 1 if its EXIF data have none, or claim far more than they hold."""
    exif = image.info.get("exif")
    if exif is None and "Raw profile type exif" in image.info:  # ImageMagick's way to put it into a PNG
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(str(image.info["Raw profile type exif"]).split("\n")[3:]))
    try:
        if isinstance(exif, bytes):
            _check_exif(exif)
    except CostlyError:
        return 1
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _damaged(source: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return InputError(f"{source}: damaged ({reason}): download it again")


def _rgb(image: Image.Image) -> Image.Image:
    """A copy in RGB. Greys of 16 bits and transparency are made so band by band: their steps need far more memory."""
    of_greys = image.mode.startswith("I;16") or image.mode in ("I", "F")
    # PNG's tRNS may make RGB transparent, too.
    if not of_greys and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB")  # a copy, also where it is RGB already
    width, height = image.size
    rows = max(1, BAND // width)
    bands = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    scale = 1.0  # what greys are multiplied by, so that white is 255
    if of_greys:
        most = max(_greys(image.crop(band)).max() for band in bands)
        if image.mode == "F" and most <= 1:
            scale = 255.0
        elif image.mode not in ("I", "F") or most > 255:  # else 8 bits: Pillow does not say which the 32 bits hold
            scale = 255.0 / 65535.0
    made = Image.new("RGB", image.size)
    for band in bands:
        part = image.crop(band)
        if of_greys:
            part = Image.fromarray((_greys(part) * scale).clip(0, 255).round().astype(np.uint8))
        else:
            rgba = (part.convert("LA") if image.mode == "La" else part).convert("RGBA")
            part = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        made.paste(part.convert("RGB"), band[:2])
    return made


def _greys(image: Image.Image) -> npt.NDArray[np.float64]:
    """Values `[H, W]` of more than 8 bits."""
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)  # "no data" of float TIFFs


def _from_array(array: npt.NDArray[np.generic], source: str) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            f"{source}: expected an array [H, W], [H, W, 3] or [H, W, 4], got {list(array.shape)}: put channels last"
        )
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float64)
        if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 1:
            raise InputError(f"{source}: expected floats in 0–1, got values outside: divide 8-bit values by 255")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    raise InputError(f"{source}: expected an array of uint8 or floats in 0–1, got {array.dtype}: convert it")


def _too_large(source: str, size: str, max_pixels: int) -> str:
    return f"{source}: {size} pixels, expected at most {max_pixels / 1e6:g} million: make it smaller first"


# ------------------------------------------------------------------------------------- what decoding a file would cost
# Pillow and its libraries do what a file says, however often it says it: a JPEG of 20 kB may hold 9,000 scans, each of
# which costs a pass over all pixels. The functions here only walk the structure, in time linear in the file's size, and
# stop at a limit.
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


def examine(file: BinaryIO, header_only: bool = False) -> tuple[int, int]:
    """Walks a file that could repeat itself → scans of a JPEG, frames of a GIF; 1 of others, or if `header_only`."""
    start = file.read(8)
    if start.startswith(b"\xff\xd8\xff"):
        return _scans(file, header_only), 1
    if start.startswith((b"GIF87a", b"GIF89a")):
        return 1, _frames(file, header_only)
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        _check_directories(file)
    return 1, 1


# ---------------------------------------------------------------------------------------------------------------- JPEG
def _scans(file: BinaryIO, header_only: bool) -> int:
    """Counts passes over all pixels as libjpeg meets them: by segments, up to the end of the first picture."""
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
                return 1
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
    return scans


def _next_marker(file: BinaryIO, most: int | None) -> int | None:
    """The next marker, with the file behind it; None at the file's end."""
    passed, size = 0, 2  # it mostly is right here
    last = b""
    while chunk := file.read(size):
        marker = _MARKER.search(last + chunk)
        if marker:
            file.seek(marker.end() - len(last) - len(chunk), os.SEEK_CUR)
            return marker.group()[1]
        last = chunk[-1:] if chunk.endswith(b"\xff") else b""
        passed, size = passed + len(chunk), min(size * 16, 64 << 10)
        if most is not None and passed > most:
            raise CostlyError(f"{most >> 10} kB of junk in its header")
    return None


# ----------------------------------------------------------------------------------------------------------------- GIF
def _frames(file: BinaryIO, header_only: bool) -> int:
    """Counts up to `MAX_FRAMES` + 1; before the first, blocks are bounded: Pillow joins comments one by one."""
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
    return frames


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
