"""Label maps as PNG pictures, and the legend that says which value is which name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.report.colours import as_hex, name_colour

MOST = 255  # names that a palette can hold, besides the background


def label_picture(labels: npt.NDArray[np.uint16], names: int) -> Image.Image:
    """A label map as a picture whose pixel values are the labels.

    Args:
        labels: `[H, W]`, as `Localization.label_map` returns it.

    Returns:
        A picture of mode P, whose palette has the names' colours and black for the background; with more than 255 names
        a grey picture of 16 bits.

    Example:
        >>> picture = label_picture(np.array([[0, 1]], np.uint16), names=1)
        >>> picture.mode, picture.convert("RGB").getpixel((1, 0))
        ('P', (255, 187, 0))
    """
    if names > MOST:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([0, 0, 0, *(channel for index in range(names) for channel in name_colour(index))])
    return picture


def label_legend(names: Sequence[str]) -> dict[str, Any]:
    """Which value of a label map is which name, and its colour.

    Example:
        >>> label_legend(["cat"])["labels"][1]
        {'value': 1, 'name': 'cat', 'colour': '#ffbb00'}
    """
    background = {"value": 0, "name": None, "colour": "#000000"}
    colours = [as_hex(name_colour(index)) for index in range(len(names))]
    values = [{"value": i, "name": name, "colour": colours[i - 1]} for i, name in enumerate(names, start=1)]
    return {"labels": [background, *values]}
