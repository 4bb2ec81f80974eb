"""`cliploc annotate`: draft boxes for a folder of pictures."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cliploc._extras import refuse_without
from cliploc._terminal import Terminal, grid
from cliploc.cli.options import (
    MOST_COUNTED,
    Address,
    Debug,
    EngineName,
    Json,
    Threads,
    localizer_options,
    number_in,
    parse_engine,
    with_exemplars,
)
from cliploc.cli.output import (
    DONE,
    NOTHING_DONE,
    SOME_FAILED,
    complain,
    print_document,
    say_failures,
    title_row,
    writable,
)
from cliploc.cli.review import PORT, refuse_without_web, serve_drafts
from cliploc.config import MIN_SCORE, Options, parse_list
from cliploc.errors import UsageError
from cliploc.reporter import SILENT


@localizer_options(
    leave_out=("background", "text_cache"),  # the labels have background names; a run must not depend on a cache
    defaults={"min_score": MIN_SCORE},  # a person has to check every draft
)
def annotate(
    pictures: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="A folder with its sub-folders, a pattern in quotes, or a .txt list of files."
        ),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            "--prompts-file",
            metavar="FILE",
            help="A file with names, one per line: cat|kitten @0.3; or background: lawn.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results; a stopped run in it resumes.")],
    formats: Annotated[
        str, typer.Option("--format", metavar="NAME,NAME", help="Output formats; `cliploc exports` lists them.")
    ] = "coco",
    nms_across: Annotated[
        float | None, typer.Option(metavar="0-1", help="NMS between names: keep the better box above this IoU.")
    ] = None,
    groups: Annotated[
        str, typer.Option(metavar="keep|split|drop", help="What to do with a large box around several things.")
    ] = "keep",
    masks: Annotated[
        bool, typer.Option("--masks", help="Also write the mask of each box, in formats that support it.")
    ] = False,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="With --masks: write polygons in coco.json, except for masks with holes.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the pictures into formats that include them, instead of linking.")
    ] = False,
    review: Annotated[
        int, number_in(0, 100_000, "Number of pictures on review.html, least certain first; 0: no page.")
    ] = 100,
    apply: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Apply what review.html saved, or a corrected set: COCO, YOLO, VOC, Label Studio, CVAT.",
        ),
    ] = None,
    limit: Annotated[int | None, number_in(1, MOST_COUNTED, "Use only the first N pictures.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Retry pictures that failed before.")] = False,
    image_url: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Prefix of picture paths in Label Studio's file. [default: as before; /data/local-files/?d=FOLDER/]",
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            metavar="30|2s|scene",
            help="Also use frames of videos: each 30th, one in two seconds, or the first of each scene. [default: as "
            "before; none]",
        ),
    ] = None,
    edit: Annotated[
        bool, typer.Option("--edit", help="Correct the drafts in a browser afterwards, as `cliploc review` does.")
    ] = False,
    engine: EngineName = "local",
    address: Address = None,
    threads: Threads = None,
    *,
    options: Options,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Label a folder of pictures with draft boxes.

    Other tools read the boxes, and people correct them. If the run is stopped, the same command resumes it.

    Example: cliploc annotate photos --labels labels.txt --format coco,labelstudio --out drafts
    """
    if edit and as_json:
        raise UsageError("expected --json or --edit, got both: leave one out")
    if edit:
        refuse_without_web()
    if every is not None:
        refuse_without("video", "--every")
    from cliploc import prompts
    from cliploc.jobs.labels import read_labels
    from cliploc.jobs.picture_files import find_pictures
    from cliploc.jobs.videos import Every
    from cliploc.report.exports import chosen_exports

    chosen_exports(parse_list(formats))
    names = read_labels(labels)  # what is invalid is refused before a model is loaded
    entries, options = with_exemplars(names.entries, options)
    names = replace(names, entries=tuple(entries))
    if every is not None:
        Every.of(every)
    find_pictures(pictures, videos=True)
    prompts.resolve_templates(options.templates)
    carry_out = parse_engine(engine, address, threads)
    folder = writable(out)
    terminal = Terminal()
    start_time = time.perf_counter()
    with terminal.progress(f"loading {options.model}", rate="images/s") as reporter:
        from cliploc.jobs.annotate import annotate as run
        from cliploc.jobs.folder import DiskFullError

        try:
            result = run(
                pictures,
                names,
                folder,
                formats=parse_list(formats),
                nms_across=nms_across,
                groups=groups,  # type: ignore[arg-type]  # checked there
                masks=masks,
                polygons=polygons,
                copy=copy,
                review=review,
                decisions=apply,
                limit=limit,
                retry=retry,
                image_url=image_url,
                every=every,
                engine=carry_out,
                reporter=replace(reporter, failed=SILENT.failed),  # printed at the end, with those of earlier runs
                **options.given(),
            )
        except DiskFullError as full:
            complain(str(full))
            return SOME_FAILED if full.kept else NOTHING_DONE
    if as_json:
        print_document(result.document())
    else:
        titles, *lines = result.table()
        terminal.data(grid([title_row(*titles), *lines]))
    say_failures(terminal, result.failed)
    for name, reason in result.not_applied.items():
        terminal.say(f"not corrected: {name}: {reason}", style="red")
    for line in result.closing(time.perf_counter() - start_time):
        terminal.say(line, style="dim")
    if len(result.failed) == result.pictures:
        return NOTHING_DONE
    if edit:
        serve_drafts(folder, PORT, None, options.pretrained, options.device)
    return SOME_FAILED if result.failed or result.not_applied else DONE
