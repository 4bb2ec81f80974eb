"""`cliploc evaluate`: the WSOL numbers or the faithfulness of score maps, or mIoU of label maps, made by any tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cliploc.cli.commands import tasks
from cliploc.cli.options import (
    MetricFlags,
    SampleFlags,
    WithJson,
    command,
    flag,
    rare,
)
from cliploc.cli.output import DONE, SOME_FAILED, first_failures, print_result
from cliploc.cli.terminal import Terminal, grid
from cliploc.evaluate.tasks.flags import metric_names, refuse_unknown_dataset
from cliploc.options import FaithfulnessOptions, Options, choice

if TYPE_CHECKING:
    from cliploc.evaluate.metrics import Convention
    from cliploc.evaluate.tasks.evaluate import FolderResult
    from cliploc.evaluate.tasks.segmentation.job import LabelsResult

OF_MODEL = ("model", "pretrained", "device", "precision", "masked_precision", "templates", "batch_size")


class MapsFlags(WithJson):
    """Of tasks that read score maps."""

    maps: Path = flag("Folder of score maps, <image_id>.npy: floats in 0-1.", metavar="DIR")


class BoxesFlags(MapsFlags):
    """What `evaluate boxes` has."""

    metadata: Path = flag(
        "Folder with image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt.", metavar="DIR"
    )
    convention: str = flag(
        "Box convention: as the WSOL evaluation, or exact.",
        "wsoleval",
        metavar="wsoleval|exact",
        group="boxes",
        check=choice("convention", ("wsoleval", "exact")),
    )
    threshold: float | None = flag(
        "Threshold of the metrics that need one.", None, within=(0, 1), none="the best on these pictures", group="boxes"
    )
    predictions: Path | None = flag(
        "Lines image_id,class,class,... best first, for Top-1 and Top-5.", None, metavar="CSV"
    )
    workers: int = rare("Number of processes.", 1, within=(1, 1024), group="run")


class SegmentationFlags(WithJson):
    """What `evaluate segmentation` has."""

    predictions: Path = flag("Folder of label maps, <id>.png.", metavar="DIR")
    dataset: str | None = flag("Dataset with the true label maps.", None, metavar="NAME")
    root: Path | None = flag("Folder of that dataset.", None, metavar="DIR")
    split: str | None = flag("Split of the dataset.", None, metavar="NAME", none="its first")
    truth: Path | None = rare(
        "Folder of true label maps instead of a dataset: <id>.png, 255 for no label.", None, metavar="DIR"
    )
    class_list: Path | None = rare(
        "With --truth: the class names, one per line, from label 0 on.", None, metavar="FILE"
    )


class FaithfulnessFlags(MapsFlags, SampleFlags, MetricFlags):
    """What `evaluate faithfulness` has besides options of models and protocols."""

    dataset: str = flag("Dataset with the pictures.", "wsol", metavar="NAME")
    root: Path = flag("Folder of that dataset.", metavar="DIR")


def _printed(result: FolderResult | LabelsResult, document: Mapping[str, Any], *, as_json: bool) -> int:
    """Prints the numbers, how many pictures were evaluated, and what was wrong with the others."""
    terminal = Terminal()
    print_result(terminal, document, grid(result.lines()), as_json=as_json)
    counts = ", ".join(f"{count} {kind} problem{'s' * (count > 1)}" for kind, count in result.counts().items())
    terminal.say(
        f"{result.evaluated} of {result.asked} pictures evaluated{f'; {counts}' if counts else ''}", style="dim"
    )
    return SOME_FAILED if result.problems else DONE


@command()
def boxes(asked: BoxesFlags) -> int:
    """Compare score maps with true boxes (WSOL).

    Example: cliploc evaluate boxes --maps maps --metadata metadata --threshold 0.4
    """
    from cliploc.evaluate.tasks.evaluate import evaluate_folder

    terminal, convention = Terminal(), cast("Convention", asked.convention)
    with terminal.progress("reading metadata") as shown, first_failures(terminal, shown) as reporter:
        result = evaluate_folder(
            asked.maps,
            asked.metadata,
            convention=convention,
            threshold=asked.threshold,
            predictions=asked.predictions,
            workers=asked.workers,
            reporter=reporter,
        )
    return _printed(result, result.document(convention), as_json=asked.as_json)


@command()
def segmentation(asked: SegmentationFlags) -> int:
    """Compare label maps with true ones (mIoU).

    Example: cliploc evaluate segmentation --predictions labels --dataset voc21 --root data
    """
    if asked.dataset is not None:
        refuse_unknown_dataset(asked.dataset, labelled=True)
    from cliploc.evaluate.tasks.segmentation.job import evaluate_labels

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
    return _printed(result, result.document(), as_json=asked.as_json)


@command(only=OF_MODEL)
def faithfulness(asked: FaithfulnessFlags, options: Options, protocol: FaithfulnessOptions) -> int:
    """Measure whether score maps show what a model uses.

    Example: cliploc evaluate faithfulness --maps maps --dataset wsol --root data --steps 28
    """
    refuse_unknown_dataset(asked.dataset)
    names = metric_names(asked.metric)
    from cliploc.evaluate.data import open_dataset
    from cliploc.evaluate.tasks.faithfulness.job import evaluate_maps
    from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
    from cliploc.find import prompts

    chosen_metrics(names, with_method=False)  # refused before a model is loaded
    prompts.resolve_templates(options.templates)
    terminal = Terminal()
    with (
        terminal.progress(f"reading {asked.dataset}") as shown,
        first_failures(terminal, shown) as reporter,
    ):
        opened = open_dataset(asked.dataset, asked.root, asked.split, **asked.chosen())
        result = evaluate_maps(asked.maps, opened, options, metrics=names, protocol=protocol, reporter=reporter)
    summary = result.summary
    print_result(terminal, result.document(), grid(result.lines()), as_json=asked.as_json)
    terminal.say(f"{summary['evaluated']} of {summary['images']} pictures measured by {result.model}", style="dim")
    return SOME_FAILED if summary["failed"] else DONE


evaluate = tasks("Evaluate score maps or label maps of any tool.", boxes, segmentation, faithfulness)
