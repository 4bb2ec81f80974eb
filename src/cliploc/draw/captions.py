"""Drawing on pictures: fonts, boxes and labels. Sizes are in pixels of the picture."""

import importlib.util
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliploc.draw.colours import INK, Colour, text_colour

Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1, exclusive right and bottom edge
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
NOTE_PLATE: Colour = (30, 30, 30)  # of a remark on the picture; boxes have none of this colour
# Fonts of the system with Chinese, Japanese and Korean letters, tried in this order.
EAST_ASIAN_FONTS = (
    "NotoSansCJK-Regular.ttc", "SourceHanSans-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf",
)  # fmt: skip


def clean(text: str) -> str:
    """The text as one printable line: line breaks and control characters become spaces, lone surrogates "?"."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def font_for(text: str, size: int) -> Font:
    """A font of the machine that has these letters; letters that no font has are drawn as empty squares."""
    return _font(any("\u2e80" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7a3" for letter in text), size)


@lru_cache(maxsize=64)
def _font(east_asian: bool, size: int) -> Font:
    """An East Asian font, or DejaVu Sans (Latin, Greek, Cyrillic …) of matplotlib, which supervision depends on."""
    matplotlib = importlib.util.find_spec("matplotlib")  # found, not imported
    homes = (matplotlib.submodule_search_locations if matplotlib else None) or []
    names = [f"{home}/mpl-data/fonts/ttf/DejaVuSans.ttf" for home in homes]
    for name in EAST_ASIAN_FONTS if east_asian else (*names, "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


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


def line_width(size_wh: tuple[int, int]) -> int:
    """The width of a box's bright line on a picture of this size."""
    return max(2, round(0.006 * math.sqrt(size_wh[0] * size_wh[1])))


def text_size(size_wh: tuple[int, int]) -> int:
    """The font size of labels on a picture of this size."""
    return max(13, round(0.036 * math.sqrt(size_wh[0] * size_wh[1])))


def to_rectangle(xyxy: Iterable[float], size_wh: tuple[int, int]) -> Rectangle:
    """A float box in whole pixels, inside the picture and at least one pixel large."""
    width, height = size_wh
    x0, y0, x1, y1 = (round(float(value)) for value in xyxy)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)


@dataclass(frozen=True)
class DrawnBox:
    """A box as it is drawn."""

    xyxy: tuple[float, float, float, float]  # pixels of the picture
    name: str
    score: float | None  # where it is a chance
    colour: Colour
    sure: bool = True  # else it is dashed

    @property
    def text(self) -> str:
        """Its label."""
        return f"{clean(self.name)}{'' if self.sure else '?'}{self.chance}"

    @property
    def chance(self) -> str:
        """The score as it is drawn."""
        return "" if self.score is None else f" {self.score:.2f}"


def paint_boxes(image: Image.Image, boxes: Sequence[DrawnBox]) -> list[Rectangle]:
    """Draws boxes, the first on top, with their labels, whose places are returned."""
    line = line_width(image.size)
    rectangles = [to_rectangle(box.xyxy, image.size) for box in boxes]
    for box, rectangle in reversed([*zip(boxes, rectangles, strict=True)]):
        draw_box(image, rectangle, box.colour, line, dash=0 if box.sure else 4 * line)
    plates = Plates(image, text_size(image.size))
    for box, rectangle in zip(boxes, rectangles, strict=True):
        plates.add(rectangle, box.name + ("" if box.sure else "?"), box.chance, box.colour, line)
    return plates.taken


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
    """Labels on solid plates, inside the picture, where they hide least of other labels."""

    def __init__(self, image: Image.Image, size: int) -> None:
        self._image = image
        self._size = size
        self._padding = max(2, round(size * 0.3))
        self.taken: list[Rectangle] = []

    def add(self, box: Rectangle, text: str, keep: str, colour: Colour, line: int) -> None:
        """Writes `text + keep` near or in the box; only `keep` where every place would hide another label."""
        hairline = max(1, round(line / 3))
        x0, y0, x1, y1 = box[0] - hairline, box[1] - hairline, box[2] + hairline, box[3] + hairline
        for words in (self._fitted(clean(text), keep), self._fitted("", keep.strip())):
            if words is None:  # the picture is too small for a label
                continue
            width, height = self._plate(words)
            places = [(x, y) for y in (y0 - height, y1) for x in (x0, x1 - width)]  # above and below
            places += [(x, y) for y in (y0, y1 - height) for x in (x0, x1 - width)]  # inside
            places += [(x1, y0), (x0 - width, y0), *((x0, y0 + row * height) for row in (1, 2, 3, 4, 5, -2, -3))]
            if self._write(words, places, colour):
                return
        if words is not None:
            self._write(words, places[:1], colour, always=True)

    def note(self, text: str) -> None:
        """Writes a remark on the whole picture in a corner that is free."""
        if (words := self._fitted(clean(text), "")) is not None:
            width, height = self._plate(words)
            right, bottom = self._image.width - width, self._image.height - height
            self._write(words, [(0, bottom), (right, bottom), (0, 0), (right, 0)], NOTE_PLATE)

    def _fitted(self, text: str, keep: str) -> str | None:
        """The words that fit the picture."""
        font = font_for(text + keep, self._size)
        words = shorten(text, font, self._image.width - 2 * self._padding, keep)
        width, height = self._plate(words)
        return words if words and 2 * height <= self._image.height and width <= self._image.width else None

    def _plate(self, words: str) -> tuple[int, int]:
        """The width and height of the plate of some words."""
        width = round(font_for(words, self._size).getlength(words)) + 2 * self._padding
        return width, round(self._size * 1.25) + self._padding // 2

    def _write(self, words: str, places: Iterable[tuple[int, int]], colour: Colour, *, always: bool = False) -> bool:
        """Writes at the first place, left and top, that is free; whether there is one."""
        width, height = self._plate(words)
        for left, top in places:
            x, y = min(max(left, 0), self._image.width - width), min(max(top, 0), self._image.height - height)
            hidden = (x < x1 and x0 < x + width and y < y1 and y0 < y + height for x0, y0, x1, y1 in self.taken)
            if always or not any(hidden):
                break
        else:
            return False
        self.taken.append((x, y, x + width, y + height))
        draw = ImageDraw.Draw(self._image)
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour, outline=INK)
        font, at = font_for(words, self._size), (x + self._padding, y + height / 2)
        draw.text(at, words, fill=text_colour(colour), font=font, anchor="lm")
        return True
