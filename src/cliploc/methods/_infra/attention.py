"""Attention methods: choice of blocks, the embedding's attention, and fused rules of `DenseReading.rule`."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Blocks, Context, Needs, TrainedHead, saliency
from cliploc.towers.tower import All, AttentionRule, DenseReading, Pooling

QUERIED: tuple[Pooling, ...] = ("class token", "attention")  # poolings with one query, as `class_attention` needs


def last_blocks(blocks: Blocks) -> tuple[int, ...] | All:
    """The last n blocks as `Needs` counts them, −1 first; "all" stays, as only the model knows how many there are."""
    return "all" if blocks == "all" else tuple(range(-1, -blocks - 1, -1))


def semantic_attention_needs(blocks: Blocks = "all", head: TrainedHead | None = None) -> Needs:
    """Trace entries that TS-CAM and LCTR read: attention of the last blocks (ViT), and the input of the semantics."""
    attention = Needs(attention=last_blocks(blocks))
    if head is None:
        return attention | Needs(features=(-1,))
    return head.needs() if head.tower_kind == "cnn" else attention | head.needs()


# Registers a method that weights semantic maps by the embedding's attention; arguments as for `saliency`.
semantic_attention = partial(
    saliency, family="attention", towers=("vit",), poolings=QUERIED, needs=semantic_attention_needs, relu=True
)


def blocks_of(ctx: Context, blocks: Blocks) -> tuple[int, ...]:
    """The last n blocks of this model, last first: −1, −2, …"""
    chosen = last_blocks(blocks)
    return tuple(range(-1, -ctx.transformer.depth - 1, -1)) if chosen == "all" else chosen


def pooled_tokens(ctx: Context) -> Tensor:
    """Weights of the tokens in the embedding, by the tower's pooling: `[B, T]`, each row with sum 1."""
    trace, tower = ctx.trace, ctx.transformer
    if trace.pool_attention is not None:
        return over_tokens(ctx, trace.pool_attention.mean(dim=1)[:, 0])
    patches = trace.grid[0] * trace.grid[1]
    row = torch.zeros(len(ctx.text), tower.prefix_tokens + patches, dtype=torch.float32, device=ctx.text.device)
    if tower.pooling == "class token":
        row[:, 0] = 1
    else:
        row[:, -patches:] = 1 / patches
    if tower.pooling == "class token and mean":
        row[:, 0] = 1
        row /= 2
    return row


def class_attention(ctx: Context, block: int) -> Tensor:
    """The class token's row of A^l, or, for any block, the attention pool's, mean over heads: `[B, T]`, sum 1."""
    pooled = ctx.trace.pool_attention is not None
    return pooled_tokens(ctx) if pooled else ctx.trace.attention[block][:, :, 0].mean(dim=1)


def summed_attention(ctx: Context, blocks: Blocks = "all") -> Tensor:
    """TS-CAM's A* = Σ_l mean_H A^l[class token → patches], `[B, h, w]`; of an attention pool only the pool's."""
    chosen = looking_blocks(ctx, blocks)
    return patches_of(ctx, torch.stack([class_attention(ctx, block) for block in chosen]).sum(dim=0))


def mean_attention(ctx: Context) -> Tensor:
    """Mean attention mean_{l,H} A^l[class token → patches], `[B, h, w]`, or the attention pool's where there is one."""
    return summed_attention(ctx) / len(looking_blocks(ctx, "all"))


def looking_blocks(ctx: Context, blocks: Blocks) -> tuple[int, ...]:
    """The blocks in which the embedding's query attends to patches; an attention pool counts as one block."""
    return (-1,) if ctx.trace.pool_attention is not None else blocks_of(ctx, blocks)


def patches_of(ctx: Context, row: Tensor) -> Tensor:
    """The patches of a row over tokens, on the grid: `[…, T]`, the last N being patches → `[…, h, w]`."""
    h, w = ctx.trace.grid
    return row[..., -h * w :].reshape(*row.shape[:-1], h, w)


def for_every_prompt(ctx: Context, saliency: Tensor) -> Tensor:
    """Repeats a map that reads no text: `[B or 1, h, w]` → `[B, P, h, w]`, a view, which takes no memory."""
    return saliency[:, None].expand(*ctx.text.shape[:2], -1, -1)


def over_tokens(ctx: Context, pooled: Tensor) -> Tensor:
    """Pads a row over the pool's inputs to all tokens, `[…, N]` or `[…, T]` → `[…, T]`; some pools take no prefix."""
    tokens = ctx.transformer.prefix_tokens + ctx.trace.grid[0] * ctx.trace.grid[1]
    return F.pad(pooled, (tokens - pooled.shape[-1], 0))


# ------------------------------------------------------------------------------------------------- rules of attention
def self_attention(parts: str, prior: Tensor | None = None) -> AttentionRule:
    """The rule Σ_x softmax(x xᵀ·scale + prior)·v over `parts`: "qk" is a sum of two attentions; prior `[T, T]`."""

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:
        sources = {"q": q.float(), "k": k.float(), "v": v.float()}  # each [B, H, T, d/H]
        gathered = [attend(sources[part], sources[part], v.float(), scale, prior) for part in parts]
        return torch.stack(gathered).sum(dim=0)  # [B, H, T, d/H]

    return rule


def attend(a: Tensor, b: Tensor, v: Tensor, scale: Tensor | float, prior: Tensor | None = None) -> Tensor:
    """softmax(a bᵀ·scale + prior)·v; the scale may differ between images, which fused attention does not support."""
    return F.scaled_dot_product_attention(a * scale, b, v, attn_mask=prior, scale=1.0)


def softmax_from_zero(logits: Tensor) -> Tensor:
    """Softmax of each row's logits of 0 and more, or of its greatest: rounding makes all of equal places negative."""
    least = logits.amax(dim=-1, keepdim=True).clamp(max=0)
    return logits.masked_fill(logits < least, -torch.inf).softmax(dim=-1)


def cosines(x: Tensor) -> Tensor:
    """Cosines of all pairs of places or tokens: `[…, T, d]` → `[…, T, T]`."""
    x = F.normalize(x, dim=-1)
    return x @ x.transpose(-2, -1)


def neighbourhood(grid: tuple[int, int], prefix_tokens: int, sigma: float) -> Tensor:
    """NACLIP's prior `[T, T]`: exp(−‖p_i − p_j‖² / 2σ²) for patches at p = (row, column), 0 for other tokens."""
    places = (torch.arange(n, dtype=torch.float32) for n in grid)
    rows, columns = (torch.exp(-((axis[:, None] - axis) ** 2) / (2 * sigma**2)) for axis in places)
    return F.pad(torch.kron(rows, columns), (prefix_tokens, 0, prefix_tokens, 0))  # [T, T]


def dense_cosine(ctx: Context, reading: DenseReading = DenseReading()) -> Tensor:
    """Cosine of every patch's reading in the joint space with g_t: `[B, P, h, w]`; see `Context.dense`."""
    with torch.no_grad():
        return torch.einsum("bdhw,bpd->bphw", F.normalize(ctx.dense(reading), dim=1), ctx.patch_text)
