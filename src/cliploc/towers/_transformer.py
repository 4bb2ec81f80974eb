"""Base classes of ViTs; a `BlockAdapter` splits a host library's block, unchanged: no hook, no replaced forward."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.towers._backbone import Backbone
from cliploc.towers._layers import attend, attention_weights
from cliploc.towers.tower import (
    AttentionRule,
    BlockEnd,
    DenseReading,
    Needs,
    Pooling,
    PositionRule,
    TowerKind,
    Trace,
    block_at,
    join_heads,
    split_heads,
)


def on_grid(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Arranges patches on the grid: `[B, N, C]` → `[B, C, h, w]`."""
    return patches.transpose(1, 2).reshape(len(patches), -1, *grid)


class BlockAdapter(ABC):
    """Adapter of one block of a host's tower: x + attention branch, then + MLP branch. T counts prefix tokens too."""

    scale: float

    @abstractmethod
    def attention_input(self, x: Tensor) -> Tensor:
        """The normed input of the projections to q, k and v, from the tokens entering the block: `[B, T, d]`."""

    @abstractmethod
    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the result of `attention_input`, each `[B, H, T, d/H]`."""

    @abstractmethod
    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:
        """What the block adds to its tokens `x`, from the heads' outputs `gathered` `[B, H, T, d/H]`: `[B, T, d]`."""

    def attention_output(self, x: Tensor, gathered: Tensor) -> Tensor:
        """`attention_branch` before its layer scale or norm, where the block has one."""
        return self.attention_branch(x, gathered)

    @abstractmethod
    def mlp_hidden(self, x: Tensor) -> Tensor:
        """`mlp_branch` up to its last linear step `[B, T, m]`; all of it, where the block cannot be split there."""

    def mlp_out(self, hidden: Tensor) -> Tensor:
        """The rest of `mlp_branch`, affine in each token: `[…, m]` → `[…, d]`."""
        return hidden

    def mlp_branch(self, x: Tensor) -> Tensor:
        """What the MLP adds to the tokens that already have the attention branch: `[B, T, d]`."""
        return self.mlp_out(self.mlp_hidden(x))

    def gather(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The block's attention softmax(qkᵀ·scale)·v: `[B, H, t, d/H]` for t queries."""
        return attend(q, k, v, self.scale)

    def finish(self, x: Tensor, gathered: Tensor) -> Tensor:
        """Runs the rest of the block after attention, for the t tokens `x` with queries: `[B, t, d]` → `[B, t, d]`."""
        x = x + self.attention_branch(x, gathered)
        return x + self.mlp_branch(x)

    def finish_from_gathered(self, x: Tensor, gathered: Tensor, values: Tensor) -> BlockEnd:
        """As `finish`, with a graph that begins at `gathered`, also for callers in inference mode."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone() if x.is_inference() else x.detach()
            gathered = gathered.detach().clone().requires_grad_(True)
            middle = x + self.attention_branch(x, gathered)
            return BlockEnd(values, gathered, middle, self.mlp_hidden(middle), self.mlp_out)


class QueryPool(ABC):
    """A host's attention pool, in which one learnt query attends to all tokens."""

    heads: int
    scale: float

    @abstractmethod
    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query `[1, H, 1, e]`, keys `[B, H, T, e]`, and values of `[B, T, d]` before they are split into heads."""

    @abstractmethod
    def finish(self, gathered: Tensor) -> Tensor:
        """What follows the attention: `[B, n, d]` → `[B, n, D]`."""

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pools tokens: `[B, T, d]` → `[B, D]` and the attention `[B, H, 1, T]`."""
        q, k, v = self.project(tokens)
        attention = attention_weights(q, k, self.scale)
        gathered = attention.to(v.dtype) @ split_heads(v, self.heads)  # [B, H, 1, d/H]
        return self.finish(join_heads(gathered))[:, 0], attention

    def read(self, tokens: Tensor) -> Tensor:
        """The reading of each token, as if all attention were on it: `[B, n, d]` → `[B, n, D]`."""
        return self.finish(self.project(tokens)[2])


class PreNormBlock(nn.Module, BlockAdapter):
    """A pre-norm block (Dosovitskiy 2021) with timm's tensor names, its own adapter: `[B, T, d]` → `[B, T, d]`."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        inner = int(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn: Any = nn.Module()
        self.mlp: Any = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self.gather(*self.project(self.attention_input(x), None)))

    def attention_input(self, x: Tensor) -> Tensor:
        return self.norm1(x)

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        q, k, v = (split_heads(part, self.heads) for part in self.attn.qkv(normed).chunk(3, dim=-1))
        return q, k, v

    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:  # noqa: ARG002
        return self.attn.proj(join_heads(gathered))

    def mlp_hidden(self, x: Tensor) -> Tensor:
        return F.gelu(self.mlp.fc1(self.norm2(x)))

    def mlp_out(self, hidden: Tensor) -> Tensor:
        return self.mlp.fc2(hidden)


class TransformerBackbone(Backbone):
    """A backbone of kind "vit", whose last blocks can be run again, differentiably.

    A subclass has `embed`, `pool`, `last_norm`, `read_normed` and the blocks.
    """

    kind: TowerKind = "vit"
    pooling: Pooling = "class token"
    depth: int  # how many blocks
    prefix_tokens: int  # how many tokens come before the patches: class token, registers
    # How position embeddings are resized for an input of another size than the tower's: "antialiased" as open_clip and
    # timm do, or "dino", without antialias.
    position_rule: PositionRule = "antialiased"

    def __init__(
        self, adapters: Sequence[BlockAdapter], prefix_tokens: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(mean, std)
        self.adapters = list(adapters)
        self.depth, self.prefix_tokens = len(self.adapters), prefix_tokens
        self.middle_stage = -max(1, self.depth // 4)  # of 12 blocks, the tokens that leave the ninth

    # ---------------------------------------------------------------------------------------- implemented by subclasses
    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """The tokens `[B, prefix+N, d]` that enter the first block, from normalised images `[B, 3, H, W]`."""

    @abstractmethod
    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens after a block `[B, prefix+N, d]` → `[B, D]`, not normalised, and a pool's attention `[B, H, 1, T]`."""

    @property
    @abstractmethod
    def last_norm(self) -> nn.LayerNorm | nn.Identity:
        """The head's layer norm; the identity where it has none."""

    @abstractmethod
    def read_normed(self, normed: Tensor) -> Tensor:
        """The rest of the head, for each token by itself: `[B, n, d]` after `last_norm` → `[B, n, D]`."""

    def read_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, n, d]` after a block → the joint-space reading of each by itself, `[B, n, D]` float32.

        The head's normalisation and projection, with an attention pool its value path; not normalised.
        """
        return self.read_normed(self.normed_tokens(tokens)).float()

    def normed_tokens(self, tokens: Tensor) -> Tensor:
        """The first part of `read_tokens`, up to `last_norm`: `[B, n, d]` → `[B, n, d]`."""
        return self.last_norm(tokens)

    def patch_texts(self, texts: Tensor) -> Tensor:
        """What the reading of one patch is compared with, from texts `[…, D]`: `[…, D]`, of the same lengths.

        The texts themselves, except where patches are trained against a part of the joint space only (dino.txt).
        """
        return texts

    def rotation(self, grid: tuple[int, int]) -> Tensor | None:  # noqa: ARG002
        """Rotary position embedding of a grid; None for towers without one."""
        return None

    # ---------------------------------------------------------------------------------------------------- the seam
    @property
    def weights_id(self) -> str:
        """SHA-256 as for every model; another rule for position embeddings gives another one."""
        plain = super().weights_id
        if self.position_rule == "antialiased":
            return plain
        return hashlib.sha256(f"{plain} positions {self.position_rule}".encode()).hexdigest()

    def with_positions(self, rule: PositionRule) -> Self:
        """The same tower, its weights shared, which resizes position embeddings by another rule."""
        copied = copy.copy(self)  # the weights are shared
        copied.position_rule = rule
        return copied

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.stride or width % self.stride or not height or not width:
            raise UsageError(
                f"expected an input of multiples of {self.stride} pixels for {self.name}, got {height}×{width}: "
                f"choose another image size"
            )
        return height // self.stride, width // self.stride

    def _block_index(self, block: int | Fraction) -> int:
        if isinstance(block, Fraction):
            block = block_at(block, self.depth)
        if not -self.depth <= block < 0:
            raise UsageError(f"expected a block of {self.name} from {-self.depth} to -1 (the last), got {block}")
        return self.depth + block

    def _run(self, x: Tensor, first: int, last: int, needs: Needs, grid: tuple[int, int]) -> Trace:
        """Blocks `first` to `last` (from the start), then the head."""
        every = range(-self.depth, 0)
        wanted = SimpleNamespace()  # of each kind the blocks, from the start
        for kind in ("features", "tokens", "attention", "projections", "ends"):
            blocks = getattr(needs, kind)
            setattr(wanted, kind, {self._block_index(block) for block in (every if blocks == "all" else blocks)})
        wanted.projections |= set(range(max(0, self.depth - needs.dense), self.depth))
        names = ("features", "tokens", "attention", "projections", "normed", "entering", "ends")
        parts = SimpleNamespace(**{name: {} for name in names})  # of each kind block → what the trace has
        rotation = self.rotation(grid)
        for index in range(first, last + 1):
            block, back = self.adapters[index], index - self.depth
            if index in wanted.features:
                parts.features[back] = on_grid(x[:, self.prefix_tokens :], grid)  # [B, d, h, w]
            if index in wanted.features | wanted.tokens | wanted.projections:
                parts.entering[back] = x  # [B, prefix+N, d]
            y = block.attention_input(x)
            q, k, v = block.project(y, rotation)  # each [B, H, prefix+N, d/H]
            if index in wanted.projections:
                parts.projections[back], parts.normed[back] = (q, k, v), y
            # If the head reads the class token alone, the last block computes no other token.
            all_tokens = index != last or self.pooling != "class token" or index in wanted.tokens | wanted.attention
            leaving = slice(None) if all_tokens else slice(1)
            asking = slice(None) if index in wanted.ends else leaving
            if index in wanted.attention or (torch.is_grad_enabled() and x.requires_grad):
                weights = attention_weights(q[:, :, asking], k, block.scale)  # [B, H, prefix+N, prefix+N]
                gathered = weights.to(v.dtype) @ v  # [B, H, prefix+N, d/H]
                if index in wanted.attention:
                    parts.attention[back] = weights
            else:
                gathered = block.gather(q[:, :, asking], k, v)
            if index in wanted.ends:
                parts.ends[back] = end = block.finish_from_gathered(x, gathered, v)
                x = end.middle.detach()[:, leaving] + block.mlp_out(end.hidden.detach()[:, leaving])
            else:
                del y, q, k, v
                x = x[:, leaving] + block.attention_branch(x[:, leaving], gathered)
                del gathered  # makes room for the MLP, where the most memory is needed
                x = x + block.mlp_branch(x)
            if index in wanted.tokens:
                parts.tokens[back] = x  # [B, prefix+N, d]
        pooled, pool_attention = self.pool(x)
        embedding, pool_attention = F.normalize(pooled.float(), dim=-1), pool_attention if wanted.attention else None
        return Trace(embedding, grid, **vars(parts), pool_attention=pool_attention)

    def run(self, images: Tensor, needs: Needs) -> Trace:
        grid = self.grid(images.shape[-2], images.shape[-1])
        # Without a name here, the first tokens take up memory only as long as `_run` needs them.
        return self._run(self.embed(images.to(self.device, self.dtype)), 0, self.depth - 1, needs, grid)

    def resume(self, tokens: Tensor, block: int, needs: Needs, grid: tuple[int, int], last: int = -1) -> Trace:
        """Runs the tower from the tokens `[B, 1+N, d]` entering `block` (from the end) to the embedding.

        With gradients when `tokens` require them: attention and projections kept by `needs` are then part of the graph,
        and gradients may be computed in batches (`is_grads_batched`).

        Args:
            tokens: those of `Trace.entering`, perhaps changed.
            block: the first block to run.
            needs: what the trace of this run keeps.
            grid: `(h, w)` of the patches among the tokens.
            last: the block after which the head reads the tokens; earlier than −1 for the embedding that the tower
                would give if it ended there (LeGrad).
        """
        first, end = self._block_index(block), self._block_index(last)
        if end < first:
            raise ValueError(f"expected last ≥ block, got {last} and {block}")
        return self._run(tokens.to(self.dtype), first, end, needs, grid)

    def end(self, tokens: Tensor, block: int, grid: tuple[int, int], rule: AttentionRule | None = None) -> BlockEnd:
        """Runs one block on the tokens `[B, 1+N, d]` entering it; `Needs.ends` keeps the same in a trace.

        A rule replaces the block's attention, as in a `DenseReading`.
        """
        adapter = self.adapters[self._block_index(block)]
        with torch.no_grad():
            q, k, v = adapter.project(adapter.attention_input(tokens), self.rotation(grid))
            gathered = adapter.gather(q, k, v) if rule is None else rule(q, k, v, adapter.scale).to(v.dtype)
        return adapter.finish_from_gathered(tokens, gathered, v)

    def attention_output(self, trace: Trace, gathered: Tensor, block: int = -1) -> Tensor:
        """A block's projection of what its heads gathered, `[B, H, T, d/H]` → `[B, T, d]`, before any layer scale."""
        adapter = self.adapters[self._block_index(block)]
        return adapter.attention_output(trace.entering[block], gathered.to(self.dtype))

    def head(self, features: Tensor, trace: Trace, stage: int = -1) -> Tensor:
        patches = features.to(self.dtype).flatten(2).transpose(1, 2)  # [B, N, d]
        tokens = torch.cat([trace.entering[stage][:, : self.prefix_tokens], patches], dim=1)  # [B, prefix+N, d]
        grid = (features.shape[-2], features.shape[-1])
        return self.resume(tokens, stage, Needs(), grid).embedding

    def dense(self, trace: Trace, reading: DenseReading = DenseReading()) -> Tensor:
        read = self.read_tokens(self.path(trace, reading)[:, self.prefix_tokens :])  # [B, N, D]
        return on_grid(read, reading.grid or trace.grid)

    def path(self, trace: Trace, reading: DenseReading = DenseReading()) -> Tensor:
        """`dense` without its last step: the tokens `[B, 1+N, d]` at the path's end, which `read_tokens` reads.

        A method may change the tokens that the path starts with: `dataclasses.replace(trace, entering=…,
        projections={}, normed={})`.
        """
        start = -reading.blocks
        self._block_index(start)
        if start not in trace.entering:
            needed = f"Needs(tokens=({start},))"
            raise ValueError(f"expected the tokens entering block {start} in the trace, got none: ask for {needed}")
        original = trace.entering[start]  # [B, prefix+N, d] the tower's own tokens
        path = torch.zeros_like(original) if reading.parallel and not reading.residual else original
        rotation = self.rotation(trace.grid)
        for back, block in zip(range(start, 0), self.adapters[start:], strict=True):
            if reading.parallel:
                original = trace.entering.get(back, original)
            source = original if reading.parallel else path
            if source is trace.entering.get(back) and back in trace.projections:
                normed, (q, k, v) = trace.normed[back], trace.projections[back]
            else:
                normed = block.attention_input(source)  # [B, prefix+N, d]
                q, k, v = block.project(normed, rotation)  # each [B, H, prefix+N, d/H]
            scale: Tensor | float = block.scale
            if reading.adaptive:
                lengths = normed.float().norm(dim=-1)  # [B, prefix+N]
                scale = block.scale * lengths.mean(dim=-1)[:, None, None, None]  # [B, 1, 1, 1]
            gathered = v if reading.rule is None else reading.rule(q, k, v, scale).to(v.dtype)
            branch = block.attention_branch(source, gathered)  # [B, prefix+N, d]
            path = path + branch if reading.residual or reading.parallel else branch
            if reading.mlp:
                path = path + block.mlp_branch(path)
            if reading.parallel and back < -1 and back + 1 not in trace.entering:
                original = block.finish(original, block.gather(q, k, v))
        return path
