"""Label maps: a picture with a number for each pixel."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError
from cliploc.images.reading import open_picture

GREY = ("L", "P", "1", "I", "I;16", "I;16B")  # of Pillow: one number per pixel
LabelMap = npt.NDArray[np.int32]


def read_labels(path: Path) -> LabelMap:
    """A picture file as labels `[H, W]`; a palette's colours are not used."""
    with open_picture(path) as opened:
        if opened.image.mode not in GREY:
            raise InputError(
                f"{path}: expected a label map, one number per pixel, got an image of mode {opened.image.mode}: save "
                "labels as a grey or palette PNG"
            )
        return np.asarray(opened.image).astype(np.int32)
