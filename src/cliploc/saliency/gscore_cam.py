"""gScoreCAM: Score-CAM over the few channels that the score is most sensitive to."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.errors import UsageError
from cliploc.method import Context
from cliploc.saliency._infra.channels import Choice, channel_gradients, channel_maps, channel_needs
from cliploc.saliency._infra.masked import masked_embeddings
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.temperature import MASKED_TIMES_OWN, resolve_temperature


@saliency(
    "gscore_cam",
    title="gScoreCAM",
    paper="Chen et al. 2022, gScoreCAM: What Objects Is CLIP Looking At?, ACCV",
    family="perturbation",
    towers=("cnn", "vit"),
    needs=channel_needs,
    relu=True,
    threshold=0.25,
)
def gscore_cam(
    ctx: Context,
    top_k: int = 300,
    temperature: float | None = None,
    channels: Choice = "features",
    block: int = -1,
    components: int | None = None,
    published: bool = False,
) -> Tensor:
    """map_t = ReLU(Σ_k w_tk A_k), w_t = softmax of cos(f(x ⊙ M_k), g_t) / temperature over the `top_k` best channels.

    The best channels are those of largest mean gradient α_tk = mean_hw ∂s_t/∂A_k; the others have weight 0. No baseline
    is subtracted. M_k is A_k upsampled to the input with align_corners=False (the authors: True) and min–max
    normalised. Only channels that are chosen for some prompt cost a forward pass, so `top_k` limits the cost. A chosen
    channel that is constant gets the empty picture's score, without a forward pass. On a ViT, A are the patch tokens
    entering the last block, unless `channels` says otherwise.

    The authors' code gives the discarded channels a logit of 0 and takes the softmax over all channels, at the model's
    temperature, 1 / logit scale. That is `published=True`. CLIP's cosines are about 0.2 and its logits about 20, so for
    CLIP it makes no difference: a discarded channel gets e⁻²⁰ of a chosen one's weight. With cosines near 0 for masked
    pictures (`mini`), or with a higher temperature, the discarded channels get a real share: on `mini` at our default
    temperature at least a quarter of all weight. So the default excludes them.

    Args:
        ctx: images, and the features of the maps.
        top_k: channels per prompt; all when the tower has fewer.
        temperature: cosines are divided by it. None: 4 / logit scale, four times the model's own; with `published` the
            model's own.
        channels: which maps A are: "features"; ViT only: "tokens", "heads", "keys", "queries", "values" of the block.
        block: the stage (CNN) or block (ViT), −1 for the last.
        components: how many principal components of these maps to use instead of the maps; None for the maps.
        published: take the softmax over all channels, with 0 for the discarded ones, as the authors' code does.

    Returns:
        `[B, P, h, w]` float32, raw: the ReLU follows in the `Localizer`.

    Raises:
        UsageError: `top_k` is below 1, the temperature is not above 0, or the tower does not have these channels, or
            the score does not depend on them.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer(method="gscore_cam")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    if top_k < 1:
        raise UsageError(f"expected top_k of 1 channel or more, got {top_k}: the paper uses 300")
    temperature = resolve_temperature(ctx, temperature, 1.0 if published else MASKED_TIMES_OWN)
    maps = channel_maps(ctx, channels, block, components)
    alpha = channel_gradients(ctx, channels, block, maps.axes)  # [B, P, C]
    best = alpha.topk(min(top_k, alpha.shape[-1]), dim=-1).indices  # [B, P, k]
    chosen = torch.zeros_like(alpha, dtype=torch.bool).scatter(-1, best, True)  # [B, P, C]
    scores, _ = masked_embeddings(ctx, maps, chosen.any(dim=1)).scores(ctx.text)  # [B, P, C]
    discarded = 0.0 if published else -torch.inf  # logit of the channels that are not chosen
    weights = (scores / temperature).masked_fill(~chosen, discarded).softmax(dim=-1)  # [B, P, C]
    return torch.einsum("bpc,bchw->bphw", weights, maps.maps.float())
