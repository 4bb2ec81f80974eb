"""An annotated folder teaches itself, and corrected pictures teach it: drafts drawn again, without the model.

Of each name that can be taught a direction is fitted (`cliploc.find.directions`); with it the maps of all pictures
that nobody has reviewed are made again from their lessons, and boxes from these. Reviewed pictures stay as they are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional as F

from cliploc.boxes import BoxRule
from cliploc.boxes.masks import box_masks
from cliploc.boxes.reasons import boxes_of
from cliploc.boxes.sides import ALIKE, learnt, moved, offsets, readings
from cliploc.find.calibration import UNSURE, logit
from cliploc.find.directions import Direction, Pictures, Whitening, fit_direction, share_of_text, stability
from cliploc.find.learnt import HOLDS_FOR, Learnt, Lesson, drawn, pooled, projected, unpacked
from cliploc.images.geometry import Frame
from cliploc.images.rle import encode
from cliploc.label.drafts import choose, work_on
from cliploc.label.results import AnnotatedFolder
from cliploc.label.worker import LEAST_FIT
from cliploc.options import FOUND, MIN_SCORE
from cliploc.runs.engine import each
from cliploc.runs.label_store import (
    Candidate,
    Candidates,
    Correction,
    Generation,
    LabellingRun,
    Picture,
    Taught,
    TaughtPicture,
)
from cliploc.values import Boxes, FloatArray, Floats, IntArray

VERSION = 7  # of what is taught and drawn
FEWEST = 40  # pictures with a name, from which it is taught before anything is reviewed: of 32 insects it got worse
# Chosen on the raccoon pictures and on the names of coco_tune; tools/corrections.py.
COMMON = 0.5  # share of the pictures that show it, at least
AGREE = 0.76  # how far two halves of its pictures must teach the same; see `stability`
MOVED = 0.5  # pixels; a box that moved by less is the same draft
FEWEST_REVIEWED = 3  # pictures, and boxes in them, from which corrections teach
ERRORS = 1.0  # standard errors of the saved corrections, by which drafts must be better than those of before
AGREED = 3.0  # saved corrections that speak for drafts which the folder itself has taught, as its pictures agree
USUAL, PRIOR = 1.0, 2  # the usual deviation of a picture's saved corrections; it counts as so many pictures
FEWEST_ALIKE = 10  # pictures with a name, from which a new picture that looks like them is said to show it
LEFT_BEHIND = 0.05  # share of these that may look less alike than a picture in which it is found
ODD = 0.1  # the same, tried next: so one or two odd pictures do not hide what the others say
DOUBTED = 0.25  # and than one in which it is sure
MOST_ALIKE = 0.1  # share of the pictures without the name that may look as alike
# The cosine with the mean of a folder that unrelated pictures do not reach (99 % of coco_tune, with the raccoons), for
# folders in which fewer than `FEWEST_ALIKE` pictures are without the name.
UNRELATED = {"mini": 0.15, "mini-vit": 0.21}
MOST_TAUGHT = 600  # pictures that teach; more change little
MOST_LEFT_OUT = 60  # reviewed pictures on which both kinds of drafts are compared


def teach(
    folder: AnnotatedFolder,
    again: bool = False,  # whether drafts that a person went back from are made again before more is reviewed
    begun: Callable[[], None] = lambda: None,  # called if there is something to do
    write: LabellingRun | None = None,  # where the drafts are written, if the folder is a state that stays
    stop: Callable[[], None] = lambda: None,  # called for each picture; may raise an error
) -> Generation:
    """Teaches the names of a run that keeps lessons, and writes the drafts; earlier ones stay where reviewed only."""
    learner = FolderLearner(folder)
    of, before = learner.stamp(), folder.run.taught_by[-1:]
    for last in before:
        undone = not again and len(folder.run.reviewed()) <= last.reviewed
        if undone if last.undone else last.of == of:
            return last
    if learner.teachable:
        begun()
    names, known = learner.names()
    made = Generation(of=of, names=names, reviewed=len(learner.reviewed))
    if not names and not any(last.names for last in before):  # there is nothing to say, and nothing to take back
        return made
    taught: dict[str, TaughtPicture] = {}
    for drawn_again in learner.rows(known):
        taught[drawn_again.picture] = drawn_again
        stop()
    learnt = None if known is None else known.learnt(folder.settings, names)
    if write is not None:
        made = replace(made, changed=_changed(folder, taught))
    (write or folder.run).teach(made, {folder.pictures[name]: one for name, one in taught.items()}, learnt)
    return made


def _changed(folder: AnnotatedFolder, taught: Mapping[str, TaughtPicture]) -> list[str]:
    """The pictures that nobody has touched, and that have other drafts with these."""
    other = folder.at(folder.run)
    other.taught_instead = taught
    names = [picture.id for picture in folder.annotated() if not folder.saved(picture.id).touched]
    return [name for name in names if not _alike(*(one.view(name).drafts(unsure=True) for one in (folder, other)))]


def _alike(one: Candidates, other: Candidates) -> bool:
    """Whether drafts are the same."""
    if sorted(one.labels.tolist()) != sorted(other.labels.tolist()):
        return False
    pairs = (sorted(zip(found.labels.tolist(), found.xyxy.tolist(), strict=True)) for found in (one, other))
    of_one, of_other = (np.array([box for _, box in pair]).reshape(-1, 4) for pair in pairs)
    return bool((np.abs(of_one - of_other) <= MOVED).all())


Corrected: TypeAlias = Callable[[Tensor, float], float]  # a picture's embedding and a name's chance → its chance


class _Presence:
    """The chance of a name, corrected by a Gaussian process on embeddings for what is wrong in reviewed pictures."""

    OFFSET, NOISE = 0.2, 0.5  # what all pictures have in common; how far one review may be by chance

    def __init__(self, mean: Tensor, embeddings: Tensor, before: Floats, true: Sequence[bool]) -> None:
        self._mean, self._seen = mean, F.normalize(embeddings - mean, dim=1)  # [D], [K, D]
        self._missing = np.where(true, 1.0, -1.0) - _squashed(before)  # [K]
        self._alike = (self._seen @ self._seen.T).double().numpy() + self.OFFSET  # [K, K]
        self._weights = self._solved(np.arange(len(self._missing)))

    def _solved(self, ids: IntArray) -> Floats:
        alike = self._alike[np.ix_(ids, ids)] + self.NOISE * np.eye(len(ids))
        return np.linalg.solve(alike, self._missing[ids]).astype(np.float64)

    def __call__(self, embedding: Tensor, before: float) -> float:
        """The chance of a picture."""
        alike = (self._seen @ F.normalize(embedding.float() - self._mean, dim=0)).numpy() + self.OFFSET  # [K]
        return _chance(float(_squashed(np.array([before]))[0] + alike @ self._weights))

    def without(self, k: int, before: float) -> float:
        """The chance of reviewed picture `k` as if it were not reviewed."""
        others = np.delete(np.arange(len(self._missing)), k)
        change = float(self._alike[k, others] @ self._solved(others))
        return _chance(float(_squashed(np.array([before]))[0]) + change)


def _squashed(chance: Floats) -> Floats:
    """Chances as −1 to 1; one that is not known is 0."""
    squashed: Floats = (logit(np.nan_to_num(chance, nan=0.5)) / 4).clip(-1, 1)
    return squashed


def _chance(squashed: float) -> float:
    return 1 / (1 + math.exp(-4 * squashed))


@dataclass(frozen=True)
class _Likeness:
    """The chance of a name that one picture shows: too low for drafts, and 0 in pictures that look unrelated."""

    exemplar: Tensor  # [D], its embedding
    unrelated: float  # the least cosine that others must have

    def __call__(self, embedding: Tensor, _: float) -> float:
        """The chance of a picture."""
        cosine = float(F.cosine_similarity(embedding.float(), self.exemplar.float(), dim=0))
        return min((1 + cosine) / 2, 0.99) * FOUND if cosine >= self.unrelated else 0.0


@dataclass(frozen=True)
class Appearance:
    """How the pictures look that show a name."""

    mean: Tensor  # [D] their mean embedding, unit norm
    showing: Tensor  # [n] cosine of each with the mean of the others
    others: Tensor  # [m] cosines of pictures without it with their mean

    @classmethod
    def of(cls, showing: Tensor, without: Tensor) -> Appearance:
        """By the embeddings `[n, D]`, unit norm, of pictures that show it, and of pictures that do not."""
        total = showing.sum(dim=0)
        mean = F.normalize(total, dim=0)
        return cls(mean, F.cosine_similarity(showing, total - showing, dim=1), without @ mean)

    def alike(self, settings: Mapping[str, Any]) -> Tensor:
        """`[2]`, see `Learnt.alike`; NaN where others look alike too, or too few pictures say that they do not."""
        unrelated = UNRELATED.get(settings["model"], math.inf)
        unknown, tested = torch.full((2,), torch.nan), len(self.others) >= FEWEST_ALIKE
        if len(self.showing) < FEWEST_ALIKE:
            return unknown
        for left, way in ((LEFT_BEHIND, "linear"), (ODD, "higher")):
            low, high = cosines = self.showing.quantile(torch.tensor([left, DOUBTED]), interpolation=way)
            apart = int((self.others >= low).sum()) <= MOST_ALIKE * len(self.others)
            if apart and low < high and (tested or low >= unrelated):
                return cosines
        return unknown


@dataclass(frozen=True)
class Directions:
    """The directions of the names that are taught."""

    whitening: Whitening
    directions: Mapping[int, tuple[Direction, float]]  # label → direction, and share of the text's map
    presence: Mapping[int, Corrected]  # label → how its presence is corrected; none before anything is reviewed
    sides: Mapping[int, Floats]  # label → how the sides of its boxes are moved; see `boxes/sides.py`
    names: tuple[str, ...]
    seen: Mapping[int, Appearance]
    unsure: frozenset[int]  # labels whose boxes stay unsure: of one picture

    def learnt(self, settings: Mapping[str, Any], names: Mapping[str, Taught]) -> bytes | None:
        """As a file has it; None where nothing but unsure boxes are drawn."""
        if not (rows := [p for p in self.directions if p not in self.unsure]):
            return None
        about = {key: settings[key] for key in HOLDS_FOR if key in settings}
        about["reviewed"] = {name: outcome.reviewed for name, outcome in names.items()}
        directions, shares = zip(*(self.directions[p] for p in rows), strict=True)
        weights, bias = self.whitening.unwhitened(directions)
        seen = [self.seen[p] for p in rows]
        embedding, alike = (
            torch.stack(of) for of in ([one.mean for one in seen], [one.alike(settings) for one in seen])
        )
        sides = torch.tensor(np.array([self.sides[p] for p in rows]), dtype=torch.float32)
        return Learnt(
            tuple(self.names[p] for p in rows), weights, bias, shares, embedding, sides, about, alike
        ).content()


class FolderLearner:
    """The pictures of a run that can teach or be taught."""

    def __init__(self, folder: AnnotatedFolder) -> None:
        self.folder, self.drawing = folder, Drawing.of(folder.settings)
        self.pictures = [file.id for file in folder.annotated()]
        self.reviewed = folder.finished()
        self._unseen = [picture for picture in self.pictures if not folder.saved(picture).touched]
        self._plain = {picture: folder.chances(picture) for picture in self.pictures}

    @cached_property
    def teachable(self) -> list[int]:
        """The names that may be taught."""
        return [p for p in range(len(self.folder.names)) if self.enough(p) or p in self.common or p in self.exemplars]

    def stamp(self) -> str:
        """A digest of all that the drafts depend on, but for those of reviewed pictures."""
        folder = self.folder
        shifts = None if folder.prior is None else [*folder.prior.shifts]
        facts = [VERSION, folder.id, folder.settings["teaching"], self._unseen, shifts]
        digest = hashlib.sha256(json.dumps(facts).encode())
        rule = asdict(folder.rule) if self.reviewed else None  # of the drafts that learnt ones are compared with
        reviewed: list[Any] = [[name, one.boxes, one.labels] for name, one in self.shown.items()]
        reviewed += self.exemplars.items()
        digest.update(json.dumps([reviewed, rule], sort_keys=True).encode())
        for picture in self.pictures:
            digest.update(folder.pictures[picture].checksum.encode())
        return digest.hexdigest()

    @cached_property
    def exemplars(self) -> dict[int, str]:
        """The names of which a person wants more, and a picture that shows each; none that is taught otherwise."""
        asked = {p: self.folder.run.exemplars.get(name, "") for p, name in enumerate(self.folder.names)}
        alone = {p: one for p, one in asked.items() if one in self._plain and not (self.enough(p) or p in self.common)}
        return {p: one for p, one in alone.items() if p in self.folder.view(one).boxes().labels}

    @cached_property
    def shown(self) -> dict[str, Correction]:
        """The boxes of the pictures that teach."""
        return {**{one: self.folder.view(one).boxes() for one in self.exemplars.values()}, **self.reviewed}

    def chance(self, picture: str, p: int) -> float:
        """That a name is in a picture, before it is taught; NaN of names that the model does not know."""
        # One that it finds in no picture ("part 4711", read as "part") is as if it did not know it.
        return float(self._plain[picture][p]) if p in self._found else math.nan

    def names(self) -> tuple[dict[str, Taught], Directions | None]:
        """What becomes of each name, and the directions of those whose drafts are used."""
        if not self.teachable:
            return {}, None
        # The pictures that teach, reviewed ones and others, in an order that does not depend on who reviewed them: what
        # is drawn from them at random then stays the same, too, and the gate does not open by chance.
        # And it does not depend on what the files are called.
        ordered = sorted(self.pictures, key=lambda picture: (self.folder.pictures[picture].checksum, picture))
        selected = {*sorted(ordered, key=lambda picture: picture not in self.shown)[:MOST_TAUGHT]}
        chosen = [picture for picture in ordered if picture in selected]
        lessons = lessons_of(self.folder.run, [self.folder.pictures[picture] for picture in chosen])
        whitening = Whitening.of(lessons)
        pictures = Pictures.of(lessons, whitening)
        of_names = {p: _Name(self, p, chosen, lessons, pictures) for p in self.teachable}
        models = {p: of_name.model for p, of_name in of_names.items() if of_name.model is not None}
        directions = {p: (model.fitted.direction, model.share) for p, model in models.items()}
        corrected = {p: model.presence or of_names[p].likeness for p, model in models.items()}
        presence = {p: chance for p, chance in corrected.items() if chance is not None}
        sides = {p: model.sides for p, model in models.items()}
        outcomes = {self.folder.names[p]: of_name.outcome for p, of_name in of_names.items()}
        if not models:
            return outcomes, None
        seen = {p: of_names[p].seen() for p in models}
        unsure = frozenset(self.exemplars)
        return outcomes, Directions(whitening, directions, presence, sides, self.folder.names, seen, unsure)

    @cached_property
    def _found(self) -> frozenset[int]:
        """The names that the model finds in a picture at least, also if drafts need a higher presence than usual."""
        least = [min(low, FOUND) for low in self.folder.rule.thresholds]
        return frozenset(p for p, low in enumerate(least) if any(chances[p] >= low for chances in self._plain.values()))

    @cached_property
    def common(self) -> frozenset[int]:
        """The names that are common enough to be taught before anything is reviewed."""
        shares, names = self.folder.shares(), enumerate(self.folder.names)
        often = [p for p, name in names if shares.get(name, 0.0) >= COMMON]
        return frozenset(p for p in often if sum(chances[p] >= FOUND for chances in self._plain.values()) >= FEWEST)

    def enough(self, p: int) -> bool:
        """Whether enough of a name is reviewed."""
        boxes = sum(one.labels.count(p) for one in self.reviewed.values())
        return len(self.reviewed) >= FEWEST_REVIEWED and boxes >= FEWEST_REVIEWED

    # --------------------------------------------------------------------------------------------------------- drawn
    def rows(self, known: Directions | None) -> Iterator[TaughtPicture]:
        """The taught names, picture by picture; what somebody has seen stays."""
        if known is not None:
            chances = [{p: self.chance(one, p) for p in self._drawn(one, known)} for one in self._unseen]
            pictures = [self.folder.pictures[picture] for picture in self._unseen]
            yield from Drawer(self.folder.run, self.drawing, known, pictures, chances).rows()

    def _drawn(self, picture: str, known: Directions) -> list[int]:
        """The names that are drawn again in a picture: by an exemplar only those that the model does not find there."""
        plain = self._plain[picture]
        stays = {p for p, one in self.exemplars.items() if picture == one or plain[p] >= UNSURE}
        return [p for p in known.directions if p not in stays]


class _Name:
    """One name, taught by the folder and by reviewed pictures; and which of its drafts are used."""

    def __init__(
        self, learner: FolderLearner, p: int, chosen: Sequence[str], lessons: Sequence[Lesson], pictures: Pictures
    ) -> None:
        self.learner, self.p, self.chosen, self.lessons, self.pictures = learner, p, chosen, lessons, pictures
        self.chances = np.array([learner.chance(picture, p) for picture in chosen])
        self.known = not np.isnan(self.chances).all()
        self.heat = torch.stack([pooled(lesson.map_of(p), pictures.grid).flatten() for lesson in lessons])  # [n, N]
        shows = [bool(c >= FOUND) and p in lesson.names for c, lesson in zip(self.chances, lessons, strict=True)]
        self.uses = torch.tensor(shows) if self.known else torch.ones(len(chosen), dtype=torch.bool)
        self.exemplar = learner.exemplars.get(p)
        teach = {*(learner.reviewed if self.exemplar or learner.enough(p) else ()), self.exemplar}
        self.reviewed = [i for i, picture in enumerate(chosen) if picture in teach]
        self.compared = [] if self.exemplar else self.reviewed[:MOST_LEFT_OUT]  # one says nothing of itself
        self.likeness: _Likeness | None = None
        if self.exemplar:
            unrelated = UNRELATED.get(learner.folder.settings["model"], -1.0)
            self.likeness = _Likeness(lessons[chosen.index(self.exemplar)].embedding, unrelated)
            self.uses = torch.tensor([self.likeness(lesson.embedding, 0.0) > 0 for lesson in lessons])
        self.agreement = stability(pictures, self.heat, self.uses) if p in learner.common else None
        self.model, self.outcome = self._outcome()

    def true(self, i: int) -> FloatArray:
        """The boxes `[m, 4]` of a reviewed picture."""
        return np.array(self.learner.shown[self.chosen[i]].boxes_of(self.p)).reshape(-1, 4)

    def seen(self) -> Appearance:
        """How the pictures look that show it: reviewed ones, and if the model knows the name, those that seem to."""
        shows = self.uses & self.known
        shows[self.reviewed] = torch.tensor([len(self.true(i)) > 0 for i in self.reviewed], dtype=torch.bool)
        others = torch.from_numpy(self.chances < UNSURE)  # none of a name that the model does not know
        others[self.reviewed] = ~shows[self.reviewed]
        each = F.normalize(torch.stack([lesson.embedding.float() for lesson in self.lessons]), dim=1)  # [n, D]
        return Appearance.of(each[shows], each[others])

    def _outcome(self) -> tuple[_NameModel | None, Taught]:
        """The model that is used, and what to say of it."""
        count, shows, seen = len(self.reviewed), int(self.uses.sum()), len(self.compared)
        if self.exemplar:
            advice = f"draw it in {FEWEST_REVIEWED} pictures, and drafts are learnt"
            why = f"unsure boxes like those in {self.exemplar}; {advice}"
            return _NameModel(self, self.reviewed), Taught(0, 1, True, why, None, None, 0, None, exemplar=True)
        of_folder = _NameModel(self, []) if self.agreement is not None and self.agreement >= AGREE else None
        by_folder = f"drafts learnt from the {shows:,} pictures that show it"
        if not count:
            why = by_folder if of_folder else "not learnt: its pictures do not agree where it is"
            return of_folder, Taught(0, shows, of_folder is not None, why, None, None, 0, self.agreement)
        names = [self.chosen[i] for i in self.compared]
        before = self._work([self.learner.folder.candidates(picture, taught=False) for picture in names])
        if of_folder is not None:
            of_itself = self._work(of_folder.rows())
            if gains(before, of_itself, lead=AGREED):
                before = of_itself
            else:
                of_folder = None
        of_reviewed = _NameModel(self, self.reviewed)
        after = self._work(of_reviewed.rows())
        numbers = int(before.sum()), int(after.sum()), seen, self.agreement
        measured = f"{numbers[0]:,} → {numbers[1]:,} corrections on {'pictures' if seen == count else seen} left out"
        # Of a name that the model does not know there are no drafts to lose: any gain will do.
        if gains(before, after, ERRORS if self.known else 0):
            why = f"drafts learnt from {count:,} reviewed pictures: {measured}"
            return of_reviewed, Taught(count, shows, True, why, *numbers)
        why = f"{by_folder if of_folder else 'drafts as the model finds them'}; with {count:,} reviewed ones {measured}"
        return of_folder, Taught(0, shows, of_folder is not None, why, *numbers)

    def _work(self, candidates: Sequence[Candidates]) -> Floats:
        """The corrections `[n]` of the drafts that the run's rule chooses in the compared pictures."""
        counts = []
        for i, found in zip(self.compared, candidates, strict=True):
            drafts = found.take(choose(found, self.learner.folder.rule, self.learner.folder.prior).drafts)
            counts.append(work_on(drafts.xyxy[drafts.labels == self.p], self.true(i)).total)
        return np.array(counts, np.float64)


class _NameModel:
    """What the pictures teach of a name, some of them reviewed; none: the folder by itself."""

    def __init__(self, name: _Name, reviewed: Sequence[int]) -> None:
        self._name, self._reviewed = name, reviewed
        pictures, lessons = name.pictures, name.lessons
        inside = {i: _inside(lessons[i].frame, name.true(i), pictures.grid) for i in reviewed}
        self.fitted = fit_direction(pictures, name.heat, name.uses, inside, name.known)
        self.share = share_of_text(len(reviewed), name.known)
        self.presence: _Presence | None = None
        if reviewed and name.likeness is None:
            embeddings = torch.stack([lesson.embedding.float() for lesson in lessons])
            true = [len(name.true(i)) > 0 for i in reviewed]
            self.presence = _Presence(embeddings.mean(dim=0), embeddings[reviewed], name.chances[reviewed], true)
        self._found = [*each(self._left_out, range(len(name.compared)))]
        self._pairs: list[tuple[Floats, Floats]] = []  # how far drafts are away from reviewed boxes, and their readings
        for i, (chance, found) in zip(name.compared if reviewed else (), self._found, strict=False):
            likely = (found.boxes.score >= MIN_SCORE) & (chance >= FOUND)
            away, iou = offsets(found.boxes.xyxy[likely], name.true(i))
            self._pairs.append((away[iou >= ALIKE], found.read[likely][iou >= ALIKE]))
        self.sides = learnt(self._pairs)

    def rows(self) -> list[Candidates]:
        """The compared pictures' candidates with the taught boxes of the name, each as if it were not reviewed."""
        name, rows = self._name, list[Candidates]()
        folder, drawing = name.learner.folder, name.learner.drawing
        for k, (i, (chance, found)) in enumerate(zip(name.compared, self._found, strict=True)):
            sides = learnt(pair for j, pair in enumerate(self._pairs) if j != k)  # as the other pictures have it
            on_map = {name.p: found} if chance >= UNSURE else {}
            picture, boxes = name.chosen[i], drawing.boxes(name.lessons[i], on_map, {name.p: sides})
            taught = TaughtPicture(picture, {name.p: chance}, boxes)
            rows.append(folder.candidates(picture, taught=False).with_taught(taught))
        return rows

    def _left_out(self, k: int) -> tuple[float, OnMap]:
        """The chance and the boxes of a compared picture as if it were not reviewed, before their sides are moved."""
        name, i = self._name, self._name.compared[k]
        chance, direction = float(name.chances[i]), self.fitted.direction
        if self.presence is not None:
            chance = self.presence.without(k, chance)
            direction = self.fitted.without(i, name.pictures, bool(name.uses[i]))
        like = direction(name.pictures.whitened[i]).view(1, 1, *name.pictures.grid)
        [maps] = drawn([name.lessons[i]], [name.p], like, [self.share], name.learner.drawing.level)
        return round(chance, 4), name.learner.drawing.found(name.lessons[i], maps[0].numpy())


def gains(before: Floats, after: Floats, errors: float = ERRORS, lead: float = 0) -> bool:
    """Whether corrections `[n]` of the same pictures become fewer, by more than so many standard errors of the mean."""
    saved = before - after
    count = len(saved)
    squares = float(((saved - saved.mean()) ** 2).sum()) + PRIOR * USUAL**2
    error = math.sqrt(squares / (count - 1 + PRIOR) / count)
    return float(saved.sum() + lead) / count > errors * error


def _inside(frame: Frame, boxes: FloatArray, grid: tuple[int, int]) -> Tensor:
    """The share of each cell that lies in boxes `[m, 4]` of the picture, `[h·w]`."""
    height, width = frame.input_hw
    on_grid = frame.to_input(boxes) / np.array([width, height] * 2) * np.array([grid[1], grid[0]] * 2)  # [m, 4]
    x0, y0, x1, y1 = on_grid.reshape(-1, 4).T
    rows, columns = np.arange(grid[0])[:, None], np.arange(grid[1])[:, None]
    down = (np.minimum(rows + 1, y1) - np.maximum(rows, y0)).clip(0)  # [h, m]
    across = (np.minimum(columns + 1, x1) - np.maximum(columns, x0)).clip(0)  # [w, m]
    covered = (down[:, None] * across[None]).max(axis=2, initial=0).astype(np.float32)
    return torch.from_numpy(covered).flatten()


# -------------------------------------------------------------------------------------------------------- drawing again
TOGETHER = 32  # pictures that are drawn together: a query of their lessons
IN_A_QUERY = 500  # pictures, at most


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
    read: Floats  # at their sides; see `boxes/sides.py`


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


def lessons_of(run: LabellingRun, pictures: Sequence[Picture]) -> list[Lesson]:
    """The lessons of some pictures."""
    found: dict[int, Lesson] = {}
    for start in range(0, len(pictures), IN_A_QUERY):
        ids = [picture.id for picture in pictures[start : start + IN_A_QUERY]]
        found |= {number: unpacked(content, run.entries) for number, content in run.features(ids).items()}
    return [found[picture.id] for picture in pictures]
