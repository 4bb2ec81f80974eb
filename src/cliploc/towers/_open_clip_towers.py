"""open_clip's own towers: CLIP's ResNets and ViTs (B/32 to bigG, also CoCa's), and the text tower of all its models."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from open_clip.model import get_model_preprocess_cfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg
from open_clip.transformer import (
    AttentionalPooler,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    VisionTransformer,
)  # fmt: skip
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.towers._backbone import Backbone
from cliploc.towers._catalogue import describe_preprocessing
from cliploc.towers._cnn import AttentionPool, ConvolutionalBackbone
from cliploc.towers._layers import resize_positions
from cliploc.towers._transformer import BlockAdapter, QueryPool, TransformerBackbone
from cliploc.towers.tower import Pooling, join_heads, split_heads
from cliploc.values import Interpolation, ResizePolicy

Tokenizer = Callable[[list[str]], Tensor]
PACKED = 512  # tokens of the text tower's sequences: longer ones cost more attention
RESIZE_POLICIES: dict[str, ResizePolicy] = {"shortest": "crop", "longest": "pad", "squash": "squash"}


def interpolation_of(name: str) -> Interpolation:
    """Our name of open_clip's interpolation; "random", used in some trainings, means bicubic at inference."""
    return "bilinear" if name == "bilinear" else "bicubic"


def published_preprocessing(published: Mapping[str, Any]) -> str:
    """The preprocessing of published weights, in words; OpenAI's where open_clip's list does not state it."""
    config = PreprocessCfg(**published)
    policy, interpolation = RESIZE_POLICIES[config.resize_mode], interpolation_of(config.interpolation)
    return describe_preprocessing(policy, interpolation, config.mean, config.std)


class OpenClipParts:
    """An open_clip model taken apart, for an adapter; if not `copied`, the model must not be used afterwards."""

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str, to: Any, *, copied: bool) -> None:
        if not to.supports(model.visual):
            raise UsageError(f"{name} has an image tower that {to.__name__} does not support: choose another model")
        self._model = copy.deepcopy(model) if copied else model
        self._name, self._tokenizer = name, tokenizer
        self._preprocess = PreprocessCfg(**get_model_preprocess_cfg(model))  # OpenAI's if not built by open_clip
        self.visual: Any = self._model.visual
        self.mean, self.std = tuple(self._preprocess.mean), tuple(self._preprocess.std)  # per channel

    def complete(self, backbone: Backbone) -> None:
        """Gives the adapter its name, input, scale and text tower, and freezes it."""
        side, preprocess = self.visual.image_size, self._preprocess
        backbone.name = self._name
        backbone.input_hw = (side, side) if isinstance(side, int) else (side[0], side[1])
        backbone.resize_policy = RESIZE_POLICIES[preprocess.resize_mode]
        backbone.interpolation = interpolation_of(preprocess.interpolation)
        backbone.logit_scale = float(self._model.logit_scale.detach().float().exp())
        text = OpenClipText(self._model, self._tokenizer)
        backbone.text, backbone.packs_texts = text, text.packs
        backbone.eval().requires_grad_(False)


class OpenClipBlock(BlockAdapter):
    """Adapter of open_clip's default block, which uses torch's multi-head attention."""

    def __init__(self, block: ResidualAttentionBlock) -> None:
        self.block, self.attn = block, block.attn
        self.scale = block.attn.head_dim**-0.5

    def attention_input(self, x: Tensor) -> Tensor:
        return self.block.ln_1(x)

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        qkv = F.linear(normed, self.attn.in_proj_weight, self.attn.in_proj_bias)  # [B, T, 3d]
        q, k, v = (split_heads(part, self.attn.num_heads) for part in qkv.chunk(3, dim=-1))
        return q, k, v

    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:
        return self.block.ls_1(self.attention_output(x, gathered))

    def attention_output(self, x: Tensor, gathered: Tensor) -> Tensor:  # noqa: ARG002
        return self.attn.out_proj(join_heads(gathered))

    def mlp_hidden(self, x: Tensor) -> Tensor:
        return self.block.mlp[:-1](self.block.ln_2(x))

    def mlp_out(self, hidden: Tensor) -> Tensor:
        return self.block.ls_2(self.block.mlp[-1](hidden))


class OpenClipText(nn.Module):
    """The text tower: sentences → unit-norm embeddings, as by open_clip's `encode_text`; the model loses its own."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        super().__init__()
        model.visual = nn.Identity()  # the image tower would be kept in memory twice
        self.model, self.tokenizer = model, tokenizer
        part = getattr(model, "text", model)
        self.pool: Any
        self.end: Any
        self.pool, self.end = (
            getattr(part, f"text_{name}", getattr(part, name, None)) for name in ("pool_type", "eos_id")
        )
        masks_padding = getattr(part, "use_pad_mask", False)
        full = getattr(part, "attn_mask", None) is None or getattr(part, "cls_emb", None) is not None or masks_padding
        self.packs = not full and self.pool in ("argmax", "eos")  # whether what fills the context changes nothing

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        tokens = self.token_ids(texts).to(self.model.logit_scale.device)
        if not self.packs:
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1)
        part, pool, end = getattr(self.model, "text", self.model), self.pool, self.end
        ends = (tokens if pool == "argmax" else tokens.eq(end).int()).argmax(dim=1)
        common = tokens.eq(tokens[0]).all(dim=0).int().cumprod(dim=0).sum()
        shared = int(torch.minimum(common, ends.min()))  # tokens with which all texts begin
        packs = torch.split(torch.arange(len(texts)), max(1, PACKED // (int(ends.max()) + 1 - shared)))
        x, project = torch.cat([self._packed(part, tokens[i], ends[i], shared) for i in packs]), part.text_projection
        if project is not None:
            x = project(x) if isinstance(project, nn.Linear) else x @ project
        return F.normalize(x.float(), dim=-1)

    def _packed(self, part: Any, tokens: Tensor, ends: Tensor, shared: int) -> Tensor:
        """`[n, d]` at the ends of texts, read as one sequence without what fills the context, and their beginning once.

        Tokens attend to those before them only, so that this changes nothing: each text attends to itself and to the
        beginning.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        text, at = ((positions >= shared) & (positions <= ends[:, None])).nonzero(as_tuple=True)  # [T] of each token
        text, at = F.pad(text, (shared, 0), value=-1), torch.cat([positions[:shared], at])
        hidden = (text != text[:, None]) & (text != -1) | (at > at[:, None])  # [T, T]
        dtype = part.transformer.get_cast_dtype()
        x = part.token_embedding(tokens[text, at]).to(dtype) + part.positional_embedding[at].to(dtype)  # [T, d]
        mask = torch.zeros(hidden.shape, device=x.device, dtype=dtype).masked_fill(hidden, -math.inf)
        x = part.transformer(x[None], attn_mask=mask)[0]
        return part.ln_final(x)[shared - 1 + (ends + 1 - shared).cumsum(dim=0)]

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """`[n, context length]`."""
        return self.tokenizer(list(texts))


# ------------------------------------------------------------------------------------------------------------ ResNets
class Stem(nn.Module):
    """CLIP's three first convolutions and average pool, stride 4; in open_clip's tower they are not one module."""

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool"):
            self.add_module(name, getattr(visual, name))

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` → `[B, C, H/4, W/4]`."""
        x = images
        for layer in self.children():
            x = layer(x)
        return x


class OpenClipResNet(ConvolutionalBackbone):
    """CLIP's ModifiedResNet (Radford 2021); stages −1 layer4 … −4 layer1, −5 the stem; any input size."""

    pooling: Pooling = "attention"
    stride = 32
    middle_stage = -2  # layer3, stride 16

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str, *, copied: bool = True) -> None:
        parts = OpenClipParts(model, tokenizer, name, OpenClipResNet, copied=copied)
        tower = parts.visual
        super().__init__([Stem(tower), tower.layer1, tower.layer2, tower.layer3, tower.layer4], parts.mean, parts.std)
        # Our attention pool with open_clip's parameters: it has batched gradients and fits any grid.
        pool, side = tower.attnpool, math.isqrt(len(tower.attnpool.positional_embedding) - 1)
        with torch.device("meta"):  # skips the random initialisation, as weights are loaded next
            channels = pool.positional_embedding.shape[1]
            self.pool_layer = AttentionPool((side, side), channels, pool.num_heads, pool.c_proj.out_features)
        self.pool_layer.load_state_dict(pool.state_dict(), assign=True)
        self.embedding_size = tower.output_dim
        parts.complete(self)

    @staticmethod
    def supports(visual: nn.Module) -> bool:
        return isinstance(visual, ModifiedResNet)


# --------------------------------------------------------------------------------------------------------------- ViTs
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
