"""Evaluates label maps made by any tool against true label maps: mIoU, as `cliploc benchmark --task segmentation`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliploc import prompts
from cliploc.datasets import LabelFile, LabelledPicture, classes_of, open_labelled, read_labels
from cliploc.errors import InputError, UsageError
from cliploc.jobs.segmentation import NUMBERS, numbers_of
from cliploc.jobs.summary import DEFAULT, Summary
from cliploc.metrics import Bootstrap, MeanIoU
from cliploc.reporter import SILENT, Reporter
from cliploc.values import ClassName, Problem

SUFFIX = ".png"
OBJECTS = "SegmentationObject"  # Pascal VOC's folder of label maps of objects, not of classes


@dataclass(frozen=True)
class LabelsResult:
    """The result for a folder of label maps."""

    asked: int  # number of pictures with a true label map
    evaluated: int  # number of pictures that the numbers are of
    numbers: Summary  # see `cliploc.jobs.segmentation.numbers_of`
    problems: tuple[Problem, ...]  # everything that was left out

    def counts(self) -> dict[str, int]:
        """The number of problems of each kind."""
        return dict(sorted(Counter(one.kind for one in self.problems).items()))

    def document(self) -> dict[str, Any]:
        """The result as `cliploc evaluate --json` prints it: shares in percent, None if there is no number."""
        return {
            **self.numbers,
            "images": self.asked,
            "evaluated": self.evaluated,
            "problems": self.counts(),
            "failed": [{"kind": p.kind, "source": p.source, "reason": p.reason} for p in self.problems],
        }

    def lines(self) -> list[tuple[str, str, str]]:
        """A row for each number: name, percent, 95 % interval."""
        ends = self.numbers["confidence_95"].get("miou")
        return [
            (title, f"{self.numbers[key]:.2f} %", f"{ends[0]:.2f}–{ends[1]:.2f}" if key == "miou" and ends else "")
            for key, title in NUMBERS.items()
            if self.numbers.get(key) is not None
        ]


def folder_of_truths(truth: Path, class_list: Path) -> tuple[tuple[ClassName, ...], list[LabelledPicture]]:
    """A folder of true label maps: a PNG for each picture, with labels as the lines of a class list, 255 for none."""
    if not truth.is_dir():
        raise UsageError(f"expected a folder of true label maps, found none at {truth}: check the path")
    classes = classes_of([line for _, line in prompts.read_lines(class_list, "classes")])
    paths = sorted(truth.rglob(f"*{SUFFIX}"))
    if not paths:
        raise UsageError(f"expected label maps (*{SUFFIX}) in {truth}, found none: check the path")
    ids = [path.relative_to(truth).with_suffix("").as_posix() for path in paths]
    return classes, [LabelledPicture(one, path, (0, 0), LabelFile(path)) for one, path in zip(ids, paths, strict=True)]


def evaluate_labels(
    predictions: str | Path,
    *,
    dataset: str | None = None,
    root: str | Path | None = None,
    split: str | None = None,
    truth: str | Path | None = None,
    class_list: str | Path | None = None,
    bootstrap: Bootstrap = DEFAULT,
    reporter: Reporter = SILENT,
) -> LabelsResult:
    """Evaluates label maps made by any tool.

    Args:
        predictions: folder with `<id>.png` for each picture: one label per pixel, at the picture's size. Sets whose
            label 0 does not count (voc20, context59, ade20k) count their classes from 0.
        split: its split; None for the first.
        truth: instead of a set: a folder of true label maps; see `folder_of_truths`.
        reporter: gets each picture that is left out, the phase "maps", and the numbers of pictures to do and done.
    """
    predictions = Path(predictions)
    if not predictions.is_dir():
        raise UsageError(f"expected a folder of label maps, found none at {predictions}: check the path")
    for folder in (predictions, *([Path(truth)] if truth is not None else [])):
        if folder.name == OBJECTS:
            raise UsageError(
                f"expected label maps of classes, got {folder}, whose values are numbers of objects: "
                f"use {folder.with_name('SegmentationClass')}"
            )
    problems: list[Problem] = []

    def leave_out(problem: Problem) -> None:
        problems.append(problem)
        reporter.failed(problem.source, InputError(f"{problem.source}: {problem.reason}"))

    samples: Sequence[LabelledPicture]
    if dataset is not None and root is not None and truth is None:
        found = open_labelled(dataset, root, split)
        classes, samples = found.classes, found.samples
        if any(one.name is not None for one in samples):
            raise UsageError(
                f"{dataset} is evaluated by score maps, not by label maps: use cliploc benchmark --task segmentation"
            )
        for problem in found.problems:
            leave_out(problem)
    elif truth is not None and class_list is not None and dataset is None:
        classes, samples = folder_of_truths(Path(truth), Path(class_list))
    else:
        raise UsageError(
            "expected --dataset with --root, or --truth with --class-list, got neither or both: give one pair"
        )
    known = {f"{one.id}{SUFFIX}" for one in samples}
    there = {path.relative_to(predictions).as_posix() for path in predictions.rglob(f"*{SUFFIX}")}
    for name in sorted(there - known):
        leave_out(Problem("prediction", name, "a label map of no picture of the set: remove it, or check its name"))
    metric = MeanIoU(len(classes))
    reporter.phase("maps")
    reporter.start(len(samples), len(samples))
    for one in samples:
        reporter.images(1)
        path = predictions / f"{one.id}{SUFFIX}"
        if not path.is_file():
            leave_out(Problem("prediction", one.id, f"expected a label map at {path}, found none: not in the numbers"))
            continue
        try:
            metric.update(one.id, read_labels(path), one.truth.read())
        except InputError as error:
            leave_out(Problem("prediction", one.id, str(error)))
    if not len(metric):
        raise UsageError(f"none of {len(samples)} pictures could be evaluated: check {predictions}")
    numbers = numbers_of(metric.compute(bootstrap), [one.name for one in classes])
    return LabelsResult(len(samples), len(metric), numbers, tuple(problems))
