"""Pictures in: any file or array → an upright RGB picture of 8 bits, or one line that says why not."""

from __future__ import annotations

import os
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
    path = Path(image)
    name = str(image)
    if not path.exists():
        raise InputError(f"{name}: no such file: check the path")
    if path.is_dir():
        raise InputError(f"{name}: is a folder, expected a picture: name its files, such as {name.rstrip('/')}/*.jpg")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{name}: the file is empty (0 bytes): fetch it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS below is stricter
            with Image.open(path) as opened:
                return _upright_rgb(opened, name)
    except PermissionError:
        raise InputError(f"{name}: not readable by you: change its permissions") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name, "more than 178 million")) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a picture that can be read: expected JPEG, PNG, WebP or the like") from None


def _upright_rgb(image: Image.Image, source: str) -> Picture:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(source, f"{width}×{height} ="))
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{source}: {width}×{height} pixels, expected at least {MIN_SIDE}×{MIN_SIDE}: use a larger picture"
        )
    notes: tuple[str, ...] = ()
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        image.seek(0)
        notes = (f"animated, {frames} frames: the first is used",)
    try:
        upright = ImageOps.exif_transpose(image)
        return Picture(source, _rgb(upright), notes)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's own words for truncated and corrupt data
        raise InputError(f"{source}: damaged ({str(error).splitlines()[0]}): fetch it again") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image.copy()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = np.asarray(image, dtype=np.float64)
        if image.mode == "F" and grey.size and np.nanmax(grey) <= 1:
            scale = 255.0
        else:
            scale = 1.0 if grey.size == 0 or grey.max() <= 255 else 255.0 / 65535.0
        return Image.fromarray(np.nan_to_num(grey * scale).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


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
