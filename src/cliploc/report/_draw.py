"""Drawing on pictures: colours, fonts, boxes and labels. Sizes are in pixels of the picture."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1, exclusive right and bottom edge
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK: Colour = (17, 17, 17)
PAPER: Colour = (255, 255, 255)

# Eleven colours of matplotlib's `inferno` (CC0) from 15 % to 97 %: lightness rises evenly, so that it looks the same to
# colour-blind people and in grey print. The black end is left out: heat must not look like shadow.
HEAT_ANCHORS = (
    (43, 11, 87), (79, 13, 108), (113, 25, 110), (146, 37, 104), (179, 50, 90), (208, 69, 69),
    (232, 96, 45), (247, 130, 18), (252, 168, 13), (247, 209, 61), (243, 246, 138),
)  # fmt: skip

# Okabe & Ito (2008), "Color Universal Design", without black: distinct for all common kinds of colour vision.
NAME_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178),
)  # fmt: skip

# Fonts of the system with Chinese, Japanese and Korean letters, tried in this order.
EAST_ASIAN_FONTS = (
    "NotoSansCJK-Regular.ttc", "SourceHanSans-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf",
)  # fmt: skip


def name_colour(index: int) -> Colour:
    """The colour of the name with this index, the same in every picture."""
    return NAME_COLOURS[index % len(NAME_COLOURS)]


def heat_table() -> npt.NDArray[np.uint8]:
    """The colour of each level of heat, `[256, 3]`."""
    anchors = np.array(HEAT_ANCHORS, dtype=np.float64)
    at, places = np.linspace(0, 1, 256), np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(at, places, channel) for channel in anchors.T], axis=1).round().astype(np.uint8)


def clean(text: str) -> str:
    """The text as one printable line: line breaks and control characters become spaces, lone surrogates "?"."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@lru_cache(maxsize=64)
def _plain_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _wide_font(size: int) -> Font:
    """DejaVu Sans – accented Latin, Greek, Cyrillic, Arabic, Hebrew – from matplotlib (a dependency of supervision)."""
    matplotlib = importlib.util.find_spec("matplotlib")  # found, not imported
    homes = (matplotlib.submodule_search_locations if matplotlib else None) or []
    return _first_font([f"{home}/mpl-data/fonts/ttf/DejaVuSans.ttf" for home in homes] + ["DejaVuSans.ttf"], size)


@lru_cache(maxsize=64)
def _east_asian_font(size: int) -> Font:
    return _first_font(EAST_ASIAN_FONTS, size)


def _first_font(names: Iterable[str], size: int) -> Font:
    for name in names:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return _plain_font(size)


def font_for(text: str, size: int) -> Font:
    """A font of the machine that has these letters; letters that no font has are drawn as empty squares."""
    if all(letter.isascii() or letter in "·…" for letter in text):
        return _plain_font(size)  # Pillow's own font is the same on all machines
    if any("\u2e80" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7a3" for letter in text):
        return _east_asian_font(size)
    return _wide_font(size)


def shorten(text: str, font: Font, width: float, keep: str = "") -> str:
    """`text + keep` if it fits the width, else its first letters, "…" and `keep`; "" if not one letter fits."""
    if font.getlength(text + keep) <= width:
        return text + keep
    low, high = 0, min(len(text), 1 + int(width))
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + "…" + keep) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…" + keep if low else ""


def wrap(text: str, font: Font, width: float, lines: int) -> list[str]:
    """Breaks a text at spaces into at most this number of lines; a longer text is cut off in the last."""
    words = text.split()
    done: list[str] = []
    while words and len(done) < lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        done.append(shorten(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*done, shorten(" ".join(words), font, width)] if words else done


def line_width(size_wh: tuple[int, int]) -> int:
    """The width of a box's bright line on a picture of this size."""
    return max(1, round(0.008 * math.sqrt(size_wh[0] * size_wh[1])))


def text_size(size_wh: tuple[int, int]) -> int:
    """The font size of labels on a picture of this size."""
    return max(11, round(0.043 * math.sqrt(size_wh[0] * size_wh[1])))


def to_rectangle(xyxy: Iterable[float], size_wh: tuple[int, int]) -> Rectangle:
    """A float box in whole pixels, inside the picture and at least one pixel large."""
    width, height = size_wh
    x0, y0, x1, y1 = (round(float(value)) for value in xyxy)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)


def draw_box(image: Image.Image, rectangle: Rectangle, colour: Colour, width: int, dash: int = 0) -> None:
    """Draws a box: a bright line inside its edge, between two dark hairlines.

    Args:
        image: the picture to draw on.
        rectangle: the box.
        colour: of the bright line.
        width: of the bright line; reduced in boxes that it would fill.
        dash: length of the dashes; 0 for a solid line.
    """
    x0, y0, x1, y1 = rectangle
    width = max(1, min(width, min(x1 - x0, y1 - y0) // 4))
    hairline = 0 if min(x1 - x0, y1 - y0) < 8 else max(1, round(width / 3))
    bars = [
        *[(a, y, b, y + width) for a, b in _pieces(x0, x1, dash) for y in (y0, y1 - width)],
        *[(x, a, x + width, b) for a, b in _pieces(y0, y1, dash) for x in (x0, x1 - width)],
    ]
    draw = ImageDraw.Draw(image)
    for grow, ink in ((hairline, INK), (0, colour)) if hairline else ((0, colour),):
        for left, top, right, bottom in bars:
            draw.rectangle((left - grow, top - grow, right - 1 + grow, bottom - 1 + grow), fill=ink)


def _pieces(start: int, stop: int, dash: int) -> list[tuple[int, int]]:
    """Start and end of each dash of a side. Dashes and gaps are stretched so that both corners are drawn."""
    gaps = round((stop - start - dash) / (2 * dash)) if dash else 0
    if gaps < 1:
        return [(start, stop)]
    edges = np.linspace(start, stop, 2 * gaps + 2).round().astype(int).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


class Plates:
    """Labels on solid plates, inside the picture and, where there is room, without overlap."""

    def __init__(self, image: Image.Image, size: int) -> None:
        self._image = image
        self._size = size
        self.taken: list[Rectangle] = []

    def add(self, box: Rectangle, text: str, keep: str, colour: Colour, line: int) -> None:
        """Writes `text + keep` at the first free place: above the box, inside its top, below it, or inside its bottom.

        Args:
            box: the box.
            text: the label; shortened where the picture is too narrow.
            keep: the end of the label (the score), never shortened.
            colour: of the plate.
            line: width of the box's line.
        """
        width, height = self._image.size
        padding = max(2, round(self._size * 0.3))
        text = clean(text)
        font = font_for(text + keep, self._size)
        line_text = shorten(text, font, width - 2 * padding, keep)
        plate_w = round(font.getlength(line_text)) + 2 * padding
        plate_h = round(self._size * 1.3) + padding // 2
        if not line_text or plate_h > height / 2 or plate_w > width:
            return  # the picture is too small for a label
        x0, y0, x1, y1 = box
        hairline = max(1, round(line / 3))
        left, right = x0 - hairline, x1 + hairline - plate_w
        top, bottom = y0 - hairline, y1 + hairline
        spots = [
            (left, top - plate_h), (left, top), (left, bottom), (left, bottom - plate_h), (right, top - plate_h),
            (right, top), (right, bottom), (right, bottom - plate_h),
        ]  # fmt: skip
        inside = [(x, y) for x, y in spots if 0 <= y <= height - plate_h]
        placed = [self._at(x, y, plate_w, plate_h) for x, y in [*inside, (left, top)]]
        # Further rows below, for boxes that share a corner.
        placed += [self._at(left, top + row * plate_h, plate_w, plate_h) for row in range(2, 6)]
        plate = next((one for one in placed if not any(_overlap(one, other) for other in self.taken)), placed[0])
        self.taken.append(plate)
        draw = ImageDraw.Draw(self._image)
        draw.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=colour)
        middle = (plate[1] + plate[3]) / 2
        draw.text((plate[0] + padding, middle), line_text, fill=text_colour(colour), font=font, anchor="lm")

    def _at(self, x: int, y: int, width: int, height: int) -> Rectangle:
        x = min(max(x, 0), self._image.width - width)
        y = min(max(y, 0), self._image.height - height)
        return x, y, x + width, y + height


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def text_colour(background: Sequence[int]) -> Colour:
    """Black or white, whichever has more contrast with the background (by WCAG's relative luminance)."""
    srgb = np.array(background) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return INK if (luminance + 0.05) / 0.055 >= 1.05 / (luminance + 0.05) else PAPER
