"""What the adapters of open_clip's models share: their registry, preprocessing and scale, and the text tower."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.registry import Registry
from cliploc.towers._backbone import Backbone
from cliploc.towers._catalogue import describe_preprocessing
from cliploc.towers._transformer import BlockAdapter
from cliploc.towers.tower import join_heads, split_heads
from cliploc.values import Interpolation, ResizePolicy

Tokenizer = Callable[[list[str]], Tensor]
C = TypeVar("C", bound=type)
RESIZE_POLICIES: dict[str, ResizePolicy] = {"shortest": "crop", "longest": "pad", "squash": "squash"}

# The classes that read the image towers of open_clip. Each registers itself: a new one is a module and its test.
adapters: Registry[Any] = Registry("adapter of open_clip", "cliploc.towers")


def adapter(cls: C) -> C:
    """Registers a class, built of open_clip's model, whose `supports(visual)` says which image towers it reads."""
    adapters.register(cls.__name__, cls)
    return cls


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
        backbone.text = OpenClipText(self._model, self._tokenizer)
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
    """The text tower: sentences → unit-norm embeddings, by open_clip's `encode_text`; the model loses its own."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        super().__init__()
        model.visual = nn.Identity()  # the image tower would be kept in memory twice
        self.model, self.tokenizer = model, tokenizer

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        device = self.model.logit_scale.device
        tokens = self.tokenizer(list(texts)).to(device)  # [n, context length]
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)
