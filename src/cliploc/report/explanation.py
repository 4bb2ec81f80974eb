"""Writes the explanation of one photograph as an HTML page: maps, deletion and insertion, and the marked region."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.report.benchmark_figures import legend
from cliploc.report.benchmark_tables import Cell, Table
from cliploc.report.faithfulness import Line, draw_curves, number_cell, painted
from cliploc.report.html import REPORT_TEMPLATES, embedded
from cliploc.report.overlay import LINE_COLOUR, fit_within, outlined

SIDE = 300  # longer side in pixels of a picture with its map


# A map `[H, W]` in 0–1 over the whole picture, and the level of heat above which its region is marked.
HotMap: TypeAlias = tuple[npt.NDArray[np.float32], float]


def explanation_page(
    title: str,
    photograph: Image.Image,
    document: Mapping[str, Any],  # as explain.json has it
    maps: Mapping[tuple[str, str], HotMap],  # (name, method) → its map
    titles: Mapping[str, str],  # method → its title
    headings: Mapping[str, str],  # key of a number → its heading
    about: Mapping[str, str],
) -> str:
    """The page of a document as HTML."""
    small = photograph.convert("RGB").resize(fit_within(photograph.size, SIDE))
    score, columns = document["score"], ("method", *headings.values())
    shown = []
    for one in document["names"]:
        name, methods = one["name"], [(titles[method], found) for method, found in one["methods"].items()]
        figures = []
        for method in one["methods"]:
            heat, level = maps[name, method]
            heat = np.nan_to_num(heat).clip(0, 1)
            drawn = painted(small, (heat * 255).round().astype(np.uint8))
            drawn = outlined(drawn, heat, level, LINE_COLOUR)
            figures.append((titles[method], embedded(drawn, f"{name} by {titles[method]}", quality=85)))
        of_all = [curve for _, found in methods for curve in found["curves"].values()]
        scores = [value for curve in of_all for value in curve if value is not None]
        ends = (0.0, 1.0) if score == "probability" else (min(scores), max(scores))
        curves = []
        for which, axis in (("deletion", "share of pixels removed"), ("insertion", "share of pixels shown")):
            lines = [Line(method, found["curves"][which]) for method, found in methods]
            curves.append((which, draw_curves(lines, which, axis, score=score, ends=ends)))
        rows = [[Cell(method), *(number_cell(found[key]) for key in headings)] for method, found in methods]
        shown.append(
            {
                "name": name,
                "about": f"{score} of the whole picture: {one[score]:.3f}",
                "figures": figures,
                "curves": curves,
                "legend": legend(enumerate(method for method, _ in methods)),
                "table": Table(f"Numbers of {name}", dict.fromkeys(columns, ""), {"": rows}, frozenset(columns[1:])),
            }
        )
    return REPORT_TEMPLATES.render(
        "explain.html",
        title=title,
        photograph=embedded(small, "the photograph", quality=85),
        names=shown,
        about=about,
        score=score,
        document=json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False),
    )
