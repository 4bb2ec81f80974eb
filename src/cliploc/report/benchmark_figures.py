"""The benchmark's figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cliploc.metrics import TAUS
from cliploc.report.benchmark_data import BenchmarkRun, wilson
from cliploc.report.figures import Figure, figure, look, plot
from cliploc.report.html import LIGHT
from cliploc.report.task_folder import Floats, SettingResult

QUARTILES = ("smallest quarter", "second", "third", "largest quarter")
INSTANCES = ("1", "2", "3", "4 and more")


def tau_curves(settings: Sequence[SettingResult]) -> Figure:
    """Draws MaxBoxAcc over τ; a dot marks the best τ of each line, a ring the setting's own τ."""

    def draw(axes: Any) -> None:
        for one in settings:
            curve = one.curve if one.curve is not None else np.zeros(len(TAUS))
            colour = plot(axes, one.index, TAUS, curve)
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

    def draw(axes: Any) -> None:
        colour, _, _ = look(setting.index)
        for i, share in enumerate(shares):
            right = i >= 10
            axes.bar(
                (i + 0.5) / 20, share, 0.042, color=colour if right else "none", edgecolor=colour,
                hatch=None if right else "////", linewidth=0.8,
            )  # fmt: skip
        axes.axvline(0.5, color=LIGHT["soft"], linewidth=1, dashes=(4, 3))
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

    def draw(axes: Any) -> None:
        for place, one in enumerate(settings):
            points = [(i, h, n) for i, (h, n) in enumerate(found[one.id]) if n]
            # Side by side, so that the intervals do not overlap.
            x = [i + 0.04 * (place - (len(settings) - 1) / 2) for i, _, _ in points]
            y = np.array([100 * h / n for _, h, n in points])
            ends = np.array([wilson(h, n) for _, h, n in points]).reshape(-1, 2)
            colour = plot(axes, one.index, x, y, marked=True)
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
