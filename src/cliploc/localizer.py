"""`Localizer`: from pictures and names to heatmaps and boxes. The stages are in `cliploc.find`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any, Literal, overload

from torch import Tensor

from cliploc import Localization, Options, UsageError, towers
from cliploc.boxes import BoxRule, masks
from cliploc.find import calibration, heads, passes, prompts, running, tasks, texts
from cliploc.find.classify import Classification, Classified, classifications, known_names
from cliploc.find.flow import Flow
from cliploc.find.passes import MaskedEncoder
from cliploc.find.prepare import Names, OnError, Request, Result, RunOptions, Sought, requests_of, source_of
from cliploc.find.presence import EVERY, Bank
from cliploc.images.reading import ImageLike
from cliploc.methods import resolve_options
from cliploc.options import RESULT_OPTIONS
from cliploc.refine import find_refinements
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone, Needs

Methods = Sequence[str] | Mapping[str, Mapping[str, Any]]
ELSEWHERE = {"pretrained", "method_options", "head", "second_look", "calibration", "learnt"}  # under keys of their own
ClassNames = Sequence[str] | Literal["imagenet"]


class Localizer:
    """Finds named things in pictures with one model and one saliency method.

    Args:
        model: a name of `cliploc models`, or a `Backbone`.
        pretrained: which weights: a tag, a file, or "FILE@TAG", a file whose GELU and preprocessing are those of the
            tag's weights; None for the model's own.
        method: a name of `cliploc methods`, or several joined by "+", whose maps are averaged: "gem+legrad"; it runs as
            published. None for the model's recipe: a method with what makes its boxes better; see docs/recipes.md.
        **options: every other option of `cliploc.Options`: scales, flip, refine, threshold, templates, precision,
            memory …; `print(cliploc.Options.explain())` tells what each one does.

    Attributes:
        options: the options as given, and the recipe's values for those left out.
        recipe: what runs where no method was named; None where one was.
        method: the method, or the ensemble of several.
        refine: the names of the steps that follow the method.
        box_rule: how maps become boxes.
        resize: how a picture is fitted to the model's input.
        input_hw: height and width of the model's input at scale 1, in pixels.
        exemplars: name → checksums of its exemplar pictures, and "text" if its text counts too.
        flow: the flow of a named method, for code that combines its stages in another way, as segmentation does.
        templates: the sentences that names stand in.
        backbone: the model.
        precision: the precision of its image tower, such as "fp32".
        masked_precision: the precision for masked pictures.
        guide: the second tower; None where there is none.
        mask_source: what draws masks; None: the heat.

    Raises:
        UsageError: an unknown name or a value outside its range.
        ModelError: weights that cannot be loaded.

    Example:
        >>> import numpy as np
        >>> localizer = Localizer(model="mini", method="cam", scales=(1, 1.5), flip=True)
        >>> found = localizer(np.zeros((64, 48, 3), np.uint8), ["cat", "remote control"])
        >>> found.heatmaps.shape
        (2, 64, 48)
    """

    def __init__(
        self, model: str | Backbone = "mini", pretrained: str | None = None, method: str | None = None, **options: Any
    ) -> None:
        if hasattr(model, "visual") and not hasattr(model, "pooling"):  # a model of open_clip
            model = towers.adapt(model)
        chosen = self._chosen = Options.of(model=model, pretrained=pretrained, method=method, **options)
        self.recipe, found_method, head_file = tasks.what_runs(chosen)
        # Wrong options, templates, names, guides and exemplars are refused before a model is built.
        resolve_options(found_method, chosen.method_options)
        self.templates = prompts.resolve_templates(chosen.templates)
        find_refinements(chosen.refine or ())
        if isinstance(chosen.guide, str):
            towers.check_guide(chosen.guide)
        crops = texts.read_exemplars(chosen.exemplars)
        if isinstance(model, str):
            model = running.create(model, pretrained, chosen.device, chosen.precision)
        self.backbone = model
        self.precision = towers.precision_name(self.backbone.dtype)
        guide, device = chosen.guide, str(self.backbone.device)
        self.guide = towers.create_guide(guide, device) if isinstance(guide, str) else guide
        self.mask_source = masks.mask_source(chosen.masks_by, device)
        encoder = MaskedEncoder.of(self.backbone, chosen.masked_precision)
        self.masked_precision = encoder.precision
        head = None if head_file is None else (head_file, heads.load_head(head_file, self.backbone))
        self._texts = texts.Texts.of(self.backbone, self.templates, chosen, crops)
        file, name = chosen.calibration, self.backbone.name
        self.calibration = calibration.package_calibration(name) if file is None else calibration.load_calibration(file)
        bank = Bank(self._texts, every=1 if self.backbone.packs_texts or self.calibration.models else EVERY)

        def flow_of(options: Options) -> Flow:
            return Flow(
                self.backbone, self._texts, options, head, encoder,
                bank=bank, calibration=self.calibration, guide=self.guide, mask_source=self.mask_source,
            )  # fmt: skip

        # Methods that a caller names run as published, without the recipe's options, in `flow`.
        self._flow = flow_of(chosen.filled({} if self.recipe is None else self.recipe.options))
        self.flow = self._flow if self.recipe is None else flow_of(chosen.filled({}))
        self._task = self._flow.tasks.make(found_method.name, chosen.method_options)
        self.options, self.refine, self.method = self._flow.options, self._flow.refine, self._task.method
        self.box_rule = self._task.box_rule
        self.resize, self.input_hw = self._flow.preparation.resize, self._flow.preparation.input_hw
        self.exemplars = self._texts.exemplar_facts
        if self.recipe is not None:  # else callers may name other methods, which the file may hold for
            self._check_learnt()

    def __reduce__(self) -> tuple[Callable[..., Localizer], tuple[dict[str, Any]]]:
        """A copy, and one in another process, is built anew around the model: locks and caches stay here."""
        return _built, (self._chosen.but(model=self.backbone, pretrained=None).changed(),)

    # ------------------------------------------------------------------------------------------------------ use it
    @overload
    def __call__(self, images: ImageLike, names: Sought) -> Localization: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], names: Names) -> list[Localization]: ...
    def __call__(
        self, images: ImageLike | list[Any] | tuple[Any, ...], names: Names
    ) -> Localization | list[Localization]:
        """Locates every name in every picture.

        Args:
            images: a path, PIL image, array `[H, W, 3]` or tensor `[3, H, W]`, or a list of them.
            names: one list for all pictures, or one list for each. "cat|kitten": synonyms; "cat~dog": a contrast. In
                place of texts embeddings of your own, a mapping `{name: [D]}` or an array or tensor `[P, D]`.

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
        self, images: ImageLike | Iterable[ImageLike], names: Names, *, on_error: OnError = "raise",
        reporter: Reporter = SILENT, absent_maps: bool = True, keep_maps: bool = True, presence: bool | None = None,
        boxes: bool = True,
    ) -> Iterator[Localization]:  # fmt: skip
        """Yields a `Localization` for each of any number of pictures, in order, with only a few in memory.

        Arguments are those of `compare`; errors are those of a call.
        """
        run = RunOptions(reporter, on_error, absent_maps, keep_maps, presence, boxes)
        with closing(_found_in(self._run(requests_of(images, names), None, run))) as results:
            for found in results:
                yield found[self.method.name]

    def compare(
        self, images: ImageLike | Iterable[ImageLike], names: Names, methods: Methods, *, on_error: OnError = "raise",
        reporter: Reporter = SILENT, absent_maps: bool = True, keep_maps: bool = True, presence: bool | None = None,
        boxes: bool = True,
    ) -> Generator[dict[str, Localization], None, None]:  # fmt: skip
        """Like `stream`, with several methods from one forward pass of the tower.

        Args:
            images: paths, PIL images or arrays, or one of them; read ahead by a few.
            names: one list for all pictures, or one for each. "cat|kitten": synonyms.
            methods: names, or ensembles such as "gem+legrad"; or a mapping from these to their options. The localizer's
                own method and its options play no part. A threshold that was given to the localizer holds for all of
                them; without one each method has its own.

        The other arguments are as in `cliploc.find.prepare.RunOptions`.

        Yields:
            For each picture the `Localization` by every method; the keys are the entries of `methods`.

        Raises:
            UsageError: a method that does not exist or does not work on this tower, or an option it does not have.

        Example:
            >>> import numpy as np
            >>> both = next(Localizer().compare(np.zeros((64, 48, 3), np.uint8), ["cat"], ["cam", "layer_cam"]))
            >>> list(both)
            ['cam', 'layer_cam']
        """
        run = RunOptions(reporter, on_error, absent_maps, keep_maps, presence, boxes)
        return _found_in(self._run(requests_of(images, names), methods, run))

    def run(
        self, requests: Iterable[Request], methods: Methods | None = None, *, reporter: Reporter = SILENT,
        absent_maps: bool = True, keep_maps: bool = True, presence: bool | None = None, boxes: bool = True,
        lessons: bool = False,
    ) -> Generator[Result, None, None]:  # fmt: skip
        """Processes requests, each with its id; a picture that cannot be read gives its error as the result.

        Args:
            requests: pictures and names; read ahead by a few.
            methods: as for `compare`, as are the other arguments and the errors; None for the localizer's.
            lessons: as in `cliploc.find.prepare.RunOptions`.
        """
        run = RunOptions(reporter, "skip", absent_maps, keep_maps, presence, boxes, lessons)
        return self._run(requests, methods, run)

    def _run(
        self, requests: Iterable[Request], methods: Methods | None, run: RunOptions
    ) -> Generator[Result, None, None]:
        flow = self._flow if methods is None else self.flow
        tasks = {self.method.name: self._task} if methods is None else flow.tasks.of(methods)
        self._check_learnt(methods)
        return flow.run(requests, tasks, run)

    @overload
    def classify(self, images: ImageLike, names: ClassNames = "imagenet", top_k: int = 5) -> list[Classified]: ...
    @overload
    def classify(
        self, images: list[Any] | tuple[Any, ...], names: ClassNames = "imagenet", top_k: int = 5
    ) -> list[list[Classified]]: ...
    def classify(
        self, images: ImageLike | list[Any] | tuple[Any, ...], names: ClassNames = "imagenet", top_k: int = 5
    ) -> list[Classified] | list[list[Classified]]:
        """Zero-shot classification (Radford 2021, section 3.1): which of the names fits each picture best.

        The whole picture is compared, once, at the first scale, or, where that is 2 or more, at the model's own size.
        `method` and `flip` play no part.

        Args:
            images: a path, PIL image or array, or a list of them.
            names: what to choose from ("cat|kitten": synonyms), or "imagenet" for its 1,000 classes.
            top_k: how many of the names, best first.

        Returns:
            A list of `Classified` for the picture, or one for each picture. Errors are those of a call.

        Example:
            >>> import numpy as np
            >>> localizer = Localizer()
            >>> [best] = localizer.classify(np.zeros((64, 48, 3), np.uint8), ["cat", "dog"], top_k=1)
            >>> best.name in ("cat", "dog")
            True
        """
        if not isinstance(images, list | tuple):
            return self.classify([images], names, top_k)[0]
        return [classified.names for classified in self.classify_stream(images, names, top_k)]

    def classify_stream(
        self,
        images: ImageLike | Iterable[ImageLike],
        names: ClassNames = "imagenet",
        top_k: int = 5,
        *,
        on_error: OnError = "raise",
        reporter: Reporter = SILENT,
    ) -> Iterator[Classification]:
        """Like `classify`, for any number of pictures, in order, with only a few in memory.

        Arguments and errors are those of `classify` and `compare`; the names in `unknown_names` take no part.
        """
        known = known_names(self.flow, names, top_k)
        return classifications(self.flow, requests_of(images, known), top_k, on_error, reporter)

    # ---------------------------------------------------------------------------------------------- ask about it
    def embed_names(self, names: Sought) -> Tensor:
        """The text embeddings of the names.

        Args:
            names: "cat|kitten": synonyms, averaged, as are the templates. A contrast does not change an embedding.

        Returns:
            `[P, D]` float32, unit norm, on the model's device; times `Localization.embedding` it is a cosine.
        """
        return self._texts.embed(prompts.parse(names, self.templates))

    def trace(
        self,
        image: ImageLike,
        names: Sought,
        method: str | None = None,
        method_options: Mapping[str, Any] | None = None,
        *,
        needs: Needs | None = None,
        graph: bool = False,
    ) -> passes.Inside:
        """What the model and a method see of one picture, as tensors: raw maps, attention, q, k, v, tokens, features.

        Args:
            image: a path, PIL image or array. It is seen whole, at the first scale, not mirrored.
            names: "cat|kitten": synonyms.
            method: the method of the raw map; None for the localizer's own, with its options.
            method_options: of that method.
            needs: what is kept besides what the method reads; None: all that a ViT has, of a CNN the last and the
                middle stage. Attention of all blocks takes L·H·T² numbers: 8 MB for ViT-B-16 at 224 pixels.
            graph: whether gradients can be taken of all that was traced, as far back as `images`.

        Returns:
            An `Inside`; docs/internals.md has its shapes.

        Example:
            >>> import numpy as np
            >>> inside = Localizer("mini-vit").trace(np.zeros((64, 48, 3), np.uint8), ["cat"], "legrad")
            >>> tuple(inside.raw.shape) == (1, *inside.grid)
            True
        """
        if method is None and method_options:
            raise UsageError("expected a method with method_options, got none: name the method that they belong to")
        with running.torch_modes(self.backbone.device):
            flow, task, _ = self._resolved(method, method_options)
            request = Request(0, image, names)
            item = flow.preparation.prepare(request, prompts.parse(names, self.templates), source_of(request))
            return passes.look_inside(self.backbone, self._texts, self.guide, task, item, needs, graph=graph)

    def box_rule_of(self, method: str, options: Mapping[str, Any] | None = None) -> BoxRule:
        """How `compare` extracts boxes from a method's maps: with the given threshold, or the method's own."""
        return self.flow.tasks.make(method, options or {}).box_rule

    def options_of(self, method: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options of a method, with defaults for those not given; a trained head is named by its file."""
        flow, task, method_options = self._resolved(method, options)
        return flow.tasks.named_options(task, method_options)

    def describe(self, method: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that the results depend on, with the defaults filled in: the identity of a run.

        Models and trained heads are told apart by the checksums of their contents.

        Args:
            method: as for `compare`; None for the localizer's own, with its options.
            options: of that method.

        Raises:
            UsageError: a method that does not fit, or that the file of `learnt` does not hold for.
        """
        flow, task, method_options = self._resolved(method, options)
        guide, source = flow.guide, flow.mask_source
        looks = {"bank": flow.bank.version, "calibration": flow.calibration.document()}
        about = {
            **{name: getattr(flow.options, name) for name in RESULT_OPTIONS if name not in ELSEWHERE},
            "model": flow.backbone.name,
            "weights": flow.backbone.weights_id,
            "method": task.method.name,
            "options": flow.tasks.named_options(task, method_options),
            "heads": {key: head.digest() for key, head in task.heads.items()},
            "templates": flow.texts.templates,
            "exemplars": flow.texts.exemplar_facts,
            "resize": flow.preparation.resize,
            "interpolation": flow.backbone.interpolation,
            "image_size": flow.preparation.input_hw,
            "refine": flow.refine if task.refined else (),
            **asdict(task.box_rule),
            "precision": towers.precision_name(flow.backbone.dtype),
            "masked_precision": flow.masked.precision,
            "guide": None if guide is None else {"name": guide.name, "weights": guide.weights_id},
            "masks_by": flow.options.masks_by if source is None else source.id,
            "min_presence": flow.min_presence,
            **({"reads_apart": True} if flow.reads_apart else {}),
            **({"second_look" if flow.second_look else "first_look": looks} if flow.compares else {}),
        }
        learnt = self._texts.learnt
        if learnt is None:
            return about
        if task.refined:  # a map that is the same for every picture stays as it is
            learnt.check({**about, "teaching": flow.steps.teaching(task)})
        return {**about, "learnt": learnt.digest()}

    def _check_learnt(self, methods: Methods | None = None) -> None:
        """Refuses a file of what was learnt that does not hold for these methods; None: for the localizer's."""
        if self._texts.learnt is None:
            return
        if methods is None:
            self.describe()
        for method in methods or ():
            self.describe(method, methods[method] if isinstance(methods, Mapping) else None)

    def _resolved(
        self, method: str | None, options: Mapping[str, Any] | None
    ) -> tuple[Flow, tasks.Task, Mapping[str, Any]]:
        """A method's flow, task and options; None: the localizer's."""
        if method is None:
            return self._flow, self._task, self.options.method_options
        return self.flow, self.flow.tasks.make(method, options or {}), options or {}

    def unteachable_reason(self) -> str | None:
        """Why what it computes cannot be kept for teaching (`cliploc.find.learnt.Lesson`); None where it can."""
        return self._flow.steps.unteachable_reason(self._task)

    def teaching(self) -> dict[str, Any]:
        """How maps are made again from what is kept, as part of a run's identity."""
        return self._flow.steps.teaching(self._task)

    def unknown_names(self, names: Sequence[str]) -> dict[str, str]:
        """The names that the model cannot know, each with the reason."""
        texts = prompts.parse(names)
        reasons = zip(texts.names, self._texts.unknown_reasons(texts), strict=True)
        return {name: reason for name, reason in reasons if reason is not None}

    def readings(self, names: Sequence[str]) -> tuple[str, ...]:
        """How names are read that the model does not read as they stand, in one line each."""
        return self._texts.readings(prompts.parse(names))


def _found_in(results: Generator[Result, None, None]) -> Generator[dict[str, Localization], None, None]:
    with closing(results):
        for result in results:
            if result.error is None:
                yield dict(result.found)


def classifier(model: str = "mini", pretrained: str | None = None, **options: Any) -> Localizer:
    """A localizer to `classify` with, for a tower of any kind; pictures are fitted in the model's way by default."""
    chosen = Options.of(**options)
    backbone = running.create(model, pretrained, chosen.device, chosen.precision)
    if chosen.resize is None and backbone.resize_policy.startswith("crop"):
        options["resize"] = "crop"  # CLIP's own; without this a localizer pads
    return Localizer(backbone, **options)


def _built(options: dict[str, Any]) -> Localizer:
    """A localizer of these options; what a pickled one names."""
    return Localizer(**options)
