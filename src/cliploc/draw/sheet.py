"""A sheet of panels, as pixels (JPEG, PNG) or, for papers, with boxes and letters as lines (SVG, PDF)."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cliploc.draw import captions
from cliploc.draw.colours import INK, PAPER, Colour, heat_colours, text_colour
from cliploc.images.reading import picture_bytes
from cliploc.options import Colormap, FigureKind

GAP = 16
MAX_SIDE = 1600  # of a sheet
CELL_SIDES = (240, 640)  # shortest width and longest side of one panel's picture
TITLE_SIZE, LINE_SIZE, LINE_HEIGHT = 22, 17, 21
CAPTION = 8 + TITLE_SIZE + 8 + 2 * LINE_HEIGHT  # of two lines
MOST_LINES = 8
BAR = (160, 12)  # the colour bar's width and height
GREY: Colour = (80, 80, 80)
INCHES, SPACE, TITLE = 7.0, 0.08, 0.18  # width of a page's text, between panels, of a title


@dataclass(frozen=True)
class Panel:
    """A picture with boxes over it, a title, optionally after a square of its colour, and lines below."""

    image: Image.Image
    title: str
    line: str
    chip: Colour | None = None
    boxes: Sequence[captions.DrawnBox] = ()


@dataclass(frozen=True)
class Sheet:
    """Panels of one size in rows, a text below them, and the colour bar of the heat."""

    panels: Sequence[Panel]
    columns: int
    note: str
    colormap: Colormap | None = None  # None: no panel shows the heat of a single name

    def file(self, kind: FigureKind) -> bytes:
        """The content of a file of this kind; the same every time."""
        return raster(self.image(), kind) if kind in ("jpg", "png") else self._vector(kind)

    def image(self) -> Image.Image:
        """The sheet as pixels."""
        width, height = self.panels[0].image.size
        cell_w = max(CELL_SIDES[0], width)
        texts = [_wrapped(panel.line, cell_w) for panel in self.panels]
        cell_h = height + CAPTION + max(0, max(map(len, texts)) - 2) * LINE_HEIGHT
        rows = -(-len(self.panels) // self.columns)
        sheet_w = GAP + self.columns * (cell_w + GAP)
        below = _wrapped(self.note, sheet_w - 2 * GAP)
        foot = len(below) * LINE_HEIGHT + (0 if self.colormap is None else LINE_HEIGHT)
        sheet = Image.new("RGB", (sheet_w, GAP + rows * (cell_h + GAP) + foot + GAP * bool(foot)), PAPER)
        draw = ImageDraw.Draw(sheet)

        def write(lines: Sequence[str], x: int, y: int, ink: Colour) -> None:
            for row, words in enumerate(lines):
                font = captions.font_for(words, LINE_SIZE)
                draw.text((x, y + row * LINE_HEIGHT), words, fill=ink, font=font)

        top = sheet.height - GAP - foot
        write(below, GAP, top, INK)
        if self.colormap is not None:
            bar = Image.fromarray(np.array([heat_colours(self.colormap)], np.uint8))
            at = sheet.height - GAP - LINE_HEIGHT + 4
            sheet.paste(bar.resize(BAR, Image.Resampling.BILINEAR), (GAP + 20, at))
            write(["0"], GAP, at - 4, GREY)
            write(["1 heat, a share of the map's maximum"], GAP + 28 + BAR[0], at - 4, GREY)
        for number, (panel, lines) in enumerate(zip(self.panels, texts, strict=True)):
            x, y = GAP + number % self.columns * (cell_w + GAP), GAP + number // self.columns * (cell_h + GAP)
            shown = panel.image.copy()
            captions.paint_boxes(shown, panel.boxes)
            sheet.paste(shown, (x + (cell_w - width) // 2, y))
            left, top = x, y + height + 8
            if panel.chip:
                draw.rectangle((x, top + 2, x + TITLE_SIZE - 5, top + TITLE_SIZE - 3), fill=panel.chip, outline=INK)
                left += TITLE_SIZE + 4
            title = captions.clean(panel.title)
            font = captions.font_for(title, TITLE_SIZE)
            draw.text((left, top), captions.shorten(title, font, cell_w + x - left), fill=INK, font=font)
            write(lines, x, top + TITLE_SIZE + 8, GREY)
        return sheet

    def _vector(self, kind: FigureKind) -> bytes:
        """All sizes in inches: the panels fill a page's width, with a column for the colour bar."""
        import matplotlib as mpl
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        columns, rows = self.columns, -(-len(self.panels) // self.columns)
        wide, high = self.panels[0].image.size
        right = 0.0 if self.colormap is None else 0.6
        side = min((INCHES - right) / columns - SPACE, 3.0)
        lines = [textwrap.wrap(captions.clean(panel.line), round(26 * side)) for panel in self.panels]
        note = textwrap.wrap(captions.clean(self.note), round(22 * (columns * (side + SPACE))))
        cell = TITLE + side * high / wide + 0.08 + 0.085 * max(1, *map(len, lines))
        width, height = columns * (side + SPACE) + right, rows * cell + 0.05 + 0.1 * len(note)
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cliploc", "pdf.fonttype": 42, "font.size": 6}):
            figure = Figure(figsize=(width, height))

            def axes(left: float, top: float, w: float, h: float) -> Any:
                return figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height))

            for number, (panel, text) in enumerate(zip(self.panels, lines, strict=True)):
                left, top = number % columns * (side + SPACE), number // columns * cell + TITLE
                tall = side * high / wide
                axis = axes(left, top, side, tall)
                axis.set_axis_off()
                axis.imshow(panel.image, interpolation="none", aspect="auto")
                axis.set_title(captions.clean(panel.title), fontsize=8, pad=2, loc="left")
                axis.text(0, -3 / (72 * tall), "\n".join(text), fontsize=5, va="top", transform=axis.transAxes)
                for box in reversed(panel.boxes):
                    (x0, y0, x1, y1), colour = box.xyxy, np.divide(box.colour, 255)
                    for line, ink in ((2.0, np.divide(INK, 255)), (1.0, colour)):
                        style = "-" if box.sure else "--"
                        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=ink, lw=line, ls=style))
                    plate = {"facecolor": colour, "edgecolor": "black", "linewidth": 0.3, "pad": 1}
                    ink = np.divide(text_colour(box.colour), 255)
                    axis.text(x0, max(y0, 0.06 * high), box.text, fontsize=5, color=ink, va="bottom", bbox=plate)
            if self.colormap is not None:
                table = LinearSegmentedColormap.from_list(self.colormap, np.divide(heat_colours(self.colormap), 255))
                bar = axes(width - right + 0.05, TITLE, 0.08, min(rows * cell - TITLE - 0.2, 2.0))
                figure.colorbar(ScalarMappable(cmap=table), cax=bar, label="heat / its maximum")
            figure.text(0, 0.02 / height, "\n".join(note), fontsize=5, va="bottom")
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata={"Date" if kind == "svg" else "CreationDate": None})
        return content.getvalue()


def raster(image: Image.Image, kind: str) -> bytes:
    """A picture as the content of a JPEG, in which thin coloured lines and letters stay crisp, or of a PNG."""
    return picture_bytes(image, "JPEG", quality=90, subsampling=0) if kind == "jpg" else picture_bytes(image, "PNG")


def grid_of(size_wh: tuple[int, int], count: int, unit: int = 1) -> tuple[int, tuple[int, int]]:
    """The columns, a multiple of `unit`, and the picture size that show `count` panels largest on a sheet."""
    width, height = size_wh
    narrowest, longest = CELL_SIDES
    best = (0.0, unit)
    for columns in range(unit, count + 1, unit):
        rows = -(-count // columns)
        room_w = min(longest, (MAX_SIDE - GAP) / columns - GAP)
        room_h = min(longest, (MAX_SIDE - GAP) / rows - GAP - CAPTION)
        if room_w >= narrowest or columns == unit:
            # Of equal sizes the one with fewer columns.
            best = max(best, (min(room_w / width, room_h / height), columns), key=lambda layout: round(layout[0], 4))
    scale, columns = best
    columns = unit * -(-count // (-(-count // columns) * unit))  # as many rows, none of them with a single panel less
    scale = max(scale, 160 / max(size_wh))  # with many names the sheet becomes longer, so that panels stay legible
    return columns, (max(1, round(width * scale)), max(1, round(height * scale)))


def _wrapped(text: str, width: int) -> list[str]:
    text = captions.clean(text)
    return captions.wrap(text, captions.font_for(text, LINE_SIZE), width, MOST_LINES)
