"""Adapter of open_clip's own vision transformers: B/32 to bigG, with class token, average pooling, or CoCa's pool."""

from typing import Any

import torch
from open_clip.transformer import (
    AttentionalPooler,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.towers._layers import resize_positions
from cliploc.towers._open_clip_parts import OpenClipBlock, OpenClipParts, Tokenizer, adapter
from cliploc.towers._transformer import QueryPool, TransformerBackbone
from cliploc.towers.tower import join_heads, split_heads


class _CustomBlock(OpenClipBlock):
    """Adapter of open_clip's custom block, with norms on queries and keys, on heads, and after the attention."""

    def __init__(self, block: CustomResidualAttentionBlock) -> None:
        self.block, self.attn = block, block.attn
        self.scale = block.attn.scale

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(normed, rotation)
        return self.attn.ln_q(q), self.attn.ln_k(k), v

    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:
        return self.block.ls_1(self.block.ln_attn(self.attention_output(x, gathered)))

    def attention_output(self, x: Tensor, gathered: Tensor) -> Tensor:  # noqa: ARG002
        if self.attn.head_scale is not None:
            gathered = gathered * self.attn.head_scale
        return self.attn.out_proj(self.attn.ln_inner(join_heads(gathered)))


class _CocaPool(QueryPool):
    """CoCa's pool: learnt queries attend to all tokens; the first query's output is the image's embedding."""

    def __init__(self, pool: AttentionalPooler) -> None:
        self.pool, self.heads, self.scale = pool, pool.attn.num_heads, pool.attn.head_dim**-0.5

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pool, attn = self.pool, self.pool.attn
        weights = (attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight)
        if attn.in_proj_weight is not None:  # torch stores them together where the widths are equal
            weights = attn.in_proj_weight.chunk(3)
        to_q, to_k, to_v = zip(weights, attn.in_proj_bias.chunk(3), strict=True)
        x, query = pool.ln_k(tokens), pool.ln_q(pool.query[:1])[None]
        q, k = split_heads(F.linear(query, *to_q), self.heads), split_heads(F.linear(x, *to_k), self.heads)
        return q, k, F.linear(x, *to_v)

    def finish(self, gathered: Tensor) -> Tensor:
        return self.pool.attn.out_proj(gathered)


@adapter
class OpenClipVit(TransformerBackbone):
    """A vision transformer of open_clip (Radford 2021; Dosovitskiy 2020), with access to the inside of every block."""

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str, *, copied: bool = True) -> None:
        parts = OpenClipParts(model, tokenizer, name, OpenClipVit, copied=copied)
        visual = parts.visual
        adapters = [
            OpenClipBlock(block) if isinstance(block, ResidualAttentionBlock) else _CustomBlock(block)
            for block in visual.transformer.resblocks
        ]
        super().__init__(adapters, 1, parts.mean, parts.std)
        self.visual = visual
        self.attention_pool = None if visual.attn_pool is None else _CocaPool(visual.attn_pool)
        if self.attention_pool is not None:
            self.pooling = "attention"
        elif visual.pool_type == "avg":
            self.pooling = "global average"
        self.stride, self.embedding_size = visual.patch_size[0], visual.output_dim
        parts.complete(self)

    @staticmethod
    def supports(visual: nn.Module) -> bool:
        # Scaled cosine attention and CoCa's two-pool variants exist in open_clip's code, but in none of its models.
        return (
            isinstance(visual, VisionTransformer)
            and visual.pool_type in (("tok",) if visual.attn_pool is not None else ("tok", "avg"))
            and all(getattr(block.attn, "logit_scale", None) is None for block in visual.transformer.resblocks)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the convolution; in open_clip's mixed precision, norms and positions stay in float32."""
        return self.visual.conv1.weight.dtype

    def embed(self, images: Tensor) -> Tensor:
        visual = self.visual
        patches = visual.conv1(images)  # [B, d, h, w]
        learnt, grid = visual.grid_size, patches.shape[-2:]
        positions = resize_positions(visual.positional_embedding, 1, learnt, grid, self.position_rule)
        first = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)  # [B, 1, d]
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)  # [B, 1+N, d]
        return visual.ln_pre(tokens + positions.to(tokens.dtype))

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        visual, attention = self.visual, None
        if self.attention_pool is not None:
            pooled, attention = self.attention_pool.attend(tokens)  # [B, D]
            pooled = visual.ln_post(pooled)
        elif visual.pool_type == "tok":
            pooled = visual.ln_post(tokens[:, 0])  # [B, d]
        elif visual.final_ln_after_pool:
            pooled = visual.ln_post(tokens[:, 1:].mean(dim=1))  # [B, d]
        else:
            pooled = visual.ln_post(tokens[:, 1:]).mean(dim=1)  # [B, d]
        return self.read_normed(pooled), attention

    @property
    def last_norm(self) -> nn.LayerNorm:
        """The head's layer norm; after CoCa's pool."""
        return self.visual.ln_post

    def read_normed(self, normed: Tensor) -> Tensor:
        return normed @ self.visual.proj

    def normed_tokens(self, tokens: Tensor) -> Tensor:
        return self.last_norm(tokens if self.attention_pool is None else self.attention_pool.read(tokens))
