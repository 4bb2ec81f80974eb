"""LPOSS+: label propagation over the pixels, between neighbours of similar colour."""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.refine import refinement
from cliploc.refine._neighbours import HALF, RADIUS, Bags, in_bags, moved, pixel_by_pixel, strips
from cliploc.refine._propagation import propagate

TAU = 0.01  # of colours scaled by SCALE
SCALE = (100.0, 128.0, 128.0)  # of L, a, b
TOLERANCE = 1e-4
LEAST = 1e-8  # smaller weights are set to 0: their products would be denormal float32 numbers, which are slow
AT_ONCE = 32  # prompts computed together
STRIP = 12  # `count` of `strips` for the weights: strips of 43 rows of 500 pixels
WHOLE = tuple((-y, -x) for y, x in reversed(HALF)) + HALF


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
        parts = torch.split(heat, AT_ONCE)
        weights = neighbour_weights(image)
        bags = None
        if in_bags(parts[0]):
            bags, parts = _bags(weights), tuple(pixel_by_pixel(part) for part in parts)
        done.append(torch.cat([propagate(partial(_spread, weights, bags), part, TOLERANCE) for part in parts]))
    return torch.stack(done)


def neighbour_weights(picture: Tensor) -> Tensor:
    """Ŵ of each pixel i and i + offset, for the offsets of `HALF`, `[84, H, W]`; 0 where there is no such pixel."""
    from kornia.color import rgb_to_lab

    colours = rgb_to_lab(picture) / picture.new_tensor(SCALE)[:, None, None]
    weights = picture.new_zeros(len(HALF), *picture.shape[1:])
    degree = torch.zeros_like(picture[0])
    for here, there, strip in _pairs(weights, len(colours)):
        apart = colours[:, *here] - colours[:, *there]
        apart = apart[0].square().addcmul_(apart[1], apart[1]).addcmul_(apart[2], apart[2])
        torch.exp(apart.sqrt_().mul_(-1 / TAU), out=strip)
        degree[here] += strip
        degree[there] += strip
    degree[degree == 0] = 1
    scale = degree.rsqrt()
    for here, there, strip in _pairs(weights, 1):
        F.threshold(strip.mul_(scale[here]).mul_(scale[there]), LEAST, 0, inplace=True)
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
                here = slice(start, stop), slice(max(0, -right), max(0, width - max(0, right)))
                there = slice(start + down, stop + down), slice(max(0, right), max(0, width + min(0, right)))
                yield here, there, weight[here]


def gathered(weights: Tensor, maps: Tensor) -> Tensor:
    """Ŵ · map: `[84, H, W]` of `neighbour_weights`, `[P, H, W]` → `[P, H, W]`."""
    total = torch.zeros_like(maps)
    for here, there, strip in _pairs(weights, len(maps)):
        total[:, *here].addcmul_(strip, maps[:, *there])
        total[:, *there].addcmul_(strip, maps[:, *here])
    return total


def _spread(weights: Tensor, bags: Bags | None, maps: Tensor) -> Iterable[tuple[slice, Tensor]]:
    """The same for `propagate`; in bags of maps that lie pixel by pixel, strip by strip."""
    if bags is None:
        return [(slice(None), gathered(weights, maps))]
    around = F.pad(maps.permute(1, 2, 0), (0, 0) + (RADIUS,) * 4)
    return ((rows, total.permute(2, 0, 1)) for rows, total in bags.sums(around))


def _bags(weights: Tensor) -> Bags:
    """Ŵ of `neighbour_weights` `[84, H, W]` for many maps at once."""
    around = F.pad(weights, (RADIUS,) * 4)

    def both(rows: slice) -> Tensor:
        """The weights of a strip `[168, rows, W]`; those of upward offsets are stored at the neighbour."""
        before = [moved(around[k : k + 1], rows, (-y, -x), RADIUS)[0] for k, (y, x) in enumerate(HALF)]
        return torch.stack([*reversed(before), *weights[:, rows]])

    return Bags((both(rows) for rows in strips(weights, STRIP)), WHOLE, RADIUS, weights.shape[2])
