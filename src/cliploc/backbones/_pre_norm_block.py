"""The transformer block of `mini-vit`, without timm, whose import takes longer than one picture."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.backbones._transformer import BlockAdapter
from cliploc.tower import join_heads, split_heads


class PreNormBlock(nn.Module, BlockAdapter):
    """A pre-norm transformer block that is its own adapter: tokens `[B, T, d]` → `[B, T, d]`.

    Dosovitskiy 2021. Its tensors have timm's names.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        inner = int(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self.gather(*self.project(self.attention_input(x), None)))

    def attention_input(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm1(x)
        return normed

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        q, k, v = (split_heads(part, self.heads) for part in self.attn["qkv"](normed).chunk(3, dim=-1))
        return q, k, v

    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:  # noqa: ARG002
        branch: Tensor = self.attn["proj"](join_heads(gathered))
        return branch

    def mlp_branch(self, x: Tensor) -> Tensor:
        return self.mlp_out(self.mlp_hidden(x))

    def mlp_hidden(self, x: Tensor) -> Tensor:
        return F.gelu(self.mlp["fc1"](self.norm2(x)))

    def mlp_out(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.mlp["fc2"](hidden)
        return out
