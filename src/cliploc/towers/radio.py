"""C-RADIO (Ranzinger 2024, Heinrich 2025): a ViT taught by several models at once, read through the head of one.

docs/towers.md has the sources.
"""

import functools
import math
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import MissingWeightsError, ModelError, UsageError
from cliploc.support.files import user_path
from cliploc.towers._catalogue import register_model
from cliploc.towers._create import create
from cliploc.towers._layers import resolve_precision
from cliploc.towers._timm_vit import PlainVit, TimmBlock, count_parts, sizes
from cliploc.towers._transformer import TransformerBackbone
from cliploc.towers._weights import SUFFIXES, Checkpoint, load_exactly, read_checkpoint
from cliploc.towers.tower import Backbone
from cliploc.values import ResizePolicy

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
SIDE = 512  # pixels that the authors prefer
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "so400m": 16, "huge": 16, "giant": 24}  # by timm's names
TYPES = {"siglip2": "siglip2", "clip": "open_clip"}  # our name of a head → the type of its teacher
SIGLIP2 = {"siglip2-g-384": "siglip2-giant-opt-patch16-384", "siglip2-so400m": "siglip2-so400m-patch16-naflex"}
TOWER, UNUSED = "base_model.", ("reg_token", "fc_norm.")  # tensors that the authors' towers have and do not use
SPECTRAL = ".parametrizations.weight."  # in names of what a weight is computed from


class RadioTeacher(Struct, frozen=True):
    """One of the models that C-RADIO learnt from."""

    name: str
    type: str
    model: str = ""
    pretrained: str | None = None
    token_slot: Annotated[int, Meta(ge=0)] | None = None  # which class token is its head's; None: that of its place


class RadioSettings(Struct, frozen=True):
    """Settings of its training that its reader needs."""

    model: str
    teachers: list[RadioTeacher]
    cls_token_per_teacher: bool = True
    model_norm: bool | None = False


# ------------------------------------------------------------------------------------------------------------- modules
class CanonicalText(nn.Module):
    """SigLIP 2's text tower as RADIO asks it: in lower case, without punctuation."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        without = str.maketrans("_", " ", string.punctuation.replace("_", ""))
        return self.text([" ".join(text.translate(without).lower().split()) for text in texts])


class _Head(nn.Module):
    """The second version of RADIO's heads, under its names: d numbers of a token → D."""

    def __init__(self, width: int, inner: int, size: int, depth: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.blocks = nn.ModuleList(self._step(inner, inner) for _ in range(depth))
        self.final = self._step(inner, size)

    @staticmethod
    def _step(inner: int, size: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, size))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for block in self.blocks:
            x = x + block(x)
        return self.final(x)


class RadioModel(PlainVit):
    """The tower and one head, of the sizes of these tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], heads: int, *, normed: bool) -> None:
        super().__init__(tensors, heads, normed=normed)
        inner, self.size = sizes(tensors, "head.fc1.weight")[0], sizes(tensors, "head.final.2.weight")[0]
        self.head = _Head(self.patches.out_channels, inner, self.size, count_parts(tensors, "head.blocks."))


class Radio(TransformerBackbone):
    """The prefix tokens begin with the head's own class token; the others and the registers follow."""

    resize_policy: ResizePolicy = "crop"
    input_hw = (SIDE, SIDE)

    def __init__(
        self, model: RadioModel, text: nn.Module, name: str, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__([TimmBlock(block) for block in model.blocks], len(model.prefix), mean, std)
        self.model, self.text, self.name = model, text, name
        self.stride, self.embedding_size = model.patches.kernel_size[0], model.size
        self.eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        most = max(self.grid(images.shape[-2], images.shape[-1]))
        # A square of the longer side; its left or upper part.
        return self.model.first_tokens(images, (most, most), antialias=False)

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The head's class token through the head, not normalised: `[B, prefix+N, d]` → `[B, D]`."""
        return self.read_normed(self.last_norm(tokens[:, 0])), None

    @property
    def last_norm(self) -> nn.LayerNorm | nn.Identity:
        return self.model.norm

    def read_normed(self, normed: Tensor) -> Tensor:
        """Each token by the head of the class token, as RADSeg reads patches: `[B, n, d]` → `[B, n, D]`."""
        return self.model.head(normed)


# --------------------------------------------------------------------------------------------------------------- files
def _build(head: str, pretrained: str | None, device: str, precision: str) -> Radio:
    dtype, name = resolve_precision(precision, device), f"c-radio-{head}"
    if pretrained is None:
        raise UsageError(
            f"expected weights for {name}, got none: add --pretrained with the file c-radio_v3-b_half.pth.tar from "
            "huggingface.co/nvidia/C-RADIOv3-B, one like it, or a folder with it"
        )
    path = user_path(pretrained)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in (*SUFFIXES, ".tar")]
        if len(files) != 1:
            raise MissingWeightsError(f"expected one file of C-RADIO in {path}, found {len(files)}: name the file")
        path = files[0]
    weights = read_checkpoint(path, ("state_dict_ema", "state_dict"), with_settings=True)
    try:
        settings = msgspec.convert(dict(weights.settings), RadioSettings)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"{path} does not say how C-RADIO was trained ({error}): expected one of the authors' .pth.tar files"
        ) from None
    return _read(weights, settings, head, precision).convert(dtype).to(device)


def _read(weights: Checkpoint, settings: RadioSettings, head: str, precision: str) -> Radio:
    path, teachers = weights.path, settings.teachers
    place = next((i for i, teacher in enumerate(teachers) if teacher.type == TYPES[head]), None)
    family = re.match(r"vit_([a-z0-9]+)_", settings.model)
    if place is None or family is None or family[1] not in HEADS:
        raise ModelError(
            f"{path} is a {settings.model} with heads of {', '.join(teacher.name for teacher in teachers)}: "
            f"expected a ViT of C-RADIOv3 with a head of the type {TYPES[head]}"
        )
    teacher = teachers[place]
    slot = 0
    if settings.cls_token_per_teacher:
        slot = place if teacher.token_slot is None else teacher.token_slot
    tensors = renamed(weights, (f"_heads.{place}.", f"_heads.{teacher.name}."), slot)
    with torch.random.fork_rng(devices=[]):
        model = RadioModel(tensors, HEADS[family[1]], normed=bool(settings.model_norm))
    load_exactly(model, tensors, path, "the weights of C-RADIO")
    tower = text_tower(path.parent, teacher, precision)
    text = CanonicalText(tower.text) if head == "siglip2" else tower.text
    mean, std = (
        weights.tensors.get(f"input_conditioner.norm_{what}", torch.tensor(default)).flatten().tolist()
        for what, default in (("mean", MEAN), ("std", STD))
    )
    backbone = Radio(model, text, f"c-radio-{head}:{path.name}", mean, std)
    backbone.logit_scale = tower.logit_scale
    backbone.weights_file = path
    return backbone


def text_tower(folder: Path, teacher: RadioTeacher, precision: str) -> Backbone:
    """The model whose texts a head understands: in a folder of its name beside the file, else where it is published."""
    name = SIGLIP2.get(teacher.model, teacher.model)
    if (folder / name).is_dir():
        return create(f"local-dir:{folder / name}", precision=precision)
    if name == teacher.model:
        return create(name, teacher.pretrained, precision=precision)
    return create(f"hf-hub:google/{name}", precision=precision)


# ------------------------------------------------------------------------------------------------------------- rename
def renamed(weights: Checkpoint, heads: Sequence[str], slot: int) -> dict[str, Tensor]:
    """The tensors of the tower and of the head with one of these prefixes, under the names of `RadioModel`."""
    generator = f"{TOWER}patch_generator."
    names = {f"{generator}cls_token.token": "prefix", f"{generator}pos_embed": "positions"}
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.tensors.items():
        if name.startswith("_feature_normalizer."):
            raise ModelError(f"{weights.path} normalises its features, which is not supported: take C-RADIOv3's file")
        if name.startswith(TOWER) and not name.removeprefix(TOWER).startswith(UNUSED):
            ours = names.get(name, name.replace(f"{generator}embedder", f"{TOWER}patches").removeprefix(TOWER))
            tensors[ours.replace(".grandma", ".gamma")] = tensor  # so spelt, to pass Hugging Face's loader
        for head in heads:
            if name.startswith(head):
                tensors[f"head.{name.removeprefix(head)}"] = tensor
    tensors = _weights(tensors)
    prefix, positions, patches = map(tensors.__getitem__, ("prefix", "positions", "patches.weight"))
    # Blocks treat all tokens alike, so that their order is free: the first is the one that the head reads.
    prefix = torch.cat([prefix[slot : slot + 1], prefix[:slot], prefix[slot + 1 :]])
    side = math.isqrt(patches.shape[1] // 3)
    made = {"prefix": prefix, "positions": positions[0], "patches.weight": patches.reshape(-1, 3, side, side)}
    return {**tensors, **made}  # positions [G², d]


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are trained as a direction and a norm (σReparam, Zhai 2023) as the authors' loader computes them."""
    computed = {name: tensor for name, tensor in tensors.items() if SPECTRAL not in name}
    for name, direction in tensors.items():
        layer, spectral, rest = name.partition(SPECTRAL)
        if spectral and rest == "original":
            at = layer + SPECTRAL + "0."
            parts = count_parts(tensors, f"{at}parts.")  # queries, keys and values have a norm each
            names = [f"{at}parts.{i}." for i in range(parts)] or [at]
            pieces = zip(direction.float().chunk(len(names)), names, strict=True)
            computed[f"{layer}.weight"] = torch.cat([_scaled(piece, tensors, rotation) for piece, rotation in pieces])
    return computed


def _scaled(direction: Tensor, tensors: Mapping[str, Tensor], at: str) -> Tensor:
    """scale · W / σ, σ the largest singular value after one more step of the power method from the stored vector."""
    if f"{at}scale" not in tensors:
        return direction
    u = F.normalize(direction @ tensors[f"{at}_v"].float(), dim=0)
    v = F.normalize(direction.T @ u, dim=0)
    scale = tensors[f"{at}scale"].float()
    if int(tensors.get(f"{at}_sn_version", 1)) == 2:
        scale = F.softplus(scale) + 0.05
    return direction * scale / (u @ direction @ v + 1e-6)


for _head, _about in (("siglip2", "SigLIP 2"), ("clip", "DFN's CLIP")):
    register_model(
        f"c-radio-{_head}", Radio, functools.partial(_build, _head), MEAN, STD, parameters=None,
        licence="NVIDIA Open Model License",
        about=f"C-RADIOv3's ViT with its head for {_about}, whose text tower it uses; --pretrained takes its file",
    )  # fmt: skip
