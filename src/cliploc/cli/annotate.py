"""`cliploc annotate`: draft boxes for a folder of pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cliploc._terminal import Terminal, grid
from cliploc.cli.options import (
    Address,
    BatchSize,
    Debug,
    Device,
    EngineName,
    Flip,
    ImageSize,
    Json,
    MethodName,
    MethodOptions,
    Model,
    Precision,
    Pretrained,
    Refine,
    Resize,
    Scales,
    Templates,
    Threads,
    Threshold,
    one_method,
    parse_engine,
    parse_image_size,
    parse_list,
    parse_method_options,
    parse_scales,
    parse_templates,
    parse_threshold,
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


def annotate(
    pictures: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="With its sub-folders; or a pattern in quotes, or a .txt list."),
    ],
    labels: Annotated[
        Path, typer.Option(metavar="FILE", help="Names, one a line: cat|kitten @0.3; and background: lawn.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results go; a stopped run there is gone on with.")],
    formats: Annotated[str, typer.Option("--format", metavar="NAME,NAME", help="Names of `cliploc exports`.")] = "coco",
    min_presence: Annotated[
        float, typer.Option(metavar="0-1", help="Least presence score of a name; its own @0.3 goes before it.")
    ] = 0.5,
    min_score: Annotated[float, typer.Option(metavar="0-1", help="Of a box.")] = 0.0,
    max_boxes: Annotated[int | None, typer.Option(help="At most so many boxes a name in a picture.")] = None,
    min_area: Annotated[float, typer.Option(metavar="0-1", help="Of a box's region: a share of the picture.")] = 0.001,
    nms_across: Annotated[
        float | None, typer.Option(metavar="0-1", help="Of boxes of different names with more IoU the better stays.")
    ] = None,
    groups: Annotated[
        str, typer.Option(metavar="keep|split|drop", help="What becomes of one large box round several things.")
    ] = "keep",
    review: Annotated[
        int, typer.Option(metavar="N", help="So many pictures, the least certain first, on review.html; 0: no page.")
    ] = 100,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The decisions that review.html saved: drop those boxes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try pictures again that failed before.")] = False,
    image_url: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What stands before a picture's path in Label Studio's file. [default: as before; "
            "/data/local-files/?d=]",
        ),
    ] = None,
    model: Model = "mini",
    pretrained: Pretrained = None,
    method: MethodName = None,
    option: MethodOptions = None,
    threshold: Threshold = None,
    resize: Resize = None,
    image_size: ImageSize = None,
    scales: Scales = "1",
    flip: Flip = False,
    refine: Refine = "",
    template: Templates = None,
    device: Device = None,
    precision: Precision = "fp32",
    batch_size: BatchSize = 16,
    engine: EngineName = "local",
    address: Address = None,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Draw draft boxes of named things in a folder of pictures, for other tools to read and people to correct.

    Killed at any moment, the same command goes on where it was.

    Example: cliploc annotate photos --labels labels.txt --format coco,labelstudio --out drafts
    """
    from cliploc.jobs.labels import read_labels
    from cliploc.jobs.pictures import find_pictures

    chosen = one_method(method)
    names = read_labels(labels)  # what can be refused is, before a model is loaded
    find_pictures(pictures)
    arguments: dict[str, Any] = {
        "model": model,
        "pretrained": pretrained,
        "method": chosen,
        "templates": parse_templates(template),
        "resize": resize,
        "image_size": parse_image_size(image_size),
        "scales": parse_scales(scales),
        "flip": flip,
        "refine": parse_list(refine) if refine else [],
        "threshold": parse_threshold(threshold),
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
    }
    carry_out = parse_engine(engine, address, threads)
    folder = writable(out)
    terminal = Terminal()
    start_time = time.perf_counter()
    with terminal.progress(f"loading {model}", rate="images/s") as bar:
        from cliploc.jobs.annotate import annotate as run
        from cliploc.jobs.folder import StoppedError
        from cliploc.localizer import default_method

        if option:
            arguments["method_options"] = parse_method_options(chosen or default_method(model), option)
        try:
            result = run(
                pictures,
                names,
                folder,
                formats=parse_list(formats),
                min_presence=min_presence,
                min_score=min_score,
                max_boxes=max_boxes,
                min_area=min_area,
                nms_across=nms_across,
                groups=groups,  # type: ignore[arg-type]  # checked there
                review=review,
                decisions=apply,
                limit=limit,
                retry=retry,
                image_url=image_url,
                engine=carry_out,
                on_start=lambda todo, of: bar.start("annotate", of, of - todo),
                on_images=bar.advance,
                on_note=lambda line: terminal.say(line, style="yellow"),
                on_write=lambda name: bar.start(f"writing {name}", None),
                **arguments,
            )
        except StoppedError as stop:
            complain(str(stop))
            return SOME_FAILED if stop.kept else NOTHING_DONE
    if as_json:
        print_document(result.document())
    else:
        titles, *lines = result.table()
        terminal.data(grid([title_row(*titles), *lines]))
    say_failures(terminal, result.failed)
    for line in result.closing(time.perf_counter() - start_time):
        terminal.say(line, style="dim")
    if len(result.failed) == result.pictures:
        return NOTHING_DONE
    return SOME_FAILED if result.failed else DONE
