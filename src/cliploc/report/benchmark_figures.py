"""The benchmark's figures: SVG inside the page, in the page's own colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cliploc.errors import UsageError
from cliploc.report._draw import NAME_COLOURS
from cliploc.report._html import escape
from cliploc.report.benchmark_data import TAUS, Floats, Run, Setting, wilson

# Colours that the drawing library writes, and what of the page's style stands for them.
INK, SOFT, LINE, BAND = "#000001", "#000002", "#000003", "#000004"
STYLE_OF = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", BAND: "var(--band)"}
# Yellow cannot be read on white: the page's ink stands for it. Dashes tell lines of one colour apart.
LINE_COLOURS = (INK, *(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in NAME_COLOURS if (r, g, b) != (240, 228, 66)))
DASHES = ((), (6, 2), (2, 2), (7, 2, 2, 2))
MARKS = "osD^vPX"
QUARTILES = ("smallest quarter", "second", "third", "largest quarter")
INSTANCES = ("1", "2", "3", "4 and more")


def look(index: int) -> tuple[str, tuple[int, ...], str]:
    """Colour, dashes and marker of the setting at this place in the manifest, the same in every figure."""
    turn, place = divmod(index, len(LINE_COLOURS))
    return LINE_COLOURS[place], DASHES[turn % len(DASHES)], MARKS[place]


def legend(settings: Sequence[Setting]) -> str:
    """Which line is which, as text that does not shrink with a figure."""
    items = []
    for one in settings:
        colour, dashes, _ = look(one.index)
        pattern = f' stroke-dasharray="{" ".join(map(str, dashes))}"' if dashes else ""
        items.append(
            f'<li><svg width=34 height=10 viewBox="0 0 34 10" aria-hidden=true><path d="M0 5H34" '
            f'style="stroke:{STYLE_OF.get(colour, colour)}" stroke-width="3"{pattern}/></svg>{escape(one.label)}</li>'
        )
    return f"<ul class=legend>{''.join(items)}</ul>"


def tau_curves(settings: Sequence[Setting]) -> str:
    """MaxBoxAcc at each τ; the best of each line marked by a dot, the setting's own τ by a ring."""

    def draw(axes: Any) -> None:
        for one in settings:
            colour, dashes, _ = look(one.index)
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
    return figure(draw, "tau", f"MaxBoxAcc at every threshold. Best: {best}", (5.8, 4.0))


def iou_histogram(run: Run, setting: Setting, top: float) -> str:
    """How IoUs of the largest contour's box at τ are spread; right ones filled, wrong ones hatched.

    Args:
        run: the benchmark.
        setting: of which.
        top: where the axis ends, in percent, so that all settings' figures compare.
    """
    shares = iou_shares(run, setting)

    def draw(axes: Any) -> None:
        colour, _, _ = look(setting.index)
        for i, share in enumerate(shares):
            right = i >= 10
            axes.bar(
                (i + 0.5) / 20, share, 0.042, color=colour if right else "none", edgecolor=colour,
                hatch=None if right else "////", linewidth=0.8,
            )  # fmt: skip
        axes.axvline(0.5, color=SOFT, linewidth=1, dashes=(4, 3))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, top)
        axes.set_xlabel("IoU")
        axes.set_ylabel("pictures, %")

    right = shares[10:].sum()
    return figure(
        draw, f"iou-{setting.index}", f"{setting.label}: {right:.1f} % of pictures have IoU ≥ 0.5", (4.4, 2.7)
    )


def iou_shares(run: Run, setting: Setting) -> Floats:
    """The share of pictures in percent in each twentieth of IoU, `[20]`."""
    ious = run.of(setting)["iou"].to_numpy(dtype=float)
    counts = np.histogram(ious[np.isfinite(ious)], bins=np.linspace(0, 1, 21))[0]
    shares: Floats = 100 * counts / max(counts.sum(), 1)
    return shares


def breakdown(
    settings: Sequence[Setting], found: Mapping[str, Sequence[tuple[int, int]]], names: Sequence[str], what: str
) -> str:
    """Lines of hits over groups of pictures, each with its 95 % interval.

    Args:
        settings: drawn.
        found: setting id → (hits, pictures) for each group.
        names: of the groups.
        what: the axis's title, and part of the figure's name.
    """

    def draw(axes: Any) -> None:
        for place, one in enumerate(settings):
            colour, dashes, marker = look(one.index)
            points = [(i, h, n) for i, (h, n) in enumerate(found[one.id]) if n]
            # Side by side, so that the intervals do not lie upon each other.
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

    said = "; ".join(
        f"{one.label}: " + ", ".join(f"{name} {h} of {n}" for name, (h, n) in zip(names, found[one.id], strict=True))
        for one in settings
    )
    return figure(draw, re.sub(r"\W+", "-", what), f"Right boxes by {what}. {said}", (5.2, 3.7))


# ------------------------------------------------------------------------------------------------------------ drawing
def figure(draw: Callable[[Any], None], name: str, says: str, inches: tuple[float, float]) -> str:
    """One pair of axes as an SVG element of the page.

    Args:
        draw: puts the lines on the axes.
        name: unique in the page; goes before all of its ids.
        says: what it shows, for who cannot see it.
        inches: its size.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"the report needs matplotlib ({error}): pip install 'cliploc[bench]'") from error
    # Letters stay letters, and the same numbers give the same bytes.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 12.5, "hatch.linewidth": 0.7}
    ):
        drawn = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(drawn)
        drawn.patch.set_visible(False)
        axes = drawn.add_subplot()
        axes.patch.set_visible(False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelcolor=INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        file = io.StringIO()
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _embedded(file.getvalue(), name, says)


def _embedded(svg: str, name: str, says: str) -> str:
    """A stand-alone SVG → an element of the page: ids of its own, colours of the page, no namespaces."""
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', svg)
    width = re.search(r'width="([\d.]+)pt"', svg)
    body = svg[svg.index(">") + 1 :].strip()
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", body)
    for colour, style in STYLE_OF.items():
        body = body.replace(colour, style)
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg class=plot viewBox="{box.group(1) if box else ""}" role=img aria-label="{escape(says)}" '
        f'style="max-width:{float(width.group(1)) * 1.25 if width else 600:.0f}px">{body}'
    )
