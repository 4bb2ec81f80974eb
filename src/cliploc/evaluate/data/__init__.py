"""Datasets of pictures with boxes, with a reader for each; nothing is downloaded. `open_dataset` reads any of them."""

from collections.abc import Sequence
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data._infra.candidates import (
    BY_DESIGN,
    Box,
    Candidate,
    Checker,
    Problems,
    boxes_inside,
)
from cliploc.evaluate.data._infra.labelled import (
    LabelFile,
    LabelledReader,
    labelled_reader,
    labelled_readers,
    open_labelled,
)
from cliploc.evaluate.data._infra.registration import Found, Reader, Split, reader, readers
from cliploc.evaluate.data._infra.selection import (
    NEGATIVES,
    Draw,
    Subset,
    asked_pictures,
    labels_of,
    nothing_usable,
    subsets,
)
from cliploc.runs.samples import AskedDataset, LabelledDataset
from cliploc.support.files import user_path
from cliploc.values import IGNORE, Dataset, Role


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
    """
    entry = readers.get(name)
    part = entry.split(split)
    if subset is not None and classes is not None:
        raise UsageError("expected a subset or classes, got both: leave one out")
    draw = Draw(limit, sample, seed)
    chosen = None if subset is None else subsets.get(subset)
    root = user_path(root)
    if not root.is_dir():
        raise UsageError(f"expected {entry.title} at {root}, found no folder there: check the path")
    problems = Problems()
    annotations = entry.read(root, part.name, problems)
    candidates = annotations.candidates
    if chosen is not None or classes is not None:
        wanted = chosen.labels(annotations.classes, name) if chosen else labels_of(classes or (), annotations.classes)
        candidates = [candidate for candidate in candidates if candidate.label in wanted]
    samples = draw.of(candidates, Checker(problems, len(annotations.classes)).sample)
    if not samples:
        raise nothing_usable(name, root, problems, "no sample has a class that is asked for")
    # A name is not absent because none of its boxes can be used.
    used = {(sample.path, sample.label) for sample in samples}
    unclear = annotations.unclear.union((candidate.path, candidate.label) for candidate in candidates).difference(used)
    return Dataset(
        name, root, part.name, part.role, annotations.classes, samples, tuple(problems.met), unclear, annotations.absent
    )


def open_asked(
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
) -> AskedDataset:
    """Reads a dataset as pictures with names to ask; see `open_dataset` and `asked_pictures`.

    Args:
        subset, classes: only these names are asked.
        limit, sample: of pictures.
    """
    draw = Draw(limit, sample, seed)
    dataset = open_dataset(name, root, split, subset=subset, classes=classes)
    whole = subset is None and classes is None
    names = range(len(dataset.classes)) if whole else {sample.label for sample in dataset.samples}
    return asked_pictures(dataset, negatives, names, draw)


def list_datasets(*, role: Role | None = None) -> list[str]:
    """The names that `cliploc.evaluate.data.open_dataset` takes.

    Args:
        role: only those with a split of this role: to "tune" a threshold on, or to "report" numbers on.

    Example:
        >>> "voc" in list_datasets(role="report")
        True
    """
    return [entry.name for entry in readers if role is None or role in {split.role for split in entry.splits}]
