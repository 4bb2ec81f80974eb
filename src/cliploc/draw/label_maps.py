"""Label maps: as PNG pictures with a legend of their values, and drawn on the photograph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cliploc.draw import captions
from cliploc.draw.colours import INK, PAPER, Colour, as_hex, name_colour
from cliploc.draw.overlay import fit_within
from cliploc.draw.sheet import MAX_SIDE

MOST = 255  # names that a palette can hold, besides the background
OPACITY = 0.55  # of the shade of a name; a light photograph must show through, and colours stay distinct
LEAST_SIDE = 320  # of the drawing's width, so that the legend can be read below tiny photographs
GAP, SIZE, LINE = 12, 16, 24  # of the legend
GREY: Colour = (80, 80, 80)
Labels = npt.NDArray[np.integer[Any]]


def label_picture(labels: npt.NDArray[np.uint16], names: int) -> Image.Image:
    """A label map `[H, W]` as palette picture in the names' colours; grey of 16 bits with more than 255 names."""
    if names > MOST:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([0, 0, 0, *(channel for index in range(names) for channel in name_colour(index))])
    return picture


def label_legend(names: Sequence[str]) -> dict[str, Any]:
    """Which value of a label map is which name, and its colour."""
    background = {"value": 0, "name": None, "colour": "#000000"}
    values = [{"value": i + 1, "name": name, "colour": as_hex(name_colour(i))} for i, name in enumerate(names)]
    return {"labels": [background, *values]}


def draw_segments(image: Image.Image, labels: Labels, names: Sequence[str], run: str = "") -> Image.Image:
    """Each name's pixels in its colour, and below a legend with their shares, and the run; at most 1,600 pixels."""
    width, height = fit_within(image.size, MAX_SIDE)
    scale = max(1, LEAST_SIDE // max(width, height))  # a tiny photo in whole multiples
    width, height = width * scale, height * scale
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.intp)
        for new, old in zip((height, width), labels.shape, strict=True)
    )
    scaled = labels[rows][:, columns]  # [height, width]
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    photo = np.asarray(image.convert("RGB").resize((width, height), resampling, reducing_gap=3.0), np.float32)
    colours: list[Colour] = [(0, 0, 0), *(name_colour(index) for index in range(len(names) - 1))]
    drawn = photo * (1 - OPACITY) + np.array(colours, np.float32)[scaled] * OPACITY
    # Borders are lines of two pixels: one whose right or lower neighbour has another label, and that neighbour.
    across, down = scaled[:, 1:] != scaled[:, :-1], scaled[1:] != scaled[:-1]
    for half, border in ((drawn[:, 1:], across), (drawn[:, :-1], across), (drawn[1:], down), (drawn[:-1], down)):
        half[border] = PAPER
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    order = [int(value) for value in np.argsort(-shares, kind="stable") if shares[value]]
    entries = [(colours[value], names[value], f" {100 * shares[value]:.1f} %") for value in order]
    absent = [name for name, share in zip(names[1:], shares[1:], strict=True) if not share]
    remarks = [f"no pixel: {', '.join(absent)}"] if absent else []
    return _with_legend(Image.fromarray(drawn.round().astype(np.uint8)), entries, [*remarks, *filter(None, [run])])


def _with_legend(
    drawing: Image.Image, entries: Sequence[tuple[Colour, str, str]], remarks: Sequence[str]
) -> Image.Image:
    """The drawing, and below it squares of colours with a name and a share each, then remarks."""
    width = max(LEAST_SIDE, drawing.width)
    placed: list[tuple[int, int, Colour, str]] = []
    x, row = GAP, 0
    for colour, name, keep in entries:
        name = captions.clean(name)
        font = captions.font_for(name, SIZE)
        words = captions.shorten(name, font, width - 2 * GAP - LINE, keep)
        wide = LINE + round(font.getlength(words)) + 2 * GAP
        if x > GAP and x + wide - GAP > width:
            x, row = GAP, row + 1
        placed.append((x, row, colour, words))
        x += wide
    lines = [
        line
        for text in map(captions.clean, remarks)
        for line in captions.wrap(text, captions.font_for(text, SIZE - 2), width - 2 * GAP, 3)
    ]
    top = drawing.height + GAP
    sheet = Image.new("RGB", (width, top + (row + 1 + len(lines)) * LINE + GAP // 2), PAPER)
    sheet.paste(drawing, ((width - drawing.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for x, at, colour, words in placed:
        middle = top + at * LINE + LINE // 2
        draw.rectangle((x, middle - SIZE // 2, x + SIZE, middle + SIZE // 2), fill=colour, outline=INK)
        draw.text((x + LINE, middle), words, fill=INK, font=captions.font_for(words, SIZE), anchor="lm")
    for number, words in enumerate(lines, start=row + 1):
        middle = top + number * LINE + LINE // 2
        draw.text((GAP, middle), words, fill=GREY, font=captions.font_for(words, SIZE - 2), anchor="lm")
    return sheet
