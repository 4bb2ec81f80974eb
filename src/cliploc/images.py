"""Pictures in: any file or array → an upright RGB picture of 8 bits, or one line that says why not."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cliploc.errors import InputError, UsageError

ImageLike = Union[str, "os.PathLike[str]", Image.Image, "npt.NDArray[np.generic]"]

MAX_PIXELS = 120_000_000  # 360 MB once decoded
MIN_SIDE = 8  # below it there is no "where" in a picture
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        source: the file's path as given, or a name for a picture from memory.
        image: upright (EXIF orientation applied) RGB.
        notes: what was done to it that a user may want to know.
    """

    source: str
    image: Image.Image
    notes: tuple[str, ...] = ()


def load(image: ImageLike, source: str = "image") -> Picture:
    """Reads a picture.

    Files in any format that Pillow reads. EXIF orientation is applied, so "original pixels" are those of the picture as
    it is shown. Transparency is laid on white; 16-bit greys are scaled to 8 bits, not clipped; of an animation the
    first frame is used, and a note says so.

    Args:
        image: a path, a PIL image, or an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]` of uint8 (or floats in 0–1).
        source: what to call a picture that has no path.

    Raises:
        InputError: the picture cannot be used; the line names it and says what to do.

    Example:
        >>> load(np.zeros((20, 30, 3), dtype=np.uint8)).image.size
        (30, 20)
    """
    if isinstance(image, Image.Image):
        return _upright_rgb(image, source)
    if isinstance(image, np.ndarray):
        return _upright_rgb(_from_array(image, source), source)
    if not isinstance(image, str | os.PathLike):
        raise UsageError(f"expected a path, a PIL image or a numpy array, got {type(image).__name__}")
    name = str(image)
    path = _checked_file(Path(image), name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb is refused by MAX_PIXELS, and corrupt EXIF data harms nobody
            with Image.open(path) as opened:
                return _upright_rgb(opened, name)
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{name}: not readable by you: change its permissions") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name, "more than 178 million")) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture that can be read: expected JPEG, PNG, WebP or the like") from None
    except Exception as error:  # damaged headers make Pillow's plugins raise whatever they trip over
        raise _damaged(name, error) from None


def _checked_file(path: Path, name: str) -> Path:
    """The path, if it is a file with something in it; a device or a pipe could keep us waiting for ever."""
    if not name:
        raise InputError("expected a picture's path, got an empty one: check the path")
    try:
        status = path.stat()
    except PermissionError:
        raise InputError(f"{name}: its folder is not readable by you: change its permissions") from None
    except (OSError, ValueError):  # also a name too long for the system, or with a null character
        raise InputError(f"{name}: no such file: check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name}: is a folder, expected a picture: name its files, such as {name.rstrip('/')}/*.jpg")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name}: is a device or a pipe, expected a picture file: save the picture first")
    if status.st_size == 0:
        raise InputError(f"{name}: the file is empty (0 bytes): fetch it again")
    return path


def _upright_rgb(image: Image.Image, source: str) -> Picture:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(source, f"{width}×{height}"))
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{source}: {width}×{height} pixels, expected at least {MIN_SIDE}×{MIN_SIDE}: use a larger picture"
        )
    notes: tuple[str, ...] = ()
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            image.seek(0)
            if image.format in ANIMATED:
                notes = (f"animated, {frames} frames: the first is used",)
            elif image.format != "MPO":  # a camera's JPEG with its own preview: nobody wants to know
                notes = (f"holds {frames} pictures: the first is used",)
        return Picture(source, _rgb(_upright(image)), notes)
    except MemoryError:
        raise InputError(f"{source}: too little memory to decode {width}×{height} pixels: make it smaller") from None
    except Exception as error:  # Pillow's plugins raise whatever they trip over
        raise _damaged(source, error) from None


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # damaged pixels must be seen here, not be taken for damaged EXIF data below
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an unreadable orientation is none: the picture itself is fine
        return image


def _damaged(source: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return InputError(f"{source}: damaged ({reason}): fetch it again")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)  # "no data" of float TIFFs
        if image.mode == "F" and grey.max() <= 1:
            scale = 255.0
        else:  # 32 bits may hold values of 8 or of 16: Pillow does not say which
            scale = 1.0 if image.mode in ("I", "F") and grey.max() <= 255 else 255.0 / 65535.0
        return Image.fromarray((grey * scale).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:  # PNG's tRNS: RGB too
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")  # a copy, also where it is RGB already


def _from_array(array: npt.NDArray[np.generic], source: str) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(f"{source}: expected an array [H, W], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float64)
        if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 1:
            raise InputError(f"{source}: expected floats in 0–1, got values outside: divide 8-bit values by 255")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    raise InputError(f"{source}: expected an array of uint8 or floats in 0–1, got {array.dtype}")


def _too_large(source: str, size: str) -> str:
    return f"{source}: {size} pixels, expected at most {MAX_PIXELS // 10**6} million: make it smaller first"
