"""From a lesson and what was learnt to a map over the model's input.

Drafts of a folder and results with a file of what was learnt are drawn here, so that both are the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.geometry import padding_least
from cliploc.maps import min_max
from cliploc.refine.affinity import spread_along, with_details
from cliploc.refine.level import leveled
from cliploc.teaching.learnt import Learnt
from cliploc.teaching.lesson import Lesson
from cliploc.teaching.sides import LENGTH
from cliploc.values import FloatArray

# Places must be more alike to exchange heat than in `affinity` alone; chosen on the raccoon pictures, see
# docs/studies/teaching.md.
CUT = 0.3


def mixed(heat: Tensor, projected: Tensor, share: Sequence[float]) -> Tensor:
    """Maps in 0–1 `[B, p, h, w]`, of those of the text and of how like each name each place is, `[B, p, h′, w′]`."""
    taught = F.interpolate(projected, (heat.shape[-2], heat.shape[-1]), mode="bilinear")
    of_text = torch.tensor(share, device=heat.device)[:, None, None]
    return min_max(of_text * min_max(heat.float()) + (1 - of_text) * taught)


def drawn(
    lessons: Sequence[Lesson],
    names: Sequence[int],
    projected: Tensor,
    share: Sequence[float],
    level: float | None,
    cut: float = CUT,
) -> Iterator[Tensor]:
    """For each picture maps `[p, H, W]` in 0–1 over the first scale's input; they don't depend on the other pictures.

    Args:
        lessons: of B pictures with the same grids.
        names: the numbers of the p names.
        projected: `[B, p, h′, w′]` how like each name each place is, in 0–1.
        share: `[p]` of the map of the text in the result.
        level: τ of the step `level`; None without it.
        cut: of `affinity`.
    """
    heat = torch.stack([torch.stack([one.map_of(p) for p in names]) for one in lessons])
    maps, frames = mixed(heat, projected, share), [one.frame for one in lessons]
    spread = [  # one by one: a picture's pairs of places fit into the fast memory, those of several do not
        with_details(spread_along(one.directions()[None], maps[i : i + 1], cut), maps[i : i + 1])
        for i, one in enumerate(lessons)
    ]
    maps = min_max(padding_least(torch.cat(spread), frames, False))
    if level is not None:
        maps = min_max(padding_least(leveled(maps, level), frames, False))
    for raw, frame in zip(maps, frames, strict=True):
        yield min_max(frame.sampling_of_whole(frame, raw).over_input(raw))


@dataclass(frozen=True)
class Redrawn:
    """The names of a picture whose maps are drawn by what was learnt."""

    learnt: Learnt
    lesson: Lesson  # with the maps of those that are asked for
    rows: Mapping[int, tuple[int, float]]  # the number of a name → its row, and the share of the text's map
    level: float | None  # τ of the step `level`; None without it

    def sides(self, count: int) -> FloatArray:
        """`[P, LENGTH]` how the sides of the boxes of all `count` names are moved; see `cliploc.teaching.sides`."""
        found = np.zeros((count, LENGTH), np.float32)
        for p, (row, _) in self.rows.items():
            found[p] = self.learnt.sides[row].numpy()
        return found

    def maps(self, names: Sequence[int]) -> Tensor:
        """Maps `[p, H, W]` in 0–1 of some of the names over the first scale's input."""
        rows, share = [self.rows[p][0] for p in names], [self.rows[p][1] for p in names]
        projected = self.learnt.project(self.lesson.maps_of_features(), rows)
        return next(drawn([self.lesson], names, projected[None], share, self.level))
