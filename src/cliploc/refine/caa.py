"""Class-aware attention-based affinity (CAA): a ViT's attention spreads the heat over the rest of the object."""

import torch
from torch import Tensor

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.methods import Context
from cliploc.refine import refinement
from cliploc.towers.tower import Backbone, Needs, as_transformer

BLOCKS = 8  # the paper's
BOXES = BoxRule(threshold=0.4, min_area=0, nms_iou=None)  # the authors' threshold
ROUNDS = 3  # the authors'
# Attention is rounded to float32, and a walk squares its differences from uniform attention. A map that varies by less
# than this share of its maximum shows only the rounding, which depends on the batch.
FLAT = (16 * torch.finfo(torch.float32).eps) ** 2


def _last_blocks(backbone: Backbone) -> tuple[int, ...]:
    return tuple(range(-min(BLOCKS, as_transformer(backbone).depth), 0))


@refinement(
    "caa",
    title="CAA",
    paper="Lin et al. 2023, CLIP is Also an Efficient Segmenter (CLIP-ES), CVPR",
    on="grid",
    towers=("vit",),
    needs=lambda backbone: Needs(attention=_last_blocks(backbone)),
)
def caa(ctx: Context, maps: Tensor) -> Tensor:  # [B, P, h, w]
    """map′ = W · (B ⊙ map), W = S², S = (D + Dᵀ)/2, D the Sinkhorn-normalised patch–patch attention.

    The attention is the mean over the heads of the last 8 blocks (all, when there are fewer), patches only. B is 1
    inside the boxes of the map's regions above 0.4 of its maximum, so that heat on other objects does not spread.
    Sinkhorn takes three rounds. S is computed once for all prompts and methods, in float64: if attention is nearly
    uniform, so is the map. A map that varies by no more than the attention's rounding becomes constant.

    The authors find boxes in the map as uint8 (truncated), and limit right and bottom edges, which are exclusive, to
    width − 1 and height − 1, so that the last column and row are never inside a box; our boxes reach the edge.
    """
    key = "caa"
    if key not in ctx.cache:
        n = ctx.trace.grid[0] * ctx.trace.grid[1]
        blocks = [ctx.trace.attention[block].float().mean(dim=1) for block in _last_blocks(ctx.backbone)]
        ctx.cache[key] = transition(torch.stack(blocks).mean(dim=0)[:, -n:, -n:])  # [B, N, N]
    return walk(ctx.cache[key], maps)


# CLIP-ES's random walk: heat moves between similar places, starting inside the map's own boxes.
def transition(affinity: Tensor) -> Tensor:
    """Half of a walk's step, S of affinities `[B, N, N]` above 0, by Sinkhorn & Knopp (1967); float64."""
    affinity = affinity.double()
    for _ in range(ROUNDS):
        affinity = affinity / affinity.sum(dim=1, keepdim=True)
        affinity = affinity / affinity.sum(dim=2, keepdim=True)
    return (affinity + affinity.transpose(1, 2)) / 2


def walk(transitions: Tensor, maps: Tensor) -> Tensor:
    """One walk, S² · (B ⊙ map), for every map `[B, P, h, w]`; transitions S `[B, N, N]`.

    In float64: the differences of a nearly constant map, which are scaled to 0–1 later, are below float32's precision.
    """
    flat = maps.flatten(0, 1)  # [B·P, h, w]
    boxes = boxes_from_maps(flat.cpu().numpy(), BOXES)
    mask = torch.zeros_like(flat)
    for index, (x0, y0, x1, y1) in zip(boxes.index.tolist(), boxes.xyxy.astype(int).tolist(), strict=True):
        mask[index, y0:y1, x0:x1] = 1
    walked = (maps * mask.view_as(maps)).flatten(2).double()  # [B, P, N]
    for _ in range(2):
        walked = walked @ transitions  # symmetric
    low, high = walked.amin(dim=-1, keepdim=True), walked.amax(dim=-1, keepdim=True)
    return torch.where(high - low > FLAT * high, walked, high).view_as(maps)
