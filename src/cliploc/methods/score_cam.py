"""Score-CAM: channels weighted by the similarity of the picture seen through them."""

import torch
from torch import Tensor

from cliploc.methods import SOFTER, Context, FromEnd, Positive, masked_cam, masked_embeddings


@masked_cam(
    "score_cam",
    title="Score-CAM",
    paper="Wang et al. 2020, Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, CVPRW",
)
def score_cam(ctx: Context, temperature: Positive | None = None, block: FromEnd = -1) -> Tensor:  # [B, P, h, w]
    """map_t = ReLU(Σ_k w_tk A_k), w_t = softmax_k((cos(f(x ⊙ M_k), g_t) − cos(f(x_b), g_t)) / temperature).

    M_k is A_k upsampled to the input and min–max normalised; x_b is zeros in normalised space. Cosines of masked images
    differ by only about 0.1: without a temperature, which the paper's logits do not need, their softmax is nearly
    uniform, and at the model's own a few channels have all the weight: our default is four times that
    (docs/studies/performance.md). A constant channel makes no mask and gets the baseline's score. On a ViT, A are the
    patch tokens that enter the last block.

    Peers differ in the upsampling: `pytorch_grad_cam.ScoreCAM` aligns corners; `torchcam.methods.ScoreCAM` normalises
    before it upsamples. The latter's baseline is the whole picture, which makes no difference to the softmax.

    Args:
        temperature: cosines are divided by it. None: 4 / logit scale, four times the model's own.
        block: the stage (CNN) or block (ViT), −1 for the last.
    """
    temperature = temperature or SOFTER / ctx.backbone.logit_scale
    scores, baseline = masked_embeddings(ctx, block).scores(ctx.text)  # [B, P, C], [B, P, 1]
    weights = ((scores - baseline) / temperature).softmax(dim=-1)  # [B, P, C]
    return torch.einsum("bpc,bchw->bphw", weights, ctx.trace.features[block].float())
