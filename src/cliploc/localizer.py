"""`Localizer`: the public face, from pictures and names to heatmaps and boxes. The stages are in `cliploc.pipeline`."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliploc import backbones, prompts
from cliploc._memory_errors import out_of_memory
from cliploc.boxes import BoxRule
from cliploc.config import RESULT_OPTIONS, Options
from cliploc.errors import UsageError
from cliploc.heads import load_head, read_config
from cliploc.images import ImageLike, Picture, pictures_in
from cliploc.localization import Localization, boxes_of
from cliploc.method import Method
from cliploc.pipeline.decide import Evidence, reasons_of, weigh, without_boxes
from cliploc.pipeline.looks import Wanted
from cliploc.pipeline.modes import own_modes, undisturbed
from cliploc.pipeline.prepare import OnError, Preparation, Prepared, Unreadable, batches
from cliploc.pipeline.requests import Request, Result
from cliploc.pipeline.tasks import Task, TaskMaker, members
from cliploc.pipeline.texts import Texts
from cliploc.pipeline.views import Computed, Maps, Views, refuse_nan
from cliploc.refine import resolve_refinements
from cliploc.reporter import SILENT, Reporter
from cliploc.saliency import find, resolve_options
from cliploc.text_cache import TextCache, cache_folder
from cliploc.tower import Backbone
from cliploc.values import ResizePolicy

Names = Sequence[str] | Sequence[Sequence[str]]


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


class Localizer:
    """Finds named things in pictures with one model and one saliency method.

    Args:
        model: a name of `cliploc models`, or a `Backbone`.
        pretrained: which weights: a tag, a file, or "FILE@TAG", a file whose GELU and preprocessing are those of the
            tag's weights; None for the model's own.
        method: a name of `cliploc methods`, or several joined by "+", whose maps are averaged: "gem+legrad"; None for
            the tower's own, `default_method(model)`.
        **options: every other option of `cliploc.Options`: scales, flip, refine, threshold, templates, background,
            precision, memory …; `print(cliploc.Options.explain())` tells what each one does.

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
        **options: Any,
    ) -> None:
        given = Options.of(model=model, pretrained=pretrained, method=method, **options)
        self.options = given
        head_file = None if given.head is None else os.fspath(given.head)
        trained_for = None if head_file is None else read_config(head_file).method
        chosen_method = find(method or trained_for or default_method(model), given.ensemble)
        if trained_for is not None and trained_for not in [one.name for one in members(chosen_method)]:
            raise UsageError(
                f"{head_file} is trained for {trained_for}, got method {chosen_method.name}: use {trained_for}"
            )
        resolve_options(chosen_method, given.method_options)  # refused before a model is built, as are these:
        self.templates = prompts.resolve_templates(given.templates)
        if given.background:
            prompts.parse(given.background)
        self.backbone = _created(model, pretrained, given.device, given.precision) if isinstance(model, str) else model
        steps = resolve_refinements(given.refine, self.backbone)
        self.refine = tuple(step.name for step in steps)
        self.precision = backbones.precision_name(self.backbone.dtype)
        encode_masked, self.masked_precision = _masked_encoder(self.backbone, given.masked_precision)
        head = None if head_file is None else (head_file, load_head(head_file, self.backbone))
        rule = BoxRule(
            given.threshold if given.threshold is not None else chosen_method.threshold,
            given.components,
            given.min_area,
            given.max_boxes,
            given.nms_iou,
            split_peaks=given.split_peaks,
        )
        self._tasks = TaskMaker(self.backbone, given.ensemble, head, rule, given.threshold is None, steps)
        self._task = self._tasks.make(chosen_method.name, given.method_options)
        cache = _text_cache_of(self.backbone) if given.text_cache else None
        self._texts = Texts(self.backbone, self.templates, given.background, cache, given.memory)
        self._preparation = Preparation(
            self.backbone, self.templates, given.resize, given.image_size, tuple(given.scales), tuple(given.windows)
        )
        self._views = Views(
            self.backbone,
            self._texts,
            given.flip,
            tuple(step for step in steps if step.on == "grid"),
            tuple(step for step in steps if step.on == "picture"),
            given.batch_size,
            encode_masked,
            self.masked_precision,
            given.memory,
        )

    @property
    def method(self) -> Method:
        """The method, or the ensemble of several."""
        return self._task.method

    @property
    def box_rule(self) -> BoxRule:
        """How maps become boxes."""
        return self._task.box_rule

    @property
    def resize(self) -> ResizePolicy:
        """How a picture meets the input."""
        return self._preparation.resize

    @property
    def input_hw(self) -> tuple[int, int]:
        """Height and width of the model's input at scale 1, in pixels."""
        return self._preparation.input_hw

    # ------------------------------------------------------------------------------------------------------ use it
    @overload
    def __call__(self, images: ImageLike, names: Sequence[str]) -> Localization: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], names: Names) -> list[Localization]: ...
    def __call__(
        self, images: ImageLike | list[Any] | tuple[Any, ...], names: Names
    ) -> Localization | list[Localization]:
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
        *,
        on_error: OnError = "raise",
        reporter: Reporter = SILENT,
        absent_maps: bool = True,
    ) -> Iterator[Localization]:
        """Locates names in any number of pictures, in order, holding only a few at a time.

        Args:
            images: paths, PIL images or arrays, or one of them; read ahead by a few.
            names: one list for all pictures, or one for each.
            on_error: whether a picture that cannot be read raises its error, or is left out and told to the reporter.
            reporter: told of failed pictures, of masked pictures done and left, and of halved batches.
            absent_maps: as for `compare`.

        Yields:
            One `Localization` a picture.
        """
        tasks = {self.method.name: self._task}
        with closing(self._run(_requests(images, names), tasks, absent_maps, reporter, on_error)) as results:
            for result in results:
                if result.error is None:
                    yield result.found[self.method.name]

    def compare(
        self,
        images: ImageLike | Iterable[ImageLike],
        names: Names,
        methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
        *,
        on_error: OnError = "raise",
        reporter: Reporter = SILENT,
        absent_maps: bool = True,
    ) -> Generator[dict[str, Localization], None, None]:
        """As `stream`, with several methods beside each other out of one forward pass of the tower.

        One trace holds what all of them need, and masked pictures are shared, so that each further method costs only
        its own work.

        Args:
            images: as for `stream`.
            names: as for `stream`.
            methods: names, or ensembles such as "gem+legrad"; or a mapping from these to their options. The localizer's
                own method and options play no part; its threshold does, when one was given: else each has its own.
            on_error: as for `stream`.
            reporter: as for `stream`.
            absent_maps: whether names that are not in a picture have a map too; without, theirs is zero, and the time
                that it takes is saved.

        Yields:
            For each picture, the `Localization` by every method, under the text it was asked for.

        Raises:
            UsageError: a method that does not exist or does not work on this tower, or an option it does not have.

        Example:
            >>> both = next(Localizer().compare(np.zeros((64, 48, 3), np.uint8), ["cat"], ["cam", "layer_cam"]))
            >>> list(both)
            ['cam', 'layer_cam']
        """
        results = self._run(_requests(images, names), self._tasks_of(methods), absent_maps, reporter, on_error)
        return _found_in(results)

    def compare_figure(
        self, image: ImageLike, names: Sequence[str], methods: Sequence[str] | Mapping[str, Mapping[str, Any]]
    ) -> Image.Image:
        """One sheet of what several methods make of a picture: a row for each method, a column for each name.

        Args:
            image: a path, PIL image or array.
            names: "cat|kitten": synonyms.
            methods: as for `compare`.

        Returns:
            An RGB picture; of several models, `cliploc compare` draws one.

        Raises:
            InputError: the picture cannot be read.
            UsageError: as in `compare`, or more than 400 cells.

        Example:
            >>> picture = np.zeros((64, 48, 3), np.uint8)
            >>> Localizer().compare_figure(picture, ["cat", "dog"], ["cam", "layer_cam"]).save("compare.png")
        """
        from cliploc.report.compare import ModelResults, draw_comparison, refuse_too_many  # only for those who draw

        titles = {spec: task.method.title for spec, task in self._tasks_of(methods).items()}
        refuse_too_many(len(titles), len(names))
        with closing(self.compare([image], names, methods)) as results:
            return draw_comparison([ModelResults(self.backbone.name, next(results))], titles)

    def run(
        self,
        requests: Iterable[Request],
        methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
        *,
        reporter: Reporter = SILENT,
        absent_maps: bool = True,
    ) -> Generator[Result, None, None]:
        """Works through requests, each with an id of its own; what `stream` and `compare` are made of.

        Args:
            requests: pictures and names; read ahead by a few.
            methods: as for `compare`; None for the localizer's own.
            reporter: as for `stream`.
            absent_maps: as for `compare`.

        Yields:
            For each request in order, its id with what was found, or with the error of a picture that cannot be read.

        Raises:
            UsageError: as in `compare`.
            ModelError: the tower returned NaN.

        Example:
            >>> [result] = Localizer().run([Request("a", np.zeros((64, 48, 3), np.uint8), ["cat"])])
            >>> result.id, list(result.found)
            ('a', ['cam'])
        """
        tasks = {self.method.name: self._task} if methods is None else self._tasks_of(methods)
        return self._run(requests, tasks, absent_maps, reporter, "skip")

    def _tasks_of(self, methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
        if isinstance(methods, str) or not methods:
            raise UsageError(f"expected a list of methods, got {methods!r}: write ['cam']")
        asked = methods if isinstance(methods, Mapping) else {spec: {} for spec in methods}
        return {spec: self._tasks.make(spec, options) for spec, options in asked.items()}

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
        *,
        on_error: OnError = "raise",
        reporter: Reporter = SILENT,
    ) -> Iterator[Classification]:
        """As `classify`, for any number of pictures, in order, holding only a few at a time.

        Args:
            images: paths, PIL images or arrays, or one of them; read ahead by a few.
            names: as for `classify`; those in `unknown_names` take no part.
            top_k: as for `classify`.
            on_error: as for `stream`.
            reporter: told of failed pictures.

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
        with self._batches(_requests(images, known), on_error) as gathered:
            for batch in gathered:
                readable = [item for item in batch if isinstance(item, Prepared)]
                ranked = iter(self._classified(readable, top_k) if readable else [])
                for item in batch:
                    if isinstance(item, Prepared):
                        yield Classification(item.picture, next(ranked))
                    else:
                        reporter.failed(item.source, item.error)

    # ---------------------------------------------------------------------------------------------- ask about it
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
        return self._texts.embed(prompts.parse(names, self.templates))

    def box_rule_of(self, method: str, options: Mapping[str, Any] | None = None) -> BoxRule:
        """How `compare` makes boxes of a method's maps: with the threshold given, else the method's own.

        Raises:
            UsageError: a method or option that does not work on this tower.

        Example:
            >>> Localizer(threshold=0.25).box_rule_of("layer_cam").threshold
            0.25
        """
        return self._tasks.make(method, options or {}).box_rule

    def options_of(self, method: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options of a method, those that are not given at their defaults; errors as in `box_rule_of`.

        A trained head is named by its file.
        """
        return self._tasks.named_options(self._tasks.make(method, options or {}), options or {})

    def describe(self, method: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that the results depend on, with the defaults filled in: the identity of a run.

        These are the options that `cliploc.config` does not call harmless. Models and trained heads are told apart by
        the checksum of their contents.

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
        spec, given = (self.method.name, self.options.method_options) if method is None else (method, options or {})
        task = self._tasks.make(spec, given)
        told_otherwise = {"pretrained", "method_options", "head"}  # by `weights`, `options` and `heads`
        return {
            **{name: getattr(self.options, name) for name in RESULT_OPTIONS if name not in told_otherwise},
            "model": self.backbone.name,
            "weights": self._weights,
            "method": task.method.name,
            "options": self._tasks.named_options(task, given),
            "heads": {key: head.digest() for key, head in task.heads.items()},
            "ensemble": self.options.ensemble if task.method.members else None,  # one method has nothing to average
            "templates": self.templates,
            "background": tuple(map("|".join, self._texts.background_synonyms)),
            "resize": self.resize,
            "interpolation": self.backbone.interpolation,
            "image_size": self.input_hw,
            "refine": self.refine if task.refined else (),
            **asdict(task.box_rule),
            "precision": self.precision,
            "masked_precision": self.masked_precision,
        }

    @cached_property
    def _weights(self) -> str:
        return self.backbone.weights_id

    def unknown_names(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the names that the model cannot know, none of their synonyms, each with the reason."""
        texts = prompts.parse(names)
        reasons = {words[0]: self._texts.unknown_reason(words) for words in texts.synonyms}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    # -------------------------------------------------------------------------------------------------------- the work
    def _batches(
        self, requests: Iterable[Request], on_error: OnError
    ) -> closing[Generator[list[Prepared | Unreadable], None, None]]:
        """Ends its threads when it is left, also by an error whose traceback lives on."""
        size = self.options.batch_size
        return closing(batches(self._preparation.stream(requests, size, on_error), size))

    def _run(
        self,
        requests: Iterable[Request],
        tasks: Mapping[str, Task],
        absent_maps: bool,
        reporter: Reporter,
        on_error: OnError,
    ) -> Generator[Result, None, None]:
        with self._batches(requests, on_error) as gathered:
            for batch in gathered:
                readable = [item for item in batch if isinstance(item, Prepared)]
                found = self._localize(readable, tasks, absent_maps, reporter) if readable else iter(())
                for item in batch:
                    if isinstance(item, Prepared):
                        yield Result(item.id, next(found))
                    else:
                        reporter.failed(item.source, item.error)
                        yield Result(item.id, error=item.error)

    def _localize(
        self, batch: Sequence[Prepared], tasks: Mapping[str, Task], absent_maps: bool, reporter: Reporter
    ) -> Iterator[dict[str, Localization]]:
        """For each picture, its results by every task; by halves of the batch where memory is short."""
        try:
            computed = self._views.compute(
                batch,
                list(tasks.values()),
                reporter.masked,
                None if absent_maps else partial(self._wanted, batch, tasks),
            )
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not out_of_memory(error):
                raise
        else:
            yield from self._results(batch, tasks, computed)
            return
        # Only here is the error forgotten, and with it whatever its frames kept in memory.
        reporter.halved(len(batch))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        for part in (batch[:half], batch[half:]):
            yield from self._localize(part, tasks, absent_maps, reporter)

    def _results(
        self, batch: Sequence[Prepared], tasks: Mapping[str, Task], computed: Computed
    ) -> Iterator[dict[str, Localization]]:
        evidence = self._weigh(batch, computed.embedding, computed.names, computed.windows)
        for b in range(len(batch)):
            yield {
                spec: self._result(batch[b], b, task, made, computed, evidence)
                for (spec, task), made in zip(tasks.items(), computed.by_task, strict=True)
            }

    @undisturbed
    def _result(
        self, item: Prepared, b: int, task: Task, made: Maps, computed: Computed, evidence: Evidence
    ) -> Localization:
        """What a task says of the batch's picture number `b`."""
        presence = None if evidence.presence is None else evidence.presence[b].cpu().numpy()
        maps, frame = self._views.finish(item, made.maps[b], task)
        reasons = reasons_of(task, item, evidence.absences[b], made.not_flat[b].tolist())
        there = np.array([reason is None for reason in reasons])
        boxes = boxes_of(frame, maps, there, presence, item.texts.names, task.box_rule)
        reasons = without_boxes(reasons, boxes, task.box_rule)
        return Localization(
            source=item.picture.source,
            image=item.picture.image,
            names=item.texts.names,
            scores=evidence.scores[b].cpu().numpy(),
            presence=presence,
            found=np.array([reason is None for reason in reasons]),
            reasons=reasons,
            maps=maps,
            frame=frame,
            boxes=boxes,
            notes=item.picture.notes + tuple(dict.fromkeys(made.notes[b])),
            embedding=computed.embedding[b].clone().cpu().numpy(),
            method=task.method.title,
            model=self.backbone.name,
            threshold=task.box_rule.threshold,
        )

    @undisturbed
    def _weigh(
        self, batch: Sequence[Prepared], embedding: Tensor, names: Tensor, windows: Sequence[Tensor]
    ) -> Evidence:
        return weigh(batch, embedding, names, windows, self._texts, self.backbone, self.options.min_presence)

    def _wanted(
        self,
        batch: Sequence[Prepared],
        tasks: Mapping[str, Task],
        embedding: Tensor,
        names: Tensor,
        windows: Sequence[Tensor],
    ) -> Wanted:
        """For each picture and name, whether any task says that it is there."""
        evidence = self._weigh(batch, embedding, names, windows)
        return [
            [
                any(task.reason(words, reason) is None for task in tasks.values())
                for words, reason in zip(item.texts.synonyms, absent, strict=True)
            ]
            for item, absent in zip(batch, evidence.absences, strict=True)
        ]

    @undisturbed
    def _classified(self, batch: Sequence[Prepared], top_k: int) -> list[list[Classified]]:
        pixels = torch.stack([item.inputs[0] for item in batch])  # [B, 3, H, W] uint8
        embedding = self.backbone.encode_image(self.backbone.normalize(pixels.to(self.backbone.device).float() / 255))
        refuse_nan(embedding[:, None], batch, "an embedding", self.backbone)
        texts = batch[0].texts  # the same for all
        cosines = embedding @ self._texts.embed(texts).T.to(embedding)  # [B, P]
        probabilities = (self.backbone.logit_scale * cosines).softmax(dim=-1)  # [B, P]
        best = cosines.topk(min(top_k, len(texts))).indices  # [B, k]
        return [
            [Classified(texts.names[p], float(probabilities[b, p]), float(cosines[b, p])) for p in row.tolist()]
            for b, row in enumerate(best)
        ]


def _requests(images: ImageLike | Iterable[ImageLike], names: Names) -> Iterator[Request]:
    """A request for each picture, with the names for all or its own; its id is its number."""
    if isinstance(names, str):
        raise UsageError(f"expected a list of names, got the single text {names!r}: write [{names!r}]")
    images = pictures_in(images)
    if not names or isinstance(names[0], str):
        for number, image in enumerate(images):
            yield Request(number, image, names)  # type: ignore[arg-type]
        return
    if isinstance(images, Sequence) and len(images) != len(names):
        raise UsageError(f"expected a list of names for each of {len(images)} pictures, got {len(names)} lists")
    for number, image in enumerate(images):
        if number >= len(names):
            raise UsageError(f"expected a list of names for each picture, got {len(names)} lists and more pictures")
        yield Request(number, image, names[number])


def _found_in(results: Generator[Result, None, None]) -> Generator[dict[str, Localization], None, None]:
    with closing(results):
        for result in results:
            if result.error is None:
                yield dict(result.found)


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
    backbone = _created(model, pretrained, device, precision)
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


def _created(model: str, pretrained: str | None, device: str | None, precision: str) -> Backbone:
    """The model by its name, on the device asked for or the best."""
    checked = _checked_device(device)
    with own_modes(torch.device(checked)):
        return backbones.create(model, pretrained, checked, precision=precision)


def _text_cache_of(backbone: Backbone) -> TextCache | None:
    """On disk are kept only the embeddings by weights of a file: others are made quickly, or of weights that change."""
    folder = cache_folder()
    return None if folder is None or backbone.weights_file is None else TextCache(folder, backbone.weights_id)


def _masked_encoder(backbone: Backbone, precision: str | None) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """`encode_image` of the tower in another precision, None where that is its own; and the precision's name."""
    if precision is None:
        return None, backbones.precision_name(backbone.dtype)
    dtype = backbones.resolve_precision(precision, str(backbone.device))
    name = backbones.precision_name(dtype)
    if dtype == backbone.dtype:
        return None, name
    return backbone.in_precision(dtype).encode_image, name
