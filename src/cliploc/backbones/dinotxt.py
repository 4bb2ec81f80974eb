"""dino.txt (Jose et al. 2025): frozen DINOv2 and DINOv3 with a text tower; embeds class token and patches' mean."""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.layers import Mlp, SwiGLU  # type: ignore[attr-defined]  # timm re-exports it without saying so
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc._files import user_path
from cliploc.backbones._catalogue import ModelEntry, describe_preprocessing, models
from cliploc.backbones._checkpoints import Checkpoint, load_exactly
from cliploc.backbones._dinotxt_layout import (
    HEAD_SIZE,
    IMAGE,
    DinoTxtLayout,
    Family,
    read_layout,
    read_weights,
    renamed,
)
from cliploc.backbones._layers import resolve_precision, with_fast_linears
from cliploc.backbones._timm_vit import TimmBlock, first_tokens, rotation
from cliploc.backbones._transformer import VisionTransformerBackbone
from cliploc.errors import CliplocWarning, ModelError, UsageError
from cliploc.tower import Pooling, join_heads, split_heads
from cliploc.values import ResizePolicy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SIDE = 224  # pixels that the head was trained with
TOKENS = 49408  # of CLIP's tokenizer
# The published sizes. Those of files are read from their tensors.
_LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "mlp": 4096, "registers": 4, "head_depth": 2, "head_mlp": 2752}
_TEXT: dict[str, Any] = {"text_width": 1280, "text_depth": 24, "text_mlp": 5120, "vocabulary": TOKENS, "context": 77}
PUBLISHED: dict[Family, DinoTxtLayout] = {
    "dinov3": DinoTxtLayout(family="dinov3", patch=16, grid=14, **_LARGE, **_TEXT),
    "dinov2": DinoTxtLayout(family="dinov2", patch=14, grid=37, **_LARGE, **_TEXT),
}


# --------------------------------------------------------------------------------------------------------- text tower
class _TextAttention(nn.Module):
    def __init__(self, layout: DinoTxtLayout) -> None:
        super().__init__()
        width = layout.text_width
        self.heads = width // HEAD_SIZE
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))  # [n, H, T, 64]
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class _TextBlock(nn.Module):
    def __init__(self, layout: DinoTxtLayout) -> None:
        super().__init__()
        width = layout.text_width
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.feed_forward = _TextAttention(layout), Mlp(width, layout.text_mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
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
class _VisionHead(nn.Module):
    def __init__(self, layout: DinoTxtLayout) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
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
        self.ln_final = nn.LayerNorm(layout.width)


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
        self.visual_model = nn.ModuleDict({"backbone": tower, "head": _VisionHead(layout)})
        self.text_model = DinoTxtText(layout, open_clip.SimpleTokenizer(context_length=layout.context))
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())


class DinoTxt(VisionTransformerBackbone):
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
            backbone = _read(family, user_path(pretrained))
    return backbone.convert(dtype).to(device)


def _read(family: Family, path: Path) -> DinoTxt:
    weights = read_weights(path)
    layout = read_layout(weights)
    if layout.family != family:
        raise ModelError(
            f"{path} holds the dino.txt of another image tower: use --model {_name(layout.family)} --pretrained {path}"
        )
    backbone = with_weights(weights, layout)
    backbone.loaded_from(path, f"dino.txt {family} {weights.sha256} timm {timm.__version__}")
    return backbone


def with_weights(weights: Checkpoint, layout: DinoTxtLayout) -> DinoTxt:
    """The model of these sizes with these weights."""
    path, name = weights.path, _name(layout.family)
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
    tensors["logit_scale"] = scale.reshape(())  # some files have a list of one
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
    models.register(
        _name(_family),
        ModelEntry(
            name=_name(_family),
            build=functools.partial(_build, _family),
            kind="vit",
            pooling=DinoTxt.pooling,
            input_hw=DinoTxt.input_hw,
            parameters=None,
            licence=_LICENCES[_family],
            about=f"dino.txt: {_TOWERS[_family]}, frozen, and a head of two blocks; --pretrained takes its files",
            count=functools.partial(_count, _family),
            preprocessing={
                "": describe_preprocessing(DinoTxt.resize_policy, DinoTxt.interpolation, MEAN, STD),
            },
        ),
    )
