"""The colours of heat and of names: the same in overlays, on every page and in exports."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from cliploc.options import Colormap
from cliploc.values import ByteArray

Colour = tuple[int, int, int]
Cover = tuple[ByteArray, ByteArray]  # of each level of heat: colours [256, 3], opacity [256]

COLORMAP: Colormap = "viridis"  # seen on fur, flowers and wood, as few things are blue-green
INK: Colour = (17, 17, 17)
PAPER: Colour = (255, 255, 255)

# Ten colours with the largest smallest distance (Oklab) for normal vision and, weighted 1.7, for protanopia and
# deuteranopia as simulated by Machado et al. 2009: 0.196 and 0.115; Okabe & Ito's seven have 0.156 and 0.076. Strong
# enough to be seen on photographs; in an order in which the first few are furthest apart. No two are reds.
NAME_COLOURS: tuple[Colour, ...] = (
    (255, 187, 0), (0, 119, 187), (204, 17, 136), (34, 204, 221), (153, 85, 34),
    (153, 255, 170), (119, 0, 255), (255, 119, 136), (17, 170, 0), (170, 136, 255),
)  # fmt: skip

# Okabe & Ito (2008), "Color Universal Design", without black and yellow: thin lines of these can be read on paper.
LINE_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (0, 114, 178),
)  # fmt: skip

COLOURED = (0.2, 0.85)  # of a colour map: its dark end would look like shadow, its light end like fur
HEAT_RAMP = (0.1, 0.9)  # heat at which the colour starts to cover the picture, and at which it covers most
VEIL: Colour = (40, 40, 40)  # of where it is cold, which is dimmed, so that heat is seen on every background
VEIL_OPACITY = 0.5


@lru_cache(maxsize=64)
def heat_colours(colormap: Colormap = COLORMAP) -> tuple[Colour, ...]:
    """Eleven colours, from the least heat to the most."""
    levels = (255 * np.linspace(*COLOURED, 11)).round().astype(np.uint8)
    table = cv2.applyColorMap(levels[:, None], getattr(cv2, f"COLORMAP_{colormap.upper()}"))  # [11, 1, 3] BGR
    blue, green, red = table[:, 0].T.tolist()
    return tuple(zip(red, green, blue, strict=True))


@lru_cache(maxsize=64)
def heat_cover(opacity: float, colours: tuple[Colour, ...] | None = None) -> Cover:
    """What is laid on a picture: a veil and the heat's colours, from cold to hot.

    A dark veil where it is cold, which fades as the heat rises, and over it the heat's colour, whose opacity rises
    with it to `opacity`.
    """
    colours = heat_colours() if colours is None else colours
    heat = np.arange(256, dtype=np.float32) / 255
    start, stop = HEAT_RAMP
    rise = ((heat - start) / (stop - start)).clip(0, 1)
    rise = rise * rise * (3 - 2 * rise)
    veil, shade = VEIL_OPACITY * (1 - rise), opacity * rise
    covered = 1 - (1 - veil) * (1 - shade)
    table = np.stack([np.interp(heat, np.linspace(0, 1, len(colours)), one) for one in np.transpose(colours)], axis=1)
    mixed = (np.outer(veil * (1 - shade), VEIL) + shade[:, None] * table) / np.maximum(covered, 1e-6)[:, None]
    return mixed.round().astype(np.uint8), (covered * 255).round().astype(np.uint8)


def name_colour(index: int) -> Colour:
    """The colour of the name with this index, the same in every picture."""
    return NAME_COLOURS[index % len(NAME_COLOURS)]


def as_hex(colour: Colour) -> str:
    """The colour as HTML writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def text_colour(background: Sequence[int]) -> Colour:
    """Black or white, whichever has more contrast with the background (by WCAG's relative luminance)."""
    srgb = np.array(background) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return INK if (luminance + 0.05) / 0.055 >= 1.05 / (luminance + 0.05) else PAPER
