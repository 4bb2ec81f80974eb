"""`cliploc evaluate`: the WSOL numbers or the faithfulness of score maps, or mIoU of label maps, made by any tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cliploc._terminal import Terminal, grid
from cliploc.cli.options import (
    TASKS,
    Debug,
    Json,
    localizer_options,
    metric_names,
    number_in,
    refuse_unknown_dataset,
)
from cliploc.cli.output import DONE, SOME_FAILED, print_document
from cliploc.config import FaithfulnessOptions, Options, flags_of
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.jobs.evaluate import FolderResult
    from cliploc.jobs.segmentation import LabelsResult

# Options that only some tasks take, by task. Those of models and protocols are for faithfulness.
OF_TASK = {
    "localization": ("--maps", "--metadata", "--convention", "--threshold", "--predictions", "--workers"),
    "segmentation": ("--predictions", "--dataset", "--root", "--split", "--truth", "--class-list"),
    "faithfulness": ("--maps", "--dataset", "--root", "--split", "--metric"),
}
CONVENTION = "wsoleval"  # where none is named
OF_MODEL = ("model", "pretrained", "device", "precision", "masked_precision", "templates", "batch_size")


@localizer_options(only=OF_MODEL, faithfulness=True)
def evaluate(
    maps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of score maps, <image_id>.npy: floats in 0-1.")
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt."
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="|".join(TASKS),
            help="Compare score maps with boxes, label maps with true ones, or score maps with what a model uses.",
        ),
    ] = "localization",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME,NAME",
            help="Metrics of --task faithfulness; see `cliploc help faithfulness`. [default: deletion,insertion]",
        ),
    ] = None,
    convention: Annotated[
        str, typer.Option(metavar="wsoleval|exact", help="Box convention: as the WSOL evaluation, or exact.")
    ] = CONVENTION,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="0-1",
            help="Threshold of the metrics that need one. [default: the best on these images]",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV|DIR",
            help="Lines image_id,class,class,... best first, for Top-1 and Top-5. Segmentation: a folder of <id>.png.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Dataset of segmentation or faithfulness. [default: for faithfulness, wsol]"),
    ] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of that dataset.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of that dataset. [default: its first]")
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of true label maps instead of a dataset: <id>.png, 255 for no label."),
    ] = None,
    class_list: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --truth: the class names, one per line, from label 0 on.")
    ] = None,
    workers: Annotated[int, number_in(1, 1024, "Number of processes.")] = 1,
    *,
    options: Options,
    faithfulness: FaithfulnessOptions,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Evaluate score maps or label maps of any tool.

    Score maps give WSOL metrics or faithfulness, label maps give mIoU.

    Example: cliploc evaluate --maps maps --metadata metadata --threshold 0.4

    Example: cliploc evaluate --task segmentation --predictions labels --dataset voc21 --root data

    Example: cliploc evaluate --task faithfulness --maps maps --dataset wsol --root data --steps 28
    """
    if task not in TASKS:
        raise UsageError(f"expected --task to be one of {', '.join(TASKS)}, got {task!r}")
    own = [*options.given(), *faithfulness.given()]
    given = {
        "--maps": maps,
        "--metadata": metadata,
        "--convention": None if convention == CONVENTION else convention,
        "--threshold": threshold,
        "--predictions": predictions,
        "--dataset": dataset,
        "--root": root,
        "--split": split,
        "--truth": truth,
        "--class-list": class_list,
        "--metric": metric,
        "--workers": None if workers == 1 else workers,
        **({flags_of(own[0])[0].partition("/")[0]: own[0]} if own else {}),
    }
    _refuse_others(task, [flag for flag, value in given.items() if value not in (None, [])])
    if task == "segmentation":
        if predictions is None:
            raise UsageError("expected --predictions, the folder of label maps, got none: add it")
        if dataset is not None:
            refuse_unknown_dataset(dataset, labelled=True)
        return _labels(predictions, dataset, root, split, truth, class_list, as_json)
    if maps is None:
        raise UsageError("expected --maps, a folder of score maps, got none: add it, or --task segmentation")
    if task == "faithfulness":
        if root is None:
            raise UsageError("expected --root, the dataset's folder, got none: faithfulness needs the pictures")
        return _faithfulness(maps, dataset or "wsol", root, split, metric or [], options, faithfulness, as_json)
    if metadata is None:
        raise UsageError(
            "expected --metadata, a folder of image_ids.txt and others, got none: add it, or another --task"
        )
    from cliploc.jobs.evaluate import evaluate_folder
    from cliploc.metrics import CONVENTIONS

    chosen = next((one for one in CONVENTIONS if one == convention), None)
    if chosen is None:
        raise UsageError(f"expected --convention to be one of {', '.join(CONVENTIONS)}, got {convention!r}")
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
    _tell(terminal, result.lines(), result.document(chosen), as_json, _evaluated(result))
    return SOME_FAILED if result.problems else DONE


def _refuse_others(task: str, flags: Sequence[str]) -> None:
    """Refuses an option that the task does not use."""
    for flag in flags:
        tasks = [name for name, own in OF_TASK.items() if flag in own] or ["faithfulness"]
        if task not in tasks and task == "localization":  # the default: perhaps another one was meant
            raise UsageError(f"{flag} is an option of --task {' or '.join(tasks)}: add it, or leave {flag} out")
        if task not in tasks:
            raise UsageError(f"{flag} is not an option of --task {task}: leave it out")


def _evaluated(result: FolderResult | LabelsResult) -> str:
    """How many pictures were evaluated, and what was wrong with the others."""
    counts = ", ".join(f"{count} {kind} problems" for kind, count in result.counts().items())
    return f"{result.evaluated} of {result.asked} images evaluated{f'; {counts}' if counts else ''}"


def _tell(
    terminal: Terminal, lines: Sequence[Sequence[str]], document: dict[str, Any], as_json: bool, closing: str
) -> None:
    """Prints the numbers as a table, or as one JSON document, and a line below."""
    if as_json:
        print_document(document)
    else:
        terminal.data(grid(lines))
    terminal.say(closing, style="dim")


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
    from cliploc.jobs.segmentation import evaluate_labels

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
    _tell(terminal, result.lines(), result.document(), as_json, _evaluated(result))
    return SOME_FAILED if result.problems else DONE


def _faithfulness(
    maps: Path,
    dataset: str,
    root: Path,
    split: str | None,
    metric: list[str],
    options: Options,
    protocol: FaithfulnessOptions,
    as_json: bool,
) -> int:
    """`evaluate --task faithfulness`."""
    from cliploc import prompts
    from cliploc.datasets import open_dataset

    names = metric_names(metric)
    refuse_unknown_dataset(dataset)
    from cliploc.faithfulness import chosen_metrics
    from cliploc.jobs.faithfulness import evaluate_maps

    chosen_metrics(names, with_method=False)  # refused before a model is loaded
    prompts.resolve_templates(options.templates)
    terminal = Terminal()
    with terminal.progress(f"reading {dataset}", rate="images/s") as reporter:
        found = open_dataset(dataset, root, split)
        result = evaluate_maps(maps, found, options, metrics=names, protocol=protocol, reporter=reporter)
    summary = result.summary
    closing = f"{summary['evaluated']} of {summary['images']} pictures measured by {result.model}"
    _tell(terminal, result.lines(), result.document(), as_json, closing)
    return SOME_FAILED if summary["failed"] else DONE
