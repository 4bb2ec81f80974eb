"""The figures of all reports as SVG pictures in the page's colours, one for light mode and one for dark mode."""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cliploc.draw import colours
from cliploc.draw.html import DARK, LIGHT, data_uri
from cliploc.support.imports import install, not_installed

# Used after the page's ink colour. Dashes distinguish lines of the same colour.
LINE_COLOURS = tuple(map(colours.as_hex, colours.LINE_COLOURS))
DASHES = ((), (6, 2), (2, 2), (7, 2, 2, 2))
MARKS = "osD^vPX"


@dataclass(frozen=True)
class Figure:
    """A drawing as two SVG pictures; the page shows the one for the screen's mode."""

    light: str  # the data URI in light colours
    dark: str  # the data URI in dark colours
    says: str  # the alternative text
    width: int  # largest width in pixels of the page
    height: int  # the height at that width


def look(index: int, ink: str = LIGHT["ink"]) -> tuple[str, tuple[int, ...], str]:
    """Colour, dashes and marker of the setting with this index, the same in every figure; `ink`: the page's."""
    turn, place = divmod(index, 1 + len(LINE_COLOURS))
    return (ink, *LINE_COLOURS)[place], DASHES[turn % len(DASHES)], MARKS[place]


def plot(axes: Any, index: int, x: Any, y: Any, *, marked: bool = False) -> str:
    """Draws a line in the look of the setting with this index; `marked`: with its marker at each place. Its colour."""
    colour, dashes, marker = look(index)
    axes.plot(x, y, color=colour, linewidth=1.8, dashes=dashes or (None, None), marker=marker if marked else None)
    return colour


def legend(labels: Iterable[tuple[int, str]]) -> list[tuple[str, str, str]]:
    """The legend of lines by index and label: each one's colour and dashes, as in CSS, and its label."""
    looks = [(look(index, "var(--ink)"), label) for index, label in labels]
    return [(colour, " ".join(map(str, dashes)), label) for (colour, dashes, _), label in looks]


# ------------------------------------------------------------------------------------------------------------ drawing
PIXELS = 90  # of the page per inch of a figure
# The style of all figures as matplotlib settings. Text stays text; the same numbers give the same bytes.
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["soft"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": LIGHT["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 12.5,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.8,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "cliploc",
    "xtick.color": LIGHT["soft"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.color": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["ink"],
}


def figure(draw: Callable[[Any], None], says: str, inches: tuple[float, float]) -> Figure:
    """Draws one figure in light and in dark colours; `draw` uses the light ones."""
    light = _svg(draw, inches)
    # Dark colours take the place of the light ones: drawing it twice would take twice the time.
    swapped = {LIGHT[name]: DARK[name] for name in ("ink", "soft", "line")}
    dark = re.sub("|".join(swapped), lambda match: swapped[match.group()], light)
    first, second = (data_uri(svg.encode(), "image/svg+xml") for svg in (light, dark))
    return Figure(first, second, says, *(round(PIXELS * side) for side in inches))


def _svg(draw: Callable[[Any], None], inches: tuple[float, float]) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise not_installed(error, install("bench", "report", "matplotlib")) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore the user's own matplotlibrc
        matplotlib.rcParams.update(STYLE)
        drawn = Canvas(figsize=inches)
        draw(drawn.add_subplot())
        file = io.BytesIO()
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return file.getvalue().decode()
