"""`cliploc evaluate`: the WSOL numbers or the faithfulness of score maps, or mIoU of label maps, made by any tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cliploc._terminal import Terminal, grid
from cliploc.cli.options import (
    EVALUATED,
    MetricFlags,
    SampleFlags,
    WithJson,
    command,
    flag,
    metric_names,
    rare,
    refuse_unknown_dataset,
)
from cliploc.cli.output import DONE, SOME_FAILED, first_failures, print_result
from cliploc.config import FaithfulnessOptions, Options, choice, flags_of
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.jobs.benchmark_segmentation import LabelsResult
    from cliploc.jobs.evaluate import FolderResult

# Options that only some tasks take, by task. Those of models and protocols are for faithfulness.
OF_TASK = {
    "localization": ("--maps", "--metadata", "--convention", "--threshold", "--predictions", "--workers"),
    "segmentation": ("--predictions", "--dataset", "--root", "--split", "--truth", "--class-list"),
    "faithfulness": (
        "--maps", "--metric", "--dataset", "--root", "--split", "--subset", "--classes", "--limit", "--sample", "--seed"
    ),
}  # fmt: skip
OF_MODEL = ("model", "pretrained", "device", "precision", "masked_precision", "templates", "batch_size")


class EvaluateFlags(SampleFlags, MetricFlags, WithJson):
    """What `evaluate` has besides options of models and protocols."""

    maps: Path | None = flag("Folder of score maps, <image_id>.npy: floats in 0-1.", None, metavar="DIR")
    metadata: Path | None = flag(
        "Folder with image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt.", None, metavar="DIR"
    )
    task: str = flag(
        "Compare score maps with boxes, label maps with true ones, or score maps with what a model uses.",
        "localization",
        metavar="|".join(EVALUATED),
        check=choice("task", EVALUATED),
    )
    convention: str = flag(
        "Box convention: as the WSOL evaluation, or exact.", "wsoleval", metavar="wsoleval|exact", group="boxes"
    )
    threshold: float | None = flag(
        "Threshold of the metrics that need one.", None, within=(0, 1), none="the best on these pictures", group="boxes"
    )
    predictions: Path | None = flag(
        "Lines image_id,class,class,... best first, for Top-1 and Top-5. Segmentation: a folder of <id>.png.",
        None,
        metavar="CSV|DIR",
    )
    dataset: str | None = flag(
        "Dataset of segmentation or faithfulness.", None, metavar="NAME", none="for faithfulness, wsol"
    )
    root: Path | None = flag("Folder of that dataset.", None, metavar="DIR")
    truth: Path | None = rare(
        "Folder of true label maps instead of a dataset: <id>.png, 255 for no label.",
        None,
        metavar="DIR",
        group="segmentation",
    )
    class_list: Path | None = rare(
        "With --truth: the class names, one per line, from label 0 on.", None, metavar="FILE", group="segmentation"
    )
    workers: int = rare("Number of processes.", 1, within=(1, 1024), group="run")


@command(only=OF_MODEL)
def evaluate(asked: EvaluateFlags, options: Options, faithfulness: FaithfulnessOptions) -> int:
    """Evaluate score maps or label maps of any tool.

    Score maps give WSOL metrics or faithfulness, label maps give mIoU.

    Example: cliploc evaluate --maps maps --metadata metadata --threshold 0.4

    Example: cliploc evaluate --task segmentation --predictions labels --dataset voc21 --root data

    Example: cliploc evaluate --task faithfulness --maps maps --dataset wsol --root data --steps 28
    """
    task, of_model = asked.task, [*options.given(), *faithfulness.given()][:1]
    for name in (*asked.given(), *(flags_of(option)[0].partition("/")[0] for option in of_model)):
        tasks = [task_of for task_of, own in OF_TASK.items() if name in own] or ["faithfulness"]
        if name in ("--task", "--json", "--debug") or task in tasks:
            continue
        if task == "localization":  # the default: perhaps another one was meant
            raise UsageError(f"{name} is an option of --task {' or '.join(tasks)}: add it, or leave {name} out")
        raise UsageError(f"{name} is not an option of --task {task}: leave it out")
    if task == "segmentation":
        return _labels(asked)
    if asked.maps is None:
        raise UsageError("expected --maps, a folder of score maps, got none: add it, or --task segmentation")
    if task == "faithfulness":
        return _faithfulness(asked, asked.maps, options, faithfulness)
    return _localization(asked, asked.maps)


def _evaluated(result: FolderResult | LabelsResult) -> str:
    """How many pictures were evaluated, and what was wrong with the others."""
    counts = ", ".join(f"{count} {kind} problem{'s' * (count > 1)}" for kind, count in result.counts().items())
    return f"{result.evaluated} of {result.asked} pictures evaluated{f'; {counts}' if counts else ''}"


def _localization(asked: EvaluateFlags, maps: Path) -> int:
    """`evaluate --task localization`."""
    if asked.metadata is None:
        raise UsageError(
            "expected --metadata, a folder of image_ids.txt and others, got none: add it, or another --task"
        )
    from cliploc.jobs.evaluate import evaluate_folder
    from cliploc.metrics import CONVENTIONS

    convention = next((convention for convention in CONVENTIONS if convention == asked.convention), None)
    if convention is None:
        raise UsageError(f"expected --convention to be one of {', '.join(CONVENTIONS)}, got {asked.convention!r}")
    terminal = Terminal()
    with terminal.progress("reading metadata") as shown, first_failures(terminal, shown) as reporter:
        result = evaluate_folder(
            maps,
            asked.metadata,
            convention=convention,
            threshold=asked.threshold,
            predictions=asked.predictions,
            workers=asked.workers,
            reporter=reporter,
        )
    print_result(terminal, result.document(convention), grid(result.lines()), as_json=asked.as_json)
    terminal.say(_evaluated(result), style="dim")
    return SOME_FAILED if result.problems else DONE


def _labels(asked: EvaluateFlags) -> int:
    """`evaluate --task segmentation`."""
    if asked.predictions is None:
        raise UsageError("expected --predictions, the folder of label maps, got none: add it")
    if asked.dataset is not None:
        refuse_unknown_dataset(asked.dataset, labelled=True)
    from cliploc.jobs.benchmark_segmentation import evaluate_labels

    terminal = Terminal()
    with terminal.progress("reading label maps") as shown, first_failures(terminal, shown) as reporter:
        result = evaluate_labels(
            asked.predictions,
            dataset=asked.dataset,
            root=asked.root,
            split=asked.split,
            truth=asked.truth,
            class_list=asked.class_list,
            reporter=reporter,
        )
    print_result(terminal, result.document(), grid(result.lines()), as_json=asked.as_json)
    terminal.say(_evaluated(result), style="dim")
    return SOME_FAILED if result.problems else DONE


def _faithfulness(asked: EvaluateFlags, maps: Path, options: Options, protocol: FaithfulnessOptions) -> int:
    """`evaluate --task faithfulness`."""
    if asked.root is None:
        raise UsageError("expected --root, the dataset's folder, got none: faithfulness needs the pictures")
    from cliploc import prompts
    from cliploc.datasets import open_dataset

    names, dataset = metric_names(asked.metric), asked.dataset or "wsol"
    refuse_unknown_dataset(dataset)
    from cliploc.faithfulness import chosen_metrics
    from cliploc.jobs.benchmark_faithfulness import evaluate_maps

    chosen_metrics(names, with_method=False)  # refused before a model is loaded
    prompts.resolve_templates(options.templates)
    terminal = Terminal()
    with (
        terminal.progress(f"reading {dataset}", speed=True) as shown,
        first_failures(terminal, shown) as reporter,
    ):
        opened = open_dataset(dataset, asked.root, asked.split, **asked.chosen())
        result = evaluate_maps(maps, opened, options, metrics=names, protocol=protocol, reporter=reporter)
    summary = result.summary
    print_result(terminal, result.document(), grid(result.lines()), as_json=asked.as_json)
    terminal.say(f"{summary['evaluated']} of {summary['images']} pictures measured by {result.model}", style="dim")
    return SOME_FAILED if summary["failed"] else DONE
