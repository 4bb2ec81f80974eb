"""Reads the boxes of one picture: one pass of the picture, and one of each small box with some of what is around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cliploc.find.running import torch_modes
from cliploc.find.second_look import mean_in
from cliploc.images.geometry import Frame, iou_matrix
from cliploc.localizer import Localizer
from cliploc.towers.tower import Backbone, Needs
from cliploc.values import FloatArray, Floats

OF_PICTURE, OF_BOX = 1.43, 0.72  # sides of what is read, in the tower's own inputs
LARGE = 0.3  # of the picture's side: from here on the picture's pass shows a box as large as one of its own would
AROUND = 1.5  # a small box is seen in a square of so many of its longer sides
STRIP = 0.25  # of a box's side: along each edge, a strip inside and one outside
CORE = 1 / 3  # from each edge
BATCH = 16  # boxes at once
TRIES = 200  # to move a box
LEAST_SCORE = 0.2  # of a draft; below, most are none
MOST_DRAFTS = 12  # of a picture
LEAST_SIDE = 4.0  # pixels of what a box is seen in
UNIT = Frame.fit("squash", (1, 1), (1, 1))  # boxes in 0–1


class Reading(NamedTuple):
    """What was read in n boxes of a picture, m moved copies of them, and k drafts; D and E numbers of each."""

    features: npt.NDArray[np.float16]  # [n, D]
    edges: FloatArray  # [n, E]
    moved: FloatArray  # [m, E] edges of the copies
    owners: npt.NDArray[np.int64]  # [m] which box each copy is of
    drafts: FloatArray  # [k, 6] x0, y0, x1, y1, the number of the name, and the score
    of_drafts: npt.NDArray[np.float16]  # [k, D]


def read_picture(
    localizer: Localizer, image: Image.Image, xyxy: Floats, copied: Sequence[int], names: Sequence[str]
) -> Reading:
    """Reads boxes, moved copies of some of them, and the drafts of names."""
    drafts = np.zeros((0, 6), np.float32)
    if names:
        [result] = localizer.stream([image], names, absent_maps=False, keep_maps=False)
        boxes = result.visible_boxes
        drafts = np.column_stack([boxes.xyxy, boxes.label, boxes.score]).astype(np.float32)
        drafts = drafts[np.argsort(-boxes.score, kind="stable")[: min(MOST_DRAFTS, (boxes.score >= LEAST_SCORE).sum())]]
    rng = np.random.default_rng(0)
    copies = [jittered(rng, xyxy[i], image.size) for i in copied]
    owners = np.repeat(np.array(copied, np.int64), [len(copy) for copy in copies])
    n, end = 1 + len(xyxy), 1 + len(xyxy) + len(owners)
    every = np.concatenate([[(0, 0, *image.size)], xyxy, *copies, drafts[:, :4]])  # the picture, so that there is one
    features, edges = read_boxes(localizer.backbone, image, every, end)
    half = features.astype(np.float16)
    return Reading(half[1:n], edges[1:n], edges[n:], owners, drafts, half[end:])


def read_boxes(backbone: Backbone, image: Image.Image, xyxy: Floats, own: int) -> tuple[FloatArray, FloatArray]:
    """`[n, D]` of what is in boxes; of the first `own`, which have own passes if they are small, edges `[own, E]`."""
    squares = np.tile([0.0, 0.0, *image.size], (len(xyxy), 1))
    within = xyxy / squares[:, [2, 3, 2, 3]]
    sides = within[:, 2:] - within[:, :2]
    is_small = (sides.max(axis=1) < LARGE) & (np.arange(len(xyxy)) < own)
    small, large = np.flatnonzero(is_small), np.flatnonzero(~is_small)
    for i in small:
        squares[i] = square_around(xyxy[i], image.size, LEAST_SIDE, AROUND)
    whole = seen(backbone, image, [(0, 0, *image.size)], OF_PICTURE)
    parts = (small[start : start + BATCH] for start in range(0, len(small), BATCH))
    own_passes = ((some, seen(backbone, image, squares[some].tolist(), OF_BOX)) for some in parts)
    inside, edges = torch.zeros(len(xyxy), whole[0].shape[1]), dict[int, Floats]()
    for some, of_pass in chain([(large, whole)], own_passes):
        for i, *maps in zip(some, *(stage.expand(len(some), -1, -1, -1) for stage in of_pass), strict=True):
            start = squares[i, :2]
            box = (xyxy[i] - np.tile(start, 2)) / np.tile(squares[i, 2:] - start, 2)
            inside[i] = mean_in(maps[0], UNIT, box[None])[0]
            if i < own:
                area = np.log(max(sides[i].prod(), 1e-9))
                edges[i] = np.concatenate([[area], *(edge_features(stage, box) for stage in maps)])
    of_picture = mean_in(whole[0][0], UNIT, within)
    features = torch.cat([normalize(inside, dim=1), normalize(of_picture, dim=1)], dim=1)
    return features.numpy(), np.array([edges[i] for i in range(own)], np.float32)


def seen(
    backbone: Backbone, image: Image.Image, parts: Iterable[Sequence[float]], scale: float
) -> tuple[Tensor, Tensor]:
    """One pass of parts of a picture: places in the joint space `[B, D, h, w]`, and of the middle stage."""
    height, width = (max(1, round(side * scale / backbone.stride)) * backbone.stride for side in backbone.input_hw)
    resized = (image.resize((width, height), Image.Resampling.BICUBIC, (x0, y0, x1, y1)) for x0, y0, x1, y1 in parts)
    pixels = torch.from_numpy(np.stack([*map(np.asarray, resized)])).permute(0, 3, 1, 2)
    stage = backbone.middle_stage
    with torch_modes(backbone.device):
        normal = backbone.normalize(pixels.to(backbone.device).float().div_(255))
        trace = backbone.trace(normal, Needs(features=(-1, stage), dense=int(backbone.kind == "vit")))
        return backbone.dense(trace).float().cpu(), trace.features[stage].float().cpu()


def square_around(box: Floats, size_wh: tuple[int, int], least: float, around: float) -> Floats:
    """The square `[4]` about a box, moved into the picture; less where that is narrower."""
    size = np.minimum(max(least, around * float(np.max(box[2:] - box[:2]))), size_wh)
    start = np.clip((box[:2] + box[2:] - size) / 2, 0, np.array(size_wh) - size)
    return np.concatenate([start, start + size])


def edge_features(places: Tensor, box: Floats) -> Floats:
    """How alike places `[C, h, w]` are to a box's inside (0–1) rather than to its outside: means, sorted by edges."""
    flat = normalize(places, dim=0)
    inside, size = mean_in(flat, UNIT, box[None])[0], box[2:] - box[:2]
    share = min(float(np.prod(size)), 1.0)
    outside = flat.mean(dim=(1, 2)) - share * inside  # of the outside's mean only the direction counts
    likeness = torch.einsum("c,chw->hw", inside - outside / max(1 - share, 0.05), flat)[None]
    (x0, y0, x1, y1), (a, b) = box, STRIP * size
    outer = np.array([(x0 - a, y0, x0, y1), (x1, y0, x1 + a, y1), (x0, y0 - b, x1, y0), (x0, y1, x1, y1 + b)])
    inner = np.array([(x0, y0, x0 + a, y1), (x1 - a, y0, x1, y1), (x0, y0, x1, y0 + b), (x0, y1 - b, x1, y1)])
    core = box + CORE * np.concatenate([size, -size])
    read = mean_in(likeness, UNIT, np.vstack([box, core, outer, inner]))[:, 0].numpy()
    of_inner, exists = read[6:], (np.minimum(outer[:, 2:], 1) - np.maximum(outer[:, :2], 0) > 1e-3).all(axis=1)
    if not exists.any():  # the box is the picture
        return np.concatenate([read[:2], np.zeros(8), np.sort(of_inner)])
    steps, around = (np.where(exists, values, values[exists].mean()) for values in (of_inner - read[2:6], read[2:6]))
    return np.concatenate([read[:2], np.sort(steps), np.sort(around), np.sort(of_inner)])


def jittered(rng: np.random.Generator, box: Floats, size_wh: tuple[int, int]) -> Floats:
    """A badly placed copy of a box, IoU 0.15–0.5 with it: `[1, 4]`, or `[0, 4]` where none was found."""
    size = box[2:] - box[:2]
    centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.8, 0.8, (TRIES, 2)) * size
    half = size * np.exp(rng.uniform(-0.7, 0.7, (TRIES, 2))) / 2
    moved = np.hstack([np.maximum(centre - half, 0), np.minimum(centre + half, size_wh)])
    overlap, sides = iou_matrix(moved, box)[:, 0], moved[:, 2:] - moved[:, :2]
    return np.asarray(moved[(sides.min(axis=1) >= 2) & (overlap >= 0.15) & (overlap <= 0.5)][:1])
