"""`cliploc evaluate`: the WSOL numbers of score maps, or mIoU of label maps, made by any tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cliploc._terminal import Terminal, grid
from cliploc.cli.options import TASKS, Debug, Json, whole_number
from cliploc.cli.output import DONE, SOME_FAILED, print_document
from cliploc.errors import UsageError


def evaluate(
    maps: Annotated[Path | None, typer.Option(metavar="DIR", help="Score maps, <image_id>.npy: floats in 0-1.")] = None,
    metadata: Annotated[
        Path | None, typer.Option(metavar="DIR", help="image_ids, class_labels, image_sizes and localization.txt.")
    ] = None,
    task: Annotated[
        str, typer.Option(metavar="|".join(TASKS), help="Score maps against boxes, or label maps (mIoU).")
    ] = "localization",
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
        Path | None,
        typer.Option(
            metavar="CSV|DIR",
            help="image_id,class,class,... best first: for Top-1 and Top-5. Of segmentation: label maps, <id>.png.",
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="Of segmentation: the set.")] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Of segmentation: the set's folder.")] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Of that set. [default: its first]")] = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead of a set: true label maps, <id>.png, 255 for none.")
    ] = None,
    class_list: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --truth: the classes, one a line, from label 0 on.")
    ] = None,
    workers: Annotated[int, whole_number(1, 1024, "How many processes share the maps.")] = 1,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Give the WSOL numbers of score maps made by any tool, or mIoU of label maps.

    Example: cliploc evaluate --maps maps --metadata metadata --threshold 0.4
    Example: cliploc evaluate --task segmentation --predictions labels --dataset voc21 --root data
    """
    if task not in TASKS:
        raise UsageError(f"expected --task of {', '.join(TASKS)}, got {task!r}")
    of_labels = {"--dataset": dataset, "--root": root, "--split": split, "--truth": truth, "--class-list": class_list}
    if task == "segmentation":
        if left := [flag for flag, value in (("--maps", maps), ("--metadata", metadata)) if value is not None]:
            raise UsageError(f"expected label maps in --predictions, got {left[0]}: leave it out")
        if predictions is None:
            raise UsageError("expected --predictions with the folder of label maps: add it")
        return _labels(predictions, dataset, root, split, truth, class_list, as_json)
    if left := [flag for flag, value in of_labels.items() if value is not None]:
        raise UsageError(f"expected --task segmentation with {left[0]}: add it")
    if maps is None or metadata is None:
        raise UsageError(f"expected --{'maps' if maps is None else 'metadata'} DIR: add it, or --task segmentation")
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


def _labels(
    predictions: Path,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    truth: Path | None,
    class_list: Path | None,
    as_json: bool,
) -> int:
    """`evaluate --task segmentation`."""
    from cliploc.jobs.evaluate_labels import evaluate_labels

    terminal = Terminal()
    with terminal.progress("reading label maps") as reporter:
        result = evaluate_labels(
            predictions,
            dataset=dataset,
            root=root,
            split=split,
            truth=truth,
            class_list=class_list,
            reporter=reporter,
        )
    if as_json:
        print_document(result.document())
    else:
        terminal.data(grid(result.lines()))
    counts = ", ".join(f"{count} {kind} problems" for kind, count in result.counts().items())
    terminal.say(f"{result.evaluated} of {result.asked} images evaluated{f'; {counts}' if counts else ''}", style="dim")
    return SOME_FAILED if result.problems else DONE
