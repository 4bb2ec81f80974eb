"""Draws methods beside each other on one sheet: a row for each method, a column for each name and model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from cliploc.draw import captions
from cliploc.draw.colours import INK, PAPER, Colour
from cliploc.draw.html import count
from cliploc.draw.overlay import file_name, run_line, scaled
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.localization import Localization

MOST_CELLS = 400  # of a sheet; nobody reads a larger one
LARGEST_SIDE = 8000  # maximum side in pixels of a sheet that is enlarged to keep its cells legible
SHEET_SIDE = 1800  # usual maximum side in pixels of a sheet; larger only if its cells would be too small
NARROWEST_COLUMN = 190  # pixels; a caption then takes two or three lines
CELL_SIDES = (200, 560)  # minimum and maximum of the longer side of a cell's picture
GAP, BLOCK_GAP, MARGIN = 14, 40, 20
FILE_SIZE, HEADING_SIZE, TEXT_SIZE = 26, 18, 14
MOST_LINES = 8  # of a text
THUMBNAIL = (220, 150)
GREY: Colour = (80, 80, 80)
EMPTY: Colour = (238, 238, 238)
RULE: Colour = (190, 190, 190)
LEGEND = "Ring: the hottest place of the map. Line and boxes: what is hotter than τ, the threshold of the method."


@dataclass(frozen=True)
class ModelResults:
    """The results of all methods for one picture on one model."""

    model: str  # the model's name
    results: Mapping[str, Localization]  # method, as it was typed → its result
    missing: Mapping[str, str] = field(default_factory=dict)  # method → why it has no result on this model


def draw_comparison(models: Sequence[ModelResults], titles: Mapping[str, str]) -> Image.Image:
    """A sheet for a picture: methods × names by model, many rows in blocks; a cell's heat, boxes, peak."""
    first = next(result for model in models for result in model.results.values())
    return _Sheet(models, titles, first).draw()


def refuse_too_many(methods: int, names: int, models: int = 1) -> None:
    """Refuses a sheet with too many cells, before anything is computed for it."""
    cells = methods * names * models
    if cells > MOST_CELLS:
        raise UsageError(
            f"expected at most {MOST_CELLS} cells (methods × names × models), got {methods} × {names} × {models} = "
            f"{cells}: ask for fewer names or methods at once"
        )


def cell_caption(result: Localization, index: int) -> str:
    """The text below a cell: "found · 2 boxes, best 0.93 · τ 0.30", or why a name was not found."""
    scores = result.boxes.score[result.boxes.label == index]
    if result.found[index]:
        words = ["found", count(len(scores), "box", "boxes")]
        if len(scores):
            words[-1] += f", best {float(scores.max()):.2f}"
        words += filter(None, [run_line(replace(result, method="", model=""))])  # the threshold
    else:
        words = [result.verdict(index), *filter(None, [result.reasons[index]])]
    return " · ".join(words)


# ------------------------------------------------------------------------------------------------------------ the sheet
class _Sheet:
    """The sheet of one picture. Its parts are measured before drawing, as texts take different numbers of lines."""

    def __init__(self, models: Sequence[ModelResults], titles: Mapping[str, str], first: Localization) -> None:
        self._models, self._titles, self._first = models, titles, first  # titles in the order of the rows
        self._names = first.names
        columns = len(models) * len(self._names)
        self._rows_of_block, self._picture_wh = _fitting(first.image.size, len(titles), columns)
        self._column_w = max(NARROWEST_COLUMN, self._picture_wh[0])
        self._block_w = columns * self._column_w + (columns - 1) * GAP
        self._group_w = len(self._names) * (self._column_w + GAP) - GAP  # of a model's columns
        self._groups = [(number * (self._group_w + GAP), model) for number, model in enumerate(models)]  # left edges
        methods = list(titles)
        blocks = math.ceil(len(methods) / self._rows_of_block)
        self._blocks = [methods[number::blocks] for number in range(blocks)]  # in reading order, line by line
        blocks_w = len(self._blocks) * self._block_w + (len(self._blocks) - 1) * BLOCK_GAP
        self._width = 2 * MARGIN + max(blocks_w, THUMBNAIL[0] + GAP + 300)

    def draw(self) -> Image.Image:
        """The whole sheet."""
        head = self._head()
        heads = self._column_heads()
        # Rows with the same number in different blocks have the same height, so that they are aligned.
        rows = [
            [self._row(block[number]) if number < len(block) else None for block in self._blocks]
            for number in range(len(self._blocks[0]))
        ]
        heights = [max(panel.height for panel in row if panel is not None) for row in rows]
        height = MARGIN + head.height + GAP + heads.height + sum(row_height + GAP for row_height in heights) + MARGIN
        sheet = Image.new("RGB", (self._width, height), PAPER)
        sheet.paste(head, (MARGIN, MARGIN))
        for number in range(len(self._blocks)):
            x, y = MARGIN + number * (self._block_w + BLOCK_GAP), MARGIN + head.height + GAP
            sheet.paste(heads, (x, y))
            y += heads.height
            for row, row_height in zip(rows, heights, strict=True):
                part = row[number]
                if part is not None:
                    sheet.paste(part, (x, y))
                y += row_height + GAP
        return sheet

    def _head(self) -> Image.Image:
        """The head: a small photograph, and beside it file, size, names, models and remarks."""
        first, width = self._first, self._width - 2 * MARGIN
        ratio = min(THUMBNAIL[0] / first.image.width, THUMBNAIL[1] / first.image.height)
        small_wh = (max(1, round(first.image.width * ratio)), max(1, round(first.image.height * ratio)))
        small = scaled(first, small_wh).image
        left = small.width + GAP
        notes = dict.fromkeys(
            note for model in self._models for result in model.results.values() for note in result.notes
        )
        texts = [
            _Text(file_name(first), FILE_SIZE, width - left),
            _Text(f"{_names('name', self._names)} · {_names('model', [model.model for model in self._models])}",
                  HEADING_SIZE, width - left),
            _Text(" · ".join([f"{first.image.width}×{first.image.height}", count(len(self._titles), "method"), *notes]),
                  TEXT_SIZE, width - left, GREY),
            _Text(LEGEND, TEXT_SIZE, width - left, GREY),
        ]  # fmt: skip
        part = Image.new("RGB", (width, max(small.height, sum(text.height for text in texts))), PAPER)
        part.paste(small, (0, 0))
        y = 0
        for text in texts:
            y = text.draw(part, left, y)
        return part

    def _column_heads(self) -> Image.Image:
        """The column heads: models and names, where there are several; each model is above its names."""
        texts: list[list[tuple[int, _Text]]] = []
        if len(self._models) > 1:
            texts.append([(x, _Text(model.model, HEADING_SIZE, self._group_w)) for x, model in self._groups])
        if len(self._names) > 1:
            texts.append(
                [
                    (x + number * (self._column_w + GAP), _Text(name, HEADING_SIZE, self._column_w))
                    for x, _ in self._groups
                    for number, name in enumerate(self._names)
                ]
            )
        heights = [max(text.height for _, text in line) for line in texts]
        part = Image.new("RGB", (self._block_w, sum(heights) or 1), PAPER)
        y = 0
        for line, height in zip(texts, heights, strict=True):
            for x, text in line:
                text.draw(part, x, y)
            y += height
        return part

    def _row(self, method: str) -> Image.Image:
        """A row: a method's title and its cells for all models."""
        width, height = self._picture_wh
        cells: list[tuple[int, Image.Image, _Text | None]] = []  # left edge, picture, and the text below it
        for left, model in self._groups:
            result = model.results.get(method)
            if result is None:
                wide = self._group_w if len(self._names) > 1 else max(width, NARROWEST_COLUMN)
                empty = Image.new("RGB", (wide, height), EMPTY)
                reason = _Text(model.missing.get(method, "no result"), TEXT_SIZE, wide - 2 * GAP, GREY)
                reason.draw(empty, GAP, max(0, (height - reason.height) // 2))
                cells.append((left, empty, None))
                continue
            small = scaled(result, self._picture_wh)
            for index, name in enumerate(self._names):
                picture = small.overlay([name], caption=False)
                _ring(picture, small.peak(index))
                caption = _Text(cell_caption(result, index), TEXT_SIZE, self._column_w, GREY)
                cells.append((left + index * (self._column_w + GAP), picture, caption))
        title = _Text(self._titles[method], HEADING_SIZE, self._block_w)
        below = max((text.height for _, _, text in cells if text is not None), default=0)
        part = Image.new("RGB", (self._block_w, 8 + title.height + height + 4 + below), PAPER)
        ImageDraw.Draw(part).line((0, 0, self._block_w, 0), fill=RULE)
        y = title.draw(part, 0, 8)
        for x, picture, text in cells:
            part.paste(picture, (x, y))
            if text is not None:
                text.draw(part, x, y + height + 4)
        return part


def _fitting(size_wh: tuple[int, int], rows: int, columns: int) -> tuple[int, tuple[int, int]]:
    """The rows of a block and a cell's picture size that make pictures largest, and cells legible."""
    longest, (least, most) = max(size_wh), CELL_SIDES
    side = float(SHEET_SIDE)
    scale, of_block = _largest(size_wh, rows, columns, side)
    while scale * longest < least and side < LARGEST_SIDE:
        side *= 1.1
        scale, of_block = _largest(size_wh, rows, columns, side)
    scale = min(max(scale, least / longest), most / longest)
    return of_block, (max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale)))


def _largest(size_wh: tuple[int, int], rows: int, columns: int, side: float) -> tuple[float, int]:
    """The largest scale of pictures on a sheet of this side, and the number of rows of a block that gives it."""
    width, height = size_wh
    words = HEADING_SIZE + 3 * TEXT_SIZE + 40 + GAP  # of a row, beside its pictures
    best = (0.0, 0, rows)
    for blocks in range(1, rows + 1):
        of_block = math.ceil(rows / blocks)
        room_w = (side - 2 * MARGIN - (blocks - 1) * BLOCK_GAP) / (columns * blocks) - GAP
        room_h = (side - 2 * MARGIN - THUMBNAIL[1]) / of_block - words
        if room_w >= NARROWEST_COLUMN or blocks == 1:
            scale = min(room_w / width, room_h / height, CELL_SIDES[1] / max(size_wh))
            best = max(best, (round(scale, 4), -blocks, of_block))  # of equal sizes the one with fewer blocks
    return best[0], best[2]


def _ring(picture: Image.Image, peak: tuple[float, float, float] | None) -> None:
    """Marks the hottest place, if there is one."""
    if peak is None:
        return
    _, x, y = peak
    radius = max(3, min(picture.size) // 40)
    draw = ImageDraw.Draw(picture)
    for grow, colour, line in ((1, INK, 4), (0, PAPER, 2)):
        around = radius + grow
        draw.ellipse((x - around, y - around, x + around, y + around), outline=colour, width=line)


def _names(word: str, names: Sequence[str]) -> str:
    return f"{word}{'' if len(names) == 1 else 's'}: {', '.join(names)}"


class _Text:
    """A text in as many lines as it needs, at most `MOST_LINES`."""

    def __init__(self, text: str, size: int, width: int, colour: Colour = INK) -> None:
        text = captions.clean(text)
        self._font, self._colour, self._line_height = captions.caption_font(text, size), colour, round(1.3 * size)
        self._lines = captions.wrap(text, self._font, width, MOST_LINES)
        self.height = len(self._lines) * self._line_height + size // 3

    def draw(self, picture: Image.Image, x: int, y: int) -> int:
        """Draws the text and returns the y at which the next thing may begin."""
        draw = ImageDraw.Draw(picture)
        for number, line in enumerate(self._lines):
            draw.text((x, y + number * self._line_height), line, fill=self._colour, font=self._font)
        return y + self.height
