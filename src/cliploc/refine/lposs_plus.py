"""LPOSS+: label propagation over the pixels, between neighbours of similar colour."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.refine import refinement
from cliploc.refine._neighbours import strips
from cliploc.refine._propagation import propagate

TAU = 0.01  # of colours scaled by SCALE
SCALE = (100.0, 128.0, 128.0)  # of L, a, b
TOLERANCE = 1e-4
LEAST = 1e-8  # smaller weights are set to 0: their products would be denormal float32 numbers, which are slow
AT_ONCE = 32  # prompts computed together
RADIUS = 6  # of a window of 13×13 pixels
# One of each pair of opposite offsets in it.
HALF = tuple((y, x) for y in range(RADIUS + 1) for x in range(-RADIUS, RADIUS + 1) if y or x > 0)


@refinement(
    "lposs_plus",
    title="LPOSS+ (pixels)",
    paper="Stojnić et al. 2025, LPOSS: Label Propagation Over Patches and Pixels, CVPR",
    on="picture",
    package="kornia",
)
def lposs_plus(picture: Tensor, maps: Tensor, cell: tuple[int, int]) -> Tensor:  # noqa: ARG001  # works on pixels
    """map′ = (1 − α) (I − α Ŵ)⁻¹ map over the pixels, α 0.95, Ŵ = D^-½ W D^-½.

    W_ij = exp(−‖c_i − c_j‖ / 0.01) for the pixels j in the 13×13 window around i, without i itself; c are the Lab
    colours divided by (100, 128, 128), D has the row sums. Solved by conjugate gradients. The paper's
    LPOSS+ is `lposs`, then this step: `refine=["lposs", "lposs_plus"]`.

    Where we differ: we stop at a residual of 1e-4 of the map, after about 28 steps, the authors at 1e-6, after
    about 42. The picture has its own resolution, up to 1,024 pixels on its longer side, not the input's.
    """
    done = []
    for image, heat in zip(picture.float(), maps.float(), strict=True):
        spread = partial(gathered, neighbour_weights(image))
        done.append(torch.cat([propagate(spread, part, TOLERANCE) for part in torch.split(heat, AT_ONCE)]))
    return torch.stack(done)


def neighbour_weights(picture: Tensor) -> Tensor:
    """Ŵ of each pixel i and i + offset, for the offsets of `HALF`, `[84, H, W]`; 0 where there is no such pixel."""
    from kornia.color import rgb_to_lab

    colours = rgb_to_lab(picture) / picture.new_tensor(SCALE)[:, None, None]
    weights = picture.new_zeros(len(HALF), *picture.shape[1:])
    degree = torch.zeros_like(picture[0])
    for pixels, near, strip in _pairs(weights, len(colours)):
        apart = colours[:, *pixels] - colours[:, *near]
        apart = apart[0].square().addcmul_(apart[1], apart[1]).addcmul_(apart[2], apart[2])
        torch.exp(apart.sqrt_().mul_(-1 / TAU), out=strip)
        degree[pixels] += strip
        degree[near] += strip
    degree[degree == 0] = 1
    scale = degree.rsqrt()
    for pixels, near, strip in _pairs(weights, 1):
        F.threshold(strip.mul_(scale[pixels]).mul_(scale[near]), LEAST, 0, inplace=True)
    return weights


def _pairs(weights: Tensor, count: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], Tensor]]:
    """In strips of rows, for each offset of `HALF`: some pixels, their neighbours, and the view of their weights.

    A strip fits the processor's cache where so many values of a pixel are in memory at once.
    """
    height, width = weights.shape[1:]
    for rows in strips(weights, count):
        for weight, (down, right) in zip(weights, HALF, strict=True):
            start, stop = rows.start, min(rows.stop, height - down)
            if start < stop:
                pixels = slice(start, stop), slice(max(0, -right), max(0, width - max(0, right)))
                near = slice(start + down, stop + down), slice(max(0, right), max(0, width + min(0, right)))
                yield pixels, near, weight[pixels]


def gathered(weights: Tensor, maps: Tensor) -> Tensor:
    """Ŵ · map: `[84, H, W]` of `neighbour_weights`, `[P, H, W]` → `[P, H, W]`."""
    total = torch.zeros_like(maps)
    for pixels, near, strip in _pairs(weights, len(maps)):
        total[:, *pixels].addcmul_(strip, maps[:, *near])
        total[:, *near].addcmul_(strip, maps[:, *pixels])
    return total
