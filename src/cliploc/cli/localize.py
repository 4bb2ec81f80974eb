"""`cliploc localize`: where named things are in photos."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cliploc._terminal import Terminal
from cliploc.cli.options import Classes, Debug, Json, Names, Threads, asked_names, localizer_options, use_threads
from cliploc.cli.output import json_text, print_document, writable, write
from cliploc.cli.photos import RESULTS, LocalizeRun, model_settings
from cliploc.config import OPTIONS, Options
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.localizer import Localizer


MAPS_AT_ONCE = 4096  # photos × names; of 224×224 pixels they take 0.8 GB


@localizer_options()
def localize(
    photos: Annotated[
        list[str] | None, typer.Argument(metavar="PHOTO", help="Picture files: JPEG, PNG, WebP, GIF, TIFF …")
    ] = None,
    prompt: Names = None,
    classes: Classes = None,
    *,
    threads: Threads = None,
    options: Options,
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
    prompts.parse(names, prompts.resolve_templates(options.templates))  # refused before a model is loaded
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // len(names))))
    folder = None if out is None else writable(out)
    terminal = Terminal()
    others = [str(one) for one in (classes, options.pretrained, options.head) if one is not None]
    run = LocalizeRun(terminal, folder, photos, as_json, others)
    start = time.perf_counter()
    with terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.localizer import Localizer
        from cliploc.report.overlay import MOST_PANELS

        use_threads(threads)
        localizer = Localizer(**options.given())
        reporter.phase(localizer.method.name)
        reporter.start(len(photos), len(photos))
        told = replace(reporter, failed=run.fail)
        try:
            drawn = len(names) <= MOST_PANELS  # maps of names that are not found are on no larger sheet
            for result in localizer.stream(photos, names, on_error="skip", reporter=told, absent_maps=drawn):
                run.take(result)
                reporter.images(1)
        finally:  # also when interrupted: what is done is not lost
            document = run.document({"names": names, **_settings(localizer, options)})
            if folder is not None:
                write(folder / RESULTS, json_text(document).encode())
    if as_json:
        print_document(document)
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code


def _settings(localizer: Localizer, options: Options) -> dict[str, Any]:
    """What the run was asked for, with the defaults that it found filled in."""
    return {
        **model_settings(localizer, options, [name for name, one in OPTIONS.items() if not one.python_only]),
        "method": localizer.method.name,
        "resize": localizer.resize,
        "interpolation": localizer.backbone.interpolation,
        "refine": localizer.refine,
        "image_size": localizer.input_hw,
        "threshold": localizer.box_rule.threshold,
        "method_options": localizer.options_of(localizer.method.name, localizer.options.method_options),
        "masked_precision": localizer.masked_precision,
    }
