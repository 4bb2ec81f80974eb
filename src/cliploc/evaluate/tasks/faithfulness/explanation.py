"""The explanation of one photograph: numbers, curves and hot regions of its maps, as a document and as a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from cliploc.boxes import hot_levels
from cliploc.draw import overlay
from cliploc.draw.colours import heat_colours
from cliploc.draw.html import embedded
from cliploc.evaluate.tasks.faithfulness import measure as base
from cliploc.evaluate.tasks.faithfulness.command import METRICS
from cliploc.evaluate.tasks.faithfulness.job import draw_curves
from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness, SeenPicture
from cliploc.evaluate.tasks.report import TEMPLATES
from cliploc.evaluate.tasks.tables import Cell, Table, legend, number_cell
from cliploc.find.running import torch_modes
from cliploc.support.reporter import Reporter
from cliploc.values import FloatArray

SIDE = 600  # longer side in pixels of a picture with its map
HEADINGS = {
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "share": "region share",
    "only_region": "only region",
    "without_region": "without region",
}  # key of a number → its heading
AXES = {"deletion": "share of pixels removed", "insertion": "share of pixels shown"}


@dataclass(frozen=True)
class ExplainedMap:
    """What one method's map of a name shows."""

    heat: FloatArray  # [H, W] in 0–1 over the picture
    level: float  # of the heat above which its region is marked
    threshold: float | str
    numbers: Mapping[str, float | None]  # of `HEADINGS`
    curves: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class ExplainedName:
    """What the maps of a name show."""

    name: str
    probability: float | None  # None for a single name
    cosine: float
    maps: Mapping[str, ExplainedMap]  # of each method

    def document(self) -> dict[str, Any]:
        """As explain.json has it."""
        return {
            "name": self.name,
            "probability": self.probability,
            "cosine": self.cosine,
            "methods": {
                method: {**one.numbers, "threshold": one.threshold, "curves": one.curves}
                for method, one in self.maps.items()
            },
        }


def explained(
    measurer: Faithfulness, names: Sequence[str], photo: str, picture: Image.Image, reporter: Reporter
) -> Iterator[ExplainedName]:
    """What the maps of each name show; of a single name by its cosine, as there is no softmax."""
    for name in names:
        seen = measurer.see(photo, picture, target=name)
        maps = {}
        for method, heat in measurer.maps(seen, reporter=reporter).items():
            maps[method] = _map(measurer, seen, method, heat, reporter)
            reporter.images(1)
        probability = seen.probability if len(measurer.known) > 1 else None
        yield ExplainedName(name, probability, seen.cosine, maps)


def _map(measurer: Faithfulness, seen: SeenPicture, method: str, heat: FloatArray, reporter: Reporter) -> ExplainedMap:
    """Numbers and curves of a map, and the scores of its hot region alone and of the picture without it."""
    by_cosine = len(measurer.known) < 2
    threshold = measurer.localizer.box_rule_of(method, measurer.methods[method]).threshold
    level = float(hot_levels(heat[None], threshold)[0])
    measured = measurer.measure_map(seen, heat, reporter=reporter)
    with torch_modes(measurer.backbone.device):
        marked = torch.from_numpy(heat > level).to(seen.images.device)  # [H, W]
        removed = torch.stack([~marked, marked])[:, None]  # [2, 1, H, W]
        fill = base.fill_of(measurer.options.baseline or "zero", seen.images, measurer.backbone.normalize)
        pictures = torch.where(removed, fill, seen.images)
        scores = measurer.scorer()(2, lambda first, last: pictures[first:last], seen.target)
    only, without = (scores.cosine if by_cosine else scores.probability).tolist()
    key_of = {key: f"{key}_cosine" if by_cosine else key for key in METRICS}
    numbers = {key: measured.values[measured_key] for key, measured_key in key_of.items()}
    numbers |= {"share": float(marked.float().mean()), "only_region": only, "without_region": without}
    curves = {key: list(measured.curves[measured_key]) for key, measured_key in key_of.items()}
    return ExplainedMap(heat, level, threshold, numbers, curves)


def document_of(measurer: Faithfulness, photo: str, names: Sequence[ExplainedName], version: int) -> dict[str, Any]:
    """The contents of explain.json."""
    return {
        "schema_version": version,
        "photo": photo,
        "model": measurer.backbone.name,
        "score": "probability" if len(measurer.known) > 1 else "cosine",
        "among": len(measurer.known),
        "protocol": asdict(measurer.options),
        "methods": {name: measurer.localizer.options_of(name, options) for name, options in measurer.methods.items()},
        "names": [name.document() for name in names],
    }


def page_of(
    title: str,
    photograph: Image.Image,
    names: Sequence[ExplainedName],
    titles: Mapping[str, str],  # method → its title
    measurer: Faithfulness,
    document: Mapping[str, Any],  # as explain.json has it
) -> str:
    """The page as HTML."""
    small = photograph.convert("RGB").resize(overlay.fit_within(photograph.size, SIDE))
    score, protocol = "cosine" if names[0].probability is None else "probability", measurer.options
    return TEMPLATES.render(
        "explain.html",
        title=title,
        photograph=embedded(small, "the picture", quality=85),
        names=[_part_of(name, small, score, titles) for name in names],
        about={
            "model": measurer.backbone.name,
            "names": f"{len(measurer.known):,}",
            "score": score,
            "steps": f"{protocol.steps or base.STEPS}",
            "baseline": protocol.baseline or "zero; blur for insertion",
        },
        score=score,
        baselines=[titles[method] for method in ("centre_gaussian", "random") if method in titles],
        document=json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False),
    )


def _part_of(name: ExplainedName, small: Image.Image, score: str, titles: Mapping[str, str]) -> dict[str, Any]:
    """The part of the page for a name."""
    figures, rows = [], []
    for method, one in name.maps.items():
        heat, title = np.nan_to_num(one.heat).clip(0, 1), titles[method]
        drawn = small.copy()
        overlay.paint_map(drawn, (heat * 255).round().astype(np.uint8))
        overlay.outline(drawn, heat, one.level, heat_colours()[-1])
        figures.append((title, embedded(drawn, f"{name.name} by {title}", quality=85)))
        rows.append([Cell(title), *(number_cell(one.numbers[key]) for key in HEADINGS)])
    scores = [
        value for one in name.maps.values() for curve in one.curves.values() for value in curve if value is not None
    ]
    ends = (0.0, 1.0) if score == "probability" else (min(scores), max(scores))
    curves = []
    for which, axis in AXES.items():
        lines = {titles[method]: one.curves[which] for method, one in name.maps.items()}
        curves.append((which, draw_curves(lines, which, axis, score=score, ends=ends)))
    value = name.cosine if name.probability is None else name.probability
    return {
        "name": name.name,
        "about": f"{score} of the picture: {value:.3f}",
        "figures": figures,
        "curves": curves,
        "legend": legend(enumerate(titles[method] for method in name.maps)),
        "table": Table(f"Numbers of {name.name}", dict.fromkeys(("method", *HEADINGS.values()), ""), rows, {"method"}),
    }
