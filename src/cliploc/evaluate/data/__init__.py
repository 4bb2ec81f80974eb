"""Datasets of pictures with boxes, with a reader for each; nothing is downloaded. `open_dataset` reads any of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data import _base
from cliploc.evaluate.data._base import (
    BY_DESIGN,
    Annotations,
    Candidate,
    DatasetReader,
    Draw,
    LabelledReader,
    Problems,
    Reader,
    Split,
    boxes_inside,
    labelled_readers,
    reader,
    readers,
    subsets,
)
from cliploc.evaluate.data._labelled import check_map, label_file
from cliploc.runs.picture_files import LabelledDataset, PromptedDataset
from cliploc.support.files import user_path
from cliploc.values import Dataset, Role


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
        The samples that can be used, and a problem for everything that was left out or corrected. Pictures outside the
        selection are not opened.
    """
    if subset is not None and classes is not None:
        raise UsageError("expected a subset or classes, got both: leave one out")
    draw = Draw(limit, sample, seed)
    chosen = None if subset is None else subsets.get(subset)
    root, part, problems, annotations = _read(readers.get(name), root, split)
    candidates = annotations.candidates
    if chosen is not None or classes is not None:
        labels = (
            chosen.labels(annotations.classes, name) if chosen else _base.labels_of(classes or (), annotations.classes)
        )
        candidates = [candidate for candidate in candidates if candidate.label in labels]
    samples = draw.of(candidates, _base.Checker(problems, len(annotations.classes)).sample)
    if not samples:
        raise _base.nothing_usable(name, root, problems, "no sample has one of the classes")
    # A name is not absent because none of its boxes can be used.
    used = {(sample.path, sample.label) for sample in samples}
    unclear = annotations.unclear.union((candidate.path, candidate.label) for candidate in candidates).difference(used)
    return Dataset(
        name, root, part.name, part.role, annotations.classes, samples, tuple(problems), unclear, annotations.absent
    )


def open_labelled(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> LabelledDataset:
    """Reads a segmentation set's list of pictures, and checks that they and their label maps are there.

    Arguments and result are as in `open_dataset`.
    """
    draw = Draw(limit, sample, seed)
    root, part, problems, (classes, pictures) = _read(labelled_readers.get(name), root, split)
    samples = draw.of(pictures, partial(check_map, _base.Checker(problems)))
    if not samples:
        raise _base.nothing_usable(name, root, problems, "it has none")
    return LabelledDataset(name, root, part.name, part.role, classes, samples, tuple(problems))


def _read(entry: DatasetReader[_base.F], root: str | Path, split: str | None) -> tuple[Path, Split, Problems, _base.F]:
    part, root, problems = entry.split(split), user_path(root), Problems()
    if not root.exists():
        raise UsageError(f"expected {entry.title} at {root}, found no folder there: check the path")
    return root, part, problems, entry.read(root, part.name, problems)


def open_prompted(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    negatives: str = "all",
    subset: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> PromptedDataset:
    """Reads a dataset as pictures with names to ask; see `open_dataset` and `prompted_pictures`.

    Args:
        subset, classes: only these names are prompts.
        limit, sample: of pictures.
    """
    draw = Draw(limit, sample, seed)
    dataset = open_dataset(name, root, split, subset=subset, classes=classes)
    every = subset is None and classes is None
    names = range(len(dataset.classes)) if every else {sample.label for sample in dataset.samples}
    return _base.prompted_pictures(dataset, negatives, names, draw)


def list_datasets(*, role: Role | None = None) -> list[str]:
    """The names that `cliploc.evaluate.data.open_dataset` takes.

    Args:
        role: only those with a split of this role: to "tune" a threshold on, or to "report" numbers on.

    Example:
        >>> "voc" in list_datasets(role="report")
        True
    """
    return [entry.name for entry in readers if role is None or role in {split.role for split in entry.splits}]
