"""Any file or array → an upright RGB picture, or one line why not; only `open_picture` opens picture files."""

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, Union

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cliploc.errors import InputError, UsageError
from cliploc.support.files import picture_path
from cliploc.support.imports import install, not_installed

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 120_000_000
MIN_SIDE = 8  # in a smaller picture there is nothing to localize
# Those that the readers of YOLO's and VOC's layouts look for; supervision's are the fewest.
READ_BY_ALL = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
# HEIC also without pillow-heif: then each such file fails with the advice to install it.
SUFFIXES = READ_BY_ALL | {".gif", ".ppm", ".pgm", ".avif", ".heic", ".heif"}
# Pillow's names of the formats that are read; MPO comes with JPEG, HEIF is there where pillow-heif has registered it.
# Of the others, EPS starts Ghostscript, and some read further files, or decode before their size is known.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF")
GREY = ("L", "P", "1", "I", "I;16", "I;16B")  # of Pillow: one number per pixel
LabelMap = npt.NDArray[np.int32]
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    source: str  # the file's path as given, or a name for a picture from memory
    image: Image.Image  # upright (EXIF orientation applied) RGB
    notes: tuple[str, ...] = ()  # what was done to it that a user may want to know

    @cached_property
    def checksum(self) -> bytes:
        """Tells pictures with other pixels apart."""
        pixels = np.asarray(self.image)
        digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.digest()


ImageLike = Union[str, "os.PathLike[str]", Image.Image, "npt.NDArray[np.generic]", "Tensor", Picture]


def pictures_in(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """One picture or several, as an iterable: a path counts as one picture, and so does an array `[H, W, 3]`."""
    if isinstance(images, np.ndarray):
        # With its channels first it is one picture, too, which is refused, and not three or four of greys.
        single = images.ndim < 3 or (images.ndim == 3 and not {3, 4}.isdisjoint((images.shape[0], images.shape[-1])))
        return [images] if single else images
    if _is_tensor(images):
        return [images] if images.ndim < 4 else images
    return [images] if isinstance(images, str) or not isinstance(images, Iterable) else images


def _is_tensor(image: Any) -> TypeGuard["Tensor"]:
    """Whether something is a tensor of torch, which is not imported for that."""
    return type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "detach")


def load(image: ImageLike, source: str = "image", max_pixels: int = MAX_PIXELS) -> Picture:
    """Path, PIL image, array `[H, W(, 3 | 4)]` or tensor `[3, H, W]` (uint8, or 0–1) → upright RGB on white."""
    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        _check_size(image, source, max_pixels)
        return _upright_rgb(image, source)
    if isinstance(image, np.ndarray):
        return load(_from_array(image, source), source, max_pixels)
    if _is_tensor(image):
        array = image.detach().cpu().numpy()
        if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
            raise InputError(f"{source}: expected a tensor [3, H, W], got one of shape {list(array.shape)}: convert it")
        channels = np.moveaxis(array, 0, -1)
        return load(channels[..., 0] if channels.shape[-1] == 1 else channels, source, max_pixels)
    if not isinstance(image, str | os.PathLike):
        raise UsageError(f"expected a path, a PIL image or a numpy array, got {type(image).__name__}")
    with open_picture(image, max_pixels) as opened:
        return _upright_rgb(opened.image, opened.source, opened.notes)


@contextlib.contextmanager
def open_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Iterator[Picture]:
    """Opens a file by its content, its size checked before decoding; errors in the block become `InputError`."""
    name = os.fspath(path)
    checked = _checked_file(picture_path(path), name)
    try:
        with checked.open("rb") as file, _opened(file, name) as image:
            _check_size(image, name, max_pixels)
            yield Picture(name, image, _frames_note(image))
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{name}: permission denied: change its permissions") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name, "more than 178 million", max_pixels)) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture that can be read: expected JPEG, PNG, WebP or similar") from None
    except MemoryError:
        raise InputError(f"{name}: not enough memory to decode it: make it smaller") from None
    except Exception as error:  # damaged headers make Pillow's plugins raise whatever they trip over
        raise _damaged(name, error) from None


def read_labels(path: Path) -> LabelMap:
    """A picture file as labels `[H, W]`, a number for each pixel; a palette's colours are not used."""
    with open_picture(path) as opened:
        if opened.image.mode not in GREY:
            raise InputError(
                f"{path}: expected a label map, one number per pixel, got an image of mode {opened.image.mode}: save "
                "labels as a grey or palette PNG"
            )
        return np.asarray(opened.image).astype(np.int32)


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
    Image.init()
    start = file.read(64)  # of HEIC the same container as AVIF, but not AVIF
    file.seek(0)
    is_heic = start[4:8] == b"ftyp" and b"avif" not in start and b"avis" not in start
    if "HEIF" in Image.OPEN or not is_heic:
        return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise not_installed(error, install("heic", f"{name}: a HEIC picture, which"), InputError) from None
    # Not registered with Pillow, which would change what everybody else in this process can open.
    reader: Callable[[BinaryIO], Image.Image] = HeifImageFile  # its own signature has no types
    return reader(file)


def _checked_file(path: Path, name: str) -> Path:
    """The path, if it is a file with something in it."""
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
    if status.st_size == 0:
        raise InputError(f"{name}: the file is empty (0 bytes): download it again")
    return path


def _check_size(image: Image.Image, source: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(_too_large(source, f"{width}×{height}", max_pixels))


def _frames_note(image: Image.Image) -> tuple[str, ...]:
    """The note on a file with several frames; they are not counted, which takes minutes where a file has very many."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):  # the first: a camera's, with a preview
        return ()
    return (f"{'animated' if image.format in ANIMATED else 'holds several pictures'}: the first is used",)


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


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of the upright picture of a file, which is not decoded."""
    with open_picture(path) as opened:
        width, height = opened.image.size
        return (width, height) if orientation(opened.image) < 5 else (height, width)


def orientation(image: Image.Image) -> int:
    """A picture's EXIF orientation, 1–8; 1 if its EXIF data have none."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _damaged(source: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return InputError(f"{source}: damaged ({reason}): download it again")


def _rgb(image: Image.Image) -> Image.Image:
    """A copy in RGB; greys of more than 8 bits are scaled, and what is transparent lies on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        greys = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)  # "no data" of float TIFFs
        if image.mode == "F" and greys.max() <= 1:
            greys *= 255
        elif image.mode not in ("I", "F") or greys.max() > 255:  # else 8 bits: Pillow does not say what 32 bits hold
            greys *= 255 / 65535
        return Image.fromarray(greys.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    # PNG's tRNS may make RGB transparent, too.
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")  # a copy, also where it is RGB already


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
