"""Drawing on pictures: heat, fonts, boxes and labels. Sizes are in pixels of the picture."""

from __future__ import annotations

import importlib.util
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cliploc.draw.colours import INK, Colour, text_colour
from cliploc.values import FloatArray

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1, exclusive right and bottom edge
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Eleven colours of matplotlib's `inferno` (CC0) from 30 % to 97 %: lightness rises evenly, so that it looks the same to
# colour-blind people and in grey print. The dark end is left out: heat must not look like shadow.
HEAT_ANCHORS = (
    (106, 23, 110), (133, 33, 107), (162, 43, 98), (188, 55, 84), (211, 71, 67), (230, 93, 47),
    (243, 120, 25), (251, 150, 6), (251, 184, 29), (245, 217, 73), (243, 246, 138),
)  # fmt: skip
HEAT_RAMP = (0.1, 0.9)  # heat at which the colour starts to cover the picture, and at which it covers most
VEIL: Colour = (40, 40, 40)  # of where it is cold, which is dimmed, so that heat is seen on every background
VEIL_OPACITY = 0.5

NOTE_PLATE: Colour = (30, 30, 30)  # of a remark on the whole picture; boxes have none of this colour

# Fonts of the system with Chinese, Japanese and Korean letters, tried in this order.
EAST_ASIAN_FONTS = (
    "NotoSansCJK-Regular.ttc", "SourceHanSans-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf",
)  # fmt: skip


def heat_table() -> npt.NDArray[np.uint8]:
    """The colours of the levels of heat, `[256, 3]`."""
    anchors = np.array(HEAT_ANCHORS, dtype=np.float64)
    at, places = np.linspace(0, 1, 256), np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(at, places, channel) for channel in anchors.T], axis=1).round().astype(np.uint8)


def heat_cover(opacity: float) -> tuple[FloatArray, FloatArray, npt.NDArray[np.uint8]]:
    """The cover of each level of heat, each `[256]`: shares of `VEIL` and of the heat's colour in its colour, opacity.

    All drawings of heat lay this on the picture: a dark veil where it is cold, which fades as the heat rises, and over
    it the heat's colour, whose opacity rises with it to `opacity`.
    """
    start, stop = HEAT_RAMP
    rise = ((np.arange(256, dtype=np.float32) / 255 - start) / (stop - start)).clip(0, 1)
    rise = rise * rise * (3 - 2 * rise)
    veil, shade = VEIL_OPACITY * (1 - rise), opacity * rise
    covered = 1 - (1 - veil) * (1 - shade)
    opaque = np.maximum(covered, np.float32(1e-6))
    return veil * (1 - shade) / opaque, shade / opaque, (covered * 255).round().astype(np.uint8)


@lru_cache(maxsize=16)
def heat_palette(opacity: float) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The cover of a single name: the colour of each level of heat, `[256, 3]`, and its opacity, `[256]`."""
    veil, shade, covers = heat_cover(opacity)
    return (np.outer(veil, VEIL) + shade[:, None] * heat_table()).round().astype(np.uint8), covers


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
    return _first_font((*(f"{home}/mpl-data/fonts/ttf/DejaVuSans.ttf" for home in homes), "DejaVuSans.ttf"), size)


@lru_cache(maxsize=64)
def _first_font(names: tuple[str, ...], size: int) -> Font:
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
        return _first_font(EAST_ASIAN_FONTS, size)
    return _wide_font(size)


def caption_font(text: str, size: int) -> Font:
    """The same for captions: one font for all, as most sheets have some with × or τ, which Pillow's own font lacks."""
    return font_for(f"{text}τ", size)


def shorten(text: str, font: Font, width: float, keep: str = "") -> str:
    """`text + keep` if it fits the width, else its first letters, "…" and `keep`; "" if not one letter fits."""
    if font.getlength(text + keep) <= width:
        return text + keep
    counts = range(1, 1 + min(len(text), 1 + int(width)))
    most = bisect_right(counts, width, key=lambda count: font.getlength(text[:count].rstrip() + "…" + keep))
    return text[:most].rstrip() + "…" + keep if most else ""


def wrap(text: str, font: Font, width: float, most: int) -> list[str]:
    """Breaks a text into at most so many lines of whole words, or of letters of a wide word; cuts the last off."""
    lines: list[str] = []
    while text and len(lines) < most - 1:
        end = len(text)
        if font.getlength(text) > width:
            counts = range(1, 1 + min(len(text), 1 + int(width)))
            letters = max(1, bisect_right(counts, width, key=lambda count: font.getlength(text[:count])))
            space = text.rfind(" ", 0, letters + 1)
            end = space if space > 0 else letters  # whole words, else as many letters of the first as fit
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, shorten(text, font, width)] if text else lines


def line_width(size_wh: tuple[int, int], dense: float = 1.0) -> int:
    """The width of a box's bright line on a picture of this size, of which so many pixels are one of the page."""
    return max(round(2 * dense), round(0.006 * math.sqrt(size_wh[0] * size_wh[1])))


def text_size(size_wh: tuple[int, int], dense: float = 1.0) -> int:
    """The font size of labels, in the same way."""
    return max(round(13 * dense), round(0.036 * math.sqrt(size_wh[0] * size_wh[1])))


def to_rectangle(xyxy: Iterable[float], size_wh: tuple[int, int]) -> Rectangle:
    """A float box in whole pixels, inside the picture and at least one pixel large."""
    width, height = size_wh
    x0, y0, x1, y1 = (round(float(value)) for value in xyxy)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)


def draw_box(image: Image.Image, rectangle: Rectangle, colour: Colour, width: int, dash: int = 0) -> None:
    """Draws a box: a bright line of this width, less in boxes that it would fill, between two dark hairlines."""
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
    """Labels on solid plates, inside the picture, where they hide least of other labels and of what boxes show."""

    def __init__(self, image: Image.Image, size: int, boxes: Sequence[Rectangle] = ()) -> None:
        self._image = image
        self._size = size
        self._padding = max(2, round(size * 0.3))
        self._boxes = boxes
        self.taken: list[Rectangle] = []

    def resized(self, factor: float) -> Plates:
        """Plates that share these labels; later text is larger or smaller by this factor, but still legible."""
        other = Plates(self._image, max(10, round(self._size * factor)), self._boxes)
        other.taken = self.taken
        return other

    def add(self, box: Rectangle, text: str, keep: str, colour: Colour, line: int) -> None:
        """Writes `text + keep` near or in the box; only `keep` where every place would hide another label."""
        text = clean(text)
        best = self._place(box, text, keep, line)
        if best is not None and self._hidden(best[1]) > 0:
            best = self._place(box, "", keep.strip(), line) or best
        if best is not None:  # else the picture is too small for a label
            self._write(*best, colour)

    def centred(self, middle: tuple[int, int], room: int, text: str, colour: Colour) -> None:
        """Writes a text around a place; not where fewer than four letters of it fit, or it would hide another label."""
        text = clean(text)
        short = shorten(text, font_for(text, self._size), room - 2 * self._padding)
        fitted = self._fitted(short, "") if short == text or len(short) > 4 else None
        if fitted is None:
            return
        words, width, height = fitted
        plate = self._at(middle[0] - width // 2, middle[1] - height // 2, width, height)
        if self._hidden(plate) == 0:
            self._write(words, plate, colour)

    def note(self, text: str, hot: Callable[[Rectangle], float]) -> None:
        """Writes a remark on the whole picture in the corner where it hides least heat."""
        fitted = self._fitted(clean(text), "")
        if fitted is None:
            return
        words, width, height = fitted
        right, bottom = self._image.width - width, self._image.height - height
        places = [self._at(x, y, width, height) for x, y in [(0, bottom), (right, bottom), (0, 0), (right, 0)]]
        plate = min(places, key=lambda place: (self._hidden(place) > 0, round(hot(place), 1)))
        if self._hidden(plate) == 0:
            self._write(words, plate, NOTE_PLATE)

    def _place(self, box: Rectangle, text: str, keep: str, line: int) -> tuple[str, Rectangle] | None:
        """The words that fit, and the place where their plate hides least; None if no place fits."""
        fitted = self._fitted(text, keep)
        if fitted is None:
            return None
        words, width, height = fitted
        x0, y0, x1, y1 = box
        hairline = max(1, round(line / 3))
        left, right = x0 - hairline, x1 + hairline - width
        top, bottom = y0 - hairline, y1 + hairline
        spots = [(left, top - height), (left, bottom), (right, top - height), (right, bottom)]
        spots += [(left, top), (left, bottom - height), (right, top), (right, bottom - height)]
        spots += [(x1 + hairline, top), (x0 - hairline - width, top)]
        # Further rows, for boxes that share a corner.
        spots += [(left, top + row * height) for row in (1, 2, 3, 4, 5, -2, -3)]
        placed = [self._at(x, y, width, height) for x, y in spots]
        costs = []  # a place costs what its plate hides: other labels (most costly), other boxes' insides and its own
        for order, plate in enumerate(placed):
            others = max((_shared(plate, other) for other in self._boxes if other != box), default=0.0)
            # Inside its own box a label hides the thing; in a small box it hides more of it.
            inside = _shared(plate, box) * min(1.0, 8 * _area(plate) / max(1, _area(box)))
            away = max(0, plate[0] - x1, x0 - plate[2]) + max(0, plate[1] - y1, y0 - plate[3])  # 0 where they touch
            cost = 100 * self._hidden(plate) + 0.6 * others + 0.5 * inside + away / max(1, plate[3] - plate[1])
            # The first places are the usual ones: another place is taken only if it hides much less.
            costs.append(cost + 0.02 * order)
        return words, placed[int(np.argmin(costs))]

    def _fitted(self, text: str, keep: str) -> tuple[str, int, int] | None:
        """The words that fit the picture, and the width and height of their plate."""
        width, height = self._image.size
        font = font_for(text + keep, self._size)
        words = shorten(text, font, width - 2 * self._padding, keep)
        plate_w = round(font.getlength(words)) + 2 * self._padding
        plate_h = round(self._size * 1.25) + self._padding // 2
        return None if not words or plate_h > height / 2 or plate_w > width else (words, plate_w, plate_h)

    def _hidden(self, plate: Rectangle) -> float:
        """The share of the plate that lies on other labels."""
        return sum(_shared(plate, other) for other in self.taken)

    def _write(self, words: str, plate: Rectangle, colour: Colour) -> None:
        self.taken.append(plate)
        draw = ImageDraw.Draw(self._image)
        draw.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=colour, outline=INK)
        at = plate[0] + self._padding, (plate[1] + plate[3]) / 2
        draw.text(at, words, fill=text_colour(colour), font=font_for(words, self._size), anchor="lm")

    def _at(self, x: int, y: int, width: int, height: int) -> Rectangle:
        x = min(max(x, 0), self._image.width - width)
        y = min(max(y, 0), self._image.height - height)
        return x, y, x + width, y + height


def _area(box: Rectangle) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(plate: Rectangle, other: Rectangle) -> float:
    """The share of a plate's area that lies in another rectangle."""
    width = min(plate[2], other[2]) - max(plate[0], other[0])
    height = min(plate[3], other[3]) - max(plate[1], other[1])
    return width * height / _area(plate) if width > 0 and height > 0 else 0.0
