"""The tensors of dino.txt's files, their sizes, and our names of them; docs/dinotxt.md has the sources."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from cliploc.backbones._checkpoints import SUFFIXES, Checkpoint, read_checkpoint
from cliploc.errors import MissingWeightsError, ModelError

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
        for name, tensor in _placed(checkpoint.tensors, file).items():
            if name in tensors:
                raise ModelError(f"{file} holds {name}, as another file of {path} does: leave one of them there")
            tensors[name] = tensor
    return Checkpoint(path, digest.hexdigest(), tensors)


def _placed(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors of one file under the whole model's names."""
    prefix: str | None = ""
    if not any(name.startswith(("visual_model.", TEXT)) for name in tensors):
        prefix = next((prefix for marker, prefix in PARTS if marker in tensors), None)
    if prefix is None:
        raise ModelError(f"{file} holds no part of dino.txt: expected names such as {HEAD}ln_final.weight")
    placed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name != "logit_scale":
            name = f"{prefix}{name}"
        for theirs, ours in DINOV2_NAMES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        placed[name] = tensor
    return placed


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

    def blocks(prefix: str) -> int:
        numbers = {match[1] for name in tensors if (match := re.match(re.escape(prefix) + r"blocks\.(\d+)\.", name))}
        if not numbers:
            raise ModelError(f"{path} lacks {prefix}blocks, which dino.txt has: check the file")
        return len(numbers)

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
        depth=blocks(IMAGE),
        mlp=shape(f"{IMAGE}blocks.0.mlp.fc1.weight")[0],
        registers=shape(registers, 3)[1] if registers in tensors else 0,
        head_depth=blocks(HEAD),
        head_mlp=shape(f"{HEAD}blocks.0.mlp.w3.weight")[1],
        text_width=text_width,
        text_depth=blocks(text),
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
            named |= dict(_image(name, tensor, layout))
        elif name.startswith(HEAD):
            named[_gated(name)] = tensor
        else:
            named[name] = tensor
    return named


def _image(name: str, tensor: Tensor, layout: DinoTxtLayout) -> Iterator[tuple[str, Tensor]]:
    if name.endswith(MASKED) or ".rope_embed." in name:
        return
    name = name.replace(".storage_tokens", ".reg_token").replace(".register_tokens", ".reg_token")
    if layout.family == "dinov2":
        yield name, tensor
    elif name.endswith(".qkv.bias"):  # the keys' part is masked in training: keys have no bias
        for part, own in zip(("q_bias", None, "v_bias"), tensor.chunk(3), strict=True):
            if part:
                yield name.replace("qkv.bias", part), own
    else:
        yield re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name), tensor


def _gated(name: str) -> str:
    """The name that timm has for a matrix of the SwiGLU w₃(silu(w₁x)·w₂x)."""
    for theirs, ours in (("w1", "fc1_g"), ("w2", "fc1_x"), ("w3", "fc2")):
        name = name.replace(f".mlp.{theirs}.", f".mlp.{ours}.")
    return name
