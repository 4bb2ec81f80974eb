"""`cliploc localize`: where named things are in photos."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cliploc._terminal import Terminal
from cliploc.cli.options import (
    BatchSize,
    Classes,
    Debug,
    Device,
    Flip,
    ImageSize,
    Json,
    MethodName,
    MethodOptions,
    Model,
    Names,
    NoTextCache,
    Precision,
    Pretrained,
    Refine,
    Resize,
    Scales,
    Templates,
    Threads,
    Threshold,
    asked_names,
    one_method,
    parse_image_size,
    parse_list,
    parse_method_options,
    parse_scales,
    parse_templates,
    parse_threshold,
    use_threads,
)
from cliploc.cli.output import json_text, print_document, writable, write
from cliploc.cli.photos import RESULTS, LocalizeRun, model_settings
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.localizer import Localizer


MAPS_AT_ONCE = 4096  # photos × names; of 224×224 pixels they take 0.8 GB


def localize(
    photos: Annotated[
        list[str] | None, typer.Argument(metavar="PHOTO", help="Picture files: JPEG, PNG, WebP, GIF, TIFF …")
    ] = None,
    prompt: Names = None,
    classes: Classes = None,
    model: Model = "mini",
    pretrained: Pretrained = None,
    method: MethodName = None,
    option: MethodOptions = None,
    head: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trained layers for the method, made by `cliploc train`.")
    ] = None,
    ensemble: Annotated[
        str, typer.Option(metavar="minmax|rank", help="How the maps of several methods are averaged.")
    ] = "minmax",
    threshold: Threshold = None,
    components: Annotated[str, typer.Option(metavar="all|largest", help="Which hot regions get a box.")] = "all",
    max_boxes: Annotated[int | None, typer.Option(help="At most so many boxes a name.")] = None,
    min_presence: Annotated[
        float, typer.Option(metavar="0-1", help="Least presence score of a name that is found; 0 boxes every name.")
    ] = 0.5,
    resize: Resize = None,
    image_size: ImageSize = None,
    scales: Scales = "1",
    flip: Flip = False,
    refine: Refine = "",
    template: Templates = None,
    background: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What is around, as a contrast; repeatable.")
    ] = None,
    device: Device = None,
    precision: Precision = "fp32",
    batch_size: BatchSize = 16,
    threads: Threads = None,
    no_text_cache: NoTextCache = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write an overlay for each photo and results.json here.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Find named things in photos.

    Example: cliploc localize street.jpg -p bicycle -p "traffic light" --out found
    """
    from cliploc import prompts

    if not photos:
        raise UsageError('expected at least one photo, got none: cliploc localize cat.jpg -p "cat"')
    names = asked_names(prompt, classes)
    if not names:
        raise UsageError(f'expected at least one name to look for, got none: cliploc localize {photos[0]} -p "cat"')
    chosen = one_method(method)
    prompts.parse(names)  # and whatever else can be refused is, before a model is loaded
    arguments: dict[str, Any] = {
        "model": model,
        "pretrained": pretrained,
        "method": chosen,
        "head": None if head is None else str(head),
        "ensemble": ensemble,
        "templates": parse_templates(template),
        "background": background or [],
        "resize": resize,
        "image_size": parse_image_size(image_size),
        "scales": parse_scales(scales),
        "flip": flip,
        "refine": parse_list(refine) if refine else [],
        "threshold": parse_threshold(threshold),
        "components": components,
        "max_boxes": max_boxes,
        "min_presence": min_presence,
        "device": device,
        "precision": precision,
        "batch_size": min(batch_size, max(1, MAPS_AT_ONCE // len(names))),
        "text_cache": not no_text_cache,
    }
    folder = None if out is None else writable(out)
    terminal = Terminal()
    others = [str(one) for one in (classes, pretrained, head) if one is not None]
    run = LocalizeRun(terminal, folder, photos, as_json, others)
    start = time.perf_counter()
    with terminal.progress(f"loading {model}") as bar:
        from cliploc.heads import read_config
        from cliploc.localizer import Localizer, default_method
        from cliploc.pipeline.requests import Reporter
        from cliploc.report.overlay import MOST_PANELS

        use_threads(threads)
        trained_for = None if head is None else read_config(head).method
        arguments["method_options"] = parse_method_options(chosen or trained_for or default_method(model), option or [])
        localizer = Localizer(**arguments)
        bar.start(localizer.method.name, len(photos))
        reporter = Reporter(failed=run.fail, masked=bar.masked)
        try:
            drawn = len(names) <= MOST_PANELS  # maps of names that are not found are on no larger sheet
            for result in localizer.stream(photos, names, on_error="skip", reporter=reporter, absent_maps=drawn):
                run.take(result)
                bar.advance()
        finally:  # also when interrupted: what is done is not lost
            document = run.document({"names": names, **_settings(localizer, arguments)})
            if folder is not None:
                write(folder / RESULTS, json_text(document).encode())
    if as_json:
        print_document(document)
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code


def _settings(localizer: Localizer, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the run was asked for, with the defaults that it found filled in."""
    return {
        **model_settings(localizer, arguments),
        "method": localizer.method.name,
        "resize": localizer.resize,
        "interpolation": localizer.backbone.interpolation,
        "refine": localizer.refine,
        "image_size": localizer.input_hw,
        "threshold": localizer.box_rule.threshold,
        "method_options": localizer.options_of(localizer.method.name, localizer.options.method_options),
    }
