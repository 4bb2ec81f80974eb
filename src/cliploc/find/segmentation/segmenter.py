"""`Segmenter`: label maps of pictures by several methods from the same forward passes; TLP, which PEARL needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.find import prompts
from cliploc.find.recipes import recipe_of
from cliploc.find.running import torch_modes
from cliploc.find.segmentation.protocol import Protocol
from cliploc.find.segmentation.regions import Regions, region_source, voted
from cliploc.find.tasks import Task
from cliploc.images.geometry import window_starts
from cliploc.methods import Context, find, fitting, min_max, raw_maps
from cliploc.options import short
from cliploc.refine import LONGEST, Refinement
from cliploc.support.process import in_halves
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone, Trace, as_transformer
from cliploc.values import ByteArray, FloatArray

if TYPE_CHECKING:
    from cliploc.localizer import Localizer

PixelMaps = Callable[[int, int], Tensor]  # queries from, to → their maps `[q, H, W]` over the picture's pixels

# All constants are the authors'.
GRID = 80  # about so many cells along each side
TEMPERATURE = 0.5  # of the softmax over queries
SELF = 10.0  # weight of a query's likeness to itself
EDGES = 5.0  # how much an edge of the picture weakens a link
FLOOR = 0.05  # least confidence of a cell
STEPS = 25  # of conjugate gradients
EPS = 1e-6
LUMA = (0.299, 0.587, 0.114)


def propagated(over_pixels: PixelMaps, picture: Tensor, queries: Tensor, hw: tuple[int, int], values: int) -> PixelMaps:
    """Text-aware Laplacian propagation of Pei et al. 2026 (PEARL, CVPR): (C + L) F = C X on a coarse grid.

    X are the cosines, averaged over cells of round(H / 80) × round(W / 80) pixels; p = softmax over queries of X.
    C_i = max(p_i, 0.05)² · (1 + p_iᵀ G p_i), with the largest of p_i, is how far a cell is trusted. L is the Laplacian
    of the grid's four neighbours, with w_ij = min(1, exp(−5 · g_ij / mean g) · (1 + p_iᵀ G p_j)), g the step in
    brightness. G = diag(g_q): softmax over queries of the texts' cosines / 0.5, plus 10 for itself, divided by its sum.
    Solved by 25 steps of conjugate gradients from X, for all queries together, and resized to the pixels bilinearly.

    This is the authors' code. In their paper G is the whole matrix; their product takes its diagonal alone. They use no
    logit scale in p, so that with cosines it is nearly flat.

    `picture` is normalised RGB `[1, 3, h, w]` of any size, `queries` are the texts' embeddings `[Q, D]`, `hw` is of the
    pixels. So many `values` of maps may be in memory at once.
    """
    cell = max(1, round(hw[0] / GRID)), max(1, round(hw[1] / GRID))
    at_once = max(1, values // (hw[0] * hw[1]))
    pooled = []
    for start in range(0, len(queries), at_once):
        pooled.append(F.avg_pool2d(over_pixels(start, min(start + at_once, len(queries))).float(), cell, cell))
    cosines = torch.cat(pooled)  # [Q, h, w]
    sized = F.interpolate(picture.float(), size=hw, mode="bilinear", align_corners=False)
    grey = torch.einsum("c,chw->hw", sized.new_tensor(LUMA), F.avg_pool2d(sized[0], cell, cell)).to(cosines)
    spread = solved(cosines, grey, alike(queries).to(cosines))

    return lambda start, end: F.interpolate(spread[None, start:end], hw, mode="bilinear", align_corners=False)[0]


def alike(queries: Tensor) -> Tensor:
    """`[Q]`: the diagonal of G."""
    texts = F.normalize(queries.float(), dim=-1)
    likeness = (texts @ texts.T / TEMPERATURE).softmax(dim=1)
    return (likeness.diagonal() + SELF) / (likeness.sum(dim=1) + SELF + EPS)


def solved(cosines: Tensor, grey: Tensor, weight: Tensor) -> Tensor:
    """F `[Q, h, w]` of X `[Q, h, w]`, the brightness `[h, w]` and G's diagonal `[Q]`."""
    chances = cosines.softmax(dim=0)
    weighted = weight[:, None, None] * chances
    agreement = (chances * weighted).sum(dim=0).clamp(0, 1)
    trust = chances.amax(dim=0).clamp(min=FLOOR) ** 2 * (1 + agreement)  # [h, w]
    links = []  # w between each cell and the next one along an axis
    for axis in (0, 1):
        edge = grey.diff(dim=axis).abs()
        length = grey.shape[axis]
        here, onward_weighted = chances.narrow(axis + 1, 1, length - 1), weighted.narrow(axis + 1, 0, length - 1)
        gain = 1 + (here * onward_weighted).sum(dim=0).clamp(0, 1)
        links.append(((-EDGES * edge / (edge.mean() + EPS)).exp() * gain).clamp(0, 1))

    def apply(x: Tensor) -> Tensor:
        """(C + L) x."""
        result = trust * x
        for axis, link in enumerate(links, start=1):
            flow = link * x.diff(dim=axis)
            length = x.shape[axis]
            result.narrow(axis, 1, length - 1).add_(flow)
            result.narrow(axis, 0, length - 1).sub_(flow)
        return result

    x = cosines
    residual = trust * cosines - apply(x)
    direction, squared = residual, residual.square().sum()
    for _ in range(STEPS):
        onward = apply(direction)
        step = squared / ((direction * onward).sum() + 1e-12)
        x, residual = x + step * direction, residual - step * onward
        before, squared = squared, residual.square().sum()
        direction = residual + squared / (before + 1e-12) * direction
    return x


# -------------------------------------------------------------------------------------------------------- the segmenter
R = TypeVar("R")
VALUES = 2**23  # of maps that are in memory at once in one buffer: 32 MB
Labels = npt.NDArray[np.int16]


class Segmenter:
    """Gives every pixel of a picture one of a protocol's classes, by one or more methods.

    A window's maps of all queries and methods come from one forward pass; texts are embedded once. Raw maps stay on the
    windows' grids and are resized to the picture a few queries at a time, so memory hardly grows with the number of
    queries.

    Args:
        localizer: model, refinements, templates and batch size; its views (scales, flips, windows) play no part.

    Attributes:
        unknown: query → why the model cannot know it. Such queries are left out, and a class without another query is
            never predicted.
        classes: the labels that can be predicted.
        regions: what divides pictures into regions; None where every pixel keeps its own label.

    Example:
        >>> from cliploc import Localizer
        >>> from cliploc.find.segmentation.segmenter import Segmenter
        >>> from cliploc.find.segmentation.protocol import protocol_of
        >>> segmenter = Segmenter(Localizer("mini"), protocol_of("voc21"), {"cam": {}})
        >>> segmenter.label_maps(Image.new("RGB", (300, 240)))["cam"].shape
        (240, 300)
    """

    def __init__(self, localizer: Localizer, protocol: Protocol, methods: Mapping[str, Mapping[str, Any]]) -> None:
        flow = localizer.flow
        self.protocol, self.localizer = protocol, localizer
        self.backbone: Backbone = localizer.backbone
        if protocol.position_rule != "antialiased":
            self.backbone = as_transformer(self.backbone).with_positions(protocol.position_rule)
        self.tasks: dict[str, Task] = flow.tasks.of(methods)
        for name, task in self.tasks.items():
            if not task.method.reads_text or not task.method.reads_picture:
                raise UsageError(f"{name} has the same map for every name: choose a method that reads the text")
        self._on_grid, self._over_picture = flow.steps.on_grid, flow.steps.over_picture
        self._empty_name, self._encode_masked = flow.texts.empty_name, flow.masked.encode
        self._batch_size = flow.options.batch_size
        self.regions = region_source(protocol.regions, str(self.backbone.device))
        self.unknown: dict[str, str] = {}
        if not protocol.one_thing:  # embeds the queries that the model can know, in the order of their classes
            queries = [(label, word) for label, one in enumerate(protocol.classes) for word in one.synonyms]
            words = list(dict.fromkeys(word for _, word in queries))
            self.unknown = localizer.unknown_names(words)
            known = [word for word in words if word not in self.unknown]
            if not known:
                unknown = next(iter(self.unknown.values()))
                raise UsageError(f"expected a class that {self.backbone.name} knows: {unknown}")
            place = {word: index for index, word in enumerate(known)}
            selected = [(label, word) for label, word in queries if word in place]
            self._words = [(word,) for _, word in selected]
            self.class_of = torch.tensor([label for label, _ in selected])  # [Q]
            self._queries = localizer.embed_names(known)[[place[word] for _, word in selected]]  # [Q, D]
        # Mean and standard deviation of 0–255 [1, 3, 1, 1]: the protocol's rounded ones where the tower has CLIP's.
        black, white = (self.backbone.normalize(torch.full((1, 3, 1, 1), level)).float().cpu() for level in (0.0, 1.0))
        self._std = 255 / (white - black)
        self._mean = -black * self._std
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (protocol.mean, protocol.std))
        rounding = 0.05 if self.backbone.dtype != torch.float32 else 0.002
        if (self._mean - mean).abs().max() < rounding and (self._std - std).abs().max() < rounding:
            self._mean, self._std = mean, std

    @property
    def classes(self) -> set[int]:
        """The labels that can be predicted."""
        return set(self.class_of.tolist())

    # ------------------------------------------------------------------------------------------------------ label maps
    def label_maps(
        self,
        picture: Image.Image,
        methods: Sequence[str] | None = None,
        reporter: Reporter = SILENT,
        regions: Regions | None = None,
        name: str = "",
    ) -> dict[str, Labels]:
        """The label map `[H, W]` of each method; `regions` `[H, W]`: −1 in none; None: the protocol's, by `name`."""
        tasks = self._chosen(picture, methods)
        with torch_modes(self.backbone.device):
            hw, images = (picture.height, picture.width), self._input(picture)
            if regions is None and self.regions is not None:
                regions = self.regions(picture, name)
            if regions is not None and np.shape(regions) != hw:
                raise UsageError(f"expected regions of the picture's shape {[*hw]}, got {[*np.shape(regions)]}")
            seen = self._windows(images, self._queries, self._words, tasks, reporter, regions)
            queries, class_of = self._queries, self.class_of
            chosen: Tensor | None = None
            if self.protocol.candidates:
                chosen = candidates(seen.cosines.amax(dim=0), class_of.to(seen.cosines.device), self.protocol)
                queries, class_of = queries[chosen.to(queries.device)], class_of[chosen.to(class_of.device)]
            made = {}
            for name, task in tasks.items():
                maps = seen.of[name] if chosen is None else seen.of[name][:, chosen]
                over = self._over_pixels(maps, task.method.cosines, seen, picture)
                if self.protocol.propagation == "tlp":
                    over = propagated(over, images, queries, hw, VALUES)
                labels = label_map(over, class_of, hw, self.protocol)
                made[name] = labels if regions is None else voted(labels, regions)
            return made

    def heat_maps(
        self, picture: Image.Image, name: str, methods: Sequence[str] | None = None, reporter: Reporter = SILENT
    ) -> dict[str, FloatArray]:
        """ImageNet-Segmentation: the map `[S, S]` in 0–1 of one name, over the picture squashed to S pixels a side."""
        tasks = self._chosen(picture, methods)
        with torch_modes(self.backbone.device):
            side = self.protocol.short_side
            squashed = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
            images = self._normalised(squashed)
            words = prompts.parse([name]).synonyms
            seen = self._windows(images, self.localizer.embed_names([name]), words, tasks, reporter)
            heats = {}
            for method, task in tasks.items():
                raw = seen.of[method].relu() if task.method.relu else seen.of[method]  # [1, 1, h, w]
                heat = min_max(F.interpolate(raw, size=(side, side), mode="bilinear", align_corners=False))
                for step in self._over_picture:
                    pixels = torch.from_numpy(squashed.copy()).to(heat).permute(2, 0, 1)[None] / 255
                    heat = min_max(step.function(pixels, heat, (self.backbone.stride, self.backbone.stride)))
                heats[method] = heat[0, 0].cpu().numpy()
            return heats

    # ----------------------------------------------------------------------------------------------------------- stages
    def _chosen(self, picture: Image.Image, methods: Sequence[str] | None) -> dict[str, Task]:
        # Taken as it is, not turned by EXIF data: the label map has its size.
        if not isinstance(picture, Image.Image) or picture.mode != "RGB":
            got = picture.mode if isinstance(picture, Image.Image) else type(picture).__name__
            made = "cliploc.images.reading.load(picture).image makes one"
            raise UsageError(f"expected a PIL image in RGB, got {got}: {made}")
        if methods is None:
            return self.tasks
        if isinstance(methods, str) or not methods or not {*methods} <= {*self.tasks}:
            known = ", ".join(self.tasks)
            raise UsageError(f"expected a list of the segmenter's methods ({known}), got {short(methods)}")
        return {name: task for name, task in self.tasks.items() if name in methods}

    def _input(self, picture: Image.Image) -> Tensor:
        """The tower's input `[1, 3, h, w]`: the picture resized with its ratio kept."""
        height, width = resized_hw((picture.height, picture.width), self.protocol)
        resized = cv2.resize(np.asarray(picture), (width, height), interpolation=cv2.INTER_LINEAR)
        return self._normalised(np.asarray(resized, np.uint8))

    def _normalised(self, pixels: ByteArray) -> Tensor:
        images = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float()  # [1, 3, h, w]
        return ((images - self._mean) / self._std).to(self.backbone.device, self.backbone.dtype)

    def _windows(
        self,
        images: Tensor,
        queries: Tensor,
        words: Sequence[tuple[str, ...]],
        tasks: Mapping[str, Task],
        reporter: Reporter,
        regions: Regions | None = None,
    ) -> _Seen:
        """The raw maps of every window of one picture `[1, 3, h, w]`, by every method; regions of the picture."""
        (height, width), side = images.shape[-2:], self.protocol.window
        window = (min(side, height), min(side, width)) if side else (height, width)
        tops, lefts = (
            window_starts(length, extent, self.protocol.stride) if side else [0]
            for length, extent in zip((height, width), window, strict=True)
        )
        if regions is not None:  # as a fourth channel
            sized = F.interpolate(torch.from_numpy(regions)[None, None].float(), (height, width))
            images = torch.cat([images.float(), sized.to(images.device)], dim=1)
        crops = torch.cat([images[..., y : y + window[0], x : x + window[1]] for y in tops for x in lefts])  # [W, …]
        # The remainder of the patch grid is lost, as in a convolution over patches.
        stride = self.backbone.stride
        if min(height, width) < stride:
            raise InputError(
                f"expected a picture of at least {stride} pixels a side where its longer one has "
                f"{self.protocol.long_side}, got {width}×{height}: crop it"
            )
        taken = [side // stride * stride for side in window]
        if not all(taken):
            raise UsageError(
                f"expected windows of at least {stride} pixels for {self.backbone.name}, got {window[1]}×{window[0]}: "
                "choose a larger --window"
            )
        crops = crops[..., : taken[0], : taken[1]]
        forward = partial(self._forward, queries=queries, words=words, tasks=tasks, reporter=reporter)
        at_once = any(task.needs.windows for task in tasks.values())
        parts = [forward(crops, windows=True)] if at_once else self._in_parts(crops, forward, reporter)
        joined = {name: torch.cat([maps[name] for maps, _ in parts]) for name in tasks}
        return _Seen(joined, torch.cat([part for _, part in parts]), (tops, lefts), window, (height, width))

    def _forward(
        self,
        batch: Tensor,
        queries: Tensor,
        words: Sequence[tuple[str, ...]],
        tasks: Mapping[str, Task],
        reporter: Reporter,
        windows: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Each method's maps `[n, Q, h, w]` of a batch of windows, perhaps with their regions, and cosines `[n, Q]`."""
        regions = batch[:, 3].long() if batch.shape[1] > 3 else None
        batch = batch[:, :3].to(self.backbone.dtype)
        steps = [step.needs(self.backbone) for step in self._on_grid]
        needs = reduce(or_, [task.needs for task in tasks.values()] + steps)
        traced = partial(self.backbone.trace, needs=needs)
        apart = windows and not needs.ends  # which are graphs, and cannot be joined
        trace = Trace.joined(self._in_parts(batch, traced, reporter)) if apart else traced(batch)
        context = Context(
            lambda: batch,
            queries.to(batch.device, torch.float32)[None].expand(len(batch), -1, -1),  # [n, Q, D]
            trace,
            self.backbone,
            self._batch_size,
            reporter.masked,
            encode_masked=self._encode_masked,
            empty_name=self._empty_name,
            words=[words] * len(batch),
            guide=self._guide_of(batch, reporter),
            regions=regions,
            windows=windows,
        )
        made = {}
        for name, task in tasks.items():
            maps = raw_maps(task.method, context, task.options)  # [n, Q, h, w]
            for step in self._on_grid:
                maps = stepped(step, context, maps)
            if not maps.isfinite().all():
                raise ModelError(
                    f"{self.backbone.name} gave a map that is not a number with {name}: use a higher precision or "
                    "check the weights"
                )
            made[name] = maps
        return made, trace.embedding @ queries.to(trace.embedding).T

    def _in_parts(self, batch: Tensor, work: Callable[[Tensor], R], reporter: Reporter) -> list[R]:
        """What is made of all windows of a picture, batch by batch; of halves where memory lacks."""
        batches = torch.split(batch, self._batch_size)
        return [part for batch in batches for _, part in in_halves(batch, work, reporter.halved)]

    def _guide_of(self, batch: Tensor, reporter: Reporter) -> Callable[[], Tensor] | None:
        """The guide's features of windows `[n, 3, h, w]`, computed once and only when asked for; None without guide."""
        guide = self.localizer.guide
        if guide is None:
            return None
        pixels = ((batch.float().cpu() * self._std + self._mean) / 255).clamp(0, 1)

        def features(some: Tensor) -> Tensor:
            return guide.features(some.to(batch.device)).to(batch.device)

        return cache(lambda: torch.cat(self._in_parts(pixels, features, reporter)))

    def _over_pixels(self, maps: Tensor, cosines: bool, seen: _Seen, picture: Image.Image) -> PixelMaps:
        """How maps `[W, Q, h, w]` of windows become maps over the picture's pixels, a few queries at a time."""
        low, high = maps.min(), maps.max()
        spread = (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
        if not cosines:  # the method's own scale is unknown: scale the maps of all names together to 0–1
            maps, low, spread = (maps - low) / spread, torch.zeros_like(low), torch.ones_like(spread)
        hw = (picture.height, picture.width)
        if not self._over_picture:
            return partial(_over_picture, maps, seen.sides(maps, hw))
        shrink = min(1.0, LONGEST / max(hw))
        work_hw = (max(1, round(hw[0] * shrink)), max(1, round(hw[1] * shrink)))
        small = picture if work_hw == hw else picture.resize(work_hw[::-1], Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].to(maps.device).float() / 255  # [1, 3, H, W]
        cell_h, cell_w = (
            max(1, round(self.backbone.stride * work / part)) for work, part in zip(work_hw, seen.hw, strict=True)
        )
        sides = seen.sides(maps, work_hw)

        def over(start: int, end: int) -> Tensor:
            values = (_over_picture(maps, sides, start, end) - low) / spread  # in 0–1
            for step in self._over_picture:
                values = step.function(pixels, values[None], (cell_h, cell_w))[0]
            return _resized(values * spread + low, hw)

        return over


def segmenting_methods(localizer: Localizer) -> list[str]:
    """Methods that give cosines, so maps of names compare; on a CNN the recipe's, CAM, linear in the text."""
    backbone = localizer.backbone
    able = [name for name in fitting(backbone, guided=localizer.guide is not None) if find(name).cosines]
    return able or [recipe_of(backbone).method]


@dataclass(frozen=True)
class _Seen:
    """The raw maps of the windows of one picture."""

    of: Mapping[str, Tensor]  # method → raw maps [W, Q, h, w] on the windows' grids
    cosines: Tensor  # [W, Q] of windows' embeddings
    # the tops and the lefts of the windows; every top has a window at every left
    corners: tuple[Sequence[int], Sequence[int]]
    window: tuple[int, int]  # height and width of each
    hw: tuple[int, int]  # of the resized picture

    def sides(self, maps: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Resampling of window maps, separable: `[H, tops · h]` and `[W, lefts · w]`, means of windows' places."""
        sides = []
        of_sides = zip(hw, self.corners, self.window, self.hw, maps.shape[-2:], strict=True)
        for length, starts, window, extent, cells in of_sides:
            total, times = torch.zeros(len(starts), cells, extent), torch.zeros(extent)
            for start, part in zip(starts, total, strict=True):
                part[:, start : start + window] = _resized(torch.eye(cells)[..., None], (window, 1))[..., 0]
                times[start : start + window] += 1
            sides.append(_resized((total / times).flatten(0, 1)[..., None], (length, 1))[..., 0].T.to(maps))
        return sides[0], sides[1]


def _over_picture(maps: Tensor, sides: tuple[Tensor, Tensor], start: int, end: int) -> Tensor:
    """`[q, H, W]`: some queries' maps of windows `[W, Q, h, w]` over the picture, by their `_Seen.sides`."""
    down, across = sides
    h, w = maps.shape[-2:]
    selected = maps[:, start:end].reshape(down.shape[1] // h, across.shape[1] // w, -1, h, w)  # [tops, lefts, q, h, w]
    return down @ selected.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2) @ across.T


def stepped(step: Refinement, context: Context, maps: Tensor) -> Tensor:
    """A refinement on the grid of raw maps `[n, Q, h, w]`, scaled to 0–1 together and back."""
    maps = F.interpolate(maps, size=step.grid(context), mode="bilinear", align_corners=False)
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)  # [n, 1, 1, 1]
    spread = (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
    return (step.function(context, (maps - low) / spread) * spread + low).to(maps.dtype)


def _resized(maps: Tensor, hw: tuple[int, int]) -> Tensor:
    """`[q, h, w]` → `[q, H, W]`, bilinear."""
    if maps.shape[-2:] == hw:
        return maps
    return F.interpolate(maps[None], size=hw, mode="bilinear", align_corners=False)[0]


def resized_hw(hw: tuple[int, int], protocol: Protocol) -> tuple[int, int]:
    """Height and width of a picture that is resized as mmcv does it: the ratio kept, sides rounded."""
    factor = min(protocol.long_side / max(hw), protocol.short_side / min(hw))
    return max(1, int(hw[0] * factor + 0.5)), max(1, int(hw[1] * factor + 0.5))


def label_map(over_pixels: PixelMaps, class_of: Tensor, hw: tuple[int, int], protocol: Protocol) -> Labels:
    """The label `[H, W]` of the most probable query, `class_of` `[Q]` ascending, and the background's rules."""
    labels, probability = _best(over_pixels, class_of, hw, protocol)
    if protocol.area_threshold > 0:
        counts = torch.bincount(labels.flatten(), minlength=int(class_of.max()) + 1)
        counts[0] = 0
        remaining = counts > protocol.area_threshold * counts.sum()
        remaining[0] = True
        labels, probability = _best(over_pixels, class_of, hw, protocol, remaining)
    if protocol.background_threshold > 0:
        labels = torch.where(probability < protocol.background_threshold, 0, labels)
    return labels.cpu().numpy().astype(np.int16)


def candidates(cosines: Tensor, class_of: Tensor, protocol: Protocol) -> Tensor:
    """The places of the queries that stay: those of the background, and of the classes with the greatest cosine."""
    of_class = cosines.new_full((int(class_of.max()) + 1,), -math.inf)
    of_class = of_class.scatter_reduce(0, class_of, cosines, "amax")
    if protocol.background:
        of_class[0] = math.inf
    best = of_class.argsort(descending=True, stable=True)[: protocol.candidates + protocol.background]
    return torch.isin(class_of, best).nonzero()[:, 0]


def _best(
    over_pixels: PixelMaps, class_of: Tensor, hw: tuple[int, int], protocol: Protocol, remaining: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best label `[H, W]` of those remaining, and its probability among all queries."""
    at_once = max(1, VALUES // (hw[0] * hw[1]))
    labels, best, total = torch.zeros(hw, dtype=torch.int64), torch.full(hw, -math.inf), torch.full(hw, -math.inf)
    for start in range(0, len(class_of), at_once):
        logits = protocol.logit_scale * over_pixels(start, min(start + at_once, len(class_of)))  # [q, H, W]
        labels, best, total, class_of = (tensor.to(logits.device) for tensor in (labels, best, total, class_of))
        total = torch.logaddexp(total, logits.logsumexp(dim=0).float())
        owners = class_of[start : start + at_once]
        if remaining is not None:
            logits.masked_fill_(~remaining.to(logits.device)[owners][:, None, None], -math.inf)
        value, place = logits.max(dim=0)  # the first of equal ones
        labels = torch.where(value > best, owners[place], labels)
        best = torch.maximum(best, value)
    return labels, (best - total).exp()
