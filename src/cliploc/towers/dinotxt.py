"""dino.txt (Jose et al. 2025): frozen DINOv2 and DINOv3 with a text tower; embeds class token and patches' mean.

docs/dinotxt.md has the sources of the names and sizes of its tensors.
"""

import functools
import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from timm.layers import Mlp, SwiGLU  # type: ignore[attr-defined]  # timm re-exports it without saying so
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import CliplocWarning, MissingWeightsError, ModelError, UsageError
from cliploc.support.files import user_path
from cliploc.towers._catalogue import register_own
from cliploc.towers._checkpoints import SUFFIXES, Checkpoint, load_exactly, read_checkpoint
from cliploc.towers._layers import resolve_precision, with_fast_linears
from cliploc.towers._timm_vit import TimmBlock, count_parts, first_tokens, rotation
from cliploc.towers._transformer import TransformerBackbone
from cliploc.towers.tower import Pooling, join_heads, split_heads
from cliploc.values import ResizePolicy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SIDE = 224  # pixels that the head was trained with
TOKENS = 49408  # of CLIP's tokenizer
Family = Literal["dinov3", "dinov2"]
IMAGE, HEAD, TEXT = "visual_model.backbone.", "visual_model.head.", "text_model."
HEAD_SIZE = 64  # of every attention head, in all three parts
MASKED = ("mask_token", ".bias_mask")  # used in training only
# DINOv2's names in the whole model → DINOv3's, which ours are: its tower is wrapped, and its head's blocks are a list.
DINOV2_NAMES = ((f"{IMAGE}model.", IMAGE), (f"{HEAD}block_list.", f"{HEAD}blocks."))
# A tensor that shows which part a file without prefixes holds → the prefix of that part; the first match counts.
PARTS = (
    ("patch_embed.proj.weight", IMAGE),
    ("backbone.token_embedding.weight", TEXT),
    ("ln_final.weight", HEAD),
)


@dataclass(frozen=True)
class DinoTxtLayout:
    """Sizes of the three parts."""

    family: Family  # which DINO the image tower is
    patch: int  # pixels along the side of a patch
    grid: int  # patches along a side of the grid that positions were learnt on; 14 for DINOv3, which learns none
    width: int  # d of the image tower and of its head
    depth: int  # blocks of the image tower
    mlp: int  # width inside its MLPs
    registers: int  # tokens between class token and patches
    head_depth: int  # blocks of the head
    head_mlp: int  # width inside the MLPs of these blocks
    text_width: int  # d of the text tower
    text_depth: int  # blocks of the text tower
    text_mlp: int  # width inside its MLPs
    vocabulary: int  # how many tokens it knows
    context: int  # how many tokens a text has at most

    @property
    def size(self) -> int:
        """D: one half is the class token's, the other the patches'."""
        return 2 * self.width


# The published sizes. Those of files are read from their tensors.
_LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "mlp": 4096, "registers": 4, "head_depth": 2, "head_mlp": 2752}
_TEXT: dict[str, Any] = {"text_width": 1280, "text_depth": 24, "text_mlp": 5120, "vocabulary": TOKENS, "context": 77}
PUBLISHED: dict[Family, DinoTxtLayout] = {
    "dinov3": DinoTxtLayout(family="dinov3", patch=16, grid=14, **_LARGE, **_TEXT),
    "dinov2": DinoTxtLayout(family="dinov2", patch=14, grid=37, **_LARGE, **_TEXT),
}


# --------------------------------------------------------------------------------------------------------- text tower
class _TextBlock(nn.Module):
    def __init__(self, layout: DinoTxtLayout) -> None:
        super().__init__()
        width = layout.text_width
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        qkv, proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.attention = nn.ModuleDict({"qkv": qkv, "proj": proj})
        self.feed_forward = Mlp(width, layout.text_mlp)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention["qkv"](self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (split_heads(part, x.shape[-1] // HEAD_SIZE) for part in parts)  # [n, H, T, 64]
        x = x + self.attention["proj"](join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        added: Tensor = self.feed_forward(self.ffn_norm(x))
        return x + added


class _TextBlocks(nn.Module):
    def __init__(self, layout: DinoTxtLayout) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(layout.vocabulary, layout.text_width)
        self.positional_embedding = nn.Parameter(torch.zeros(layout.context, layout.text_width))
        self.blocks = nn.ModuleList(_TextBlock(layout) for _ in range(layout.text_depth))
        self.ln_final = nn.LayerNorm(layout.text_width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]  # [n, T, d]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x)


class DinoTxtText(nn.Module):
    """The text tower: the token that ends the text, projected."""

    def __init__(self, layout: DinoTxtLayout, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.backbone, self.tokenizer = _TextBlocks(layout), tokenizer
        self.head = nn.ModuleDict({"linear_projection": nn.Linear(layout.text_width, layout.size, bias=False)})

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        tokens = self.tokenizer(list(texts)).to(self.backbone.positional_embedding.device)  # [n, T]
        x = self.backbone(tokens)[torch.arange(len(tokens)), tokens.argmax(dim=-1)]  # [n, d]
        return F.normalize(self.head["linear_projection"](x).float(), dim=-1)


# -------------------------------------------------------------------------------------------------------- image tower
class DinoTxtModel(nn.Module):
    """The modules of dino.txt under the names of its checkpoint; those inside the image tower have timm's names."""

    def __init__(self, layout: DinoTxtLayout) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "embed_dim": layout.width,
            "depth": layout.depth,
            "num_heads": layout.width // HEAD_SIZE,
            "mlp_ratio": (layout.mlp + 0.5) / layout.width,
            "patch_size": layout.patch,
            "img_size": layout.grid * layout.patch,
            "num_classes": 0,
            "dynamic_img_size": True,
        }
        if layout.family == "dinov3":
            tower = timm.create_model("vit_large_patch16_dinov3_qkvb", **sizes, num_reg_tokens=layout.registers)
        else:
            tower = timm.create_model("vit_large_patch14_reg4_dinov2", **sizes, reg_tokens=layout.registers)
        blocks = nn.ModuleList(
            Block(
                layout.width,
                layout.width // HEAD_SIZE,
                mlp_ratio=(layout.head_mlp + 0.5) / layout.width,  # timm rounds the product down
                qkv_bias=False,  # other than in the towers
                init_values=1e-5,
                norm_layer=nn.LayerNorm,
                mlp_layer=SwiGLU,
                act_layer=nn.SiLU,
            )
            for _ in range(layout.head_depth)
        )
        head = nn.ModuleDict({"blocks": blocks, "ln_final": nn.LayerNorm(layout.width)})
        self.visual_model = nn.ModuleDict({"backbone": tower, "head": head})
        self.text_model = DinoTxtText(layout, open_clip.SimpleTokenizer(context_length=layout.context))
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())


class DinoTxt(TransformerBackbone):
    """The head's blocks are a ViT's; the frozen tower is its `embed`; a patch's reading is zero in the first half."""

    pooling: Pooling = "class token and mean"
    resize_policy: ResizePolicy = "crop"
    input_hw = (SIDE, SIDE)

    def __init__(self, model: DinoTxtModel, name: str) -> None:
        trunk: Any = with_fast_linears(model.visual_model["backbone"])
        vision_head: Any = with_fast_linears(model.visual_model["head"])
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


# --------------------------------------------------------------------------------------------------------------- read
def read_weights(path: Path) -> Checkpoint:
    """Reads a file of the whole model, or a folder with its parts; tensors get the names of the whole model."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise MissingWeightsError(f"expected dino.txt's weights in {path}, found none: put its files there")
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    for file in files:
        checkpoint = read_checkpoint(file)
        digest.update(checkpoint.sha256.encode())
        prefix: str | None = ""
        if not any(name.startswith(("visual_model.", TEXT)) for name in checkpoint.tensors):
            prefix = next((prefix for marker, prefix in PARTS if marker in checkpoint.tensors), None)
        if prefix is None:
            raise ModelError(f"{file} holds no part of dino.txt: expected names such as {HEAD}ln_final.weight")
        for name, tensor in checkpoint.tensors.items():
            if name != "logit_scale":
                name = f"{prefix}{name}"
            for theirs, ours in DINOV2_NAMES:
                if name.startswith(theirs):
                    name = ours + name.removeprefix(theirs)
            if name in tensors:
                raise ModelError(f"{file} holds {name}, as another file of {path} does: leave one of them there")
            tensors[name] = tensor
    return Checkpoint(path, digest.hexdigest(), tensors)


def read_layout(weights: Checkpoint) -> DinoTxtLayout:
    """The sizes of the three parts, read from the shapes of the tensors."""
    tensors, path = weights.tensors, weights.path
    parts = {IMAGE: "image tower", HEAD: "head of the image tower", TEXT: "text tower"}
    missing = [what for prefix, what in parts.items() if not any(name.startswith(prefix) for name in tensors)]
    if missing:
        raise ModelError(
            f"{path} lacks dino.txt's {' and '.join(missing)}: give a folder with the files of all parts, the image "
            "tower's own file among them"
        )

    def shape(name: str, axes: int = 2) -> tuple[int, ...]:
        if name not in tensors:
            raise ModelError(f"{path} lacks {name}, which dino.txt has: check the file")
        sizes = tuple(tensors[name].shape)
        if sizes and len(sizes) == axes and min(sizes) > 0:
            return sizes
        raise ModelError(f"{path}: expected {axes} axes of {name}, got the shape {list(sizes)}: check the file")

    width, colours, patch, _ = shape(f"{IMAGE}patch_embed.proj.weight", 4)
    family: Family = "dinov3" if f"{IMAGE}storage_tokens" in tensors else "dinov2"
    registers = f"{IMAGE}{'storage' if family == 'dinov3' else 'register'}_tokens"
    places = shape(f"{IMAGE}pos_embed", 3)[1] - 1 if family == "dinov2" else 14 * 14
    text = f"{TEXT}backbone."
    vocabulary, text_width = shape(f"{text}token_embedding.weight")
    layout = DinoTxtLayout(
        family=family,
        patch=patch,
        grid=round(places**0.5),
        width=width,
        depth=count_parts(tensors, f"{IMAGE}blocks."),
        mlp=shape(f"{IMAGE}blocks.0.mlp.fc1.weight")[0],
        registers=shape(registers, 3)[1] if registers in tensors else 0,
        head_depth=count_parts(tensors, f"{HEAD}blocks."),
        head_mlp=shape(f"{HEAD}blocks.0.mlp.w3.weight")[1],
        text_width=text_width,
        text_depth=count_parts(tensors, f"{text}blocks."),
        text_mlp=shape(f"{text}blocks.0.feed_forward.fc1.weight")[0],
        vocabulary=vocabulary,
        context=shape(f"{text}positional_embedding")[0],
    )
    periods = tensors.get(f"{IMAGE}rope_embed.periods")
    odd = layout.width % HEAD_SIZE or layout.text_width % HEAD_SIZE
    if colours != 3 or odd or (periods is not None and 4 * len(periods) != HEAD_SIZE):
        raise ModelError(
            f"{path}: expected 3 input channels and attention heads of {HEAD_SIZE}, got others: check the file"
        )
    if (size := shape(f"{TEXT}head.linear_projection.weight")[0]) != layout.size:
        raise ModelError(
            f"{path}: expected text embeddings of {layout.size} numbers, as the pictures' (class token and mean of the "
            f"patches), got {size}: take all files of one model"
        )
    return layout


# ------------------------------------------------------------------------------------------------------------- rename
def renamed(weights: Checkpoint, layout: DinoTxtLayout) -> dict[str, Tensor]:
    """The tensors under the names of our modules: timm's in the image tower and in its head."""
    tensors = dict(weights.tensors)
    if layout.family == "dinov2" and layout.registers:  # timm adds positions to patches only
        positions = tensors[f"{IMAGE}pos_embed"]  # [1, 1+N, d]
        tensors[f"{IMAGE}cls_token"] = tensors[f"{IMAGE}cls_token"] + positions[:, :1]
        tensors[f"{IMAGE}pos_embed"] = positions[:, 1:]
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(IMAGE):
            if name.endswith(MASKED) or ".rope_embed." in name:
                continue
            name = name.replace(".storage_tokens", ".reg_token").replace(".register_tokens", ".reg_token")
            if layout.family == "dinov3" and name.endswith(".qkv.bias"):
                q, _, v = tensor.chunk(3)  # the keys' part is masked in training: keys have no bias
                named |= {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
                continue
            if layout.family == "dinov3":
                name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        elif name.startswith(HEAD):
            for theirs, ours in (("w1", "fc1_g"), ("w2", "fc1_x"), ("w3", "fc2")):  # SwiGLU w₃(silu(w₁x)·w₂x)
                name = name.replace(f".mlp.{theirs}.", f".mlp.{ours}.")
        named[name] = tensor
    return named


# -------------------------------------------------------------------------------------------------------------- build
def _build(family: Family, pretrained: str | None, device: str, precision: str) -> DinoTxt:
    dtype, name = resolve_precision(precision, device), _name(family)
    if pretrained is None:
        raise UsageError(
            f"expected weights for {name}, got none: add --pretrained with a file of dino.txt, or a folder with the "
            f"files of its parts, from {_SOURCES[family]}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # "random" is the same model every time
        if pretrained == "random":
            backbone = DinoTxt(DinoTxtModel(PUBLISHED[family]), f"{name}:random")
        else:
            weights = read_weights(user_path(pretrained))
            backbone = with_weights(weights, family)
            source = f"dino.txt {family} {weights.sha256} timm {timm.__version__}"
            backbone.loaded_from(weights.path, source)
    return backbone.convert(dtype).to(device)


def with_weights(weights: Checkpoint, family: Family) -> DinoTxt:
    """The model of these weights."""
    path, name, layout = weights.path, _name(family), read_layout(weights)
    if layout.family != family:
        raise ModelError(
            f"{path} holds the dino.txt of another image tower: use --model {_name(layout.family)} --pretrained {path}"
        )
    if layout.vocabulary < TOKENS:
        raise ModelError(
            f"expected a text tower for the {TOKENS} tokens of CLIP's tokenizer in {path}, got one for "
            f"{layout.vocabulary}: check the file"
        )
    model, tensors = DinoTxtModel(layout), renamed(weights, layout)
    if "logit_scale" not in tensors:
        warnings.warn(
            f"{path} has no logit_scale: CLIP's, 100, is used; only softmaxes over names or pictures depend on it",
            CliplocWarning,
            stacklevel=2,
        )
    scale = tensors.get("logit_scale", model.logit_scale.detach())
    tensors["logit_scale"] = scale.reshape(()) if scale.numel() == 1 else scale  # some files have a list of one
    load_exactly(model, tensors, path, f"the weights of {name}")
    own = weights.tensors.get(f"{IMAGE}rope_embed.periods")  # rounded to bfloat16; timm computes them in float32
    if own is not None:
        trunk: Any = model.visual_model["backbone"]
        trunk.rope.periods.copy_(own)
    return DinoTxt(model, f"{name}:{path.name}")


def _name(family: Family) -> str:
    return f"{family}-l-dinotxt"


def _count(family: Family) -> float:
    """Counts the parameters in millions, by building the model on torch's meta device, without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DinoTxtModel(PUBLISHED[family]).parameters()) / 1e6


_SOURCES: dict[Family, str] = {
    "dinov3": "github.com/facebookresearch/dinov3, once its licence is accepted",
    "dinov2": "github.com/facebookresearch/dinov2",
}
_LICENCES: dict[Family, str] = {"dinov3": "DINOv3 License (not open source)", "dinov2": "Apache-2.0"}
_TOWERS: dict[Family, str] = {"dinov3": "DINOv3's ViT-L/16", "dinov2": "DINOv2's ViT-L/14 with registers"}
for _family in PUBLISHED:
    register_own(
        _name(_family), DinoTxt, functools.partial(_build, _family), MEAN, STD, parameters=None,
        licence=_LICENCES[_family], count=functools.partial(_count, _family),
        about=f"dino.txt: {_TOWERS[_family]}, frozen, and a head of two blocks; --pretrained takes its files",
    )  # fmt: skip
