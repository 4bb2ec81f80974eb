"""What the adapters of open_clip's models share: their registry, preprocessing and scale, and the text tower."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.backbones._catalogue import describe_preprocessing
from cliploc.backbones._dual_encoder import DualEncoder
from cliploc.backbones._layers import with_fast_linears
from cliploc.errors import UsageError
from cliploc.registry import Registry
from cliploc.tower import join_heads, split_heads
from cliploc.values import Interpolation, ResizePolicy

Tokenizer = Callable[[list[str]], Tensor]
C = TypeVar("C", bound=type)
WORD = re.compile(r"[\w'’]+|[^\w\s'’]+")  # or a group of signs
RESIZE_POLICIES: dict[str, ResizePolicy] = {"shortest": "crop", "longest": "pad", "squash": "squash"}

# The classes that read the image towers of open_clip. Each registers itself: a new one is a module and its test.
adapters: Registry[Any] = Registry("adapter of open_clip", "cliploc.backbones")


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
        self.visual: Any = with_fast_linears(self._model.visual)
        self.mean, self.std = tuple(self._preprocess.mean), tuple(self._preprocess.std)  # per channel

    def complete(self, backbone: DualEncoder) -> None:
        """Gives the adapter its name, input, scale and text tower, and freezes it."""
        side, preprocess = self.visual.image_size, self._preprocess
        backbone.name = self._name
        backbone.input_hw = (side, side) if isinstance(side, int) else (side[0], side[1])
        backbone.resize_policy = RESIZE_POLICIES[preprocess.resize_mode]
        backbone.interpolation = interpolation_of(preprocess.interpolation)
        backbone.logit_scale = float(self._model.logit_scale.detach().float().exp())
        backbone.text = OpenClipText(self._model, self._tokenizer)
        backbone.eval().requires_grad_(False)


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

    def word_shares(
        self, text: str, image: Tensor, *, blocks: int = 8, published: bool = False
    ) -> list[tuple[str, float]] | None:
        """Which words of a sentence its match with an image used: the word side of Grad-ECLIP (Zhao et al. 2024).

        w_i = ReLU(Σ_l Σ_d g^l_d · v^l_id · n^l_i) over the last blocks l, as shares that add up to 1 (or all 0): g^l is
        the cosine's gradient with respect to what the heads gather for the end token, n^l_i = cos(q_end, k_i), min–max
        normalised over all tokens. As for the image side, the authors' code runs these blocks with one head. The share
        of a word is the sum of its tokens' shares. None where the text tower is not CLIP's own. `published` is the
        authors' one-head form.
        """
        part = getattr(self.model, "text", self.model)
        pooled = getattr(part, "text_pool_type", getattr(part, "pool_type", None))
        end_id: Any = getattr(part, "text_eos_id", getattr(part, "eos_id", None))
        layers = getattr(getattr(part, "transformer", None), "resblocks", ())
        if pooled not in ("argmax", "eos") or not all(isinstance(layer, ResidualAttentionBlock) for layer in layers):
            return None
        words = list(WORD.finditer(text))
        if not words:
            return []
        # Tokenizers split at spaces and signs first, so the tokens of a beginning are the first ones of the sentence.
        beginnings = self.tokenizer([text[: word.end()] for word in words]).to(self.model.logit_scale.device)  # [W, T]
        ended_by = (beginnings if pooled == "argmax" else beginnings.eq(end_id).int()).argmax(dim=1)  # [W]
        ids, end = beginnings[-1:], int(ended_by[-1])
        read: list[tuple[Tensor, ...]] = []
        with torch.inference_mode(False), torch.enable_grad():
            x = (part.token_embedding(ids) + part.positional_embedding).detach()  # [1, T, d]
            for back, block in zip(range(-len(layers), 0), layers, strict=True):
                chosen, attn = back >= -blocks, block.attn
                if chosen and not read:
                    x = x.detach().requires_grad_()  # the graph begins here
                heads = 1 if chosen and published else attn.num_heads
                qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
                q, k, v = (split_heads(part, heads) for part in qkv)
                gathered = join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=part.attn_mask))
                x = x + block.ls_1(attn.out_proj(gathered))
                x = x + block.ls_2(block.mlp(block.ln_2(x)))
                if chosen:
                    read.append((*(part.detach() for part in qkv), gathered))
            last = part.ln_final(x)[0, end]
            if (project := part.text_projection) is not None:
                last = project(last) if isinstance(project, nn.Linear) else last @ project
            cosine = F.normalize(last, dim=0) @ F.normalize(image.to(last), dim=0)
            gradients = torch.autograd.grad(cosine, [parts[-1] for parts in read])
        total = torch.zeros(ids.shape[1])
        for (q, k, v, _), gradient in zip(read, gradients, strict=True):
            alike = F.cosine_similarity(q[0, end], k[0], dim=-1)  # [T]
            alike = (alike - alike.min()) / (alike.max() - alike.min())
            total += ((gradient[0, end] * v[0]).sum(dim=-1) * alike).float().cpu()
        weights = total[1:end].relu()
        weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        counts = (ended_by - 1).tolist()  # of the tokens up to the end of each word
        shares = [float(weights[first:last].sum()) for first, last in zip([0, *counts], counts, strict=False)]
        return [(word.group(), share) for word, share in zip(words, shares, strict=True)]
