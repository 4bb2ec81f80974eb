"""How features differ from their mean over the picture, by which steps on the grid compare places."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-4  # distances from the mean below this share of the largest are rounding


def directions(features: Tensor) -> Tensor:
    """For each place the unit vector from the picture's mean feature to its feature: `[B, C, h, w]` → `[B, h·w, C]`.

    A place at the mean, but for rounding, has no direction: nearly a zero vector.
    """
    places = features.float().flatten(2).transpose(1, 2)  # [B, N, C]
    apart = places - places.mean(dim=1, keepdim=True)
    length = apart.norm(dim=2, keepdim=True)  # [B, N, 1]
    least = (ROUNDING * length.amax(dim=1, keepdim=True)).clamp(min=torch.finfo(length.dtype).tiny)
    return apart / torch.maximum(length, least)
