"""`Localizer`: the only composition of the stages, from picture and names to heatmaps and boxes.

Upsampling, normalising, the NaN policy, scales and flips live here, once, for every method.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial, reduce
from operator import or_
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc import backbones, prompts
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.errors import InputError, ModelError, UsageError
from cliploc.geometry import POLICIES, Frame
from cliploc.heads import load_head, read_config, weights_hash
from cliploc.images import ImageLike, Picture, load, pictures_in
from cliploc.memory import Memory, View
from cliploc.refine import LONGEST, chosen
from cliploc.report.overlay import draw_overlay
from cliploc.saliency import EnsembleRule, find, fitting, min_max, raw_maps, resolve_options, unfit_reason
from cliploc.schema import (
    Backbone,
    Boxes,
    Context,
    FloatArray,
    Localization,
    Method,
    Needs,
    ResizePolicy,
    TextSet,
    TrainedHead,
)
from cliploc.text_cache import TextCache, cache_folder

T = TypeVar("T")
Names = Sequence[str] | Sequence[Sequence[str]] | Iterator[Sequence[str]]
DECODERS = 2  # threads that read and resize pictures while the tower works on those before


class DrawableLocalization(Localization):
    """A `Localization` that can draw itself."""

    def overlay(self, names: Sequence[str] | None = None, **style: Any) -> Image.Image:
        """The picture with heatmap and boxes; see `cliploc.report.overlay.draw_overlay`."""
        return draw_overlay(self, names, **style)

    def boxes_by(self, rule: BoxRule) -> Boxes:
        """The boxes that another rule makes of the same maps; no model runs, and nothing here changes."""
        return _boxes(self.frame, self.maps, self.found, self.presence, self.names, rule)


class Classified(NamedTuple):
    """One name a picture may be called.

    Attributes:
        name: as asked for.
        probability: softmax over all names asked for, at the model's logit scale.
        cosine: between picture and name.
    """

    name: str
    probability: float
    cosine: float


class Classification(NamedTuple):
    """What one picture may be called.

    Attributes:
        picture: the upright picture, where it came from, and remarks on how it was read.
        names: best first.
    """

    picture: Picture
    names: list[Classified]


def absence(presence: float, least: float) -> str:
    """Why a name whose calibrated probability is below the least is not found."""
    return f"not in the picture: presence {presence:.2f} is below {least:g}"


@dataclass(frozen=True)
class _Prepared:
    """One picture, decoded and laid onto the model's input at every scale."""

    picture: Picture
    texts: TextSet
    frames: tuple[Frame, ...]
    inputs: tuple[Tensor, ...]  # each uint8 [3, H, W]


@dataclass(frozen=True)
class _Task:
    """One method's part of the work on a batch."""

    method: Method
    options: Mapping[str, Any]
    box_rule: BoxRule

    @property
    def needs(self) -> Needs:
        return self.method.needs(**self.options)

    def reason(self, words: tuple[str, ...], absent: str | None) -> str | None:
        """Why a name is not found: `absent`, unless a closed head knows which names there are."""
        closed = [value for value in self.options.values() if isinstance(value, TrainedHead) and value.closed]
        return next((head.unknown_reason(words) for head in closed), None) if closed else absent


class Localizer:
    """Finds named things in pictures with one model and one saliency method.

    Args:
        model: a name of `cliploc models`, or a `Backbone`.
        pretrained: which weights; None for the model's own.
        method: a name of `cliploc methods`, or several joined by "+", whose maps are averaged: "gem+legrad"; None for
            the tower's own, `default_method(model)`.
        method_options: options of that method, such as `{"temperature": 0.01}`; of several, `{"score_cam.block": -2}`
            is for one of them, and an option named alone for all that have it.
        head: the file of trained layers that `cliploc train` made for the method; it names the method where none is.
        ensemble: how the maps of several methods are made comparable: "minmax" (0–1 each), or by "rank".
        templates: sentences with one `{}`, or "default", "openai-80", "name-only".
        background: names of what is around: the map shows what speaks for a name more than for these, and a name that
            scores below one of them is not found.
        resize: how a picture meets the input: "squash", "crop" (CLIP's own) or "pad"; None for the model's own.
        image_size: input side in pixels, or (height, width); None for the model's own.
        scales: input sizes, as multiples, whose maps are averaged.
        flip: whether the mirrored picture's map is averaged in.
        refine: steps that follow the method, by their names in `cliploc refinements`, such as ("caa", "guided").
        threshold: τ of the boxes, a share of the map's maximum, or "auto"; None for the method's own, or what suits it
            after the refinements.
        components: boxes round "all" hot regions or only the "largest".
        min_area: regions smaller than this share of the picture get no box.
        max_boxes: at most so many boxes a name; None for all.
        nms_iou: overlap above which the weaker box of a name is dropped; None for no suppression.
        min_presence: names whose calibrated probability is below are "not found"; 0 asks every name to be located. Only
            models that are calibrated use it.
        device: a torch device; None for the best there is.
        precision: the tower's, "fp32", "bf16", "fp16" or "auto"; maps and scores are float32 in any case. Only of a
            model that is given by name.
        masked_precision: that of the Score-CAM family's masked pictures, whose hundreds of forwards take all its time.
            "bf16" halves it on processors that have bfloat16, and the features that maps are made of keep the tower's
            precision; "auto" takes it where it is native. None: the tower's.
        text_cache: whether embeddings of names are kept on disk for the next time; see `cliploc.text_cache`.
        memory: keeps in memory what the towers compute, so that other names, or methods that read the same, cost no
            forward pass on pictures that were seen before, alone or in the same batch; may serve several localizers,
            one after the other. See `cliploc.memory.Memory`.
        batch_size: pictures (and masked pictures) sent through the tower at once.

    Raises:
        UsageError: an unknown name or a value outside its range.
        ModelError: weights that cannot be loaded.

    Example:
        >>> localizer = Localizer(model="mini", method="cam", scales=(1, 1.5), flip=True)
        >>> found = localizer(np.zeros((64, 48, 3), np.uint8), ["cat", "remote control"])
        >>> found.heatmaps.shape
        (2, 64, 48)
    """

    def __init__(
        self,
        model: str | Backbone = "mini",
        pretrained: str | None = None,
        method: str | None = None,
        *,
        method_options: Mapping[str, Any] | None = None,
        head: str | os.PathLike[str] | None = None,
        ensemble: EnsembleRule = "minmax",
        templates: Sequence[str] | str | None = None,
        background: Sequence[str] = (),
        resize: ResizePolicy | None = None,
        image_size: int | tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        refine: Sequence[str] = (),
        threshold: float | Literal["auto"] | None = None,
        components: Literal["all", "largest"] = "all",
        min_area: float = 0.001,
        max_boxes: int | None = None,
        nms_iou: float | None = 0.5,
        min_presence: float = 0.5,
        device: str | None = None,
        precision: str = "fp32",
        masked_precision: str | None = None,
        batch_size: int = 16,
        text_cache: bool = True,
        memory: Memory | None = None,
    ) -> None:
        trained_for = None if head is None else read_config(os.fspath(head)).method
        self.method = find(method or trained_for or default_method(model), ensemble)
        if trained_for is not None and trained_for not in [m.name for m in members(self.method)]:
            raise UsageError(f"{head} is trained for {trained_for}, got method {self.method.name}: use {trained_for}")
        self.method_options = resolve_options(self.method, method_options or {})
        self.ensemble: EnsembleRule = ensemble
        self.templates = prompts.resolve_templates(templates)
        background_texts = prompts.parse(background, self.templates) if background else None
        self._own_thresholds = threshold is None
        self.box_rule = BoxRule(
            self.method.threshold if threshold is None else threshold, components, min_area, max_boxes, nms_iou
        )
        if not 0 <= min_presence <= 1:
            raise UsageError(f"expected min_presence from 0 to 1, got {min_presence}")
        self.min_presence = min_presence
        if not isinstance(scales, list | tuple) or not scales or not all(0.25 <= scale <= 8 for scale in scales):
            raise UsageError(f"expected a list of scales from 0.25 to 8, got {scales!r}")
        self.scales, self.flip = tuple(float(scale) for scale in scales), flip
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"expected a batch_size, a whole number of at least 1, got {batch_size!r}")
        self.batch_size = batch_size
        if resize is not None and resize not in POLICIES:
            raise UsageError(f"expected a resize policy of {', '.join(POLICIES)}, got {resize!r}")
        self.backbone = (
            backbones.create(model, pretrained, _checked_device(device), precision=precision)
            if isinstance(model, str)
            else model
        )
        self._encode_masked = _in_precision(self.backbone, masked_precision)
        self.precision = backbones.precision_name(self.backbone.dtype)
        self.masked_precision = self.precision
        if masked_precision is not None:
            masked_dtype = backbones.resolve_precision(masked_precision, str(self.backbone.device))
            self.masked_precision = backbones.precision_name(masked_dtype)
        self._memory = memory
        self._text_cache = _text_cache_of(self.backbone) if text_cache else None
        self._head_file = head
        self._head = None if head is None else load_head(os.fspath(head), self.backbone)
        self._loaded_options = self._with_heads(self.method, self.method_options)
        self._check_tower(self.method, self._loaded_options)
        steps = chosen(refine, self.backbone)
        self.refine = tuple(step.name for step in steps)
        self._on_grid = tuple(step for step in steps if step.on == "grid")
        self._over_picture = tuple(step for step in steps if step.on == "picture")
        if self._own_thresholds:
            self.box_rule = self._own_box_rule(self.method)
        self.resize: ResizePolicy = resize or self.backbone.resize_policy
        self.input_hw = self._input_hw(image_size)
        self._embeddings: dict[tuple[str, ...], Tensor] = {}
        self._known: dict[tuple[str, ...], tuple[tuple[str, ...], str | None]] = {}
        if background_texts is not None:
            for words in background_texts.synonyms:
                if reason := self._unknown_reason(words):
                    raise UsageError(f"background name {words[0]!r} cannot be used: {reason}")
        self._background = None if background_texts is None else self._embed(background_texts)  # [K, D]
        self._background_names = () if background_texts is None else background_texts.names
        self.background = () if background_texts is None else tuple(map("|".join, background_texts.synonyms))

    # ------------------------------------------------------------------------------------------------------ use it
    @overload
    def __call__(self, images: ImageLike, names: Sequence[str]) -> DrawableLocalization: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], names: Names) -> list[DrawableLocalization]: ...
    def __call__(
        self, images: ImageLike | list[Any] | tuple[Any, ...], names: Names
    ) -> DrawableLocalization | list[DrawableLocalization]:
        """Locates every name in every picture.

        Args:
            images: a path, PIL image or array, or a list of them.
            names: one list for all pictures, or one list for each. "cat|kitten": synonyms.

        Returns:
            One `Localization`, or a list of them in the pictures' order.

        Raises:
            InputError: a picture cannot be read (`stream` can go on instead).
            UsageError: a name or the number of name lists is wrong.
            ModelError: the tower returned NaN.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, names))
        return next(self.stream([images], names))

    def stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        names: Names,
        on_error: Callable[[str, InputError], None] | None = None,
        on_masked: Callable[[int, int], None] | None = None,
    ) -> Iterator[DrawableLocalization]:
        """Locates names in any number of pictures, in order, holding only a few at a time.

        Args:
            images: paths, PIL images or arrays, or one of them; read ahead by a few.
            names: one list for all pictures, or one for each; an iterator of them is asked for a picture's names after
                `images` for the picture.
            on_error: called with the picture's name and the error for each that cannot be read, which is then left
                out; None to raise.
            on_masked: called with the number of masked pictures just done, and about how many this batch of pictures
                still takes, by methods that make hundreds of them (the Score-CAM family), so that a long wait can show
                progress.

        Yields:
            One `Localization` a picture.
        """
        task = _Task(self.method, self._loaded_options, self.box_rule)
        for batch in self._batches(self._prepared(images, names, on_error)):
            for (result,) in self._localize(batch, (task,), on_masked):
                yield result

    def compare(
        self,
        images: ImageLike | Iterable[ImageLike],
        names: Names,
        methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
        on_error: Callable[[str, InputError], None] | None = None,
        on_masked: Callable[[int, int], None] | None = None,
        on_memory: Callable[[int], None] | None = None,
        absent_maps: bool = True,
    ) -> Generator[dict[str, DrawableLocalization], None, None]:
        """As `stream`, with several methods beside each other out of one forward pass of the tower.

        One trace holds what all of them need, and masked pictures are shared, so that each further method costs only
        its own work.

        Args:
            images: as for `stream`.
            names: as for `stream`.
            methods: names, or ensembles such as "gem+legrad"; or a mapping from these to their options. The localizer's
                own method and options play no part; its threshold does, when one was given: else each has its own.
            on_error: as for `stream`.
            on_masked: as for `stream`.
            on_memory: called with the number of pictures of a batch for which there was too little memory, and which is
                then done in two halves; None to raise.
            absent_maps: whether names that are not in a picture have a map too; without, theirs is zero, and the time
                that it takes is saved.

        Yields:
            For each picture, the `Localization` by every method, under the text it was asked for.

        Raises:
            UsageError: a method that does not exist or does not work on this tower, or an option it does not have.

        Example:
            >>> for found in Localizer().compare(["cat.jpg"], ["cat"], ["cam", "layer_cam"]):  # doctest: +SKIP
            ...     print(found["cam"].boxes.xyxy, found["layer_cam"].boxes.xyxy)
        """
        if isinstance(methods, str) or not methods:
            raise UsageError(f"expected a list of methods, got {methods!r}: write ['cam']")
        asked = methods if isinstance(methods, Mapping) else {spec: {} for spec in methods}
        tasks = tuple(self._task(spec, options) for spec, options in asked.items())
        return self._compare(
            self._batches(self._prepared(images, names, on_error)),
            tuple(asked),
            tasks,
            on_masked,
            on_memory,
            absent_maps,
        )

    def _compare(
        self,
        batches: Iterator[list[_Prepared]],
        specs: tuple[str, ...],
        tasks: tuple[_Task, ...],
        on_masked: Callable[[int, int], None] | None,
        on_memory: Callable[[int], None] | None,
        absent_maps: bool,
    ) -> Generator[dict[str, DrawableLocalization], None, None]:
        for batch in batches:
            for results in self._localize(batch, tasks, on_masked, on_memory, absent_maps):
                yield dict(zip(specs, results, strict=True))

    @overload
    def classify(
        self, images: ImageLike, names: Sequence[str] | Literal["imagenet"] = "imagenet", top_k: int = 5
    ) -> list[Classified]: ...
    @overload
    def classify(
        self,
        images: list[Any] | tuple[Any, ...],
        names: Sequence[str] | Literal["imagenet"] = "imagenet",
        top_k: int = 5,
    ) -> list[list[Classified]]: ...
    def classify(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        names: Sequence[str] | Literal["imagenet"] = "imagenet",
        top_k: int = 5,
    ) -> list[Classified] | list[list[Classified]]:
        """Zero-shot classification (Radford 2021, section 3.1): which of the names fits each picture best.

        The whole picture is compared, once, at the first scale; `method`, `flip` and `background` play no part.

        Args:
            images: a path, PIL image or array, or a list of them.
            names: what to choose from ("cat|kitten": synonyms), or "imagenet" for its 1,000 classes.
            top_k: how many of the names, best first.

        Returns:
            A list of `Classified` for the picture, or one for each picture.

        Raises:
            InputError: a picture cannot be read.
            UsageError: a name or `top_k` that cannot be used, or no name that the model knows.
            ModelError: the tower returned NaN.

        Example:
            >>> localizer = Localizer()
            >>> [best] = localizer.classify(np.zeros((64, 48, 3), np.uint8), ["cat", "dog"], top_k=1)
            >>> best.name in ("cat", "dog")
            True
        """
        if not isinstance(images, list | tuple):
            return self.classify([images], names, top_k)[0]
        return [one.names for one in self.classify_stream(images, names, top_k)]

    def classify_stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        names: Sequence[str] | Literal["imagenet"] = "imagenet",
        top_k: int = 5,
        on_error: Callable[[str, InputError], None] | None = None,
    ) -> Iterator[Classification]:
        """As `classify`, for any number of pictures, in order, holding only a few at a time.

        Args:
            images: paths, PIL images or arrays, or one of them; read ahead by a few.
            names: as for `classify`; those in `unknown_names` take no part.
            top_k: as for `classify`.
            on_error: called with the picture's name and the error for each that cannot be read, which is then left
                out; None to raise.

        Yields:
            One `Classification` a picture.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise UsageError(f"expected a top_k, a whole number of at least 1, got {top_k!r}")
        if isinstance(names, str) and names == "imagenet":
            names = [one.name for one in prompts.imagenet_classes()]
        unknown = self.unknown_names(names)
        if len(unknown) == len(names):
            raise UsageError(f"expected a name that {self.backbone.name} knows: {next(iter(unknown.values()))}")
        known = [entry for entry in names if prompts.parse([entry]).names[0] not in unknown]
        for batch in self._batches(self._prepared(images, known, on_error)):
            ranked = self._classified(batch, top_k)
            for item, best in zip(batch, ranked, strict=True):
                yield Classification(item.picture, best)

    def embed_names(self, names: Sequence[str]) -> Tensor:
        """What the names are compared by.

        Args:
            names: "cat|kitten": synonyms, averaged, as are the templates.

        Returns:
            `[P, D]` float32, unit norm, on the model's device; times `Localization.embedding` it is a cosine.

        Raises:
            UsageError: a name that cannot be used.

        Example:
            >>> tuple(Localizer().embed_names(["cat|kitten", "dog"]).shape)
            (2, 1280)
        """
        return self._embed(prompts.parse(names, self.templates))

    def box_rule_of(self, method: str, options: Mapping[str, Any] | None = None) -> BoxRule:
        """How `compare` makes boxes of a method's maps: with the threshold given, else the method's own.

        Raises:
            UsageError: a method or option that does not work on this tower.

        Example:
            >>> Localizer(threshold=0.25).box_rule_of("layer_cam").threshold
            0.25
        """
        return self._task(method, options or {}).box_rule

    def options_of(self, method: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options of a method, those that are not given at their defaults; errors as in `box_rule_of`.

        A trained head is named by its file.
        """
        return self._options_of(self._task(method, options or {}), options or {})

    def _options_of(self, task: _Task, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of a task that was made of the options given."""
        files = {key: value for key, value in resolve_options(task.method, given).items() if value is not None}
        named = {**task.method.options, **task.options, **files}
        return {
            key: (str(self._head_file) if value is self._head else "a head in memory")
            if isinstance(value, TrainedHead)
            else value
            for key, value in named.items()
        }

    def describe(self, method: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that the results depend on, with the defaults filled in: the identity of a run.

        This is the only list of it: runs, benchmarks and what else must tell results apart take it from here. Models
        and trained heads are told apart by the checksum of their contents. Not in it: `device`, `memory` and
        `text_cache`, which say where results are computed and kept; they change the last bit of a number at most.

        Args:
            method: as for `compare`; None for the localizer's own, with its options.
            options: of that method.

        Returns:
            Option → value; plain values, except for objects that were given as options.

        Raises:
            UsageError: a method or option that does not work on this tower.

        Example:
            >>> Localizer(scales=(1, 1.5)).describe()["scales"]
            (1.0, 1.5)
        """
        spec, given = (self.method.name, self.method_options) if method is None else (method, options or {})
        task = self._task(spec, given)
        return {
            "model": self.backbone.name,
            "weights": self._weights,
            "method": task.method.name,
            "options": self._options_of(task, given),
            "heads": {key: head.digest() for key, head in task.options.items() if isinstance(head, TrainedHead)},
            "ensemble": self.ensemble if task.method.members else None,  # of one method there is nothing to average
            "templates": self.templates,
            "background": self.background,
            "resize": self.resize,
            "image_size": self.input_hw,
            "scales": self.scales,
            "flip": self.flip,
            "refine": self.refine,
            **asdict(task.box_rule),
            "min_presence": self.min_presence,
            "precision": self.precision,
            "masked_precision": self.masked_precision,
            "batch_size": self.batch_size,  # numbers differ in their last bits beside other pictures
        }

    @cached_property
    def _weights(self) -> str:
        return weights_hash(self.backbone)

    def unknown_names(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the names that the model cannot know, none of their synonyms, each with the reason."""
        texts = prompts.parse(names)
        reasons = {words[0]: self._unknown_reason(words) for words in texts.synonyms}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    @torch.no_grad()
    def _classified(self, batch: list[_Prepared], top_k: int) -> list[list[Classified]]:
        pixels = torch.stack([item.inputs[0] for item in batch])  # [B, 3, H, W] uint8
        embedding = self.backbone.encode_image(self.backbone.normalize(pixels.to(self.backbone.device).float() / 255))
        self._refuse_nan(embedding[:, None], batch, "an embedding")
        texts = batch[0].texts  # the same for all
        cosines = embedding @ self._embed(texts).T.to(embedding)  # [B, P]
        probabilities = (self.backbone.logit_scale * cosines).softmax(dim=-1)  # [B, P]
        best = cosines.topk(min(top_k, len(texts))).indices  # [B, k]
        return [
            [Classified(texts.names[p], float(probabilities[b, p]), float(cosines[b, p])) for p in row.tolist()]
            for b, row in enumerate(best)
        ]

    # ------------------------------------------------------------------------------------------------- preparation
    def _input_hw(self, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
        if image_size is None:
            return self.backbone.input_hw
        sides = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
        stride = self.backbone.stride
        whole = len(sides) == 2 and all(isinstance(side, int) for side in sides)
        if not whole or min(sides) < stride or max(sides) > 4096 or any(side % stride for side in sides):
            raise UsageError(
                f"expected an image_size of multiples of {stride} from {stride} to 4096 for {self.backbone.name}, got "
                f"{'×'.join(str(side) for side in sides)}"
            )
        return sides[0], sides[1]

    def _task(self, spec: str, options: Mapping[str, Any]) -> _Task:
        method = find(spec, self.ensemble)
        options = self._with_heads(method, resolve_options(method, options))
        self._check_tower(method, options)
        return _Task(method, options, self._own_box_rule(method) if self._own_thresholds else self.box_rule)

    def _own_box_rule(self, method: Method) -> BoxRule:
        """With the method's own threshold, as it is after the refinements."""
        threshold = method.threshold
        for step in (*self._on_grid, *self._over_picture):
            threshold = step.threshold(threshold)
        return replace(self.box_rule, threshold=threshold)

    def _with_heads(self, method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with trained heads in the place of their files, and the localizer's own where it fits."""
        loaded = dict(options)
        for member in members(method):
            if "head" not in member.options:
                continue
            key = f"{member.name}.head" if method.members else "head"
            if isinstance(loaded.get(key), str | os.PathLike):
                loaded[key] = load_head(loaded[key], self.backbone)
            elif loaded.get(key) is None and self._head is not None and self._head.method == member.name:
                loaded[key] = self._head
            trained = loaded.get(key)
            if trained is not None and trained.method != member.name:
                raise UsageError(f"{member.name} takes a head trained for it, got one trained for {trained.method}")
        return loaded

    def _check_tower(self, method: Method, options: Mapping[str, Any]) -> None:
        heads = {m.name for m in members(method) if options.get(f"{m.name}.head" if method.members else "head")}
        reason = unfit_reason(method, self.backbone, options, heads)
        if reason is None:
            return
        if unfit_reason(method, self.backbone, trained=heads) is None:
            raise UsageError(f"{reason}: leave the option out, or choose another model")
        more = ", or give it a head trained on this tower" if _a_head_would_do(method, self.backbone) else ""
        raise UsageError(f"{reason}: use one of {', '.join(fitting(self.backbone))}{more}")

    def _prepared(
        self, images: ImageLike | Iterable[ImageLike], names: Names, on_error: Callable[[str, InputError], None] | None
    ) -> Iterator[_Prepared | None]:
        """Decodes and resizes ahead of the tower, in order; None for a picture that cannot be read."""
        jobs = self._with_texts(images, names)
        pool = ThreadPoolExecutor(DECODERS, "cliploc-decode")
        waiting: deque[tuple[str, Future[_Prepared]]] = deque()
        try:
            while True:
                for image, source, texts in itertools.islice(jobs, self.batch_size + DECODERS - len(waiting)):
                    waiting.append((source, pool.submit(self._prepare, image, source, texts)))
                if not waiting:
                    return
                source, future = waiting.popleft()
                try:
                    prepared = future.result()
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(source, error)
                    yield None
                else:
                    yield prepared
        finally:
            pool.shutdown(cancel_futures=True)  # nobody will take what was read ahead

    def _with_texts(
        self, images: ImageLike | Iterable[ImageLike], names: Names
    ) -> Iterator[tuple[ImageLike, str, TextSet]]:
        if isinstance(names, str):
            raise UsageError(f"expected a list of names, got the single text {names!r}: write [{names!r}]")
        images = pictures_in(images)
        shared: TextSet | None = None
        per_image: Iterator[Sequence[str]] = iter(())
        if isinstance(names, Iterator):
            per_image = names
        elif not names or isinstance(names[0], str):
            shared = prompts.parse(names, self.templates)  # type: ignore[arg-type]
        else:
            per_image = iter(names)
            if isinstance(images, Sequence) and len(images) != len(names):
                raise UsageError(f"expected a list of names for each of {len(images)} pictures, got {len(names)} lists")
        for number, image in enumerate(images):
            source = str(image) if isinstance(image, str | os.PathLike) else f"image {number}"
            if shared is not None:
                yield image, source, shared
                continue
            asked = next(per_image, None)
            if asked is None:
                raise UsageError(f"expected a list of names for each picture, got none for picture {number} ({source})")
            yield image, source, prompts.parse(asked, self.templates)

    def _prepare(self, image: ImageLike, source: str, texts: TextSet) -> _Prepared:
        picture = load(image, source)
        original_hw = (picture.image.height, picture.image.width)
        try:
            frames = tuple(Frame.fit(self.resize, original_hw, self._scaled_hw(scale)) for scale in self.scales)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        inputs = tuple(
            torch.from_numpy(np.asarray(frame.apply(picture.image)).transpose(2, 0, 1).copy()) for frame in frames
        )
        return _Prepared(picture, texts, frames, inputs)

    def _scaled_hw(self, scale: float) -> tuple[int, int]:
        stride = self.backbone.stride
        height, width = (max(stride, round(side * scale / stride) * stride) for side in self.input_hw)
        return height, width

    def _batches(self, prepared: Iterator[_Prepared | None]) -> Iterator[list[_Prepared]]:
        """Consecutive pictures with equally many names, so that no method sees a name nobody asked for.

        A picture that cannot be read keeps its place in a batch empty: the others are computed beside the same
        neighbours, to the same last bit, as if it were whole.
        """
        batch: list[_Prepared] = []
        places = 0
        for item in prepared:
            if item is not None and batch and len(item.texts) != len(batch[0].texts):
                yield batch
                batch, places = [], 0
            places += 1
            if item is not None:
                batch.append(item)
            if places == self.batch_size:
                if batch:
                    yield batch
                batch, places = [], 0
        if batch:
            yield batch

    @torch.no_grad()
    def _embed(self, texts: TextSet) -> Tensor:
        """`[P, D]` unit norm; every name is embedded once in the localizer's life."""
        known = [self._words(words)[0] for words in texts.synonyms]
        new = [words for words in dict.fromkeys(known) if words not in self._embeddings and not self._recall(words)]
        for part in _chunks(new, 64):  # what is done is kept when a thousand names are interrupted
            fresh = prompts.embed(TextSet(tuple(w[0] for w in part), tuple(part), self.templates), self._encode_text)
            self._embeddings.update(zip(part, fresh, strict=True))
            for words, embedding in zip(part, fresh, strict=True):
                if self._text_cache is not None:
                    self._text_cache.put(words, self.templates, embedding)
                if self._memory is not None:
                    self._memory.keep_text(self.backbone, words, self.templates, embedding)
        return torch.stack([self._embeddings[words] for words in known])

    def _recall(self, words: tuple[str, ...]) -> bool:
        """Whether memory or the disk knew a name's embedding."""
        kept = None if self._memory is None else self._memory.text(self.backbone, words, self.templates)
        if kept is None and self._text_cache is not None:
            kept = self._text_cache.get(words, self.templates, self.backbone.embedding_size)
        if kept is not None:
            self._embeddings[words] = kept.to(self.backbone.device)
        return kept is not None

    def _empty_name(self) -> Tensor:
        """`[D]` for `Context.redundant`."""
        empty = self._embed(TextSet(("",), (("",),), self.templates))[0]
        return empty if self._background is None else torch.zeros_like(empty)

    def _encode_text(self, sentences: Sequence[str]) -> Tensor:
        return torch.cat([self.backbone.encode_text(chunk) for chunk in _chunks(sentences, 256)])

    def _words(self, words: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
        """Of a name's synonyms those this model knows, or all when it knows none; and then why. Asked once a name."""
        if words not in self._known:
            reasons = [self.backbone.unknown_reason(word) for word in words]
            known = tuple(word for word, reason in zip(words, reasons, strict=True) if reason is None)
            self._known[words] = (known or words, None if known else reasons[0])
        return self._known[words]

    def _unknown_reason(self, words: tuple[str, ...]) -> str | None:
        return self._words(words)[1]

    # ------------------------------------------------------------------------------------------------ computation
    def _localize(
        self,
        batch: list[_Prepared],
        tasks: tuple[_Task, ...],
        on_masked: Callable[[int, int], None] | None,
        on_memory: Callable[[int], None] | None = None,
        absent_maps: bool = True,
    ) -> Iterator[tuple[DrawableLocalization, ...]]:
        """For each picture, its results by every task; by halves of the batch where `on_memory` allows it."""
        try:
            computed = self._compute(batch, tasks, on_masked, absent_maps)
        except (RuntimeError, MemoryError) as error:
            if on_memory is None or len(batch) == 1 or not out_of_memory(error):
                raise
        else:
            yield from self._results(batch, tasks, *computed)
            return
        # Only here is the error forgotten, and with it whatever its frames kept in memory.
        on_memory(len(batch))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for half in _chunks(batch, (len(batch) + 1) // 2):
            yield from self._localize(list(half), tasks, on_masked, on_memory, absent_maps)

    def _results(
        self,
        batch: list[_Prepared],
        tasks: tuple[_Task, ...],
        computed: list[tuple[Tensor, Tensor]],
        embedding: Tensor,
        plain: Tensor,
        notes: list[list[list[str]]],
    ) -> Iterator[tuple[DrawableLocalization, ...]]:
        """Out of what `_compute` gave, for each picture its results by every task."""
        scores, presence, absences = self._absences(batch, embedding, plain)
        for b, (item, absent) in enumerate(zip(batch, absences, strict=True)):
            results = []
            for task, (maps, evidence), said in zip(tasks, computed, notes, strict=True):
                flat = f"{task.method.name} finds no evidence for it: its map is flat"
                results.append(
                    self._result(
                        item,
                        *self._finished(item, maps[b]),
                        scores[b].cpu().numpy(),
                        embedding[b].clone().cpu().numpy(),
                        None if presence is None else presence[b].cpu().numpy(),
                        tuple(
                            flat if reason is None and not some else reason
                            for words, absence, some in zip(
                                item.texts.synonyms, absent, evidence[b].tolist(), strict=True
                            )
                            for reason in [task.reason(words, absence)]
                        ),
                        task.box_rule,
                        tuple(dict.fromkeys(said[b])),
                    )
                )
            yield tuple(results)

    def _absences(
        self, batch: list[_Prepared], embedding: Tensor, plain: Tensor
    ) -> tuple[Tensor, Tensor | None, list[list[str | None]]]:
        """Cosines `[B, P]`, their calibrated probabilities, and why each name is not in each picture, if it is not."""
        scores = torch.einsum("bd,bpd->bp", embedding, plain)  # [B, P]
        presence = self.backbone.presence(scores)
        if self._background is not None:
            rivals, rival = (embedding @ self._background.T).max(dim=1)  # [B]
        absences: list[list[str | None]] = []
        for b, item in enumerate(batch):
            absent: list[str | None] = []
            for p, words in enumerate(item.texts.synonyms):
                reason = self._unknown_reason(words)
                if reason is None and self._background is not None and rivals[b] >= scores[b, p]:
                    reason = f"the background {self._background_names[int(rival[b])]!r} fits better"
                if reason is None and presence is not None and presence[b, p] < self.min_presence:
                    reason = absence(float(presence[b, p]), self.min_presence)
                absent.append(reason)
            absences.append(absent)
        return scores, presence, absences

    def _wanted(
        self, batch: list[_Prepared], tasks: tuple[_Task, ...], embedding: Tensor, plain: Tensor
    ) -> list[list[bool]]:
        """For each picture and name, whether any task says that it is there."""
        _, _, absences = self._absences(batch, embedding, plain)
        return [
            [
                any(task.reason(words, reason) is None for task in tasks)
                for words, reason in zip(item.texts.synonyms, absent, strict=True)
            ]
            for item, absent in zip(batch, absences, strict=True)
        ]

    @torch.no_grad()  # a method that needs gradients asks for them; the caller's weights may require some
    def _compute(
        self,
        batch: list[_Prepared],
        tasks: tuple[_Task, ...],
        on_masked: Callable[[int, int], None] | None,
        absent_maps: bool = True,
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor, list[list[list[str]]]]:
        """For each task maps `[B, P, H, W]` in 0–1 and whether any is not flat `[B, P]`; and what they are made of.

        That is the vectors of the images, `[B, D]`, and of the texts, `[B, P, D]`. Last, for each task what its method
        noted of each picture.
        """
        notes: list[list[list[str]]] = [[[] for _ in batch] for _ in tasks]
        plain = torch.stack([self._embed(item.texts) for item in batch])  # [B, P, D]
        directions = plain if self._background is None else plain - self._background.mean(dim=0)
        totals: list[tuple[Tensor, Tensor]] = []
        embedding: Tensor | None = None  # of the first view: unflipped, at the first scale
        wanted: list[list[bool]] | None = None  # all
        views = [(index, flipped) for index in range(len(self.scales)) for flipped in ((False, True)[: 1 + self.flip])]
        for number, (index, flipped) in enumerate(views):
            pixels = torch.stack([item.inputs[index] for item in batch])  # [B, 3, H, W] uint8
            images = self.backbone.normalize(pixels.to(self.backbone.device).float() / 255)
            counting = None if on_masked is None else _Count(on_masked, further_views=len(views) - 1 - number)
            with self._seen(pixels, flipped) as seen:
                raw_maps, view_embedding = self._raw_maps(
                    images.flip(-1) if flipped else images, directions, batch, tasks, seen, counting, notes
                )
            if embedding is None:
                embedding = view_embedding
                wanted = None if absent_maps else self._wanted(batch, tasks, embedding, plain)
            of_view = []
            for raw in raw_maps:
                raw = raw.flip(-1) if flipped else raw  # [B, P, h, w]
                evidence = raw.amax(dim=(-2, -1)) > raw.amin(dim=(-2, -1))  # [B, P]
                of_view.append((self._scaled_on_input(raw, batch, index, wanted), evidence))  # [B, P, H, W]
            totals = (
                [
                    (total + maps, some | evidence)
                    for (total, some), (maps, evidence) in zip(totals, of_view, strict=True)
                ]
                if totals
                else of_view
            )
        assert embedding is not None
        if len(views) > 1:
            totals = [(min_max(total), evidence) for total, evidence in totals]
        return totals, embedding, plain, notes

    def _seen(self, pixels: Tensor, flipped: bool) -> AbstractContextManager[View]:
        """What is remembered of a batch's pixels `[B, 3, H, W]`, with place for more."""
        if self._memory is None:
            return nullcontext(View())
        return self._memory.view(self.backbone, pixels, flipped, self.masked_precision)

    def _raw_maps(
        self,
        images: Tensor,
        directions: Tensor,
        batch: list[_Prepared],
        tasks: tuple[_Task, ...],
        seen: View,
        on_masked: Callable[[int, int], None] | None,
        notes: list[list[list[str]]],
    ) -> tuple[list[Tensor], Tensor]:
        """One view of a batch, traced once → for each task raw maps `[B, P, h, w]` after ReLU; embeddings `[B, D]`."""
        needs = reduce(or_, [task.needs for task in tasks] + [step.needs(self.backbone) for step in self._on_grid])
        trace = seen.trace(needs, lambda: self.backbone.trace(images, needs))
        self._refuse_nan(trace.embedding[:, None], batch, "an embedding")
        ctx = Context(
            images,
            directions,
            trace,
            self.backbone,
            self.batch_size,
            on_masked,
            encode_masked=self._encode_masked,
            cache=seen.shared,
            empty_name=self._empty_name,
            words=[item.texts.synonyms for item in batch],
        )
        maps = []
        for task, said in zip(tasks, notes, strict=True):
            noting = replace(ctx, note=partial(_note, said))
            raw = raw_maps(task.method, noting, task.options)  # [B, P, h, w]
            self._refuse_nan(raw.flatten(2), batch, "a map")
            raw = raw.relu() if task.method.relu else raw
            for step in self._on_grid:
                scaled = F.interpolate(min_max(raw), size=trace.grid, mode="bilinear", align_corners=False)
                raw = step.function(ctx, scaled)  # [B, P, h, w]
                self._refuse_nan(raw.flatten(2), batch, "a map")
            maps.append(raw)
        return maps, trace.embedding

    def _finished(self, item: _Prepared, maps: Tensor) -> tuple[FloatArray, Frame]:
        """Maps `[P, H, W]` of one picture over its input → after the steps over the picture, and what they lie over."""
        frame = item.frames[0]
        if self._over_picture:
            x0, y0, x1, y1 = frame.visible_xyxy
            offset = (frame.offset_xy[0] - x0, frame.offset_xy[1] - y0)
            inputs = replace(frame, input_hw=(y1 - y0, x1 - x0), offset_xy=offset)  # without padding
            frame = inputs.over_picture(LONGEST)
            pixels = torch.from_numpy(np.array(frame.apply(item.picture.image)))  # [H, W, 3] uint8
            picture = pixels.permute(2, 0, 1)[None].to(maps.device).float() / 255  # [1, 3, H, W]
            stride, scales = self.backbone.stride, zip(frame.scale_xy, inputs.scale_xy, strict=True)
            width, height = (max(1, round(stride * ours / theirs)) for ours, theirs in scales)
            maps = min_max(inputs.map_to_frame(maps[:, y0:y1, x0:x1], frame))
            for step in self._over_picture:
                maps = min_max(step.function(picture, maps[None], (height, width))[0])
        # Cloned, so that one result kept by the user does not keep the maps of its whole batch.
        return maps.clone().cpu().numpy(), frame

    def _refuse_nan(self, values: Tensor, batch: list[_Prepared], what: str) -> None:
        """Values `[B, P or 1, n]`; a NaN is never turned into a zero."""
        bad = ~values.isfinite().all(dim=-1)  # [B, P]
        if bad.any():
            b, p = (int(i) for i in bad.nonzero()[0])
            prompt = f", prompt {batch[b].texts.names[p]!r}" if what == "a map" else ""
            raise ModelError(
                f"{self.backbone.name} in {str(self.backbone.dtype).removeprefix('torch.')} gave {what} that is not "
                f"a number for {batch[b].picture.source}{prompt}: use a higher precision or check the weights"
            )

    def _scaled_on_input(
        self, raw: Tensor, batch: list[_Prepared], index: int, wanted: list[list[bool]] | None
    ) -> Tensor:
        """Maps on the grid of one scale → `[B, P, H, W]` in 0–1 on the first scale's input; those not wanted are zero.

        A pixel's share of the work grows with the names, and most of them are in no picture.
        """
        if wanted is None:
            return min_max(self._on_input(raw, batch, index))
        maps = raw.new_zeros(*raw.shape[:2], *batch[0].frames[0].input_hw)
        for b, (item, names) in enumerate(zip(batch, wanted, strict=True)):
            chosen = [p for p, there in enumerate(names) if there]
            if chosen:
                maps[b, chosen] = min_max(self._on_input(raw[b : b + 1, chosen], [item], index))[0]
        return maps

    def _on_input(self, raw: Tensor, batch: list[_Prepared], index: int) -> Tensor:
        """Maps on the grid of one scale → `[B, P, H, W]` on the first scale's input, the smallest value outside."""
        frames = [frame for item in batch for frame in (item.frames[0], item.frames[index])]
        if all(frame.resized_wh == frame.input_hw[::-1] for frame in frames):
            return F.interpolate(raw, size=batch[0].frames[0].input_hw, mode="bilinear", align_corners=False)
        placed = []
        for maps, item in zip(raw, batch, strict=True):
            base = item.frames[0]
            x0, y0, x1, y1 = base.visible_xyxy
            on_input = item.frames[index].map_to_frame(maps, base)  # [P, H, W]
            visible = on_input[:, y0:y1, x0:x1]
            padded = visible.amin(dim=(-2, -1), keepdim=True).expand_as(on_input).clone()
            padded[:, y0:y1, x0:x1] = visible
            placed.append(padded)
        return torch.stack(placed)

    def _result(
        self,
        item: _Prepared,
        maps: FloatArray,
        frame: Frame,
        scores: FloatArray,
        embedding: FloatArray,
        presence: FloatArray | None,
        reasons: tuple[str | None, ...],
        box_rule: BoxRule,
        notes: tuple[str, ...],
    ) -> DrawableLocalization:
        found = np.array([reason is None for reason in reasons])
        boxes = _boxes(frame, maps, found, presence, item.texts.names, box_rule)
        reasons = tuple(
            f"no region of its map reaches {box_rule.min_area:g} of the picture"
            if reason is None and p not in boxes.label
            else reason
            for p, reason in enumerate(reasons)
        )
        return DrawableLocalization(
            source=item.picture.source,
            image=item.picture.image,
            names=item.texts.names,
            scores=scores,
            presence=presence,
            found=np.array([reason is None for reason in reasons]),
            reasons=reasons,
            maps=maps,
            frame=frame,
            boxes=boxes,
            notes=item.picture.notes + notes,
            embedding=embedding,
        )


def _boxes(
    frame: Frame,
    maps: FloatArray,
    found: npt.NDArray[np.bool_],
    presence: FloatArray | None,
    names: tuple[str, ...],
    rule: BoxRule,
) -> Boxes:
    """Maps `[P, H, W]` over a frame's input → the boxes of the names found, in original pixels."""
    asked = np.flatnonzero(found)
    x0, y0, x1, y1 = frame.visible_xyxy  # min_area is a share of the picture, not of its padding
    on_map = boxes_from_maps(maps[asked, y0:y1, x0:x1], rule)
    label = asked[on_map.index]
    return Boxes(
        xyxy=frame.to_original(on_map.xyxy + np.array([x0, y0, x0, y0])).astype(np.float32),
        score=on_map.peak if presence is None else (on_map.peak * presence[label]).astype(np.float32),
        label=label.astype(np.int64),
        names=names,
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on whatever device.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
        True
    """
    said = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in said for word in words)


def classifier(
    model: str = "mini",
    pretrained: str | None = None,
    *,
    device: str | None = None,
    precision: str = "fp32",
    templates: Sequence[str] | str | None = None,
    batch_size: int = 16,
    text_cache: bool = True,
) -> Localizer:
    """A localizer to `classify` with, whatever the kind of the model's tower: its method is one that fits.

    Args and errors are those of `Localizer`.

    Example:
        >>> classifier("mini").classify(np.zeros((64, 48, 3), np.uint8), ["cat"])[0].probability
        1.0
    """
    backbone = backbones.create(model, pretrained, _checked_device(device), precision=precision)
    return Localizer(
        backbone,
        templates=templates,
        batch_size=batch_size,
        text_cache=text_cache,
    )


def default_method(model: str | Backbone) -> str:
    """The method used when none is named: CAM on a CNN, NACLIP on a ViT, and what suits both where that is not known.

    Of the methods that read the text, NACLIP finds most on the tuning pictures (tools/choose_thresholds.py).

    Raises:
        UnknownNameError: no such model.
    """
    if isinstance(model, str) and ":" in model:  # a hub's or folder's: its tower shows only once it is loaded
        return "grad_cam"
    kind = backbones.models.get(model.replace("/", "-")).kind if isinstance(model, str) else model.kind
    return {"cnn": "cam", "vit": "naclip"}[kind]


def _a_head_would_do(method: Method, backbone: Backbone) -> bool:
    with_head = {member.name for member in members(method) if "head" in member.options}
    return unfit_reason(method, backbone, trained=with_head) is None


def members(method: Method) -> tuple[Method, ...]:
    """The methods that an ensemble joins; a method by itself."""
    return method.members or (method,)


def best_device() -> str:
    """ "cuda", "mps" or "cpu": the first this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_device(device: str | None) -> str:
    """The device asked for, or the best.

    Raises:
        UsageError: this machine does not have it.
    """
    if device is None:
        return best_device()
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device not in there and not (device == "cuda" and torch.cuda.is_available()):
        raise UsageError(f"expected a device of this machine ({', '.join(there)}), got {device!r}: leave it out")
    return device


def _text_cache_of(backbone: Backbone) -> TextCache | None:
    """Only a backbone that knows its weights by their checksum has a `fingerprint`, and embeddings worth keeping."""
    fingerprint, folder = getattr(backbone, "fingerprint", None), cache_folder()
    return TextCache(folder, fingerprint) if fingerprint and folder else None


def _in_precision(backbone: Backbone, precision: str | None) -> Callable[[Tensor], Tensor] | None:
    """`encode_image` of the tower in another precision; None where that is its own."""
    if precision is None:
        return None
    dtype = backbones.resolve_precision(precision, str(backbone.device))
    if dtype == backbone.dtype:
        return None
    if not isinstance(backbone, backbones.DualEncoder):
        raise UsageError(f"{backbone.name} has one precision only: leave masked_precision out")
    return backbone.in_precision(dtype).encode_image


class _Count:
    """Tells how many masked pictures are done and left, where each further view is taken to need as many as this."""

    def __init__(self, told: Callable[[int, int], None], further_views: int) -> None:
        self._told, self._further_views, self._done = told, further_views, 0

    def __call__(self, done: int, left: int) -> None:
        self._done += done
        self._told(done, left + self._further_views * (self._done + left))


def _note(notes: list[list[str]], picture: int, remark: str) -> None:
    notes[picture].append(remark)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
