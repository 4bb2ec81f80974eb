"""Refinements: steps on the feature grid, after the mean of all views, and steps over the picture; then boxes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.boxes import BoxRule
from cliploc.boxes.reasons import boxes_and_reasons
from cliploc.find import learnt, passes
from cliploc.find.prepare import Prepared
from cliploc.find.presence import Evidence, Reasons
from cliploc.find.tasks import Task
from cliploc.find.texts import Texts
from cliploc.images.geometry import Frame, padding_least
from cliploc.localization import no_maps
from cliploc.methods import Context, Method, min_max
from cliploc.refine import LONGEST, Refinement
from cliploc.towers.tower import Backbone, Needs
from cliploc.values import Boxes, FloatArray

Lots = Iterator[tuple[Sequence[int], FloatArray]]  # a few names at a time: their indices, and their maps `[p, H, W]`


@dataclass(frozen=True)
class TaskMaps:
    """A method's maps of a batch."""

    joined: passes.Joined  # computes the maps, in 0–1 over the first scale's input
    not_flat: Tensor  # [B, P] bool, whether any view's map is not constant

    def sides(self, b: int) -> FloatArray | None:
        """How the sides of the boxes of a picture's names are moved; None where no name was learnt."""
        return self.joined.redrawn[b].sides(len(self.joined.batch[b].texts)) if self.joined.redrawn else None


@dataclass(frozen=True)
class BatchMaps:
    """A batch with all that its boxes are made of."""

    batch: Sequence[Prepared]
    by_task: list[TaskMaps]
    embedding: Tensor  # [B, D] of the whole pictures, not mirrored, at the scale that is read
    evidence: Evidence  # which names are there
    wanted: list[Sequence[int]]  # for each picture, the names whose maps are made; those of the others are zero
    places: Tensor | None  # [B, D, h, w] what a second look reads in the places of the pictures; None without one
    lessons: list[learnt.Lesson] | None  # of the pictures, for the first task; None unless requested


class Steps:
    """A flow's refinements `on_grid` and `over_picture`, and what they read; no result depends on `values_at_once`."""

    def __init__(
        self,
        backbone: Backbone,
        steps: Sequence[Refinement],
        windows: tuple[float, ...],
        window_hw: tuple[int, int],
        guided: bool,
        texts: Texts,
    ) -> None:
        self._backbone, self._windows, self._window_hw, self._texts = backbone, windows, window_hw, texts
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
        return {"version": learnt.LESSON_VERSION, "level": self.level_of(task)}

    def needs(self, forward: passes.ForwardPass, taught: bool = False) -> list[Needs]:
        """What the steps on the grid, and what teaches, read from the trace of a forward."""
        if forward.scale != 0 and (forward.windows is None or forward.windows != self._smallest):
            return []
        return self._all_needs(taught)

    def _all_needs(self, taught: bool) -> list[Needs]:
        """What the steps on the grid read of a trace, and what teaches."""
        stages = (self._backbone.middle_stage, learnt.taught_stage(self._backbone))
        return [step.needs(self._backbone) for step in self.on_grid] + [Needs(features=stages)] * taught

    def stitched(
        self, context: Context, batch: Sequence[Prepared], taught: bool, flipped: bool
    ) -> passes.StitchedFeatures:
        """An empty `StitchedFeatures` on the smallest windows' grid; no stage with a guide, or if whole is finer."""
        stages = {stage for need in self._all_needs(taught) for stage in need.features}
        grids = {}
        for stage in stages if self._smallest is not None else ():
            seen, window = batch[0].frames[0].input_hw, self._window_hw
            coarse = context.trace.features[stage].shape[-2:]  # (h, w)
            grid = [round(n * max(self._windows) * b / a) for n, a, b in zip(coarse, seen, window, strict=True)]
            if min(grid[0] / coarse[0], grid[1] / coarse[1]) > 1:
                grids[stage] = (grid[0], grid[1])
        return passes.StitchedFeatures(self._smallest, [item.frames[0] for item in batch], grids, flipped)

    def maps_of(
        self,
        raw: passes.Raw,
        batch: Sequence[Prepared],
        wanted: list[Sequence[int]],
        contexts: Sequence[Context],
        embedding: Tensor,
    ) -> TaskMaps:
        """A task's maps after the steps on the grid; those of names that were learnt are drawn by what was learnt."""

        def lessons_of(names: list[Sequence[int]]) -> list[learnt.Lesson]:
            return self.lessons(raw.maps, batch, names, contexts[0], embedding)

        learnt_rows = [self._texts.learnt_rows(item.texts) for item in batch]
        redrawn = self._redrawn(raw.task, learnt_rows, wanted, lessons_of)
        pairs = zip(wanted, learnt_rows, strict=True)
        others = [[p for p in names if p not in rows] if redrawn else names for names, rows in pairs]
        joined = replace(self.joined(raw.task, raw.maps, batch, others, contexts), redrawn=redrawn)
        varied = passes.not_flat(raw.maps, len(batch))
        for of_picture, picture in zip(varied, redrawn, strict=bool(redrawn)):
            of_picture[[*picture.rows]] = True
        return TaskMaps(joined, varied)

    def _redrawn(
        self,
        task: Task,
        learnt_rows: Sequence[Mapping[int, tuple[int, float]]],
        wanted: list[Sequence[int]],
        lessons_of: Callable[[list[Sequence[int]]], list[learnt.Lesson]],
    ) -> list[learnt.Redrawn]:
        """For each picture, what draws the maps of a task's names that were learnt; none without such names."""
        names: list[Sequence[int]] = [
            [p for p in some if p in rows] for some, rows in zip(wanted, learnt_rows, strict=True)
        ]
        if self._texts.learnt is None or not task.refined or not any(names):
            return []
        level, device = self.level_of(task), self._backbone.device
        lessons = zip(lessons_of(names), learnt_rows, strict=True)
        return [learnt.Redrawn(self._texts.learnt, picture.on(device), rows, level) for picture, rows in lessons]

    def joined(
        self,
        task: Task,
        raw: Sequence[passes.PassMaps],
        batch: Sequence[Prepared],
        wanted: list[Sequence[int]],
        contexts: Sequence[Context],
    ) -> passes.Joined:
        """A task's maps from its passes, with steps on the grid after the mean of views; with flips mirrored too."""
        if not task.refined:  # its map is the same for every picture, so no other view or step is needed
            return passes.Joined([[raw[0]]], batch)
        views = passes.by_view(raw)
        joined = passes.Joined(views, batch, fading=self.fading)
        if not self.on_grid:
            return joined
        # A single pass has its map on the grid already, as the method made it. A picture too narrow for windows takes
        # the other way even if it is alone: beside others it has several views, and its map must not depend on them.
        alone = len(views) == 1 and not self._windows
        refined = []
        for context, (forward, values) in zip(contexts, raw, strict=False):
            grid = self.on_grid[0].grid(context)
            if alone:
                on_grid = F.interpolate(min_max(raw[0][1]), size=grid, mode="bilinear")
            else:
                on_grid = self._mean(joined, values.shape[1], grid, wanted)
            on_grid = on_grid.flip(-1) if forward.flipped else on_grid
            stepped = self._stepped(on_grid, context, batch, task.method, forward.flipped)
            refined.append([(forward, stepped.flip(-1) if forward.flipped else stepped)])
        return passes.Joined(refined, batch)

    def _mean(self, joined: passes.Joined, names: int, grid: tuple[int, int], wanted: list[Sequence[int]]) -> Tensor:
        """The mean of the views on a grid, `[B, P, h, w]`; unwanted maps are zero."""
        batch = joined.batch
        mean = joined.views[0][0][1].new_zeros(len(batch), names, *grid)
        for b, item in enumerate(batch):
            for some in self._lots(wanted[b], item.frames[0].input_hw):
                mean[b, list(some)] = joined.on_grid(b, some, grid)
        return mean

    def lessons(
        self,
        raw: Sequence[passes.PassMaps],
        batch: Sequence[Prepared],
        wanted: list[Sequence[int]],
        contexts: Context,
        embedding: Tensor,
    ) -> list[learnt.Lesson]:
        """What is kept of each picture, so that it can be searched again without the tower."""
        places, features = contexts.places, contexts.trace.features[learnt.taught_stage(self._backbone)]
        grid = (places.shape[-2], places.shape[-1])
        joined = passes.Joined(passes.by_view(raw), batch, fading=self.fading)
        mean = self._mean(joined, raw[0][1].shape[1], grid, wanted)
        return [
            learnt.keep(names, mean[b, list(names)], places[b], features[b], embedding[b], item.frames[0])
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
            passes.check_finite(maps.flatten(2), batch, "a map", self._backbone)
            threshold = step.threshold(self._backbone, threshold)
            maps = min_max(padding_least(maps, frames, flipped)).float()  # some steps return float64
        return maps

    def finished(
        self,
        b: int,
        made: TaskMaps,
        task: Task,
        names: Sequence[int],
        reasons: Reasons,
        rule: BoxRule | None,
        keep_maps: bool,
    ) -> tuple[Frame, FloatArray, Boxes, Reasons]:
        """How a picture lies in its maps, these, `[P, H, W]`, zero of other names; boxes, and why names are absent."""
        every, (frame, lots) = made.joined.batch[b].texts.names, self.lots(b, made.joined, task, names)
        maps, parts, why, sides = no_maps((len(every), *frame.input_hw)), [], list(reasons), made.sides(b)
        for some, values in lots:
            if rule is not None:
                of_lot = None if sides is None else sides[list(some)]
                boxes, why_not = boxes_and_reasons(
                    frame, values, [why[p] for p in some], tuple(every[p] for p in some), rule, of_lot
                )
                parts.append(replace(boxes, label=np.asarray(some, np.int64)[boxes.label], names=every))
                for p, reason in zip(some, why_not, strict=True):
                    why[p] = reason
            if keep_maps and len(some) == len(every):
                maps = values
            elif keep_maps:
                # Memory is taken only when written to.
                maps = maps if maps.flags.writeable else np.zeros(maps.shape, np.float32)
                maps[list(some)] = values
        return frame, maps, Boxes.joined(parts, every), tuple(why)

    def lots(self, b: int, joined: passes.Joined, task: Task, names: Sequence[int]) -> tuple[Frame, Lots]:
        """How the picture lies in its maps after all steps, and the maps in 0–1 of these names, a few at a time."""
        frame = joined.batch[b].frames[0]
        if not (self.over_picture and task.refined):
            lots = self._lots(names, frame.input_hw)
            return frame, ((some, joined.of(b, some).cpu().numpy()) for some in lots)
        x0, y0, x1, y1 = frame.visible_xyxy
        offset = (frame.offset_xy[0] - x0, frame.offset_xy[1] - y0)
        inputs = replace(frame, input_hw=(y1 - y0, x1 - x0), offset_xy=offset)  # without padding
        frame = inputs.over_picture(LONGEST)
        return frame, self._over_picture(b, joined, names, inputs, frame)

    def _over_picture(self, b: int, joined: passes.Joined, names: Sequence[int], inputs: Frame, frame: Frame) -> Lots:
        """Maps after the steps over the picture, which lies in `inputs` unpadded, and in the steps' `frame`."""
        item = joined.batch[b]
        pixels = torch.from_numpy(np.array(frame.apply(item.picture.image)))  # [H, W, 3] uint8
        stride, scales = self._backbone.stride, zip(frame.scale_xy, inputs.scale_xy, strict=True)
        width, height = (max(1, round(stride * ours / theirs)) for ours, theirs in scales)
        x0, y0, x1, y1 = item.frames[0].visible_xyxy
        for some in self._lots(names, frame.input_hw, passes.OVER_PICTURE_AT_ONCE):
            maps = joined.of(b, some)  # [p, H, W]
            picture = pixels.permute(2, 0, 1)[None].to(maps.device).float() / 255  # [1, 3, H, W]
            maps = min_max(inputs.map_to_frame(maps[:, y0:y1, x0:x1], frame))
            for step in self.over_picture:
                maps = min_max(step.function(picture, maps[None], (height, width))[0])
            yield some, maps.cpu().numpy()

    def _lots(
        self, names: Sequence[int], hw: tuple[int, int], usual: int = passes.VALUES_AT_ONCE
    ) -> Iterator[Sequence[int]]:
        """Names, as many at a time as their maps `[H, W]` allow."""
        count = passes.at_once(len(names), hw, usual if self.values_at_once is None else self.values_at_once)
        for start in range(0, len(names), count):
            yield names[start : start + count]
