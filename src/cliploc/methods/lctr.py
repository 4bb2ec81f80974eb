"""LCTR: the class token's attention, carried on by the other tokens, shows where; semantic maps show what."""

import torch
from torch import Tensor

from cliploc.methods import Blocks, Context, TrainedHead
from cliploc.methods._infra.attention import blocks_of, class_attention, dense_cosine, patches_of, semantic_attention


@semantic_attention(
    "lctr",
    title="LCTR",
    paper="Chen et al. 2022, LCTR: On Awakening the Local Continuity of Transformer for Weakly Supervised Object "
    "Localization, AAAI; dense similarity: Zhou, Loy & Dai 2022, Extract Free Dense Labels from CLIP, ECCV",
    threshold=0.4,
)
def lctr(ctx: Context, blocks: Blocks = "all", head: TrainedHead | None = None) -> Tensor:  # [B, P, h, w]
    """map_t = mean_l r^l ⊙ ReLU(S_t), r^l the paper's relational patch attention (RPAM), the same for every text.

    r^l = mean over tokens j of a_j · M[j → patches], a = mean_H A^l[class token → all], M = mean_H A^l[all → patches].
    On a tower with an attention pool, a is the pool's attention in every block.

    With a trained head (`cliploc train lctr`), S_t is the output of the paper's cue-digging module, trained on image
    labels; without one it is MaskCLIP's cosine of every patch with the prompt. A CNN has no class token: with a head
    trained on its last features, r^l = 1.

    Args:
        blocks: how many of the last blocks r^l is averaged over, "all" in the paper.
        head: a head trained for this method on this tower. The `Localizer` takes the path of its file.
    """
    with torch.no_grad():
        semantics = dense_cosine(ctx) if head is None else head.semantics(ctx)  # [B, P, h, w]
        if ctx.backbone.kind == "cnn":
            return semantics
        reached = []
        for block in blocks_of(ctx, blocks):
            attention = ctx.trace.attention[block].mean(dim=1)  # [B, T, T]
            row = class_attention(ctx, block)  # [B, T]
            reached.append(torch.einsum("bt,btu->bu", row, attention) / row.shape[1])  # [B, T]
        return patches_of(ctx, torch.stack(reached).mean(dim=0))[:, None] * semantics
