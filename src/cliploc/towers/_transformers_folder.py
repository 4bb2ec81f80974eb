"""Folders of transformers' `save_pretrained`: transformers opens them, and its modules have our towers' seam."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import MissingWeightsError, ModelError, first_line
from cliploc.support.files import DocumentError, WeightIndex, read_json
from cliploc.support.imports import install, not_installed
from cliploc.towers._layers import resize_positions, resolve_precision
from cliploc.towers._transformer import BlockAdapter, QueryPool, TransformerBackbone
from cliploc.towers.tower import join_heads, split_heads
from cliploc.values import Interpolation

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the preferred one first
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")  # any one of them is enough
TOKENIZERS = (*VOCABULARIES, "tokenizer_config.json", "merges.txt")  # what token ids depend on
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Type of a model → names of transformers' classes of the model and of what prepares its pictures.
CLASSES = {
    "clip": ("CLIPModel", "CLIPImageProcessor"),
    "siglip": ("SiglipModel", "SiglipImageProcessor"),
    "siglip2": ("Siglip2Model", "Siglip2ImageProcessor"),
    "chinese_clip": ("ChineseCLIPModel", "ChineseCLIPImageProcessor"),
}
RESAMPLING: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


# -------------------------------------------------------------------------------------------------------------- files
def model_type(folder: Path) -> str:
    """What kind of model a folder's configuration describes; empty where there is none of transformers."""
    try:
        return str(read_json(folder / CONFIG, dict[str, Any]).get("model_type", ""))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (DocumentError, OSError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read ({first_line(error)}): download it again") from None


def supported_type(folder: Path) -> str:
    """The kind of a folder's model, which must be one that we read."""
    kind = model_type(folder)
    if kind not in CLASSES:
        names = ", ".join(model for model, _ in CLASSES.values())
        raise ModelError(
            f"{folder} has a transformers model of the type {kind!r}, which is not supported: expected one of {names}"
        )
    return kind


def weights_in(folder: Path) -> list[Path]:
    """The files of weights in a folder: one, or several shards."""
    for name in WEIGHTS:
        path = folder / name
        if path.is_file() and name.endswith(".index.json"):
            return [folder / shard for shard in shards(path)]
        if path.is_file():
            return [path]
    raise MissingWeightsError(f"expected weights in {folder}, found none: put {WEIGHTS[0]} there")


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights lists."""
    try:
        return sorted(set(read_json(index, WeightIndex)["weight_map"].values()))
    except (DocumentError, OSError) as error:
        raise ModelError(f"{index} cannot be read ({first_line(error)}): download it again") from None


# ----------------------------------------------------------------------------------------------- opened by transformers
def from_pretrained(kind: Any, folder: Path, **how: Any) -> Any:
    """What a class of transformers reads in a folder: no code in it is run, nothing is asked or printed."""
    with _quiet():
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **how)


def model_from_pretrained(kind: Any, folder: Path, **how: Any) -> Any:
    """A model in eval mode, whose tensors must all be in the folder; transformers makes up what is missing."""
    model, report = from_pretrained(kind, folder, output_loading_info=True, ignore_mismatched_sizes=True, **how)
    for what, names in (("lack", report["missing_keys"]), ("have other shapes of", report["mismatched_keys"])):
        if names:
            first = min(name if isinstance(name, str) else name[0] for name in names)
            raise ValueError(f"the weights {what} {len(names)} tensors, such as {first}")
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and reports out of our output."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def open_folder(folder: Path, label: str, device: str, precision: str) -> TransformersVit:
    """The model of a folder."""
    dtype, kind, files = resolve_precision(precision, device), supported_type(folder), weights_in(folder)
    try:
        import transformers
    except ImportError as error:
        raise not_installed(error, install("sam", f"{label}, a folder of transformers,"), ModelError) from error
    model_class, processor_class = (getattr(transformers, name) for name in CLASSES[kind])
    model = model_from_pretrained(model_class, folder, dtype=torch.float32)
    tokenizer = from_pretrained(transformers.AutoTokenizer, folder)
    stated = any((folder / name).is_file() for name in PROCESSORS)
    processor = from_pretrained(processor_class, folder) if stated else processor_class()
    backbone = TransformersVit(model, tokenizer, processor, label)
    backbone.weights_file = files[0]
    return backbone.convert(dtype).to(device)


# -------------------------------------------------------------------------------------------------------- image tower
class _Block(BlockAdapter):
    """Adapter of the block that CLIP, SigLIP and Chinese-CLIP have in common."""

    def __init__(self, block: Any) -> None:
        self.block, self.attn, self.mlp = block, block.self_attn, block.mlp
        self.scale = block.self_attn.scale

    def attention_input(self, x: Tensor) -> Tensor:
        return self.block.layer_norm1(x)

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        attn = self.attn
        q, k, v = (split_heads(to(normed), attn.num_heads) for to in (attn.q_proj, attn.k_proj, attn.v_proj))
        return q, k, v

    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:  # noqa: ARG002
        return self.attn.out_proj(join_heads(gathered))

    def mlp_hidden(self, x: Tensor) -> Tensor:
        return self.mlp.activation_fn(self.mlp.fc1(self.block.layer_norm2(x)))

    def mlp_out(self, hidden: Tensor) -> Tensor:
        return self.mlp.fc2(hidden)


class _Pool(QueryPool):
    """SigLIP's pool: an MLP follows the attention."""

    def __init__(self, head: Any) -> None:
        self.head, self.attn = head, head.attention
        self.heads, self.scale = self.attn.num_heads, self.attn.head_dim**-0.5

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = zip(self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, *part) for x, part in zip((self.head.probe, tokens, tokens), parts, strict=True))
        return split_heads(q, self.heads), split_heads(k, self.heads), v

    def finish(self, gathered: Tensor) -> Tensor:
        x = self.attn.out_proj(gathered)
        return x + self.head.mlp(self.head.layernorm(x))


class TransformersVit(TransformerBackbone):
    """The image tower of CLIP or Chinese-CLIP, or of SigLIP 1 or 2, which pools by attention and has no class token."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, name: str) -> None:
        vision, siglip = model.vision_model, not hasattr(model, "visual_projection")
        blocks, prefix = [_Block(layer) for layer in vision.encoder.layers], 0 if siglip else 1
        super().__init__(blocks, prefix, processor.image_mean, processor.image_std)
        self.name, self.vision = name, vision
        self.attention_pool = _Pool(vision.head) if siglip else None
        self.projection = nn.Identity() if siglip else model.visual_projection
        self.embedding_size = vision.config.hidden_size if siglip else model.visual_projection.out_features
        self.pooling = "attention" if siglip else "class token"
        self.stride = vision.config.patch_size
        # NaFlex takes any grid; its positions are learnt on a square.
        self.side = math.isqrt(len(vision.embeddings.position_embedding.weight) - self.prefix_tokens)
        self.input_hw = (self.side * self.stride, self.side * self.stride)
        if (resample := processor.resample) not in RESAMPLING:
            raise ModelError(f"{name} resizes with PIL's filter {resample}: expected 2 (bilinear) or 3 (bicubic)")
        self.interpolation = RESAMPLING[resample]
        shortest = getattr(getattr(processor, "size", None), "shortest_edge", None)
        self.resize_policy = "squash" if shortest is None else "crop-floor"
        self.logit_scale = float(model.logit_scale.exp())
        model.vision_model = nn.Identity()  # the image tower would be kept in memory twice
        self.text = TransformersText(model, tokenizer)
        self.eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        parts = self.vision.embeddings
        if isinstance(to_tokens := parts.patch_embedding, nn.Conv2d):
            patches = to_tokens(images)  # [B, d, h, w]
        else:  # NaFlex's linear layer over a patch's p×p×3 numbers
            weight = to_tokens.weight.reshape(-1, self.stride, self.stride, 3).permute(0, 3, 1, 2)  # [d, 3, p, p]
            patches = F.conv2d(images, weight, to_tokens.bias, self.stride)
        x = patches.flatten(2).transpose(1, 2)  # [B, N, d]
        if self.prefix_tokens:
            x = torch.cat([parts.class_embedding.expand(len(x), 1, -1), x], dim=1)
        weight, learnt, grid = parts.position_embedding.weight, (self.side, self.side), (*patches.shape[-2:],)
        x = x + resize_positions(weight, self.prefix_tokens, learnt, grid, self.position_rule).to(x.dtype)
        return self.vision.pre_layrnorm(x) if self.prefix_tokens else x  # so spelt

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.attention_pool is not None:
            return self.attention_pool.attend(self.last_norm(tokens))
        return self.projection(self.last_norm(tokens[:, 0])), None

    @property
    def last_norm(self) -> nn.LayerNorm:
        return self.vision.post_layernorm

    def read_normed(self, normed: Tensor) -> Tensor:
        return self.projection(normed) if self.attention_pool is None else self.attention_pool.read(normed)


# --------------------------------------------------------------------------------------------------------- text tower
class TransformersText(nn.Module):
    """The text tower: sentences → unit-norm embeddings, by transformers' `get_text_features`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.most = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        kind = self.model.config.model_type
        padding = "max_length" if kind.startswith("siglip") else True  # SigLIP reads what fills a text
        read = self.tokenizer(list(texts), padding=padding, truncation=True, max_length=self.most, return_tensors="pt")
        names = ("input_ids",) if kind.startswith("siglip") else ("input_ids", "attention_mask")
        return {name: read[name].to(self.model.logit_scale.device) for name in names}

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        return F.normalize(self.model.get_text_features(**self._tokens(texts)).pooler_output.float(), dim=-1)

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """`[n, T]`."""
        return self._tokens(texts)["input_ids"]
