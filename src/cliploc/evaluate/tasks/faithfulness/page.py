"""Writes the report of a benchmark of faithfulness: the page, and its table as CSV and Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.draw.html import embedded
from cliploc.draw.overlay import fit_within, paint_map
from cliploc.evaluate.tasks.figures import Figure, figure, legend, plot
from cliploc.evaluate.tasks.report import TaskRun, heat_of, read_run, write_files
from cliploc.evaluate.tasks.tables import numbers_csv, numbers_table, to_markdown

DISPUTED = 6  # pictures on which the settings differ most
MOST_SETTINGS = 8  # beside each of them
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
        legend=legend((setting.index, setting.id) for setting in run.settings),
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

    text = "; ".join(
        f"{line.label}: {line.mean[0]:.2f} to {line.mean[-1]:.2f}"
        for line in lines
        if line.mean[0] is not None and line.mean[-1] is not None
    )
    return figure(draw, f"{title}. {text}", (5.8, 4.0))


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
        half = MOST_SETTINGS // 2
        parts = ranked if len(ranked) <= MOST_SETTINGS else [*ranked[:half], *ranked[-half:]]
        first = rows[sample, parts[0]]
        size = fit_within((first["width"], first["height"]), SIDE)
        photograph = run.photograph(first["path"], size) if pictures else None
        figures = [] if photograph is None else [("picture", embedded(photograph, f"picture {sample}", quality=80))]
        for setting in parts:
            heat = heat_of(rows[sample, setting]["thumb"])
            drawn = Image.new("RGB", size, (90, 90, 90)) if photograph is None else photograph.copy()
            paint_map(drawn, heat)
            text = f"{setting} {of_settings[setting]:.3f}"
            figures.append((text, embedded(drawn, f"{sample}: {text}", quality=80)))
        name, probability = str(first["name"]).partition("|")[0], first["probability"]
        made.append({"sample": sample, "about": f"{name}, probability {probability:.2f}", "figures": figures})
    return made
