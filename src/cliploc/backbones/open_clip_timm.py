"""The image towers that open_clip takes from timm.

`TimmVit`: SigLIP, SigLIP 2, EVA-CLIP, Perception Encoder, ViTamin, MobileCLIP-B and -L. `TimmCnn`: ConvNeXt-CLIP and
the FastViTs of MobileCLIP. What neither supports: Swin (windows, no global tokens) and relative-position ViTs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers import (  # type: ignore[attr-defined]  # timm re-exports them without saying so
    AttentionPoolLatent,
    AttentionRope,
    ClassifierHead,
    HybridEmbed,
    NormMlpClassifierHead,
)
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.fastvit import FastVit
from timm.models.vision_transformer import (  # type: ignore[attr-defined]
    Attention,
    Block,
    ResPostBlock,
    VisionTransformer,
)
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from cliploc.backbones._cnn import ConvolutionalBackbone
from cliploc.backbones._linear import with_fast_linears
from cliploc.backbones._open_clip_facts import OpenClipFacts
from cliploc.backbones._open_clip_text import OpenClipText, Tokenizer, without_image_tower
from cliploc.backbones._timm_block import TimmBlock
from cliploc.backbones._transformer import (
    VisionTransformerBackbone,
    attention_weights,
    join_heads,
    on_grid,
    resize_positions,
    split_heads,
)
from cliploc.errors import UsageError
from cliploc.tower import Pooling


def _embedding_size(visual: Any) -> int:
    """D: of open_clip's projection, else of timm's classifier, else the trunk's width."""
    if hasattr(visual.head, "proj"):
        return int(visual.head.proj.out_features)
    if hasattr(visual.head, "mlp"):
        return int(visual.head.mlp.fc2.out_features)
    classifier = visual.trunk.get_classifier()
    return int(classifier.out_features if isinstance(classifier, nn.Linear) else visual.trunk.num_features)


# --------------------------------------------------------------------------------------------------------------- ViTs
class _AttentionPool:
    """SigLIP's and the Perception Encoder's pool: one learnt query attends to all tokens, an MLP follows."""

    def __init__(self, pool: AttentionPoolLatent) -> None:
        self.pool = pool

    def _after(self, gathered: Tensor) -> Tensor:
        """Projection and MLP: `[B, n, d]` → `[B, n, d]`."""
        x: Tensor = self.pool.proj(gathered)
        if self.pool.mlp is not None:
            x = x + self.pool.mlp(self.pool.norm(x))
        return x

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, d]` → `[B, d]` and the attention `[B, H, 1, T]`."""
        pool = self.pool
        key, value = pool.kv(tokens).chunk(2, dim=-1)  # each [B, T, d]
        q = pool.q_norm(split_heads(pool.q(pool.latent), pool.num_heads))  # [1, H, 1, d/H]
        k, v = pool.k_norm(split_heads(key, pool.num_heads)), split_heads(value, pool.num_heads)  # [B, H, T, d/H]
        attention = attention_weights(q, k, pool.scale)  # [B, H, 1, T]
        return self._after(join_heads(attention.to(v.dtype) @ v))[:, 0], attention

    def read(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` → `[B, n, d]`: each token as if it alone were attended to."""
        value: Tensor = self.pool.kv(tokens).chunk(2, dim=-1)[1]
        return self._after(value)


POOLING: dict[str, Pooling] = {"token": "class token", "map": "attention", "avg": "global average"}


class TimmVit(VisionTransformerBackbone):
    """A vision transformer that open_clip takes from timm, with every block open to view.

    Heads: a class token (EVA-CLIP, MobileCLIP), the mean of the patches (ViTamin), or an attention pool (SigLIP,
    Perception Encoder), for which `Trace.pool_attention` says where it looks. SigLIP has no class token:
    `prefix_tokens` is 0. Learnt positions are interpolated, rotary ones computed, for inputs of another size.

    Args:
        model: an open_clip model whose `visual` this class supports; it is not changed.
        tokenizer: its tokenizer, of `open_clip.get_tokenizer`.
        name: how results and errors call it.
        copy_text: False hands the model over instead of copying it; `model` is of no use afterwards.

    Raises:
        UsageError: a tower that this class does not support.

    Example:
        >>> import open_clip
        >>> name = "ViT-B-16-SigLIP"
        >>> tokenizer = open_clip.get_tokenizer(name)  # from the network  # doctest: +SKIP
        >>> TimmVit(open_clip.create_model(name), tokenizer, name).prefix_tokens  # doctest: +SKIP
        0
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str, *, copy_text: bool = True) -> None:
        if not self.supports(model.visual):
            raise UsageError(f"{name} has an image tower that TimmVit cannot take apart: choose another model")
        facts = OpenClipFacts.of(model)
        visual = with_fast_linears(copy.deepcopy(model.visual) if copy_text else model.visual)
        trunk = visual.trunk
        super().__init__([TimmBlock(block) for block in trunk.blocks], trunk.num_prefix_tokens, facts.mean, facts.std)
        self.visual, self.trunk = visual, trunk
        self.text = OpenClipText(without_image_tower(model) if copy_text else model, tokenizer)
        self.attention_pool = None if trunk.attn_pool is None else _AttentionPool(trunk.attn_pool)
        self.pooling = POOLING[trunk.global_pool]
        self.pools_prefix = getattr(trunk, "pool_include_prefix", isinstance(trunk, Eva) and trunk.global_pool == "map")
        self.learnt_grid: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.name = name
        facts.set_on(self)
        self.stride = trunk.patch_embed.img_size[0] // self.learnt_grid[0]
        self.embedding_size = _embedding_size(visual)
        self.eval().requires_grad_(False)

    @staticmethod
    def supports(visual: nn.Module) -> bool:
        """Whether an open_clip image tower is one of these."""
        if not isinstance(visual, TimmModel) or not isinstance(trunk := visual.trunk, VisionTransformer | Eva):
            return False
        (height, width), (h, w) = trunk.patch_embed.img_size, trunk.patch_embed.grid_size
        # What follows exists in timm, but in none of open_clip's models.
        return (
            height // h == width // w
            and trunk.global_pool in ("token", "avg", "map")
            and not getattr(trunk, "rope_mixed", False)
            and all(
                type(block) in (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm)
                and type(block.attn) in (Attention, EvaAttention, AttentionRope)
                and getattr(block.attn, "num_kv_groups", 1) == 1
                for block in trunk.blocks
            )
            and (
                trunk.attn_pool is None
                or (
                    type(trunk.attn_pool) is AttentionPoolLatent
                    and trunk.attn_pool.latent_len == 1
                    and trunk.attn_pool.pos_embed is None
                )
            )
        )

    @property
    def dtype(self) -> torch.dtype:
        """The projections'; in open_clip's mixed precision, norms stay in float32."""
        dtype: torch.dtype = self.trunk.blocks[0].attn.proj.weight.dtype
        return dtype

    def embed(self, images: Tensor) -> Tensor:
        """Normalised `[B, 3, H, W]` → tokens `[B, prefix+N, d]`."""
        trunk, patch_embed = self.trunk, self.trunk.patch_embed
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
        if trunk.pos_embed is None:
            return self._prepared(torch.cat([*first, x], dim=1))
        placed = 0 if trunk.no_embed_class else self.prefix_tokens
        positions = resize_positions(trunk.pos_embed[0], placed, self.learnt_grid, grid).to(x.dtype)
        if trunk.no_embed_class:
            return self._prepared(torch.cat([*first, x + positions], dim=1))
        return self._prepared(torch.cat([*first, x], dim=1) + positions)

    def _prepared(self, tokens: Tensor) -> Tensor:
        prepared: Tensor = self.trunk.norm_pre(tokens)
        return prepared

    def rotation(self, grid: tuple[int, int]) -> Tensor | None:
        """EVA-02's and the Perception Encoder's rotary positions `[N, …]`."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return None
        if grid != self.learnt_grid:
            rope = copy.deepcopy(rope)  # timm's keeps the table of one grid; the tower's own stays as it is
            rope.update_feat_shape(grid)
        rotation: Tensor = rope.get_embed(shape=grid)
        return rotation

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[B, prefix+N, d]` → `[B, D]`, and an attention pool's `[B, H, 1, T]`."""
        trunk, attention = self.trunk, None
        x = trunk.norm(tokens)
        if trunk.global_pool == "token":
            pooled = x[:, 0]  # [B, d]
        else:
            x = x if self.pools_prefix else x[:, self.prefix_tokens :]
            if self.attention_pool is None:
                pooled = x.mean(dim=1)  # [B, d]
            else:
                pooled, attention = self.attention_pool.attend(x)  # [B, d]
        return self.visual.head(trunk.head(trunk.fc_norm(pooled))), attention

    def read_tokens(self, tokens: Tensor) -> Tensor:
        """`[B, n, d]` → `[B, n, D]` float32."""
        trunk = self.trunk
        x = trunk.norm(tokens)
        if self.attention_pool is not None:
            x = self.attention_pool.read(x)
        read: Tensor = self.visual.head(trunk.head(trunk.fc_norm(x)))
        return read.float()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        embeddings: Tensor = self.text(texts)
        return embeddings


# --------------------------------------------------------------------------------------------------------------- CNNs
class TimmCnn(ConvolutionalBackbone):
    """A convolutional tower that open_clip takes from timm, ended by a global average pool.

    ConvNeXt-CLIP: mean over h×w, layer norm, projection. FastViT (MobileCLIP-S): mean, projection; the attention inside
    its last stage is not open to view, so methods see a CNN. Stages, counted from the end: −1 is the last before the
    mean (FastViT: after its final convolution), the first is the stem.

    Args:
        model: an open_clip model whose `visual` this class supports; it is not changed.
        tokenizer: its tokenizer, of `open_clip.get_tokenizer`.
        name: how results and errors call it.
        copy_text: False hands the model over instead of copying it; `model` is of no use afterwards.
        fold: whether FastViT's training branches and batch norms become one convolution each.

    Raises:
        UsageError: a tower that this class does not support.

    Example:
        >>> import open_clip
        >>> model, tokenizer = open_clip.create_model("convnext_tiny"), open_clip.get_tokenizer("convnext_tiny")
        >>> TimmCnn(model, tokenizer, "convnext_tiny").grid(256, 320)
        (8, 10)
    """

    pooling: Pooling = "global average"

    def __init__(
        self, model: Any, tokenizer: Tokenizer, name: str, *, copy_text: bool = True, fold: bool = True
    ) -> None:
        if not self.supports(model.visual):
            raise UsageError(f"{name} has an image tower that TimmCnn cannot take apart: choose another model")
        facts = OpenClipFacts.of(model)
        visual = with_fast_linears(copy.deepcopy(model.visual) if copy_text else model.visual)
        trunk: Any = visual.trunk.eval()
        if isinstance(trunk, FastVit):
            trunk = reparameterize_model(trunk) if fold else trunk  # a copy
            stages = [trunk.stem, *trunk.stages, trunk.final_conv]
        else:
            stages = [trunk.stem, *trunk.stages[:-1], nn.Sequential(trunk.stages[-1], trunk.norm_pre)]
        super().__init__(stages, facts.mean, facts.std)
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.pool_layer, self.projection = trunk.head, visual.head
        self.text = OpenClipText(without_image_tower(model) if copy_text else model, tokenizer)
        self.name = name
        facts.set_on(self)
        self.stride = trunk.feature_info[-1]["reduction"]
        # The last stage of stride 16; the stem comes before the trunk's own stages.
        self.middle_stage = sum(info["reduction"] <= 16 for info in trunk.feature_info) - len(stages)
        self.embedding_size = _embedding_size(visual)
        self.eval().requires_grad_(False)

    @staticmethod
    def supports(visual: nn.Module) -> bool:
        """Whether an open_clip image tower is one of these."""
        if not isinstance(visual, TimmModel) or not isinstance(trunk := visual.trunk, ConvNeXt | FastVit):
            return False
        head = trunk.head
        normed = isinstance(head, NormMlpClassifierHead) and isinstance(head.norm, nn.LayerNorm)
        return head.global_pool.pool_type == "avg" and (normed or isinstance(head, ClassifierHead))

    def pool(self, features: Tensor) -> Tensor:
        """`[B, C, h, w]` → `[B, D]`, not normalised."""
        pooled: Tensor = self.projection(self.pool_layer(features))
        return pooled

    def read_locations(self, features: Tensor) -> Tensor:
        """`[B, C, h, w]` → `[B, D, h, w]`.

        A layer norm between mean and projection divides by the deviation of the image's mean; every location is divided
        by that same number. With a linear projection the mean of the readings is then exactly the embedding. Where
        the projection is an MLP (convnext_large_d) each location goes through it by itself, which is no longer exact.
        """
        x = features.flatten(2).transpose(1, 2)  # [B, N, C]
        head = self.pool_layer
        if isinstance(head, NormMlpClassifierHead):
            x = x.float()
            variance = x.mean(dim=1, keepdim=True).var(dim=-1, keepdim=True, unbiased=False)  # [B, 1, 1]
            x = (x - x.mean(dim=-1, keepdim=True)) * (variance + head.norm.eps).rsqrt()
            x = head.pre_logits((x * head.norm.weight + head.norm.bias).to(features.dtype))
        return on_grid(self.projection(head.fc(x)), (features.shape[-2], features.shape[-1]))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        embeddings: Tensor = self.text(texts)
        return embeddings
