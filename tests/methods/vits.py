"""ViTs for the oracles and the public packages: tiny ones pooled three ways, and open_clip's own with photographs."""

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
from cliploc.towers._open_clip_towers import OpenClipVit
from tests.tiny import TinyVit, planted_image, seeded, tower
from tests.tiny import raw_maps as ours
from tests.towers.seam import SENTENCES, TEXT, perturb, tokenizer

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
