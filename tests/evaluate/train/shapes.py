"""Coloured shapes in scenes of clutter, and a small ViT with random weights, for a training that takes seconds.

A class is a pair of colour and shape. A text's direction is the sum of its colour's and its shape's, so that a name can
be asked for whose pair nobody has seen together.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.towers._transformer import TransformerBackbone
from tests.tiny import Block, BlockView, TinyVit, seeded

CELL, CELLS = 8, 8  # pixels of a patch, patches of a side
SIZE = CELL * CELLS
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "pink": (235, 110, 200),
}
Box = tuple[int, int, int, int]
SHAPES = ("square", "disc", "triangle", "cross")
PAIRS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
UNSEEN = ("red disc", "green cross", "blue square", "yellow triangle", "pink square")
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)


def scene(pair: str, random: np.random.Generator, other: str = "") -> tuple[Image.Image, Box]:
    """One thing amid grey clutter and coloured specks, and its box; with `other` a second one, which has no box."""
    small = random.integers(60, 200, (6, 6, 1), dtype=np.uint8).repeat(3, axis=2)
    image = Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(10):
        grey = int(random.integers(0, 255))
        draw.line(random.integers(0, SIZE, 4).tolist(), fill=(grey,) * 3, width=int(random.integers(1, 3)))
    for _ in range(6):
        x, y, side = random.integers((0, 0, 2), (SIZE - 4, SIZE - 4, 5)).tolist()
        draw.rectangle((x, y, x + side, y + side), fill=list(COLOURS.values())[int(random.integers(len(COLOURS)))])
    box = place(random, [])
    if other:
        draw_thing(draw, other, place(random, [box]))
    draw_thing(draw, pair, box)
    noise = random.normal(0, 8, (SIZE, SIZE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)), box


def place(random: np.random.Generator, taken: Sequence[Box]) -> Box:
    """A square place that overlaps none that is taken."""
    while True:
        side = int(random.integers(20, 31))
        x, y = random.integers(0, SIZE - side + 1, 2).tolist()
        if all(x + side <= a or y + side <= b or x >= c or y >= d for a, b, c, d in taken):
            return x, y, x + side, y + side


def draw_thing(draw: ImageDraw.ImageDraw, pair: str, box: Box) -> None:
    (colour, shape), (x, y) = pair.split(), box[:2]
    right, bottom, fill = box[2] - 1, box[3] - 1, COLOURS[colour]
    if shape == "square":
        draw.rectangle((x, y, right, bottom), fill=fill)
    elif shape == "disc":
        draw.ellipse((x, y, right, bottom), fill=fill)
    elif shape == "triangle":
        draw.polygon((((x + right) // 2, y), (right, bottom), (x, bottom)), fill=fill)
    else:
        third = (right - x) // 3
        draw.rectangle((x + third, y, right - third, bottom), fill=fill)
        draw.rectangle((x, y + third, right, bottom - third), fill=fill)


def write_folder(root: Path, pairs: Sequence[str], each: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for pair in pairs:
        (root / pair).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            scene(pair, random)[0].save(root / pair / f"{number:03d}.png")
    return root


class ShapeVit(TinyVit):
    """With nothing planted; texts are sums of a direction for each of their words."""

    stride = CELL
    logit_scale = 10.0
    input_hw = (SIZE, SIZE)
    embedding_size = 16
    name = "shape-vit"
    learnt_grid = (CELLS, CELLS)

    def __init__(self, width: int = 48, blocks: int = 2) -> None:
        modules = nn.ModuleList([Block(width, 4) for _ in range(blocks)])
        TransformerBackbone.__init__(self, [BlockView(block) for block in modules], 1, (0.5,) * 3, (0.25,) * 3)
        self.blocks = modules
        self.patch = nn.Conv2d(3, width, CELL, stride=CELL)
        self.class_token = nn.Parameter(torch.randn(width) * 0.1)
        self.positions = nn.Parameter(torch.randn(1 + CELLS**2, width) * 0.1)
        self.ln_post = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.randn(width, self.embedding_size) / width**0.5)
        words = (*COLOURS, *SHAPES)
        directions = torch.linalg.qr(torch.randn(self.embedding_size, len(words))).Q.T  # orthonormal
        self.words = dict(zip(words, directions, strict=True))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        known = [[self.words[word] for word in text.strip(".").split() if word in self.words] for text in texts]
        return F.normalize(torch.stack([sum(rows, torch.zeros(self.embedding_size)) for rows in known]), dim=-1)


def random_tower(seed: int = 0) -> ShapeVit:
    """Nobody has taught it anything; its tokens tell colours and forms apart as random features do."""
    return seeded(ShapeVit, seed).eval().requires_grad_(False)
