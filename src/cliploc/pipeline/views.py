"""Forward passes for each scale, mirror image and window of a batch, and the maps of all methods from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import ModelError
from cliploc.geometry import Frame
from cliploc.maps import min_max
from cliploc.memory import Memory, Remembered
from cliploc.method import Context, Method
from cliploc.pipeline.looks import (
    OVER_PICTURE_AT_ONCE,
    VALUES_AT_ONCE,
    Joined,
    Look,
    LookMaps,
    StitchedFeatures,
    Wanted,
    at_once,
    by_view,
    not_flat,
    padding_least,
    window_embeddings,
)
from cliploc.pipeline.modes import undisturbed
from cliploc.pipeline.prepare import Prepared, stacked
from cliploc.pipeline.tasks import Task
from cliploc.pipeline.texts import Texts
from cliploc.refine import LONGEST, Refinement
from cliploc.saliency import raw_maps
from cliploc.tower import Backbone, Guide
from cliploc.values import FloatArray


@dataclass(frozen=True)
class Maps:
    """A method's maps of a batch.

    Attributes:
        joined: computes the maps, in 0–1 over the first scale's input.
        not_flat: `[B, P]` bool, whether any view's map is not constant.
        notes: for each picture, remarks of the method.
    """

    joined: Joined
    not_flat: Tensor
    notes: list[list[str]]


@dataclass(frozen=True)
class Computed:
    """The results of the views of a batch.

    Attributes:
        by_task: the maps of each task, in their order.
        embedding: `[B, D]` of the first view: the whole pictures, unflipped, at the first scale.
        names: `[B, P, D]` the names' embeddings.
        windows: for each picture, `[W, D]` of its windows, unflipped; W is 0 without windows.
        wanted: which maps are to be made; None: all.
    """

    by_task: list[Maps]
    embedding: Tensor
    names: Tensor
    windows: list[Tensor]
    wanted: Wanted | None = None

    def wanted_of(self, b: int) -> Sequence[int]:
        """The names of a picture whose maps are made."""
        return _chosen(self.wanted, b, self.names.shape[1])


@dataclass(frozen=True)
class MaskedEncoder:
    """Embeds masked pictures.

    Attributes:
        encode: `[n, 3, H, W]` normalised → `[n, D]`; None: the tower itself.
        precision: its precision; a `Memory` keeps the embeddings of each precision apart.
    """

    encode: Callable[[Tensor], Tensor] | None
    precision: str


@dataclass(frozen=True)
class Views:
    """How a localizer looks at pictures.

    Attributes:
        backbone: the model.
        texts: embeds names.
        flip: whether the mirrored picture's map is part of the mean.
        windows: for each set of windows, the picture's shorter side in window sides; see `Frame.windows`.
        window_hw: height and width of the input that a window fills.
        on_grid: refinements on the feature grid.
        over_picture: refinements over the picture.
        batch_size: masked pictures sent through the tower at once.
        masked: embeds masked pictures.
        memory: keeps what the tower computes; None for nothing.
        guide: a second tower; None for none.
        values_at_once: values of maps over the input or the picture that are in memory together; None for the usual
            number. No result depends on it.
    """

    backbone: Backbone
    texts: Texts
    flip: bool
    windows: tuple[float, ...]
    window_hw: tuple[int, int]
    on_grid: tuple[Refinement, ...]
    over_picture: tuple[Refinement, ...]
    batch_size: int
    masked: MaskedEncoder
    memory: Memory | None
    guide: Guide | None = None
    values_at_once: int | None = None

    @undisturbed  # a method that needs gradients asks for them; the caller's weights may require some
    def compute(
        self,
        batch: Sequence[Prepared],
        tasks: Sequence[Task],
        masked: Callable[[int, int], None] | None,
        wanted: Callable[[Tensor, Tensor, list[Tensor]], Wanted | None] = lambda *_: None,
    ) -> Computed:
        """The maps of every task.

        Args:
            batch: pictures with equally many names.
            tasks: the methods.
            masked: told of masked pictures; see `Reporter`.
            wanted: embeddings of the pictures `[B, D]`, of the names `[B, P, D]` and of each picture's windows `[W, D]`
                → which maps are to be made; the others are zero. None: all.

        Raises:
            ModelError: the tower or a method gave a value that is not a number.
        """
        names = self._embedded(batch)  # [B, P, D]
        directions = self.texts.directions(names)
        notes: list[list[list[str]]] = [[[] for _ in batch] for _ in tasks]
        looks = self._looks(batch)
        maps: list[list[LookMaps]] = [[] for _ in tasks]
        embeddings: list[LookMaps] = []
        first: list[Context] = []  # of the first scale, not mirrored and mirrored
        stitched: list[StitchedFeatures] = []  # for each of these
        with self._remembered_together(batch) as together:
            for number, look in enumerate(looks):
                counting = None if masked is None else _MaskedCount(masked, further_views=len(looks) - 1 - number)
                context, of_tasks = self._see(look, batch, directions, tasks, counting, notes)
                if look.scale == 0:  # the other traces are not kept, as they are large
                    first.append(context)
                    stitched.append(self._stitched(context, batch))
                elif look.windows is not None and ("stitched", look.flipped) not in together.shared:
                    stitched[int(look.flipped)].add(look, context.trace)
                embeddings.append((look, context.trace.embedding))
                for kept, raw in zip(maps, of_tasks, strict=True):
                    kept.append((look, raw))
            embedding, windows = embeddings[0][1], window_embeddings(embeddings, len(batch))
            chosen = wanted(embedding, names, windows)
            for flipped, (context, features) in enumerate(zip(first, stitched, strict=True)):
                key = ("stitched", bool(flipped))
                if key not in together.shared:
                    together.shared[key] = features.over(context.trace)
                made = together.shared.setdefault(("made of stitched", bool(flipped)), {})
                first[flipped] = self._with_windows(context, together.shared[key], made)
            by_task = [
                Maps(self._joined(task, kept, batch, chosen, first, together), not_flat(kept, len(batch)), said)
                for task, kept, said in zip(tasks, maps, notes, strict=True)
            ]
        return Computed(by_task, embedding, names, windows, chosen)

    def _looks(self, batch: Sequence[Prepared]) -> list[Look]:
        """The looks at a batch; the first one has the whole pictures, not mirrored."""
        flips = (False, True)[: 1 + self.flip]
        everyone = tuple(range(len(batch)))
        looks = []
        for scale in range(len(batch[0].frames)):
            frames = tuple(item.frames[scale] for item in batch)
            looks += [Look(frames, everyone, flipped, scale=scale) for flipped in flips]
        for number in range(len(batch[0].windows)):
            windows = [(b, frame) for b, item in enumerate(batch) for frame in item.windows[number]]
            for start in range(0, len(windows), self.batch_size):
                owners, frames = zip(*windows[start : start + self.batch_size], strict=True)
                looks += [Look(frames, owners, flipped, windows=number) for flipped in flips]
        return looks

    def _see(
        self,
        look: Look,
        batch: Sequence[Prepared],
        directions: Tensor,
        tasks: Sequence[Task],
        masked: Callable[[int, int], None] | None,
        notes: list[list[list[str]]],
    ) -> tuple[Context, list[Tensor]]:
        """One forward pass, and the maps of every task from it: `[n, P, h, w]` after ReLU, not mirrored."""
        # The pixels are made once, and only if the tower, a method or the guide asks for them.
        shown = cache(lambda: self._shown(look, batch))
        images = cache(lambda: self.backbone.normalize(shown()))
        owners = [batch[b] for b in look.owners]
        steps = self.on_grid if look.scale == 0 or look.windows == self._smallest_windows else ()
        needs = reduce(or_, [task.needs for task in tasks] + [step.needs(self.backbone) for step in steps])
        with self._remembered(look, batch) as remembered:
            trace = remembered.trace(needs, lambda: self.backbone.trace(images(), needs))
            refuse_nan(trace.embedding[:, None], owners, "an embedding", self.backbone)
            context = Context(
                images,
                _rows(directions, look.owners),
                trace,
                self.backbone,
                self.batch_size,
                masked,
                encode_masked=self.masked.encode,
                cache=remembered.shared,
                empty_name=self.texts.empty_name,
                words=[item.texts.synonyms for item in owners],
                guide=None if self.guide is None else partial(_guided, self.guide, shown, remembered.shared),
            )
            maps = []
            for task, said in zip(tasks, notes, strict=True):
                noting = replace(context, note=partial(_note, [said[b] for b in look.owners]))
                raw = raw_maps(task.method, noting, task.options)  # [n, P, h, w]
                refuse_nan(raw.flatten(2), owners, "a map", self.backbone)
                raw = raw.relu() if task.method.relu else raw
                maps.append(raw.flip(-1) if look.flipped else raw)
        return context, maps

    def _stitched(self, whole: Context, batch: Sequence[Prepared]) -> StitchedFeatures:
        """An empty `StitchedFeatures` for what steps on the grid read, on the grid of the smallest windows.

        It stitches no stage if the grid of the whole pictures is finer, or if there is a guide.
        """
        stages = {stage for step in self.on_grid for stage in step.needs(self.backbone).features}
        number = self._smallest_windows
        grids = {}
        for stage in stages if number is not None else ():
            seen, window = batch[0].frames[0].input_hw, self.window_hw
            own = whole.trace.features[stage].shape[-2:]  # (h, w)
            grid = [round(n * max(self.windows) * b / a) for n, a, b in zip(own, seen, window, strict=True)]
            if min(grid[0] / own[0], grid[1] / own[1]) > 1:
                grids[stage] = (grid[0], grid[1])
        return StitchedFeatures(number, [item.frames[0] for item in batch], grids)

    @property
    def _smallest_windows(self) -> int | None:
        """The set of windows whose features steps on the grid read; None if they read those of a guide, or no set."""
        if self.guide is not None or not self.windows:
            return None
        return self.windows.index(max(self.windows))

    @staticmethod
    def _with_windows(context: Context, features: Mapping[int, Tensor], made: dict[Any, Any]) -> Context:
        """A context of whole pictures whose features, stage → `[B, C, h, w]`, are replaced by those of windows.

        What steps make of these features is kept in `made`, as other windows give others of the same size.
        """
        if not features:
            return context
        trace = replace(context.trace, features={**context.trace.features, **features})
        return replace(context, trace=trace, from_windows=True, cache=made)

    def _embedded(self, batch: Sequence[Prepared]) -> Tensor:
        """The names' embeddings, `[B, P, D]`; stored once if all pictures have the same names."""
        first = batch[0].texts
        if all(item.texts == first for item in batch):
            return self.texts.embed(first).expand(len(batch), -1, -1)
        return torch.stack([self.texts.embed(item.texts) for item in batch])

    def _joined(
        self,
        task: Task,
        maps: Sequence[LookMaps],
        batch: Sequence[Prepared],
        wanted: Wanted | None,
        first: Sequence[Context],
        together: Remembered,
    ) -> Joined:
        """Computes one task's maps from its looks, with the steps on the grid; unwanted maps are zero.

        The steps on the grid follow the mean of all views. They read the stitched features of the smallest windows, if
        these are finer than those of the whole pictures at the first scale. With flips the steps run twice, the second
        time mirrored, and the mean is taken: otherwise a mirrored picture would not have the mirrored map.
        """
        if not task.refined:  # its map is the same for every picture, so no other view or step is needed
            return Joined([[maps[0]]], batch)
        views = by_view(maps)
        joined = Joined(views, batch, together.shared)
        if not self.on_grid:
            return joined
        # A single look has its map on the grid already, as the method made it. A picture too narrow for windows takes
        # the other way even if it is alone: beside others it has several views, and its map must not depend on them.
        alone = len(views) == 1 and not self.windows
        refined = []
        for context, (look, _) in zip(first, maps, strict=False):
            grid = self.on_grid[0].grid(context)
            if alone:
                whole = min_max(maps[0][1])
                on_grid = F.interpolate(whole.flip(-1) if look.flipped else whole, size=grid, mode="bilinear")
            else:
                on_grid = self._on_grid(joined, wanted, grid, look.flipped)
            stepped = self._stepped(on_grid, context, batch, task.method, look.flipped)
            refined.append([(look, stepped.flip(-1) if look.flipped else stepped)])
        return Joined(refined, batch)

    def _on_grid(self, joined: Joined, wanted: Wanted | None, grid: tuple[int, int], flipped: bool) -> Tensor:
        """The maps of all pictures, mirrored or not, on the grid of a step: `[B, P, h, w]`; zero if not wanted."""
        raw = joined.views[0][0][1]
        maps = raw.new_zeros(len(joined.batch), raw.shape[1], *grid)
        for b, item in enumerate(joined.batch):
            for names in self._lots(_chosen(wanted, b, raw.shape[1]), item.frames[0].input_hw):
                maps[b, list(names)] = joined.on_grid(b, names, grid)
        return maps.flip(-1) if flipped else maps

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
            refuse_nan(maps.flatten(2), batch, "a map", self.backbone)
            threshold = step.threshold(self.backbone, threshold)
            maps = min_max(padding_least(maps, frames, flipped)).float()  # some steps return float64
        return maps

    def _lots(self, names: Sequence[int], hw: tuple[int, int], usual: int = VALUES_AT_ONCE) -> Iterator[Sequence[int]]:
        """Names, as many at a time as their maps `[H, W]` allow."""
        count = at_once(len(names), hw, usual if self.values_at_once is None else self.values_at_once)
        for start in range(0, len(names), count):
            yield names[start : start + count]

    def finish(
        self, b: int, made: Maps, task: Task, names: Sequence[int]
    ) -> tuple[Frame, Iterator[tuple[Sequence[int], FloatArray]]]:
        """The maps of one picture after the steps over the picture, a few names at a time.

        Args:
            b: the picture's place in the batch.
            made: the task's maps of the batch.
            task: the task.
            names: indices of the names whose maps are made.

        Returns:
            How the picture lies in the maps, and, a few names at a time, their indices and maps `[p, H, W]` in 0–1.
        """
        item = made.joined.batch[b]
        if not (self.over_picture and task.refined):
            return item.frames[0], self._finished(b, made, names)
        frame = item.frames[0]
        x0, y0, x1, y1 = frame.visible_xyxy
        offset = (frame.offset_xy[0] - x0, frame.offset_xy[1] - y0)
        inputs = replace(frame, input_hw=(y1 - y0, x1 - x0), offset_xy=offset)  # without padding
        frame = inputs.over_picture(LONGEST)
        return frame, self._over_picture(b, made, names, inputs, frame)

    def _finished(self, b: int, made: Maps, names: Sequence[int]) -> Iterator[tuple[Sequence[int], FloatArray]]:
        for some in self._lots(names, made.joined.batch[b].frames[0].input_hw):
            yield some, made.joined.of(b, some).cpu().numpy()

    def _over_picture(
        self, b: int, made: Maps, names: Sequence[int], inputs: Frame, frame: Frame
    ) -> Iterator[tuple[Sequence[int], FloatArray]]:
        """As `_finished`, after the steps over the picture.

        Args:
            b: the picture's place in the batch.
            made: the task's maps of the batch.
            names: indices of the names.
            inputs: how the picture lies in the input without its padding.
            frame: how the picture lies in the larger image that the steps work on.
        """
        item = made.joined.batch[b]
        pixels = torch.from_numpy(np.array(frame.apply(item.picture.image)))  # [H, W, 3] uint8
        stride, scales = self.backbone.stride, zip(frame.scale_xy, inputs.scale_xy, strict=True)
        width, height = (max(1, round(stride * ours / theirs)) for ours, theirs in scales)
        x0, y0, x1, y1 = item.frames[0].visible_xyxy
        for some in self._lots(names, frame.input_hw, OVER_PICTURE_AT_ONCE):
            maps = made.joined.of(b, some)  # [p, H, W]
            picture = pixels.permute(2, 0, 1)[None].to(maps.device).float() / 255  # [1, 3, H, W]
            maps = min_max(inputs.map_to_frame(maps[:, y0:y1, x0:x1], frame))
            for step in self.over_picture:
                maps = min_max(step.function(picture, maps[None], (height, width))[0])
            yield some, maps.cpu().numpy()

    def _shown(self, look: Look, batch: Sequence[Prepared]) -> Tensor:
        """What the tower is shown, `[n, 3, H, W]` in 0–1."""
        if look.windows is None:
            pixels = [batch[b].inputs[look.scale or 0] for b in look.owners]
        else:
            pixels = [batch[b].window(look.windows, frame) for b, frame in zip(look.owners, look.frames, strict=True)]
        together = stacked(pixels)  # [n, 3, H, W] uint8
        return (together.flip(-1) if look.flipped else together).to(self.backbone.device).float().div_(255)

    def _remembered(self, look: Look, batch: Sequence[Prepared]) -> AbstractContextManager[Remembered]:
        """What the memory has of a look; new results are added to it."""
        if self.memory is None:
            return nullcontext(Remembered())
        guide = None if self.guide is None else self.guide.weights_id
        seen = [(batch[b].picture.checksum, frame) for b, frame in zip(look.owners, look.frames, strict=True)]
        return self.memory.of(self.backbone, *seen, look.flipped, self.masked.precision, guide)

    def _remembered_together(self, batch: Sequence[Prepared]) -> AbstractContextManager[Remembered]:
        """What the memory has of all looks together, for the steps on the grid; new results are added to it."""
        if self.memory is None or not self.on_grid:
            return nullcontext(Remembered())
        seen = [(item.picture.checksum, item.frames) for item in batch]
        stages = [tuple(step.needs(self.backbone).features) for step in self.on_grid]
        how = ("together", self.windows, self.window_hw, self.batch_size, tuple(stages), self.guide is None)
        return self.memory.of(self.backbone, *seen, *how)


def _chosen(wanted: Wanted | None, b: int, count: int) -> Sequence[int]:
    """The names of a picture whose maps are wanted."""
    return range(count) if wanted is None else [p for p, there in enumerate(wanted[b]) if there]


def _rows(directions: Tensor, owners: Sequence[int]) -> Tensor:
    """The rows of `[B, P, D]` for each owner, `[n, P, D]`; not copied if all are of one picture."""
    if len(set(owners)) == 1:
        return directions[owners[0]].expand(len(owners), -1, -1)
    return directions[list(owners)]


def _guided(guide: Guide, pixels: Callable[[], Tensor], shared: dict[Any, Any]) -> Tensor:
    """The guide's features `[B, C, h, w]` of a batch, computed once for all methods and steps."""
    if "guide" not in shared:
        shared["guide"] = guide.features(pixels().contiguous()).to(pixels().device)
    found: Tensor = shared["guide"]
    return found


def refuse_nan(values: Tensor, batch: Sequence[Prepared], what: str, backbone: Backbone) -> None:
    """Raises a `ModelError` if values `[B, P or 1, n]` are NaN or infinite, instead of making zeros of them."""
    bad = ~values.isfinite().all(dim=-1)  # [B, P]
    if bad.any():
        b, p = (int(i) for i in bad.nonzero()[0])
        prompt = f", prompt {batch[b].texts.names[p]!r}" if what == "a map" else ""
        raise ModelError(
            f"{backbone.name} in {str(backbone.dtype).removeprefix('torch.')} gave {what} that is not a number for "
            f"{batch[b].picture.source}{prompt}: use a higher precision or check the weights"
        )


class _MaskedCount:
    """Tells how many masked pictures are done and left; it assumes that each further view needs as many as this one."""

    def __init__(self, told: Callable[[int, int], None], further_views: int) -> None:
        self._told, self._further_views, self._done = told, further_views, 0

    def __call__(self, done: int, left: int) -> None:
        self._done += done
        self._told(done, left + self._further_views * (self._done + left))


def _note(notes: list[list[str]], picture: int, remark: str) -> None:
    notes[picture].append(remark)
