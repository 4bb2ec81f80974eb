"""Writes the report of a benchmark of faithfulness: the page, and its table as CSV and Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from cliploc.draw.html import embedded
from cliploc.draw.overlay import fit_within, paint_map
from cliploc.evaluate.tasks.faithfulness.job import Measures
from cliploc.evaluate.tasks.faithfulness.judged import STEPS
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


class DisputedRow(msgspec.Struct, frozen=True):
    """The columns of a row that a disputed picture needs."""

    path: str
    name: str
    probability: float
    thumb: bytes
    width: int
    height: int


def write_faithfulness_report(folder: Path, *, pictures: bool = True) -> Path:
    """Writes report.html, tables.csv and tables.md into a faithfulness benchmark's folder; see `write_report`."""

    def best(manifest: Mapping[str, Any], numbers: Mapping[str, Any]) -> float | None:
        first, about = next(iter(Measures.in_(manifest).numbers.items()))  # of which low or high values are the best
        value: float | None = numbers.get(first)
        return -value if value is not None and about.best == "low" else value

    run = read_run(folder, best)
    title, measures = run.title("Faithfulness"), Measures.in_(run.manifest)
    numbers = {key: (number.title, number.about) for key, number in measures.numbers.items()}
    table = numbers_table(run, numbers, {"evaluated": ("pictures", "")}, [NOTE])
    of_protocol = {
        **({"steps": f"{measures.protocol.steps or STEPS}"} if {"deletion", "insertion"} & numbers.keys() else {}),
        "baseline": measures.protocol.baseline or "as published",
        "name": "the true label" if measures.protocol.target == "label" else "the model's prediction",
    }
    curves = []
    for name, axis in measures.curves.items():
        of_settings = {setting.id: (setting.numbers.get("curves") or {}).get(name) for setting in run.settings}
        if lines := {setting: curve["mean"] for setting, curve in of_settings.items() if curve is not None}:
            words = name.replace("_", " ")
            curves.append((words, draw_curves(lines, words, axis.label, axis.places)))
    page = run.render(
        "faithfulness.html",
        title=title,
        about=run.facts({}, of_protocol),
        table=table,
        numbers=list(numbers.values()),
        curves=curves,
        legend=legend((setting.index, setting.id) for setting in run.settings),
        disputed=_disputed(run, next(iter(numbers)), pictures),
    )
    return write_files(folder, (numbers_csv(run, numbers, ()), to_markdown(title, [table]), page))


def draw_curves(
    lines: Mapping[str, Sequence[float | None]],  # of each label
    title: str,
    axis: str,
    places: Sequence[float] = (),  # of the scores on it; none: at equal distances from 0 to 1
    score: str = "mean score",
    ends: tuple[float, float] | None = None,  # of the vertical axis; None: as the curves need
) -> Figure:
    """Draws curves."""

    def draw(axes: Any) -> None:
        for index, line in enumerate(lines.values()):
            y = np.array(line, np.float64)
            plot(axes, index, np.array(places) if len(places) else np.linspace(0, 1, len(y)), y)
        axes.set(xlim=(0, 1), xlabel=axis, ylabel=score)
        if ends is not None:
            margin = 0.02 * (ends[1] - ends[0])
            axes.set_ylim(ends[0] - margin, ends[1] + margin)

    text = "; ".join(
        f"{label}: {line[0]:.2f} to {line[-1]:.2f}"
        for label, line in lines.items()
        if line[0] is not None and line[-1] is not None
    )
    return figure(draw, f"{title}. {text}", (5.8, 4.0))


def _disputed(run: TaskRun, key: str, pictures: bool) -> list[dict[str, Any]]:
    """Where the settings of one model, asked the same name, differ most by this number, with their maps."""
    weights = {setting.id: str(setting.about.get("weights")) for setting in run.settings}
    of_picture: dict[tuple[str, str, str], dict[str, float]] = {}  # sample, weights and name → setting → value
    for row in run.read_rows(["sample", "setting", "name", "values"]):
        sample, setting, name, values = row.values()
        if (value := dict(values or ()).get(key)) is not None:
            of_picture.setdefault((sample, weights[setting], name), {})[setting] = value
    spread = {of: max(values.values()) - min(values.values()) for of, values in of_picture.items() if len(values) > 1}
    chosen = sorted(spread, key=lambda of: (-spread[of], of))[:DISPUTED]
    rows = run.rows_of_samples(DisputedRow.__struct_fields__, {sample for sample, _, _ in chosen})
    made = []
    for of in chosen:
        sample, values = of[0], of_picture[of]
        ranked, half = sorted(values, key=lambda setting: (values[setting], setting)), MOST_SETTINGS // 2
        parts = ranked if len(ranked) <= MOST_SETTINGS else [*ranked[:half], *ranked[-half:]]
        found = {setting: msgspec.convert(rows[sample, setting], DisputedRow) for setting in parts}
        first = found[parts[0]]
        size = fit_within((first.width, first.height), SIDE)
        photograph = run.photograph(first.path, size) if pictures else None
        figures = [] if photograph is None else [("picture", embedded(photograph, f"picture {sample}", quality=80))]
        for setting, shown in found.items():
            drawn = Image.new("RGB", size, (90, 90, 90)) if photograph is None else photograph.copy()
            paint_map(drawn, heat_of(shown.thumb))
            text = f"{setting} {values[setting]:.3f}"
            figures.append((text, embedded(drawn, f"{sample}: {text}", quality=80)))
        about = f"{first.name.partition('|')[0]}, probability {first.probability:.2f}"
        made.append({"sample": sample, "about": about, "figures": figures})
    return made
