"""From a lesson and what was learnt to a map over the model's input, as the run would have drawn it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.maps import min_max
from cliploc.pipeline.views import padding_least, whole_on_input
from cliploc.refine.affinity import along
from cliploc.refine.level import leveled
from cliploc.teaching.lesson import Lesson


def mixed(heat: Tensor, projected: Tensor, share: Sequence[float]) -> Tensor:
    """Maps in 0–1 `[p, h, w]`, of those of the text and of how like each name each place is, `[p, h′, w′]`."""
    taught = F.interpolate(projected[None], (heat.shape[-2], heat.shape[-1]), mode="bilinear")[0]
    of_text = torch.tensor(share, device=heat.device)[:, None, None]
    return min_max(of_text * min_max(heat.float()) + (1 - of_text) * taught)


def drawn(lesson: Lesson, heat: Tensor, projected: Tensor, share: Sequence[float], level: float | None) -> Tensor:
    """Maps `[p, H, W]` in 0–1 over the first scale's input.

    Args:
        heat: `[p, h, w]` the maps of the names before the steps on the grid.
        projected: `[p, h′, w′]` how like each name each place is, in 0–1.
        share: `[p]` of `heat` in the result.
        level: τ of the step `level`; None without it.
    """
    maps = mixed(heat, projected, share)[None]  # [1, p, h, w]
    frames = [lesson.frame]
    maps = along(lesson.directions()[None], maps, lesson.windowed)
    maps = min_max(padding_least(maps, frames, False))
    if level is not None:
        maps = min_max(padding_least(leveled(maps, level), frames, False))
    return min_max(whole_on_input(maps[0], lesson.frame, lesson.frame))
