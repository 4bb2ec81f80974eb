"""CAM: how much each location adds to the image–text similarity."""

import torch
from torch import Tensor

from cliploc.methods import Context, Needs, saliency


@saliency(
    "cam",
    title="CAM",
    paper="Zhou et al. 2016, Learning Deep Features for Discriminative Localization, CVPR",
    family="activation",
    towers=("cnn",),
    needs=Needs(features=(-1,)),
    relu=True,
    threshold=0.3,
)
def cam(ctx: Context) -> Tensor:  # [B, P, h, w]
    """Class activation map: map_t = Σ_d g_td · r_d, with r the joint-space reading of every location.

    On a tower with average pooling r = A − μ and the map is exact: its mean over h×w is the similarity before the
    embedding is normalised. On CLIP's attention pool r is the value path (v_proj and c_proj, no softmax), as MaskCLIP
    (Zhou 2022) reads it. The paper has a trained classifier's weights instead of the text embedding, and no ReLU.
    """
    with torch.no_grad():
        return torch.einsum("bdhw,bpd->bphw", ctx.dense(), ctx.text)
