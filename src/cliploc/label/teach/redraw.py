"""Pictures drawn again from their lessons with what was learnt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cliploc.boxes import BoxRule
from cliploc.boxes.masks import box_masks
from cliploc.boxes.reasons import boxes_of
from cliploc.boxes.sides import moved, readings
from cliploc.find.calibration import UNSURE
from cliploc.find.learnt import Lesson, drawn, projected
from cliploc.images.rle import encode
from cliploc.label.teach.lessons import lessons_of
from cliploc.label.worker import LEAST_FIT
from cliploc.runs.label_store import Candidate, LabellingRun, Picture, TaughtPicture
from cliploc.values import Boxes, FloatArray, Floats

if TYPE_CHECKING:
    from cliploc.label.teach.teach import Directions

A = TypeVar("A")
B = TypeVar("B")
TOGETHER = 32  # pictures that are drawn together: a query of their lessons


@dataclass(frozen=True)
class Drawing:
    """How boxes are made of taught maps, as a run's settings have it."""

    rule: BoxRule
    level: float | None  # τ of the step `level`; None without it
    masks: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Drawing:
        """That of a run."""
        rule = BoxRule(**{option.name: settings[option.name] for option in fields(BoxRule)})
        level = settings["teaching"]["level"]
        return cls(rule, level, bool(settings.get("masks", False)))

    def found(self, lesson: Lesson, heat: FloatArray) -> OnMap:
        """The boxes of a name's map `[H, W]`, best first."""
        every = boxes_of(lesson.frame, heat[None], np.ones(1, bool), ("",), self.rule)
        likely = every.score >= LEAST_FIT
        likely[:1] = True
        boxes = every.where(likely)
        return OnMap(heat, boxes, readings(boxes.xyxy, heat, lesson.frame))

    def boxes(
        self,
        lesson: Lesson,
        found: Mapping[int, OnMap],  # of the taught names that may be there
        sides: Mapping[int, Floats],  # label → how the sides of its boxes are moved
    ) -> list[Candidate]:
        """A picture's boxes of the taught names."""
        made: list[Candidate] = []
        for p, one in found.items():
            xyxy, count = moved(one.boxes.xyxy, sides[p], one.read, lesson.frame), len(one.boxes)
            masks: list[str | None] = [None] * count
            if self.masks:
                on_map = Boxes(xyxy, np.ones(count, np.float32), np.zeros(count, np.int64), ("",))
                drawn_masks = box_masks(lesson.frame, one.heat[None], on_map, self.rule)
                masks = [encode(mask)["counts"] for _, mask in drawn_masks]
            for score, corners, mask in zip(one.boxes.score.tolist(), xyxy.tolist(), masks, strict=True):
                x0, y0, x1, y1 = (round(side, 2) for side in corners)
                fit = round(score, 4)
                made.append(Candidate(p, (x0, y0, x1, y1), fit, fit, mask))
        return made


@dataclass(frozen=True)
class OnMap:
    """One name's boxes in a picture, before their sides are moved."""

    heat: FloatArray  # [H, W] the map that they are of
    boxes: Boxes  # best first
    read: Floats  # at their sides; see `teaching.sides`


@dataclass(frozen=True)
class Drawer:
    """Draws the pictures of a run with the directions of its names."""

    run: LabellingRun
    drawing: Drawing
    known: Directions
    pictures: Sequence[Picture]
    chances: Sequence[Mapping[int, float]]  # of each: label → the chance of a taught name before it was taught

    def rows(self) -> Iterator[TaughtPicture]:
        """The taught names of each picture, in order."""
        pictures = range(len(self.pictures))
        several = [pictures[start : start + TOGETHER] for start in range(0, len(pictures), TOGETHER)]
        return itertools.chain.from_iterable(each(self._draw, several))

    def _draw(self, pictures: Sequence[int]) -> list[TaughtPicture]:
        """Some of the pictures; those with the same names are drawn together, which is faster."""
        lessons, presence = lessons_of(self.run, [self.pictures[i] for i in pictures]), list[dict[int, float]]()
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, (picture, lesson) in enumerate(zip(pictures, lessons, strict=True)):
            chances: dict[int, float] = {}  # of each taught name
            for p, chance in self.chances[picture].items():
                corrected = self.known.presence.get(p)
                chances[p] = round(chance if corrected is None else corrected(lesson.embedding, chance), 4)
            presence.append(chances)
            labels = tuple(p for p, chance in chances.items() if chance >= UNSURE)
            alike.setdefault(labels, []).append(i)
        rows: dict[int, TaughtPicture] = {}
        for labels, ids in alike.items():
            maps: Iterable[Tensor] = itertools.repeat(torch.zeros(0))
            if labels:
                directions, share = zip(*(self.known.directions[p] for p in labels), strict=True)
                weights, bias = self.known.whitening.unwhitened(directions)
                some = [lessons[i] for i in ids]
                like = torch.stack([projected(weights, bias, lesson.maps_of_features()) for lesson in some])
                maps = drawn(some, labels, like, share, self.drawing.level)
            for i, of_picture in zip(ids, maps, strict=False):
                pairs = zip(labels, of_picture.numpy(), strict=True)
                found = {p: self.drawing.found(lessons[i], heat) for p, heat in pairs}
                name, boxes = self.pictures[pictures[i]].name, self.drawing.boxes(lessons[i], found, self.known.sides)
                rows[i] = TaughtPicture(name, presence[i], boxes)
        return [rows[i] for i in range(len(pictures))]


def each(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """The results of some work on pictures, in order, made by several threads."""
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        yield from pool.map(work, items)
