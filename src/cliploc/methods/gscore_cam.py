"""gScoreCAM: Score-CAM over the few channels that the score is most sensitive to."""

import torch
from torch import Tensor

from cliploc.methods import SOFTER, Context, Count, FromEnd, Positive, map_gradients, masked_cam, masked_embeddings


@masked_cam(
    "gscore_cam", title="gScoreCAM", paper="Chen et al. 2022, gScoreCAM: What Objects Is CLIP Looking At?, ACCV"
)
def gscore_cam(
    ctx: Context, top_k: Count = 300, temperature: Positive | None = None, block: FromEnd = -1
) -> Tensor:  # [B, P, h, w]
    """map_t = ReLU(Σ_k w_tk A_k), w_t = softmax of cos(f(x ⊙ M_k), g_t) / temperature over the `top_k` best channels.

    The best channels are those of largest mean gradient α_tk = mean_hw ∂s_t/∂A_k; the others have weight 0 and cost no
    forward pass. M_k is made as in `score_cam` (the authors' upsampling aligns corners); no baseline is subtracted. A
    chosen channel that is constant gets the empty picture's score, without a forward pass.

    The authors' code gives the discarded channels a logit of 0 and takes the softmax over all channels. For CLIP, whose
    logits are about 20, it makes no difference; on `mini` they would get a quarter of all weight or more.

    Args:
        top_k: channels per prompt; all when the tower has fewer.
        temperature: as for `score_cam`.
        block: as for `score_cam`.
    """
    temperature = temperature or SOFTER / ctx.backbone.logit_scale
    alpha = map_gradients(ctx, lambda _, gradients: gradients.mean(dim=(-2, -1)), block)  # [B, P, C]
    best = alpha.topk(min(top_k, alpha.shape[-1]), dim=-1).indices  # [B, P, k]
    chosen = torch.zeros_like(alpha, dtype=torch.bool).scatter(-1, best, True)  # [B, P, C]
    scores, _ = masked_embeddings(ctx, block, chosen.any(dim=1)).scores(ctx.text)  # [B, P, C]
    weights = (scores / temperature).masked_fill(~chosen, -torch.inf).softmax(dim=-1)  # [B, P, C]
    return torch.einsum("bpc,bchw->bphw", weights, ctx.trace.features[block].float())
