"""dino.txt (Jose et al. 2025): frozen DINOv2 and DINOv3 with a text tower; embeds class token and patches' mean.

docs/dinotxt.md has the sources of the names and sizes of its tensors.
"""

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from timm.layers import Mlp  # type: ignore[attr-defined]  # timm re-exports it without saying so
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import CliplocWarning, MissingWeightsError, ModelError, UsageError
from cliploc.support.files import user_path
from cliploc.towers._catalogue import register_model
from cliploc.towers._layers import resolve_precision
from cliploc.towers._timm_vit import TimmBlock, blocks_like, count_parts, first_tokens, rotation, sizes
from cliploc.towers._transformer import TransformerBackbone
from cliploc.towers._weights import SUFFIXES, Checkpoint, load_exactly, read_checkpoint
from cliploc.towers.tower import Pooling, join_heads, split_heads
from cliploc.values import ResizePolicy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SIDE = 224  # pixels that the head was trained with
Family = Literal["dinov3", "dinov2"]
IMAGE, HEAD, TEXT = "visual_model.backbone.", "visual_model.head.", "text_model."
HEAD_SIZE = 64  # of every attention head, in all three parts
TIMM: dict[Family, str] = {"dinov3": "vit_large_patch16_dinov3_qkvb", "dinov2": "vit_large_patch14_reg4_dinov2"}
MASKED = ("mask_token", ".bias_mask")  # used in training only
# DINOv2's names in the whole model → DINOv3's, which ours are: its tower is wrapped, and its head's blocks are a list.
DINOV2_NAMES = ((f"{IMAGE}model.", IMAGE), (f"{HEAD}block_list.", f"{HEAD}blocks."))
# A tensor that shows which part a file without prefixes holds → the prefix of that part; the first match counts.
PARTS = (("patch_embed.proj.weight", IMAGE), ("backbone.token_embedding.weight", TEXT), ("ln_final.weight", HEAD))


# --------------------------------------------------------------------------------------------------------- text tower
class _TextBlock(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention: Any = nn.Module()
        self.attention.qkv, self.attention.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.feed_forward = Mlp(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (split_heads(part, x.shape[-1] // HEAD_SIZE) for part in parts)  # [n, H, T, 64]
        x = x + self.attention.proj(join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        added: Tensor = self.feed_forward(self.ffn_norm(x))
        return x + added


class DinoTxtText(nn.Module):
    """The text tower, of the sizes of these tensors: the token that ends the text, projected."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        words, width = sizes(tensors, "backbone.token_embedding.weight")
        context = sizes(tensors, "backbone.positional_embedding")[0]
        inner = sizes(tensors, "backbone.blocks.0.feed_forward.fc1.weight")[0]
        self.backbone: Any = nn.Module()
        self.head: Any = nn.Module()
        self.backbone.token_embedding = nn.Embedding(words, width)
        self.backbone.positional_embedding = nn.Parameter(torch.zeros(context, width))
        depth = count_parts(tensors, "backbone.blocks.")
        self.backbone.blocks = nn.ModuleList(_TextBlock(width, inner) for _ in range(depth))
        self.backbone.ln_final = nn.LayerNorm(width)
        self.head.linear_projection = nn.Linear(width, sizes(tensors, "head.linear_projection.weight")[0], bias=False)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=context)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        backbone = self.backbone
        tokens = self.token_ids(texts).to(backbone.positional_embedding.device)
        tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]  # what follows a text's end changes nothing
        x = backbone.token_embedding(tokens) + backbone.positional_embedding[: tokens.shape[1]]  # [n, T, d]
        for block in backbone.blocks:
            x = block(x)
        x = backbone.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(dim=-1)]  # [n, d]
        return F.normalize(self.head.linear_projection(x).float(), dim=-1)

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """`[n, T]`."""
        return self.tokenizer(list(texts))


# -------------------------------------------------------------------------------------------------------- image tower
class DinoTxtModel(nn.Module):
    """The modules of dino.txt, of the sizes of these tensors and under their names; inside the image tower timm's."""

    def __init__(self, tensors: Mapping[str, Tensor], family: Family) -> None:
        super().__init__()
        image, head, text = (
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            for prefix in (IMAGE, HEAD, TEXT)
        )
        width, _, patch, _ = sizes(image, "patch_embed.proj.weight")
        positions = sizes(image, "pos_embed")[1] if family == "dinov2" else 14 * 14
        options: dict[str, Any] = {
            "embed_dim": width,
            "depth": count_parts(image, "blocks."),
            "num_heads": width // HEAD_SIZE,
            "mlp_ratio": (sizes(image, "blocks.0.mlp.fc1.weight")[0] + 0.5) / width,
            "patch_size": patch,
            "img_size": round(positions**0.5) * patch,
            "num_classes": 0,
            "dynamic_img_size": True,
            "num_reg_tokens" if family == "dinov3" else "reg_tokens": sizes(image, "reg_token")[1],
        }
        tower = timm.create_model(TIMM[family], **options)
        blocks = blocks_like(head, width // HEAD_SIZE, eps=1e-5)
        self.visual_model: Any = nn.Module()
        self.visual_model.backbone, self.visual_model.head = tower, nn.Module()
        self.visual_model.head.blocks, self.visual_model.head.ln_final = blocks, nn.LayerNorm(width)
        self.text_model = DinoTxtText(text)
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())


class DinoTxt(TransformerBackbone):
    """The head's blocks are a ViT's; the frozen tower is its `embed`; a patch's reading is zero in the first half."""

    pooling: Pooling = "class token and mean"
    resize_policy: ResizePolicy = "crop"
    input_hw = (SIDE, SIDE)

    def __init__(self, model: DinoTxtModel, name: str) -> None:
        trunk, vision_head = model.visual_model.backbone, model.visual_model.head
        super().__init__([TimmBlock(block) for block in vision_head.blocks], trunk.num_prefix_tokens, MEAN, STD)
        self.trunk, self.vision_head, self.text = trunk, vision_head, model.text_model
        self._trunk_blocks = [TimmBlock(block) for block in trunk.blocks]
        self.name = name
        self.middle_stage = -self.depth  # DINO's own patch features
        self.stride = trunk.patch_embed.patch_size[0]
        self.embedding_size = 2 * trunk.embed_dim
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        """The tokens `[B, prefix+N, d]` that leave the frozen tower, from normalised images `[B, 3, H, W]`."""
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        x, rotated = first_tokens(self.trunk, images, self.position_rule), rotation(self.trunk, grid)
        for block in self._trunk_blocks:
            x = block.finish(x, block.gather(*block.project(block.attention_input(x), rotated)))
        return self.trunk.norm(x)

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The class token beside the mean of the patches, not normalised: `[B, prefix+N, d]` → `[B, 2d]`."""
        x = self.vision_head.ln_final(tokens)
        return torch.cat([x[:, 0], x[:, self.prefix_tokens :].mean(dim=1)], dim=-1), None

    @property
    def last_norm(self) -> nn.LayerNorm:
        return self.vision_head.ln_final

    def read_normed(self, normed: Tensor) -> Tensor:
        """Each token as a patch: `[B, n, d]` → `[B, n, 2d]`, the first half 0."""
        return F.pad(normed, (normed.shape[-1], 0))

    def patch_texts(self, texts: Tensor) -> Tensor:
        """Texts `[…, 2d]` with zeros in the class token's half, scaled to the lengths that they had."""
        patches = texts.chunk(2, dim=-1)[1]  # […, d]
        return F.pad(F.normalize(patches, dim=-1) * texts.norm(dim=-1, keepdim=True), (patches.shape[-1], 0))


# --------------------------------------------------------------------------------------------------------------- files
def read_weights(path: Path) -> Checkpoint:
    """Reads a file of the whole model, or a folder with its parts; tensors get the names of the whole model."""
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise MissingWeightsError(f"expected dino.txt's weights in {path}, found none: put its files there")
    tensors: dict[str, Tensor] = {}
    for file in files:
        checkpoint = read_checkpoint(file)
        complete = any(name.startswith(("visual_model.", TEXT)) for name in checkpoint.tensors)
        prefix = "" if complete else next((part for marker, part in PARTS if marker in checkpoint.tensors), None)
        if prefix is None:
            raise ModelError(f"{file} holds no part of dino.txt: expected names such as {HEAD}ln_final.weight")
        for name, tensor in checkpoint.tensors.items():
            name = name if name == "logit_scale" else f"{prefix}{name}"
            for theirs, ours in DINOV2_NAMES:
                name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
            tensors[name] = tensor
    parts = {IMAGE: "image tower", HEAD: "head of the image tower", TEXT: "text tower"}
    missing = [what for prefix, what in parts.items() if not any(name.startswith(prefix) for name in tensors)]
    if missing:
        raise ModelError(
            f"{path} lacks dino.txt's {' and '.join(missing)}: give a folder with the files of all parts, the image "
            "tower's own file among them"
        )
    return Checkpoint(path, tensors)


def renamed(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The tensors under the names of our modules: timm's in the image tower and in its head."""
    if family == "dinov2":  # timm adds positions to patches only
        positions = tensors[f"{IMAGE}pos_embed"]  # [1, 1+N, d]
        first = tensors[f"{IMAGE}cls_token"] + positions[:, :1]
        tensors = {**tensors, f"{IMAGE}cls_token": first, f"{IMAGE}pos_embed": positions[:, 1:]}
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(IMAGE):
            if name.endswith(MASKED) or ".rope_embed." in name:
                continue
            name = name.replace(".storage_tokens", ".reg_token").replace(".register_tokens", ".reg_token")
            if family == "dinov3" and name.endswith(".qkv.bias"):
                q, _, v = tensor.chunk(3)  # the keys' part is masked in training: keys have no bias
                named |= {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
                continue
            if family == "dinov3":
                name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        elif name.startswith(HEAD):
            for theirs, ours in (("w1", "fc1_g"), ("w2", "fc1_x"), ("w3", "fc2")):  # SwiGLU w₃(silu(w₁x)·w₂x)
                name = name.replace(f".mlp.{theirs}.", f".mlp.{ours}.")
        named[name] = tensor
    return named


def with_weights(weights: Checkpoint, family: Family) -> DinoTxt:
    """The model of these weights."""
    path, name = weights.path, f"{family}-l-dinotxt"
    other: Family = "dinov3" if f"{IMAGE}storage_tokens" in weights.tensors else "dinov2"
    if other != family:
        raise ModelError(
            f"{path} holds the dino.txt of another image tower: use --model {other}-l-dinotxt --pretrained {path}"
        )
    tensors = renamed(weights.tensors, family)
    model = DinoTxtModel(tensors, family)
    if "logit_scale" not in tensors:
        warnings.warn(
            f"{path} has no logit_scale: CLIP's, 100, is used; only softmaxes over names or pictures depend on it",
            CliplocWarning,
            stacklevel=2,
        )
    tensors["logit_scale"] = tensors.get("logit_scale", model.logit_scale.detach()).reshape(())  # or a list of one
    load_exactly(model, tensors, path, f"the weights of {name}")
    # Rounded to bfloat16; timm computes them in float32.
    if (periods := weights.tensors.get(f"{IMAGE}rope_embed.periods")) is not None:
        model.visual_model.backbone.rope.periods.copy_(periods)
    return DinoTxt(model, f"{name}:{path.name}")


def _build(family: Family, pretrained: str | None, device: str, precision: str) -> DinoTxt:
    dtype = resolve_precision(precision, device)
    if pretrained is None:
        raise UsageError(
            f"expected weights for {family}-l-dinotxt, got none: add --pretrained with a file of dino.txt, or a folder "
            f"with the files of its parts, from {_SOURCES[family]}"
        )
    weights = read_weights(user_path(pretrained))
    with torch.random.fork_rng(devices=[]):
        backbone = with_weights(weights, family)
    backbone.weights_file = weights.path
    return backbone.convert(dtype).to(device)


_SOURCES: dict[Family, str] = {
    "dinov3": "github.com/facebookresearch/dinov3, once its licence is accepted",
    "dinov2": "github.com/facebookresearch/dinov2",
}
_MODELS: tuple[tuple[Family, str, str], ...] = (  # image tower, licence
    ("dinov3", "DINOv3's ViT-L/16", "DINOv3 License (not open source)"),
    ("dinov2", "DINOv2's ViT-L/14 with registers", "Apache-2.0"),
)
for _family, _tower, _licence in _MODELS:
    register_model(
        f"{_family}-l-dinotxt", DinoTxt, functools.partial(_build, _family), MEAN, STD, parameters=None,
        licence=_licence,
        about=f"dino.txt: {_tower}, frozen, and a head of two blocks; --pretrained takes its files",
    )  # fmt: skip
