"""A person's reviews played with true boxes, in memory: the folder is taught and its drafts chosen again."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from cliploc.datasets import AskedPicture
from cliploc.jobs import folder
from cliploc.jobs.annotation_results import AnnotatedFolder
from cliploc.jobs.annotation_rows import KIND
from cliploc.jobs.annotator import Row
from cliploc.jobs.corrections import Correction
from cliploc.jobs.draft_scores import Work, work_on
from cliploc.jobs.picture_files import PictureFile
from cliploc.jobs.teach import School
from cliploc.values import FloatArray

Order = Literal["random", "suggested"]  # as drawn; or the least certain first, as `review` shows them
WorkOf: TypeAlias = Mapping[int, Work]  # label → what there is to do


@dataclass(frozen=True)
class Walk:
    """The pictures of a folder in the order in which they are reviewed."""

    order: Order
    seed: int  # of the draw; of the suggested order, which of the equally certain pictures comes first

    def drawn(self, pictures: Sequence[str]) -> list[str]:
        """The pictures in an order that depends on nothing but their names and the seed."""
        return random.Random(f"cliploc {self.seed}").sample(sorted(pictures), len(pictures))


@dataclass(frozen=True)
class Walked:
    """What a walk means for one picture."""

    place: int | None  # which one it is among the reviewed pictures, from 0; None: it is not reviewed
    taught: tuple[WorkOf, ...]  # at each step before it is reviewed, with what the folder has learnt by then


class Reviewer:
    """Reviews the pictures of a run whose true boxes are known."""

    def __init__(self, out: Path, pictures: Sequence[AskedPicture], labels: Sequence[int]) -> None:
        """Opens a folder of `annotate` with the true boxes of its pictures, and the dataset's label of each name."""
        files = [PictureFile(picture.id, picture.path) for picture in pictures]
        self._folder = AnnotatedFolder(out, folder.read_manifest(out, KIND), files)
        self._labels = labels
        by_name = {picture.id: picture for picture in pictures}
        self._asked = {picture.id: by_name[picture.id] for picture in self._folder.annotated()}
        self._truth = {name: self._true(picture) for name, picture in self._asked.items()}
        self.pictures = [*self._asked]  # that the run could read, by path: as they lie in its parts
        self.untaught: dict[str, WorkOf] = {}
        self._folder.results.taught = {}
        for picture in self.pictures:
            self.untaught[picture] = self._work(picture)

    def digest(self) -> str:
        """Changes with everything that the run found."""
        digest = hashlib.blake2b(digest_size=16)
        for picture in self.pictures:
            digest.update(self._folder.results.places[picture].digest)
        return digest.hexdigest()

    def failed(self) -> dict[str, str]:
        """Picture → why it has no drafts."""
        results = self._folder.results
        return {file.id: results.row(file.id)["reason"] for file in self._folder.found if file.id not in self._asked}

    def boxes(self, picture: str) -> dict[int, int]:
        """Label → number of true boxes."""
        return {self._labels[p]: len(boxes) for p, boxes in self._truth[picture].items()}

    def walked(self, walk: Walk, steps: Sequence[int]) -> dict[str, Walked]:
        """What a walk means for each picture; `steps`: numbers of reviewed pictures, ascending."""
        ties = {picture: place for place, picture in enumerate(walk.drawn(self.pictures))}
        reviewed: list[str] = []
        taught: dict[str, list[WorkOf]] = {picture: [] for picture in self.pictures}
        self._folder.results.taught = self._alone
        self._review(())
        for step in steps:
            left = [picture for picture in self.pictures if picture not in {*reviewed}]
            margins = (
                {picture: self._folder.chosen(picture).margin for picture in left} if walk.order == "suggested" else {}
            )
            left.sort(key=lambda picture: (margins.get(picture, 0.0), ties[picture]))
            reviewed += left[: step - len(reviewed)]
            if reviewed:
                self._folder.results.taught = self._taught(reviewed)
            for picture in self.pictures:
                if picture not in {*reviewed}:
                    taught[picture].append(self._work(picture))
        places = {picture: place for place, picture in enumerate(reviewed)}
        return {picture: Walked(places.get(picture), tuple(taught[picture])) for picture in self.pictures}

    @functools.cached_property
    def _alone(self) -> Mapping[str, Row]:
        """What the folder teaches itself, before anything is reviewed."""
        return self._taught(())

    def _taught(self, reviewed: Sequence[str]) -> Mapping[str, Row]:
        """The taught rows of the pictures that are not reviewed."""
        self._folder.results.taught = {}
        self._review(reviewed)
        school = School(self._folder)
        _, known = school.names()
        return {row["picture"]: row for row in school.rows(known, {})}

    def _review(self, reviewed: Sequence[str]) -> None:
        """Reviews these pictures alone."""
        corrected = dict[str, Correction]()
        for picture in reviewed:
            pairs = [(box, p) for p, boxes in self._truth[picture].items() for box in boxes.tolist()]
            corrected[picture] = Correction([box for box, _ in pairs], [p for _, p in pairs])
        self._folder.corrected = corrected
        self._folder.reviews = {picture: {"status": "reviewed", "revision": 1} for picture in reviewed}
        self._folder.show(self._folder.found)

    def _true(self, picture: AskedPicture) -> dict[int, FloatArray]:
        """The true boxes of each name that may be asked, in pixels of the file."""
        row = self._folder.results.row(picture.id)
        width, height = picture.size_wh
        scale = np.array([row["width"] / width, row["height"] / height] * 2, np.float32)
        none = np.zeros((0, 4), np.float32)
        return {
            p: picture.truth.get(label, none) * scale for p, label in enumerate(self._labels) if label in picture.labels
        }

    def _work(self, picture: str) -> dict[int, Work]:
        """What there is to do with the drafts that are shown now; names with nothing to do are left out."""
        row, chosen = self._folder.results.row(picture), self._folder.chosen(picture)
        drafts: dict[int, list[Sequence[float]]] = {}
        for box in chosen.drafts:
            drafts.setdefault(row["labels"][box], []).append(row["boxes"][box])
        work = {p: work_on(drafts.get(p, []), boxes) for p, boxes in self._truth[picture].items()}
        return {self._labels[p]: of_label for p, of_label in work.items() if of_label.total}
