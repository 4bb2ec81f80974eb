"""A direction for each name in the tower's features, from the places that the maps of a folder are sure of.

The maps of all pictures with a name are hot at some places and cold at others. In the whitened features of the folder
w = f̄ − b̄ points from the mean cold place to the mean hot one (as linear discriminant analysis does). New maps are the
mean of the old one and of the projection on w, spread by affinity; they give the next w. A picture that a person has
reviewed is clamped: hot is what lies in its boxes. No network is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.find.learnt import Lesson, pooled
from cliploc.methods import min_max
from cliploc.refine.affinity import WINDOWS_CUT, exchanged, with_details

# Chosen on one labelling job, the raccoon pictures; tools/corrections.py.
CHANNELS = 32  # of the whitened features
SHRINK = 1.0  # of the mean variance, added to each: rare directions are noise
ROUNDS = 4
HOT, COLD = 0.6, 0.2  # of maps in 0–1
TEXT_SHARE = 0.5  # share of the map from the text, where the model knows the name and nothing is reviewed
HALVED_AFTER = 40  # reviewed pictures that halve this share
OTHERS = 3.0  # weight of all pictures together that are not reviewed, for each that is, of a name that is not known
FEWEST_HOT, FEWEST_COLD = 0.002, 4  # weight of places, below which a picture says nothing
GROUP, SPLITS = 20, 8  # pictures of a group whose halves are compared, and number of comparisons
SAMPLED = 60  # places of a picture from which the folder's variance is estimated


@dataclass(frozen=True)
class Whitening:
    """The features of a folder, with about unit variance in each of `CHANNELS` directions."""

    mean: Tensor  # [c]
    matrix: Tensor  # [c, k]

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> Self:
        """That of these pictures."""
        rng, some = np.random.default_rng(0), []
        for readings in (lesson.readings() for lesson in lessons):
            places = rng.choice(len(readings), min(len(readings), SAMPLED), replace=False)
            some.append(readings[torch.from_numpy(places)])
        sample = torch.cat(some).double()
        mean = sample.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(sample.T))
        values, vectors = values[-CHANNELS:].clamp(min=0), vectors[:, -CHANNELS:]
        scale = (values + SHRINK * values.mean()).clamp(min=torch.finfo(values.dtype).tiny).rsqrt()
        return cls(mean.float(), (vectors * scale).float())

    def __call__(self, readings: Tensor) -> Tensor:
        """`[…, c]` → `[…, k]`."""
        return (readings - self.mean) @ self.matrix

    def unwhitened(self, directions: Sequence["Direction"]) -> tuple[Tensor, Tensor]:
        """Directions in the features themselves: weights `[P, c]` and bias `[P]`."""
        weights = torch.stack([self.matrix @ direction.w for direction in directions])
        return weights, torch.tensor([direction.bias for direction in directions]) - weights @ self.mean


@dataclass(frozen=True)
class Pictures:
    """The lessons of n pictures on the grid of the features that are taught, `[N = h′·w′]` places each."""

    whitened: Tensor  # [n, N, k]
    alike: Tensor  # [n, N, N] `exchanged` by affinity; kept, as maps are spread a hundred times
    total: Tensor  # [n, N, 1]
    grid: tuple[int, int]  # (h′, w′)

    @classmethod
    def of(cls, lessons: Sequence[Lesson], whitening: Whitening) -> Self:
        """The lessons of pictures with the same grids, at least one."""
        grid = (lessons[0].features.shape[-2], lessons[0].features.shape[-1])
        places = torch.stack([pooled(lesson.places.float() / 127, grid) for lesson in lessons])  # [n, C, h′, w′]
        alike, total = exchanged(F.normalize(places.flatten(2).transpose(1, 2), dim=2), WINDOWS_CUT)
        whitened = torch.stack([whitening(lesson.readings()) for lesson in lessons])
        return cls(whitened, alike, total, grid)

    def some(self, ids: Sequence[int]) -> Self:
        """Some of the pictures."""
        rows = list(ids)
        return replace(self, whitened=self.whitened[rows], alike=self.alike[rows], total=self.total[rows])

    def spread(self, maps: Tensor) -> Tensor:
        """Maps `[n, N]` spread by affinity, in 0–1."""
        on_grid = maps.view(len(maps), 1, *self.grid)
        spread = (self.alike @ maps[:, :, None] / self.total).view_as(on_grid)
        return min_max(with_details(spread, on_grid)).flatten(1)


@dataclass(frozen=True)
class Direction:
    """How like a name a place is: 0 at the mean cold place, 1 at the mean hot one."""

    w: Tensor  # [k]
    bias: float

    def __call__(self, whitened: Tensor) -> Tensor:
        """`[…, k]` → `[…]` in 0–1."""
        return (whitened @ self.w + self.bias).clamp(0, 1)


@dataclass(frozen=True)
class Fitted:
    """What a folder has taught of one name."""

    direction: Direction
    maps: Tensor  # [n, N] of the last round
    hot: Tensor  # [n, k] mean hot place of each picture
    cold: Tensor  # [n, k]
    hot_weight: Tensor  # [n] of the pictures; 0: nothing is hot
    cold_weight: Tensor  # [n]
    known: bool

    def without(self, i: int, pictures: Pictures, used: bool) -> Direction:
        """The direction as if picture `i` were not reviewed."""
        hot, cold = self.hot.clone(), self.cold.clone()
        hot_weight, cold_weight = self.hot_weight.clone(), self.cold_weight.clone()
        hot_weight[i] = cold_weight[i] = 0
        if self.known and used:
            none = torch.zeros_like(self.maps[i : i + 1])
            means = _means(pictures.some([i]), self.maps[i : i + 1], none, torch.zeros(1, dtype=torch.bool))
            hot[i], cold[i], hot_weight[i], cold_weight[i] = (mean[0] for mean in means)
        return _direction(hot, cold, hot_weight, cold_weight)


def share_of_text(reviewed: int, known: bool) -> float:
    """The share of the map from the text in the new one, after so many reviewed pictures."""
    return TEXT_SHARE * HALVED_AFTER / (HALVED_AFTER + reviewed) if known else 0.0


def fit_direction(
    pictures: Pictures,
    heat: Tensor,  # [n, N] maps of the name in 0–1 before the steps on the grid
    uses: Tensor,  # [n] bool, which pictures show the name
    boxes: Mapping[int, Tensor],  # reviewed picture → [N], the share of each cell in boxes of the name; all zero: none
    known: bool,  # whether the model knows the name; else only reviewed pictures start
) -> Fitted:
    """Teaches one name."""
    weight = max(1.0, len(boxes) / 2)  # of a reviewed picture against 1 of another
    count = len(heat)
    reviewed = torch.zeros(count, dtype=torch.bool)
    inside = torch.zeros_like(heat)
    for i, mask in boxes.items():
        reviewed[i], inside[i] = True, mask
    text = min_max(heat.view(count, 1, *pictures.grid)).flatten(1)
    maps = pictures.spread(text) if known else torch.zeros_like(heat)
    mix = share_of_text(len(boxes), known)
    for number in range(ROUNDS):
        alone = uses.float()
        if not known:
            alone = alone * (OTHERS * len(boxes) / count if number else 0.0)
        weights = torch.where(reviewed, torch.full_like(alone, weight), alone)
        hot, cold, has_hot, has_cold = _means(pictures, maps, inside, reviewed)
        hot_weight, cold_weight = weights * has_hot, weights * has_cold
        direction = _direction(hot, cold, hot_weight, cold_weight)
        taught = direction(pictures.whitened)
        joint = min_max((mix * text + (1 - mix) * taught).view(count, 1, *pictures.grid)).flatten(1)
        maps = pictures.spread(joint)
    return Fitted(direction, maps, hot, cold, hot_weight, cold_weight, known)


def stability(pictures: Pictures, heat: Tensor, uses: Tensor) -> float:
    """The mean correlation of the projections that two halves of 20 pictures teach; 0 with fewer pictures."""
    # Where maps are on the thing in most pictures, the halves teach the same. Of several groups of pictures that show
    # the name, and several halves, so that it does not grow with the folder.
    ids, rng = torch.nonzero(uses).flatten(), np.random.default_rng(0)
    if len(ids) < GROUP:
        return 0.0
    groups = min(len(ids) // GROUP, SPLITS)
    cosines = []
    for number in range(SPLITS):
        some = ids[number % groups * GROUP :][:GROUP]
        group, maps, first = pictures.some(some.tolist()), heat[some], torch.zeros(len(some), dtype=torch.bool)
        first[rng.permutation(len(some))[::2].copy()] = True
        halves = [fit_direction(group, maps, half, {}, known=True).direction for half in (first, ~first)]
        taught = [direction(group.whitened) for direction in halves]  # [20, N]
        one, other = (like - like.mean(dim=1, keepdim=True) for like in taught)
        cosines.append(F.cosine_similarity(one, other, dim=1).mean())
    return float(torch.stack(cosines).mean())


def _means(pictures: Pictures, maps: Tensor, inside: Tensor, reviewed: Tensor) -> tuple[Tensor, ...]:
    """Mean hot and cold place of each picture `[n, k]`, and whether there are any `[n]`."""
    clamped = (inside > 0.5 * inside.amax(dim=1, keepdim=True)) * maps.clamp(min=0.1).square()
    hot = torch.where(reviewed[:, None], clamped, (maps > HOT).float())
    cold = torch.where(reviewed[:, None], (inside < 0.05).float(), (maps < COLD).float())
    sums = []
    for places in (hot, cold):
        total = places.sum(dim=1, keepdim=True)
        sums.append(torch.einsum("nj,njk->nk", places / total.clamp(min=1e-9), pictures.whitened))
    return *sums, hot.sum(dim=1) > FEWEST_HOT, cold.sum(dim=1) > FEWEST_COLD


def _direction(hot: Tensor, cold: Tensor, hot_weight: Tensor, cold_weight: Tensor) -> Direction:
    hot, cold = (  # [k]
        weights @ means / weights.sum().clamp(min=1e-9) for means, weights in ((hot, hot_weight), (cold, cold_weight))
    )
    w = hot - cold
    length = (w @ w).clamp(min=1e-6)
    return Direction(w / length, float(0.5 - 0.5 * (hot + cold) @ w / length))
