"""One forward pass for each scale and mirror image of a batch, and the maps that all methods make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import ModelError
from cliploc.geometry import Frame
from cliploc.memory import Memory, Remembered
from cliploc.method import Context
from cliploc.pipeline.modes import undisturbed
from cliploc.pipeline.prepare import Prepared
from cliploc.pipeline.tasks import Task
from cliploc.pipeline.texts import Texts
from cliploc.refine import LONGEST, Refinement
from cliploc.saliency import min_max, raw_maps
from cliploc.tower import Backbone
from cliploc.values import FloatArray

Wanted = list[list[bool]]  # for each picture and name, whether its map is to be made


@dataclass(frozen=True)
class Maps:
    """What a method made of a batch.

    Attributes:
        maps: `[B, P, H, W]` in 0–1 over the first scale's input.
        not_flat: `[B, P]` bool, whether any view's map said something.
        notes: for each picture, remarks of the method.
    """

    maps: Tensor
    not_flat: Tensor
    notes: list[list[str]]


@dataclass(frozen=True)
class Computed:
    """What the views of a batch gave.

    Attributes:
        by_task: the maps of each task, in their order.
        embedding: `[B, D]` of the first view: the whole pictures, unflipped, at the first scale.
        names: `[B, P, D]` the names' embeddings.
    """

    by_task: list[Maps]
    embedding: Tensor
    names: Tensor


@dataclass(frozen=True)
class Views:
    """How a localizer looks at pictures.

    Attributes:
        backbone: the model.
        texts: what embeds names.
        flip: whether the mirrored picture's map is averaged in.
        on_grid: refinements on the feature grid.
        over_picture: refinements over the picture.
        batch_size: masked pictures sent through the tower at once.
        encode_masked: what embeds masked pictures instead of the tower; None: the tower.
        masked_precision: its precision, by which memory tells it apart.
        memory: keeps what the tower computes; None for nothing.
    """

    backbone: Backbone
    texts: Texts
    flip: bool
    on_grid: tuple[Refinement, ...]
    over_picture: tuple[Refinement, ...]
    batch_size: int
    encode_masked: Callable[[Tensor], Tensor] | None
    masked_precision: str
    memory: Memory | None

    @undisturbed  # a method that needs gradients asks for them; the caller's weights may require some
    def compute(
        self,
        batch: Sequence[Prepared],
        tasks: Sequence[Task],
        masked: Callable[[int, int], None] | None,
        wanted: Callable[[Tensor, Tensor], Wanted] | None = None,
    ) -> Computed:
        """The maps of every task.

        Args:
            batch: pictures with equally many names.
            tasks: what is made of each forward pass.
            masked: told of masked pictures; see `Reporter`.
            wanted: of the pictures' embeddings `[B, D]` and the names' `[B, P, D]`, which maps are to be made; the
                others are zero. None: all.

        Raises:
            ModelError: the tower or a method gave what is no number.
        """
        names = torch.stack([self.texts.embed(item.texts) for item in batch])  # [B, P, D]
        directions = self.texts.directions(names)
        scales = range(len(batch[0].inputs))
        views = [(scale, flipped) for scale in scales for flipped in ((False, True)[: 1 + self.flip])]
        notes: list[list[list[str]]] = [[[] for _ in batch] for _ in tasks]
        totals: list[tuple[Tensor, Tensor]] = []  # for each task, its maps so far and which said something
        embedding: Tensor | None = None
        chosen: Wanted | None = None
        for number, (scale, flipped) in enumerate(views):
            pixels = torch.stack([item.inputs[scale] for item in batch])  # [B, 3, H, W] uint8
            images = self.backbone.normalize(pixels.to(self.backbone.device).float() / 255)
            counting = None if masked is None else _MaskedCount(masked, further_views=len(views) - 1 - number)
            with self._remembered(pixels, flipped) as remembered:
                raw_maps, view_embedding = self._raw_maps(
                    images.flip(-1) if flipped else images, directions, batch, tasks, remembered, counting, notes
                )
            if embedding is None:
                embedding = view_embedding
                chosen = None if wanted is None else wanted(embedding, names)
            of_view = []
            for raw in raw_maps:
                raw = raw.flip(-1) if flipped else raw  # [B, P, h, w]
                not_flat = raw.amax(dim=(-2, -1)) > raw.amin(dim=(-2, -1))  # [B, P]
                of_view.append((_wanted_on_input(raw, batch, scale, chosen), not_flat))  # [B, P, H, W]
            totals = (
                [
                    (total + maps, some | not_flat)
                    for (total, some), (maps, not_flat) in zip(totals, of_view, strict=True)
                ]
                if totals
                else of_view
            )
        assert embedding is not None
        if len(views) > 1:
            totals = [(min_max(total), some) for total, some in totals]
        by_task = [Maps(maps, some, said) for (maps, some), said in zip(totals, notes, strict=True)]
        return Computed(by_task, embedding, names)

    @undisturbed
    def finish(self, item: Prepared, maps: Tensor) -> tuple[FloatArray, Frame]:
        """Maps `[P, H, W]` of one picture over its input → after the steps over the picture, and what they lie over."""
        frame = item.frames[0]
        if self.over_picture:
            x0, y0, x1, y1 = frame.visible_xyxy
            offset = (frame.offset_xy[0] - x0, frame.offset_xy[1] - y0)
            inputs = replace(frame, input_hw=(y1 - y0, x1 - x0), offset_xy=offset)  # without padding
            frame = inputs.over_picture(LONGEST)
            pixels = torch.from_numpy(np.array(frame.apply(item.picture.image)))  # [H, W, 3] uint8
            picture = pixels.permute(2, 0, 1)[None].to(maps.device).float() / 255  # [1, 3, H, W]
            stride, scales = self.backbone.stride, zip(frame.scale_xy, inputs.scale_xy, strict=True)
            width, height = (max(1, round(stride * ours / theirs)) for ours, theirs in scales)
            maps = min_max(inputs.map_to_frame(maps[:, y0:y1, x0:x1], frame))
            for step in self.over_picture:
                maps = min_max(step.function(picture, maps[None], (height, width))[0])
        # Cloned, so that one result kept by the user does not keep the maps of its whole batch.
        return maps.clone().cpu().numpy(), frame

    def _remembered(self, pixels: Tensor, flipped: bool) -> AbstractContextManager[Remembered]:
        """What is remembered of a batch's pixels `[B, 3, H, W]`, with place for more."""
        if self.memory is None:
            return nullcontext(Remembered())
        return self.memory.of(self.backbone, pixels, flipped, self.masked_precision)

    def _raw_maps(
        self,
        images: Tensor,
        directions: Tensor,
        batch: Sequence[Prepared],
        tasks: Sequence[Task],
        remembered: Remembered,
        masked: Callable[[int, int], None] | None,
        notes: list[list[list[str]]],
    ) -> tuple[list[Tensor], Tensor]:
        """One view of a batch, traced once → for each task raw maps `[B, P, h, w]` after ReLU; embeddings `[B, D]`."""
        needs = reduce(or_, [task.needs for task in tasks] + [step.needs(self.backbone) for step in self.on_grid])
        trace = remembered.trace(needs, lambda: self.backbone.trace(images, needs))
        refuse_nan(trace.embedding[:, None], batch, "an embedding", self.backbone)
        context = Context(
            images,
            directions,
            trace,
            self.backbone,
            self.batch_size,
            masked,
            encode_masked=self.encode_masked,
            cache=remembered.shared,
            empty_name=self.texts.empty_name,
            words=[item.texts.synonyms for item in batch],
        )
        maps = []
        for task, said in zip(tasks, notes, strict=True):
            noting = replace(context, note=partial(_note, said))
            raw = raw_maps(task.method, noting, task.options)  # [B, P, h, w]
            refuse_nan(raw.flatten(2), batch, "a map", self.backbone)
            raw = raw.relu() if task.method.relu else raw
            for step in self.on_grid:
                grid = step.grid(self.backbone, trace)
                scaled = F.interpolate(min_max(raw), size=grid, mode="bilinear", align_corners=False)
                raw = step.function(context, scaled)  # [B, P, h, w]
                refuse_nan(raw.flatten(2), batch, "a map", self.backbone)
            maps.append(raw)
        return maps, trace.embedding


def refuse_nan(values: Tensor, batch: Sequence[Prepared], what: str, backbone: Backbone) -> None:
    """Raises a `ModelError` for values `[B, P or 1, n]` that are no numbers: a NaN is never turned into a zero."""
    bad = ~values.isfinite().all(dim=-1)  # [B, P]
    if bad.any():
        b, p = (int(i) for i in bad.nonzero()[0])
        prompt = f", prompt {batch[b].texts.names[p]!r}" if what == "a map" else ""
        raise ModelError(
            f"{backbone.name} in {str(backbone.dtype).removeprefix('torch.')} gave {what} that is not a number for "
            f"{batch[b].picture.source}{prompt}: use a higher precision or check the weights"
        )


def _wanted_on_input(raw: Tensor, batch: Sequence[Prepared], scale: int, wanted: Wanted | None) -> Tensor:
    """Maps on the grid of one scale → `[B, P, H, W]` in 0–1 on the first scale's input; those not wanted are zero.

    A pixel's share of the work grows with the names, and most of them are in no picture.
    """
    if wanted is None:
        return min_max(_on_input(raw, batch, scale))
    maps = raw.new_zeros(*raw.shape[:2], *batch[0].frames[0].input_hw)
    for b, (item, names) in enumerate(zip(batch, wanted, strict=True)):
        chosen = [p for p, there in enumerate(names) if there]
        if chosen:
            maps[b, chosen] = min_max(_on_input(raw[b : b + 1, chosen], [item], scale))[0]
    return maps


def _on_input(raw: Tensor, batch: Sequence[Prepared], scale: int) -> Tensor:
    """Maps on the grid of one scale → `[B, P, H, W]` on the first scale's input, the smallest value outside."""
    frames = [frame for item in batch for frame in (item.frames[0], item.frames[scale])]
    if all(frame.resized_wh == frame.input_hw[::-1] for frame in frames):
        return F.interpolate(raw, size=batch[0].frames[0].input_hw, mode="bilinear", align_corners=False)
    placed = []
    for maps, item in zip(raw, batch, strict=True):
        base = item.frames[0]
        x0, y0, x1, y1 = base.visible_xyxy
        on_input = item.frames[scale].map_to_frame(maps, base)  # [P, H, W]
        visible = on_input[:, y0:y1, x0:x1]
        padded = visible.amin(dim=(-2, -1), keepdim=True).expand_as(on_input).clone()
        padded[:, y0:y1, x0:x1] = visible
        placed.append(padded)
    return torch.stack(placed)


class _MaskedCount:
    """Tells how many masked pictures are done and left, where each further view is taken to need as many as this."""

    def __init__(self, told: Callable[[int, int], None], further_views: int) -> None:
        self._told, self._further_views, self._done = told, further_views, 0

    def __call__(self, done: int, left: int) -> None:
        self._done += done
        self._told(done, left + self._further_views * (self._done + left))


def _note(notes: list[list[str]], picture: int, remark: str) -> None:
    notes[picture].append(remark)
