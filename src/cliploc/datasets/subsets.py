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
        "ten ILSVRC classes, each another kind of thing with another look",
        {
            "n02106662": "mammal: fur, a face that says more than the body, any pose",
            "n01843383": "bird: the bill alone tells it, so that a map may see a part for the whole",
            "n01665541": "reptile: one large dark shape, as dull as the sand around it",
            "n02279972": "insect: a strong pattern on thin wings, mostly on a flower that competes",
            "n12267677": "plant: small, several together, among leaves of the same tree",
            "n07753592": "food: yellow, in bunches, where instances touch and overlap",
            "n03272562": "vehicle: long and large, with rails and wires that always come along",
            "n04086273": "tool held in the hand: thin, metal, of two very different parts",
            "n03854065": "musical instrument: fills the picture, a repeated pattern of pipes, indoors",
            "n04380533": "furniture: a shade and a foot that look like two things, indoors among other furniture",
        },
    ),
)
