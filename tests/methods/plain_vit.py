"""Three small ViTs as plain linear algebra, a picture and a head at a time: the tiny one, CLIP's, timm's SigLIP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.towers._open_clip_timm import TimmVit
from cliploc.towers._open_clip_towers import OpenClipVit
from tests.methods.towers import scenes, tiny
from tests.tiny import raw_maps, seeded
from tests.towers.seam import TEXT, perturb, pictures, tokenizer
from tests.towers.test_open_clip_timm import small_vit

TOWERS = ("tiny", "open_clip", "siglip")
Head = tuple[Tensor, Tensor, Tensor]  # q, k, v, each [T, d/H]
Gather = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PlainBlock:
    """x + out(heads' answers to norm_1(x)), then + mlp(norm_2(x))."""

    norm_1: nn.Module
    weight: Tensor  # [3d, d]: q, then k, then v; in each, one head after the other
    bias: Tensor
    out: nn.Module
    norm_2: nn.Module
    mlp: nn.Module
    heads: int

    def project(self, x: Tensor) -> list[Head]:
        """Tokens `[T, d]` → q, k and v of every head."""
        return self.project_normed(self.norm_1(x))

    def project_normed(self, normed: Tensor) -> list[Head]:
        rows = (normed @ self.weight.T + self.bias).split(normed.shape[1] // self.heads, dim=1)
        return [(rows[h], rows[self.heads + h], rows[2 * self.heads + h]) for h in range(self.heads)]

    def branch(self, x: Tensor, gather: Gather) -> Tensor:
        """What the block adds to tokens `[T, d]` when every head gathers so."""
        return self.out(torch.cat([gather(q, k, v) for q, k, v in self.project(x)], dim=1))

    def mlp_branch(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm_2(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch(x, lambda q, k, v: attend(q, k, v))
        return x + self.mlp_branch(x)


def attend(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """softmax(abᵀ/√d_h)·v of one head."""
    return torch.softmax(a @ b.T / a.shape[1] ** 0.5, dim=1) @ v


@dataclass(frozen=True)
class PlainVit:
    """A tower around one picture: the tokens entering each block, and how tokens after the last one are read."""

    backbone: Any
    images: Tensor
    text: Tensor  # [P, D]
    blocks: Sequence[PlainBlock]
    read: Callable[[Tensor], Tensor]
    prefix: int
    grid: tuple[int, int]

    @torch.no_grad()
    def entering(self, image: Tensor) -> list[Tensor]:
        """Tokens `[T, d]` entering each block, and after them those that leave the last."""
        tokens = [self.backbone.embed(image[None])[0]]
        for block in self.blocks:
            tokens.append(block.forward(tokens[-1]))
        return tokens

    @torch.no_grad()
    def cosines(self, path: Tensor) -> Tensor:
        """Path tokens `[T, d]` → `[N, P]` cosine of every patch's reading and every text."""
        return F.normalize(self.read(path[self.prefix :]), dim=1) @ self.text.T

    def maps(self, one_image: Callable[[Tensor], Tensor]) -> Tensor:
        """`one_image(image) → [N, P]` for every picture as `[B, P, h, w]`."""
        with torch.no_grad():
            return torch.stack([one_image(image).T.reshape(-1, *self.grid) for image in self.images])

    def last_block(self, gather: Gather, residual: bool = False, mlp: bool = False) -> Tensor:
        """`[B, P, h, w]` when the last block's heads gather so."""

        def one(image: Tensor) -> Tensor:
            x, block = self.entering(image)[-2], self.blocks[-1]
            path = x + block.branch(x, gather) if residual else block.branch(x, gather)
            return self.cosines(path + block.mlp_branch(path) if mlp else path)

        return self.maps(one)

    def ours(self, name: str, text: Tensor | None = None, **options: Any) -> Tensor:
        """The product's raw maps `[B, P, h, w]`."""
        return raw_maps(name, self.backbone, self.images, self.text if text is None else text, **options)


def plain_vit(kind: str) -> PlainVit:
    """Two pictures on a grid that is not square, nor, in two of the towers, the one that positions were learnt on."""
    if kind == "tiny":
        backbone = tiny()
        blocks = [PlainBlock(b.ln_1, b.qkv.weight, b.qkv.bias, b.out, b.ln_2, b.mlp, b.heads) for b in backbone.blocks]
        text = backbone.encode_text(["red", "green", "a zebra"])
        return PlainVit(
            backbone, scenes(), text, blocks, lambda x: backbone.ln_post(x) @ backbone.projection, 1, (5, 6)
        )
    if kind in ("open_clip", "deep"):
        model = open_clip_model(layers=12 if kind == "deep" else 4)
        backbone = OpenClipVit(model, tokenizer, "small")
        visual = model.visual
        blocks = [
            PlainBlock(
                b.ln_1, b.attn.in_proj_weight, b.attn.in_proj_bias, b.attn.out_proj, b.ln_2, b.mlp, b.attn.num_heads
            )
            for b in visual.transformer.resblocks
        ]
        return PlainVit(
            backbone, pictures(24, 40), directions(24), blocks, lambda x: visual.ln_post(x) @ visual.proj, 1, (3, 5)
        )
    model = small_vit("SigLIP")
    backbone, trunk = TimmVit(model, tokenizer, "small SigLIP"), model.visual.trunk
    blocks = [
        PlainBlock(b.norm1, b.attn.qkv.weight, b.attn.qkv.bias, b.attn.proj, b.norm2, b.mlp, b.attn.num_heads)
        for b in trunk.blocks
    ]

    def read(x: Tensor) -> Tensor:
        pool = trunk.attn_pool
        width = x.shape[1]
        value = pool.proj(trunk.norm(x) @ pool.kv.weight[width:].T + pool.kv.bias[width:])
        return value + pool.mlp(pool.norm(value))

    images = pictures(3 * backbone.stride, 2 * backbone.stride)
    return PlainVit(backbone, images, directions(backbone.embedding_size), blocks, read, 0, (3, 2))


def open_clip_model(layers: int = 4) -> Any:
    vision = {"layers": layers, "width": 48, "head_width": 12, "patch_size": 8, "image_size": 40}
    return perturb(seeded(lambda: open_clip.CLIP(24, vision, TEXT), 0))


def directions(size: int) -> Tensor:
    return F.normalize(torch.randn(3, size, generator=torch.Generator().manual_seed(2)), dim=1)


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    """Equal in units of the maps' own spread."""
    assert ours.shape == expected.shape
    spread = expected.amax((-2, -1)) - expected.amin((-2, -1))
    assert spread.min() > 0, "a flat map: nothing was compared"
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(spread.min()) + 2e-6)
