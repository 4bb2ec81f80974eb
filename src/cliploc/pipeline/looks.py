"""Looks: what the tower sees of pictures in one forward pass; and how the maps of several looks become one.

Every whole picture at one scale, and every set of windows, mirrored or not, is a view: it gives a map in 0–1 of the
whole picture. The picture's map is the mean of its views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.geometry import Frame, Mosaic
from cliploc.maps import min_max
from cliploc.pipeline.prepare import Prepared
from cliploc.tower import Trace

Wanted = list[list[bool]]  # for each picture and name, whether its map is to be made


@dataclass(frozen=True)
class Look:
    """One forward pass: whole pictures at one scale, or some of their windows.

    Attributes:
        pixels: of each, `[3, H, W]` uint8, not mirrored.
        frames: how each lies in its picture.
        owners: the place in the batch of the picture that each is of.
        flipped: whether the tower sees them mirrored.
        scale: which of the scales; None for windows.
        windows: which set of windows; None for whole pictures.
    """

    pixels: tuple[Tensor, ...]
    frames: tuple[Frame, ...]
    owners: tuple[int, ...]
    flipped: bool
    scale: int | None = None
    windows: int | None = None


LookMaps = tuple[Look, Tensor]  # with the maps `[n, P, h, w]` of one task on the tower's grid
View = list[LookMaps]  # the looks that make one map of each whole picture


def by_view(maps: Sequence[LookMaps]) -> list[View]:
    """Looks put together into views; the first look is in the first of them."""
    views: dict[tuple[int | None, int | None, bool], View] = {}
    for look, values in maps:
        views.setdefault((look.scale, look.windows, look.flipped), []).append((look, values))
    return list(views.values())


def on_input(view: View, batch: Sequence[Prepared], wanted: Wanted | None) -> Tensor:
    """A view's maps → `[B, P, H, W]` in 0–1 on the first scale's input; those not wanted are zero.

    A pixel's share of the work grows with the names, and most of them are in no picture.
    """
    first, raw = view[0]
    if first.windows is None and wanted is None:
        return min_max(_whole_on_input(raw, batch, first.frames))
    maps = raw.new_zeros(len(batch), raw.shape[1], *batch[0].frames[0].input_hw)
    for b, item in enumerate(batch):
        names = range(raw.shape[1]) if wanted is None else [p for p, there in enumerate(wanted[b]) if there]
        if not names:
            continue
        own = [(look, values, n) for look, values in view for n, owner in enumerate(look.owners) if owner == b]
        if not own:  # a picture too narrow for windows
            continue
        chosen = torch.stack([values[n, list(names)] for _, values, n in own])  # [windows or 1, names, h, w]
        frames = [look.frames[n] for look, _, n in own]
        if first.windows is None:
            placed = _whole_on_input(chosen, [item], frames)[0]
        else:
            placed = item.frames[0].stitch(frames, chosen)
        maps[b, list(names)] = min_max(placed)
    return maps


def sum_of(views: Sequence[View], batch: Sequence[Prepared], wanted: Wanted | None) -> Tensor:
    """The sum of what `on_input` makes of each view; held two at a time."""
    total = on_input(views[0], batch, wanted)
    for view in views[1:]:
        total = total + on_input(view, batch, wanted)
    return total


def not_flat(maps: Sequence[LookMaps], pictures: int) -> Tensor:
    """`[B, P]` bool: whether any look of a picture gave a map that says something."""
    some = torch.zeros(pictures, maps[0][1].shape[1], dtype=torch.bool, device=maps[0][1].device)
    for look, values in maps:
        says = values.amax(dim=(-2, -1)) > values.amin(dim=(-2, -1))  # [n, P]
        for n, owner in enumerate(look.owners):
            some[owner] |= says[n]
    return some


def window_embeddings(embeddings: Sequence[LookMaps], pictures: int) -> list[Tensor]:
    """Embeddings `[n, D]` of every look → for each picture `[W, D]` of its windows, not mirrored."""
    own: list[list[Tensor]] = [[] for _ in range(pictures)]
    for look, values in embeddings:
        if look.windows is not None and not look.flipped:
            for n, owner in enumerate(look.owners):
                own[owner].append(values[n])
    empty = embeddings[0][1][:0]  # [0, D]
    return [torch.stack(one) if one else empty for one in own]


class StitchedFeatures:
    """The features of a batch's windows, stitched over the whole pictures as the tower sees them, or mirrored ones.

    Of each picture one sum is held, whatever the number of its windows.

    Args:
        windows: which set of windows.
        frames: how each picture lies in the input.
        grids: stage → height and width of its stitched features; stages that are not named are not stitched.
    """

    def __init__(self, windows: int, frames: Sequence[Frame], grids: Mapping[int, tuple[int, int]]) -> None:
        self._windows, self._grids = windows, grids
        self._mosaics = {stage: [Mosaic(frame, hw) for frame in frames] for stage, hw in grids.items()}
        self._seen: set[int] = set()  # pictures with windows
        self._flipped = False

    def add(self, look: Look, trace: Trace) -> None:
        """Adds what the tower made of windows; those of another set are left out."""
        if look.windows != self._windows:
            return
        self._flipped = look.flipped
        for stage, mosaics in self._mosaics.items():
            features = trace.features[stage].float()  # [n, C, h, w]
            features = features.flip(-1) if look.flipped else features
            for owner, frame, values in zip(look.owners, look.frames, features, strict=True):
                mosaics[owner].add(frame, values)
                self._seen.add(owner)

    def over(self, whole: Trace) -> dict[int, Tensor]:
        """Stage → `[B, C, h, w]`; of pictures without windows what the whole picture's trace has, resized."""
        found = {}
        for stage, mosaics in self._mosaics.items():
            features = F.interpolate(whole.features[stage].float(), self._grids[stage], mode="bilinear")
            for b in self._seen:
                features[b] = mosaics[b].mean().flip(-1) if self._flipped else mosaics[b].mean()
            found[stage] = features
        return found


def _whole_on_input(raw: Tensor, batch: Sequence[Prepared], frames: Sequence[Frame]) -> Tensor:
    """Maps of whole pictures → `[B, P, H, W]` on the first scale's input, the smallest value outside the picture."""
    pairs = [(item.frames[0], frame) for item, frame in zip(batch, frames, strict=True)]
    if all(frame.resized_wh == frame.input_hw[::-1] for pair in pairs for frame in pair):
        return F.interpolate(raw, size=batch[0].frames[0].input_hw, mode="bilinear", align_corners=False)
    placed = []
    for maps, (base, frame) in zip(raw, pairs, strict=True):
        x0, y0, x1, y1 = base.visible_xyxy
        on_base = frame.map_to_frame(maps, base)  # [P, H, W]
        visible = on_base[:, y0:y1, x0:x1]
        padded = visible.amin(dim=(-2, -1), keepdim=True).expand_as(on_base).clone()
        padded[:, y0:y1, x0:x1] = visible
        placed.append(padded)
    return torch.stack(placed)
