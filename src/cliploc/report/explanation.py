"""Writes the explanation of one photograph as an HTML page: maps, deletion and insertion, and the marked region."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.report.benchmark_figures import legend
from cliploc.report.benchmark_tables import Cell, Table
from cliploc.report.faithfulness import Line, draw_curves, number_cell, painted
from cliploc.report.html import REPORT_TEMPLATES, embedded
from cliploc.report.overlay import LINE_COLOUR, fit_within, outlined

SIDE = 300  # longer side in pixels of a picture with its map


@dataclass(frozen=True)
class ExplainedMap:
    """One method's map of a name."""

    method: str  # its title
    heat: npt.NDArray[np.float32]  # [H, W] in 0–1 over the whole picture
    level: float  # of heat, above which its region is marked
    deletion: Sequence[float | None]  # the score as the hottest pixels go
    insertion: Sequence[float | None]  # the score as they come
    numbers: Sequence[float]  # in the order of the page's headings


@dataclass(frozen=True)
class ExplainedName:
    """One name of the photograph."""

    name: str  # as asked for
    about: str  # the whole picture's score, in words
    maps: Sequence[ExplainedMap]  # of each method


def explanation_page(
    title: str,
    photograph: Image.Image,
    names: Sequence[ExplainedName],
    about: Mapping[str, str],
    score: str,
    headings: Iterable[str],
    document: Mapping[str, Any],
) -> str:
    """The page as HTML."""
    small = photograph.convert("RGB").resize(fit_within(photograph.size, SIDE))
    titles = ("method", *headings)
    shown = []
    for one in names:
        figures = []
        for found in one.maps:
            heat = np.nan_to_num(found.heat).clip(0, 1)
            drawn = painted(small, (heat * 255).round().astype(np.uint8))
            drawn = outlined(drawn, heat, found.level, LINE_COLOUR)
            figures.append((found.method, embedded(drawn, f"{one.name} by {found.method}", quality=85)))
        both = [(found.deletion, found.insertion) for found in one.maps]
        scores = [value for pair in both for curve in pair for value in curve if value is not None]
        ends = (0.0, 1.0) if score == "probability" else (min(scores), max(scores))
        curves = [
            (
                which,
                draw_curves(
                    [Line(found.method, getattr(found, which)) for found in one.maps],
                    which,
                    axis,
                    score=score,
                    ends=ends,
                ),
            )
            for which, axis in (("deletion", "share of pixels removed"), ("insertion", "share of pixels shown"))
        ]
        rows = [[Cell(found.method), *map(number_cell, found.numbers)] for found in one.maps]
        table = Table(f"Numbers of {one.name}", dict.fromkeys(titles, ""), {"": rows}, frozenset(titles[1:]))
        lines = legend(enumerate(found.method for found in one.maps))
        facts = {"name": one.name, "about": one.about, "figures": figures, "curves": curves, "legend": lines}
        shown.append({**facts, "table": table})
    return REPORT_TEMPLATES.render(
        "explain.html",
        title=title,
        photograph=embedded(small, "the photograph", quality=85),
        names=shown,
        about=about,
        score=score,
        document=json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False),
    )
