"""The benchmark's figures as SVG pictures in the page's colours, one for light mode and one for dark mode."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cliploc._imports import install, not_installed
from cliploc.metrics import TAUS
from cliploc.report import colours
from cliploc.report.benchmark_data import BenchmarkRun, wilson
from cliploc.report.html import DARK, LIGHT, data_uri
from cliploc.report.task_folder import Floats, SettingResult

Palette = Mapping[str, str]
# Used after the page's ink colour. Dashes distinguish lines of the same colour.
LINE_COLOURS = tuple(map(colours.as_hex, colours.LINE_COLOURS))
DASHES = ((), (6, 2), (2, 2), (7, 2, 2, 2))
MARKS = "osD^vPX"
QUARTILES = ("smallest quarter", "second", "third", "largest quarter")
INSTANCES = ("1", "2", "3", "4 and more")


@dataclass(frozen=True)
class Figure:
    """A drawing as two SVG pictures; the page shows the one for the screen's mode."""

    light: str  # the data URI in light colours
    dark: str  # the data URI in dark colours
    says: str  # the alternative text
    width: int  # largest width in pixels of the page
    height: int  # the height at that width


def look(index: int, palette: Palette) -> tuple[str, tuple[int, ...], str]:
    """Colour, dashes and marker of the setting with this index, the same in every figure."""
    turn, place = divmod(index, 1 + len(LINE_COLOURS))
    return (palette["ink"], *LINE_COLOURS)[place], DASHES[turn % len(DASHES)], MARKS[place]


def legend(labels: Iterable[tuple[int, str]]) -> list[tuple[str, str, str]]:
    """The legend of lines by index and label: each one's colour and dashes, as in CSS, and its label."""
    looks = [(look(index, {"ink": "var(--ink)"}), label) for index, label in labels]
    return [(colour, " ".join(map(str, dashes)), label) for (colour, dashes, _), label in looks]


def tau_curves(settings: Sequence[SettingResult]) -> Figure:
    """Draws MaxBoxAcc over τ; a dot marks the best τ of each line, a ring the setting's own τ."""

    def draw(axes: Any, palette: Palette) -> None:
        for one in settings:
            colour, dashes, _ = look(one.index, palette)
            curve = one.curve if one.curve is not None else np.zeros(len(TAUS))
            axes.plot(TAUS, curve, color=colour, linewidth=1.8, dashes=dashes or (None, None))
            best = int(curve.argmax())
            axes.plot(TAUS[best], curve[best], "o", color=colour, markersize=6)
            if one.threshold is not None and not one.oracle:
                at = min(round(one.threshold * 1000), len(TAUS) - 1)
                axes.plot(TAUS[at], curve[at], "o", color=colour, markersize=9, fillstyle="none", markeredgewidth=1.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("threshold τ, share of the map's maximum")
        axes.set_ylabel("MaxBoxAcc, %")

    best = "; ".join(
        f"{one.label}: {one.curve.max():.1f} % at {TAUS[int(one.curve.argmax())]:.3f}"
        for one in settings
        if one.curve is not None
    )
    return figure(draw, f"MaxBoxAcc at every threshold. Best: {best}", (5.8, 4.0))


def iou_histogram(run: BenchmarkRun, setting: SettingResult, top: float) -> Figure:
    """IoU of the largest contour's box at τ, right filled, wrong hatched; `top`: the shared axis' end."""
    shares = iou_shares(run, setting)

    def draw(axes: Any, palette: Palette) -> None:
        colour, _, _ = look(setting.index, palette)
        for i, share in enumerate(shares):
            right = i >= 10
            axes.bar(
                (i + 0.5) / 20, share, 0.042, color=colour if right else "none", edgecolor=colour,
                hatch=None if right else "////", linewidth=0.8,
            )  # fmt: skip
        axes.axvline(0.5, color=palette["soft"], linewidth=1, dashes=(4, 3))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, top)
        axes.set_xlabel("IoU")
        axes.set_ylabel("pictures, %")

    right = shares[10:].sum()
    return figure(draw, f"{setting.label}: {right:.1f} % of pictures have IoU ≥ 0.5", (4.4, 2.7))


def iou_shares(run: BenchmarkRun, setting: SettingResult) -> Floats:
    """The percentage of pictures in each of 20 equal ranges of IoU, `[20]`."""
    ious = run.of(setting)["iou"].to_numpy(dtype=float)
    counts = np.histogram(ious[np.isfinite(ious)], bins=np.linspace(0, 1, 21))[0]
    shares: Floats = 100 * counts / max(counts.sum(), 1)
    return shares


def breakdown(
    settings: Sequence[SettingResult], found: Mapping[str, Sequence[tuple[int, int]]], names: Sequence[str], what: str
) -> Figure:
    """Draws the share of hits in groups of pictures, with 95 % intervals."""

    def draw(axes: Any, palette: Palette) -> None:
        for place, one in enumerate(settings):
            colour, dashes, marker = look(one.index, palette)
            points = [(i, h, n) for i, (h, n) in enumerate(found[one.id]) if n]
            # Side by side, so that the intervals do not overlap.
            x = [i + 0.04 * (place - (len(settings) - 1) / 2) for i, _, _ in points]
            y = np.array([100 * h / n for _, h, n in points])
            ends = np.array([wilson(h, n) for _, h, n in points]).reshape(-1, 2)
            axes.plot(x, y, color=colour, linewidth=1.8, dashes=dashes or (None, None), marker=marker, markersize=6)
            axes.vlines(x, ends[:, 0], ends[:, 1], color=colour, linewidth=1, alpha=0.7)
        axes.set_xticks(range(len(names)), [name.replace(" quarter", "\nquarter") for name in names])
        axes.set_xlim(-0.4, len(names) - 0.6)
        axes.set_ylim(-3, 103)
        axes.set_xlabel(what)
        axes.set_ylabel("right boxes, %")

    shares = "; ".join(
        f"{one.label}: " + ", ".join(f"{name} {h} of {n}" for name, (h, n) in zip(names, found[one.id], strict=True))
        for one in settings
    )
    return figure(draw, f"Right boxes by {what}. {shares}", (5.2, 3.7))


# ------------------------------------------------------------------------------------------------------------ drawing
PIXELS = 90  # of the page per inch of a figure


def _style(palette: Palette) -> dict[Any, Any]:
    """The style of all figures as matplotlib settings. Text stays text; the same numbers give the same bytes."""
    ink, soft = palette["ink"], palette["soft"]
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": soft,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 12.5,
        "grid.color": palette["line"],
        "grid.linewidth": 0.8,
        "hatch.linewidth": 0.7,
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "cliploc",
        "xtick.color": soft,
        "xtick.labelcolor": ink,
        "ytick.color": soft,
        "ytick.labelcolor": ink,
    }


def figure(draw: Callable[[Any, Palette], None], says: str, inches: tuple[float, float]) -> Figure:
    """Draws one figure in light and in dark colours."""
    drawn = _svg(draw, LIGHT, inches)
    light, dark = (data_uri(svg.encode(), "image/svg+xml") for svg in (drawn, in_dark(drawn)))
    return Figure(light, dark, says, *(round(PIXELS * side) for side in inches))


def in_dark(svg: str) -> str:
    """The drawing with dark colours in place of the light ones: drawing it twice would take twice the time."""
    swapped = {LIGHT[name]: DARK[name] for name in ("ink", "soft", "line")}
    return re.sub("|".join(swapped), lambda found: swapped[found.group()], svg)


def _svg(draw: Callable[[Any, Palette], None], palette: Palette, inches: tuple[float, float]) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise not_installed(error, install("bench", "report", "matplotlib")) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore the user's own matplotlibrc
        matplotlib.rcParams.update(_style(palette))
        drawn = Canvas(figsize=inches)
        axes = drawn.add_subplot()
        draw(axes, palette)
        file = io.BytesIO()
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return file.getvalue().decode()
