"""The demo's rows and page: the photographs of the package through one localizer, compared with boxes by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.images.demo import DemoPhoto, demo_photos
from cliploc.images.geometry import iou_matrix
from cliploc.localization import Localization, Verdict
from cliploc.support.files import write_atomic
from cliploc.support.reporter import Reporter
from cliploc.values import GOOD_IOU, FloatArray

if TYPE_CHECKING:
    from cliploc.localizer import Localizer

PAGE = "demo.html"
CLIP_HINT = "With OpenAI's CLIP (the weights are downloaded once): cliploc demo --model RN50 --pretrained openai"
IOU_RULE = (
    "IoU: the name's best-scored box with the true box it overlaps most; 0 where the thing is there but has no box."
)


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table."""

    photo: str  # the file's name
    name: str  # what was asked for
    there: bool  # whether it is in the photo
    verdict: Verdict  # "found", "unsure" or "not found"
    score: float | None  # of its best box; None without one
    boxes: FloatArray  # its boxes [k, 4], best first, also where they are unsure
    iou: float | None  # of the best box, by `IOU_RULE`; None for a name that is not there

    @property
    def found(self) -> bool:
        """Whether it was found."""
        return self.verdict == "found"

    @property
    def misplaced(self) -> bool:
        """Whether the best box misses all true boxes (IoU < `GOOD_IOU`); False for a name that is not there."""
        return self.iou is not None and self.iou < GOOD_IOU


def overlay_of(photo: DemoPhoto, out: Path) -> Path:
    """Where the demo writes a photograph's overlay."""
    return out / f"{photo.path.stem}.jpg"


def run_demo(
    localizer: Localizer,
    out: Path,
    settings: dict[str, Any],
    reporter: Reporter,
    beside: Localizer | None,
) -> tuple[list[DemoRow], list[float]]:
    """Writes a sheet for each photograph and one page of all, with the results of another model `beside` below.

    Returns:
        A row for each photo and name, and the IoUs of the other model's boxes, by `IOU_RULE`.
    """
    from cliploc.draw.overlay import panels
    from cliploc.draw.page import PageItem, write_page

    photos = list(demo_photos())
    paths, asked = [photo.path for photo in photos], [photo.ask for photo in photos]
    others = beside.stream(paths, asked) if beside else repeat(None)
    rows, items, other_ious = [], [], []
    reporter.phase(localizer.method.name)
    reporter.start(len(photos), len(photos))
    for photo, result, other in zip(photos, localizer.stream(paths, asked), others, strict=False):
        ious = _ious(photo, result)
        for index, name in enumerate(result.names):
            shown = result.shown.where(result.shown.label == index)
            best = float(shown.score[0]) if len(shown) else None
            there, verdict = name in photo.truth, result.verdict(index)
            rows.append(DemoRow(photo.path.name, name, there, verdict, best, shown.xyxy, ious[name]))
        theirs = _ious(photo, other) if other else {}
        other_ious += [iou for iou in theirs.values() if iou is not None]
        write_atomic(overlay_of(photo, out), partial(panels(result).save, format="JPEG", quality=90))
        items.append(PageItem(result, photo.credit, photo.truth, ious, (other, theirs) if other else None))
        reporter.images(1)
    write_page(out / PAGE, "cliploc demo", items, settings, hint=f"{IOU_RULE} {CLIP_HINT}")
    return rows, other_ious


def _ious(photo: DemoPhoto, result: Localization) -> dict[str, float | None]:
    """By `IOU_RULE`, of each name; None for one that is not there."""
    ious: dict[str, float | None] = dict.fromkeys(result.names)
    for name in photo.truth.keys() & ious.keys():
        boxes = result.shown.of(name)
        ious[name] = float(iou_matrix(boxes[:1], photo.truth[name]).max()) if len(boxes) else 0.0
    return ious
