"""Writes the report of a benchmark of faithfulness: the page, and its table as CSV and Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.evaluate.tasks.faithfulness.job import Measures
from cliploc.evaluate.tasks.faithfulness.judged import STEPS
from cliploc.evaluate.tasks.figures import Figure, figure, legend, plot
from cliploc.evaluate.tasks.report import read_run, write_files
from cliploc.evaluate.tasks.tables import numbers_csv, numbers_table, to_markdown

NOTE = (
    "Compare an area with those of the baselines Random and Centred Gaussian, which ignore the picture and the name. "
    "Removed pixels make pictures that no model was trained on: a low deletion area may show that too."
)


def write_faithfulness_report(folder: Path, *, pictures: bool = True) -> Path:  # noqa: ARG001 - it shows none
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
