"""How timm's vision transformers turn pictures into tokens, and the adapter of their blocks."""

import copy
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import HybridEmbed, Mlp, SwiGLU, apply_rot_embed_cat  # type: ignore[attr-defined]  # timm re-exports them
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.towers._layers import resize_positions
from cliploc.towers._transformer import BlockAdapter
from cliploc.towers.tower import PositionRule, join_heads, split_heads


def first_tokens(trunk: Any, images: Tensor, rule: PositionRule) -> Tensor:
    """The first block's tokens `[B, prefix+N, d]`, from normalised images `[B, 3, H, W]`; `trunk` is timm's tower."""
    patch_embed, prefix = trunk.patch_embed, trunk.num_prefix_tokens
    x = images
    if isinstance(patch_embed, HybridEmbed):
        x = patch_embed.backbone(x)  # [B, C, h, w]
        x = x[-1] if isinstance(x, list | tuple) else x
    x = patch_embed.proj(x)  # [B, d, h, w]
    grid = (x.shape[-2], x.shape[-1])
    x = x.flatten(2).transpose(1, 2)  # [B, N, d]
    if hasattr(patch_embed, "norm"):
        x = patch_embed.norm(x)
    first = [t.to(x.dtype).expand(len(x), -1, -1) for t in (trunk.cls_token, trunk.reg_token) if t is not None]
    placed = 0 if trunk.no_embed_class else prefix
    positions = None
    if trunk.pos_embed is not None:
        learnt = tuple(patch_embed.grid_size)
        positions = resize_positions(trunk.pos_embed[0], placed, learnt, grid, rule).to(x.dtype)
        if trunk.no_embed_class:
            x = x + positions
    x = torch.cat([*first, x], dim=1)
    if positions is not None and not trunk.no_embed_class:
        x = x + positions
    return trunk.norm_pre(x)


def rotation(trunk: Any, grid: tuple[int, int]) -> Tensor | None:
    """The rotary positions `[N, …]` of a grid; None where the tower has none."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    if grid != tuple(trunk.patch_embed.grid_size):
        rope = copy.deepcopy(rope)  # timm's module holds the table of one grid: leave the tower's as it is
        rope.update_feat_shape(grid)
    return rope.get_embed(shape=grid)


def count_parts(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts have tensors under this prefix."""
    return len({match[1] for name in tensors if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def sizes(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a tensor in a file of weights."""
    return tuple(tensors[name].shape)


def blocks_like(tensors: Mapping[str, Tensor], heads: int, eps: float = 1e-6) -> nn.ModuleList:
    """timm's blocks for the tensors named `blocks.…`: as many, as wide, with what these have; `eps` of their norms."""
    width, inner = sizes(tensors, "blocks.0.mlp.fc2.weight")
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    norm: Any = functools.partial(nn.LayerNorm, eps=eps)
    return nn.ModuleList(
        Block(
            width,
            heads,
            mlp_ratio=(inner + 0.5) / width,  # timm rounds the product down
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
            init_values=1.0 if "blocks.0.ls1.gamma" in tensors else None,
            norm_layer=norm,
            act_layer=nn.SiLU if gated else nn.GELU,
            mlp_layer=SwiGLU if gated else Mlp,
        )
        for _ in range(count_parts(tensors, "blocks."))
    )


class PlainVit(nn.Module):
    """Prefix tokens, positions `[G², d]`, patches, timm's blocks and a norm, of the sizes of these tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], heads: int, *, normed: bool = True) -> None:
        super().__init__()
        width, _, patch, _ = sizes(tensors, "patches.weight")
        self.prefix, self.positions = (nn.Parameter(torch.empty_like(tensors[key])) for key in ("prefix", "positions"))
        self.patches = nn.Conv2d(3, width, patch, patch, bias="patches.bias" in tensors)
        self.blocks, self.norm = blocks_like(tensors, heads), nn.LayerNorm(width, eps=1e-6) if normed else nn.Identity()

    def first_tokens(self, images: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
        """The first block's tokens `[B, prefix+N, d]`; positions are resized to `size`, of which the grid is a part."""
        x, learnt = self.patches(images), math.isqrt(len(self.positions))  # [B, d, h, w]
        positions = self.positions.T.reshape(1, -1, learnt, learnt).float()  # [1, d, G, G]
        if tuple(x.shape[-2:]) != (learnt, learnt):
            positions = F.interpolate(positions, size, mode="bilinear", antialias=antialias, align_corners=False)
        x = x + positions[:, :, : x.shape[-2], : x.shape[-1]].to(x.dtype)
        return torch.cat([self.prefix.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)


class TimmBlock(BlockAdapter):
    """Adapter of a block of timm's ViTs or EVAs, with norms before or after its branches."""

    def __init__(self, block: Any) -> None:
        self.block, self.attn = block, block.attn
        self.scale = block.attn.scale
        self.norms_after = isinstance(block, ResPostBlock | EvaBlockPostNorm)
        self.mlp_splits = not self.norms_after and type(block.mlp) in (Mlp, SwiGLU)

    def attention_input(self, x: Tensor) -> Tensor:
        return x if self.norms_after else self.block.norm1(x)

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if attn.qkv is None:
            parts: tuple[Tensor, ...] = tuple(to(normed) for to in (attn.q_proj, attn.k_proj, attn.v_proj))
        else:
            bias = attn.qkv.bias
            if getattr(attn, "q_bias", None) is not None:
                bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
            parts = F.linear(normed, attn.qkv.weight, bias).chunk(3, dim=-1)
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
        branch = self.attention_output(x, gathered)
        return self._scaled(self.block.norm1(branch) if self.norms_after else branch, 1)

    def attention_output(self, x: Tensor, gathered: Tensor) -> Tensor:
        joined = self.attn.norm(join_heads(gathered))  # [B, T, d]
        if getattr(self.attn, "gate", None) is not None:
            joined = joined * self.attn.gate(self.attention_input(x)).sigmoid()
        return self.attn.proj(joined)

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
        return mlp.norm(hidden)

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
