"""Datasets of pictures with boxes, with a reader for each; nothing is downloaded. `open_dataset` reads any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cliploc._files import user_path
from cliploc.datasets._infra.candidates import BY_DESIGN, Box, Candidate, Checker, Problems
from cliploc.datasets._infra.labelled import (
    LabelFile,
    LabelledDataset,
    LabelledPicture,
    LabelledReader,
    LabelMap,
    Truth,
    class_list,
    classes_of,
    labelled_reader,
    labelled_readers,
    open_labelled,
    read_labels,
)
from cliploc.datasets._infra.registration import Found, Reader, Split, reader, readers
from cliploc.datasets._infra.selection import checked, labels_of, refuse_counts
from cliploc.datasets.subsets import Subset, subsets
from cliploc.errors import UsageError
from cliploc.values import IGNORE, Dataset

__all__ = [
    "BY_DESIGN",
    "IGNORE",
    "Box",
    "Candidate",
    "Found",
    "LabelFile",
    "LabelMap",
    "LabelledDataset",
    "LabelledPicture",
    "LabelledReader",
    "Problems",
    "Reader",
    "Split",
    "Subset",
    "Truth",
    "class_list",
    "classes_of",
    "labelled_reader",
    "labelled_readers",
    "open_dataset",
    "open_labelled",
    "read_labels",
    "reader",
    "readers",
    "subsets",
]


def open_dataset(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    subset: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Reads a dataset's annotations and checks that its pictures are there.

    Args:
        split: the name of a split; None for the reader's first.
        classes: classes to read, by name, synonym or WordNet id; None for all.
        limit: read only this number of samples, from the first on.
        sample: read only this number of samples, drawn at random, in their usual order.
        seed: seed of that draw; the same seed draws the same samples from the same folder.

    Returns:
        The samples that can be used, and a problem for everything that was left out or corrected. Pictures that were
        not asked for are not opened.

    Example:
        >>> from cliploc.datasets import open_dataset
        >>> dataset = open_dataset("wsol", "../shared/data/ilsvrc_val_dev", limit=2)  # doctest: +SKIP
        >>> dataset.classes[dataset.samples[0].label].name  # doctest: +SKIP
        'Chow Chow'
    """
    entry = readers.get(name)
    part = entry.split(split)
    if subset is not None and classes is not None:
        raise UsageError("expected a subset or classes, got both: leave one out")
    refuse_counts(limit, sample)
    chosen = None if subset is None else subsets.get(subset)
    root = user_path(root)
    if not root.is_dir():
        raise UsageError(f"expected a folder with {entry.title}, found none at {root}: check the path")
    problems = Problems()
    found = entry.read(root, part.name, problems)
    candidates = found.candidates
    if chosen is not None:
        wanted = _subset_labels(chosen, found, name)
        candidates = [one for one in candidates if one.label in wanted]
    elif classes is not None:
        wanted = labels_of(classes, found.classes)
        candidates = [one for one in candidates if one.label in wanted]
    samples = checked(candidates, Checker(len(found.classes), problems), limit, sample, seed)
    if not samples:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in problems.met).items())
        why = "no sample has a class that is asked for"
        if counts:
            why = f"{counts}; the first, {problems.met[0].source}: {problems.met[0].reason}"
        raise UsageError(f"no picture in {root} can be used ({why}): the layout is shown by cliploc datasets {name}")
    return Dataset(name, root, part.name, part.role, found.classes, tuple(samples), tuple(problems.met))


def _subset_labels(subset: Subset, found: Found, name: str) -> set[int]:
    labels = {one.wnid: label for label, one in enumerate(found.classes)}
    absent = [wnid for wnid in subset.reasons if wnid not in labels]
    if absent:
        raise UsageError(f"{name} has no class {', '.join(absent)} of the subset {subset.name}: choose --classes")
    return {labels[wnid] for wnid in subset.reasons}
