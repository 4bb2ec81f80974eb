"""`cliploc annotate`: draft boxes for a folder of pictures."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from cliploc._imports import refuse_without
from cliploc._terminal import Terminal
from cliploc.cli.options import MOST_COUNTED, EngineFlags, WithJson, command, flag, rare, with_exemplars
from cliploc.cli.output import (
    DONE,
    NOTHING_DONE,
    SOME_FAILED,
    complain,
    print_document,
    say_failures,
    say_next,
    titled,
    writable,
)
from cliploc.cli.servers import PORT, refuse_without_web, serve_drafts
from cliploc.config import MIN_SCORE, Options, choice, parse_list
from cliploc.errors import UsageError
from cliploc.reporter import SILENT


@dataclass(kw_only=True, eq=False, repr=False)
class AnnotateFlags(EngineFlags, WithJson):
    """What `annotate` has besides the options of `Localizer`."""

    pictures: str = flag(
        "A folder with its sub-folders, a pattern in quotes, or a .txt list of files.",
        metavar="FOLDER",
        positional=True,
    )
    prompt: list[str] | None = flag(
        'Name; repeatable. "cat|kitten": synonyms.', None, metavar="NAME", flags=("--prompt", "-p")
    )
    labels: Path | None = flag(
        "Read the names from a file, one per line, instead: cat|kitten @0.3; or background: lawn.",
        None,
        metavar="FILE",
        flags=("--labels", "--prompts-file"),
    )
    out: Path = flag("Folder for the results; a stopped run in it resumes.", metavar="DIR", group="output")
    formats: str = flag(
        "Output formats; `cliploc exports` lists them.",
        "coco",
        metavar="NAME,NAME",
        flags=("--format",),
        group="output",
    )
    nms_across: float | None = rare(
        "NMS between names: keep the better box above this IoU.", None, metavar="0-1", group="boxes"
    )
    groups: str = rare(
        "What to do with a large box around several things.", "keep", metavar="keep|split|drop", group="boxes"
    )
    max_false: str | None = rare(
        "Raise --min-score so that no larger share of drafts is wrong, by the pictures that are corrected.",
        None,
        metavar="5%",
        group="boxes",
    )
    masks: bool = flag("Also write the mask of each box, in formats that support it.", False, group="output")
    polygons: bool = rare(
        "With --masks: write polygons in coco.json, except for masks with holes.", False, group="output"
    )
    unsure: bool = flag("Also export the boxes that are unsure.", False, group="output")
    copy: bool = rare("Copy the pictures into formats that include them, instead of linking.", False, group="output")
    review: int = rare(
        "Number of pictures on review.html, least certain first; 0: no page.", 100, within=(0, 100_000), group="output"
    )
    apply: Path | None = flag(
        "Apply what review.html saved, or a corrected set: COCO, YOLO, VOC, Label Studio, CVAT.",
        None,
        metavar="FILE|DIR",
    )
    limit: int | None = flag("Use only the first N pictures.", None, within=(1, MOST_COUNTED))
    retry: bool = rare("Retry pictures that failed before.", False, group="run")
    image_url: str | None = rare(
        "Prefix of picture paths in Label Studio's file.",
        None,
        metavar="TEXT",
        none="/data/local-files/?d=FOLDER/, or that of the run",
        group="output",
    )
    every: str | None = rare(
        "Also use frames of videos: each 30th, one in two seconds, or the first of each scene.",
        None,
        metavar="30|2s|scene",
        none="none, or those of the run",
    )
    teach: str | None = flag(
        "Learn from the folder itself, and from corrections: `cliploc help teaching`.",
        None,
        metavar="on|off",
        none="on, where the method allows it",
        group="boxes",
    )
    edit: bool = rare("Correct the drafts in a browser afterwards, as `cliploc review` does.", False, group="output")


def _share(text: str) -> float:
    """A share as people write it: 5% or 0.05."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"expected --max-false above 0% and at most 100%, got {text!r}: such as 5%")
    return share


@command(
    leave_out=("background", "text_cache"),  # the labels have background names; a run must not depend on a cache
    defaults={"min_score": MIN_SCORE},  # a person has to check every draft
)
def annotate(asked: AnnotateFlags, options: Options) -> int:
    """Label a folder of pictures with draft boxes.

    Other tools read the boxes, and people correct them. If the run is stopped, the same command resumes it.

    Example: cliploc annotate photos -p dog -p "beach umbrella" --out drafts
    """
    if (asked.labels is None) == (not asked.prompt):
        given = "neither" if asked.labels is None else "both"
        raise UsageError(f"expected names with -p NAME, or a file of them with --labels, got {given}")
    if asked.edit and asked.as_json:
        raise UsageError("expected --json or --edit, got both: leave one out")
    if asked.edit:
        refuse_without_web()
    if asked.every is not None:
        refuse_without("video", "--every")
    from cliploc import prompts
    from cliploc.jobs.labels import labels_of, read_labels
    from cliploc.jobs.picture_files import find_pictures
    from cliploc.jobs.videos import Every
    from cliploc.report.exports import chosen_exports

    formats = parse_list(asked.formats)
    chosen_exports(formats)
    # What is invalid is refused before a model is loaded.
    names = labels_of(asked.prompt or ()) if asked.labels is None else read_labels(asked.labels)
    entries, options = with_exemplars(names.entries, options)
    names = replace(names, entries=tuple(entries))
    if asked.every is not None:
        Every.of(asked.every)
    find_pictures(asked.pictures, videos=True)
    prompts.resolve_templates(options.templates)
    choice("--teach", ("on", "off"), none=True)(asked.teach)
    most_false = None if asked.max_false is None else _share(asked.max_false)
    engine = asked.parsed()
    folder = writable(asked.out)
    terminal = Terminal()
    start_time = time.perf_counter()
    with terminal.progress(f"loading {options.model}", rate="pictures/s") as reporter:
        from cliploc.jobs.annotate import annotate as run
        from cliploc.jobs.folder import DiskFullError

        try:
            result = run(
                asked.pictures,
                names,
                folder,
                formats=formats,
                nms_across=asked.nms_across,
                max_false=most_false,
                groups=asked.groups,  # type: ignore[arg-type]  # checked there
                masks=asked.masks,
                polygons=asked.polygons,
                copy=asked.copy,
                unsure=asked.unsure,
                review=asked.review,
                decisions=asked.apply,
                limit=asked.limit,
                retry=asked.retry,
                image_url=asked.image_url,
                every=asked.every,
                teach=None if asked.teach is None else asked.teach == "on",
                engine=engine,
                reporter=replace(reporter, failed=SILENT.failed),  # printed at the end, with those of earlier runs
                **options.given(),
            )
        except DiskFullError as full:
            complain(str(full))
            return SOME_FAILED if full.kept else NOTHING_DONE
    if asked.as_json:
        print_document(result.document())
    else:
        terminal.data(titled(result.table()))
    say_failures(terminal, result.failed)
    for name, reason in result.not_applied.items():
        terminal.say(f"not corrected: {name}: {reason}", style="red")
    for line in result.closing(time.perf_counter() - start_time):
        terminal.say(line, style="dim")
    if len(result.failed) == result.pictures:
        return NOTHING_DONE
    say_next(terminal, ("cliploc", "review", asked.out), quiet=asked.as_json or asked.edit)
    if asked.edit:
        serve_drafts(folder, PORT, None, options.pretrained, options.device)
    return SOME_FAILED if result.failed or result.not_applied else DONE
