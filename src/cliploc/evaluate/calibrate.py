"""Fits the second look to pictures with true boxes, in a folder that can be resumed; see docs/presence.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.evaluate.data import PromptedDataset
from cliploc.evaluate.metrics import average_precision
from cliploc.evaluate.tasks import task, worker
from cliploc.evaluate.tasks.rows import OF_PICTURE
from cliploc.find.calibration import OF_BOX, OF_NAME, Calibration, fit_logistic, reliability
from cliploc.find.recipes import settings_of
from cliploc.find.second_look import best_of_names
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.runs import plan, store
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Floats

FEWEST_RIGHT, FEWEST_PICTURES = 30, 20  # right boxes and pictures, below which nothing is fitted
FOLDS = 5  # of pictures; each is measured by a fit to the others
SHARD = 8  # pictures that are computed and written together
WITH_AND_WITHOUT = "take pictures with and without each name"


@dataclass(frozen=True)
class Examples:
    """What a second look reads in pictures, and what is true."""

    of_boxes: Floats  # [n, F] of boxes
    right: worker.Bools  # [n] whether the box has IoU ≥ 0.5 with a thing of its name
    box_present: worker.Bools  # [n] whether its name is there
    of_names: Floats  # [m, F] the best of each name's boxes
    present: worker.Bools  # [m] whether the name is there
    of_all: Floats  # [k, 2] of all names asked, without their boxes
    all_present: worker.Bools  # [k]

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self:
        """The examples of several sets or pictures as one."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


def examples_in(localization: Localization, names: Sequence[str], truth: Mapping[int, npt.NDArray[Any]]) -> Examples:
    """The examples of one picture; `truth`: place among the names → true boxes `[m, 4]`, of those that are there."""
    assert localization.second_look is not None
    assert localization.judged is not None
    boxes = replace(localization.judged.candidates, score=localization.judged.map_scores)
    features = localization.second_look.features(boxes)
    present = np.array([p in truth for p in range(len(names))], bool)
    labels, best = best_of_names(features, boxes.label)
    right = worker.right_boxes(boxes, truth)
    return Examples(
        features, right, present[boxes.label], best, present[labels], localization.second_look.of_names, present
    )


def fit_calibration(
    parts: Sequence[Examples], weights: Sequence[float], models: Sequence[str], about: str
) -> Calibration:
    """The calibration of greatest likelihood; `weights`: of each set's names that are there, beside 1 for others."""
    every = Examples.together(parts)
    pairs = list(zip(parts, weights, strict=True))

    def fitted(features: Floats, right: worker.Bools, present: str) -> Any:
        return fit_logistic(
            features, right, np.concatenate([np.where(vars(one)[present], by, 1.0) for one, by in pairs])
        )

    return Calibration(
        right=fitted(every.of_boxes, every.right, "box_present"),
        there=fitted(every.of_names, every.present, "present"),
        first=fitted(every.of_all, every.all_present, "all_present"),
        models=tuple(models),
        about=about,
    )


# ---------------------------------------------------------------------------------------------------------- the command
class UnfitError(UsageError):
    """Pictures do not suffice to fit."""


@dataclass(frozen=True)
class Reliability:
    """How chances hold in pictures."""

    box_error: float  # expected calibration error of the scores of boxes
    box_precision: float  # average precision of boxes by score
    name_error: float  # expected calibration error of presence, of names with boxes

    @classmethod
    def of(cls, pictures: Sequence[Examples], by: Sequence[Calibration]) -> Self:
        """Of these pictures, each by its own calibration."""
        every = Examples.together(pictures)
        pairs = list(zip(pictures, by, strict=True))
        score = np.concatenate([calibration.right(one.of_boxes) for one, calibration in pairs])
        presence = np.concatenate([calibration.there(one.of_names) for one, calibration in pairs])
        return cls(
            reliability(score, every.right), average_precision(score, every.right), reliability(presence, every.present)
        )


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and how it holds in pictures that it was not fitted to."""

    calibration: Calibration  # fitted to all pictures
    before: Reliability  # by the calibration that the localizer had
    after: Reliability  # each picture by a calibration that was fitted to other folds
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


# A row for each picture: its `Examples`.
COLUMNS = {
    **OF_PICTURE,
    **{column.name: "double[][]" if column.name.startswith("of_") else "bool[]" for column in fields(Examples)},
}
TASK = task.BenchmarkTask("calibration", 3, (), lambda: COLUMNS)


class ExamplesEvaluator(worker.NameEvaluator):
    """Makes the examples of pictures."""

    keep_maps = True  # the second look goes with the maps

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        self.localizer.flow.bank.every = 1  # what is fitted reads the whole bank

    def evaluate(self, seen: worker.Query, heat: Localization | None, *_: Any) -> store.Row:
        if heat is None:
            return {column.name: [] for column in fields(Examples)}
        examples = examples_in(heat, heat.names, seen.truth(heat.image.size))
        return {name: values.tolist() for name, values in vars(examples).items()}


def calibrate(localizer: Localizer, dataset: PromptedDataset, out: Path, reporter: Reporter = SILENT) -> Calibrated:
    """Fits the second look of a localizer to pictures with true boxes, in `out`, which is resumed."""
    # Said before hours of work, not after.
    if len(dataset) < FEWEST_PICTURES:
        raise UsageError(f"expected at least {FEWEST_PICTURES} pictures, got {len(dataset)}: take more pictures")
    if all(sample.truth.keys() >= {*sample.labels} for sample in dataset.samples):
        raise UnfitError(f"expected names that are there and others that are not, got only these: {WITH_AND_WITHOUT}")
    setup, setting = as_setting(localizer)
    evaluator_of = partial(ExamplesEvaluator, task.class_entries(dataset))
    task.run_task(
        TASK, evaluator_of, dataset, [setup], [setting], out, shard_size=SHARD, reporter=reporter, phase="examples"
    )  # fmt: skip
    rows = store.rows_in(out, Examples.__match_args__, "row.status = 'ok' AND row.all_present != '[]'")
    pictures = [Examples(**{name: _column(values, name) for name, values in row.items()}) for row in rows]
    reporter.phase("fit")
    about = f"{dataset.name} {dataset.split}, {len(pictures)} pictures"
    result = fitted(pictures, localizer.calibration, localizer.backbone.name, about)
    settings = settings_of(localizer.method.name, localizer.options)
    return replace(result, calibration=replace(result.calibration, settings=settings))


def as_setting(localizer: Localizer) -> tuple[plan.ModelSetup, plan.Setting]:
    """A localizer's own method with all its options, as one setting on its tower, which is not loaded again."""
    options = localizer.options
    setup = plan.ModelSetup(options.but(model=localizer.backbone, recipe=None, method=None, method_options={}))
    return setup, plan.Setting("own", 0, localizer.method.name, options.method_options)


def _column(values: Sequence[Any], name: str) -> npt.NDArray[Any]:
    """A column of a row as `Examples` has it, also where it is empty."""
    if not name.startswith("of_"):
        return np.array(values, bool)
    return np.array(values, np.float64).reshape(-1, len(OF_NAME if name == "of_all" else OF_BOX))


def fitted(pictures: Sequence[Examples], before: Calibration, model: str, about: str) -> Calibrated:
    """The calibration of these examples, and how it holds in pictures of other folds, beside `before`."""
    right = sum(int(picture.right.sum()) for picture in pictures)
    if len(pictures) < FEWEST_PICTURES or right < FEWEST_RIGHT:
        raise UnfitError(
            f"expected at least {FEWEST_PICTURES} pictures and {FEWEST_RIGHT} right boxes to fit, got {len(pictures)} "
            f"and {right}: take more pictures"
        )
    models, folds = (model,), []
    for fold in range(FOLDS):
        others = Examples.together(picture for i, picture in enumerate(pictures) if i % FOLDS != fold)
        for what, true in (("boxes that are right", others.right), ("names that are there", others.all_present),
                           ("names with boxes that are there", others.present)):  # fmt: skip
            if true.all() or not true.any():
                raise UnfitError(
                    f"expected {what} and others that are not, got {'only' if true.all() else 'none of'} these in "
                    f"{FOLDS - 1} of {FOLDS} folds: {WITH_AND_WITHOUT}"
                )
        folds.append(fit_calibration([others], [1.0], models, about))
    fitted = fit_calibration([Examples.together(pictures)], [1.0], models, about)
    return Calibrated(
        replace(fitted, lifts=before.lifts),  # as in the examples
        Reliability.of(pictures, [before] * len(pictures)),
        Reliability.of(pictures, [folds[i % FOLDS] for i in range(len(pictures))]),
        len(pictures),
        sum(len(picture.right) for picture in pictures),
        right,
    )
