"""Pictures drawn again from their lessons with what was learnt: in threads, or many pictures by processes of their own.

Most of the work holds Python's lock, so threads share one core. The rows do not depend on who draws them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cliploc.boxes import BoxRule
from cliploc.calibration import UNSURE, Floats
from cliploc.jobs.annotator import LEAST_FIT, BoxCandidate, Row, grouped
from cliploc.jobs.lessons import Lessons
from cliploc.localization import boxes_of
from cliploc.masks import box_masks
from cliploc.metrics import one_thread
from cliploc.rle import encode
from cliploc.teaching.directions import projected
from cliploc.teaching.learnt import drawn
from cliploc.teaching.lesson import Lesson
from cliploc.teaching.sides import moved, readings
from cliploc.values import Boxes, FloatArray

if TYPE_CHECKING:
    from cliploc.jobs.teach import Directions

A = TypeVar("A")
B = TypeVar("B")
TOGETHER = 32  # pictures that are drawn together: those of a part
FEWEST_EACH = 1000  # pictures for a process, which takes seconds to start
MOST_PROCESSES = 4  # each has a torch of its own


@dataclass(frozen=True)
class Drawing:
    """How boxes are made of taught maps, as a run's settings have it."""

    rule: BoxRule
    level: float | None  # τ of the step `level`; None without it
    groups: str
    masks: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Drawing:
        """That of a run."""
        rule = BoxRule(**{option.name: settings[option.name] for option in fields(BoxRule)})
        level = settings["teaching"]["level"]
        return cls(rule, level, settings["groups"], bool(settings.get("masks", False)))

    def candidates(self, lesson: Lesson, p: int, heat: FloatArray) -> Candidates:
        """The boxes of a name's map `[H, W]`, best first."""
        found = boxes_of(lesson.frame, heat[None], np.ones(1, bool), ("",), self.rule)
        kept = found.score >= LEAST_FIT
        kept[:1] = True
        boxes = grouped(lesson.frame, heat, (found.xyxy[kept], found.score[kept]), p, self.rule, self.groups)
        xyxy = np.array([box.xyxy for box in boxes], np.float32).reshape(-1, 4)
        return Candidates(heat, boxes, xyxy, readings(xyxy, heat, lesson.frame))

    def row(
        self,
        lesson: Lesson,
        presence: Mapping[int, float],  # label → chance of each taught name
        found: Mapping[int, Candidates],  # of those that may be there
        sides: Mapping[int, Floats],  # label → how the sides of its boxes are moved
    ) -> Row:
        """A picture's row of the taught names, but for the picture."""
        boxes: list[BoxCandidate] = []
        masks: list[str] = []
        for p, one in found.items():
            xyxy = moved(one.xyxy, sides[p], one.read, lesson.frame)
            boxes += [replace(candidate, xyxy=box) for candidate, box in zip(one.boxes, xyxy, strict=True)]
            if self.masks:
                count = len(one.boxes)
                on_map = Boxes(xyxy, np.ones(count, np.float32), np.zeros(count, np.int64), ("",))
                masks += [
                    encode(mask)["counts"] for _, mask in box_masks(lesson.frame, one.heat[None], on_map, self.rule)
                ]
        row: Row = {
            "presence": {str(p): chance for p, chance in presence.items()},
            "boxes": [[round(float(side), 2) for side in box.xyxy] for box in boxes],
            "fits": [round(box.fit, 4) for box in boxes],
            "labels": [box.label for box in boxes],
            "groups": [int(box.group) for box in boxes],
        }
        return {**row, "masks": masks} if self.masks else row


@dataclass(frozen=True)
class Candidates:
    """One name's boxes in a picture, before their sides are moved."""

    heat: FloatArray  # [H, W] the map that they are of
    boxes: Sequence[BoxCandidate]  # best first
    xyxy: FloatArray  # [n, 4] the same
    read: Floats  # at their sides; see `teaching.sides`


@dataclass(frozen=True)
class Drawer:
    """Draws the pictures of a run with the directions of its names; can be sent to another process."""

    lessons: Lessons
    drawing: Drawing
    known: Directions
    chances: Mapping[str, Mapping[int, float]]  # picture → label → the chance of a taught name before it was taught

    def rows(self) -> Iterator[Row]:
        """A row of the taught names for each picture, in order."""
        pictures = [*self.chances]
        several = [pictures[start : start + TOGETHER] for start in range(0, len(pictures), TOGETHER)]
        count = min(torch.get_num_threads(), MOST_PROCESSES, len(pictures) // FEWEST_EACH)
        if count < 2:
            yield from itertools.chain.from_iterable(each(self.draw, several))
            return
        begun: list[subprocess.Popen[bytes]] = []
        try:
            with contextlib.suppress(OSError):  # those that there are do it
                for _ in range(count):
                    begun.append(_begin())
            for k, process in enumerate(begun):  # each draws every so many-th of these lots
                assert process.stdin is not None
                with contextlib.suppress(OSError), process.stdin as job:
                    pickle.dump((self, several[k :: len(begun)]), job)
            for number, lot in enumerate(several):
                source = begun[number % len(begun)].stdout if begun else None
                line = b"" if source is None else source.readline()
                yield from json.loads(line) if line.endswith(b"\n") else self.draw(lot)  # what is not delivered
        finally:
            for process in begun:
                with process:
                    process.kill()

    def draw(self, pictures: Sequence[str]) -> list[Row]:
        """The rows of some pictures; those with the same names are drawn together, which is faster."""
        lessons, presence = self.lessons.each(pictures), list[dict[int, float]]()
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, (picture, lesson) in enumerate(zip(pictures, lessons, strict=True)):
            chances: dict[int, float] = {}  # of each taught name
            for p, chance in self.chances[picture].items():
                corrected = self.known.presence.get(p)
                chances[p] = round(chance if corrected is None else corrected(lesson.embedding, chance), 4)
            presence.append(chances)
            labels = tuple(p for p, chance in chances.items() if chance >= UNSURE)
            alike.setdefault(labels, []).append(i)
        rows: dict[int, Row] = {}
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
                found = {p: self.drawing.candidates(lessons[i], p, heat) for p, heat in pairs}
                rows[i] = self.drawing.row(lessons[i], presence[i], found, self.known.sides)
        return [rows[i] for i in range(len(pictures))]


def _begin() -> subprocess.Popen[bytes]:
    """A process that waits for its job: not a fork, which can hang; nor multiprocessing's, which runs scripts again."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"sys.path[:] = {sys.path!r}; from cliploc.jobs.redraw import work; work()"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-I", "-c", code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)


def work() -> None:
    """Draws in a process of its own: a `Drawer` and lots of pictures from its input, a line of rows a lot."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    torch.set_num_threads(1)
    one_thread()
    drawer, several = pickle.load(sys.stdin.buffer)
    for pictures in several:
        out.write(json.dumps(drawer.draw(pictures)).encode("ascii") + b"\n")
        out.flush()


def each(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """The results of some work on pictures, in order, made by several threads."""
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        yield from pool.map(work, items)
