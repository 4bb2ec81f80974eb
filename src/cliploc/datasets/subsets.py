"""Named parts of a dataset: classes chosen by what they are, never by a method's results."""

from __future__ import annotations

from dataclasses import dataclass

from cliploc.registry import Registry


@dataclass(frozen=True)
class Subset:
    """Some classes of a dataset.

    Attributes:
        name: as typed on the command line.
        title: what it is for.
        reasons: WordNet id → why this class is among them.
    """

    name: str
    title: str
    reasons: dict[str, str]


subsets: Registry[Subset] = Registry("subset")

subsets.register(
    "ten-classes",
    Subset(
        "ten-classes",
        "ten ILSVRC classes, each of another kind of thing and another look",
        {
            "n02279972": "insect (monarch): thin wings with a strong pattern, often on a flower that competes",
        },
    ),
)
