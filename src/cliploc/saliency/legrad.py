"""LeGrad: how strongly each patch, attended to, would raise the score that a block's own tokens give."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.saliency._infra.attention import Blocks, blocks_of, last_blocks, patches_of
from cliploc.saliency._infra.gradients import differentiable, each_prompt, jacobian_products, leaf, prompt_scores
from cliploc.saliency._infra.registration import saliency
from cliploc.schema import Context, Needs


@saliency(
    "legrad",
    title="LeGrad",
    paper="Bousselham et al. 2024, LeGrad: An Explainability Method for Vision Transformers via Feature Formation "
    "Sensitivity",
    family="gradient",
    towers=("vit",),
    needs=lambda blocks=2: Needs(tokens=last_blocks(blocks)),
    relu=False,
    threshold=0.4,
)
def legrad(ctx: Context, blocks: Blocks = 2) -> Tensor:
    """map_t = mean over blocks l of mean_{H, queries} ReLU(∂s_t^l/∂A^l)[→ patches].

    s_t^l = cos(W_proj·ln_post(z̄^l), g_t), with z̄^l the mean of all tokens that leave block l, class token included, as
    the authors pool them. A tower that averages its patches pools as it always does. Where it has an attention pool,
    A^l is that pool's attention over the tokens that leave block l. Each block has a score of its own, so its gradients
    end in it: blocks are run again one at a time, and the memory is that of one block, whatever their number.

    Peers: `torchcam.methods.LeGrad` and `legrad_torch` give the same map for a class-token tower; the latter's
    `layer_index=-2`, its default, is `blocks=2`, ours. `legrad_torch` 1.1 is written for open_clip up to 2.23: with
    today's, it hands `[T, B, d]` to blocks that take `[B, T, d]`, so that before its first hooked block tokens attend
    to no other token, and its map is another one; our test gives it blocks as they were. On SigLIP it pools the tokens
    without the tower's last norm, and by default erases what the text "a photo of a" lights up; we do neither.

    Args:
        ctx: tokens of the blocks.
        blocks: how many of the last blocks, or "all".

    Returns:
        `[B, P, h, w]` float32, raw.

    Raises:
        UsageError: a number of blocks below 1, or more than there are.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer("ViT-B-16", method="legrad")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    chosen = blocks_of(ctx, blocks)
    return torch.stack([_sensitivity(ctx, block) for block in chosen]).mean(dim=0)


def _sensitivity(ctx: Context, block: int) -> Tensor:
    """One block's map `[B, P, h, w]`."""
    tower = ctx.transformer
    with differentiable():
        entering = leaf(ctx.trace.entering[block])  # [B, T, d]
        run = ctx.resume(entering, block, Needs(tokens=(block,), attention=(block,)), last=block)
        attention, embedding = run.attention[block], run.embedding  # [B, H, T, T], [B, D]
        if run.pool_attention is not None:
            attention = run.pool_attention  # [B, H, 1, T]
        elif tower.pooling == "class token":
            pooled = run.tokens[block].mean(dim=1, keepdim=True)  # [B, 1, d]
            embedding = F.normalize(tower.read_tokens(pooled)[:, 0], dim=-1)
        scores = prompt_scores(ctx, embedding)  # [B, P]
        rows = [
            gradient.relu().mean(dim=(2, 3))  # [B, p, T]
            for (gradient,) in jacobian_products(scores, (attention,), each_prompt(scores))
        ]
    return patches_of(ctx, torch.cat(rows, dim=1))
