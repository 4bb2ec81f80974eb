"""The figures of all reports as SVG pictures on white."""

import io
from collections.abc import Callable, Iterable
from typing import Any

from cliploc.draw import colours
from cliploc.draw.html import LIGHT, data_uri
from cliploc.support.imports import install, not_installed

# Used after the page's ink colour. Dashes distinguish lines of the same colour.
LINE_COLOURS = tuple(map(colours.as_hex, colours.LINE_COLOURS))
DASHES = ((), (6, 2), (2, 2), (7, 2, 2, 2))
MARKS = "osD^vPX"


Figure = dict[str, Any]  # as the macro `picture` shows it


def look(index: int, ink: str = LIGHT.ink) -> tuple[str, tuple[int, ...], str]:
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
    "axes.edgecolor": LIGHT.soft,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": LIGHT.ink,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 12.5,
    "grid.color": LIGHT.line,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "cliploc",
    "xtick.color": LIGHT.soft,
    "xtick.labelcolor": LIGHT.ink,
    "ytick.color": LIGHT.soft,
    "ytick.labelcolor": LIGHT.ink,
}


def figure(draw: Callable[[Any], None], says: str, inches: tuple[float, float]) -> Figure:
    """Draws one figure; `says` is its alternative text."""
    width, height = (round(PIXELS * side) for side in inches)
    uri = data_uri(_svg(draw, inches).encode(), "image/svg+xml")
    return {"uri": uri, "width": width, "height": height, "alt": says}


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
