"""`cliploc evaluate`: the WSOL numbers of score maps made by any tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cliploc._terminal import Terminal, grid
from cliploc.cli.options import Debug, Json, whole_number
from cliploc.cli.output import DONE, SOME_FAILED, print_document
from cliploc.errors import UsageError


def evaluate(
    maps: Annotated[Path, typer.Option(metavar="DIR", help="Score maps, <image_id>.npy: floats in 0-1.")],
    metadata: Annotated[
        Path, typer.Option(metavar="DIR", help="image_ids, class_labels, image_sizes and localization.txt.")
    ],
    convention: Annotated[
        str, typer.Option(metavar="wsoleval|exact", help="How boxes are drawn and compared.")
    ] = "wsoleval",
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="0-1",
            help="The threshold of the metrics that need one. [default: the best on these images]",
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="CSV", help="image_id,class,class,... best first: for Top-1 and Top-5.")
    ] = None,
    workers: Annotated[int, whole_number(1, 1024, "How many processes share the maps.")] = 1,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Give the WSOL numbers of score maps made by any tool.

    Example: cliploc evaluate --maps maps --metadata metadata --threshold 0.4
    """
    from cliploc.jobs.evaluate import evaluate_folder
    from cliploc.metrics import CONVENTIONS

    chosen = next((one for one in CONVENTIONS if one == convention), None)
    if chosen is None:
        raise UsageError(f"expected --convention of {', '.join(CONVENTIONS)}, got {convention!r}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"expected --threshold from 0 to 1, got {threshold:g}")
    terminal = Terminal()
    with terminal.progress("reading metadata") as reporter:
        result = evaluate_folder(
            maps,
            metadata,
            convention=chosen,
            threshold=threshold,
            predictions=predictions,
            workers=workers,
            reporter=reporter,
        )
    if as_json:
        print_document(result.document(chosen))
    else:
        terminal.data(grid(result.lines()))
    counts = ", ".join(f"{count} {kind} problems" for kind, count in result.counts().items())
    terminal.say(f"{result.evaluated} of {result.asked} images evaluated{f'; {counts}' if counts else ''}", style="dim")
    return SOME_FAILED if result.problems else DONE
