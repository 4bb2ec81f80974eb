"""`cliploc demo`: the pictures that come with cliploc, as a table and a page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from rich.text import Text

from cliploc import __version__
from cliploc.cli import options as cli
from cliploc.cli.output import DONE, box_text, printable, writable
from cliploc.cli.terminal import Terminal, title_row
from cliploc.options import DEFAULTS, Options, text_of
from cliploc.support.files import Inputs, locked, write_atomic

BESIDE = "mini-vit"  # a ViT, whose results on the same photos are shown for comparison
PAGE = "demo.html"
CLIP_HINT = "With OpenAI's CLIP (the weights are downloaded once): cliploc demo --model RN50 --pretrained openai"
IOU_RULE = (
    "IoU: the name's best-scored box with the true box it overlaps most; 0 where the thing is there but has no box."
)


class DemoFlags(cli.WithThreads):
    """What `demo` has besides options of `Localizer`."""

    out: Path = cli.flag("Folder for overlays and demo.html.", Path("demo-out"), metavar="DIR", group="output")


@cli.command(only=("model", "pretrained", "method", "recipe", "min_score", "device", "precision"))
def demo(flags: DemoFlags, options: Options) -> int:
    """Try cliploc on the pictures that it includes."""
    from cliploc.draw.overlay import panels
    from cliploc.draw.page import PageItem, write_page
    from cliploc.images.demo import demo_photos
    from cliploc.localizer import Localizer

    folder, photos = writable(flags.out), list(demo_photos())
    sheets = [folder / f"{photo.path.stem}.jpg" for photo in photos]
    Inputs(photo.path for photo in photos).check_outputs([folder / PAGE, *sheets])
    terminal = Terminal()
    rows: list[_Row] = []
    items, ious_beside = [], []
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        cli.use_threads(flags.threads)
        localizer = Localizer(**options.changed())
        alone = options.model != DEFAULTS.model or options.method is not None
        beside = None if alone else Localizer(**options.but(model=BESIDE).changed())
        paths, names = [photo.path for photo in photos], [photo.ask for photo in photos]
        others = beside.stream(paths, names) if beside else repeat(None)
        reporter.phase(localizer.method.name)
        reporter.start(len(photos), len(photos))
        for photo, sheet, result, other in zip(photos, sheets, localizer.stream(paths, names), others, strict=False):
            ious, ious_of_other = _ious(photo, result), _ious(photo, other) if other else {}
            rows += _rows(photo, result, ious)
            ious_beside += [iou for iou in ious_of_other.values() if iou is not None]
            write_atomic(sheet, partial(panels(result).save, format="JPEG", quality=90))
            items.append(PageItem(result, photo.credit, photo.truth, ious, (other, ious_of_other) if other else None))
            reporter.images(1)
        write_page(folder / PAGE, "cliploc demo", items, _settings(localizer), hint=f"{IOU_RULE} {CLIP_HINT}")
    terminal.listing(
        [title_row("picture", "name", "found", "score", "best box", "IoU"), *(row.cells() for row in rows)]
    )
    ious_found, absent = [row.iou for row in rows if row.iou is not None], [row for row in rows if row.iou is None]
    alarms, unsure = sum(row.found for row in absent), sum(row.verdict == "unsure" for row in rows)
    mean = sum(ious_found) / len(ious_found)
    lines = [f"{_found(ious_found)}, invented {alarms} of {len(absent)}; mean IoU {mean:.2f}; {unsure} unsure"]
    if beside:
        lines.append(f"beside it on the page: {beside.backbone.name}, {beside.method.title}: {_found(ious_beside)}")
    for line in (*lines, IOU_RULE, f"wrote {folder / PAGE} and {len(photos)} overlays", CLIP_HINT):
        terminal.data(printable(line))
    terminal.say_next(("open", folder / PAGE))
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


def _rows(photo: DemoPhoto, result: Localization, ious: dict[str, float | None]) -> list[_Row]:
    rows = []
    for index, name in enumerate(result.names):
        boxes = result.visible_boxes.where(result.visible_boxes.label == index)
        best = float(boxes.score[0]) if len(boxes) else None
        rows.append(_Row(photo.path.name, name, result.verdict(index), best, boxes.xyxy, ious[name]))
    return rows


def _ious(photo: DemoPhoto, result: Localization) -> dict[str, float | None]:
    """By `IOU_RULE`, of each name; None for one that is not there."""
    from cliploc.images.geometry import iou_matrix

    ious: dict[str, float | None] = dict.fromkeys(result.names)
    for name in photo.truth.keys() & ious.keys():
        boxes = result.visible_boxes.of(name)
        ious[name] = float(iou_matrix(boxes[:1], photo.truth[name]).max()) if len(boxes) else 0.0
    return ious


def _settings(localizer: Localizer) -> dict[str, str | float]:
    """What the page says of the run."""
    options = localizer.options
    return {
        "model": localizer.backbone.name,
        "method": localizer.method.title,
        "threshold": localizer.box_rule.threshold,
        "input": f"{localizer.input_hw[0]}×{localizer.input_hw[1]}",
        **({} if localizer.recipe is None else {"recipe": localizer.recipe.name}),
        "scales": text_of(options.scales),
        "windows": text_of(options.windows) or "none",
        "flip": "yes" if options.flip else "no",
        "refinement": ", ".join(localizer.refine) or "none",
        "cliploc": __version__,
    }


def _found(ious: list[float]) -> str:
    from cliploc.values import GOOD_IOU

    right = sum(iou >= GOOD_IOU for iou in ious)
    return f"found {right} of {len(ious)} (IoU ≥ {GOOD_IOU:g}), missed {len(ious) - right}"
