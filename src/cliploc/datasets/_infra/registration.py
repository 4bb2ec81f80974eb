"""The registry of dataset readers and its decorator `@reader(...)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cliploc.datasets._infra.candidates import Candidate, Problems
from cliploc.errors import UsageError
from cliploc.registry import Registry
from cliploc.values import ClassName, Role


@dataclass(frozen=True)
class Split:
    """A part of a dataset.

    Attributes:
        name: such as "val".
        role: "tune" if thresholds may be chosen on it, else "report".
        about: a short description.
    """

    name: str
    role: Role
    about: str


@dataclass(frozen=True)
class Found:
    """What a reader found in the annotations, before any picture is opened.

    Attributes:
        classes: the names of the class of each label.
        candidates: candidates for samples in a fixed order, those of the same picture next to each other.
    """

    classes: tuple[ClassName, ...]
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class DatasetFacts:
    """What every reader says of its dataset.

    Attributes:
        name: as typed on the command line.
        title: the dataset's name as papers write it.
        about: what the dataset contains.
        source: where to get it; nothing is downloaded.
        splits: its splits; the first is the default.
        layout: the files expected below the root, one per line.
    """

    name: str
    title: str
    about: str
    source: str
    splits: tuple[Split, ...]
    layout: str

    def split(self, name: str | None) -> Split:
        """The split of that name; the first for None.

        Raises:
            UsageError: an unknown name; the message lists the splits.
        """
        for split in self.splits:
            if name in (None, split.name):
                return split
        there = ", ".join(split.name for split in self.splits)
        raise UsageError(f"{self.name} has no split {name!r}: expected one of {there}")


@dataclass(frozen=True)
class Reader(DatasetFacts):
    """The reader of a dataset; further attributes as in `DatasetFacts`.

    Attributes:
        read: function of root, split and the list of problems, which returns what it found.
    """

    read: Callable[[Path, str, Problems], Found]


readers: Registry[Reader] = Registry(
    "dataset", "cliploc.datasets", "cliploc.datasets", home=lambda reader: reader.read.__module__
)


def reader(
    name: str, *, title: str, about: str, source: str, splits: tuple[Split, ...], layout: str
) -> Callable[[Callable[[Path, str, Problems], Found]], Callable[[Path, str, Problems], Found]]:
    """Registers a function `root, split, problems → Found` as the reader of a dataset; see `Reader`."""

    def register(read: Callable[[Path, str, Problems], Found]) -> Callable[[Path, str, Problems], Found]:
        readers.register(name, Reader(name, title, about, source, splits, layout.strip("\n"), read))
        return read

    return register
