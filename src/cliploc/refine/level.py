"""Level: one τ for all maps, by moving each map's own best level to it; works on every tower."""

import math

import torch
from torch import Tensor

from cliploc.methods import Context
from cliploc.refine import refinement
from cliploc.towers.tower import Needs

# All chosen on the tuning pictures; tools/level_study.py, docs/studies/refinement.md.
WIDTH = 0.08  # standard deviation by which heat is smoothed, so that the area has a slope at every level
SHRINK = 0.75  # exponent of the area by which its growth is divided: 1 is relative growth, 0.5 the growth of a side
PULL = 3.0  # weight of the distance to τ
LEVELS = 41  # number of levels that are tried
BEND = 2.0  # largest γ, and one over the smallest
LEAST = 1e-3  # smallest area, as a share of the map
VALUES = 2**16  # of maps at several levels that are computed together: more do not fit into the fast memory


@refinement(
    "level",
    title="Level",
    paper="no paper of its own; the stable regions of Matas et al. 2002, MSER, BMVC, for a whole map",
    on="grid",
    needs=lambda backbone: Needs(features=(backbone.middle_stage,)),  # for their grid, which is that of `affinity`
)
def level(ctx: Context, maps: Tensor) -> Tensor:  # [B, P, h, w]
    """map′ = map^γ, γ = log τ / log t*: the level t* becomes τ; the order of values and the peak stay.

    t* is the level at which the hot area changes least: the edge of the object, if heat falls off there. It minimises

        t · |dA/dt| / A^0.75 + 3 · log(t / τ)²

    over levels t with γ from ½ to 2. A(t) is the share of places above t, smoothed: mean Φ((map − t) / 0.08), at least
    0.001. τ is the threshold for boxes of these maps (`Context.threshold`); the second term keeps t* near it.
    """
    return leveled(maps, ctx.threshold)


def leveled(maps: Tensor, threshold: float) -> Tensor:
    """`level` of maps `[B, P, h, w]`; `threshold` is that of `Context`."""
    tau = min(max(threshold, 0.01), 0.99)  # 0 and 1 have no γ
    best = levels(maps, tau)[..., None, None]  # [B, P, 1, 1]
    maps = maps.float()
    # A flat map is left as it is: rounding would make some of its values differ.
    flat = maps.amax(dim=(2, 3), keepdim=True) == maps.amin(dim=(2, 3), keepdim=True)
    return torch.where(flat, maps, maps ** (math.log(tau) / best.log()))


def levels(maps: Tensor, tau: float, width: float = WIDTH, shrink: float = SHRINK, pull: float = PULL) -> Tensor:
    """t* of each map: `[B, P, h, w]` in 0–1 → `[B, P]`; see `level`.

    Example:
        >>> ramp = torch.linspace(0, 1, 100).view(1, 1, 10, 10)
        >>> plateau = (ramp > 0.5) * (0.4 + 0.6 * ramp)  # 0 outside of it, 0.7 and more inside
        >>> [f"{level:.2f}" for level in levels(torch.cat([ramp, plateau]), 0.5).flatten()]
        ['0.43', '0.49']
    """
    heat = maps.float().flatten(2)[:, :, None]  # [B, P, 1, N]
    tried = tau ** (BEND ** torch.linspace(-1, 1, LEVELS, dtype=torch.float64))  # [L]
    far = pull * (tried / tau).log() ** 2
    tried, far = tried.to(heat), far.to(heat)
    costs = []
    for some in torch.split(tried, max(1, VALUES // max(1, heat.numel()))):
        above = (heat - some[:, None]) / width  # [B, P, levels, N]
        area = torch.special.ndtr(above).mean(dim=3).clamp(min=LEAST)  # [B, P, levels]
        slope = (-above.square() / 2).exp().mean(dim=3) / (width * math.sqrt(2 * math.pi))
        costs.append(some * slope / area**shrink)
    return tried[(torch.cat(costs, dim=2) + far).argmin(dim=2)]  # of equal costs the first
