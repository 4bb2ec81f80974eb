"""`cliploc classify`: which names whole photos fit best."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from cliploc._terminal import Terminal
from cliploc.cli.options import (
    Classes,
    Debug,
    Json,
    Threads,
    Words,
    asked_names,
    localizer_options,
    number_in,
    refuse_exemplars,
    use_threads,
)
from cliploc.cli.output import print_document
from cliploc.cli.photos import ClassifyRun, asked_photos, model_settings
from cliploc.config import Options

OF_CLASSIFIER = ("model", "pretrained", "templates", "device", "precision", "batch_size", "text_cache")


@localizer_options(only=OF_CLASSIFIER)
def classify(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO", help="Files and folders, as for localize.")],
    prompt: Words = None,
    classes: Classes = None,
    top_k: Annotated[int, number_in(1, 1_000_000, "Number of names per photo, best first.")] = 5,
    *,
    threads: Threads = None,
    options: Options,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Rank names by how well they fit a whole photo.

    Without names, ImageNet's 1,000 classes are ranked.

    Example: cliploc classify street.jpg -p bicycle -p car --top-k 1
    """
    from cliploc import prompts

    names = asked_names(prompt, classes) or asked_names(None, "imagenet")
    refuse_exemplars(names, "classify")
    labels = prompts.parse(names, prompts.resolve_templates(options.templates)).names
    terminal = Terminal()
    pictures = asked_photos(terminal, photos)
    start = time.perf_counter()
    with terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.localizer import classifier

        use_threads(threads)
        localizer = classifier(**options.given())
        for reason in localizer.unknown_names(names).values():
            terminal.say(f"left out: {reason}", style="yellow")
        reporter.phase("classify")
        reporter.start(len(pictures.paths), len(pictures.paths))
        run = ClassifyRun(terminal, pictures, labels, quiet=as_json)
        told = replace(reporter, failed=run.fail)
        for result in localizer.classify_stream(pictures.paths, names, top_k, on_error="skip", reporter=told):
            run.take(result)
            reporter.images(1)
    if as_json:
        settings = {"names": names, "top_k": top_k, **model_settings(localizer, options, OF_CLASSIFIER)}
        print_document(run.document(settings))
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code
