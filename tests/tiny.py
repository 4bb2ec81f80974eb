"""Tiny seeded towers of the three kinds that the seam must fit, small enough for oracles and Hypothesis.

The text side is a table of planted directions: "red", "green" and "blue" are the joint-space directions that a picture
with a square of that colour moves towards, so that a planted object can be found; any other text gets a direction drawn
from its characters.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.backbones._cnn import AttentionPool, ConvolutionalBackbone, GlobalAveragePool
from cliploc.schema import Backbone, Context, Needs, Trace

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SIDE = 4  # pixels of one grid cell
KINDS = ("gap_cnn", "attention_pool_cnn", "vit")


def seeded(build: Any, seed: int) -> Any:
    """Builds a module from one seed without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def planted_image(colour: str, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """`[1, 3, H, W]` normalised: a grey noise picture with one cell of a pure colour."""
    generator = torch.Generator().manual_seed(7)
    pixels = 0.5 + 0.02 * torch.randn(1, 1, grid[0] * SIDE, grid[1] * SIDE, generator=generator).expand(-1, 3, -1, -1)
    pixels = pixels.clone()
    y, x = cell[0] * SIDE, cell[1] * SIDE
    pixels[:, :, y : y + SIDE, x : x + SIDE] = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1)
    return (pixels - 0.5) / 0.5


@torch.no_grad()
def plant_colour_detectors(conv: nn.Conv2d) -> None:
    """The first three channels answer to one colour each and to no grey; the others stay random, but quieter."""
    conv.weight.mul_(0.3)
    conv.bias.mul_(0.3)
    conv.bias[:3] = 0
    opponent = 1.5 * torch.eye(3) - 0.5  # +1 for the colour itself, −0.5 for each other
    conv.weight[:3] = opponent[:, :, None, None] / conv.kernel_size[0] ** 2


@torch.no_grad()
def pass_colours_through(conv: nn.Conv2d) -> None:
    """The first three channels stay what they are."""
    conv.weight.mul_(0.3)
    conv.weight[:3] = torch.eye(3, conv.in_channels)[:, :, None, None] / conv.kernel_size[0] ** 2
    conv.bias[:3] = 0


class ColourText:
    """Texts → directions. A colour's is what the tower answers to a cell of that colour, less its answer to grey."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.planted: dict[str, Tensor] = {}

    def plant(self, backbone: Backbone, grid: tuple[int, int]) -> None:
        grey = torch.zeros(1, 3, grid[0] * SIDE, grid[1] * SIDE)
        base = backbone.encode_image(grey)
        for colour in COLOURS:
            full = (torch.tensor(COLOURS[colour]).view(1, 3, 1, 1) - 0.5) / 0.5 + grey
            self.planted[colour] = F.normalize(backbone.encode_image(full) - base, dim=-1)[0]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            word = next((colour for colour in self.planted if colour in text.split()), None)
            if word is None:
                generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
                rows.append(F.normalize(torch.randn(self.size, generator=generator), dim=0))
            else:
                rows.append(self.planted[word])
        return torch.stack(rows)


class TinyCnn(ConvolutionalBackbone):
    """Two stages of stride 2 and one of stride 1, then the pool of one kind."""

    stride = SIDE
    logit_scale = 20.0

    def __init__(self, name: str, grid: tuple[int, int], pool: nn.Module, channels: int, size: int) -> None:
        stages = [
            nn.Sequential(nn.Conv2d(3, 12, 2, stride=2), nn.ReLU()),
            nn.Sequential(nn.Conv2d(12, channels, 2, stride=2), nn.ReLU()),
            nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU()),
        ]
        super().__init__(stages, mean=(0.5,) * 3, std=(0.5,) * 3)
        plant_colour_detectors(stages[0][0])
        for stage in stages[1:]:
            pass_colours_through(stage[0])
        self.name, self.embedding_size = name, size
        self.input_hw = (grid[0] * SIDE, grid[1] * SIDE)
        self.pooling = pool
        self.texts = ColourText(size)

    def pool(self, features: Tensor) -> Tensor:
        return self.pooling(features)

    def read_locations(self, features: Tensor) -> Tensor:
        return self.pooling.read_locations(features)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.texts(texts)


class Block(nn.Module):
    """A pre-norm transformer block whose attention can be seen, and differentiated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, d = x.shape
        qkv = self.qkv(self.ln_1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]  # each [B, H, 1+N, d/H]

    def merge(self, heads: Tensor) -> Tensor:
        return self.out(heads.transpose(1, 2).flatten(2))  # [B, 1+N, d]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(x)
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # [B, H, 1+N, 1+N]
        x = x + self.merge(attention @ v)
        return x + self.mlp(self.ln_2(x)), attention


class TinyVit(nn.Module):
    """Two blocks with a class token, on a non-square grid; fulfils `cliploc.schema.TransformerBackbone`."""

    kind = "vit"
    stride = SIDE
    logit_scale = 20.0
    resize_policy = "squash"
    depth = 2

    def __init__(self, name: str, grid: tuple[int, int], width: int = 16, heads: int = 2, size: int = 10) -> None:
        super().__init__()
        self.name, self.embedding_size, self.learnt_grid = name, size, grid
        self.input_hw = (grid[0] * SIDE, grid[1] * SIDE)
        self.patch = nn.Conv2d(3, width, SIDE, stride=SIDE)
        self.class_token = nn.Parameter(torch.randn(width))
        self.positions = nn.Parameter(0.1 * torch.randn(1 + grid[0] * grid[1], width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(self.depth)])
        self.ln_post = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.randn(width, size) / width**0.5)
        with torch.no_grad():
            plant_colour_detectors(self.patch)
            self.patch.weight[3], self.patch.bias[3] = -1 / SIDE**2, 0  # any pure colour is darker than grey …
            self.class_token[:4] = 0
            self.positions[:, :4] = 0
            for block in self.blocks:
                block.qkv.weight.mul_(0.3)
            # Two large constants, so that a layer norm scales all tokens alike and the blocks are nearly linear.
            anchor = torch.tensor([4.0, -4.0])
            self.class_token[-2:], self.positions[:, -2:] = anchor, 0
            self.patch.weight[-2:], self.patch.bias[-2:] = 0, anchor
            last = self.blocks[-1]
            last.qkv.bias[0] += 4.0  # … so the class token's first head looks for the dark …
            last.qkv.weight[width, 3] += 1.0
            last.qkv.weight[2 * width : 2 * width + 3, :3] += 6 * torch.eye(3)  # … and brings its colour home
            last.out.weight[:3, :3] += torch.eye(3)
        self.texts = ColourText(size)

    @property
    def device(self) -> torch.device:
        return self.class_token.device

    @property
    def dtype(self) -> torch.dtype:
        return self.class_token.dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // SIDE, width // SIDE

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.5) / 0.5

    def _tokens(self, images: Tensor) -> Tensor:
        patches = self.patch(images.to(self.dtype))  # [B, d, h, w]
        positions = self.positions[1:].T.reshape(1, -1, *self.learnt_grid)
        positions = F.interpolate(positions, size=patches.shape[-2:], mode="bicubic", align_corners=False)
        patches = (patches + positions).flatten(2).transpose(1, 2)  # [B, N, d]
        first = (self.class_token + self.positions[0]).expand(len(images), 1, -1)
        return torch.cat([first, patches], dim=1)  # [B, 1+N, d]

    def _run(self, x: Tensor, first: int, grid: tuple[int, int], needs: Needs) -> Trace:
        """Blocks from `first` (from the start) to the end."""
        features, entering, tokens, attention = {}, {}, {}, {}
        for index in range(first, self.depth):
            back = index - self.depth
            if back in needs.features:
                entering[back] = x
                features[back] = x[:, 1:].transpose(1, 2).unflatten(2, grid)  # [B, d, h, w]
            x, a = self.blocks[index](x)
            if needs.tokens == "all" or back in needs.tokens:
                tokens[back] = x
            if needs.attention == "all" or back in needs.attention:
                attention[back] = a
        embedding = F.normalize((self.ln_post(x[:, 0]) @ self.projection).float(), dim=-1)
        return Trace(embedding, grid, features, tokens, attention, entering)

    @torch.no_grad()
    def trace(self, images: Tensor, needs: Needs) -> Trace:
        grid = self.grid(images.shape[-2], images.shape[-1])
        return self._run(self._tokens(images), 0, grid, needs)

    def resume(self, tokens: Tensor, block: int, needs: Needs, grid: tuple[int, int] | None = None) -> Trace:
        return self._run(tokens, self.depth + block, grid or self.learnt_grid, needs)

    def head(self, features: Tensor, trace: Trace, stage: int = -1) -> Tensor:
        patches = features.flatten(2).transpose(1, 2)  # [B, N, d]
        tokens = torch.cat([trace.entering[stage][:, :1].to(patches), patches], dim=1)
        return self._run(tokens, self.depth + stage, trace.grid, Needs()).embedding

    def dense(self, trace: Trace, rule: Any = None, blocks: int = 1) -> Tensor:
        x = trace.entering[-blocks]
        for block in list(self.blocks)[self.depth - blocks :]:
            q, k, v = block.project(x)
            out = v if rule is None else rule(q, k, v, q.shape[-1] ** -0.5)
            x = block.merge(out)  # no residual, no MLP: MaskCLIP's reading
        read = self.ln_post(x[:, 1:]) @ self.projection  # [B, N, D]
        return read.transpose(1, 2).unflatten(2, trace.grid).float()

    def encode_image(self, images: Tensor) -> Tensor:
        return self.trace(images, Needs()).embedding

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.texts(texts)

    def unknown_reason(self, word: str) -> str | None:
        return None

    def presence(self, cosine: Tensor) -> Tensor | None:
        return None


def tower(kind: str, grid: tuple[int, int] = (5, 6), seed: int = 0) -> Any:
    """A frozen tower in eval mode whose texts "red", "green", "blue" are planted."""

    def build() -> Any:
        if kind == "gap_cnn":
            return TinyCnn(kind, grid, GlobalAveragePool(torch.zeros(24)), channels=24, size=24)
        if kind == "attention_pool_cnn":
            pool = AttentionPool(grid, 24, heads=3, size=10)
            pool.positional_embedding.data.mul_(0.3)  # a place alone must not look like a colour
            return TinyCnn(kind, grid, pool, channels=24, size=10)
        return TinyVit(kind, grid)

    backbone = seeded(build, seed).eval().requires_grad_(False)
    backbone.texts.plant(backbone, grid)
    return backbone


def context(backbone: Any, images: Tensor, texts: Sequence[str], needs: Needs, **kwargs: Any) -> Context:
    """A `Context` with the same texts for every image."""
    text = backbone.encode_text(texts)[None].expand(len(images), -1, -1)  # [B, P, D]
    return Context(images=images, text=text, trace=backbone.trace(images, needs), backbone=backbone, **kwargs)
