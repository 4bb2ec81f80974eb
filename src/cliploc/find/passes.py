"""Forward passes of pictures or their windows give views, whose mean is a name's map; `look_inside` has the tensors."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial, reduce
from operator import or_
from typing import Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc import towers
from cliploc.errors import ModelError, UsageError
from cliploc.find.learnt import Redrawn
from cliploc.find.memory import Remembered, once
from cliploc.find.prepare import Prepared, stacked
from cliploc.find.running import Progress, torch_modes
from cliploc.find.tasks import Task
from cliploc.find.texts import Texts
from cliploc.images.geometry import Frame, Mosaic
from cliploc.methods import Context, differentiable, leaf, min_max, patches_of, raw_maps
from cliploc.methods.legrad import block_gradients
from cliploc.options import Options
from cliploc.towers.tower import Backbone, Guide, Needs, Trace, TransformerBackbone, as_transformer
from cliploc.values import TextSet

VALUES_AT_ONCE = 2**22  # of maps over the whole input that are in memory together: 16 MB, with about five copies
OVER_PICTURE_AT_ONCE = 2**25  # 134 MB: steps over the picture compute its weights again for every batch of names


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass: whole pictures at one scale, or some of their windows."""

    frames: tuple[Frame, ...]  # how each lies in its picture
    owners: tuple[int, ...]  # for each, the index of its picture in the batch
    flipped: bool  # whether the tower sees them mirrored
    scale: int | None = None  # index of the scale; None for windows
    windows: int | None = None  # index of the set of windows; None for whole pictures


PassMaps = tuple[ForwardPass, Tensor]  # a pass and its maps `[n, P, h, w]` by one task, on the tower's grid


def forward_passes(batch: Sequence[Prepared], scales: int, flip: bool, at_once: int) -> list[ForwardPass]:
    """The passes of a batch that give maps, the first one of the whole pictures. So many windows go into one."""
    flips = (False, True)[: 1 + flip]
    passes = [whole_picture_pass(batch, scale, flipped) for scale in range(scales) for flipped in flips]
    for number in range(len(batch[0].windows)):
        windows = [(b, frame) for b, item in enumerate(batch) for frame in item.windows[number]]
        for start in range(0, len(windows), at_once):
            owners, frames = zip(*windows[start : start + at_once], strict=True)
            passes += [ForwardPass(frames, owners, flipped, windows=number) for flipped in flips]
    return passes


def whole_picture_pass(batch: Sequence[Prepared], scale: int, flipped: bool = False) -> ForwardPass:
    """The pass of the whole pictures of a batch at one scale."""
    return ForwardPass(tuple(item.frames[scale] for item in batch), tuple(range(len(batch))), flipped, scale=scale)


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
    """What one task makes of a batch; each pass adds to it."""

    task: Task
    maps: list[PassMaps] = field(default_factory=list)


@dataclass(frozen=True)
class TowerOutputs:
    """What the tower and the methods make of a batch, before it is known which names are there."""

    batch: Sequence[Prepared]
    raws: list[Raw]  # of each task, in their order
    windows: list[Tensor]  # for each picture, [W, D] of its windows, not mirrored; W may be 0
    contexts: list[Context]  # the whole pictures with windows' features, at the first scale, not mirrored and mirrored
    seen: Trace  # of the whole pictures at the first scale, not mirrored
    read: Trace  # the same at the scale that is read


class PassRunner:
    """Runs a tower and methods, pass by pass; `needs_of`: what others read of a pass's trace."""

    def __init__(
        self,
        backbone: Backbone,
        texts: Texts,
        options: Options,
        masked: MaskedEncoder,
        guide: Guide | None,
        needs_of: Callable[[ForwardPass, bool], Needs],
    ) -> None:
        self._backbone, self._texts, self._options, self._guide = backbone, texts, options, guide
        self._masked, self._needs_of = masked, needs_of

    def run(
        self,
        forward: ForwardPass,
        batch: Sequence[Prepared],
        directions: Tensor,  # [B, P, D] of the pictures' names
        taught: bool,
        tower_called: Callable[[], None],
        *,
        raws: Sequence[Raw] = (),
        progress: Progress,
        needs: Needs = Needs(),  # what else its trace keeps
        seen: Remembered | None = None,  # what is known of the pass, instead of what the memory has
    ) -> Context:
        """One forward pass; the maps of every task from it, `[n, P, h, w]` after ReLU, not mirrored, go to `raws`."""

        @cache  # once, and only if the tower, a method or the guide asks for them
        def pixels() -> Tensor:  # [n, 3, H, W] in 0–1
            tower_called()
            return self._pixels(forward, batch)

        images = cache(lambda: self._backbone.normalize(pixels()))
        owners = [batch[b] for b in forward.owners]
        needs = reduce(or_, [raw.task.needs for raw in raws], self._needs_of(forward, taught) | needs)
        with self._remembered(forward, batch) if seen is None else nullcontext(seen) as remembered:
            trace = once(remembered.traces, needs, lambda: self._backbone.trace(images(), needs))
            check_finite(trace.embedding[:, None], owners, "an embedding", self._backbone)
            context = Context(
                images,
                _rows(directions, forward.owners),  # [n, P, D]
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
                raw.maps.append((forward, values.flip(-1) if forward.flipped else values))
        return context

    def _pixels(self, forward: ForwardPass, batch: Sequence[Prepared]) -> Tensor:
        if forward.windows is None:
            pixels = [batch[b].inputs[forward.scale or 0] for b in forward.owners]
        else:
            pixels = [
                batch[b].window(forward.windows, frame) for b, frame in zip(forward.owners, forward.frames, strict=True)
            ]
        together = stacked(pixels)  # [n, 3, H, W] uint8
        return (together.flip(-1) if forward.flipped else together).to(self._backbone.device).float().div_(255)

    def _remembered(self, forward: ForwardPass, batch: Sequence[Prepared]) -> AbstractContextManager[Remembered]:
        """What the memory has of a pass; new results are added to it."""
        if self._options.memory is None:
            return nullcontext(Remembered())
        guide = None if self._guide is None else self._guide.weights_id
        seen = [(batch[b].picture.checksum, frame) for b, frame in zip(forward.owners, forward.frames, strict=True)]
        return self._options.memory.of(self._backbone, *seen, forward.flipped, self._masked.precision, guide)


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
View = list[PassMaps]  # the passes that together give a map of each whole picture


def by_view(maps: Sequence[PassMaps]) -> list[View]:
    """Groups passes into views; the first pass is in the first view."""
    views: dict[tuple[int | None, int | None, bool], View] = {}
    for forward, values in maps:
        views.setdefault((forward.scale, forward.windows, forward.flipped), []).append((forward, values))
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
    for forward, values in view:
        inputs = [n for n, owner in enumerate(forward.owners) if owner == b]
        frames += [forward.frames[n] for n in inputs]
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


def not_flat(maps: Sequence[PassMaps], pictures: int) -> Tensor:
    """`[B, P]` bool: whether any pass of a picture gave a map that is not constant."""
    device = maps[0][1].device
    counts = torch.zeros(pictures, maps[0][1].shape[1], dtype=torch.int64, device=device)  # maps that are not constant
    for forward, values in maps:
        varied = values.amax(dim=(-2, -1)) > values.amin(dim=(-2, -1))  # [n, P]
        counts.index_add_(0, torch.tensor(forward.owners, device=device), varied.long())
    return counts > 0


def window_embeddings(embeddings: Sequence[PassMaps], pictures: int) -> list[Tensor]:
    """For each picture the embeddings `[W, D]` of its windows, not mirrored, from those `[n, D]` of every pass."""
    of_pictures: list[list[Tensor]] = [[] for _ in range(pictures)]
    for forward, values in embeddings:
        if forward.windows is not None and not forward.flipped:
            for n, owner in enumerate(forward.owners):
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

    def add(self, forward: ForwardPass, trace: Trace) -> None:
        """Adds the features of some windows; windows of another set are ignored."""
        if forward.windows != self._windows:
            return
        for stage, mosaics in self._mosaics.items():
            features = trace.features[stage].float()  # [n, C, h, w]
            features = features.flip(-1) if self._flipped else features
            for owner, frame, values in zip(forward.owners, forward.frames, features, strict=True):
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


# -------------------------------------------------------------------------------------------------------- inside a pass
V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Inside:
    """One picture's forward pass, at the first scale and not mirrored, and the method's raw map.

    Blocks and stages count from the end: −1 is the last. L is the number of a ViT's blocks, H of their heads, T of
    their tokens (class token and registers first, then the h·w patches row by row), d their width, D the joint space's
    size, P the number of names. All tensors are on the model's device.
    """

    names: tuple[str, ...]  # as asked for
    text: Tensor  # [P, D] float32, unit norm: the names' embeddings; their products with `embedding` are cosines
    raw: Tensor  # [P, h, w] float32, the method's map on the feature grid, before ReLU, scaling and refinements
    images: Tensor  # [1, 3, H, W] the normalised input
    frame: Frame  # how the picture lies in the input
    trace: Trace  # all that the forward pass kept; see `cliploc.towers.tower.Trace`
    backbone: Backbone  # the model

    @property
    def grid(self) -> tuple[int, int]:
        """`(h, w)`."""
        return self.trace.grid

    @property
    def embedding(self) -> Tensor:
        """`[D]` float32, unit norm, of the whole picture."""
        return self.trace.embedding[0]

    @property
    def tower(self) -> TransformerBackbone:
        """The model, known to be a ViT."""
        return as_transformer(self.backbone)

    def features(self, stage: int = -1) -> Tensor:
        """A stage's features `[C, h, w]`; of a ViT the patches entering a block, `[d, h, w]`."""
        return _stored(self.trace.features, stage, "stage")[0]

    def tokens(self, block: int = -1) -> Tensor:
        """The tokens leaving a ViT's block, `[T, d]`."""
        return _stored(self.trace.tokens, block, "block")[0]

    def attention(self, block: int = -1) -> Tensor:
        """A ViT's attention in a block after the softmax, `[H, T, T]` float32: rows are queries."""
        return _stored(self.trace.attention, block, "block")[0]

    def projections(self, block: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a ViT's block, each `[H, T, d/H]`."""
        q, k, v = _stored(self.trace.projections, block, "block")
        return q[0], k[0], v[0]

    def class_attention(self, block: int = -1) -> Tensor:
        """How much a block's class token attends to each patch, by head: `[H, h, w]`."""
        if not self.tower.prefix_tokens:
            raise UsageError(f"expected a class token, got {self.backbone.name}, which has none: use attention(block)")
        return self._on_grid(self.attention(block)[:, 0])

    def cosines(self) -> Tensor:
        """Cosine of each place's joint-space reading with each name, `[P, h, w]`; a ViT's by MaskCLIP's value path."""
        with torch_modes(self.backbone.device):
            dense = F.normalize(self.backbone.dense(self.trace)[0], dim=0)  # [D, h, w]
            text = self.tower.patch_texts(self.text) if self.backbone.kind == "vit" else self.text
            return torch.einsum("pd,dhw->phw", text, dense)

    def block_maps(self) -> Tensor:
        """Cosine of each patch leaving each block with each name, `[L, P, h, w]`, the first block first.

        Each block's tokens are read by the model's own head, as if the tower ended there ("logit lens").
        """
        with torch_modes(self.backbone.device):
            maps = []
            for block in range(-self.tower.depth, 0):
                patches = self.tokens(block)[None, self.tower.prefix_tokens :]  # [1, N, d]
                read = F.normalize(self.tower.read_tokens(patches)[0], dim=-1)  # [N, D]
                maps.append(self._on_grid(self.tower.patch_texts(self.text) @ read.T))
            return torch.stack(maps)

    def head_maps(self, block: int = -1) -> Tensor:
        """LeGrad's map of a block by head, `[P, H, h, w]`: mean over queries of ReLU(∂s/∂A).

        s is the cosine of a name with the embedding of the tokens leaving this block, A the block's attention. The mean
        over heads is this block's map in `cliploc.methods.legrad`. With an attention pool, A is the pool's.
        """
        with torch_modes(self.backbone.device):
            with torch.enable_grad():
                end = self.tower.end(_stored(self.trace.entering, block, "block"), block, self.grid)
                products, values = block_gradients(self._context, end, at_once=False)
                by_prompt = [gradient[0, 0] for gradient in products]  # each [H, T, d/H] or [H, 1, T]
            if values is not None:
                by_prompt = [gradient @ values[0] for gradient in by_prompt]  # each [H, T, T]
            return self._on_grid(torch.stack([gradient.relu().mean(dim=-2) for gradient in by_prompt]))

    @property
    def _context(self) -> Context:
        """What the helpers of the methods read; its text is the names', with nothing subtracted."""
        return Context(lambda: self.images, self.text[None], self.trace, self.backbone)

    def _on_grid(self, rows: Tensor) -> Tensor:
        """`[…, T]` or `[…, N]` → `[…, h, w]` of the patches."""
        return patches_of(self._context, rows)


def look_inside(
    backbone: Backbone,
    texts: Texts,
    guide: Guide | None,
    task: Task,
    item: Prepared,
    needs: Needs | None,
    *,
    graph: bool = False,
) -> Inside:
    """One pass of one picture that keeps `needs` (None: all of a ViT, two CNN stages), and the method's raw map."""
    everything = Needs(features=(-1, backbone.middle_stage))
    if backbone.kind == "vit":
        everything |= Needs(tokens="all", attention="all", projections="all", dense=1)
    wanted = task.needs | (everything if needs is None else needs)
    pixels = item.inputs[0][None].contiguous().to(backbone.device).float() / 255  # [1, 3, H, W]
    images = backbone.normalize(pixels)
    text = texts.embed(item.texts)  # [P, D]
    with differentiable() if graph else nullcontext():
        if graph:
            wanted = replace(wanted, ends=()) | Needs(tokens=wanted.ends)  # the ends of blocks have graphs of their own
            images, text = leaf(images), text.clone()
        trace = (backbone.run if graph else backbone.trace)(images, wanted)
    seen: Callable[[], Tensor] | None = None if guide is None else lambda: guide.features(pixels)
    names, empty_name = texts.directions(item.texts)[None], partial(texts.empty_name, item.texts)
    context = Context(
        lambda: images, names, trace, backbone, empty_name=empty_name, words=[item.texts.synonyms], guide=seen
    )
    raw = raw_maps(task.method, context, task.options)[0]
    return Inside(item.texts.names, text, raw, images, item.frames[0], trace, backbone)


def _stored(values: Mapping[int, V], index: int, what: str) -> V:
    if index not in values:
        stored = ", ".join(map(str, sorted(values))) or "none"
        raise UsageError(f"expected a {what} that the trace kept ({stored}), got {index}: ask for it with needs")
    return values[index]
