"""Corrections that drafts need for 100 pictures, with and without teaching, after K of them were reviewed.

    python tools/corrections.py raccoon_dataset --truth voc --out OUT [--model mini-vit]

FOLDER has pictures with true boxes: `--truth` is their layout, a name of `cliploc datasets`, or `reviewed`, the folder
of `cliploc annotate`. The pictures are annotated into OUT, which a stopped run resumes. Then a person is played who
reviews K of them without mistakes: in random order, and in the order that `cliploc review` suggests, each for several
draws. Counted is what there is to do in the pictures that are left: drafts to delete, boxes to draw, and drafts with an
IoU of 0.5 to 0.7 to adjust. The constants of `cliploc.label.teach.teach` were chosen by this table, on the raccoons.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cliploc.cli.terminal import Terminal, titled
from cliploc.evaluate.data import Draw, PromptedDataset, open_prompted
from cliploc.evaluate.tasks.task import class_entries
from cliploc.find.prompts import Labels
from cliploc.images.geometry import iou_matrix
from cliploc.label.annotate import annotate
from cliploc.label.drafts import work_on
from cliploc.label.results import AnnotatedFolder, reviewed_pictures
from cliploc.label.teach.teach import FolderLearner
from cliploc.options import Options
from cliploc.runs.label_store import Correction, LabellingRun, TaughtPicture
from cliploc.runs.picture_files import FoundPictures, PictureFile, PromptedPicture, by_path
from cliploc.runs.store import FILE
from cliploc.values import FloatArray

ORDERS = ("random", "suggested")
UNKNOWN = "zzqx 4711"  # no model knows it
# Seconds. Drawn the traditional way, a box takes 25 to 35 (Su et al. 2012, "Crowdsourcing annotations for visual object
# detection": drawn once, and with checks); by clicks on its four sides 7 (Papadopoulos et al. 2017, "Extreme clicking
# for efficient object annotation"): no draft should take longer to put right, or to delete.
DRAW, CHANGE = (25.0, 35.0), 7.0
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Walk:
    """What is left to do after each of S steps."""

    left: npt.NDArray[np.bool_]  # [n, S] whether a picture is not reviewed yet
    taught: Floats  # [n, S, 3] of a picture that is left: to delete, draw and adjust


class Person:
    """Reviews the pictures of a run by their true boxes, in a copy of it."""

    def __init__(self, out: Path, pictures: Sequence[PromptedPicture], labels: Sequence[int]) -> None:
        """Opens a folder of `annotate`; `labels`: the dataset's label of each of its names."""
        files = [PictureFile(picture.id, picture.path) for picture in pictures]
        self._place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        shutil.copy(out / FILE, self._place.name)
        self._folder = AnnotatedFolder(LabellingRun.open(Path(self._place.name)), files)
        self._labels = labels
        by_name = {picture.id: picture for picture in pictures}
        self.pictures = [picture.id for picture in self._folder.annotated()]  # without those that cannot be read
        self._truth = {name: self._true(by_name[name]) for name in self.pictures}
        self.boxes = sum(len(boxes) for of in self._truth.values() for boxes in of.values())
        self._folder.taught_instead = {}
        self.untaught = np.array([self._work(picture) for picture in self.pictures])  # [n, 3]
        self._alone = self._learnt(())  # what the folder teaches itself, before anything is reviewed

    def walk(self, order: str, draw: int, steps: Sequence[int]) -> Walk:
        """Reviews so many pictures at each step; of equally certain ones the draw says which comes first."""
        drawn = random.Random(f"cliploc {draw}").sample(sorted(self.pictures), len(self.pictures))
        ties = {picture: place for place, picture in enumerate(drawn)}
        reviewed: list[str] = []
        left, taught = np.ones((len(ties), len(steps)), bool), np.zeros((len(ties), len(steps), 3))
        self._folder.taught_instead = self._alone
        self._review(())
        for i, step in enumerate(steps):
            others = [picture for picture in self.pictures if picture not in {*reviewed}]
            suggested = order == "suggested"
            margins = {picture: self._folder.view(picture).chosen.margin for picture in others} if suggested else {}
            others.sort(key=lambda picture: (margins.get(picture, 0.0), ties[picture]))
            reviewed += others[: step - len(reviewed)]
            if reviewed:
                self._folder.taught_instead = self._learnt(reviewed)
            for n, picture in enumerate(self.pictures):
                left[n, i] = picture not in {*reviewed}
                if left[n, i]:
                    taught[n, i] = self._work(picture)
        return Walk(left, taught)

    def like(self, draw: int) -> npt.NDArray[np.int64]:
        """By the only name's boxes in a picture: unsure boxes, those on pictures that show it, and right ones."""
        one = random.Random(f"cliploc {draw}").choice(
            sorted(name for name, of in self._truth.items() if len(of.get(0, ())))
        )
        run, boxes = self._folder.run, self._truth[one][0].tolist()
        self._review(())
        run.save(self._folder.pictures[one], "none", Correction(boxes, [0] * len(boxes)))
        run.exemplars = {run.names[0]: one}
        self._folder.taught_instead = self._drawn()
        found = np.zeros(3, np.int64)
        for picture in self.pictures:
            view, true = self._folder.view(picture), self._truth[picture].get(0, np.zeros((0, 4)))
            if picture != one and (unsure := [*view.chosen.unsure]):
                hits = iou_matrix(view.found.xyxy[unsure], true).max(axis=1, initial=0.0) >= 0.5
                found += len(unsure), len(unsure) * bool(len(true)), int(hits.sum())
        return found

    def _learnt(self, reviewed: Sequence[str]) -> Mapping[str, TaughtPicture]:
        """The taught boxes of the pictures that are not reviewed."""
        self._review(reviewed)
        return self._drawn()

    def _drawn(self) -> Mapping[str, TaughtPicture]:
        """What is taught now."""
        self._folder.taught_instead = {}
        learner = FolderLearner(self._folder)
        _, known = learner.names()
        return {one.picture: one for one in learner.rows(known)}

    def _review(self, reviewed: Sequence[str]) -> None:
        """Reviews these pictures alone."""
        run, there = self._folder.run, {*reviewed}
        with run.store.transaction():
            for picture in self.pictures:
                pairs = [(box, p) for p, boxes in self._truth[picture].items() for box in boxes.tolist()]
                truth = Correction([box for box, _ in pairs], [p for _, p in pairs])
                done = ("reviewed", truth) if picture in there else ("none", None)
                run.save(self._folder.pictures[picture], *done)
        self._folder.update_prior()

    def _true(self, picture: PromptedPicture) -> dict[int, FloatArray]:
        """The true boxes of each name that may be asked, in pixels of the file."""
        (width, height), (own_width, own_height) = picture.size_wh, self._folder.pictures[picture.id].size_wh
        scale = np.array([own_width / width, own_height / height] * 2, np.float32)
        none = np.zeros((0, 4), np.float32)
        return {
            p: picture.truth.get(label, none) * scale for p, label in enumerate(self._labels) if label in picture.labels
        }

    def _work(self, picture: str) -> tuple[int, int, int]:
        """What there is to delete, draw and adjust among the drafts that are shown now."""
        drafts = self._folder.drafts(picture)
        work = [work_on(drafts.xyxy[drafts.labels == p], boxes) for p, boxes in self._truth[picture].items()]
        return sum(of.delete for of in work), sum(of.draw for of in work), sum(of.adjust for of in work)


# --------------------------------------------------------------------------------------------------------- the numbers
def numbers_of(untaught: Floats, walks: Sequence[Walk], step: int) -> dict[str, float | None]:
    """The numbers at one step, for 100 pictures that are left, with the standard error of what is saved."""
    left = np.stack([walk.left[:, step] for walk in walks])  # [R, n]
    taught = np.stack([walk.taught[:, step] for walk in walks])  # [R, n, 3]
    kinds = 100 * taught[left].mean(axis=0)
    before = np.broadcast_to(untaught.sum(axis=1), left.shape)
    saved = (before - taught.sum(axis=2)) * left
    return {
        "left": float(left[0].sum()),
        "untaught": float(100 * before[left].mean()),
        "taught": float(kinds.sum()),
        "saved": float(100 * saved[left].mean()),
        "saved_error": _error(saved, left),
        **dict(zip(("delete", "draw", "adjust"), kinds.tolist(), strict=True)),
        **minutes(*kinds.tolist()),
    }


def _error(saved: Floats, left: npt.NDArray[np.bool_]) -> float | None:
    """The standard error of the mean difference, for 100 pictures: from other pictures, and from other draws."""
    seen = left.any(axis=0)
    if seen.sum() < 2:
        return None
    of_pictures = saved.sum(axis=0)[seen] / left.sum(axis=0)[seen]
    variance = of_pictures.var(ddof=1) / len(of_pictures)
    if len(saved) > 1:
        of_draws = saved.sum(axis=1) / left.sum(axis=1)
        variance += of_draws.var(ddof=1) / len(of_draws)
    return 100 * math.sqrt(variance)


def minutes(delete: float, draw: float, adjust: float) -> dict[str, float]:
    """Estimated for so many corrections, with the least and the greatest cost of a box."""
    ends = zip(("minutes_low", "minutes_high"), DRAW, strict=True)
    return {key: (CHANGE * (delete + adjust) + cost * draw) / 60 for key, cost in ends}


def table_of(curves: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """A header, then a row for each order and number of reviewed pictures."""
    rows: list[tuple[str, ...]] = [("order", "reviewed", "left", "untaught", "taught", "saved", "minutes")]
    for order, curve in curves.items():
        for step, numbers in curve.items():
            counts = (f"{numbers['left']:.0f}", f"{numbers['untaught']:.1f}", f"{numbers['taught']:.1f}")
            error = "" if numbers["saved_error"] is None else f" ± {numbers['saved_error']:.1f}"
            cost = f"{numbers['minutes_low']:.1f}–{numbers['minutes_high']:.1f}"
            rows.append((order, f"{step}", *counts, f"{numbers['saved']:.1f}{error}", cost))
    return rows


# --------------------------------------------------------------------------------------------------------- the command
def read(truth: str, root: Path, sample: int | None) -> PromptedDataset:
    """The pictures with their true boxes."""
    if truth == "reviewed":
        found = reviewed_pictures(root)
        return replace(found, samples=Draw(None, sample, 0).of(found.samples, lambda one: one))
    return open_prompted(truth, root, sample=sample)


def main() -> None:
    """Annotates, reviews and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--truth", required=True, help="layout: a name of `cliploc datasets`, or reviewed")
    parser.add_argument("--out", type=Path, required=True, help="folder for the drafts")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pretrained", help="tag or file of weights")
    parser.add_argument("--reviewed", default="3,5,10,20,40", help="numbers of reviewed pictures")
    parser.add_argument("--min-score", default="auto", help="as in `cliploc annotate`")
    parser.add_argument("--draws", type=int, default=3, help="of each order")
    parser.add_argument("--sample", type=int, help="use so many pictures, drawn at random")
    parser.add_argument("--names", help="only these of the set's names, separated by commas")
    parser.add_argument(
        "--like", action="store_true", help="instead: what one picture finds of a name that is not known"
    )
    parser.add_argument("--json", action="store_true", help="print unrounded numbers")
    asked = parser.parse_args()

    dataset, terminal = read(asked.truth, asked.folder, asked.sample), Terminal()
    labels = sorted({label for picture in dataset.samples for label in picture.labels})
    entries = class_entries(dataset)
    if asked.names:
        labels = [label for label in labels if dataset.classes[label].synonyms[0] in asked.names.split(",")]
    looked_for = (UNKNOWN,) if asked.like else tuple(entries[label] for label in labels)
    names = Labels(looked_for, (None,) * len(looked_for))
    pictures = sorted((PictureFile(picture.id, picture.path) for picture in dataset.samples), key=by_path)
    first, path = dataset.samples[0].id, dataset.samples[0].path.as_posix()
    # What ids are relative to, which of reviewed pictures is not the folder of the run.
    root = Path(path.removesuffix(first)) if path.endswith(first) else dataset.root
    found = FoundPictures(root, pictures, [])
    options = Options(model=asked.model, pretrained=asked.pretrained)
    least: Any = asked.min_score if asked.min_score == "auto" else float(asked.min_score)
    settings: dict[str, Any] = {"formats": ("csv",), "teach": True, "as_typed": True, "min_score": least}
    with terminal.progress("annotating") as reporter:
        annotate(found, names, asked.out, **settings, reporter=reporter, options=options)
    person = Person(asked.out, dataset.samples, labels)
    if asked.like:
        boxes, there, right = sum(person.like(draw) for draw in range(asked.draws))
        print(f"{boxes} unsure boxes of {asked.draws} draws, {there} on pictures that show it, {right} right")
        return
    count = len(person.pictures)
    steps = [0, *(step for step in sorted(map(int, asked.reviewed.split(","))) if 0 < step < count)]
    curves = {}
    for order in ORDERS:
        walks = [person.walk(order, draw, steps) for draw in range(asked.draws)]
        curves[order] = {step: numbers_of(person.untaught, walks, i) for i, step in enumerate(steps)}
    nothing = 100 * person.boxes / count
    without = minutes(0, nothing, 0)
    if asked.json:
        document = {"pictures": count, "boxes": person.boxes, "nothing": nothing, **without, "curves": curves}
        print(json.dumps(document, indent=1))
        return
    terminal.listing(titled(table_of(curves)))
    low, high = without.values()
    print(
        f"for 100 of the pictures that are left; {count:,} pictures, {person.boxes:,} true boxes; without drafts "
        f"{nothing:.1f} boxes to draw, {low:.1f}–{high:.1f} minutes"
    )


if __name__ == "__main__":
    main()
