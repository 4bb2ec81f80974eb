"""Fits the second look to pictures with true boxes; `cliploc help presence` explains the command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cliploc import prompts
from cliploc.calibration import Calibration, Floats, Logistic, fit_logistic, reliability
from cliploc.datasets import AskedDataset, AskedPicture, Draw
from cliploc.errors import UsageError
from cliploc.geometry import iou_matrix
from cliploc.jobs import folder
from cliploc.jobs.annotation_results import AnnotatedFolder
from cliploc.jobs.annotation_rows import KIND
from cliploc.jobs.picture_files import PictureFile
from cliploc.jobs.sources import content_digest
from cliploc.jobs.task import class_entries
from cliploc.jobs.videos import path_of
from cliploc.localizer import Localizer
from cliploc.metrics import average_precision
from cliploc.pipeline.prepare import Request
from cliploc.pipeline.second_look import best_of_names
from cliploc.reporter import SILENT, Reporter
from cliploc.values import GOOD_IOU, Boxes, ClassName, FloatArray, Problem

Bools = npt.NDArray[np.bool_]
FEWEST_RIGHT, FEWEST_PICTURES = 30, 20  # right boxes and pictures, below which nothing is fitted
FOLDS = 5  # of pictures; each is measured by a fit to the others


@dataclass(frozen=True)
class Asked:
    """A picture with the names to ask, and the true boxes `[k, 4]` of those that are in it."""

    path: Path
    names: Sequence[str]  # "cat|kitten": synonyms
    truth: Mapping[str, FloatArray]
    size_wh: tuple[int, int] | None = None  # to which the boxes belong; None: the picture's own


@dataclass(frozen=True)
class Examples:
    """What a second look reads in pictures, and what is true."""

    of_boxes: Floats  # [n, F] of boxes
    right: Bools  # [n] whether the box has IoU ≥ 0.5 with a thing of its name
    box_there: Bools  # [n] whether its name is there
    of_names: Floats  # [m, F] the best of each name's boxes
    there: Bools  # [m] whether the name is there
    of_all: Floats  # [k, 2] of all names asked, without their boxes
    all_there: Bools  # [k]

    @classmethod
    def together(cls, parts: Iterable[Examples]) -> Examples:
        """The examples of several sets or pictures as one."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


def examples_of(localizer: Localizer, asked: Iterable[Asked], reporter: Reporter = SILENT) -> Iterator[Examples]:
    """The examples of each picture; names that the model does not know are not asked.

    Args:
        localizer: with a second look, as it is to be calibrated.
    """
    waiting: list[Asked] = []

    def requests() -> Iterator[Request]:
        for one in asked:
            unknown = localizer.unknown_names(one.names)
            own = zip(one.names, prompts.parse(one.names).names, strict=True)
            names = [entry for entry, name in own if name not in unknown]
            if names:
                waiting.append(replace(one, names=names))
                yield Request(len(waiting), one.path, names)

    for result in localizer.run(requests(), reporter=reporter, absent_maps=False):
        one = waiting.pop(0)
        reporter.images(1)
        if result.error is not None:
            reporter.failed(str(one.path), result.error)
            continue
        (found,) = result.found.values()
        assert found.second_look is not None
        assert found.judged is not None
        boxes = replace(found.judged.candidates, score=found.judged.fit)
        features = found.second_look.features(boxes)
        scale = np.array([*found.image.size] * 2) / np.array([*(one.size_wh or found.image.size)] * 2)
        truth = {p: one.truth[name] * scale for p, name in enumerate(one.names) if name in one.truth}
        right = right_boxes(boxes, truth)
        there = np.array([name in one.truth for name in one.names], bool)
        labels, best = best_of_names(features, boxes.label)
        yield Examples(features, right, there[boxes.label], best, there[labels], found.second_look.of_names, there)


def right_boxes(boxes: Boxes, truth: Mapping[int, npt.NDArray[Any]]) -> Bools:
    """`[n]`, whether each box has IoU ≥ 0.5 with a true box `[m, 4]` of its label."""
    ious = [
        iou_matrix(box[None], truth[label]).max(initial=0) if label in truth else 0.0
        for box, label in zip(boxes.xyxy, boxes.label.tolist(), strict=True)
    ]
    return np.array(ious, np.float64) >= GOOD_IOU


def fit(parts: Sequence[Examples], weights: Sequence[float], models: Sequence[str], about: str) -> Calibration:
    """The calibration with the greatest likelihood.

    Args:
        parts: the examples of one set or more.
        weights: for each set, how much examples of names that are there count, beside 1 for the others.
        models: the names of the models that the examples are of.
        about: what the examples are, in a line.
    """
    every = Examples.together(parts)

    def counted(there: Callable[[Examples], Bools]) -> Floats:
        return np.concatenate([np.where(there(part), by, 1.0) for part, by in zip(parts, weights, strict=True)])

    def model(features: Floats, true: Bools, there: Callable[[Examples], Bools]) -> Logistic:
        return fit_logistic(features, true, counted(there))

    return Calibration(
        right=model(every.of_boxes, every.right, lambda part: part.box_there),
        there=model(every.of_names, every.there, lambda part: part.there),
        first=model(every.of_all, every.all_there, lambda part: part.all_there),
        base=float(np.average(every.all_there, weights=counted(lambda part: part.all_there))),
        models=tuple(models),
        about=about,
    )


# ---------------------------------------------------------------------------------------------------------- the command
@dataclass(frozen=True)
class Held:
    """How chances hold in pictures."""

    box_error: float  # expected calibration error of the scores of boxes
    box_precision: float  # average precision of boxes by score
    name_error: float  # expected calibration error of presence, of names with boxes

    @classmethod
    def of(cls, pictures: Sequence[Examples], by: Sequence[Calibration]) -> Held:
        """Of these pictures, each by its own calibration."""
        every = Examples.together(pictures)
        score = np.concatenate([one.right(own.of_boxes) for own, one in zip(pictures, by, strict=True)])
        presence = np.concatenate([one.there(own.of_names) for own, one in zip(pictures, by, strict=True)])
        return cls(
            reliability(score, every.right), average_precision(score, every.right), reliability(presence, every.there)
        )


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and how it holds in pictures that it was not fitted to."""

    calibration: Calibration  # fitted to all pictures
    before: Held  # by the calibration that the localizer had
    after: Held  # each picture by a calibration that was fitted to other folds
    pictures: int
    boxes: int
    right: int  # number of boxes that are right

    def document(self) -> dict[str, Any]:
        """The result as `--json` prints it."""
        return {**asdict(self), "calibration": self.calibration.document()}

    def table(self) -> list[tuple[str, str, str]]:
        """A header, then a row for each number."""
        titles = {
            "box_error": "boxes: expected calibration error of scores",
            "box_precision": "boxes: average precision by score",
            "name_error": "names: expected calibration error of presence",
        }
        before, after = asdict(self.before), asdict(self.after)
        rows = [(title, f"{before[key]:.3f}", f"{after[key]:.3f}") for key, title in titles.items()]
        return [("on pictures that were not in the fit", "before", "after"), *rows]


def calibrate(localizer: Localizer, dataset: AskedDataset, reporter: Reporter = SILENT) -> Calibrated:
    """Fits the second look of a localizer to pictures with true boxes.

    Args:
        reporter: gets the phases "examples" and "fit", the numbers of pictures, and each picture that failed.

    Raises:
        UsageError: there are too few pictures or right boxes, or nothing to tell apart.
    """
    entries = class_entries(dataset)
    asked = [
        Asked(
            one.path,
            [entries[label] for label in one.labels],
            {entries[label]: boxes for label, boxes in one.truth.items()},
            one.size_wh,
        )
        for one in dataset.samples
    ]
    reporter.phase("examples")
    reporter.start(len(asked), len(asked))
    pictures = list(examples_of(localizer, asked, reporter))
    right = sum(int(one.right.sum()) for one in pictures)
    if len(pictures) < FEWEST_PICTURES or right < FEWEST_RIGHT:
        raise UsageError(
            f"expected at least {FEWEST_PICTURES} pictures and {FEWEST_RIGHT} right boxes to fit, got {len(pictures)} "
            f"and {right}: take more pictures"
        )
    reporter.phase("fit")
    models = (localizer.backbone.name,)
    about = f"{dataset.name} {dataset.split}, {len(pictures)} pictures"
    folds = []
    for fold in range(FOLDS):
        others = Examples.together(one for i, one in enumerate(pictures) if i % FOLDS != fold)
        for what, true in (("boxes that are right", others.right), ("names that are there", others.all_there),
                           ("names with boxes that are there", others.there)):  # fmt: skip
            if true.all() or not true.any():
                raise UsageError(
                    f"expected {what} and others that are not, got {'only' if true.all() else 'none of'} these in "
                    f"{FOLDS - 1} of {FOLDS} folds: take pictures with and without each name"
                )
        folds.append(fit([others], [1.0], models, about))
    return Calibrated(
        fit([Examples.together(pictures)], [1.0], models, about),
        Held.of(pictures, [localizer.calibration] * len(pictures)),
        Held.of(pictures, [folds[i % FOLDS] for i in range(len(pictures))]),
        len(pictures),
        sum(len(one.right) for one in pictures),
        right,
    )


def reviewed_pictures(out: Path, draw: Draw) -> AskedDataset:
    """The pictures of an annotation that a person has reviewed, each asked for all labels of the run."""
    manifest = folder.read_manifest(out, KIND)
    run, texts = AnnotatedFolder.of_run(out, manifest), prompts.parse(list(manifest["labels"]))
    run.show([PictureFile(name, path_of(name, run.root, out)) for name in run.results.places])
    whole = {*run.corrected_whole(), *(name for name, one in run.reviews.items() if one["status"] == "reviewed")}
    pictures, problems = [], []
    for number, file in enumerate(run.annotated(), start=1):
        if file.id not in whole:
            continue
        if content_digest(file) != run.results.row(file.id)["blake2b"]:
            problems.append(Problem("missing picture", file.id, "moved, or replaced since it was annotated: left out"))
            continue
        held = run.reviewed(run.picture(file, number, all_boxes=True))
        truth: dict[int, list[Sequence[float]]] = {}
        for box, label in zip(held.boxes, held.labels, strict=True):
            truth.setdefault(label, []).append(box)
        boxes = {label: np.array(of_label, np.float32) for label, of_label in truth.items()}
        pictures.append(AskedPicture(file.id, file.path, held.drafts.size_wh, tuple(range(len(texts))), boxes))
    if not pictures:
        raise UsageError(f"expected reviewed pictures in {out}, found none: review some with cliploc review {out}")
    classes = tuple(ClassName(words[0], words) for words in texts.synonyms)
    samples = draw.of(pictures, lambda one: one)
    return AskedDataset("reviewed", out, "reviewed", "tune", classes, samples, tuple(problems))
