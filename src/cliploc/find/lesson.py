"""What is kept of each picture of a run, so that a folder can be searched again without the model: a `Lesson`.

It has the maps of its names before the steps on the grid, and the tower's features in eight bits: 90 to 170 KB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.images.geometry import Frame
from cliploc.refine.affinity import directions
from cliploc.towers.tower import Backbone
from cliploc.values import FloatArray

VERSION = 3  # of what is kept
# Wider features are projected at random (Johnson & Lindenstrauss 1984).
MOST_CHANNELS = 320
MOST_OF_PLACES = 128  # channels of the features that places are compared by
SEED = 0  # of that projection
MOST_CELLS = 256  # of the grid of the features that are taught; finer ones are averaged


def taught_stage(backbone: Backbone) -> int:
    """The stage whose features are taught: of a CNN the last but one, of a ViT what enters the last block."""
    return -2 if backbone.kind == "cnn" else -1


@dataclass(frozen=True)
class Lesson:
    """One picture, on grids over the first scale's input."""

    names: tuple[int, ...]  # the numbers of the p names that have maps
    heat: Tensor  # [p, h, w] float16 in 0–1: the mean of the views, before the steps on the grid
    places: Tensor  # [C, h, w] int8, 127 times the directions of `cliploc.refine.affinity`
    features: Tensor  # [c, h′, w′] int8, in steps of `scale`
    scale: float
    embedding: Tensor  # [D] float16
    frame: Frame

    def map_of(self, name: int) -> Tensor:
        """The map of a name by its number, `[h, w]` float32; zero where none was made."""
        if name in self.names:
            return self.heat[self.names.index(name)].float()
        return torch.zeros(self.places.shape[-2:], device=self.places.device)

    def directions(self) -> Tensor:
        """`[h·w, C]` float32."""
        return self.places.flatten(1).T.float() / 127

    def on(self, device: torch.device | str) -> Lesson:
        """The same, to be drawn on this device."""
        return replace(
            self, heat=self.heat.to(device), places=self.places.to(device), features=self.features.to(device)
        )

    def maps_of_features(self) -> Tensor:
        """The features `[c, h′, w′]` float32."""
        return self.features.float() * self.scale

    def readings(self) -> Tensor:
        """The features `[h′·w′, c]` float32."""
        return self.maps_of_features().flatten(1).T


def keep(
    names: Sequence[int],
    heat: Tensor,
    places: Tensor,
    features: Tensor,
    embedding: FloatArray | Tensor,
    frame: Frame,
) -> Lesson:
    """The lesson of a picture: maps `[p, h, w]`, features of the middle stage `[C, h, w]` and of the taught stage."""
    along = directions(places[None])[0].T.reshape(places.shape)
    taught = taught_features(features)
    scale = max(float(taught.abs().amax()) / 127, torch.finfo(torch.float32).tiny)
    return Lesson(
        tuple(names),
        heat.half().cpu(),
        (narrowed(along, MOST_OF_PLACES) * 127).round().clamp(-127, 127).to(torch.int8).cpu(),
        (taught / scale).round().to(torch.int8).cpu(),
        scale,
        torch.as_tensor(embedding).half().cpu(),
        frame,
    )


def narrowed(features: Tensor, most: int) -> Tensor:
    """Features `[C, h, w]` with at most so many channels; products between places stay nearly the same."""
    channels = len(features)
    if channels <= most:
        return features
    chance = torch.randn(most, channels, generator=torch.Generator().manual_seed(SEED)) / most**0.5
    return torch.einsum("nc,chw->nhw", chance.to(features.device), features)


def taught_features(features: Tensor) -> Tensor:
    """The features `[C, h, w]` of the taught stage as lessons have them, not rounded."""
    features = features.float()
    while features.shape[-2] * features.shape[-1] > MOST_CELLS:
        features = pooled(features, (-(-features.shape[-2] // 2), -(-features.shape[-1] // 2)))
    return narrowed(features, MOST_CHANNELS)


def pooled(maps: Tensor, hw: tuple[int, int]) -> Tensor:
    """Maps `[…, h, w]` on another grid: the means of its cells, or between them."""
    if maps.shape[-2:] == hw:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    coarser = hw[0] <= maps.shape[-2] and hw[1] <= maps.shape[-1]
    resized = F.adaptive_avg_pool2d(flat, hw) if coarser else F.interpolate(flat, hw, mode="bilinear")
    return resized.reshape(*maps.shape[:-2], *hw)
