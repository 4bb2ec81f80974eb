"""The adapter of timm's transformer blocks."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp, SwiGLU, apply_rot_embed_cat  # type: ignore[attr-defined]  # timm re-exports it without saying so
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor

from cliploc.backbones._linear import linear
from cliploc.backbones._transformer import BlockAdapter
from cliploc.tower import join_heads, split_heads


class TimmBlock(BlockAdapter):
    """Adapter of a block of timm's ViTs or EVAs, with norms before or after its branches."""

    def __init__(self, block: Any) -> None:
        self.block, self.attn = block, block.attn
        self.scale = block.attn.scale
        self.norms_after = isinstance(block, ResPostBlock | EvaBlockPostNorm)
        self.mlp_splits = not self.norms_after and type(block.mlp) in (Mlp, SwiGLU)

    def attention_input(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.norms_after else self.block.norm1(x)
        return y

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if attn.qkv is None:
            parts: tuple[Tensor, ...] = tuple(to(normed) for to in (attn.q_proj, attn.k_proj, attn.v_proj))
        else:
            bias = attn.qkv.bias
            if getattr(attn, "q_bias", None) is not None:
                bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
            parts = linear(normed, attn.qkv.weight, bias).chunk(3, dim=-1)
        q, k, v = (split_heads(part, attn.num_heads) for part in parts)
        q, k = attn.q_norm(q), attn.k_norm(k)
        return self._rotated(q, rotation), self._rotated(k, rotation), v

    def _rotated(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Applies the rotary position embedding to the patches; prefix tokens have none."""
        if rotation is None:
            return x
        first, patches = x[:, :, : self.attn.num_prefix_tokens], x[:, :, self.attn.num_prefix_tokens :]
        half = getattr(self.attn, "rotate_half", False)
        return torch.cat([first, apply_rot_embed_cat(patches, rotation, half=half).to(x.dtype)], dim=2)

    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:
        joined = self.attn.norm(join_heads(gathered))  # [B, T, d]
        if getattr(self.attn, "gate", None) is not None:
            joined = joined * self.attn.gate(self.attention_input(x)).sigmoid()
        branch = self.attn.proj(joined)
        return self._scaled(self.block.norm1(branch) if self.norms_after else branch, 1)

    def mlp_branch(self, x: Tensor) -> Tensor:
        return self.mlp_out(self.mlp_hidden(x))

    def mlp_hidden(self, x: Tensor) -> Tensor:
        block, mlp = self.block, self.block.mlp
        if self.norms_after:
            return self._scaled(block.norm2(mlp(x)), 2)
        x = block.norm2(x)
        if not self.mlp_splits:
            return self._scaled(mlp(x), 2)
        if isinstance(mlp, SwiGLU):
            hidden = mlp.act(mlp.fc1_g(x)) * mlp.fc1_x(x)
        else:
            hidden = mlp.fc1(x)
            del x  # makes room for the activation
            hidden = mlp.act(hidden)
        normed: Tensor = mlp.norm(hidden)
        return normed

    def mlp_out(self, hidden: Tensor) -> Tensor:
        return self._scaled(self.block.mlp.fc2(hidden), 2) if self.mlp_splits else hidden

    def _scaled(self, branch: Tensor, which: int) -> Tensor:
        """Layer scale, which timm's ViTs keep as a module and its EVAs as a bare parameter."""
        scale, gamma = (getattr(self.block, f"{name}{which}", None) for name in ("ls", "gamma_"))
        if scale is not None:
            branch = scale(branch)
        if gamma is not None:
            branch = gamma * branch
        return branch
