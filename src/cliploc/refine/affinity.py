"""Feature affinity: spreads a map over places with similar mid-tower features; works on every tower."""

import torch
from torch import Tensor

from cliploc.methods import Context, min_max
from cliploc.refine import refinement
from cliploc.towers.tower import Backbone, Needs

CUT = 0.1  # places whose cosine is lower exchange no heat; tools/refinement_study.py
# With the features of windows, which differ more from place to place; tools/windows_study.py.
WINDOWS_CUT = 0.2
DETAILS = 0.2  # share of the map before the step in the result: maps of windows have details that spreading blurs
PAIRS = 2**24  # pairs of places whose cosines are in memory at once: 64 MB
ROUNDING = 1e-4  # distances from the mean below this share of the largest are rounding


def spread_along(places: Tensor, maps: Tensor, cut: float) -> Tensor:
    """Computes A · map for maps `[B, P, h, w]` and the `directions` `[B, h·w, C]` of their places; see `affinity`."""
    heat = maps.flatten(2).transpose(1, 2)  # [B, N, P]
    rows = max(1, PAIRS // (places.shape[0] * places.shape[1]))
    parts = []
    for start in range(0, places.shape[1], rows):
        alike, total = exchanged(places, cut, start, rows)
        parts.append(alike @ heat / total)  # [B, rows, P]
    return torch.cat(parts, dim=1).transpose(1, 2).reshape(maps.shape)


def exchanged(places: Tensor, cut: float, start: int = 0, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """How much heat some places take from each, `[B, rows, N]`, and from all `[B, rows, 1]`; places `[B, N, C]`."""
    end = None if rows is None else start + rows
    alike = places[:, start:end] @ places.transpose(1, 2)  # [B, rows, N]
    # A place's cosine with itself is 1, also where all features are equal and directions are zero.
    alike.diagonal(offset=start, dim1=1, dim2=2).fill_(1)
    alike = alike.sub_(cut).relu_()
    return alike, alike.sum(dim=2, keepdim=True)


def _threshold(backbone: Backbone, tau: float) -> float:
    """Doubles the threshold on a CNN, at most to 0.5, as heat spreads far beyond the peaks."""
    return max(tau, min(0.5, 2 * tau)) if backbone.kind == "cnn" else tau


@refinement(
    "affinity",
    title="Feature affinity",
    paper="no paper of its own; a random-walk step as in Ahn & Kwak 2018, AffinityNet, CVPR, without training",
    on="grid",
    threshold=_threshold,
    needs=lambda backbone: Needs(features=(backbone.middle_stage,)),
)
def affinity(ctx: Context, maps: Tensor) -> Tensor:  # [B, P, h, w]
    """map′ = A · map, A the row-normalised max(0, S − 0.1), S_ij = cos(F_i − F̄, F_j − F̄) of mid-tower features F.

    F are the guide's features, or, without a guide, those of the tower's middle stage, whose grid is finer than the
    last one's; on a ViT the patch tokens after about three quarters of the blocks. F̄ is the mean over the picture, so
    that what all places have in common does not count. The map is resized to the grid of F first and stays on it.

    If the picture is also seen in windows and there is no guide, F are the stitched features of the smallest windows,
    whose grid is finer and not stretched. Then S is cut at 0.2 instead of 0.1, and
    map′ = 0.8 · min_max(A · map) + 0.2 · map. Cuts and the threshold of the boxes were chosen on the tuning pictures:
    docs/studies/refinement.md.
    """
    spread = spread_along(directions(ctx.places), maps, WINDOWS_CUT if ctx.from_windows else CUT)
    return with_details(spread, maps) if ctx.from_windows else spread


def with_details(spread_maps: Tensor, maps: Tensor) -> Tensor:
    """Maps after spreading, with a share of those before it."""
    return (1 - DETAILS) * min_max(spread_maps) + DETAILS * maps


def directions(features: Tensor) -> Tensor:
    """For each place the unit vector from the picture's mean feature to its feature: `[B, C, h, w]` → `[B, h·w, C]`.

    A place at the mean, but for rounding, has no direction: nearly a zero vector.
    """
    places = features.float().flatten(2).transpose(1, 2)  # [B, N, C]
    apart = places - places.mean(dim=1, keepdim=True)
    length = apart.norm(dim=2, keepdim=True)  # [B, N, 1]
    least = (ROUNDING * length.amax(dim=1, keepdim=True)).clamp(min=torch.finfo(length.dtype).tiny)
    return apart / torch.maximum(length, least)
