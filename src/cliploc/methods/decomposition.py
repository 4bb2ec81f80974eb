"""Decomposition: what each patch adds to the embedding directly, through the attention of the last blocks."""

import torch
from torch import Tensor, nn

from cliploc.methods import Context, Count, Needs, patches_of, saliency
from cliploc.methods._infra.gradients import differentiable, each_prompt, jacobian_products, leaf

BLOCKS = 4  # the authors' late blocks, whose direct effects matter


@saliency(
    "decomposition",
    title="CLIP decomposition",
    paper="Gandelsman, Efros & Steinhardt 2024, Interpreting CLIP's Image Representation via Text-Based Decomposition, "
    "ICLR",
    family="attention",
    towers=("vit",),
    needs=lambda blocks=BLOCKS: Needs(tokens=(-1,), dense=blocks),
    threshold=0.3,
    poolings=("class token",),
)
def decomposition(ctx: Context, blocks: Count = BLOCKS) -> Tensor:  # [B, P, h, w]
    """map_t(i) = Σ_l Σ_h g_t · W_proj · ln(A^l_h[cls, i] · v^l_ih · W_O,h): the cosine's terms that come from patch i.

    The class token after the last block is a sum: the token before the first block, what each MLP adds, and what each
    head of each block adds from each token. ln is ln_post without its bias, with the standard deviation of the whole
    sum; the sum's mean is spread evenly, as in the authors' code: an equal share for the start, each MLP and each
    block's attention. So the cosine is exactly the sum of all terms. The map leaves out the start, MLPs and biases
    (which the authors spread evenly over the patches), earlier blocks, and the class token's attention to itself.

    A head or output projection that is more than a layer norm and a linear layer is replaced by its linearisation at
    this picture. Not defined without a class token.

    Args:
        blocks: how many of the last blocks; all when the tower has fewer.
    """
    with differentiable():
        depth, token = ctx.transformer.depth, ctx.trace.tokens[-1]  # [B, 1+N, d]
        towards = _directions(ctx).transpose(0, 1)  # [P, B, d]
        chosen = range(-min(blocks, depth), 0)
        maps = torch.stack([_brought(ctx, block, towards) for block in chosen]).sum(dim=0)
        if isinstance(ctx.transformer.last_norm, nn.Identity):
            return maps
        mean = token[:, 0].float().mean(dim=-1) / ((2 * depth + 1) * token.shape[1])  # [B] of a patch in a block
        return maps - len(chosen) * (towards.sum(dim=-1) * mean).T[..., None, None]


def _directions(ctx: Context) -> Tensor:
    """u `[B, P, d]` with u_t · x = what a term x of the class token, less its share of the mean, adds to the cosine."""
    tower, token, text = ctx.transformer, ctx.trace.tokens[-1][:, :1].detach().clone(), ctx.text.detach().clone()
    norm = tower.last_norm
    normed = leaf(norm(token))  # [B, 1, d]
    read = tower.read_normed(normed).float()  # [B, 1, D]
    scores = torch.einsum("bnd,bpd->bp", read, text)  # not divided by the embedding's length yet
    products = jacobian_products(scores, (normed,), each_prompt(scores))
    gradients = torch.cat([gradient[:, :, 0] for (gradient,) in products], dim=1)  # [B, P, d]
    directions: Tensor = gradients / read.detach().norm(dim=-1, keepdim=True)
    if isinstance(norm, nn.Identity):
        return directions
    deviation = (token.float().var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()  # [B, 1, 1]
    return directions * norm.weight.detach().float() / deviation


def _brought(ctx: Context, block: int, towards: Tensor) -> Tensor:
    """What a block's heads add from each patch to the class token, along directions `[P, B, d]`: `[B, P, h, w]`."""
    looked: list[Tensor] = []

    def class_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        row = (q[:, :, :1].float() @ k.float().transpose(-2, -1) * scale).softmax(dim=-1)  # [B, H, 1, T]
        looked.append(row)
        return torch.cat([row @ v.float(), v[:, :, 1:].float()], dim=2)  # the other tokens are not read

    end = ctx.transformer.end(ctx.trace.entering[block], block, ctx.trace.grid, class_attention)
    weighted = looked[0][:, :, 0, :, None] * end.values.float()  # [B, H, T, d/H]
    token = end.middle[:, 0]  # [B, d]
    rows = [
        torch.einsum("bphd,bhtd->bpt", gradient[:, :, :, 0], weighted)
        for (gradient,) in jacobian_products(token, (end.gathered,), towards)
    ]
    return patches_of(ctx, torch.cat(rows, dim=1))
