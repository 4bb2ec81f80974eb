"""`cliploc demo`: the pictures that come with cliploc, as a table and a sheet each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from cliploc.cli import options as cli
from cliploc.cli.output import DONE, box_text, printable, writable
from cliploc.cli.terminal import Terminal, title_row
from cliploc.options import Options
from cliploc.support.files import Inputs, locked, write_bytes

if TYPE_CHECKING:
    from cliploc.images.demo import DemoPhoto
    from cliploc.localization import Localization
    from cliploc.values import FloatArray

CLIP_HINT = "With OpenAI's CLIP (the weights are downloaded once): cliploc demo --model RN50 --pretrained openai"
IOU_RULE = (
    "IoU: the name's best-scored box with the true box it overlaps most; 0 where the thing is there but has no box."
)


class DemoFlags(cli.WithThreads):
    """What `demo` has besides options of `Localizer`."""

    out: Path = cli.flag("Folder for the overlays.", Path("demo-out"), metavar="DIR", group="output")


@cli.command(only=("model", "pretrained", "method", "recipe", "min_score", "device", "precision"))
def demo(flags: DemoFlags, options: Options) -> int:
    """Try cliploc on the pictures that it includes."""
    from cliploc.draw.overlay import sheet
    from cliploc.images.demo import demo_photos
    from cliploc.localizer import Localizer

    folder, photos = writable(flags.out), list(demo_photos())
    files = [folder / f"{photo.path.stem}.jpg" for photo in photos]
    Inputs(photo.path for photo in photos).check_outputs(files)
    terminal = Terminal()
    rows: list[_Row] = []
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        cli.use_threads(flags.threads)
        localizer = Localizer(**options.changed())
        results = localizer.stream([photo.path for photo in photos], [photo.ask for photo in photos])
        reporter.phase(localizer.method.name)
        reporter.start(len(photos), len(photos))
        for photo, file, result in zip(photos, files, results, strict=False):
            rows += _rows(photo, result)
            write_bytes(file, sheet(result).file("jpg"))
            reporter.images(1)
    terminal.listing(
        [title_row("picture", "name", "found", "score", "best box", "IoU"), *(row.cells() for row in rows)]
    )
    for line in (_summary(rows), IOU_RULE, f"wrote {len(photos)} overlays into {folder}", CLIP_HINT):
        terminal.data(printable(line))
    return DONE


@dataclass(frozen=True)
class _Row:
    """One line of the demo's table."""

    photo: str  # the file's name
    name: str
    verdict: str  # "found", "unsure" or "not found"
    score: float | None  # of its best box; None without one
    boxes: FloatArray  # its boxes [k, 4], best first, also where they are unsure
    iou: float | None  # of the best box, by `IOU_RULE`; None for a name that is not in the photo

    @property
    def found(self) -> bool:
        return self.verdict == "found"

    def cells(self) -> list[str | Text]:
        """A wrong result has a sign too, as not everybody sees colours."""
        from cliploc.values import GOOD_IOU, rounded_below

        def marked(text: str, right: bool) -> Text:
            return Text(text, "green") if right else Text(f"{text} ✗", "red")

        word = {"found": "yes", "not found": "no"}.get(self.verdict, self.verdict)
        more = f" (+{len(self.boxes) - 1})" if len(self.boxes) > 1 else ""
        return [
            self.photo,
            self.name,
            Text(word, "yellow") if word == "unsure" else marked(word, self.found == (self.iou is not None)),
            "–" if self.score is None else f"{self.score:.2f}",
            box_text(self.boxes[0]) + more if len(self.boxes) else "–",
            "absent" if self.iou is None else marked(rounded_below(self.iou, GOOD_IOU), self.iou >= GOOD_IOU),
        ]


def _rows(photo: DemoPhoto, result: Localization) -> list[_Row]:
    from cliploc.images.geometry import iou_matrix

    rows = []
    for index, name in enumerate(result.names):
        boxes = result.visible_boxes.where(result.visible_boxes.label == index)
        best = float(boxes.score[0]) if len(boxes) else None
        iou = None if name not in photo.truth else 0.0
        if iou is not None and len(boxes):
            iou = float(iou_matrix(boxes.xyxy[:1], photo.truth[name]).max())
        rows.append(_Row(photo.path.name, name, result.verdict(index), best, boxes.xyxy, iou))
    return rows


def _summary(rows: list[_Row]) -> str:
    from cliploc.values import GOOD_IOU

    ious, absent = [row.iou for row in rows if row.iou is not None], [row for row in rows if row.iou is None]
    right, alarms = sum(iou >= GOOD_IOU for iou in ious), sum(row.found for row in absent)
    return (
        f"found {right} of {len(ious)} (IoU ≥ {GOOD_IOU:g}), missed {len(ious) - right}, invented {alarms} of "
        f"{len(absent)}; mean IoU {sum(ious) / len(ious):.2f}; {sum(row.verdict == 'unsure' for row in rows)} unsure"
    )
