"""`@reader(...)` stands beside the code that knows a dataset's files, and makes it known everywhere."""

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
        role: "tune" – a threshold may be chosen on it – or "report".
        about: what it is, in a few words.
    """

    name: str
    role: Role
    about: str


@dataclass(frozen=True)
class Found:
    """What a reader found in the annotations, before any picture is looked at.

    Attributes:
        classes: label → names.
        candidates: in a fixed order, those of the same picture next to each other.
    """

    classes: tuple[ClassName, ...]
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class Reader:
    """A dataset that can be read.

    Attributes:
        name: as typed on the command line.
        title: as papers write it.
        about: what it holds.
        source: where to get it; nothing is downloaded.
        splits: the first is the one read when none is named.
        layout: the files expected below the root, a line each.
        read: root, split, where to name problems → what is there.
    """

    name: str
    title: str
    about: str
    source: str
    splits: tuple[Split, ...]
    layout: str
    read: Callable[[Path, str, Problems], Found]

    def split(self, name: str | None) -> Split:
        """The split of that name; the first for None.

        Raises:
            UsageError: naming those there are.
        """
        for split in self.splits:
            if name in (None, split.name):
                return split
        there = ", ".join(split.name for split in self.splits)
        raise UsageError(f"{self.name} has no split {name!r}: expected one of {there}")


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
