"""Candidates become samples, or problems with a reason; and the selection of classes and samples."""

import difflib
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.data._base import Candidate, Problems, by, picture_header, safe_id, turned_wh
from cliploc.formats import Box, Size
from cliploc.options import is_integer, short
from cliploc.registry import Registry
from cliploc.runs.samples import PromptedDataset, PromptedPicture
from cliploc.values import ClassName, Dataset, FloatArray, Sample

C = TypeVar("C")
S = TypeVar("S")
Header = tuple[Size, int]  # size as stored, and the EXIF orientation: 1–8, 1 for none
NEGATIVES = ("random", "popular", "confusable", "all")  # how names that are not there are chosen


class Checker:
    """Turns candidates into samples and records what is left out; `classes` 0: pictures with label maps."""

    def __init__(self, problems: Problems, classes: int = 0) -> None:
        self.add = problems.add
        self._classes = classes
        self._ids: set[str] = set()
        self._last: tuple[Path, Header | InputError] | None = None

    def is_new(self, sample_id: str) -> bool:
        """Whether an id can be used and has not come before."""
        if sample_id in self._ids:
            self.add("duplicate id", sample_id, "more than once in the annotations: counted once")
            return False
        self._ids.add(sample_id)
        if not safe_id(sample_id):
            self.add("unsafe id", sample_id, "expected an id that stays inside its folder: use a relative path")
            return False
        return True

    def header(self, sample_id: str, path: Path, what: str = "picture", hint: str = "") -> Header | None:
        """The header of a sample's picture or mask, read once for samples of the same picture; None if it has none."""
        if self._last is None or self._last[0] != path:
            try:
                self._last = (path, picture_header(path))
            except InputError as error:
                self._last = (path, error)
        header = self._last[1]
        if not isinstance(header, InputError):
            return header
        missing = not os.path.exists(path)  # also of a name too long for the system
        self.add(f"{'missing' if missing else 'broken'} {what}", sample_id, f"{header}{hint if missing else ''}")
        return None

    def sample(self, candidate: Candidate) -> Sample | None:
        """The sample of a candidate, or None if it is left out."""
        if not self.is_new(candidate.id):
            return None
        if not 0 <= candidate.label < self._classes:
            reason = f"expected a label of 0–{self._classes - 1}, got {candidate.label}: left out"
            self.add("label mismatch", candidate.id, reason)
            return None
        if not candidate.boxes and not candidate.masks:
            self.add("empty annotation", candidate.id, "no box and no mask: left out")
            return None
        hint = f"; {candidate.hint}" if candidate.hint else ""
        header = self.header(candidate.id, candidate.path, hint=hint)
        placed = None if header is None else self._upright(candidate, *header)
        if placed is None:
            return None
        for mask in (*candidate.masks, *([candidate.ignore] if candidate.ignore else [])):
            if not os.path.isfile(mask):
                self.add("missing mask", candidate.id, f"expected a mask at {mask}, found none: left out")
                return None
        size_wh, boxes = placed
        inside, problems = boxes_inside(boxes, size_wh)
        for kind, reason in problems:
            self.add(kind, candidate.id, reason)
        if not inside and not candidate.masks:
            self.add("empty annotation", candidate.id, "none of its boxes can be used: left out")
            return None
        xyxy = np.array(inside, np.float32).reshape(-1, 4)  # [m, 4]
        return Sample(candidate.id, candidate.path, candidate.label, size_wh, xyxy, candidate.masks, candidate.ignore)

    def _upright(self, candidate: Candidate, stored_wh: Size, orientation: int) -> tuple[Size, Sequence[Box]] | None:
        """The annotated size and the boxes, both for the upright picture; None if the candidate is left out."""
        upright_wh, boxes = turned_wh(stored_wh, orientation), candidate.boxes
        size_wh = candidate.size_wh or (upright_wh if candidate.upright else stored_wh)
        if min(size_wh) < 1:
            self.add("size mismatch", candidate.id, f"expected a size of at least 1×1, got {by(size_wh)}: correct it")
            return None
        # Of a picture that is turned by 90 degrees the annotated size tells whether it was annotated as displayed.
        as_displayed = candidate.upright or (orientation >= 5 and size_wh == upright_wh != stored_wh)
        if orientation != 1 and not as_displayed:
            if candidate.masks:
                self.add("turned picture", candidate.id, "its EXIF orientation turns it but not its masks: left out")
                return None
            self.add("turned picture", candidate.id, "its EXIF orientation turns it: the boxes are turned too")
            boxes = [turned(box, size_wh, orientation) for box in boxes]
            size_wh = turned_wh(size_wh, orientation)
        if size_wh != upright_wh and not candidate.resized:
            reason = f"annotated as {by(size_wh)}, the file has {by(upright_wh)}: taken as resized"
            self.add("size mismatch", candidate.id, reason)
        return size_wh, boxes


def boxes_inside(boxes: Iterable[Box], size_wh: Size) -> tuple[list[Box], list[tuple[str, str]]]:
    """The boxes clipped to the picture, without those that hold no pixel of it; the kinds and reasons of problems."""
    both = [clipped(box, size_wh) for box in boxes]
    return [box for box, _ in both if box is not None], [problem for _, problem in both if problem is not None]


def clipped(box: Box, size_wh: Size) -> tuple[Box | None, tuple[str, str] | None]:
    """Clips a box to the picture: the part inside or None, and the kind and reason of its problem or None."""
    width, height = size_wh
    x0, y0, x1, y1 = box
    text = f"box {x0:g} {y0:g} {x1:g} {y1:g}"
    if not all(map(math.isfinite, box)) or x1 < x0 or y1 < y0:
        return None, ("broken box", f"{text} is not a box with x0 < x1, y0 < y1: left out")
    inside: FloatArray = np.array(box, np.float32).clip(0, np.array([width, height] * 2, np.float32))
    a, b, c, d = inside.tolist()
    if a >= c or b >= d:
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            return None, ("box outside", f"{text} is outside the picture of {by(size_wh)}: left out")
        return None, ("broken box", f"{text} holds no pixel: left out")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        return (a, b, c, d), ("box outside", f"{text} is partly outside the picture of {by(size_wh)}: clipped")
    return (a, b, c, d), None


def turned(box: Box, size_wh: Size, orientation: int) -> Box:
    """Applies the EXIF orientation to a box of the stored picture of this size."""
    corners: npt.NDArray[np.float64] = np.array([box[:2], box[2:]], np.float64)  # [2, (x, y)]
    size = np.array(size_wh, np.float64)
    if orientation in (2, 3, 7, 8):
        corners[:, 0] = size[0] - corners[:, 0]
    if orientation in (3, 4, 6, 7):
        corners[:, 1] = size[1] - corners[:, 1]
    if orientation >= 5:
        corners = corners[:, ::-1]
    low, high = corners.min(axis=0), corners.max(axis=0)
    return (*low.tolist(), *high.tolist())


# ---------------------------------------------------------------------------------------------------------- selection
@dataclass(frozen=True)
class Subset:
    """A subset of a dataset's classes, chosen by their kind, never by a method's results."""

    name: str  # as typed on the command line
    title: str  # its purpose
    reasons: dict[str, str]  # WordNet id → why this class was chosen

    def labels(self, classes: Sequence[ClassName], dataset: str) -> set[int]:
        """The labels of its classes."""
        labels = {class_name.wnid: label for label, class_name in enumerate(classes)}
        absent = [wnid for wnid in self.reasons if wnid not in labels]
        if absent:
            raise UsageError(f"{dataset} has no class {', '.join(absent)} of the subset {self.name}: choose --classes")
        return {labels[wnid] for wnid in self.reasons}


subsets: Registry[Subset] = Registry("subset")

subsets.register(
    "ten-classes",
    Subset(
        "ten-classes",
        "ten ILSVRC classes, each a different kind of thing with a different look",
        {
            "n02106662": "mammal: fur, a face that is more typical than the body, any pose",
            "n01843383": "bird: the bill alone identifies it, so that a map may show only this part",
            "n01665541": "reptile: one large dark shape, as dull as the sand around it",
            "n02279972": "insect: a strong pattern on thin wings, mostly on a flower, which attracts heat too",
            "n12267677": "plant: small, several together, among leaves of the same tree",
            "n07753592": "food: yellow, in bunches, where instances touch and overlap",
            "n03272562": "vehicle: long and large, always seen with rails and wires",
            "n04086273": "tool held in the hand: thin, metal, of two very different parts",
            "n03854065": "musical instrument: fills the picture, a repeated pattern of pipes, indoors",
            "n04380533": "furniture: a shade and a foot that look like two things, indoors among other furniture",
        },
    ),
)


def labels_of(names: Iterable[str], classes: Sequence[ClassName]) -> set[int]:
    """Labels of the classes with these names, synonyms or WordNet ids; case does not matter."""
    chosen = set()
    for name in names:
        folded = " ".join(name.split()).casefold()
        labels = [i for i, of in enumerate(classes) if folded in (of.name.casefold(), of.wnid.casefold())]
        labels = labels or [i for i, of in enumerate(classes) if folded in map(str.casefold, of.synonyms)]
        if not labels:
            near = difflib.get_close_matches(folded, [of.name for of in classes], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"unknown class {name!r}: {hint}expected a class's name, synonym or WordNet id")
        if len(labels) > 1:
            meant = " or ".join(f"{classes[i].wnid} {classes[i].name}".strip() for i in labels)
            raise UsageError(f"{name!r} fits {len(labels)} classes: choose one of them, {meant}")
        chosen.add(labels[0])
    return chosen


@dataclass(frozen=True)
class Draw:
    """How many samples are read: all, the first `limit`, or `sample` drawn at random."""

    limit: int | None
    sample: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.limit is not None and self.sample is not None:
            raise UsageError("expected a limit or a sample, got both: leave one out")
        for option, value in (("limit", self.limit), ("sample", self.sample)):
            if value is not None and not is_integer(value, 1):
                raise UsageError(f"expected a {option} of at least 1, got {short(value)}")

    def of(self, candidates: Sequence[C], check: Callable[[C], S | None]) -> tuple[S, ...]:
        """The samples of candidates, in order; what cannot be used does not count, and few more are checked."""
        order = list(range(len(candidates)))
        if self.sample is not None:
            random.Random(self.seed).shuffle(order)
        samples = ((i, sample) for i in order if (sample := check(candidates[i])) is not None)
        chosen = dict(itertools.islice(samples, self.limit or self.sample))  # None: all
        return tuple(chosen[i] for i in sorted(chosen))


def nothing_usable(name: str, root: Path, problems: Problems, otherwise: str) -> UsageError:
    """The error for a folder of which no picture can be used; `otherwise` is the reason if there were no problems."""
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).items())
    why = f"{counts}; the first, {problems[0].source}: {problems[0].reason}" if counts else otherwise
    return UsageError(f"no picture in {root} can be used ({why}): the layout is shown by cliploc datasets {name}")


def prompted_pictures(dataset: Dataset, negatives: str, names: Collection[int], draw: Draw) -> PromptedDataset:
    """Each picture with names that are there, not only as crowds, and as many POPE negatives (Li et al. 2023)."""
    truths: dict[Path, dict[int, FloatArray]] = {}
    size_of = {}
    for sample in dataset.samples:
        if not len(sample.boxes_xyxy):
            raise UsageError(f"expected a dataset with true boxes, got {dataset.name} with masks: choose another")
        truths.setdefault(sample.path, {})[sample.label] = sample.boxes_xyxy
        size_of[sample.path] = sample.size_wh
    # [K, K]: the number of pictures with both names; on the diagonal with the name.
    together = np.zeros((len(dataset.classes),) * 2, np.int64)
    for truth in truths.values():
        together[np.ix_([*truth], [*truth])] += 1
    pictures = []
    for path, truth in truths.items():
        id_ = (path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else path).as_posix()
        known = names if dataset.absent is None else dataset.absent.get(path, frozenset()).intersection(names)
        absent = [label for label in sorted(known) if label not in truth and (path, label) not in dataset.unclear]
        if negatives == "random":
            count = min(len(truth), len(absent))
            chosen = random.Random(f"{draw.seed} {id_}").sample(absent, count)
        elif negatives == "all":
            chosen = absent
        else:
            often = together.diagonal() if negatives == "popular" else together[list(truth)].sum(axis=0)
            chosen = sorted(absent, key=lambda label: (-often[label], -together[label, label], label))[: len(truth)]
        labels = tuple(sorted({*truth, *chosen}))
        pictures.append(PromptedPicture(id_, path, size_of[path], labels, truth))
    drawn = draw.of(pictures, lambda picture: picture)
    about = dataset.name, dataset.root, dataset.split, dataset.role, dataset.classes
    return PromptedDataset(*about, drawn, dataset.problems)
