"""Pictures with all names to ask in them, of a dataset whose samples are one name in one picture each."""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cliploc.datasets._infra.candidates import Size
from cliploc.datasets._infra.selection import Draw
from cliploc.errors import UsageError
from cliploc.values import Dataset, DatasetSplit, FloatArray

NEGATIVES = ("random", "popular", "confusable", "all")  # how names that are not there are chosen


@dataclass(frozen=True)
class AskedPicture:
    """A picture with the names to ask."""

    id: str  # its path below the dataset's folder
    path: Path
    size_wh: Size  # of the original picture, to which the boxes belong
    labels: tuple[int, ...]  # to ask, in order
    truth: Mapping[int, FloatArray]  # label → its boxes `[m, 4]`, of those that are there


AskedDataset: TypeAlias = DatasetSplit[AskedPicture]


def asked_pictures(dataset: Dataset, negatives: str, names: Collection[int], draw: Draw) -> AskedDataset:
    """Each picture with names that are there, not only as crowds, and as many POPE negatives (Li et al. 2023)."""
    truths: dict[Path, dict[int, FloatArray]] = {}
    size_of = {}
    for sample in dataset.samples:
        if not len(sample.boxes_xyxy):
            raise UsageError(f"expected a dataset with true boxes, got {dataset.name} with masks: choose another")
        truths.setdefault(sample.path, {})[sample.label] = sample.boxes_xyxy
        size_of[sample.path] = sample.size_wh
    together = _together(truths.values(), len(dataset.classes))  # [K, K]
    pictures = []
    for path, truth in truths.items():
        id_ = (path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else path).as_posix()
        known = names if dataset.absent is None else dataset.absent.get(path, frozenset()).intersection(names)
        absent = [one for one in sorted(known) if one not in truth and (path, one) not in dataset.unclear]
        if negatives == "random":
            count = min(len(truth), len(absent))
            chosen = random.Random(f"{draw.seed} {id_}").sample(absent, count)
        elif negatives == "all":
            chosen = absent
        else:
            often = together.diagonal() if negatives == "popular" else together[list(truth)].sum(axis=0)
            chosen = sorted(absent, key=lambda one: (-often[one], -together[one, one], one))[: len(truth)]
        labels = tuple(sorted({*truth, *chosen}))
        pictures.append(AskedPicture(id_, path, size_of[path], labels, truth))
    return AskedDataset(
        dataset.name,
        dataset.root,
        dataset.split,
        dataset.role,
        dataset.classes,
        draw.of(pictures, lambda one: one),
        dataset.problems,
    )


def _together(pictures: Iterable[Collection[int]], count: int) -> npt.NDArray[np.int64]:
    """`[K, K]`: the number of pictures with both names; on the diagonal with the name."""
    pairs = Counter((a, b) for labels in pictures for a in labels for b in labels)
    found = np.zeros((count, count), np.int64)
    for pair, times in pairs.items():
        found[pair] = times
    return found
