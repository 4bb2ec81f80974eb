"""Reads the labelled boxes of one picture: one pass of the picture, one of each box with some of what is around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from cliploc.find.running import torch_modes
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer
from cliploc.towers.tower import Backbone, Needs, Trace
from cliploc.values import Boxes, Floats

OF_PICTURE, OF_BOX = 1.43, 0.86  # sides of what is read, in the tower's own inputs
AROUND = 1.5  # a box is seen in a square of so many of its longer sides
STRIP = 0.25  # of a box's side: along each edge, a strip inside and one outside
CORE = 1 / 3  # from each edge
BATCH = 16  # boxes at once
LEAST_SCORE = 0.2  # of a draft; below, most are none
LEAST_SIDE = 4.0  # pixels of what a box is seen in


def found_in(localizer: Localizer, image: Image.Image, names: Sequence[str]) -> Boxes:
    """The drafts of a picture that are likely enough to miss a label."""
    [result] = localizer.stream([image], names, absent_maps=False, keep_maps=False)
    boxes = result.visible_boxes
    return boxes.where(boxes.score >= LEAST_SCORE)


def read_boxes(
    backbone: Backbone, image: Image.Image, xyxy: Floats, *, with_picture: bool = True
) -> tuple[Floats, Floats]:
    """`[n, 2D]` of boxes in passes of their own and, with `with_picture`, in one of the picture; `[n, E]` of edges."""
    size, stage, (h, w) = np.array(image.size * 2, float), backbone.middle_stage, _scaled(backbone, OF_BOX)
    inside, edges = [], []
    for start in range(0, len(xyxy), BATCH):
        boxes = xyxy[start : start + BATCH]
        squares = [np.concatenate(square_around(box, image.size, LEAST_SIDE, AROUND)) for box in boxes]
        inputs = [image.resize((w, h), Image.Resampling.BICUBIC, tuple(square.tolist())) for square in squares]
        trace, dense = seen(backbone, inputs, (-1, stage))
        middle = trace.features[stage].float().cpu().numpy()  # [B, C, h, w]
        for box, square, *maps in zip(boxes, squares, dense, middle, strict=True):
            within = (box - square[[0, 1, 0, 1]]) / np.tile(square[2:] - square[:2], 2)
            inside.append(unit(means(maps[0], within[None])[0]))
            share = np.prod((box[2:] - box[:2]) / size[:2])
            edges.append(np.concatenate([[np.log(max(share, 1e-9))], *(edge_features(one, within) for one in maps)]))
    features = np.array(inside)
    if with_picture:
        h, w = _scaled(backbone, OF_PICTURE)
        _, dense = seen(backbone, [image.resize((w, h), Image.Resampling.BICUBIC)], (-1,))
        features = np.hstack([features, unit(means(dense[0], xyxy / size))])
    return features, np.array(edges)


def _scaled(backbone: Backbone, scale: float) -> tuple[int, int]:
    """Height and width of an input, in whole cells of the tower's grid."""
    height, width = (max(1, round(side * scale / backbone.stride)) * backbone.stride for side in backbone.input_hw)
    return height, width


def seen(backbone: Backbone, images: list[Image.Image], stages: tuple[int, ...]) -> tuple[Trace, Floats]:
    """One pass: the trace, and each place's reading in the joint space `[B, D, h, w]`."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    with torch_modes(backbone.device):
        normal = backbone.normalize(pixels.to(backbone.device).float().div_(255))
        trace = backbone.trace(normal, Needs(features=stages, dense=int(backbone.kind == "vit")))
        return trace, backbone.dense(trace).float().cpu().numpy().astype(np.float64)


def square_around(box: Floats, size_wh: tuple[int, int], least: float, around: float) -> tuple[Floats, Floats]:
    """Two corners of the square about a box, moved into the picture; less where that is narrower."""
    size = np.minimum(max(least, around * float(np.max(box[2:] - box[:2]))), size_wh)
    start = np.clip((box[:2] + box[2:] - size) / 2, 0, np.array(size_wh) - size)
    return start, start + size


def edge_features(places: Floats, box: Floats) -> Floats:
    """How alike places `[C, h, w]` are to a box's inside (0–1) rather than to its outside: means, sorted by edges."""
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
    of_inner, exists = read[6:], (np.minimum(outer[:, 2:], 1) - np.maximum(outer[:, :2], 0) > 1e-3).all(axis=1)
    if not exists.any():  # the box is the picture
        return np.concatenate([read[:2], np.zeros(8), np.sort(of_inner)])
    steps, around = (np.where(exists, values, values[exists].mean()) for values in (of_inner - read[2:6], read[2:6]))
    return np.concatenate([read[:2], np.sort(steps), np.sort(around), np.sort(of_inner)])


def means(places: Floats, boxes: Floats) -> Floats:
    """The means `[n, C]` of places `[C, h, w]` in boxes `[n, 4]` in 0–1; cells count in part, the nearest at least."""
    shares = []
    for axis, cells in enumerate(places.shape[:0:-1]):
        low = np.clip(boxes[:, axis] * cells, 0, cells - 1e-3)[:, None]
        high = np.maximum(np.clip(boxes[:, axis + 2] * cells, 1e-3, cells)[:, None], low + 1e-3)
        covered = np.clip(np.minimum(np.arange(cells) + 1, high) - np.maximum(np.arange(cells), low), 0, None)
        shares.append(covered / covered.sum(axis=1, keepdims=True))
    return np.asarray(np.einsum("chw,nw,nh->nc", places, *shares, optimize=True))


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
        if (moved[2:] - moved[:2]).min() >= 2 and 0.15 <= iou_matrix(moved, box)[0, 0] <= 0.5:
            return np.asarray(moved)
    return None
