"""Chefer's relevance: attention weighted by its gradient, carried from the embedding back to the patches."""

import torch
from torch import Tensor

from cliploc.methods import Blocks, Context, Needs, saliency
from cliploc.methods._infra.attention import blocks_of, last_blocks, over_tokens, patches_of, pooled_tokens
from cliploc.methods._infra.gradients import differentiable, each_prompt, jacobian_products, leaf, prompt_scores


@saliency(
    "chefer",
    title="Chefer's relevance",
    paper="Chefer, Gur & Wolf 2021, Generic Attention-model Explainability for Interpreting Bi-Modal and "
    "Encoder-Decoder Transformers, ICCV",
    family="gradient",
    towers=("vit",),
    needs=lambda blocks=1: Needs(tokens=last_blocks(blocks)),
    threshold=0.25,
)
def chefer(ctx: Context, blocks: Blocks = 1) -> Tensor:  # [B, P, h, w]
    """Chefer's relevance: R = I; for each block l, first to last: R ← R + Ā^l R; map_t = R[class token → patches].

    Ā^l = mean_H ReLU(∂s_t/∂A^l ⊙ A^l), s_t the cosine of image and prompt: the paper's rules for the image. The
    authors' CLIP notebook differentiates the logit. With one block that only multiplies the map by the logit scale;
    with several, products of n matrices Ā would get its n-th power: there our maps differ from theirs.

    One row of R is computed, from the last block back to the first, and gradients go back block by block: no T×T
    matrix per prompt, and one block's graph at a time. An attention pool counts as one more attention and is always
    included. With average pooling the row starts with the same value for every patch.

    Args:
        blocks: how many of the last blocks, or "all". On ViT-B/16 the last block alone gives cleaner maps than all.
    """
    chosen = blocks_of(ctx, blocks)
    with differentiable():
        row, upstream = None, None
        for block in chosen:
            row, upstream = _back_through(ctx, block, row, upstream, further=block != chosen[-1])
    assert row is not None
    return patches_of(ctx, row)


def _back_through(
    ctx: Context, block: int, row: Tensor | None, upstream: Tensor | None, further: bool
) -> tuple[Tensor, Tensor | None]:
    """The class token's row `[B, P, T]` and the tokens' gradient `[P, B, T, d]` before a block, from those after it.

    They are None after the last block; the returned gradient is None unless another block follows (`further`).
    """
    entering = leaf(ctx.trace.entering[block])  # [B, T, d]
    run = ctx.resume(entering, block, Needs(tokens=(block,), attention=(block,)), last=block)
    attention = run.attention[block]  # [B, H, T, T]
    pool = run.pool_attention if upstream is None else None  # [B, H, 1, T]
    outputs = prompt_scores(ctx, run.embedding) if upstream is None else run.tokens[block]
    cotangents = each_prompt(outputs) if upstream is None else upstream  # [P, B, …]
    taps = (attention, *([pool] if pool is not None else []), *([entering] if further else []))

    rows: list[Tensor] = []
    before: list[Tensor] = []
    for gradients in jacobian_products(outputs, taps, cotangents):
        start = sum(part.shape[1] for part in rows)
        p = gradients[0].shape[1]
        if row is not None:
            after = row[:, start : start + p]  # [B, p, T]
        elif pool is not None:
            after = over_tokens(ctx, _relevance(gradients[1], pool)[:, :, 0])
        else:
            after = pooled_tokens(ctx)[:, None].expand(-1, p, -1)
        rows.append(after + torch.einsum("bpt,bptu->bpu", after, _relevance(gradients[0], attention)))
        if further:
            before.append(gradients[-1].transpose(0, 1))  # [p, B, T, d]
    return torch.cat(rows, dim=1), torch.cat(before) if further else None


def _relevance(gradient: Tensor, attention: Tensor) -> Tensor:
    """Ā = mean_H ReLU(∂s/∂A ⊙ A): gradients `[B, p, H, q, T]` and attention `[B, H, q, T]` → `[B, p, q, T]`."""
    return (gradient * attention.detach()[:, None]).relu().mean(dim=2)
