"""Tiny seeded towers of the three kinds that the seam must fit, small enough for oracles and Hypothesis.

The text side is a table of planted directions: "red", "green" and "blue" are the joint-space directions that a picture
with a square of that colour moves towards, so that a planted object can be found; any other text gets a direction drawn
from its characters.
"""

import contextlib
import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.find.heads import HeadConfig, TsCamHead, save_head, tower_fingerprint
from cliploc.methods import Context, methods
from cliploc.towers._cnn import AttentionPool, ConvolutionalBackbone, GlobalAveragePool
from cliploc.towers._layers import resize_positions
from cliploc.towers._transformer import BlockAdapter, TransformerBackbone
from cliploc.towers.tower import Backbone, Needs

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SIDE = 4  # pixels of one grid cell
KINDS = ("gap_cnn", "attention_pool_cnn", "vit")


def seeded(build: Any, seed: int) -> Any:
    """Builds a module from one seed without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def write_head(path: Path, backbone: Any, kind: str = "open", seed: int = 0) -> Path:
    """TS-CAM's layer for a CNN, for a cat and the moon, with weights drawn by the seed."""
    features = backbone.trace(torch.zeros(1, 3, *backbone.input_hw), Needs(features=(-1,))).features[-1]
    config = HeadConfig(
        "ts_cam", kind, (("cat",), ("moon",)), features.shape[1], backbone.embedding_size, backbone.logit_scale,
        backbone.name, "cnn", backbone.weights_id, start="random",
    )  # type: ignore[arg-type]  # fmt: skip
    save_head(path, seeded(lambda: TsCamHead(config), seed), tower_fingerprint(backbone))
    return path


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


@functools.cache
def some_direction(text: str, size: int) -> Tensor:
    """`[D]` drawn from the text's characters: once, as each localizer asks for the whole bank of names."""
    return F.normalize(torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(text.encode()))), dim=0)


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
            rows.append(some_direction(text, self.size) if word is None else self.planted[word])
        return torch.stack(rows)


class TinyCnn(ConvolutionalBackbone):
    """Two stages of stride 2 and one of stride 1, then the pool of one kind."""

    stride = SIDE
    middle_stage = -3  # twice as fine as the last
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
        self.pool_layer = pool
        self.pooling = "attention" if isinstance(pool, AttentionPool) else "global average"
        self.texts = ColourText(size)

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
        return self.project_normed(self.ln_1(x))

    def project_normed(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, d = normed.shape
        qkv = self.qkv(normed).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]  # each [B, H, 1+N, d/H]

    def merge(self, heads: Tensor) -> Tensor:
        return self.out(heads.transpose(1, 2).flatten(2))  # [B, 1+N, d]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(x)
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # [B, H, 1+N, 1+N]
        x = x + self.merge(attention @ v)
        return x + self.mlp(self.ln_2(x)), attention


class BlockView(BlockAdapter):
    """How the seam sees a `Block`."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.scale = (block.out.in_features // block.heads) ** -0.5

    def attention_input(self, x: Tensor) -> Tensor:
        return self.block.ln_1(x)

    def project(self, normed: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.block.project_normed(normed)

    def attention_branch(self, x: Tensor, gathered: Tensor) -> Tensor:
        return self.block.merge(gathered)

    def mlp_hidden(self, x: Tensor) -> Tensor:
        return self.block.mlp(self.block.ln_2(x))


class TinyVit(TransformerBackbone):
    """Two blocks with a class token, on a non-square grid."""

    stride = SIDE
    logit_scale = 20.0

    def __init__(self, name: str, grid: tuple[int, int], width: int = 16, heads: int = 2, size: int = 10) -> None:
        blocks = nn.ModuleList([Block(width, heads) for _ in range(2)])
        super().__init__([BlockView(block) for block in blocks], 1, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.name, self.embedding_size, self.learnt_grid, self.blocks = name, size, grid, blocks
        self.input_hw = (grid[0] * SIDE, grid[1] * SIDE)
        self.patch = nn.Conv2d(3, width, SIDE, stride=SIDE)
        self.class_token = nn.Parameter(torch.randn(width))
        self.positions = nn.Parameter(0.1 * torch.randn(1 + grid[0] * grid[1], width))
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
            last.qkv.weight[width + 1 : width + 4, :3] += 2 * torch.eye(3)  # patches of a colour have like keys
        self.texts = ColourText(size)

    def embed(self, images: Tensor) -> Tensor:
        patches = self.patch(images)  # [B, d, h, w]
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, d]
        tokens = torch.cat([self.class_token.expand(len(images), 1, -1), patches], dim=1)  # [B, 1+N, d]
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        return tokens + resize_positions(self.positions, 1, self.learnt_grid, grid)

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.ln_post(tokens[:, 0]) @ self.projection, None

    @property
    def last_norm(self) -> nn.LayerNorm:
        return self.ln_post

    def read_normed(self, normed: Tensor) -> Tensor:
        return normed @ self.projection

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self.texts(texts)


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


class Counting:
    """A backbone that counts its traces, the images that go through `encode_image`, and the largest batch of them."""

    def __init__(self, backbone: Any) -> None:
        self.backbone, self.traces, self.images, self.largest = backbone, 0, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def trace(self, images: Tensor, needs: Needs) -> Any:
        self.traces += 1
        return self.backbone.trace(images, needs)

    def encode_image(self, images: Tensor) -> Tensor:
        self.images += len(images)
        self.largest = max(self.largest, len(images))
        return self.backbone.encode_image(images)


def context(backbone: Any, images: Tensor, texts: Sequence[str], needs: Needs, **kwargs: Any) -> Context:
    """A `Context` with the same texts for every image."""
    text = backbone.encode_text(texts)[None].expand(len(images), -1, -1)  # [B, P, D]
    return Context(lambda: images, text=text, trace=backbone.trace(images, needs), backbone=backbone, **kwargs)


def raw_maps(
    name: str,
    backbone: Any,
    images: Tensor,
    text: Tensor,
    given: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Tensor:
    """A method's raw maps `[B, P, h, w]` of texts `[P, D]`, the same for every image; `given` to its `Context`."""
    method = methods.get(name)
    text = text[None].expand(len(images), -1, -1)  # [B, P, D]
    ctx = Context(lambda: images, text, backbone.trace(images, method.needs(**options)), backbone, **given)
    return method.function(ctx, **options)


def give_function(localizer: Any, function: Any, **facts: Any) -> None:
    """Lets a localizer's method compute something else, and changes other facts of it."""
    task = localizer._task
    localizer._task = replace(task, method=replace(task.method, function=function, **facts))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As a program may have set it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
