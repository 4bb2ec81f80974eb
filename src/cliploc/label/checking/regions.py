"""Reads the labelled boxes of one picture: one pass of the picture, one of each box with some of what is around it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from cliploc.find.threads import torch_modes
from cliploc.towers.tower import Backbone, Needs, Trace
from cliploc.values import Floats

WHOLE = 2.0  # the picture's side, in the tower's own inputs; a box's is 1
AROUND = 1.5  # a box is seen in a square of so many of its longer sides
STRIP = 0.25  # of a box's side: along each edge, a strip inside and one outside
CORE = 1 / 3  # from each edge
BATCH = 16  # boxes at once
LEAST_SIDE = 4.0  # pixels of what a box is seen in


def read_boxes(backbone: Backbone, image: Image.Image, xyxy: Floats, *, whole: bool = True) -> tuple[Floats, Floats]:
    """Reads boxes `[n, 4]` of an upright RGB picture; without `whole` their own passes only, as for planted boxes.

    Returns features `[n, 2D]` of the box's own pass and of the picture's, each of unit length (`[n, D]` without it), and
    `[n, E]` how what is inside differs from what is around, with the log area first.
    """
    size, stage = np.array(image.size * 2, float), backbone.middle_stage
    inside, edges = [], []
    for start in range(0, len(xyxy), BATCH):
        boxes = xyxy[start : start + BATCH]
        squares = [square_around(box, *image.size) for box in boxes]
        trace, dense = seen(backbone, [resized(image, backbone.input_hw, square) for square in squares], (-1, stage))
        middle = trace.features[stage].float().cpu().numpy()  # [B, C, h, w]
        for box, square, *maps in zip(boxes, squares, dense, middle, strict=True):
            within = (box - square[[0, 1, 0, 1]]) / np.tile(square[2:] - square[:2], 2)
            inside.append(unit(means(maps[0], within[None])[0]))
            share = np.prod((box[2:] - box[:2]) / size[:2])
            edges.append(np.concatenate([[np.log(max(share, 1e-9))], *(edge_features(one, within) for one in maps)]))
    features = np.array(inside)
    if whole:
        height, width = (round(WHOLE * side) for side in backbone.input_hw)
        _, dense = seen(backbone, [resized(image, (height, width))], (-1,))
        features = np.hstack([features, unit(means(dense[0], xyxy / size))])
    return features, np.array(edges)


def resized(image: Image.Image, hw: tuple[int, int], part: Floats | None = None) -> Image.Image:
    """A picture, or a part of it, in the size of an input."""
    box = None if part is None else (float(part[0]), float(part[1]), float(part[2]), float(part[3]))
    return image.resize(hw[::-1], Image.Resampling.BICUBIC, box)


def seen(backbone: Backbone, images: list[Image.Image], stages: tuple[int, ...]) -> tuple[Trace, Floats]:
    """One pass: the trace, and each place's reading in the joint space `[B, D, h, w]`."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    with torch_modes(backbone.device):
        normal = backbone.normalize(pixels.to(backbone.device).float().div_(255))
        trace = backbone.trace(normal, Needs(features=stages, dense=int(backbone.kind == "vit")))
        return trace, backbone.dense(trace).float().cpu().numpy().astype(np.float64)


def square_around(box: Floats, width: int, height: int) -> Floats:
    """The square about a box, moved into the picture; less where that is narrower."""
    side = max(LEAST_SIDE, AROUND * float(np.max(box[2:] - box[:2])))
    size = np.minimum([side, side], [width, height])
    start = np.clip((box[:2] + box[2:] - size) / 2, 0, np.array([width, height]) - size)
    return np.concatenate([start, start + size])


def edge_features(places: Floats, box: Floats) -> Floats:
    """How alike places `[C, h, w]` are to the inside of a box (0–1) rather than to the outside: 14 means.

    Of the inside, its core, and along the four edges the steps from outside to inside, the strips outside and those
    inside, each sorted, so that mirroring changes nothing.
    """
    flat = places / np.maximum(np.linalg.norm(places, axis=0), 1e-6)
    inside, size = means(flat, box[None])[0], box[2:] - box[:2]
    share = min(float(np.prod(size)), 1.0)
    outside = flat.mean(axis=(1, 2)) - share * inside  # of the outside's mean only the direction counts
    likeness = np.tensordot(inside - outside / max(1 - share, 0.05), flat, axes=1)[None]  # [1, h, w]
    (x0, y0, x1, y1), (a, b) = box, STRIP * size
    outer = np.array([(x0 - a, y0, x0, y1), (x1, y0, x1 + a, y1), (x0, y0 - b, x1, y0), (x0, y1, x1, y1 + b)])
    inner = np.array([(x0, y0, x0 + a, y1), (x1 - a, y0, x1, y1), (x0, y0, x1, y0 + b), (x0, y1 - b, x1, y1)])
    core = box + CORE * np.concatenate([size, -size])
    read = means(likeness, np.vstack([box, core, outer, inner]))[:, 0]
    of_inner, there = read[6:], (np.minimum(outer[:, 2:], 1) - np.maximum(outer[:, :2], 0) > 1e-3).all(axis=1)
    if not there.any():  # the box is the picture
        return np.concatenate([read[:2], np.zeros(8), np.sort(of_inner)])
    steps, around = (np.where(there, values, values[there].mean()) for values in (of_inner - read[2:6], read[2:6]))
    return np.concatenate([read[:2], np.sort(steps), np.sort(around), np.sort(of_inner)])


def means(places: Floats, boxes: Floats) -> Floats:
    """The means `[n, C]` of places `[C, h, w]` in boxes `[n, 4]` in 0–1; cells count in part."""
    _, h, w = places.shape
    across, down = (overlaps(boxes[:, i], boxes[:, i + 2], cells) for i, cells in ((0, w), (1, h)))
    return np.asarray(np.einsum("chw,nh,nw->nc", places, down, across, optimize=True))


def overlaps(low: Floats, high: Floats, cells: int) -> Floats:
    """The share `[n, cells]` of what lies between two ends (0–1) in each cell; at least that of the nearest."""
    edges = np.arange(cells)
    low, high = np.clip(low * cells, 0, cells - 1e-3), np.clip(high * cells, 1e-3, cells)
    high = np.maximum(high, low + 1e-3)[:, None]
    covered = np.clip(np.minimum(edges + 1, high) - np.maximum(edges, low[:, None]), 0, None)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True))


def unit(values: Floats) -> Floats:
    """Of unit length along the last axis."""
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-9))


def jittered(rng: np.random.Generator, box: Floats, size_wh: tuple[int, int]) -> Floats | None:
    """A badly placed copy of a box, IoU 0.15–0.5 with it; None where none was found."""
    size, limit = box[2:] - box[:2], np.array(size_wh)
    for _ in range(200):
        centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.8, 0.8, 2) * size
        half = size * np.exp(rng.uniform(-0.7, 0.7, 2)) / 2
        moved = np.concatenate([np.maximum(centre - half, 0), np.minimum(centre + half, limit)])
        sides = moved[2:] - moved[:2]
        shared = np.clip(np.minimum(moved[2:], box[2:]) - np.maximum(moved[:2], box[:2]), 0, None).prod()
        if sides.min() >= 2 and 0.15 <= shared / (size.prod() + sides.prod() - shared) <= 0.5:
            return np.asarray(moved)
    return None
