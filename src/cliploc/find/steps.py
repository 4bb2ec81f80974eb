"""Refinements: steps on the feature grid, after the mean of all views, and steps over the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import ModelError
from cliploc.find.memory import Remembered
from cliploc.find.prepare import Prepared
from cliploc.find.tasks import Task
from cliploc.find.views import (
    OVER_PICTURE_AT_ONCE,
    VALUES_AT_ONCE,
    Joined,
    Look,
    LookMaps,
    StitchedFeatures,
    at_once,
    by_view,
)
from cliploc.images.geometry import Frame, padding_least
from cliploc.methods import Context, Method, min_max
from cliploc.refine import LONGEST, Refinement
from cliploc.towers.tower import Backbone, Needs
from cliploc.values import FloatArray

if TYPE_CHECKING:
    from cliploc.find.lesson import Lesson

Lots = Iterator[tuple[Sequence[int], FloatArray]]  # a few names at a time: their indices, and their maps `[p, H, W]`


class Steps:
    """A flow's refinements `on_grid` and `over_picture`, and what they read; no result depends on `values_at_once`."""

    def __init__(
        self,
        backbone: Backbone,
        steps: Sequence[Refinement],
        windows: tuple[float, ...],
        window_hw: tuple[int, int],
        guided: bool,
    ) -> None:
        self._backbone, self._windows, self._window_hw = backbone, windows, window_hw
        self.fading = backbone.kind == "vit"  # windows fade to their edges, where a ViT's maps of them differ
        self.on_grid = tuple(step for step in steps if step.on == "grid")
        self.over_picture = tuple(step for step in steps if step.on == "picture")
        self.values_at_once: int | None = None
        # The set of windows whose features the steps read; None if they read those of a guide, or no set.
        self._smallest = None if guided or not windows else windows.index(max(windows))

    def unteachable_reason(self, task: Task) -> str | None:
        """Why lessons cannot stand for the tower, in words; None where they can: maps are made again by `affinity`."""
        if not task.refined:
            return f"{task.method.name}, whose map is the same for every picture"
        others = [step.name for step in (*self.on_grid, *self.over_picture) if step.name not in ("affinity", "level")]
        return f"the refinement {others[0]}" if others else None

    def level_of(self, task: Task) -> float | None:
        """τ of the step `level`; None without it."""
        threshold = task.method.threshold
        for step in self.on_grid:
            if step.name == "level":
                return threshold
            threshold = step.threshold(self._backbone, threshold)
        return None

    def teaching(self, task: Task) -> dict[str, Any]:
        """How maps are made again from lessons, as part of a run's identity."""
        from cliploc.find.lesson import VERSION

        return {"version": VERSION, "level": self.level_of(task)}

    def needs(self, look: Look, taught: bool = False) -> list[Needs]:
        """What the steps on the grid, and what teaches, read from the trace of a look."""
        if look.scale != 0 and (look.windows is None or look.windows != self._smallest):
            return []
        return self._all_needs(taught)

    def _all_needs(self, taught: bool) -> list[Needs]:
        """What the steps on the grid read of a trace, and what teaches."""
        needs = [step.needs(self._backbone) for step in self.on_grid]
        if not taught:
            return needs
        from cliploc.find.lesson import taught_stage

        return [*needs, Needs(features=(self._backbone.middle_stage, taught_stage(self._backbone)))]

    def stitched(self, whole: Context, batch: Sequence[Prepared], taught: bool = False) -> StitchedFeatures:
        """An empty `StitchedFeatures` on the smallest windows' grid; no stage with a guide, or if whole is finer."""
        stages = {stage for need in self._all_needs(taught) for stage in need.features}
        grids = {}
        for stage in stages if self._smallest is not None else ():
            seen, window = batch[0].frames[0].input_hw, self._window_hw
            own = whole.trace.features[stage].shape[-2:]  # (h, w)
            grid = [round(n * max(self._windows) * b / a) for n, a, b in zip(own, seen, window, strict=True)]
            if min(grid[0] / own[0], grid[1] / own[1]) > 1:
                grids[stage] = (grid[0], grid[1])
        return StitchedFeatures(self._smallest, [item.frames[0] for item in batch], grids)

    def joined(
        self,
        task: Task,
        raw: Sequence[LookMaps],
        batch: Sequence[Prepared],
        wanted: list[Sequence[int]],
        whole: Sequence[Context],
        together: Remembered,
    ) -> Joined:
        """A task's maps from its looks, with steps on the grid after the mean of views; with flips mirrored too."""
        if not task.refined:  # its map is the same for every picture, so no other view or step is needed
            return Joined([[raw[0]]], batch)
        views = by_view(raw)
        joined = Joined(views, batch, together.shared, fading=self.fading)
        if not self.on_grid:
            return joined
        # A single look has its map on the grid already, as the method made it. A picture too narrow for windows takes
        # the other way even if it is alone: beside others it has several views, and its map must not depend on them.
        alone = len(views) == 1 and not self._windows
        refined = []
        for context, (look, values) in zip(whole, raw, strict=False):
            grid = self.on_grid[0].grid(context)
            if alone:
                on_grid = F.interpolate(min_max(raw[0][1]), size=grid, mode="bilinear")
            else:
                on_grid = self._mean(joined, values.shape[1], grid, wanted)
            on_grid = on_grid.flip(-1) if look.flipped else on_grid
            stepped = self._stepped(on_grid, context, batch, task.method, look.flipped)
            refined.append([(look, stepped.flip(-1) if look.flipped else stepped)])
        return Joined(refined, batch)

    def _mean(self, joined: Joined, names: int, grid: tuple[int, int], wanted: list[Sequence[int]]) -> Tensor:
        """The mean of the views on a grid, `[B, P, h, w]`; unwanted maps are zero."""
        batch = joined.batch
        mean = joined.views[0][0][1].new_zeros(len(batch), names, *grid)
        for b, item in enumerate(batch):
            for some in self._lots(wanted[b], item.frames[0].input_hw):
                mean[b, list(some)] = joined.on_grid(b, some, grid)
        return mean

    def lessons(
        self,
        raw: Sequence[LookMaps],
        batch: Sequence[Prepared],
        wanted: list[Sequence[int]],
        whole: Context,
        embedding: Tensor,
        together: Remembered,
    ) -> list[Lesson]:
        """What is kept of each picture, so that it can be searched again without the tower."""
        from cliploc.find.lesson import keep, taught_stage

        places, features = whole.places, whole.trace.features[taught_stage(self._backbone)]
        grid = (places.shape[-2], places.shape[-1])
        joined = Joined(by_view(raw), batch, together.shared, fading=self.fading)
        mean = self._mean(joined, raw[0][1].shape[1], grid, wanted)
        return [
            keep(names, mean[b, list(names)], places[b], features[b], embedding[b], item.frames[0])
            for b, (item, names) in enumerate(zip(batch, wanted, strict=True))
        ]

    def _stepped(
        self, maps: Tensor, context: Context, batch: Sequence[Prepared], method: Method, flipped: bool
    ) -> Tensor:
        """Applies the steps to maps in 0–1 on the first step's grid; returns maps on the last step's grid."""
        threshold, frames = method.threshold, [item.frames[0] for item in batch]
        for number, step in enumerate(self.on_grid):
            context = replace(context, threshold=threshold)
            if number:
                maps = F.interpolate(maps, size=step.grid(context), mode="bilinear")
            maps = step.function(context, maps)  # [B, P, h, w]
            refuse_nan(maps.flatten(2), batch, "a map", self._backbone)
            threshold = step.threshold(self._backbone, threshold)
            maps = min_max(padding_least(maps, frames, flipped)).float()  # some steps return float64
        return maps

    def finished(self, b: int, joined: Joined, task: Task, names: Sequence[int]) -> tuple[Frame, Lots]:
        """How the picture lies in its finished maps, and the maps in 0–1 of these names, a few at a time."""
        frame = joined.batch[b].frames[0]
        if not (self.over_picture and task.refined):
            lots = self._lots(names, frame.input_hw)
            return frame, ((some, joined.of(b, some).cpu().numpy()) for some in lots)
        x0, y0, x1, y1 = frame.visible_xyxy
        offset = (frame.offset_xy[0] - x0, frame.offset_xy[1] - y0)
        inputs = replace(frame, input_hw=(y1 - y0, x1 - x0), offset_xy=offset)  # without padding
        frame = inputs.over_picture(LONGEST)
        return frame, self._over_picture(b, joined, names, inputs, frame)

    def _over_picture(self, b: int, joined: Joined, names: Sequence[int], inputs: Frame, frame: Frame) -> Lots:
        """Maps after the steps over the picture, which lies in `inputs` unpadded, and in the steps' `frame`."""
        item = joined.batch[b]
        pixels = torch.from_numpy(np.array(frame.apply(item.picture.image)))  # [H, W, 3] uint8
        stride, scales = self._backbone.stride, zip(frame.scale_xy, inputs.scale_xy, strict=True)
        width, height = (max(1, round(stride * ours / theirs)) for ours, theirs in scales)
        x0, y0, x1, y1 = item.frames[0].visible_xyxy
        for some in self._lots(names, frame.input_hw, OVER_PICTURE_AT_ONCE):
            maps = joined.of(b, some)  # [p, H, W]
            picture = pixels.permute(2, 0, 1)[None].to(maps.device).float() / 255  # [1, 3, H, W]
            maps = min_max(inputs.map_to_frame(maps[:, y0:y1, x0:x1], frame))
            for step in self.over_picture:
                maps = min_max(step.function(picture, maps[None], (height, width))[0])
            yield some, maps.cpu().numpy()

    def _lots(self, names: Sequence[int], hw: tuple[int, int], usual: int = VALUES_AT_ONCE) -> Iterator[Sequence[int]]:
        """Names, as many at a time as their maps `[H, W]` allow."""
        count = at_once(len(names), hw, usual if self.values_at_once is None else self.values_at_once)
        for start in range(0, len(names), count):
            yield names[start : start + count]


def with_features(context: Context, features: Mapping[int, Tensor], made: dict[Any, Any]) -> Context:
    """A context with windows' features, stage → `[B, C, h, w]`; what steps make of them stays in `made`."""
    if not features:
        return context
    trace = replace(context.trace, features={**context.trace.features, **features})
    return replace(context, trace=trace, from_windows=True, cache=made)


def refuse_nan(values: Tensor, batch: Sequence[Prepared], what: str, backbone: Backbone) -> None:
    """Raises a `ModelError` if values `[B, P or 1, n]` are NaN or infinite, instead of making zeros of them."""
    if values.sum().isfinite():  # mostly so, and told in one pass; a sum of finite values may be infinite
        return
    bad = ~values.isfinite().all(dim=-1)  # [B, P]
    if bad.any():
        b, p = (int(i) for i in bad.nonzero()[0])
        prompt = f", prompt {batch[b].texts.names[p]!r}" if what == "a map" else ""
        raise ModelError(
            f"{backbone.name} in {str(backbone.dtype).removeprefix('torch.')} gave {what} that is not a number for "
            f"{batch[b].picture.source}{prompt}: use a higher precision or check the weights"
        )
