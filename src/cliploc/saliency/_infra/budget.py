"""Predicts masked pictures' scores from a few by a Gaussian process (Rasmussen & Williams 2006, 2 and 5.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST = 0.4  # share of the budget that is spread over all masks
ROUNDS = 5  # number of rounds in which the rest is spent
LENGTHS = (0.35, 0.7, 1.4, 2.8)  # kernel lengths tried, times the typical distance of two masks
NOISES = (1e-3, 1e-2, 1e-1)  # noise variances tried, as shares of the scores' variance
ENOUGH = 0.995  # expected correlation with the exact map at which the rest of the budget is saved
CLUSTER_STEPS = 5  # steps of k-means
SAMPLES = 32  # draws from the posterior
SAMPLED = 512  # masks of largest weight whose scores are drawn; the others hardly matter


@dataclass(frozen=True)
class MaskSet:
    """The different masks of one picture."""

    unit: Tensor  # [u, N] the masks, min–max normalised
    sums: Tensor  # [u, N] for each mask the sum of the maps A_k that make it
    counts: Tensor  # [u] for each mask the number of these maps

    def map_of(self, scores: Tensor, temperature: float, floor: float = -math.inf) -> Tensor:
        """Score-CAM's map `[…, N]` from scores `[…, u]`; with a floor VL-Score's: lower scores get no weight."""
        weights = _relative_weights(scores, scores.amax(-1, keepdim=True), temperature, floor)  # […, u]
        total = (weights * self.counts).sum(-1, keepdim=True)
        return (weights @ self.sums) / total.clamp(min=torch.finfo(total.dtype).tiny)


def spread(masks: Tensor, count: int) -> Tensor:
    """About `count` of the masks `[u, N]`: those next to k-means centres, from far starts, so deterministic."""
    if count >= len(masks):
        return torch.arange(len(masks), device=masks.device)
    nearest = torch.cdist(masks, masks.mean(dim=0, keepdim=True))[:, 0]
    far = [int(nearest.argmin())]
    nearest = torch.full_like(nearest, math.inf)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (masks - masks[far[-1]]).square().sum(dim=1))
        far.append(int(nearest.argmax()))
    centres = masks[far]  # [k, N]
    for _ in range(CLUSTER_STEPS):
        member = torch.nn.functional.one_hot(torch.cdist(masks, centres).argmin(dim=1), count).to(masks.dtype)  # [u, k]
        size = member.sum(dim=0)[:, None]  # [k, 1]
        centres = torch.where(size > 0, member.T @ masks / size.clamp(min=1), centres)
    chosen: Tensor = torch.unique(torch.cdist(masks, centres).argmin(dim=0))
    return chosen


def estimate(
    masks: MaskSet,
    first: Tensor,
    budget: int,
    temperature: float,
    enough: float = ENOUGH,
    floor: float = -math.inf,
) -> Generator[Tensor, Tensor, tuple[Tensor, float]]:
    """Yields masks to try, is sent their scores; stops when the expected correlation with the exact map is `enough`.

    Returns the scores of all masks `[u]`, exact where one was tried, and that correlation.
    """
    tried, scores = first, (yield first)
    if len(first) == len(masks.unit):
        return scores, 1.0
    left_out = len(masks.unit) - len(first)
    share = max(1, math.ceil((budget - len(first)) / ROUNDS))
    while True:
        mean, deviation, draw = _posterior(masks.unit, tried, scores)
        mean, deviation = mean.to(scores), deviation.to(scores)  # [u]
        known = torch.zeros(len(mean), dtype=torch.bool, device=mean.device)
        known[tried] = True
        mean[tried], deviation[tried] = scores, 0
        # The weight of each mask at both ends of its score's error, as a share of the largest weight.
        lower, middle, upper = (
            _relative_weights(mean + side * deviation, mean.max(), temperature, floor) for side in (-1, 0, 1)
        )
        # The mean correlation of the mean scores' map with maps of drawn scores.
        correlation = 1.0
        weight = upper.masked_fill(known, -1)
        untried = weight.topk(min(SAMPLED, int((weight >= 0).sum()))).indices
        if len(untried):
            drawn = mean.repeat(SAMPLES, 1)  # [S, u]
            drawn[:, untried] = draw(untried).to(mean)
            maps, own = (masks.map_of(sample, temperature, floor) for sample in (drawn, mean))  # [S, N], [N]
            maps, own = maps - maps.mean(dim=-1, keepdim=True), own - own.mean()
            lengths = maps.norm(dim=-1) * own.norm()
            correlation = float(((maps @ own) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).mean())
        count = min(share, budget - len(tried), left_out)
        if count <= 0 or correlation >= enough:
            return mean, correlation
        # How much an error would change the map: the distance of that weight from the predicted one.
        moved = torch.maximum(upper - middle, middle - lower) * (masks.sums - masks.sums.mean(dim=0)).norm(dim=1)
        chosen = moved.masked_fill(known, -1).topk(count).indices
        tried, scores = torch.cat([tried, chosen]), torch.cat([scores, (yield chosen)])
        left_out -= count


def _relative_weights(scores: Tensor, highest: Tensor, temperature: float, floor: float) -> Tensor:
    """Unnormalised weights exp((score − highest) / temperature), `[…, u]`; 0 for scores not above the floor."""
    return ((scores - highest) / temperature).exp().masked_fill(scores <= floor, 0)


def _kernel(squared: Tensor, length: float) -> Tensor:
    return torch.exp(squared / (-2 * length**2))


def _posterior(unit: Tensor, tried: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Mean and deviation `[u]` of the scores of all masks `[u, N]`, and draws of some of them, `[m]` → `[SAMPLES, m]`.

    The process is fitted to the masks `[n]` that were tried, with scores `[n]`; kernel and noise by maximum likelihood.
    """
    unit, scores = unit.double(), scores.double()
    squared = torch.cdist(unit, unit[tried]).square()  # [u, n]
    inner = squared[tried]  # [n, n]
    typical = float(inner.sum() / max(1, len(tried) * (len(tried) - 1))) ** 0.5 or 1.0
    centred = scores - scores.mean()
    best = None
    for length in (share * typical for share in LENGTHS):
        for noise in NOISES:
            kernel = _kernel(inner, length)
            kernel.diagonal().add_(noise)
            root = torch.linalg.cholesky(kernel)
            whitened = torch.linalg.solve_triangular(root, centred[:, None], upper=False)[:, 0]  # [n]
            variance = float(whitened.square().mean().clamp(min=1e-12))
            misfit = 0.5 * len(tried) * math.log(variance) + float(root.diagonal().log().sum())
            if best is None or misfit < best[0]:
                best = misfit, length, noise, root, whitened, variance
    assert best is not None
    _, length, noise, root, whitened, variance = best
    # [n, u]; the product of two columns is that part of two masks' covariance which the tried ones fix
    explained = torch.linalg.solve_triangular(root, _kernel(squared, length).T, upper=False)
    left = (1 + noise - explained.square().sum(dim=0)).clamp(min=0)  # [u]
    mean = scores.mean() + whitened @ explained  # [u]

    def draw(which: Tensor) -> Tensor:
        fixed = explained[:, which]
        covariance = _kernel(torch.cdist(unit[which], unit[which]).square(), length) - fixed.T @ fixed
        covariance.diagonal().add_(noise)
        root = torch.linalg.cholesky(variance * covariance)
        generator = torch.Generator().manual_seed(0)  # the global generator keeps its state
        normal = torch.randn(SAMPLES, len(which), generator=generator, dtype=root.dtype).to(root.device)
        drawn: Tensor = mean[which] + normal @ root.T
        return drawn

    return mean, (variance * left).sqrt(), draw
