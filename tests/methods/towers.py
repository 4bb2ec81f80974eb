"""The towers that every method is held to: tiny planted ones, a small ResNet of CLIP, and `mini-vit`.

A method runs on every tower here whose kind it is defined on, with one exception: the Score-CAM family sends a picture
through the tower once for each channel, and meets `mini-vit` with one of the family.
"""

import copy
import functools
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import methods
from cliploc.towers._open_clip_towers import OpenClipResNet
from cliploc.towers.mini_vit import MiniVit
from tests.tiny import KINDS, SIDE, planted_image, seeded, tower
from tests.towers import small_clip
from tests.towers.seam import TEXT, perturb, tokenizer

CUT_RESNET = "cut RN50"  # one block a stage, 384 channels; RN50 itself is in test_grad_cam.py
MINI_VIT = "mini-vit"  # its blocks have learnt what they do
TOWERS = (*KINDS, CUT_RESNET, MINI_VIT)
TINY_GRIDS = ((5, 6), (7, 4))
CLIP_GRIDS = ((2, 3), (3, 4))
MINI_VIT_GRIDS = ((3, 4), (5, 3))


def grids(name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two grids; a tiny tower has learnt its positions on the first, the others on neither."""
    if name == MINI_VIT:
        return MINI_VIT_GRIDS
    return CLIP_GRIDS if name == CUT_RESNET else TINY_GRIDS


def clip_model(name: str, seed: int = 0) -> open_clip.CLIP:
    """A ResNet by open_clip's configuration, with batch norms that have seen something, and a small text tower."""
    if name == CUT_RESNET:
        config = {"embed_dim": 24, "vision_cfg": {**small_clip.CONFIG["vision_cfg"], "width": 12}}
    else:
        config = open_clip.get_model_config(name)

    def build() -> open_clip.CLIP:
        model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], TEXT)
        small_clip.season(model)
        perturb(model.transformer, 0.5)
        return model.eval()

    return centred(seeded(build, seed))


@torch.no_grad()
def centred(model: open_clip.CLIP) -> open_clip.CLIP:
    """Random towers give nearly the same embedding whatever they see or read; less a common one they tell apart."""
    last = model.visual.layer4[-1].bn3
    last.bias -= last.weight  # sparse features, as training makes them
    side = model.visual.image_size
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    model.visual.attnpool.c_proj.bias -= model.encode_image(noise)[0]
    mean = model.encode_text(tokenizer(["red", "a zebra", "green", "dogs"])).mean(dim=0)  # [D]
    model.ln_final.bias -= mean @ torch.linalg.pinv(model.text_projection)
    return model


@functools.cache
def clip_resnet(name: str, seed: int = 0) -> OpenClipResNet:
    """The adapter of such a model; built once, so not to be changed."""
    return OpenClipResNet(clip_model(name, seed), tokenizer, name, copied=False)


@functools.cache
def mini_vit(seed: int = 0) -> MiniVit:
    """The bundled model; other seeds than 0 shake its blocks, so that it answers otherwise."""
    backbone = MiniVit.bundled()
    generator = torch.Generator().manual_seed(seed)
    for parameter in backbone.net.parameters() if seed else ():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return backbone


# What keeps the tests of slow methods short, on any tower.
QUICK: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4},
    "rise": {"budget": 125},
    "smooth_grad": {"samples": 2},
}


@functools.cache
def tiny_tower(name: str, seed: int = 0) -> Any:
    """A tiny tower; built once, so not to be changed."""
    return tower(name, TINY_GRIDS[0], seed)


def build(name: str, seed: int = 0) -> Any:
    """A tower to look at; `copy_of` gives one to change."""
    if name == MINI_VIT:
        return mini_vit(seed)
    return tiny_tower(name, seed) if name in KINDS else clip_resnet(name, seed)


def copy_of(tower: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A copy to change, of one of these towers by its name or of another; pixels are normalised in float32."""
    backbone = copy.deepcopy(build(tower) if isinstance(tower, str) else tower)
    for part in backbone.children():
        part.to(dtype)
    return backbone


def cases() -> list[tuple[str, str]]:
    """Every method with every tower it is held to."""
    kind_of = {name: tower(name).kind for name in KINDS} | {CUT_RESNET: "cnn", MINI_VIT: "vit"}
    return [
        (method.name, name)
        for method in methods
        for name in TOWERS
        if kind_of[name] in method.towers
        and not method.needs().guide  # tests/methods/test_corrclip.py
        and not (name == MINI_VIT and method.family == "perturbation" and method.name != "score_cam")
        and (method.reads_picture or name in KINDS)  # which tower it is, such a map does not know
    ]


def pictures(name: str, grid: tuple[int, int] | None = None) -> Tensor:
    """Two pictures `[2, 3, H, W]` with several colours each, so that every prompt has something to say."""
    h, w = grid or grids(name)[0]

    def planted(colour: str, y: int, x: int) -> Tensor:
        return planted_image(colour, (h, w), (min(y, h - 1), min(x, w - 1)))

    both = torch.cat([planted("red", 1, 2) + planted("green", 3, 0), planted("blue", 0, 3) + planted("red", 4, 1)])
    both = F.interpolate(both, scale_factor=cell_side(name) / SIDE)
    return both + 0.3 * torch.randn(both.shape, generator=torch.Generator().manual_seed(3))


def cell_side(name: str) -> int:
    return {MINI_VIT: MiniVit.stride, CUT_RESNET: OpenClipResNet.stride}.get(name, SIDE)
