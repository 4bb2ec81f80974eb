"""The registries of dataset readers and their decorators, and what the readers of phrases share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from cliploc.errors import UsageError
from cliploc.evaluate.data._infra.candidates import Candidate, Problems
from cliploc.formats import Box, Size
from cliploc.registry import Registry
from cliploc.runs.samples import LabelledPicture
from cliploc.values import ClassName, Role

F = TypeVar("F")
Read: TypeAlias = Callable[[Path, str, Problems], F]  # root, split and the list of problems → what it found


@dataclass(frozen=True)
class Split:
    """A part of a dataset."""

    name: str  # such as "val"
    role: Role  # "tune" if thresholds may be chosen on it, else "report"
    about: str  # a short description


@dataclass(frozen=True)
class Found:
    """What a reader found in the annotations, before any picture is opened."""

    classes: tuple[ClassName, ...]  # the names of the class of each label
    candidates: Sequence[Candidate]  # for samples in a fixed order, those of the same picture next to each other
    # pictures and labels that are there as what evaluations ignore, such as crowds, beside samples or alone
    unclear: frozenset[tuple[Path, int]] = frozenset()
    # picture → labels known not to be there; None if all labels without a candidate are absent
    absent: Mapping[Path, frozenset[int]] | None = None


@dataclass(frozen=True)
class DatasetReader(Generic[F]):
    """A reader, and what it says of its dataset."""

    name: str  # as typed on the command line
    title: str  # the dataset's name as papers write it
    about: str  # what the dataset contains
    source: str  # where to get it; nothing is downloaded
    splits: tuple[Split, ...]  # the first is the default
    layout: str  # the files expected below the root, one per line
    read: Read[F]

    def split(self, name: str | None) -> Split:
        """The split of that name; the first for None."""
        for split in self.splits:
            if name in (None, split.name):
                return split
        names = ", ".join(split.name for split in self.splits)
        raise UsageError(f"{self.name} has no split {name!r}: expected one of {names}")


class Readers(Registry[DatasetReader[F]]):
    """A registry of readers."""

    def reader(self, name: str, *, layout: str, **facts: Any) -> Callable[[Read[F]], Read[F]]:
        """Registers a function as the reader of a dataset; the arguments are the attributes of `DatasetReader`."""

        def register(read: Read[F]) -> Read[F]:
            self.register(name, DatasetReader(name=name, layout=layout.strip("\n"), read=read, **facts))
            return read

        return register


Reader: TypeAlias = DatasetReader[Found]
readers: Readers[Found] = Readers(
    "dataset", "cliploc.evaluate.data", "cliploc.datasets", home=lambda reader: reader.read.__module__
)
reader = readers.reader
Labelled: TypeAlias = tuple[tuple[ClassName, ...], Sequence[LabelledPicture]]
LabelledReader: TypeAlias = DatasetReader[Labelled]
labelled_readers: Readers[Labelled] = Readers("segmentation dataset", "cliploc.evaluate.data.segmentation")
labelled_reader = labelled_readers.reader


# -------------------------------------------------- phrases as classes, where each thing has a sentence of its own
SIGNS = str.maketrans(dict.fromkeys("|~@", " "))  # which mean something in a name; see `cliploc.find.prompts.parse`
PhraseRow: TypeAlias = tuple[str, str, Path, list[Box], Size]  # sample's id, phrase, picture, boxes, picture's size


def plain_phrase(text: str) -> str:
    """A phrase on one line, without the signs that mean something in a name."""
    return " ".join(text.translate(SIGNS).split())


def found_phrases(rows: Sequence[PhraseRow]) -> Found:
    """The candidates of these rows, with a class for each different phrase, sorted."""
    phrases = sorted({phrase for _, phrase, *_ in rows})
    labels = {phrase: label for label, phrase in enumerate(phrases)}
    candidates = [Candidate(name, path, labels[phrase], boxes, size) for name, phrase, path, boxes, size in rows]
    return Found(tuple(ClassName(phrase, (phrase,)) for phrase in phrases), candidates)
