"""CLIP-ES's random walk: heat moves between similar places, starting inside the map's own boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.boxes import BoxRule, boxes_from_maps

BOXES = BoxRule(threshold=0.4, min_area=0, nms_iou=None)  # the authors' threshold
ROUNDS = 3  # the authors'


def transition(affinity: Tensor) -> Tensor:
    """Transition matrices of affinities `[B, N, N]`: made doubly stochastic, symmetric, then squared."""
    balanced = sinkhorn(affinity)
    symmetrical = (balanced + balanced.transpose(1, 2)) / 2
    return symmetrical @ symmetrical


def sinkhorn(affinity: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Scales columns, then rows to a sum of 1, `rounds` times (Sinkhorn & Knopp 1967); `[B, N, N]`, above 0."""
    for _ in range(rounds):
        affinity = affinity / affinity.sum(dim=1, keepdim=True)
        affinity = affinity / affinity.sum(dim=2, keepdim=True)
    return affinity


def walk(transitions: Tensor, maps: Tensor) -> Tensor:
    """One walk, W · (box mask ⊙ map), for every map `[B, P, h, w]`; transitions W `[B, N, N]`."""
    inside = (maps * box_mask(maps)).flatten(2)  # [B, P, N]
    return torch.einsum("bnm,bpm->bpn", transitions, inside).view_as(maps)


def box_mask(maps: Tensor) -> Tensor:
    """Box masks `[B, P, h, w]`: 1 inside the boxes of each map's regions above 0.4 of its maximum, 0 outside."""
    flat = maps.flatten(0, 1)  # [B·P, h, w]
    boxes = boxes_from_maps(flat.cpu().numpy(), BOXES)
    mask = torch.zeros_like(flat)
    for index, (x0, y0, x1, y1) in zip(boxes.index.tolist(), boxes.xyxy.astype(int).tolist(), strict=True):
        mask[index, y0:y1, x0:x1] = 1
    return mask.view_as(maps)
