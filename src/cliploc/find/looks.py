"""Looks: forward passes of whole pictures, or of some of their windows. They give views, whose mean is a name's map."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial, reduce
from operator import or_
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc import towers
from cliploc.errors import ModelError
from cliploc.find.learnt import Redrawn
from cliploc.find.memory import Remembered, once
from cliploc.find.prepare import Prepared, stacked
from cliploc.find.running import Progress
from cliploc.find.tasks import Task
from cliploc.find.texts import Texts
from cliploc.images.geometry import Frame, Mosaic
from cliploc.methods import Context, min_max, raw_maps
from cliploc.options import Options
from cliploc.towers.tower import Backbone, Guide, Needs, Trace
from cliploc.values import TextSet

VALUES_AT_ONCE = 2**22  # of maps over the whole input that are in memory together: 16 MB, with about five copies
OVER_PICTURE_AT_ONCE = 2**25  # 134 MB: steps over the picture compute its weights again for every batch of names


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
    looks = [full_look(batch, scale, flipped) for scale in range(scales) for flipped in flips]
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
    def of(cls, backbone: Backbone, precision: str | None) -> Self:
        """In this precision, by a copy of the tower if it has another; None: the tower's."""
        dtype = backbone.dtype if precision is None else towers.resolve_precision(precision, str(backbone.device))
        encode = None if dtype == backbone.dtype else backbone.in_precision(dtype).encode_image
        return cls(encode, towers.precision_name(dtype))


@dataclass(frozen=True)
class Raw:
    """What one task makes of a batch; each look adds to it."""

    task: Task
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
                values = raw_maps(raw.task.method, context, raw.task.options)  # [n, P, h, w]
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


# ---------------------------------------------------------------------------------------------------------------- views
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
        total = reduce(torch.add, (on_input(view, self.batch[b], b, names, self.fading) for view in self.views))
        return total if len(self.views) == 1 else min_max(total)

    def on_grid(self, b: int, names: Sequence[int], grid: tuple[int, int]) -> Tensor:
        """The mean of the views, averaged in the cells of a grid over the input: `[p, h, w]`."""
        return F.interpolate(self._mean(b, names)[None], grid, mode="area")[0]


def on_input(view: View, item: Prepared, b: int, names: Sequence[int], fading: bool) -> Tensor:
    """A view's maps of some names of picture number `b` → `[p, H, W]` in 0–1 on the first scale's input."""
    base, frames, parts = item.frames[0], list[Frame](), []
    for look, values in view:
        inputs = [n for n, owner in enumerate(look.owners) if owner == b]
        frames += [look.frames[n] for n in inputs]
        parts.append(values[inputs][:, list(names)])
    chosen = torch.cat(parts)  # [frames, p, h, w]
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

    def into(self, context: Context) -> Context:
        """The whole pictures' context with these features."""
        features = self.over(context.trace)
        if not features:
            return context
        trace = replace(context.trace, features={**context.trace.features, **features})
        return replace(context, trace=trace, from_windows=True, cache={})

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
