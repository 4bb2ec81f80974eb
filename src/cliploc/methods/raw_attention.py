"""Raw attention: where the class token of one block looks; the same for every prompt."""

import torch
from torch import Tensor

from cliploc.methods import QUERIED, Context, FromEnd, Needs, class_attention, for_every_prompt, patches_of, saliency


@saliency(
    "raw_attention",
    title="Raw attention",
    paper="Dosovitskiy et al. 2021, An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, ICLR",
    family="attention",
    towers=("vit",),
    poolings=QUERIED,
    needs=lambda block=-1: Needs(attention=(block,)),
    threshold=0.3,
    reads_text=False,
)
def raw_attention(ctx: Context, block: FromEnd = -1) -> Tensor:  # [B, P, h, w]
    """map = mean_H A^l[class token → patches] of one block, the same for every prompt: a baseline, not an explanation.

    A tower with an attention pool (SigLIP, CoCa, Perception Encoder) makes its embedding there: the map is then mean_H
    of the pool's attention, for any `block`. With average pooling no single query attends to the patches.

    Args:
        block: counted from the end, −1 is the last.
    """
    with torch.no_grad():
        return for_every_prompt(ctx, patches_of(ctx, class_attention(ctx, block)))
