"""gScoreCAM: Score-CAM over the few channels that the score is most sensitive to."""

import torch
from torch import Tensor

from cliploc.methods import Context, Count, FromEnd, Positive
from cliploc.methods._infra.masked import SOFTER, channel_gradients, channel_maps, masked_cam, masked_embeddings


@masked_cam(
    "gscore_cam",
    title="gScoreCAM",
    paper="Chen et al. 2022, gScoreCAM: What Objects Is CLIP Looking At?, ACCV",
)
def gscore_cam(
    ctx: Context,
    top_k: Count = 300,
    temperature: Positive | None = None,
    block: FromEnd = -1,
    components: Count | None = None,
    published: bool = False,
) -> Tensor:  # [B, P, h, w]
    """map_t = ReLU(Σ_k w_tk A_k), w_t = softmax of cos(f(x ⊙ M_k), g_t) / temperature over the `top_k` best channels.

    The best channels are those of largest mean gradient α_tk = mean_hw ∂s_t/∂A_k; the others have weight 0 and cost no
    forward pass. M_k is made as in `score_cam` (the authors' upsampling aligns corners); no baseline is subtracted. A
    chosen channel that is constant gets the empty picture's score, without a forward pass.

    The authors' code, which `published` repeats, gives the discarded channels a logit of 0 and takes the softmax over
    all channels. For CLIP, whose logits are about 20, it makes no difference. With cosines near 0 for masked pictures
    (`mini`), or a higher temperature, they would get a real share: on `mini` a quarter of all weight or more.

    Args:
        top_k: channels per prompt; all when the tower has fewer.
        temperature: as for `score_cam`; None with `published`: the model's own, 1 / logit scale.
        block: as for `score_cam`.
        components: as for `score_cam`.
        published: take the softmax over all channels, with 0 for the discarded ones, as the authors' code does.
    """
    temperature = temperature or (1.0 if published else SOFTER) / ctx.backbone.logit_scale
    maps = channel_maps(ctx, block, components)
    alpha = channel_gradients(ctx, block, maps.axes)  # [B, P, C]
    best = alpha.topk(min(top_k, alpha.shape[-1]), dim=-1).indices  # [B, P, k]
    chosen = torch.zeros_like(alpha, dtype=torch.bool).scatter(-1, best, True)  # [B, P, C]
    scores, _ = masked_embeddings(ctx, maps, chosen.any(dim=1)).scores(ctx.text)  # [B, P, C]
    discarded = 0.0 if published else -torch.inf  # logit of the channels that are not chosen
    weights = (scores / temperature).masked_fill(~chosen, discarded).softmax(dim=-1)  # [B, P, C]
    return torch.einsum("bpc,bchw->bphw", weights, maps.maps.float())
