"""The grid pointing game: in a grid of pictures, the heat of a name must lie on the picture that shows it."""

import functools
import random
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc.evaluate.tasks.faithfulness import measure as base
from cliploc.images.demo import demo_photos
from cliploc.images.reading import load

CELLS = 2  # along each side


@base.faithfulness_metric
class GridPointing(base.FaithfulnessMetric):
    """The share of the heat that lies in the picture's own cell of a 2×2 grid; a blind map has 0.25.

    The other three cells show photographs of the package: those whose cosine with the name is lowest. The paper fills
    cells with confident pictures of other classes, enlarges the input, and takes the positive values of raw maps; here
    cells are squashed into the tower's input, whose size a ViT fixes, and the heat is that in 0–1. A map without heat
    has no number.
    """

    name = "grid_pointing"
    position = 24
    paper = "Rao et al. 2022, Towards Better Understanding Attribution Methods, CVPR"
    numbers: ClassVar = {
        "grid_pointing": base.Number("grid pointing ↑", "share of the heat in the own cell of a 2×2 grid", "high")
    }
    needs_method = True

    def measure(self, judged: base.Judged) -> base.Measured:
        assert judged.others is not None
        place = random.Random(judged.seed).randrange(CELLS**2)
        grid = judged.once(("grid", judged.target), lambda: grid_with(judged, place))  # [1, 3, H, W]
        heat = judged.others.of_pictures("grid map", grid)[0].double()
        total = float(heat.sum())
        return base.Measured({"grid_pointing": float(heat[cells(*heat.shape)[place]].sum()) / total if total else None})


def cells(height: int, width: int) -> list[tuple[slice, slice]]:
    """The rows and columns of each cell of a grid, row by row."""
    down, across = ([side * i // CELLS for i in range(CELLS + 1)] for side in (height, width))
    return [(slice(*rows), slice(*columns)) for rows in pairwise(down) for columns in pairwise(across)]


def grid_with(judged: base.Judged, place: int) -> Tensor:
    """A grid `[1, 3, H, W]` with the picture in one cell; elsewhere the photographs that fit the name least."""
    size = (judged.images.shape[-2], judged.images.shape[-1])
    photos = judged.normalize(photographs(*size).to(judged.images.device)).to(judged.images)
    fit = judged.scores(len(photos), lambda first, last: photos[first:last]).cosine  # [n]
    chosen = [photos[index] for index in fit.argsort(stable=True)[: CELLS**2 - 1].tolist()]
    chosen.insert(place, judged.images[0])
    grid = torch.empty_like(judged.images)
    for picture, (rows, columns) in zip(chosen, cells(*size), strict=True):
        cell = grid[:, :, rows, columns]
        cell[:] = F.interpolate(picture[None], cell.shape[-2:], mode="bilinear", antialias=True, align_corners=False)
    return grid


@functools.lru_cache(maxsize=1)  # for all pictures of a run
def photographs(height: int, width: int) -> Tensor:
    """The photographs of the package, squashed to a size: `[n, 3, H, W]` in 0–1."""
    made = [load(photo.path).image.resize((width, height), Image.Resampling.BILINEAR) for photo in demo_photos()]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in made])).permute(0, 3, 1, 2).float() / 255
