"""Selects classes and samples; named subsets of a dataset's classes; and the names that are asked in each picture."""

import difflib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cliploc.errors import UsageError
from cliploc.evaluate.data._infra.candidates import Problems
from cliploc.options import is_integer, short
from cliploc.registry import Registry
from cliploc.runs.samples import AskedDataset, AskedPicture
from cliploc.values import ClassName, Dataset, FloatArray

C = TypeVar("C")
S = TypeVar("S")
NEGATIVES = ("random", "popular", "confusable", "all")  # how names that are not there are chosen


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


def labels_of(asked: Iterable[str], classes: Sequence[ClassName]) -> set[int]:
    """Labels of the classes with these names, synonyms or WordNet ids; case does not matter."""
    chosen = set()
    for text in asked:
        wanted = " ".join(text.split()).casefold()
        by_name = [
            i
            for i, class_name in enumerate(classes)
            if wanted in (class_name.name.casefold(), class_name.wnid.casefold())
        ]
        labels = by_name or [
            i for i, class_name in enumerate(classes) if wanted in map(str.casefold, class_name.synonyms)
        ]
        if not labels:
            near = difflib.get_close_matches(wanted, [class_name.name for class_name in classes], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"unknown class {text!r}: {hint}expected a class's name, synonym or WordNet id")
        if len(labels) > 1:
            meant = " or ".join(f"{classes[i].wnid} {classes[i].name}".strip() for i in labels)
            raise UsageError(f"{text!r} fits {len(labels)} classes: give one of them, {meant}")
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
        wanted = self.limit or self.sample  # None: all
        kept: dict[int, S] = {}
        for i in order:
            if len(kept) == wanted:
                break
            sample = check(candidates[i])
            if sample is not None:
                kept[i] = sample
        return tuple(kept[i] for i in sorted(kept))


def nothing_usable(name: str, root: Path, problems: Problems, otherwise: str) -> UsageError:
    """The error for a folder of which no picture can be used; `otherwise` is the reason if there were no problems."""
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems.met).items())
    why = f"{counts}; the first, {problems.met[0].source}: {problems.met[0].reason}" if counts else otherwise
    return UsageError(f"no picture in {root} can be used ({why}): the layout is shown by cliploc datasets {name}")


# -------------------------------------------------------------------------------------------- names asked in pictures


def asked_pictures(dataset: Dataset, negatives: str, names: Collection[int], draw: Draw) -> AskedDataset:
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
        pictures.append(AskedPicture(id_, path, size_of[path], labels, truth))
    return AskedDataset(
        dataset.name,
        dataset.root,
        dataset.split,
        dataset.role,
        dataset.classes,
        draw.of(pictures, lambda label: label),
        dataset.problems,
    )
