"""Forward passes: what the tower and the methods make of whole pictures (a look), or of some of their windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial, reduce
from operator import or_

import torch
from torch import Tensor

from cliploc import towers
from cliploc.errors import ModelError
from cliploc.find.memory import Remembered, once
from cliploc.find.prepare import Prepared, stacked
from cliploc.find.tasks import Task
from cliploc.find.texts import Texts
from cliploc.find.threads import Progress
from cliploc.images.geometry import Frame
from cliploc.methods import Context, raw_maps
from cliploc.options import Options
from cliploc.towers.tower import Backbone, Guide, Needs
from cliploc.values import TextSet


@dataclass(frozen=True)
class Look:
    """One forward pass: whole pictures at one scale, or some of their windows."""

    frames: tuple[Frame, ...]  # how each lies in its picture
    owners: tuple[int, ...]  # for each, the index of its picture in the batch
    flipped: bool  # whether the tower sees them mirrored
    scale: int | None = None  # index of the scale; None for windows
    windows: int | None = None  # index of the set of windows; None for whole pictures


LookMaps = tuple[Look, Tensor]  # a look and its maps `[n, P, h, w]` by one task, on the tower's grid


def looks_at(batch: Sequence[Prepared], scales: int, flip: bool, at_once: int) -> list[Look]:
    """The looks at a batch that give maps, the first one of the whole pictures. So many windows go into one."""
    flips = (False, True)[: 1 + flip]
    looks = []
    for scale in range(scales):
        looks += [full_look(batch, scale, flipped) for flipped in flips]
    for number in range(len(batch[0].windows)):
        windows = [(b, frame) for b, item in enumerate(batch) for frame in item.windows[number]]
        for start in range(0, len(windows), at_once):
            owners, frames = zip(*windows[start : start + at_once], strict=True)
            looks += [Look(frames, owners, flipped, windows=number) for flipped in flips]
    return looks


def full_look(batch: Sequence[Prepared], scale: int, flipped: bool = False) -> Look:
    """The look at the whole pictures of a batch at one scale."""
    return Look(tuple(item.frames[scale] for item in batch), tuple(range(len(batch))), flipped, scale=scale)


@dataclass(frozen=True)
class MaskedEncoder:
    """Embeds masked pictures."""

    encode: Callable[[Tensor], Tensor] | None  # [n, 3, H, W] normalised → [n, D]; None: the tower itself
    precision: str  # its precision; a `Memory` stores the embeddings of each precision apart

    @classmethod
    def of(cls, backbone: Backbone, precision: str | None) -> MaskedEncoder:
        """In this precision, by a copy of the tower if it has another; None: the tower's."""
        dtype = backbone.dtype if precision is None else towers.resolve_precision(precision, str(backbone.device))
        encode = None if dtype == backbone.dtype else backbone.in_precision(dtype).encode_image
        return cls(encode, towers.precision_name(dtype))


@dataclass(frozen=True)
class Raw:
    """What one task makes of a batch; each look adds to it."""

    task: Task
    notes: list[list[str]]  # for each picture, remarks of the method
    maps: list[LookMaps] = field(default_factory=list)


class Passes:
    """Runs a tower and methods on looks; `needs_of`: what others read of a look's trace."""

    def __init__(
        self,
        backbone: Backbone,
        texts: Texts,
        options: Options,
        masked: MaskedEncoder,
        guide: Guide | None,
        needs_of: Callable[[Look, bool], Needs],
    ) -> None:
        self._backbone, self._texts, self._options, self._guide = backbone, texts, options, guide
        self._masked, self._needs_of = masked, needs_of

    def see(
        self,
        look: Look,
        batch: Sequence[Prepared],
        directions: Tensor,  # [B, P, D] of the pictures' names
        taught: bool,
        tower_called: Callable[[], None],
        *,
        raws: Sequence[Raw] = (),
        progress: Progress,
    ) -> Context:
        """One forward pass; the maps of every task from it, `[n, P, h, w]` after ReLU, not mirrored, go to `raws`."""

        @cache  # once, and only if the tower, a method or the guide asks for them
        def pixels() -> Tensor:  # [n, 3, H, W] in 0–1
            tower_called()
            return self._pixels(look, batch)

        images = cache(lambda: self._backbone.normalize(pixels()))
        owners = [batch[b] for b in look.owners]
        needs = reduce(or_, [raw.task.needs for raw in raws], self._needs_of(look, taught))
        with self._remembered(look, batch) as remembered:
            trace = once(remembered.traces, needs, lambda: self._backbone.trace(images(), needs))
            check_finite(trace.embedding[:, None], owners, "an embedding", self._backbone)
            context = Context(
                images,
                _rows(directions, look.owners),  # [n, P, D]
                trace,
                self._backbone,
                self._options.batch_size,
                progress,
                encode_masked=self._masked.encode,
                cache=remembered.shared,
                empty_name=partial(of_names, owners, self._texts.empty_name),
                words=[item.texts.synonyms for item in owners],
                guide=None if self._guide is None else partial(_guided, self._guide, pixels, remembered),
            )
            for raw in raws:
                noting = replace(context, note=partial(_note, [raw.notes[b] for b in look.owners]))
                values = raw_maps(raw.task.method, noting, raw.task.options)  # [n, P, h, w]
                check_finite(values.flatten(2), owners, "a map", self._backbone)
                values = values.relu() if raw.task.method.relu else values
                raw.maps.append((look, values.flip(-1) if look.flipped else values))
        return context

    def _pixels(self, look: Look, batch: Sequence[Prepared]) -> Tensor:
        if look.windows is None:
            pixels = [batch[b].inputs[look.scale or 0] for b in look.owners]
        else:
            pixels = [batch[b].window(look.windows, frame) for b, frame in zip(look.owners, look.frames, strict=True)]
        together = stacked(pixels)  # [n, 3, H, W] uint8
        return (together.flip(-1) if look.flipped else together).to(self._backbone.device).float().div_(255)

    def _remembered(self, look: Look, batch: Sequence[Prepared]) -> AbstractContextManager[Remembered]:
        """What the memory has of a look; new results are added to it."""
        if self._options.memory is None:
            return nullcontext(Remembered())
        guide = None if self._guide is None else self._guide.weights_id
        seen = [(batch[b].picture.checksum, frame) for b, frame in zip(look.owners, look.frames, strict=True)]
        return self._options.memory.of(self._backbone, *seen, look.flipped, self._masked.precision, guide)


def of_names(batch: Sequence[Prepared], make: Callable[[TextSet], Tensor]) -> Tensor:
    """What is made of each picture's names, `[B, P, D]`; stored once if all pictures have the same names."""
    first = batch[0].texts
    if all(item.texts == first for item in batch):
        return make(first).expand(len(batch), -1, -1)
    return torch.stack([make(item.texts) for item in batch])


def _rows(directions: Tensor, owners: Sequence[int]) -> Tensor:
    """The rows of `[B, P, D]` for each owner, `[n, P, D]`; not copied if all are of one picture."""
    if len(set(owners)) == 1:
        return directions[owners[0]].expand(len(owners), -1, -1)
    return directions[list(owners)]


def _guided(guide: Guide, pixels: Callable[[], Tensor], remembered: Remembered) -> Tensor:
    """The guide's features `[B, C, h, w]` of a batch, computed once for all methods and steps."""
    features: Tensor = once(
        remembered.shared, "guide", lambda: guide.features(pixels().contiguous()).to(pixels().device)
    )
    return features


def _note(notes: list[list[str]], picture: int, remark: str) -> None:
    notes[picture].append(remark)


class MaskedCount:
    """Counts masked pictures done and left; it assumes that each further look needs as many as this one."""

    def __init__(self, progress: Progress, further_looks: int) -> None:
        self._progress, self._further_looks, self._done = progress, further_looks, 0

    def __call__(self, done: int, left: int) -> None:
        """So many more are done, and so many left in this look."""
        self._done += done
        self._progress(done, left + self._further_looks * (self._done + left))


def check_finite(values: Tensor, batch: Sequence[Prepared], what: str, backbone: Backbone) -> None:
    """Raises a `ModelError` if values `[B, P or 1, n]` are NaN or infinite, instead of making zeros of them."""
    if values.sum().isfinite():  # mostly so, and seen in one pass; a sum of finite values may be infinite
        return
    bad = ~values.isfinite().all(dim=-1)  # [B, P]
    if bad.any():
        b, p = (int(i) for i in bad.nonzero()[0])
        prompt = f", prompt {batch[b].texts.names[p]!r}" if what == "a map" else ""
        raise ModelError(
            f"{backbone.name} in {str(backbone.dtype).removeprefix('torch.')} gave {what} that is not a number for "
            f"{batch[b].picture.source}{prompt}: use a higher precision or check the weights"
        )
