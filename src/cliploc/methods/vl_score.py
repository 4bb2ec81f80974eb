"""VL-Score: Score-CAM over the channels that make the picture more like the prompt than an empty picture is."""

import torch
from torch import Tensor

from cliploc.methods import SOFTER, Context, FromEnd, Positive, masked_cam, masked_embeddings


@masked_cam("vl_score", title="VL-Score", paper="Gao & Wang 2022, VL-Score")
def vl_score(ctx: Context, temperature: Positive | None = None, block: FromEnd = -1) -> Tensor:  # [B, P, h, w]
    """map_t = Σ_k w_tk A_k over the channels k with score_tk = cos(f(x ⊙ M_k), g_t) > cos(f(x_b), g_t).

    w_t is the softmax of score_tk / temperature over these channels alone; masks, options and forward passes are those
    of `score_cam`. If no channel qualifies, the map is zero everywhere: "not found". On a ViT the published study found
    the method weak.

    The paper's setting (CLIP RN50) takes boxes at 0.60 of the maximum; we do not know its temperature. Our temperature
    and threshold were chosen on the tuning pictures (docs/studies/performance.md). No public package has the method.
    """
    temperature = temperature or SOFTER / ctx.backbone.logit_scale
    scores, baseline = masked_embeddings(ctx, block).scores(ctx.text)  # [B, P, C], [B, P, 1]
    worse = scores <= baseline
    weights = (scores / temperature).masked_fill(worse, -torch.inf).softmax(dim=-1)  # [B, P, C], NaN if all are worse
    weights = weights.masked_fill(worse, 0)
    return torch.einsum("bpc,bchw->bphw", weights, ctx.trace.features[block].float())
