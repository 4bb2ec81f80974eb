"""VL-Score: Score-CAM over the channels that make the picture more like the prompt than an empty picture is."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.channels import Choice, channel_maps, channel_needs
from cliploc.saliency._infra.masked import channel_scores
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.temperature import MASKED_TIMES_OWN, resolve_temperature


@saliency(
    "vl_score",
    title="VL-Score",
    paper="Gao & Wang 2022, VL-Score",
    family="perturbation",
    towers=("cnn", "vit"),
    needs=channel_needs,
    relu=True,
    threshold=0.25,
)
def vl_score(
    ctx: Context,
    temperature: float | None = None,
    channels: Choice = "features",
    block: int = -1,
    components: int | None = None,
    budget: int | None = None,
) -> Tensor:
    """map_t = Σ_k w_tk A_k over the channels k with score_tk = cos(f(x ⊙ M_k), g_t) > cos(f(x_b), g_t).

    w_t is the softmax of score_tk / temperature over these channels alone. M_k is A_k upsampled to the input and
    min–max normalised; x_b is zeros in normalised space. If no channel qualifies, the map is zero everywhere, which
    means "not found" throughout this project. A channel that is constant makes no mask and never qualifies. The masked
    images are those of Score-CAM and shared with it. On a ViT, A are the patch tokens that enter the last block; the
    published study found these weak.

    The paper's setting (CLIP RN50) takes boxes at 0.60 of the maximum; we do not know its temperature. Our temperature,
    four times the model's own, and our threshold were chosen on the tuning pictures (docs/performance.md). No public
    package has the method.

    Args:
        ctx: images, and the features of the maps.
        temperature: cosines are divided by it. None: 4 / logit scale, four times the model's own.
        channels: which maps A are: "features"; ViT only: "tokens", "heads", "keys", "queries", "values" of the block.
        block: the stage (CNN) or block (ViT), −1 for the last.
        components: how many principal components of these maps to use instead of the maps; None for the maps.
        budget: how many masks are tried for each picture and prompt, at most. The scores of the others are predicted
            from these, and `Localization.notes` gives the expected correlation with the exact map. With 64, on `mini`,
            maps correlate 0.996 with the exact ones (docs/performance.md). None: all masks, as published.

    Returns:
        `[B, P, h, w]` float32, raw.

    Raises:
        UsageError: the temperature is not above 0, the budget is below 16, or the tower does not have these channels.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer(method="vl_score")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    temperature = resolve_temperature(ctx, temperature, MASKED_TIMES_OWN)
    maps = channel_maps(ctx, channels, block, components)
    scores, baseline = channel_scores(ctx, maps, temperature, budget, capped=True)  # [B, P, C], [B, P, 1]
    kept = scores > baseline
    weights = (scores / temperature).masked_fill(~kept, -torch.inf).softmax(dim=-1)  # [B, P, C], NaN where none is kept
    weights = weights.masked_fill(~kept, 0)
    return torch.einsum("bpc,bchw->bphw", weights, maps.maps.float())
