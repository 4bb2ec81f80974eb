"""The text tower of dino.txt: a causal transformer over CLIP's tokens; its modules have the names of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timm.layers import Mlp  # type: ignore[attr-defined]  # timm re-exports it without saying so
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.backbones._dinotxt_layout import HEAD_SIZE, Layout
from cliploc.tower import join_heads, split_heads


class _Attention(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        width = layout.text_width
        self.heads = width // HEAD_SIZE
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))  # [n, H, T, 64]
        out: Tensor = self.proj(join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        return out


class _Block(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        width = layout.text_width
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.feed_forward = _Attention(layout), Mlp(width, layout.text_mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        added: Tensor = self.feed_forward(self.ffn_norm(x))
        return x + added


class _Backbone(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(layout.vocabulary, layout.text_width)
        self.positional_embedding = nn.Parameter(torch.zeros(layout.context, layout.text_width))
        self.blocks = nn.ModuleList(_Block(layout) for _ in range(layout.text_depth))
        self.ln_final = nn.LayerNorm(layout.text_width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]  # [n, T, d]
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.ln_final(x)
        return normed


class _Head(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.linear_projection = nn.Linear(layout.text_width, layout.size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.linear_projection(x)
        return projected


class DinoTxtText(nn.Module):
    """The text tower: the token that ends the text, projected.

    Args:
        tokenizer: sentences → token ids `[n, T]`, the highest of each row where the text ends.
    """

    def __init__(self, layout: Layout, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.backbone, self.head, self.tokenizer = _Backbone(layout), _Head(layout), tokenizer

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        tokens = self.tokenizer(list(texts)).to(self.backbone.positional_embedding.device)  # [n, T]
        x = self.backbone(tokens)[torch.arange(len(tokens)), tokens.argmax(dim=-1)]  # [n, d]
        return F.normalize(self.head(x).float(), dim=-1)
