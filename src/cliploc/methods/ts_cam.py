"""TS-CAM: the class token's attention, summed over blocks, shows where things are; semantic maps show what."""

import torch
from torch import Tensor

from cliploc.methods import Blocks, Context, TrainedHead
from cliploc.methods._infra.attention import dense_cosine, semantic_attention, summed_attention


@semantic_attention(
    "ts_cam",
    title="TS-CAM",
    paper="Gao et al. 2021, TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object Localization, "
    "ICCV; dense similarity: Zhou, Loy & Dai 2022, Extract Free Dense Labels from CLIP, ECCV",
    threshold=0.35,
)
def ts_cam(ctx: Context, blocks: Blocks = "all", head: TrainedHead | None = None) -> Tensor:  # [B, P, h, w]
    """map_t = A* ⊙ ReLU(S_t), A* = Σ_l mean_H A^l[class token → patches], which does not depend on the text.

    With a trained head (`cliploc train tscam`), S_t is the paper's convolution over the last tokens; without one it is
    MaskCLIP's cosine of every patch with the prompt. The paper has no ReLU: there a negative patch with much attention
    is below a patch without any. A CNN has no class token: with a head trained on its last features, A* = 1.

    Args:
        blocks: how many of the last blocks the attention is summed over, "all" in the paper.
        head: as for `lctr`.
    """
    with torch.no_grad():
        semantics = dense_cosine(ctx) if head is None else head.semantics(ctx)  # [B, P, h, w]
        return semantics if ctx.backbone.kind == "cnn" else summed_attention(ctx, blocks)[:, None] * semantics
