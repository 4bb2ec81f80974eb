"""Writes a presence benchmark's report as one HTML page, and its tables as CSV and Markdown; no model is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cliploc.draw.html import LIGHT
from cliploc.evaluate.tasks import figures, report, tables

NUMBERS = {  # key → title and meaning
    "recall": ("recall", "share of the names that are there that are found"),
    "precision": ("precision", "share of the names found that are there"),
    "false_finds": ("absent found", "share of the names that are not there that are found"),
    "f1": ("F1", "harmonic mean of recall and precision"),
    "mcc": ("MCC", "Matthews correlation of found and there"),
    "unsure": ("unsure", "share of the names asked that are unsure"),
    "ap50": ("box AP50", "COCO's average precision at IoU 0.5: recall of all true boxes, mean over names"),
    "average_precision": (
        "AP of proposed",
        "average precision of all proposed boxes by score; its recall is of the right ones among them",
    ),
    "calibration_error": ("box ECE", "expected calibration error of the scores of boxes, ten bins"),
}
COUNTS = {
    "names": "names asked that the model knows",
    "names_there": "of these, there",
    "unknown": "names asked that the model does not know; not in the numbers",
    "boxes": "all boxes of all names",
    "right_boxes": "of these, right",
}
NEGATIVES = {
    "random": "drawn at random, as many as names are there",
    "popular": "the most frequent of the split, as many as names are there",
    "confusable": "those most often together with the names that are there, as many as these",
    "all": "all names of the dataset",
}


class Bin(msgspec.Struct, frozen=True):
    """A range of scores in summary.json."""

    boxes: int
    score: float  # their mean
    right: float  # the share that is right


def write_presence_report(folder: Path, *, pictures: bool = True) -> Path:  # noqa: ARG001 - it shows none
    """Writes report.html and the tables into a presence benchmark's folder; see `write_report`."""
    run = report.read_run(folder, lambda _, numbers: numbers.get("mcc"))
    title = run.title("Presence")
    table = tables.numbers_table(run, NUMBERS, {key: (key.replace("_", " "), about) for key, about in COUNTS.items()})
    bins = {
        setting.index: msgspec.convert(setting.numbers["reliability"], list[Bin])
        for setting in run.settings
        if setting.numbers.get("reliability")
    }
    text = "on the dashed line, a score is the chance that a box is right"
    page = run.render(
        "presence.html",
        title=title,
        about=run.facts({"absent names": NEGATIVES.get(run.dataset.negatives, "")}, {}),
        table=table,
        numbers=list(NUMBERS.values()),
        curves=[(text, _reliability(bins))] if bins else [],
        legend=figures.legend((setting.index, setting.id) for setting in run.settings),
    )

    csv = tables.numbers_csv(run, NUMBERS, COUNTS)
    return report.write_files(folder, (csv, tables.to_markdown(title, [table]), page))


def _reliability(bins_of: Mapping[int, Sequence[Bin]]) -> figures.Figure:
    """Draws the share of right boxes at each score, index of a setting → bins; on the diagonal, scores are chances."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=LIGHT.soft, linewidth=1, dashes=(4, 3))
        for index, bins in bins_of.items():
            figures.plot(axes, index, [each.score for each in bins], [each.right for each in bins], marked=True)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="mean score of the boxes", ylabel="share that is right")

    return figures.figure(draw, "Reliability: score and share of right boxes", (5.8, 4.0))
