"""Adapters of open_clip's image towers from timm; not Swin, nor ViTs with relative positions."""

from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers import (  # type: ignore[attr-defined]  # timm re-exports them without saying so
    AttentionPoolLatent,
    AttentionRope,
    ClassifierHead,
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

from cliploc.towers._cnn import ConvolutionalBackbone
from cliploc.towers._open_clip_towers import OpenClipParts, Tokenizer
from cliploc.towers._timm_vit import TimmBlock, first_tokens, rotation
from cliploc.towers._transformer import QueryPool, TransformerBackbone, on_grid
from cliploc.towers.tower import Pooling, split_heads


def _embedding_size(visual: Any) -> int:
    """D of a tower: the size of open_clip's projection, else of timm's classifier, else the trunk's width."""
    if hasattr(visual.head, "proj"):
        return int(visual.head.proj.out_features)
    if hasattr(visual.head, "mlp"):
        return int(visual.head.mlp.fc2.out_features)
    classifier = visual.trunk.get_classifier()
    return int(classifier.out_features if isinstance(classifier, nn.Linear) else visual.trunk.num_features)


# --------------------------------------------------------------------------------------------------------------- ViTs
class _LatentPool(QueryPool):
    """SigLIP's and the Perception Encoder's pool: an MLP follows the attention."""

    def __init__(self, pool: AttentionPoolLatent) -> None:
        self.pool, self.heads, self.scale = pool, pool.num_heads, pool.scale

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pool = self.pool
        key, value = pool.kv(tokens).chunk(2, dim=-1)  # each [B, T, d]
        q = pool.q_norm(split_heads(pool.q(pool.latent), self.heads))
        return q, pool.k_norm(split_heads(key, self.heads)), value

    def finish(self, gathered: Tensor) -> Tensor:
        x: Tensor = self.pool.proj(gathered)
        return x if self.pool.mlp is None else x + self.pool.mlp(self.pool.norm(x))


BLOCKS = (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm)
ATTENTIONS = (Attention, EvaAttention, AttentionRope)
POOLING: dict[str, Pooling] = {"token": "class token", "map": "attention", "avg": "global average"}


class TimmVit(TransformerBackbone):
    """SigLIP 1 and 2 (pool, no class token), EVA-CLIP, PE, ViTamin, MobileCLIP-B and -L; any input size."""

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str, *, copied: bool = True) -> None:
        parts = OpenClipParts(model, tokenizer, name, TimmVit, copied=copied)
        visual, trunk = parts.visual, parts.visual.trunk
        super().__init__([TimmBlock(block) for block in trunk.blocks], trunk.num_prefix_tokens, parts.mean, parts.std)
        self.visual, self.trunk = visual, trunk
        self.attention_pool = None if trunk.attn_pool is None else _LatentPool(trunk.attn_pool)
        self.pooling = POOLING[trunk.global_pool]
        self.pools_prefix = getattr(trunk, "pool_include_prefix", isinstance(trunk, Eva) and trunk.global_pool == "map")
        self.stride = trunk.patch_embed.img_size[0] // trunk.patch_embed.grid_size[0]
        self.embedding_size = _embedding_size(visual)
        parts.complete(self)

    @staticmethod
    def supports(visual: nn.Module) -> bool:
        # Other variants exist in timm, but in none of open_clip's models.
        return (
            isinstance(trunk := getattr(visual, "trunk", None), VisionTransformer | Eva)
            and trunk.global_pool in POOLING
            and all(type(block) in BLOCKS and type(block.attn) in ATTENTIONS for block in trunk.blocks)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the projections; in open_clip's mixed precision, norms stay in float32."""
        return self.trunk.blocks[0].attn.proj.weight.dtype

    def embed(self, images: Tensor) -> Tensor:
        return first_tokens(self.trunk, images, self.position_rule)

    def rotation(self, grid: tuple[int, int]) -> Tensor | None:
        """EVA-02's and the Perception Encoder's rotary positions `[N, …]`."""
        return rotation(self.trunk, grid)

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
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

    @property
    def last_norm(self) -> nn.LayerNorm:
        """The head's layer norm; timm has none here if it averages first."""
        return self.trunk.norm

    def read_normed(self, normed: Tensor) -> Tensor:
        """The rest of the head, with an attention pool its value path: `[B, n, d]` → `[B, n, D]`."""
        x = normed if self.attention_pool is None else self.attention_pool.read(normed)
        return self.visual.head(self.trunk.head(self.trunk.fc_norm(x)))


# --------------------------------------------------------------------------------------------------------------- CNNs
class TimmCnn(ConvolutionalBackbone):
    """ConvNeXt-CLIP and MobileCLIP's FastViTs (attention not accessible); stage −1 is the last before the mean."""

    pooling: Pooling = "global average"
    pool_layer: Any  # timm's head, which `pool` and `read_locations` here read in their own way

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str, *, copied: bool = True) -> None:
        parts = OpenClipParts(model, tokenizer, name, TimmCnn, copied=copied)
        visual: Any = parts.visual
        trunk: Any = visual.trunk.eval()
        if isinstance(trunk, FastVit):
            trunk = reparameterize_model(trunk, inplace=True)  # branches that help training become one convolution
            stages = [trunk.stem, *trunk.stages, trunk.final_conv]
        else:
            stages = [trunk.stem, *trunk.stages[:-1], nn.Sequential(trunk.stages[-1], trunk.norm_pre)]
        super().__init__(stages, parts.mean, parts.std)
        self.pool_layer, self.projection = trunk.head, visual.head
        self.stride = trunk.feature_info[-1]["reduction"]
        # The last stage of stride 16; the stem comes before the trunk's own stages.
        self.middle_stage = sum(info["reduction"] <= 16 for info in trunk.feature_info) - len(stages)
        self.embedding_size = _embedding_size(visual)
        parts.complete(self)

    @staticmethod
    def supports(visual: nn.Module) -> bool:
        if not isinstance(visual, TimmModel) or not isinstance(trunk := visual.trunk, ConvNeXt | FastVit):
            return False
        head = trunk.head
        normed = isinstance(head, NormMlpClassifierHead) and isinstance(head.norm, nn.LayerNorm)
        return head.global_pool.pool_type == "avg" and (normed or isinstance(head, ClassifierHead))

    def pool(self, features: Tensor) -> Tensor:
        return self.projection(self.pool_layer(features))

    def read_locations(self, features: Tensor) -> Tensor:
        """`[B, D, h, w]`; every place is divided by the mean's deviation, so their mean is the embedding."""
        x = features.flatten(2).transpose(1, 2)  # [B, N, C]
        head = self.pool_layer
        if isinstance(head, NormMlpClassifierHead):
            x = x.float()
            variance = x.mean(dim=1, keepdim=True).var(dim=-1, keepdim=True, unbiased=False)  # [B, 1, 1]
            x = (x - x.mean(dim=-1, keepdim=True)) * (variance + head.norm.eps).rsqrt()
            x = head.pre_logits((x * head.norm.weight + head.norm.bias).to(features.dtype))
        return on_grid(self.projection(head.fc(x)), (features.shape[-2], features.shape[-1]))
