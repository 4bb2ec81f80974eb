"""Score-CAM: channels weighted by the similarity of the picture seen through them."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.channels import Choice, channel_maps, channel_needs
from cliploc.saliency._infra.masked import channel_scores
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.temperature import MASKED_TIMES_OWN, resolve_temperature


@saliency(
    "score_cam",
    title="Score-CAM",
    paper="Wang et al. 2020, Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, CVPRW",
    family="perturbation",
    towers=("cnn", "vit"),
    needs=channel_needs,
    relu=True,
    threshold=0.25,
)
def score_cam(
    ctx: Context,
    temperature: float | None = None,
    channels: Choice = "features",
    block: int = -1,
    components: int | None = None,
    budget: int | None = None,
) -> Tensor:
    """map_t = ReLU(Σ_k w_tk A_k), w_t = softmax_k((cos(f(x ⊙ M_k), g_t) − cos(f(x_b), g_t)) / temperature).

    M_k is A_k upsampled to the input and min–max normalised; x_b is zeros in normalised space. Cosines of masked images
    spread over about 0.1: their bare softmax is nearly uniform, and the map would hardly depend on the prompt. The
    paper's logits have no such problem; here the temperature is part of the method. At the model's own few channels
    hold all the weight and boxes are worse (docs/performance.md): ours is four times that. Channels that are constant
    make no mask, cost no forward and weigh as the baseline does; channels with the same mask share one. At most C
    masked images per picture, whatever the number of prompts. On a ViT, A are the patch tokens that enter the last
    block, unless `channels` says otherwise.

    Peers upsample otherwise: `pytorch_grad_cam.ScoreCAM` with corners aligned; `torchcam.methods.ScoreCAM` normalises
    before it upsamples, and its baseline is the whole picture, which a softmax does not see.

    Args:
        ctx: images, and what the maps are made of.
        temperature: cosines are divided by it; None for 4 / logit scale, four times the model's own.
        channels: which maps A are: "features"; ViT only: "tokens", "heads", "keys", "queries", "values" of the block.
        block: the stage (CNN) or block (ViT), −1 for the last.
        components: take the first principal components of these maps instead of the maps; None for the maps.
        budget: how many masks are tried for each picture and prompt, at most; the scores of the others are predicted
            from these, and `Localization.notes` says how near the map is expected to be to the exact one. With 64, on
            `mini`, maps correlate 0.997 with the exact ones (docs/performance.md). None: all, as published.

    Returns:
        `[B, P, h, w]` float32, raw: the ReLU follows in the `Localizer`.

    Raises:
        UsageError: the temperature is not above 0, a budget below 16, or a choice of channels that the tower does not
            have.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer(method="score_cam")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    temperature = resolve_temperature(ctx, temperature, MASKED_TIMES_OWN)
    maps = channel_maps(ctx, channels, block, components)
    scores, baseline = channel_scores(ctx, maps, temperature, budget)  # [B, P, C], [B, P, 1]
    weights = ((scores - baseline) / temperature).softmax(dim=-1)  # [B, P, C]
    return torch.einsum("bpc,bchw->bphw", weights, maps.maps.float())
