"""`cliploc segment`: one of the names for every pixel of photos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cliploc._files import alone_in
from cliploc._terminal import Terminal
from cliploc.cli.options import (
    Classes,
    Debug,
    Json,
    PromptsFile,
    Threads,
    Words,
    asked_names,
    localizer_options,
    names_in_file,
    refuse_exemplars,
    use_threads,
)
from cliploc.cli.output import json_text, print_document, writable, write
from cliploc.cli.photos import RESULTS, SegmentRun, asked_photos, model_settings
from cliploc.config import Options, SegmentationOptions
from cliploc.errors import InputError, UsageError

if TYPE_CHECKING:
    from cliploc.localizer import Localizer
    from cliploc.reporter import Reporter
    from cliploc.segmentation import Protocol, Segmenter

OF_SEGMENTER = (
    "model", "pretrained", "method", "method_options", "templates", "refine", "guide", "device", "precision",
    "batch_size", "text_cache",
)  # fmt: skip


@localizer_options(
    only=OF_SEGMENTER,
    without={"method": "the method of the model's recipe", "refine": "none", "templates": "openai-80"},
    segmentation=True,
)
def segment(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO", help="Files and folders, as for localize.")],
    prompt: Words = None,
    prompts_file: PromptsFile = None,
    classes: Classes = None,
    background: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Pixels that fit this name best are background; repeatable."),
    ] = None,
    *,
    threads: Threads = None,
    options: Options,
    segmentation: SegmentationOptions,
    rle: Annotated[
        bool, typer.Option("--rle", help="Add each name's pixels to results.json, as COCO's RLE; --json has them.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for a label map and a drawing per photo, and results.json."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Give each pixel of a photo one of your names.

    This is open-vocabulary segmentation. Names are words, not pictures.

    Example: cliploc segment street.jpg -p bicycle -p "car|van" --model mini-vit --out segmented
    """
    from cliploc import prompts

    if rle and out is None and not as_json:
        raise UsageError("expected --json or --out with --rle, got neither: choose where to write the pixels")
    if classes and prompts_file:
        raise UsageError("expected --prompts-file or --classes, got both: write all names into one file")
    names, around = asked_names(prompt, classes), list(background or [])
    if prompts_file is not None:
        in_file = names_in_file(prompts_file)
        names += in_file.entries
        around += in_file.background
    if not names:
        raise UsageError(f'expected names, got none: cliploc segment {photos[0]} -p "cat" -p "sofa"')
    refuse_exemplars([*names, *around], "segment")
    prompts.parse(names, prompts.resolve_templates(options.templates))  # refused before a model is loaded
    folder = None if out is None else writable(out)
    terminal = Terminal()
    pictures = asked_photos(terminal, photos, folder)
    others = [str(one) for one in (classes, prompts_file, options.pretrained) if one is not None]
    start = time.perf_counter()
    with alone_in(folder), terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.segmentation import protocol_for

        protocol = protocol_for(names, around, segmentation)
        labels = [one.name for one in protocol.classes]
        run = SegmentRun(terminal, folder, pictures, labels, as_json, others, masks=rle or as_json)
        use_threads(threads)
        localizer, segmenter = _loaded(options, protocol)
        for reason in segmenter.unknown.values():
            terminal.say(f"left out: {reason}", style="yellow")
        if len(segmenter.classes) == 1:
            only = labels[next(iter(segmenter.classes))]
            terminal.say(f"{only} is the only name that {options.model} knows: it gets every pixel", style="yellow")
        reporter.phase(localizer.method.name)
        reporter.start(len(pictures.paths), len(pictures.paths))
        try:
            _segment(run, segmenter, pictures.paths, reporter)
        finally:  # also when interrupted: what is done is not lost
            document = run.document({"names": names, "background": around, **_settings(localizer, segmenter)})
            if folder is not None:
                run.finish()
                write(folder / RESULTS, json_text(document).encode())
    if as_json:
        print_document(document)
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code


def _loaded(options: Options, protocol: Protocol) -> tuple[Localizer, Segmenter]:
    """The model and its segmenter; the recipe's method where none is named, without the recipe's refinements."""
    from cliploc.localizer import Localizer
    from cliploc.recipes import recipe_of
    from cliploc.segmentation import Segmenter, segmenting_methods
    from cliploc.segmentation.protocol import TEMPLATES

    method = options.method or recipe_of(str(options.model)).method
    localizer = Localizer(**options.but(method=method, templates=options.templates or TEMPLATES).given())
    if method not in (able := segmenting_methods(localizer)):
        raise UsageError(
            f"{method} gives no cosines, so its maps of different names cannot be compared: use one of "
            f"{', '.join(able)} with {localizer.backbone.name}"
        )
    segmenter = Segmenter(localizer, protocol, {method: options.method_options})
    if not segmenter.classes - {0}:
        raise UsageError(
            f"expected a name that {localizer.backbone.name} knows: {next(iter(segmenter.unknown.values()))}"
        )
    return localizer, segmenter


def _segment(run: SegmentRun, segmenter: Segmenter, paths: Sequence[str], reporter: Reporter) -> None:
    """Each photo, one after the other."""
    from cliploc import images

    protocol, localizer = segmenter.protocol, segmenter.localizer
    windows = f"windows {protocol.window} every {protocol.stride}" if protocol.window else "whole photo"
    steps = [] if not localizer.refine else ["+".join(localizer.refine)]
    line = " · ".join([localizer.method.title, *steps, localizer.backbone.name, windows])
    for path in paths:
        try:
            picture = images.load(path)
            made = segmenter.label_maps(picture.image, reporter=reporter)
        except InputError as error:
            run.fail(path, error if str(error).startswith(path) else InputError(f"{path}: {error}"))
        else:
            run.take(picture, made[localizer.method.name], line)
        reporter.images(1)


def _settings(localizer: Localizer, segmenter: Segmenter) -> dict[str, Any]:
    """The settings of the run, with the values that defaults stand for."""
    from cliploc.report.label_maps import label_legend

    method = localizer.method
    return {
        **model_settings(localizer, localizer.options, OF_SEGMENTER),
        "method": method.name,
        "method_options": localizer.options_of(method.name, localizer.options.method_options),
        "refine": localizer.refine,
        "cosines": method.cosines,
        "protocol": segmenter.protocol.describe(),
        "unknown": segmenter.unknown,
        "labels": label_legend([one.name for one in segmenter.protocol.classes[1:]])["labels"],
    }
