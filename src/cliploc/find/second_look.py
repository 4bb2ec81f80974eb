"""What the tower reads inside each box, against a bank of other names → chances of boxes and names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.boxes import BoxRule
from cliploc.boxes.components import are_first
from cliploc.boxes.reasons import NO_SCORE, absence
from cliploc.boxes.score import high_enough
from cliploc.find.calibration import OF_BOX, UNSURE, Calibration, logit
from cliploc.find.presence import Rivals
from cliploc.images.geometry import Frame
from cliploc.localization import PresenceRule
from cliploc.values import BoolArray, Boxes, FloatArray, Floats, IntArray

REGIONS = 3  # squares along the picture's shorter side, besides those between them; docs/studies/presence.md
MOST_REGIONS = 32  # along a side: those of a narrow strip have gaps
ROUNDING = 1e-6  # so that rounding makes no further square
MOST_BOXES = 4096  # of which the readings are taken at once; bounds the memory


class Judgement(NamedTuple):
    """What a second look says."""

    boxes: Boxes  # of the names found, by chance, best first within each name
    unsure: Boxes  # of the names that may be there, also by chance
    presence: FloatArray  # [P] the chance that a name is in the picture
    reasons: tuple[str | None, ...]  # why a name is not found; None where it is
    candidates: Boxes  # all boxes that were looked at, by chance, without those that fit a contrast better
    map_scores: FloatArray  # [n] before the second look
    contrasted: BoolArray  # [P] names whose boxes, all or all that count, fit their contrast better

    def scaled(self, ratio: FloatArray) -> Self:
        """For a copy of the picture of another size."""
        boxes, unsure = (replace(boxes, xyxy=boxes.xyxy * ratio) for boxes in (self.boxes, self.unsure))
        return self._replace(boxes=boxes, unsure=unsure)


@dataclass(frozen=True, eq=False)
class SecondLook:
    """A second look at the boxes of one picture."""

    calibration: Calibration
    frame: Frame  # how the picture lies in the input
    places: Tensor  # [D, h, w] what the tower reads in each place of it
    rivals: Rivals  # of the P names
    of_names: Floats  # [P, F]; see `calibration.OF_NAME`
    competes: BoolArray  # [P]; not a name that pictures stand for
    contrasts: Sequence[tuple[str, ...]]  # of each of the P names, the words that it is told from; () for none
    learnt: Sequence[int]  # names whose maps are drawn by what was learnt: their boxes are judged by the map
    alike: Floats  # [P] see `Texts.learnt_presence`
    min_presence: float  # from which a name is found
    rule: PresenceRule  # whether the chances are fitted to the model

    def calibrated(self) -> BoolArray:
        """`[P]`, the names whose boxes are judged by what they show, and not by their maps alone."""
        calibrated = self.competes.copy()
        calibrated[list(self.learnt)] = False
        return calibrated

    @property
    def size(self) -> int:
        """Bytes of what it holds of the picture."""
        return self.places.numel() * self.places.element_size()

    def judge(self, boxes: Boxes, reasons: Sequence[str | None], rule: BoxRule) -> Judgement:
        """Boxes of maps with the chances that they are right; a name is found from `min_presence` on, else unsure."""
        chance, presence = self.chances(boxes)
        passes = self._passes()
        presence = np.where(passes, presence, self.calibration.first(self.of_names))
        doubted, labels = passes & (presence >= UNSURE), np.unique(boxes.label)
        order = np.lexsort((-chance, boxes.label))  # a stable sort
        every = replace(boxes.where(order), score=chance[order].astype(np.float32))
        # The best box of a name is the best of all, so that one that fits its contrast makes no worse one a find.
        high, likely = (high_enough(every.score, every.label, least) for least in (rule.min_score, "auto"))
        stays = ~self.contrast_fits(every)
        contrasted = np.zeros(len(reasons), bool)
        contrasted[every.label[~stays]] = True
        contrasted[every.label[stays & (high | likely)]] = False
        every, high, likely = every.where(stays), high[stays], likely[stays]
        first = are_first(every.label, rule.max_boxes)
        high &= first
        why_not = list(reasons)
        for p in labels.tolist():
            if contrasted[p]:
                why_not[p] = f"{self.contrasts[p][0]!r} fits better inside its boxes"
            elif presence[p] < self.min_presence:
                why = absence(float(presence[p]), self.min_presence, self.rule)
                why_not[p] = why.removeprefix("not in the picture: ") if doubted[p] else why
            elif p not in every.label[high]:
                why_not[p] = f"{NO_SCORE} {rule.min_score:g} or more"
        found = np.array([reason is None for reason in why_not], bool)
        doubtful = (~found & doubted)[every.label] & first & likely
        sure, unsure = every.where(found[every.label] & high), every.where(doubtful)
        of_names = (presence.astype(np.float32), tuple(why_not))
        return Judgement(sure, unsure, *of_names, every, boxes.score[order][stays], contrasted)

    def absences(self, reasons: Sequence[str | None]) -> list[str | None]:
        """These reasons why names are not there, and those of names that `judge` rules out whatever boxes they have."""
        passes, first = self._passes(), self.calibration.first(self.of_names)
        return [
            absence(float(chance), self.min_presence, self.rule) if reason is None and not passing else reason
            for reason, passing, chance in zip(reasons, passes, first, strict=True)
        ]

    def _passes(self) -> BoolArray:
        """`[P]`, the names whose boxes count."""
        return self.calibration.passes(self.of_names, self.min_presence) | ~self.competes | (self.alike >= UNSURE)

    def chances(self, boxes: Boxes) -> tuple[Floats, Floats]:
        """Of boxes with the scores of their maps: that each is right, `[n]`, and that each name is there, `[P]`."""
        features = self.features(boxes)
        right = np.where(self.competes[boxes.label], self.calibration.right(features), boxes.score)
        presence = self.calibration.first(self.of_names)
        labels, best = best_of_names(features, boxes.label)
        presence[labels] = self.calibration.there(best)
        presence[~self.competes] = 1.0
        presence[[p for p in self.learnt if not self.competes[p]]] = np.nan  # not known
        presence = np.fmax(presence, self.alike)
        of_learnt = np.isin(boxes.label, self.learnt)
        # As drafts are scored: what is inside of boxes counts by the name's presence only.
        right = np.where(of_learnt, boxes.score * np.nan_to_num(presence, nan=1.0)[boxes.label], right)
        return right, presence

    def features(self, boxes: Boxes) -> Floats:
        """`[n, F]` of boxes; see `calibration.OF_BOX`."""
        if not len(boxes):
            return np.zeros((0, len(OF_BOX)))
        height, width = self.frame.original_hw
        sides = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).astype(np.float64)
        area = np.log((sides.prod(axis=1) / (height * width)).clip(min=1e-5))
        inside, rank = np.concatenate([self._inside(some) for some in _parts(boxes)], axis=1)
        best = np.full(len(self.of_names), -np.inf)
        np.maximum.at(best, boxes.label, inside)
        of_box = np.stack([logit(boxes.score), area, inside, inside - best[boxes.label]], axis=1)
        in_bank, label = self.rivals.in_bank, boxes.label
        return np.concatenate([self.of_names[label], of_box, in_bank[label], rank[:, None]], axis=1)

    def _inside(self, boxes: Boxes) -> Floats:
        """`[2, n]` of what boxes show: how far a name lies above its rivals, and the logarithm of its rank."""
        above, rank = self.rivals.z_scores_of(*self._read(boxes))
        return torch.stack([above, rank.log()]).double().cpu().numpy()

    def contrast_fits(self, boxes: Boxes) -> BoolArray:
        """`[n]`, whether what a box shows is at least as near to its name's contrast as to the name."""
        names, contrasts = self.rivals.names, self.rivals.contrasts
        fits = np.zeros(len(boxes), bool)
        if contrasts is not None and len(boxes):
            seen = [self._read(some) for some in _parts(boxes)]
            nearer = [((contrasts - names)[label] * read).sum(dim=1) >= 0 for read, label in seen]  # not where NaN
            fits = torch.cat(nearer).cpu().numpy()
        return fits

    def _read(self, boxes: Boxes) -> tuple[Tensor, Tensor]:
        """`[n, D]` unit norm, what the tower reads inside boxes, and their names `[n]`."""
        read = F.normalize(mean_in(self.places, self.frame, boxes.xyxy), dim=-1)
        return read, torch.from_numpy(boxes.label).to(read.device)


def _parts(boxes: Boxes) -> list[Boxes]:
    """A few boxes at a time."""
    return [boxes.where(np.arange(len(boxes))[i : i + MOST_BOXES]) for i in range(0, len(boxes), MOST_BOXES)]


def best_of_names(features: Floats, label: IntArray) -> tuple[IntArray, Floats]:
    """The names with boxes, `[m]`, and the best of each feature `[m, F]` over a name's boxes; of ranks the least."""
    labels, index = np.unique(label, return_inverse=True)
    best = np.full((len(labels), features.shape[1]), -np.inf)
    np.maximum.at(best, index, np.concatenate([features[:, :-1], -features[:, -1:]], axis=1))
    best[:, -1] *= -1
    return labels, best


def regions_of(frames: Sequence[Frame], places: Tensor) -> list[Tensor]:
    """For each picture, what the tower reads in overlapping squares of it, `[R, D]` unit norm, from `[B, D, h, w]`.

    A small thing fits such a square better than the whole picture, as it fits a window, but no further pass is needed.
    """
    regions = []
    for frame, of_picture in zip(frames, places, strict=True):
        x0, y0, x1, y1 = frame.to_original(np.array(frame.visible_xyxy))[0].tolist()
        side = min(x1 - x0, y1 - y0) / REGIONS
        lefts, tops = (
            np.linspace(start, end - side, min(1 + math.ceil(2 * (end - start - side) / side - ROUNDING), MOST_REGIONS))
            for start, end in ((x0, x1), (y0, y1))
        )
        corners = np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)
        boxes = np.concatenate([corners, corners + side], axis=1).astype(np.float32)
        regions.append(F.normalize(mean_in(of_picture, frame, boxes), dim=-1))
    return regions


def mean_in(places: Tensor, frame: Frame, xyxy: npt.ArrayLike) -> Tensor:
    """The mean `[n, D]` of places `[D, h, w]` over a frame's input in boxes of original pixels; cells count in part."""
    height, width = places.shape[-2:]
    input_h, input_w = frame.input_hw
    on_grid = frame.to_input(xyxy) * np.array([width / input_w, height / input_h] * 2)  # in cells
    x0, y0, x1, y1 = torch.from_numpy(on_grid.T).to(places)
    rows, columns = _shares(y0, y1, height), _shares(x0, x1, width)  # [n, h], [n, w]
    shares = rows[:, :, None] * columns[:, None, :]  # [n, h, w]
    return shares.flatten(1) @ places.flatten(1).T


def _shares(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """`[n, cells]`, which part of each cell lies between start and end `[n]`, as shares of their sum."""
    edges = torch.arange(cells, device=start.device, dtype=start.dtype)
    covered = (torch.minimum(end[:, None], edges + 1) - torch.maximum(start[:, None], edges)).clamp(min=0)
    return covered / covered.sum(dim=1, keepdim=True).clamp(min=1e-6)
