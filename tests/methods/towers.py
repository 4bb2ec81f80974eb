"""The towers that every method is held to: tiny planted ones, a small ResNet of CLIP, and `mini-vit`.

A method runs on every tower here whose kind it is defined on, with one exception: the Score-CAM family sends a picture
through the tower once for each channel, and meets `mini-vit` with one of the family.
"""

import copy
import functools
from importlib.resources import files
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.methods import Context, methods
from cliploc.towers._open_clip_towers import OpenClipResNet, OpenClipVit
from cliploc.towers.mini_vit import MiniVit
from tests.tiny import KINDS, SIDE, TinyVit, planted_image, seeded, tower
from tests.tiny import raw_maps as ours
from tests.towers import small_clip
from tests.towers.seam import SENTENCES, TEXT, perturb, tokenizer

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


# ViTs for the oracles and the public packages: tiny ones pooled three ways, and open_clip's own with photographs
GRID = (5, 6)
TEXTS = ("red", "green", "a zebra")


class AveragingVit(TinyVit):
    """Reads the mean of its patches; the class token only takes part in the blocks."""

    pooling = "global average"

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.ln_post(tokens[:, 1:]).mean(dim=1) @ self.projection, None


class QueryingVit(TinyVit):
    """Reads what a learnt query of two heads gathers from the patches alone, as the class token is not pooled."""

    pooling = "attention"

    def __init__(self, name: str, grid: tuple[int, int]) -> None:
        super().__init__(name, grid)
        self.query = nn.Parameter(torch.randn(2, 1, 8))

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        heads = tokens[:, 1:].unflatten(-1, (2, 8)).transpose(1, 2)  # [B, H, N, d/H]
        attention = (self.query @ heads.transpose(-2, -1)).softmax(dim=-1)  # [B, H, 1, N]
        return self.ln_post((attention @ heads).transpose(1, 2).flatten(2))[:, 0] @ self.projection, attention


def tiny(kind: type[TinyVit] = TinyVit) -> Any:
    if kind is TinyVit:
        return tower("vit", GRID)
    backbone = seeded(lambda: kind("vit", GRID), 2).eval().requires_grad_(False)
    backbone.texts.plant(backbone, GRID)
    return backbone


def scenes() -> Tensor:
    """`[2, 3, H, W]`: two noisy pictures with colours in them."""
    first = planted_image("red", GRID, (1, 2)) + planted_image("green", GRID, (3, 0))
    second = planted_image("blue", GRID, (0, 3)) + planted_image("red", GRID, (4, 1))
    noise = torch.randn(2, *first.shape[1:], generator=torch.Generator().manual_seed(11))
    return torch.cat([first, second]) + 0.3 * noise


def plain_forward(backbone: Any, image: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor | None, Tensor]:
    """A tiny tower's own modules, one image, with a graph: tokens and attention after each block, pool, embedding."""
    x = backbone.embed(image[None]).requires_grad_(True)
    tokens, attention = [], []
    for block in backbone.blocks:
        x, weights = block(x)
        tokens.append(x)  # [1, T, d]
        attention.append(weights)  # [1, H, T, T]
    pooled, pool_attention = backbone.pool(x)
    return tokens, attention, pool_attention, F.normalize(pooled[0], dim=-1)


def oracle(backbone: Any, one_map: Any) -> tuple[Tensor, Tensor]:
    """For every picture and text of a tiny tower: `one_map(image, direction) → [N]` as `[B, P, h, w]`; and the text."""
    text = backbone.encode_text(TEXTS)  # [P, D]
    maps = [torch.stack([one_map(image, direction).view(GRID) for direction in text]) for image in scenes()]
    return torch.stack(maps), text


def assert_equation(name: str, kind: type[TinyVit], one_map: Any, **options: Any) -> None:
    """A method's maps on a tiny tower are those of `one_map(backbone, image, direction) → [N]`."""
    backbone = tiny(kind)
    expected, text = oracle(backbone, lambda image, direction: one_map(backbone, image, direction).detach())
    maps = ours(name, backbone, scenes(), text, **options)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def block_calls(backbone: Any, method: str, **options: Any) -> int:
    """How often the method runs any block's projections once it has its trace, for all pictures and prompts."""
    needs, images, text = methods.get(method).needs(**options), scenes(), backbone.encode_text(TEXTS)
    ctx = Context(lambda: images, text[None].expand(2, -1, -1), backbone.trace(images, needs), backbone)
    calls: list[int] = []
    handles = [block.qkv.register_forward_hook(lambda *_: calls.append(1)) for block in backbone.blocks]
    methods.get(method).function(ctx, **options)
    for handle in handles:
        handle.remove()
    return len(calls)


def photograph(name: str, width: int = 112, height: int = 112) -> Tensor:
    """One of the package's, `[1, 3, H, W]` in 0–1."""
    with Image.open(files("cliploc") / "demo_photos" / f"{name}.jpg") as photo:
        pixels = np.array(photo.convert("RGB").resize((width, height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


@functools.cache
def twelve_blocks() -> tuple[Any, Any, Tensor, Tensor]:
    """open_clip's ViT-B/16 of a quarter of its width, random, our view, photographs `[3, 3, 112, 112]`, two texts."""
    vision = {"image_size": 112, "layers": 12, "width": 192, "head_width": 64, "patch_size": 16}
    model = seeded(lambda: open_clip.CLIP(128, vision, TEXT), 0)
    model = perturb(model, 0.01).requires_grad_(False)
    backbone = OpenClipVit(model, tokenizer, "twelve blocks")
    pictures = torch.cat([photograph(name) for name in ("cat", "dogs", "osprey")])
    return model, backbone, backbone.normalize(pictures), backbone.encode_text(SENTENCES)
