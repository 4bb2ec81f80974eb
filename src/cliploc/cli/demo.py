"""`cliploc demo`: the pictures that come with cliploc, as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc import __version__
from cliploc.cli.options import WithThreads, command, flag, use_threads
from cliploc.cli.output import DONE, box_text, say_next, title_row, writable
from cliploc.cli.terminal import Terminal, printable, styled
from cliploc.images.demo import demo_photos
from cliploc.options import DEFAULTS, Options, text_of
from cliploc.support.files import Inputs, locked

if TYPE_CHECKING:
    from rich.text import Text


BESIDE = "mini-vit"  # a ViT, whose results on the same photos are shown for comparison


class DemoFlags(WithThreads):
    """What `demo` has besides options of `Localizer`."""

    out: Path = flag("Folder for overlays and demo.html.", Path("demo-out"), metavar="DIR", group="output")


@command(only=("model", "pretrained", "method", "recipe", "min_score", "device", "precision"))
def demo(asked: DemoFlags, options: Options) -> int:
    """Try cliploc on the pictures that it includes."""
    from cliploc.cli.demo_run import (
        CLIP_HINT,
        IOU_RULE,
        PAGE,
        overlay_of,
        run_demo,
    )

    folder, photos = writable(asked.out), list(demo_photos())
    Inputs(photo.path for photo in photos).check_outputs(
        [folder / PAGE, *(overlay_of(photo, folder) for photo in photos)]
    )
    terminal = Terminal()
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.localizer import Localizer

        use_threads(asked.threads)
        localizer = Localizer(**options.given())
        alone = options.model != DEFAULTS.model or options.method is not None
        beside = None if alone else Localizer(**options.but(model=BESIDE).given())
        chosen = localizer.options
        settings = {
            "model": localizer.backbone.name,
            "method": localizer.method.title,
            "threshold": localizer.box_rule.threshold,
            "input": f"{localizer.input_hw[0]}×{localizer.input_hw[1]}",
            **({} if localizer.recipe is None else {"recipe": localizer.recipe.name}),
            "scales": text_of(chosen.scales),
            "windows": text_of(chosen.windows) or "none",
            "flip": "yes" if chosen.flip else "no",
            "refinement": ", ".join(localizer.refine) or "none",
            "cliploc": __version__,
        }
        rows, ious_beside = run_demo(localizer, folder, settings, reporter, beside)
    terminal.listing(_demo_table(rows))
    ious, absent = [row.iou for row in rows if row.iou is not None], [row for row in rows if not row.there]
    alarms, unsure = sum(row.found for row in absent), sum(row.verdict == "unsure" for row in rows)
    mean = sum(ious) / len(ious)
    lines = [f"{_found(ious)}, invented {alarms} of {len(absent)}; mean IoU {mean:.2f}; {unsure} unsure"]
    if beside:
        lines.append(f"beside it on the page: {beside.backbone.name}, {beside.method.title}: {_found(ious_beside)}")
    for line in (*lines, IOU_RULE, f"wrote {folder / PAGE} and {len(photos)} overlays", CLIP_HINT):
        terminal.data(printable(line))
    say_next(terminal, ("open", folder / PAGE))
    return DONE


def _demo_table(rows: Sequence[Any]) -> Sequence[Sequence[str | Text]]:
    from cliploc.values import GOOD_IOU, told_apart

    lines: list[Sequence[str | Text]] = [title_row("picture", "name", "found", "score", "best box", "IoU")]
    for row in rows:
        word = {"found": "yes", "not found": "no"}.get(row.verdict, row.verdict)
        verdict = styled(word, "yellow") if word == "unsure" else _marked(word, row.found == row.there)
        more = f" (+{len(row.boxes) - 1})" if len(row.boxes) > 1 else ""
        lines.append(
            (
                row.photo,
                row.name,
                verdict,
                "–" if row.score is None else f"{row.score:.2f}",
                box_text(row.boxes[0]) + more if len(row.boxes) else "–",
                "absent" if row.iou is None else _marked(told_apart(row.iou, GOOD_IOU), not row.misplaced),
            )
        )
    return lines


def _marked(text: str, right: bool) -> Text:
    """A wrong result has a sign too, as not everybody sees colours."""
    return styled(text, "green") if right else styled(f"{text} ✗", "red")


def _found(ious: Sequence[float]) -> str:
    from cliploc.values import GOOD_IOU

    right = sum(iou >= GOOD_IOU for iou in ious)
    return f"found {right} of {len(ious)} (IoU ≥ {GOOD_IOU:g}), missed {len(ious) - right}"
