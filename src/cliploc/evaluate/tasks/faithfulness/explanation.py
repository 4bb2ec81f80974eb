"""The explanation of one photograph: numbers, curves and hot regions of its maps, as a document and as a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from cliploc.draw.html import embedded
from cliploc.draw.overlay import LINE_COLOUR, fit_within, outline, paint_map
from cliploc.evaluate.tasks.faithfulness.command import METRICS
from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.evaluate.tasks.faithfulness.page import Line, draw_curves
from cliploc.evaluate.tasks.figures import legend
from cliploc.evaluate.tasks.report import TEMPLATES
from cliploc.evaluate.tasks.tables import Cell, Table, number_cell
from cliploc.localizer import Localizer
from cliploc.options import FaithfulnessOptions, Options
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

    method: str
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
    words: Sequence[tuple[str, float]] | None  # shares of the words in the match, where the text tower has them
    maps: Sequence[ExplainedMap]

    def document(self) -> dict[str, Any]:
        """As explain.json has it."""
        return {
            "name": self.name,
            "probability": self.probability,
            "cosine": self.cosine,
            "words": None if self.words is None else [{"word": word, "share": share} for word, share in self.words],
            "methods": {
                one.method: {**one.numbers, "threshold": one.threshold, "curves": one.curves} for one in self.maps
            },
        }


def measurer_of(
    options: Options, names: Sequence[str], methods: Mapping[str, dict[str, Any]], protocol: FaithfulnessOptions
) -> Faithfulness:
    """What measures the maps of these methods; the softmax is over the names."""
    method, method_options = next(iter(methods.items()))
    chosen = options.but(method=method, method_options=method_options, resize="squash", min_presence=0)
    return Faithfulness(Localizer(**chosen.changed()), names, chosen_metrics(METRICS), methods, protocol)


def explained(
    measurer: Faithfulness, names: Sequence[str], photo: str, picture: Image.Image, reporter: Reporter
) -> Iterator[ExplainedName]:
    """What the maps of each name show; of a single name by its cosine, as there is no softmax."""
    by_cosine = len(measurer.known) < 2
    end, place = ("_cosine", 1) if by_cosine else ("", 0)  # of numbers and of a region's scores
    for name in names:
        seen = measurer.see(photo, picture, target=name)
        maps = []
        for method, heat in measurer.maps(seen, reporter=reporter).items():
            measured = measurer.measure_map(seen, heat, reporter=reporter)
            threshold = measurer.localizer.box_rule_of(method, measurer.methods[method]).threshold
            region = measurer.region(seen, heat, threshold)
            numbers = {key: measured.values[f"{key}{end}"] for key in METRICS}
            of_region = (region.share, region.only[place], region.without[place])
            numbers |= dict(zip(("share", "only_region", "without_region"), of_region, strict=True))
            curves = {key: list(measured.curves[f"{key}{end}"]) for key in METRICS}
            maps.append(ExplainedMap(method, heat, region.level, threshold, numbers, curves))
            reporter.images(1)
        probability = None if by_cosine else seen.probability
        yield ExplainedName(name, probability, seen.cosine, measurer.localizer.word_shares(picture, name), maps)


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
    document: Mapping[str, Any],  # as explain.json has it
    protocol: FaithfulnessOptions,
) -> str:
    """The page as HTML."""
    small = photograph.convert("RGB").resize(fit_within(photograph.size, SIDE))
    score = "cosine" if names[0].probability is None else "probability"
    return TEMPLATES.render(
        "explain.html",
        title=title,
        photograph=embedded(small, "the picture", quality=85),
        names=[_part_of(name, small, score, titles) for name in names],
        about={
            "model": document["model"],
            "names": f"{document['among']:,}",
            "score": score,
            "steps": f"{protocol.steps or 224}",
            "baseline": protocol.baseline or "zero; blur for insertion",
        },
        score=score,
        baselines=[titles[method] for method in ("centre_gaussian", "random") if method in titles],
        document=json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False),
    )


def _part_of(name: ExplainedName, small: Image.Image, score: str, titles: Mapping[str, str]) -> dict[str, Any]:
    """The part of the page for a name."""
    figures, rows = [], []
    for one in name.maps:
        heat, title = np.nan_to_num(one.heat).clip(0, 1), titles[one.method]
        drawn = small.copy()
        paint_map(drawn, (heat * 255).round().astype(np.uint8))
        outline(drawn, heat, one.level, LINE_COLOUR)
        figures.append((title, embedded(drawn, f"{name.name} by {title}", quality=85)))
        rows.append([Cell(title), *(number_cell(one.numbers[key]) for key in HEADINGS)])
    scores = [value for one in name.maps for curve in one.curves.values() for value in curve if value is not None]
    ends = (0.0, 1.0) if score == "probability" else (min(scores), max(scores))
    curves = []
    for which, axis in AXES.items():
        lines = [Line(titles[one.method], one.curves[which]) for one in name.maps]
        curves.append((which, draw_curves(lines, which, axis, score=score, ends=ends)))
    words = [[Cell(word), number_cell(share)] for word, share in name.words or ()]
    value = name.cosine if name.probability is None else name.probability
    return {
        "name": name.name,
        "about": f"{score} of the picture: {value:.3f}",
        "figures": figures,
        "curves": curves,
        "legend": legend(enumerate(titles[one.method] for one in name.maps)),
        "table": Table(f"Numbers of {name.name}", dict.fromkeys(("method", *HEADINGS.values()), ""), rows, {"method"}),
        "words": Table(f"Words of {name.name}", {"word": "", "share": ""}, words, {"word"}),
    }
