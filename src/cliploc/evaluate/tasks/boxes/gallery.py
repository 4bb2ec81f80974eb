"""The pictures of the page of boxes: photographs with a setting's map, its boxes, and the true boxes (dashed)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from cliploc.draw import captions
from cliploc.draw.html import embedded
from cliploc.draw.overlay import BOX_COLOUR, fit_within, paint_map
from cliploc.evaluate import metrics
from cliploc.evaluate.tasks.report import TaskRun, heat_of
from cliploc.values import GOOD_IOU, rounded_below

SIDE = 240  # longest side of a photograph in the page
EACH = 6  # pictures of each kind
GREY, TRUE_COLOUR = (90, 90, 90), (86, 224, 255)
Captioned = tuple[str, dict[str, Any]]  # a caption, and a picture for the macro `picture`


class BoxRow(msgspec.Struct, frozen=True):
    """The columns that the page needs of a picture with true boxes in one setting."""

    sample: str
    setting: str
    label: int
    iou: float  # of the largest contour's box at the setting's τ
    highest: int
    hits_largest_50: bytes
    predictions: list[int] | None

    def hit(self, tau: float) -> bool:
        """Whether the largest contour's box at this τ is right."""
        return metrics.hit_at(self.hits_largest_50, self.highest, tau)

    def predicts(self, label: int) -> bool:
        """Whether this class is the model's first."""
        return (self.predictions or [-1])[0] == label


# What is best by its least key.
KINDS: dict[str, Callable[[BoxRow], tuple[float, str]]] = {
    "Best": lambda row: (-row.iou, row.sample),
    "Borderline": lambda row: (abs(row.iou - GOOD_IOU), row.sample),
    "Worst": lambda row: (row.iou, row.sample),
}


class DrawnRow(msgspec.Struct, frozen=True):
    """The columns of a row that are drawn."""

    path: str
    width: int
    height: int
    boxes: list[list[float]] | None
    true_boxes: list[list[float]]
    thumb: bytes


def galleries(run: TaskRun, rows: Sequence[Sequence[BoxRow]], visible: bool) -> list[tuple[str, list[Captioned]]]:
    """The best setting's best, borderline and worst pictures, and those where the IoUs of settings differ most."""
    made = [
        (f"{kind}: {rows[0][0].setting}", drawn(run, [(row, run.classes[row.label]) for row in chosen], visible))
        for kind, key in KINDS.items()
        if (chosen := sorted(rows[0], key=key)[:EACH])
    ]
    of_sample: dict[str, list[BoxRow]] = {}
    for row in (row for of_setting in rows for row in of_setting):
        of_sample.setdefault(row.sample, []).append(row)
    in_all = [each for each in of_sample.values() if len(each) == len(rows) > 1]
    for each in sorted(in_all, key=lambda each: -float(np.std([row.iou for row in each])))[:EACH]:
        title = f"The settings differ: {run.classes[each[0].label]}"
        made.append((title, drawn(run, [(row, row.setting) for row in each], visible)))
    return made


def drawn(run: TaskRun, rows: Iterable[tuple[BoxRow, str]], visible: bool) -> list[Captioned]:
    """These rows, each with the start of its caption; `visible`: with photographs."""
    chosen = list(rows)
    stored = run.rows_of_samples(DrawnRow.__struct_fields__, {row.sample for row, _ in chosen})
    pictures = []
    for row, title in chosen:
        columns = msgspec.convert(stored[row.sample, row.setting], DrawnRow)
        text = " · ".join(filter(None, [title, f"IoU {rounded_below(row.iou, GOOD_IOU)}", _prediction(run, row)]))
        alt = f"{run.classes[row.label]} in {columns.path.rsplit('/', 1)[-1]}, {row.setting}: {text}"
        pictures.append((text, embedded(_picture(run, columns, visible), alt, quality=80)))
    return pictures


def _prediction(run: TaskRun, row: BoxRow) -> str:
    """Words on the predicted class; none where nothing was predicted."""
    if not row.predictions:
        return ""
    return "class right" if row.predicts(row.label) else f"taken for {run.classes[row.predictions[0]]}"


def _picture(run: TaskRun, row: DrawnRow, visible: bool) -> Image.Image:
    size = fit_within((row.width, row.height), SIDE)
    photograph = run.photograph(row.path, size) if visible else None
    image = Image.new("RGB", size, GREY) if photograph is None else photograph.convert("RGB")
    paint_map(image, heat_of(row.thumb))
    scale, line = np.array(size * 2) / np.array([row.width, row.height] * 2), captions.line_width(size)
    for boxes, colour, dash in ((row.boxes or (), BOX_COLOUR, 0), (row.true_boxes, TRUE_COLOUR, 4 * line)):
        for box in boxes:
            captions.draw_box(image, captions.to_rectangle(box * scale, size), colour, line, dash=dash)
    return image
