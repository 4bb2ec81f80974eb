"""Pictures with a planted thing: where it lies is known, and the map of the text finds a part of it only."""

from dataclasses import dataclass

import numpy as np
import torch

from cliploc.find.learnt import Lesson, keep
from cliploc.images.geometry import Frame
from cliploc.values import FloatArray

SIDE, CELLS = 96, 12  # pixels of a picture, and cells of its grid
CHANNELS = 24


@dataclass(frozen=True)
class Planted:
    """A picture's lesson and where its thing is."""

    lesson: Lesson
    box: FloatArray  # [4] pixels
    mask: torch.Tensor  # [CELLS, CELLS] bool


def planted(number: int, seed: int = 0, seen: bool = True, alike: bool = True) -> Planted:
    """One picture.

    Args:
        seen: whether the map of the text finds the thing's upper left corner; else it is hot at random places.
        alike: whether the thing has the same features in every picture.
    """
    rng = np.random.default_rng([seed, number])
    x, y = rng.integers(1, CELLS - 6, 2)
    w, h = rng.integers(3, 6, 2)
    mask = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    mask[y : y + h, x : x + w] = True
    thing = np.random.default_rng(1 if alike else [seed, number, 1]).normal(size=CHANNELS)
    features = torch.from_numpy(rng.normal(scale=0.4, size=(CHANNELS, CELLS, CELLS))).float()
    features[:, mask] += torch.from_numpy(thing).float()[:, None]
    heat = torch.from_numpy(rng.uniform(0, 0.3, (CELLS, CELLS))).float()
    if seen:
        heat[y : y + 2, x : x + 2] = 1
    else:
        heat[tuple(rng.integers(0, CELLS, 2))] = 1
    frame = Frame.fit("squash", (SIDE, SIDE), (SIDE, SIDE))
    # What is shown by the picture as a whole has nothing to do with the thing.
    embedding = torch.from_numpy(rng.normal(size=8))
    lesson = keep([0], heat[None], features, features, embedding, frame)
    box = np.array([x, y, x + w, y + h], np.float32) * SIDE / CELLS
    return Planted(lesson, box, mask)
