"""Finer-CAM: Grad-CAM of the difference between a name's score and those of the most similar names."""

from dataclasses import replace

import torch
from torch import Tensor

from cliploc.methods import Context, Count, FromEnd, NotNegative, gradient_cam
from cliploc.methods.grad_cam import grad_cam


@gradient_cam(
    "finer_cam",
    title="Finer-CAM",
    paper="Zhang et al. 2025, Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation, CVPR",
    towers=("cnn", "vit"),
    threshold=0.05,
    prompts_interact=True,
)
def finer_cam(
    ctx: Context, gamma: NotNegative = 0.6, references: Count = 3, block: FromEnd = -1
) -> Tensor:  # [B, P, h, w]
    """map_t = Grad-CAM of s_t − γ · mean_r s_r, over the prompts r whose scores are nearest to that of prompt t.

    s are cosines of image and prompt. References are other prompts of the same call, so names that are easily confused
    should be asked for together. For a single prompt (not in the paper, whose references are a classifier's classes)
    the reference is the empty name's embedding. The same as `torchcam.methods.FinerCAM` with `base_method=GradCAM`;
    `pytorch_grad_cam.FinerCAM` weights each reference by its probability.

    Args:
        gamma: γ, how much of the references is subtracted; 0 is Grad-CAM.
        references: how many of the other prompts are references, at most.
        block: as for `grad_cam`.
    """
    prompts = ctx.text.shape[1]
    if prompts == 1:
        empty = ctx.redundant.to(ctx.text).expand(len(ctx.text), 1, -1)
        ctx = replace(ctx, text=torch.cat([ctx.text, empty], dim=1))  # [B, 2, D]
    maps = grad_cam(ctx, block)  # [B, P, h, w], linear in the score
    with torch.no_grad():
        scores = torch.einsum("bd,bpd->bp", ctx.trace.embedding, ctx.text)
        apart = (scores[:, :, None] - scores[:, None]).abs()  # [B, P, P]
        apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        nearest = apart.topk(min(references, apart.shape[-1] - 1), largest=False).indices  # [B, P, r]
        shares = torch.zeros_like(apart).scatter(2, nearest, 1 / nearest.shape[-1])
        return (maps - gamma * torch.einsum("bpr,brhw->bphw", shares, maps))[:, :prompts]
