"""Feature maps that Score-CAM's family masks with: a CNN's channels, or a ViT's tokens, heads, q, k, v."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cliploc.errors import UsageError
from cliploc.methods import Context, Needs
from cliploc.methods._infra.gradients import batched_gradients, leaf, map_gradients

Choice = Literal["features", "tokens", "heads", "keys", "queries", "values"]
PROJECTIONS: tuple[Choice, ...] = ("queries", "keys", "values")  # in the order of `Trace.projections`


@dataclass(frozen=True)
class Channels:
    """Feature maps A_k of a picture."""

    key: Hashable  # cache key of these channels
    maps: Tensor  # [B, C, h, w]
    axes: Tensor | None = None  # [B, C, F] when the C maps are principal components of F feature maps; else None


def channel_needs(channels: Choice = "features", block: int = -1, **_: Any) -> Needs:
    """What the trace must hold for a choice of channels; a method's other options make no difference."""
    if channels == "heads":
        return Needs(tokens=(block,), attention=(block,))
    kind = channels if channels in ("features", "tokens") else "projections"
    return Needs(**{kind: (block,)})


def channel_maps(
    ctx: Context, channels: Choice = "features", block: int = -1, components: int | None = None
) -> Channels:
    """Maps of a choice of channels, once a context; `components`: principal ones, largest value positive."""
    key = (channels, block, components)
    if key not in ctx.cache:
        maps = _maps(ctx, channels, block)
        ctx.cache[key] = Channels(key, maps) if components is None else _principal(key, maps.float(), components)
    made: Channels = ctx.cache[key]
    return made


def _maps(ctx: Context, channels: Choice, block: int) -> Tensor:
    trace, (h, w), b = ctx.trace, ctx.trace.grid, len(ctx.trace.embedding)
    if channels == "features":
        return trace.features[block]  # [B, C, h, w]
    prefix = ctx.transformer.prefix_tokens
    if channels == "tokens":
        return trace.tokens[block][:, prefix:].transpose(1, 2).reshape(b, -1, h, w)  # [B, d, h, w]
    if channels == "heads":
        attention = trace.attention[block] if prefix else trace.pool_attention  # [B, H, T, T] or [B, H, 1, T]
        if attention is None or (not prefix and block != -1):
            raise UsageError(
                f"expected a class token in block {block} for channels=heads, got {ctx.backbone.name}, which has none: "
                "choose channels of tokens, keys, queries, values"
            )
        return attention[:, :, 0, -h * w :].reshape(b, -1, h, w)  # [B, H, h, w]
    projected = trace.projections[block][PROJECTIONS.index(channels)]  # [B, H, T, d/H]
    return projected[:, :, -h * w :].transpose(2, 3).reshape(b, -1, h, w)  # [B, d, h, w]


def _principal(key: Hashable, maps: Tensor, components: int) -> Channels:
    """Maps `[B, F, h, w]` → their first components `[B, k, h, w]`, and the axes `[B, k, F]`."""
    h, w = maps.shape[-2:]
    places = maps.flatten(2).transpose(1, 2)  # [B, N, F]
    places = places - places.mean(dim=1, keepdim=True)
    u, s, axes = torch.linalg.svd(places, full_matrices=False)  # [B, N, r], [B, r], [B, r, F]
    s = s.masked_fill(s <= s[:, :1] * max(places.shape[1:]) * torch.finfo(s.dtype).eps, 0)  # below the rank: rounding
    directions = (u * s[:, None]).transpose(1, 2)[:, :components]  # [B, k, N]
    axes = axes[:, :components] * (s[:, :components, None] > 0)
    peak = directions.gather(2, directions.abs().argmax(dim=2, keepdim=True))  # [B, k, 1]
    sign = torch.where(peak < 0, -1.0, 1.0)
    return Channels(key, (sign * directions).reshape(len(maps), -1, h, w), sign * axes)


def channel_gradients(ctx: Context, channels: Choice, block: int, axes: Tensor | None) -> Tensor:
    """α_tk, the mean over the places of ∂s_t/∂A_k: `[B, P, C]` float32."""
    n = ctx.trace.grid[0] * ctx.trace.grid[1]

    def run() -> tuple[Tensor, Tensor]:
        """The tower on from the block, with a graph: the tensor that has the channels in it, and the embeddings."""
        if channels == "tokens":
            tokens = leaf(ctx.trace.tokens[block])
            return tokens, ctx.resume(tokens, block + 1, Needs()).embedding
        trace = ctx.resume(leaf(ctx.trace.entering[block]), block, channel_needs(channels, block))
        if channels == "heads":
            attention = trace.attention[block] if ctx.transformer.prefix_tokens else trace.pool_attention
            assert attention is not None  # `_maps` has checked that
            return attention, trace.embedding
        return trace.projections[block][PROJECTIONS.index(channels)], trace.embedding

    def mean_of_patches(_: Tensor, gradients: Tensor) -> Tensor:
        if channels == "tokens":
            return gradients[:, :, -n:].mean(dim=2)  # [B, p, T, d] → [B, p, d]
        if channels == "heads":
            return gradients[..., 0, -n:].mean(dim=-1)  # [B, p, H, T, T] → [B, p, H]
        return gradients[..., -n:, :].mean(dim=-2).flatten(2)  # [B, p, H, T, d/H] → [B, p, d]

    if channels == "features":
        alpha = map_gradients(ctx, lambda _, gradients: gradients.mean(dim=(-2, -1)), block)
    elif channels == "tokens" and block == -1:
        raise UsageError("expected tokens that another block reads, as they need a gradient, got block -1: choose -2")
    else:
        alpha = batched_gradients(ctx, run, mean_of_patches)
    if channels != "features" and not alpha.any():
        raise UsageError(
            f"the score of {ctx.backbone.name} has no gradient in the {channels} of block {block}: choose an earlier "
            "block, or other channels"
        )
    return alpha if axes is None else torch.einsum("bpf,bkf->bpk", alpha, axes)
