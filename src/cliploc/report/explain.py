"""Writes the explanation of one photograph as an HTML page: maps, deletion and insertion, and the marked region."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.report.benchmark_figures import look
from cliploc.report.faithfulness import Line, draw_curves, painted
from cliploc.report.html import REPORT_TEMPLATES, embedded
from cliploc.report.overlay import fit_within

SIDE = 300  # longer side in pixels of a picture with its map


@dataclass(frozen=True)
class ExplainedMap:
    """One method's map of a name.

    Attributes:
        method: its title.
        heat: `[H, W]` in 0–1 over the whole picture.
        deletion: the score as the hottest pixels go.
        insertion: the score as they come.
        facts: what is said below the map.
    """

    method: str
    heat: npt.NDArray[np.float32]
    deletion: Sequence[float | None]
    insertion: Sequence[float | None]
    facts: Sequence[str]


@dataclass(frozen=True)
class ExplainedName:
    """One name of the photograph.

    Attributes:
        name: as asked for.
        about: the whole picture's score, in words.
        maps: of each method.
    """

    name: str
    about: str
    maps: Sequence[ExplainedMap]


def explanation_page(
    title: str,
    photograph: Image.Image,
    names: Sequence[ExplainedName],
    about: Mapping[str, str],
    score: str,
    document: Mapping[str, Any],
) -> str:
    """The page as HTML.

    Args:
        title: its heading.
        photograph: the whole picture.
        names: what is explained.
        about: facts of the run.
        score: what the curves show, "probability" or "cosine".
        document: the same as JSON, shown at the end.
    """
    small = photograph.convert("RGB").resize(fit_within(photograph.size, SIDE))
    shown = []
    for one in names:
        figures = []
        for found in one.maps:
            levels = (np.nan_to_num(found.heat).clip(0, 1) * 255).round().astype(np.uint8)
            drawn = embedded(painted(small, levels), f"{one.name} by {found.method}", quality=85)
            figures.append((found.method, drawn, found.facts))
        curves = [
            draw_curves([Line(found.method, getattr(found, which)) for found in one.maps], which, axis, score=score)
            for which, axis in (("deletion", "share of pixels gone"), ("insertion", "share of pixels shown"))
        ]
        looks = [(look(index, {"ink": "var(--ink)"}), found.method) for index, found in enumerate(one.maps)]
        legend = [(colour, " ".join(map(str, dashes)), name) for (colour, dashes, _), name in looks]
        shown.append({"name": one.name, "about": one.about, "figures": figures, "curves": curves, "legend": legend})
    return REPORT_TEMPLATES.render(
        "explain.html",
        title=title,
        photograph=embedded(small, "the photograph", quality=85),
        names=shown,
        about=about,
        document=json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False),
    )
