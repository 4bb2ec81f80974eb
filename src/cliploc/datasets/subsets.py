"""Named subsets of a dataset: classes chosen by their kind, never by a method's results."""

from __future__ import annotations

from dataclasses import dataclass

from cliploc.registry import Registry


@dataclass(frozen=True)
class Subset:
    """A subset of a dataset's classes."""

    name: str  # as typed on the command line
    title: str  # its purpose
    reasons: dict[str, str]  # WordNet id → why this class was chosen


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
