"""Mathematics of maps that methods, refinements and the pipeline share."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.values import FloatArray


def as_tensor(maps: FloatArray) -> Tensor:
    """Maps as a tensor that is only read; zeros that cannot be written to are copied, as torch warns of them."""
    return torch.from_numpy(maps if maps.flags.writeable else maps.copy())


def min_max(maps: Tensor) -> Tensor:
    """Scales each map `[..., H, W]` to 0–1; a constant map becomes all zeros."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    spread = high - low
    risen = maps - low
    return risen.div_(torch.where(spread > 0, spread, torch.ones_like(spread)))  # of a constant map all are 0 already


def on_finest(maps: Sequence[Tensor]) -> Tensor:
    """Maps `[B, P, h, w]` of several grids, resized (bilinear) to the finest: `[n, B, P, h, w]`."""
    finest = max((m.shape[-2], m.shape[-1]) for m in maps)
    return torch.stack([F.interpolate(m, size=finest, mode="bilinear", align_corners=False) for m in maps])
