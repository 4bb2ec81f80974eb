"""How the ViTs of timm turn pictures into tokens, for the adapters that run their blocks one by one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import HybridEmbed  # type: ignore[attr-defined]  # timm re-exports it without saying so
from torch import Tensor

from cliploc.backbones._transformer import resize_positions
from cliploc.tower import PositionRule


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
    prepared: Tensor = trunk.norm_pre(x)
    return prepared


def rotation(trunk: Any, grid: tuple[int, int]) -> Tensor | None:
    """The rotary positions `[N, …]` of a grid; None where the tower has none."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    if grid != tuple(trunk.patch_embed.grid_size):
        rope = copy.deepcopy(rope)  # timm's module holds the table of one grid: leave the tower's as it is
        rope.update_feat_shape(grid)
    rotated: Tensor = rope.get_embed(shape=grid)
    return rotated
