"""Fits the second look to pictures with true boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cliploc.calibration import Calibration, Floats, Logistic, fit_logistic
from cliploc.geometry import iou_matrix
from cliploc.localizer import Localizer
from cliploc.pipeline.prepare import Request
from cliploc.pipeline.second_look import best_of_names
from cliploc.reporter import SILENT, Reporter
from cliploc.values import FloatArray

Bools = npt.NDArray[np.bool_]
RIGHT_IOU = 0.5


@dataclass(frozen=True)
class Asked:
    """A picture with the names to ask, and the true boxes `[k, 4]` of those that are in it."""

    path: Path
    names: Sequence[str]
    truth: Mapping[str, FloatArray]


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
            names = [name for name in one.names if name not in unknown]
            if names:
                waiting.append(Asked(one.path, names, one.truth))
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
        ious = [
            iou_matrix(box[None], one.truth[one.names[p]]).max(initial=0) if one.names[p] in one.truth else 0.0
            for box, p in zip(boxes.xyxy, boxes.label.tolist(), strict=True)
        ]
        there = np.array([name in one.truth for name in one.names], bool)
        labels, best = best_of_names(features, boxes.label)
        right = np.array(ious, np.float64) >= RIGHT_IOU
        yield Examples(features, right, there[boxes.label], best, there[labels], found.second_look.of_names, there)


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
