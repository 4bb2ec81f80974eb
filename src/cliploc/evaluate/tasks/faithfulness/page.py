"""Writes the pages of faithfulness: a benchmark's report with its tables, and the explanation of one photograph."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.draw.html import embedded
from cliploc.draw.overlay import LINE_COLOUR, fit_within, outline, paint_map
from cliploc.evaluate.tasks.figures import Figure, figure, legend, plot
from cliploc.evaluate.tasks.report import TEMPLATES, TaskRun, heat_of, read_run, write_files
from cliploc.evaluate.tasks.tables import (
    Cell,
    Table,
    number_cell,
    numbers_csv,
    numbers_table,
    to_markdown,
)

DISPUTED = 6  # pictures on which the settings differ most
SHOWN_SETTINGS = 8  # beside each of them
SIDE = 200  # longer side in pixels of these
NOTE = (
    "Compare an area with those of the baselines Random and Centred Gaussian, which ignore the picture and the name. "
    "Removed pixels make pictures that no model was trained on: a low deletion area may show that too."
)


@dataclass(frozen=True)
class Line:
    """One curve of a figure: the mean at each place, and the ends of its interval."""

    label: str
    mean: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def write_faithfulness_report(folder: Path, *, pictures: bool = True) -> Path:
    """Writes report.html, tables.csv and tables.md into a faithfulness benchmark's folder; see `write_report`."""

    def best(manifest: Mapping[str, Any], numbers: Mapping[str, Any]) -> float | None:
        first, about = next(iter(manifest["numbers"].items()))  # of which low or high values are the best
        value: float | None = numbers.get(first)
        return -value if value is not None and about["best"] == "low" else value

    run = read_run(folder, best)
    title, protocol = run.title("Faithfulness"), run.manifest["protocol"]
    numbers = {key: (number["title"], number["about"]) for key, number in run.manifest["numbers"].items()}
    table = numbers_table(run, numbers, {"evaluated": ("pictures", "")}, [NOTE])
    of_protocol = {
        **({"steps": f"{protocol.get('steps') or 224}"} if {"deletion", "insertion"} & numbers.keys() else {}),
        **({"tolerance": f"{tolerance:g}"} if (tolerance := protocol.get("tolerance")) is not None else {}),
        "baseline": protocol.get("baseline") or "as published",
        "name": "the true label" if protocol.get("target") == "label" else "the model's prediction",
    }
    curves = []
    for name, axis in run.manifest["curves"].items():
        lines = [
            Line(setting.id, curve["mean"], curve.get("low", ()), curve.get("high", ()))
            for setting in run.settings
            if (curve := (setting.numbers.get("curves") or {}).get(name)) is not None
        ]
        if lines:
            words = name.replace("_", " ")
            curves.append((words, draw_curves(lines, words, axis["label"], axis["places"])))
    page = run.render(
        "faithfulness.html",
        title=title,
        about=run.facts({}, of_protocol),
        table=table,
        numbers=list(numbers.values()),
        curves=curves,
        legend=legend((setting.index, setting.label) for setting in run.settings),
        disputed=_disputed(run, pictures),
    )
    return write_files(folder, (numbers_csv(run, numbers, ()), to_markdown(title, [table]), page))


def draw_curves(
    lines: Sequence[Line],
    title: str,
    axis: str,
    places: Sequence[float] = (),  # of the scores on it; none: at equal distances from 0 to 1
    score: str = "mean score",
    ends: tuple[float, float] | None = None,  # of the vertical axis; None: as the curves need
) -> Figure:
    """Draws curves, each with its interval as a band."""

    def draw(axes: Any) -> None:
        for index, line in enumerate(lines):
            y = np.array(line.mean, np.float64)
            x = np.array(places) if len(places) else np.linspace(0, 1, len(y))
            colour = plot(axes, index, x, y)
            if len(line.low):
                low, high = np.array(line.low, np.float64), np.array(line.high, np.float64)
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set(xlim=(0, 1), xlabel=axis, ylabel=score)
        if ends is not None:
            margin = 0.02 * (ends[1] - ends[0])
            axes.set_ylim(ends[0] - margin, ends[1] + margin)

    said = "; ".join(
        f"{line.label}: {line.mean[0]:.2f} to {line.mean[-1]:.2f}"
        for line in lines
        if line.mean[0] is not None and line.mean[-1] is not None
    )
    return figure(draw, f"{title}. {said}", (5.8, 4.0))


def _disputed(run: TaskRun, pictures: bool) -> list[dict[str, Any]]:
    """Where the settings of one model, asked the same name, differ most by the first number, with their maps."""
    key = next(iter(run.manifest["numbers"]))
    weights = {setting.id: str(setting.about.get("weights")) for setting in run.settings}
    values: dict[tuple[str, str, str], dict[str, float]] = {}  # sample, weights and name → setting → value
    for row in run.read_rows(["sample", "setting", "status", "name", "values"]):
        value = dict(row["values"] or ()).get(key) if row["status"] == "ok" else None
        if value is not None:
            of = row["sample"], weights[row["setting"]], str(row["name"])
            values.setdefault(of, {})[row["setting"]] = value
    spread = {
        of: max(of_settings.values()) - min(of_settings.values())
        for of, of_settings in values.items()
        if len(of_settings) > 1
    }
    chosen = sorted(spread, key=lambda of: (-spread[of], of))[:DISPUTED]
    columns = ["path", "name", "probability", "thumb", "width", "height"]
    rows = run.rows_of_samples(columns, {sample for sample, _, _ in chosen})
    made = []
    for of in chosen:
        sample, of_settings = of[0], values[of]
        ranked = sorted(of_settings, key=lambda setting: (of_settings[setting], setting))
        half = SHOWN_SETTINGS // 2
        shown = ranked if len(ranked) <= SHOWN_SETTINGS else [*ranked[:half], *ranked[-half:]]
        first = rows[sample, shown[0]]
        size = fit_within((first["width"], first["height"]), SIDE)
        photograph = run.photograph(first["path"], size) if pictures else None
        figures = [] if photograph is None else [("picture", embedded(photograph, f"picture {sample}", quality=80))]
        for setting in shown:
            heat = heat_of(rows[sample, setting]["thumb"])
            drawn = Image.new("RGB", size, (90, 90, 90)) if photograph is None else photograph.copy()
            paint_map(drawn, heat)
            said = f"{setting} {of_settings[setting]:.3f}"
            figures.append((said, embedded(drawn, f"{sample}: {said}", quality=80)))
        name, probability = str(first["name"]).partition("|")[0], first["probability"]
        made.append({"sample": sample, "about": f"{name}, probability {probability:.2f}", "figures": figures})
    return made


SIDE_OF_ONE, DENSE = 600, 2  # longer side in pixels of a picture with its map, and how many are one of the page


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
    small = photograph.convert("RGB").resize(fit_within(photograph.size, SIDE_OF_ONE))
    score, columns = document["score"], ("method", *headings.values())
    shown = []
    for entry in document["names"]:
        name, methods = entry["name"], [(titles[method], numbers) for method, numbers in entry["methods"].items()]
        figures = []
        for method in entry["methods"]:
            heat, level = maps[name, method]
            heat = np.nan_to_num(heat).clip(0, 1)
            drawn = small.copy()
            paint_map(drawn, (heat * 255).round().astype(np.uint8))
            outline(drawn, heat, level, LINE_COLOUR, DENSE)
            figures.append((titles[method], embedded(drawn, f"{name} by {titles[method]}", quality=85)))
        of_all = [curve for _, numbers in methods for curve in numbers["curves"].values()]
        scores = [value for curve in of_all for value in curve if value is not None]
        ends = (0.0, 1.0) if score == "probability" else (min(scores), max(scores))
        curves = []
        for which, axis in (("deletion", "share of pixels removed"), ("insertion", "share of pixels shown")):
            lines = [Line(method, numbers["curves"][which]) for method, numbers in methods]
            curves.append((which, draw_curves(lines, which, axis, score=score, ends=ends)))
        rows = [[Cell(method), *(number_cell(numbers[key]) for key in headings)] for method, numbers in methods]
        words = [[Cell(word["word"]), number_cell(word["share"])] for word in entry["words"] or ()]
        shown.append(
            {
                "name": name,
                "about": f"{score} of the whole picture: {entry[score]:.3f}",
                "figures": figures,
                "curves": curves,
                "legend": legend(enumerate(method for method, _ in methods)),
                "table": Table(f"Numbers of {name}", dict.fromkeys(columns, ""), rows, {"method"}),
                "words": Table(f"Words of {name}", {"word": "", "share": ""}, words, {"word"}),
            }
        )
    return TEMPLATES.render(
        "explain.html",
        title=title,
        photograph=embedded(small, "the picture", quality=85),
        names=shown,
        about=about,
        score=score,
        baselines=[titles[method] for method in ("centre_gaussian", "random") if method in titles],
        document=json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False),
    )
