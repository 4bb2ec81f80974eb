"""`cliploc localize`: where named things are in photos."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cliploc._files import alone_in
from cliploc._terminal import Terminal
from cliploc.cli.options import (
    Classes,
    Debug,
    Json,
    Names,
    PromptsFile,
    Threads,
    asked_names,
    localizer_options,
    names_in_file,
    use_threads,
    with_exemplars,
)
from cliploc.cli.output import json_text, print_document, writable, write
from cliploc.cli.photos import RESULTS, LocalizeRun, asked_photos, model_settings
from cliploc.config import OPTIONS, Options
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.localizer import Localizer


MAPS_AT_ONCE = 4096  # photos × names; of 224×224 pixels they take 0.8 GB


@localizer_options()
def localize(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Photos (JPEG, PNG, WebP, HEIC …) or folders of them.")
    ],
    prompt: Names = None,
    prompts_file: PromptsFile = None,
    classes: Classes = None,
    *,
    threads: Threads = None,
    options: Options,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for one overlay per photo and results.json.")
    ] = None,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Save each heatmap in --out, in the format that `evaluate` reads.")
    ] = False,
    masks: Annotated[
        bool,
        typer.Option(
            "--masks", help="Add the mask of each box and name to --json; with --out, as overlays and label maps."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Find named things in photos.

    Example: cliploc localize street.jpg -p bicycle -p "traffic light" --out found
    """
    from cliploc import prompts

    if save_maps and out is None:
        raise UsageError("expected --out with --save-maps, got none: choose a folder for the maps")
    if masks and out is None and not as_json:
        raise UsageError("expected --json or --out with --masks, got neither: choose where to write the masks")
    if classes and prompts_file:
        raise UsageError("expected --prompts-file or --classes, got both: write all names into one file")
    names = asked_names(prompt, classes)
    if prompts_file is not None:
        in_file = names_in_file(prompts_file)
        names += in_file.entries
        options = options.but(background=(*options.background, *in_file.background))
    if not names:
        raise UsageError(f'expected at least one name to look for, got none: cliploc localize {photos[0]} -p "cat"')
    names, options = with_exemplars(names, options)
    prompts.parse(names, prompts.resolve_templates(options.templates))  # refused before a model is loaded
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // len(names))))
    folder = None if out is None else writable(out)
    terminal = Terminal()
    pictures = asked_photos(terminal, photos, folder)
    others = [str(one) for one in (classes, prompts_file, options.pretrained, options.head) if one is not None]
    run = LocalizeRun(terminal, folder, pictures, as_json, others, save_maps, masks)
    start = time.perf_counter()
    with alone_in(folder), terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.localizer import Localizer
        from cliploc.report.overlay import MOST_PANELS

        use_threads(threads)
        localizer = Localizer(**options.given())
        reporter.phase(localizer.method.name)
        reporter.start(len(pictures.paths), len(pictures.paths))
        told = replace(reporter, failed=run.fail)
        try:
            # A larger sheet shows only the names found, so that the maps of the others are not needed.
            shown = save_maps or len(names) <= MOST_PANELS
            results = localizer.stream(
                pictures.paths,
                names,
                on_error="skip",
                reporter=told,
                absent_maps=shown,
                keep_maps=folder is not None or masks,
            )
            for result in results:
                run.take(result)
                reporter.images(1)
        finally:  # also when interrupted: what is done is not lost
            document = run.document({"names": names, **_settings(localizer)})
            if folder is not None:
                run.finish(names)
                write(folder / RESULTS, json_text(document).encode())
    if as_json:
        print_document(document)
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code


def _settings(localizer: Localizer) -> dict[str, Any]:
    """The settings of the run, with the values that defaults stand for."""
    return {
        **model_settings(localizer, localizer.options, [name for name, one in OPTIONS.items() if not one.python_only]),
        **({"exemplars": localizer.exemplars} if localizer.exemplars else {}),
        "recipe": None if localizer.recipe is None else localizer.recipe.name,
        "method": localizer.method.name,
        "resize": localizer.resize,
        "interpolation": localizer.backbone.interpolation,
        "refine": localizer.refine,
        "image_size": localizer.input_hw,
        "threshold": localizer.box_rule.threshold,
        "method_options": localizer.options_of(localizer.method.name, localizer.options.method_options),
        "masked_precision": localizer.masked_precision,
    }
