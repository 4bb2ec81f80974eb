"""Looks give views, each a map in 0–1 of the whole picture, whose mean is its map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.find.learnt import Redrawn
from cliploc.find.memory import Remembered, once
from cliploc.find.passes import Look, LookMaps
from cliploc.find.prepare import Prepared
from cliploc.images.geometry import Frame, MeanOnGrid, Mosaic, tiled
from cliploc.methods import Context, min_max
from cliploc.towers.tower import Trace

VALUES_AT_ONCE = 2**22  # of maps over the whole input that are in memory together: 16 MB, with about five copies
OVER_PICTURE_AT_ONCE = 2**25  # 134 MB: steps over the picture compute its weights again for every batch of names


View = list[LookMaps]  # the looks that together give a map of each whole picture


def by_view(maps: Sequence[LookMaps]) -> list[View]:
    """Groups looks into views; the first look is in the first view."""
    views: dict[tuple[int | None, int | None, bool], View] = {}
    for look, values in maps:
        views.setdefault((look.scale, look.windows, look.flipped), []).append((look, values))
    return list(views.values())


@dataclass(frozen=True)
class Joined:
    """A batch's maps by one task, made when asked for: over inputs thousands of names do not fit into memory."""

    views: Sequence[View]  # of the batch, each with maps [n, P, h, w] on the tower's grid or that of a refinement
    batch: Sequence[Prepared]  # the pictures
    cache: dict[Any, Any] = field(default_factory=dict)  # what depends on the pictures alone, for other names and tasks
    redrawn: Sequence[Redrawn] = ()  # for each picture, what draws the maps of names that were learnt; () for none
    fading: bool = False  # whether windows fade to their edges; see `Frame.stitch`

    def learnt_rows(self, b: int) -> Mapping[int, tuple[int, float]]:
        """The names of a picture that were learnt; see `Redrawn.rows`."""
        return self.redrawn[b].rows if self.redrawn else {}

    def of(self, b: int, names: Sequence[int]) -> Tensor:
        """Maps `[p, H, W]` in 0–1 of some names of a picture, on the first scale's input."""
        rows = self.learnt_rows(b)
        learnt, others = [p for p in names if p in rows], [p for p in names if p not in rows]
        if not learnt:
            return self._mean(b, names)
        maps = self.redrawn[b].maps(learnt)
        if not others:
            return maps
        place = {p: number for number, p in enumerate((*learnt, *others))}
        return torch.cat([maps, self._mean(b, others)])[[place[p] for p in names]]

    def _mean(self, b: int, names: Sequence[int]) -> Tensor:
        """The mean of the views, as `of`."""
        total = on_input(self.views[0], self.batch[b], b, names, self.fading)
        if len(self.views) == 1:
            return total
        for view in self.views[1:]:
            total = total + on_input(view, self.batch[b], b, names, self.fading)
        return min_max(total)

    def on_grid(self, b: int, names: Sequence[int], grid: tuple[int, int]) -> Tensor:
        """As `of`, averaged in the cells of a grid over the input: `[p, h, w]`. No map over the input is made."""
        base = self.batch[b].frames[0]
        parts = [(view[0][0].windows is None, *_of_picture(view, b, names)) for view in self.views]
        views = [part for part in parts if part[1]]  # without those for whose windows the picture is too narrow
        key = ("mean on grid", b, grid, tuple((full, maps.shape[-2:]) for full, _, maps in views))

        def made() -> MeanOnGrid:
            return MeanOnGrid.sampled(
                [
                    base.sampling_of_whole(frames[0], maps) if full else base.sampling(frames, maps, fading=self.fading)
                    for full, frames, maps in views
                ],
                grid,
            )

        mean: MeanOnGrid = once(self.cache, key, made)
        return mean.of([maps[0] if full else tiled(frames, maps) for full, frames, maps in views])


def _of_picture(view: View, b: int, names: Sequence[int]) -> tuple[list[Frame], Tensor]:
    """The frames of picture `b` in a view, and its maps `[frames, p, h, w]`; none if it is too narrow."""
    frames, parts = [], []
    for look, values in view:
        inputs = [n for n, owner in enumerate(look.owners) if owner == b]
        frames += [look.frames[n] for n in inputs]
        parts.append(values[inputs][:, list(names)])
    return frames, torch.cat(parts)


def on_input(view: View, item: Prepared, b: int, names: Sequence[int], fading: bool) -> Tensor:
    """A view's maps of some names of picture number `b` → `[p, H, W]` in 0–1 on the first scale's input."""
    (frames, chosen), base = _of_picture(view, b, names), item.frames[0]
    if not frames:  # a picture too narrow for windows
        return chosen.new_zeros(len(names), *base.input_hw)
    if view[0][0].windows is None:
        return min_max(base.sampling_of_whole(frames[0], chosen).over_input(chosen[0]))
    return min_max(base.stitch(frames, chosen, fading=fading))


def at_once(count: int, hw: tuple[int, int], values: int = VALUES_AT_ONCE) -> int:
    """How many names are computed together, so that their maps `[H, W]` fit into memory."""
    return max(1, min(count, values // (hw[0] * hw[1])))


def not_flat(maps: Sequence[LookMaps], pictures: int) -> Tensor:
    """`[B, P]` bool: whether any look of a picture gave a map that is not constant."""
    device = maps[0][1].device
    counts = torch.zeros(pictures, maps[0][1].shape[1], dtype=torch.int64, device=device)  # maps that are not constant
    for look, values in maps:
        varied = values.amax(dim=(-2, -1)) > values.amin(dim=(-2, -1))  # [n, P]
        counts.index_add_(0, torch.tensor(look.owners, device=device), varied.long())
    return counts > 0


def window_embeddings(embeddings: Sequence[LookMaps], pictures: int) -> list[Tensor]:
    """For each picture the embeddings `[W, D]` of its windows, not mirrored, from those `[n, D]` of every look."""
    of_pictures: list[list[Tensor]] = [[] for _ in range(pictures)]
    for look, values in embeddings:
        if look.windows is not None and not look.flipped:
            for n, owner in enumerate(look.owners):
                of_pictures[owner].append(values[n])
    empty = embeddings[0][1][:0]  # [0, D]
    return [torch.stack(embedding) if embedding else empty for embedding in of_pictures]


class StitchedFeatures:
    """Features of windows, summed over whole pictures, by stage in `grids`; `windows`: the set, or None."""

    def __init__(
        self, windows: int | None, frames: Sequence[Frame], grids: Mapping[int, tuple[int, int]], flipped: bool
    ) -> None:
        self._windows, self._grids, self._flipped = windows, grids, flipped
        self._mosaics = {stage: [Mosaic(frame, hw) for frame in frames] for stage, hw in grids.items()}
        self._seen: set[int] = set()  # pictures with windows

    def add(self, look: Look, trace: Trace) -> None:
        """Adds the features of some windows; windows of another set are ignored."""
        if look.windows != self._windows:
            return
        for stage, mosaics in self._mosaics.items():
            features = trace.features[stage].float()  # [n, C, h, w]
            features = features.flip(-1) if self._flipped else features
            for owner, frame, values in zip(look.owners, look.frames, features, strict=True):
                mosaics[owner].add(frame, values)
                self._seen.add(owner)

    def into(self, context: Context, together: Remembered) -> Context:
        """The whole pictures' context with these features; what steps make of them stays in the memory."""
        features = once(together.shared, ("stitched", self._flipped), lambda: self.over(context.trace))
        if not features:
            return context
        cache = together.shared.setdefault(("made of stitched", self._flipped), {})
        trace = replace(context.trace, features={**context.trace.features, **features})
        return replace(context, trace=trace, from_windows=True, cache=cache)

    def over(self, full: Trace) -> dict[int, Tensor]:
        """Stage → features `[B, C, h, w]`; pictures without windows keep those of the whole picture, resized."""
        features_of = {}
        for stage, mosaics in self._mosaics.items():
            features = F.interpolate(full.features[stage].float(), self._grids[stage], mode="bilinear")
            for b in self._seen:
                stitched = mosaics[b].mean_feature()
                features[b] = stitched.flip(-1) if self._flipped else stitched
            features_of[stage] = features
        return features_of
