"""The proof that training helps: in scenes of two things a head, taught on whole pictures, boxes the named one.

A class is a pair of colour and shape. A text's direction is the sum of its colour's and its shape's, so that a name can
be asked for whose pair nobody has seen together. The tower is a small ViT with random weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from cliploc import Localizer
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.evaluate.train.train_settings import TrainSettings
from cliploc.evaluate.train.trainer import read_folder, train
from cliploc.images.geometry import iou_matrix
from tests.tiny import TinyVit, seeded

CELL, CELLS = 8, 8  # pixels of a patch, patches of a side
SIZE = CELL * CELLS
COLOURS = {
    "red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40),
    "pink": (235, 110, 200),
}  # fmt: skip
SHAPES = {"square": "rectangle", "disc": "ellipse", "arc": "chord", "slice": "pieslice"}  # → what Pillow draws
PAIRS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
UNSEEN = ("red disc", "green slice", "blue square", "yellow arc", "pink square")
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)
TAUS = [0.05 * step for step in range(4, 18)]
Scene = tuple[str, Image.Image, tuple[int, int, int, int]]  # what is asked for, the picture, its box


class ShapeVit(TinyVit):
    """Texts are sums of a direction for each of their words."""

    stride, logit_scale = CELL, 10.0

    def __init__(self) -> None:
        super().__init__("shape-vit", (CELLS, CELLS), width=48, heads=4, size=16)
        with torch.no_grad():  # nothing planted
            for parameter in self.parameters():
                torch.nn.init.normal_(parameter, std=0.15)
        self.patch = torch.nn.Conv2d(3, 48, CELL, stride=CELL)
        self.input_hw = (SIZE, SIZE)
        words = (*COLOURS, *SHAPES)
        directions = torch.linalg.qr(torch.randn(16, len(words))).Q.T  # orthonormal
        self.words = dict(zip(words, directions, strict=True))

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        known = [[self.words[word] for word in text.strip(".").split() if word in self.words] for text in texts]
        return F.normalize(torch.stack([sum(rows, torch.zeros(16)) for rows in known]), dim=-1)


def scene(pairs: Sequence[str], random: np.random.Generator) -> Scene:
    """Things side by side amid noise and coloured specks; the first one is asked for."""
    pixels = random.integers(60, 200, (SIZE, SIZE, 1), dtype=np.uint8).repeat(3, axis=2)
    image = Image.fromarray(pixels)
    draw, boxes = ImageDraw.Draw(image), []
    for _ in range(6):
        x, y, side = random.integers((0, 0, 2), (SIZE - 4, SIZE - 4, 5)).tolist()
        draw.rectangle((x, y, x + side, y + side), fill=list(COLOURS.values())[int(random.integers(len(COLOURS)))])
    places = random.permutation(2)
    for pair, place in zip(pairs, places, strict=False):
        (colour, shape), side = pair.split(), int(random.integers(20, 31))
        x, y = place * SIZE // 2 + int(random.integers(0, SIZE // 2 - side + 1)), int(random.integers(0, SIZE - side))
        angles = () if shape in ("square", "disc") else (-160, 40)
        getattr(draw, SHAPES[shape])((x, y, x + side - 1, y + side - 1), *angles, fill=COLOURS[colour])
        boxes.append((x, y, x + side, y + side))
    return pairs[0], image, boxes[0]


def gt_known(localizer: Localizer, scenes: Sequence[Scene]) -> float:
    hits = np.zeros(len(TAUS))
    found = localizer.stream([picture for _, picture, _ in scenes], [[pair] for pair, _, _ in scenes])
    for (_, _, box), result in zip(scenes, found, strict=True):
        for index, tau in enumerate(TAUS):
            boxes = boxes_from_maps(result.maps, BoxRule(threshold=tau, components="largest")).xyxy
            hits[index] += len(boxes) > 0 and iou_matrix(boxes, np.array([box], dtype=float)).max() >= 0.5
    return float(hits.max()) / len(scenes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("shapes"), np.random.default_rng(1)
    for pair in SEEN:
        (folder / "root" / pair).mkdir(parents=True)
        for number in range(36):
            scene([pair], random)[1].save(folder / "root" / pair / f"{number:03d}.png")
    return folder


@pytest.mark.parametrize("kind", ["closed", "open"])
@pytest.mark.parametrize(("method", "lr"), [("ts_cam", 0.02), ("lctr", 1e-3)])
def test_training_raises_gt_known(folder: Path, method: str, kind: str, lr: float) -> None:
    backbone, random = seeded(ShapeVit, 0).eval().requires_grad_(False), np.random.default_rng(5)
    settings: dict[str, Any] = {"method": method, "kind": kind, "lr": lr, "start": "random"}
    chosen = TrainSettings(epochs=10, batch_size=32, held_out=0.05, patience=10, **settings)
    out = folder / f"{method}-{kind}.safetensors"
    train(backbone, read_folder(folder / "root"), out, chosen, features=folder / "features")
    for pairs in (SEEN * 3, UNSEEN * 9)[: 1 if kind == "closed" else 2]:
        others = random.choice(PAIRS, len(pairs))
        scenes = [scene([pair, str(other)], random) for pair, other in zip(pairs, others, strict=True)]
        before, after = (gt_known(Localizer(backbone, method=method, head=head), scenes) for head in (None, out))
        print(f"{method} {kind}, {'unseen' if pairs[0] in UNSEEN else 'seen'} pairs: {before:.2f} → {after:.2f}")
        assert after > max(0.5, before + 0.3)
