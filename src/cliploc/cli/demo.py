"""`cliploc demo`: the pictures that come with cliploc, as a table and a sheet each."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

import cliploc
from cliploc.cli import options as cli
from cliploc.cli.output import DONE, box_text, printable, writable
from cliploc.cli.terminal import Terminal, title_row
from cliploc.support.files import Inputs, locked, write_bytes

CLIP_HINT = "With OpenAI's CLIP (the weights are downloaded once): cliploc demo --model RN50 --pretrained openai"
IOU_RULE = "IoU: the name's best-scored box with the true box it overlaps most; 0: it is there but has no box."


class DemoFlags(cli.WithThreads):
    """What `demo` has besides options of `Localizer`."""

    out: Path = cli.flag("Folder for the overlays.", Path("demo-out"), metavar="DIR", group="output")


@cli.command(only=("model", "pretrained", "method", "recipe", "min_score", "device", "precision"))
def demo(flags: DemoFlags, options: cliploc.Options) -> int:
    """Try cliploc on the pictures that it includes."""
    from cliploc.draw.overlay import sheet
    from cliploc.images.demo import demo_photos
    from cliploc.images.geometry import iou_matrix
    from cliploc.values import GOOD_IOU

    folder, photos = writable(flags.out), list(demo_photos())
    files = [folder / f"{photo.path.stem}.jpg" for photo in photos]
    Inputs(photo.path for photo in photos).check_outputs(files)
    terminal = Terminal()
    rows = [title_row("picture", "name", "found", "score", "best box", "IoU")]
    verdicts: list[tuple[str, float | None]] = []  # and the IoU of the best box; None for a name that is not there
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        cli.use_threads(flags.threads)
        localizer = cliploc.Localizer(**options.changed())
        reporter.phase(localizer.method.name)
        reporter.start(len(photos), len(photos))
        results = localizer.stream([photo.path for photo in photos], [photo.ask for photo in photos])
        for photo, file, result in zip(photos, files, results, strict=False):
            for index, name in enumerate(result.names):
                boxes = result.visible_boxes.where(result.visible_boxes.label == index)
                iou = None if name not in photo.truth else 0.0
                if iou is not None and len(boxes):
                    iou = float(iou_matrix(boxes.xyxy[:1], photo.truth[name]).max())
                verdicts.append((result.verdict(index), iou))
                cells = _cells(result.verdict(index), iou, boxes, result.is_calibrated(index))
                rows.append([Text(photo.path.name), Text(name), *cells])
            write_bytes(file, sheet(result).file("jpg"))
            reporter.images(1)
    terminal.listing(rows)
    ious = [iou for _, iou in verdicts if iou is not None]
    absent = [verdict for verdict, iou in verdicts if iou is None]
    right, unsure = sum(iou >= GOOD_IOU for iou in ious), sum(verdict == "unsure" for verdict, _ in verdicts)
    line = f"found {right} of {len(ious)} (IoU ≥ {GOOD_IOU:g}), missed {len(ious) - right}, invented "
    line += f"{absent.count('found')} of {len(absent)}; mean IoU {sum(ious) / len(ious):.2f}; {unsure} unsure"
    for text in (line, IOU_RULE, f"wrote {len(photos)} overlays into {folder}", CLIP_HINT):
        terminal.data(printable(text))
    return DONE


def _cells(verdict: str, iou: float | None, boxes: cliploc.Boxes, calibrated: bool) -> list[Text]:
    """Whether a name was found, with what score and box, and the IoU; a wrong result has a sign too, not just red."""
    from cliploc.values import GOOD_IOU, rounded_below

    def marked(text: str, right: bool) -> Text:
        return Text(text, "green") if right else Text(f"{text} ✗", "red")

    word = {"found": "yes", "not found": "no"}.get(verdict, verdict)
    more = f" (+{len(boxes) - 1})" if len(boxes) > 1 else ""
    return [
        Text(word, "yellow") if word == "unsure" else marked(word, (verdict == "found") == (iou is not None)),
        Text(f"{boxes.score[0]:.2f}" if len(boxes) and calibrated else "–"),
        Text(box_text(boxes.xyxy[0]) + more if len(boxes) else "–"),
        Text("absent") if iou is None else marked(rounded_below(iou, GOOD_IOU), iou >= GOOD_IOU),
    ]
