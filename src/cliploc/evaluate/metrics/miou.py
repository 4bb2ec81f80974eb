"""Segmentation metrics: IoU of every class over all pixels of a set, as in mmsegmentation; average precision."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError
from cliploc.evaluate.metrics import _base as base
from cliploc.values import Floats, ignored_label

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class PixelPairs:
    """How often each pair of true and predicted class occurs in a picture; pairs that do not occur are left out."""

    # [n] int16; −1 stands for labels that are no class, which count as false positives, as in mmsegmentation
    true: npt.NDArray[np.int16]
    predicted: npt.NDArray[np.int16]  # [n] int16
    pixels: npt.NDArray[np.int64]  # [n] int64


def pixel_pairs(image_id: str, predicted: Labels, truth: Labels, classes: int) -> PixelPairs:
    """Counts pairs of labels of one picture `[H, W]`, predicted from 0 to `classes` − 1, except `ignored_label`."""
    if predicted.shape != truth.shape:
        like, got = ("×".join(map(str, reversed(labels.shape))) for labels in (truth, predicted))
        raise InputError(
            f"{image_id}: expected a label map of {like} pixels, like the true one, got {got}: "
            "write it at the picture's size"
        )
    counted = truth != ignored_label(classes)
    guess = predicted[counted].astype(np.int64)  # [N]
    actual = truth[counted].astype(np.int64)  # [N]
    if len(guess) and not 0 <= guess.min() <= guess.max() < classes:
        wrong = int(guess.min() if guess.min() < 0 else guess.max())
        raise InputError(f"{image_id}: expected labels from 0 to {classes - 1}, got {wrong}: compare with the classes")
    row = np.where((actual >= 0) & (actual < classes), actual, classes)  # the last row: no class
    counts = np.bincount(row * classes + guess, minlength=(classes + 1) * classes)
    (pairs,) = counts.nonzero()
    true = pairs // classes
    return PixelPairs(
        np.where(true == classes, -1, true).astype(np.int16), (pairs % classes).astype(np.int16), counts[pairs]
    )


@dataclass(frozen=True)
class MeanIoUResult:
    """The numbers of a set of label maps, as shares; NaN for a class that is in no true and no predicted map."""

    n: int  # number of images
    miou: float  # mean of `iou` over the classes that have one
    interval: base.Interval  # its confidence interval (Poisson bootstrap over images)
    mean_accuracy: float  # mean of `accuracy` over the classes that have one
    pixel_accuracy: float  # share of the pixels of all classes with the right label
    iou: Floats  # [K] Σ intersection / Σ union of each class
    accuracy: Floats  # [K] Σ intersection / Σ true pixels of each class
    # [K + 1, K] pixels of each true and predicted class; the last row is of labels that are no class
    confusion: npt.NDArray[np.int64]


class MeanIoU:
    """mIoU: the mean over classes of Σ intersection / Σ union, the sums over all pixels of all images.

    The definition is mmsegmentation's (`intersect_and_union`, `mIoU`): ignored pixels are taken out of both maps first;
    a class without a pixel in either has no IoU and is left out of the mean. Only sums are stored, so memory does not
    grow with the number of images.

    Example:
        >>> metric = MeanIoU(2)
        >>> metric.update("a", np.array([[0, 1, 1, 1]]), np.array([[0, 0, 1, 255]]))
        >>> metric.compute().iou.tolist()
        [0.5, 0.5]
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._ids: set[str] = set()
        self._confusion = np.zeros((classes + 1, classes), np.int64)
        # Of each replicate and class: pixels of the intersection, and the predicted and the true ones together.
        self._drawn = np.zeros((2, classes, base.POISSON_REPLICATES), np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def update(self, image_id: str, predicted: Labels, truth: Labels) -> None:
        """Counts one image; arguments and errors are those of `pixel_pairs`, and a second time is a `UsageError`."""
        self.restore(image_id, pixel_pairs(image_id, predicted, truth, self.classes))

    def restore(self, image_id: str, pairs: PixelPairs) -> None:
        """Counts one image by its pairs; a second time is a `UsageError`."""
        base.check_new(image_id, self._ids)
        self._ids.add(image_id)
        np.add.at(self._confusion, (pairs.true, pairs.predicted), pairs.pixels)  # row −1 is the last
        draws = base.poisson_draws(image_id)
        right, real = pairs.true == pairs.predicted, pairs.true >= 0
        for sums, chosen, labels in (
            (self._drawn[0], right, pairs.true),
            (self._drawn[1], np.ones_like(real), pairs.predicted),
            (self._drawn[1], real, pairs.true),
        ):
            np.add.at(sums, labels[chosen], pairs.pixels[chosen, None] * draws)

    def compute(self, bootstrap: base.Bootstrap = base.DEFAULT) -> MeanIoUResult:
        """The result so far. The interval has 200 replicates for any `bootstrap` that has replicates."""
        n = base.check_any(len(self._ids))
        intersection = self._confusion[:-1].diagonal()  # [K]
        predicted, true = self._confusion.sum(axis=0), self._confusion[:-1].sum(axis=1)  # [K]
        iou = base.ratio(intersection, predicted + true - intersection)
        accuracy = base.ratio(intersection, true)
        interval = None
        if bootstrap.replicates:
            drawn, both = self._drawn  # each [K, R]
            means = base.known_mean(base.ratio(drawn, both - drawn))  # [R]
            means = means[np.isfinite(means)]  # with few images, a replicate may draw none of them
            interval = bootstrap.quantiles(means) if len(means) else None
        return MeanIoUResult(
            n,
            float(base.known_mean(iou)),
            interval,
            float(base.known_mean(accuracy)),
            float(base.ratio(intersection.sum(), true.sum())),
            iou,
            accuracy,
            self._confusion.copy(),
        )


def average_precision(scores: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Σ (R_i − R_{i−1}) · P_i over different scores `[n]`, as scikit-learn's; 0 where nothing is right."""
    values, hits = np.asarray(scores, np.float64).ravel(), np.asarray(right, np.bool_).ravel()
    if not hits.any():
        return 0.0
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)  # the last of equal scores
    right_so_far = hits[order].cumsum()[ends]
    precision, recall = right_so_far / (ends + 1), right_so_far / right_so_far[-1]
    return float((np.diff(recall, prepend=0) * precision).sum())
