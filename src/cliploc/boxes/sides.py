"""How far the sides of drafts lie from where people put them, and what the map across a side tells of it."""

from collections.abc import Iterable

import numpy as np

from cliploc.images.geometry import Frame, iou_matrix
from cliploc.values import FloatArray, Floats

ALIKE = 0.4  # IoU from which a draft is compared with a box
USUAL = 0.1  # standard deviation of offsets
FARTHEST = 0.3  # that a side counts as away, and is moved, as a share of the draft's size
ACROSS, ALONG = np.linspace(-0.4, 0.4, 9), np.linspace(0.1, 0.9, 9)  # places at a side, as shares of the draft's size
ROOM, TOUCHING = 0.4, 0.02  # distances from the edge of the picture, as shares of the draft's size
WEIGHT = 0.03  # standard deviation of what one reading says before anything is reviewed; docs/studies/teaching.md
READINGS = len(ACROSS) + 2
LENGTH = 4 + READINGS  # of what is learnt: an offset for each side, and a weight for each reading


def readings(boxes: FloatArray, heat: FloatArray, frame: Frame) -> Floats:
    """`[n, 4, READINGS]` of each side: the map `[H, W]` across it, outside first, and its room to the edge."""
    across, along = np.broadcast_arrays(ACROSS[:, None], ALONG)
    pairs = ((across, along), (along, across), (1 - across, along), (along, 1 - across))  # left, top, right, bottom
    places = np.array([np.stack(pair, axis=-1) for pair in pairs])  # [4, across, along, 2] in a box from 0 to 1
    visible = np.array(frame.visible_xyxy)
    on_map = frame.to_input(boxes)  # [n, 4]; boxes are in the picture's pixels, the map is over the frame's input
    size = (on_map[:, 2:] - on_map[:, :2]).clip(1)
    points = on_map[:, None, None, None, :2] + places * size[:, None, None, None]
    x, y = np.moveaxis(np.floor(points).astype(int).clip(visible[:2], visible[2:] - 1), -1, 0)
    room = np.abs(visible - on_map) / np.tile(size, 2)  # [n, 4]
    read = (heat[y, x].mean(axis=3), room.clip(0, ROOM)[..., None], (room < TOUCHING)[..., None])
    return np.concatenate(read, axis=2, dtype=np.float64)


def offsets(drafts: FloatArray, boxes: FloatArray) -> tuple[Floats, Floats]:
    """`[n, 4]` how far inwards each side of a draft must move to its box, as a share of the draft's size.

    And the IoU `[n]` of each draft with that box.

    Example:
        >>> away, iou = offsets(np.array([[0, 0, 10, 10]]), np.array([[1, 0, 9, 11]]))
        >>> away.round(2).tolist(), iou.round(2).tolist()
        ([[0.1, 0.0, 0.1, -0.1]], [0.74])
    """
    if not len(boxes):
        return np.zeros((len(drafts), 4)), np.zeros(len(drafts))
    iou = iou_matrix(drafts, boxes)  # [n, m]
    size = np.tile(drafts[:, 2:] - drafts[:, :2], 2)  # [n, 4]
    away = (boxes[iou.argmax(axis=1)] - drafts) / size * np.array([1, 1, -1, -1])
    return away.clip(-FARTHEST, FARTHEST).astype(np.float64), iou.max(axis=1).astype(np.float64)


def common(moves: Floats) -> Floats:
    """`[4]` what offsets `[n, 4]` have in common: their mean m, less the more it is chance."""
    count = len(moves)
    if count < 2:
        return np.zeros(4)
    mean = moves.mean(axis=0)
    # m · max(0, 1 − 2 e² / m²), e the mean's standard error, in which `USUAL` counts as two offsets more.
    error = (((moves - mean) ** 2).sum(axis=0) + 2 * USUAL**2) / (count * (count + 1))  # squared
    shrunk: Floats = mean * (1 - 2 * error / np.maximum(mean**2, 1e-12)).clip(0)
    return shrunk


def learnt(pictures: Iterable[tuple[Floats, Floats]]) -> Floats:
    """`[LENGTH]` from the offsets `[n, 4]` and `readings` of the drafts of several pictures: what `moved` takes."""
    # What sides have in common first, then a ridge regression of what is left on the readings, the same for all sides.
    # Its penalty is the variance of what is left, over that of a weight.
    some = [*pictures]
    away = np.concatenate([np.zeros((0, 4)), *(shifts for shifts, _ in some)])
    read = np.concatenate([np.zeros((0, 4, READINGS)), *(read for _, read in some)])
    if len(away) < 2:
        return np.zeros(LENGTH)
    usual, mean = common(away), read.mean(axis=(0, 1))
    x, y = (read - mean).reshape(-1, READINGS), (away - usual).reshape(-1)
    noise = (y @ y + 8 * USUAL**2) / (len(y) + 8)  # with two drafts more that are `USUAL`
    weights = np.linalg.solve(x.T @ x + noise / WEIGHT**2 * np.eye(READINGS), x.T @ y)
    return np.concatenate([usual - mean @ weights, weights])


def moved(boxes: FloatArray, sides: Floats | FloatArray, read: Floats, frame: Frame) -> FloatArray:
    """Boxes `[n, 4]` with their sides moved as `learnt` has it, by their `readings`, inside the picture."""
    by = (sides[:4] + read @ sides[4:]).clip(-FARTHEST, FARTHEST)  # [n, 4]
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    height, width = frame.original_hw
    placed = boxes + by * size * np.array([1, 1, -1, -1])
    new_sides: FloatArray = placed.clip(0, np.array([width, height] * 2)).astype(np.float32)
    return new_sides
