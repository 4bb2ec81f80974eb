"""`Localizer`: from pictures and names to heatmaps and boxes. The stages are in `cliploc.find`."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from PIL import Image
from torch import Tensor

from cliploc import towers
from cliploc.boxes import BoxRule
from cliploc.errors import ModelError, UsageError
from cliploc.find import prompts
from cliploc.find.calibration import load_calibration, own_calibration
from cliploc.find.flow import Flow, MaskedEncoder
from cliploc.find.prepare import (
    DECODERS,
    OnError,
    Prepared,
    Request,
    Result,
    Unreadable,
    source_of,
    stacked,
)
from cliploc.find.presence import VERSION as BANK_VERSION
from cliploc.find.presence import Bank
from cliploc.find.recipes import recipe_of
from cliploc.find.steps import refuse_nan
from cliploc.find.tasks import members
from cliploc.find.texts import Texts, read_exemplars
from cliploc.find.threads import Ahead, own_modes
from cliploc.images.reading import ImageLike, Picture, pictures_in
from cliploc.localization import Localization
from cliploc.methods import TrainedHead, find, resolve_options
from cliploc.options import RESULT_OPTIONS, SAM, Options, is_whole, short
from cliploc.refine import find_refinements
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone, Needs
from cliploc.values import ResizePolicy, TextSet

if TYPE_CHECKING:
    from cliploc.find.inside import Inside
    from cliploc.find.text_cache import TextCache
    from cliploc.localization import MaskSource

Names = Sequence[str] | Sequence[Sequence[str]]


class Classified(NamedTuple):
    """One of the names that a picture was compared with."""

    name: str  # as asked for
    probability: float  # softmax over all names asked for, at the model's logit scale
    cosine: float  # between picture and name


class Classification(NamedTuple):
    """The names that fit one picture best."""

    picture: Picture  # upright, with where it came from, and remarks on how it was read
    names: list[Classified]  # the best first


class Localizer:
    """Finds named things in pictures with one model and one saliency method.

    Args:
        model: a name of `cliploc models`, or a `Backbone`.
        pretrained: which weights: a tag, a file, or "FILE@TAG", a file whose GELU and preprocessing are those of the
            tag's weights; None for the model's own.
        method: a name of `cliploc methods`, or several joined by "+", whose maps are averaged: "gem+legrad"; it runs as
            published. None for the model's recipe: a method with what makes its boxes better; see docs/recipes.md.
        **options: every other option of `cliploc.Options`: scales, flip, refine, threshold, templates, background,
            precision, memory …; `print(cliploc.Options.explain())` tells what each one does.

    Attributes:
        options: the options as given, and the recipe's values for those left out.
        recipe: what runs where no method was named; None where one was.
        method: the method, or the ensemble of several.
        refine: the names of the steps that follow the method.
        box_rule: how maps become boxes.
        usual_min_presence: the minimum of presence if none was given.
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
        self,
        model: str | Backbone = "mini",
        pretrained: str | None = None,
        method: str | None = None,
        **options: Any,
    ) -> None:
        given = self._given = Options.of(model=model, pretrained=pretrained, method=method, **options)
        head_file = None if given.head is None else os.fspath(given.head)
        trained_for = None
        if head_file is not None:
            from cliploc.find.heads import load_head, read_config

            trained_for = read_config(head_file).method
        named = given.method or trained_for
        if named is not None and given.recipe is not None:
            raise UsageError(
                f"expected a method or a recipe, got {named} and {given.recipe}: a named method runs as published"
            )
        self.recipe = None if named is not None else recipe_of(model, given.recipe or "default")
        chosen_method = find(self.recipe.method if self.recipe else str(named), given.ensemble)
        if trained_for is not None and trained_for not in [member.name for member in members(chosen_method)]:
            raise UsageError(
                f"{head_file} is trained for {trained_for}, got method {chosen_method.name}: use {trained_for}"
            )
        # Wrong options, templates, names, guides and exemplars are refused before a model is built.
        resolve_options(chosen_method, given.method_options)
        self.templates = prompts.resolve_templates(given.templates)
        if given.background:
            prompts.parse(given.background, contrasts=False)
        find_refinements(given.refine or ())
        if isinstance(given.guide, str):
            towers.refuse_unknown_guide(given.guide)
        crops = read_exemplars(given.exemplars)
        tower = _created(model, pretrained, given.device, given.precision) if isinstance(model, str) else model
        self.backbone = tower
        self.precision = towers.precision_name(self.backbone.dtype)
        guide = given.guide
        self.guide = towers.create_guide(guide, checked_device(given.device)) if isinstance(guide, str) else guide
        self.mask_source = _mask_source(given.masks_by, given.device)
        encoder = _masked_encoder(self.backbone, given.masked_precision)
        self.masked_precision = encoder.precision
        head = None if head_file is None else (head_file, load_head(head_file, self.backbone))
        cache = _text_cache_of(self.backbone) if given.text_cache else None
        learnt = None
        if given.learnt is not None:  # a file of another tower does not even fit
            from cliploc.find.learnt import load_learnt

            learnt = load_learnt(given.learnt)
            of_tower = {"model": self.backbone.name, "weights": self._weights}
            size = learnt.embedding.shape[1]
            other = None if size == self.backbone.embedding_size else f"it has embeddings of {size} numbers"
            _refuse_file(given.learnt, learnt.misfit(of_tower, tuple(of_tower)) or other)
        self._texts = Texts(self.backbone, self.templates, given.background, cache, given.memory, crops, learnt)
        bank = partial(Bank, self._texts, partial(_text_cache_of, self.backbone))
        shared = None if crops or learnt else given.memory  # pictures stand for names in this localizer only
        self._bank = bank() if shared is None else shared.shared(self.backbone, bank)
        own = given.filled({} if self.recipe is None else self.recipe.options)
        file, name = own.calibration, self.backbone.name
        self.calibration = own_calibration(name) if file is None else load_calibration(file)
        self._own = self._flow(own, head, encoder)
        # Methods that a caller names run as published, without the recipe's options.
        self.flow = self._own if self.recipe is None else self._flow(given.filled({}), head, encoder)
        self._task = self._own.tasks.make(chosen_method.name, given.method_options)
        self.options, self.refine, self.method = self._own.options, self._own.refine, self._task.method
        self.box_rule, self.usual_min_presence = self._task.box_rule, self._own.usual_min_presence
        self.resize, self.input_hw = self._own.preparation.resize, self._own.preparation.input_hw
        self.exemplars = self._texts.exemplar_facts
        if self.recipe is not None:  # else other methods may be asked for, which the file may hold for
            self._refuse_misfit()

    def __reduce__(self) -> tuple[Callable[..., Localizer], tuple[dict[str, Any]]]:
        """A copy, and one in another process, is built anew around the model: locks and caches stay here."""
        return _built, (self._given.but(model=self.backbone, pretrained=None).given(),)

    def _flow(self, options: Options, head: tuple[str, TrainedHead] | None, encoder: MaskedEncoder) -> Flow:
        second_look = (self._bank, self.calibration) if options.second_look else None
        return Flow(
            self.backbone, self._texts, options, head, encoder,
            second_look=second_look, guide=self.guide, mask_source=self.mask_source,
        )  # fmt: skip

    @property
    def calibrated(self) -> bool:
        """Whether presence scores are calibrated for the model; otherwise they come from a bank of names."""
        return self.backbone.presence(torch.zeros(1)) is not None

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
            names: one list for all pictures, or one list for each. "cat|kitten": synonyms; "cat~dog": a contrast.

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
        keep_maps: bool = True,
        presence: bool | None = None,
        boxes: bool = True,
    ) -> Iterator[Localization]:
        """Locates names in any number of pictures, in order, with only a few in memory.

        Arguments are those of `compare`; errors are those of a call.

        Yields:
            One `Localization` for each picture.
        """
        how = {"absent_maps": absent_maps, "keep_maps": keep_maps, "boxes": boxes}
        results = self._run(_requests(images, names), None, presence, reporter, on_error, **how)
        with closing(results):
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
        keep_maps: bool = True,
        presence: bool | None = None,
        boxes: bool = True,
    ) -> Generator[dict[str, Localization], None, None]:
        """Like `stream`, with several methods from one forward pass of the tower.

        One trace holds what all of them need, and masked pictures are shared, so that each further method costs only
        its own work.

        Args:
            images: paths, PIL images or arrays, or one of them; read ahead by a few.
            names: one list for all pictures, or one for each. "cat|kitten": synonyms.
            methods: names, or ensembles such as "gem+legrad"; or a mapping from these to their options. The localizer's
                own method and its options play no part. A threshold that was given to the localizer holds for all of
                them; without one each method has its own.
            on_error: what happens when a picture cannot be read: "raise" its error, after the results before it, or
                "skip" it and tell the reporter; with one method, also one for which the model gives no number.
            reporter: told of failed pictures, of masked pictures and names of the bank done and left, and of halved
                batches.
            absent_maps: whether names that are not in a picture get a map too; False leaves theirs zero, which saves
                time.
            keep_maps: whether results keep their maps; False leaves them zero and keeps boxes and scores, so that ten
                thousand names do not need gigabytes. Masks and `Localization.by` are refused then.
            presence: whether names are compared with a bank of others (docs/presence.md) where the model is not
                calibrated; None: if `min_presence` is above 0. Calibrated models have presence scores in any case.
            boxes: whether results have boxes; False leaves them to `Localization.by`.

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
        how = {"absent_maps": absent_maps, "keep_maps": keep_maps, "boxes": boxes}
        return _found_in(self._run(_requests(images, names), methods, presence, reporter, on_error, **how))

    def compare_figure(
        self, image: ImageLike, names: Sequence[str], methods: Sequence[str] | Mapping[str, Mapping[str, Any]]
    ) -> Image.Image:
        """Draws the results of several methods on one sheet: a row for each method, a column for each name.

        Args:
            image: a path, PIL image or array.
            names: "cat|kitten": synonyms.
            methods: as for `compare`.

        Returns:
            An RGB picture. For several models on one sheet, use `cliploc compare`.

        Raises:
            InputError: the picture cannot be read.
            UsageError: as in `compare`, or more than 400 cells.

        Example:
            >>> import numpy as np
            >>> picture = np.zeros((64, 48, 3), np.uint8)
            >>> Localizer().compare_figure(picture, ["cat", "dog"], ["cam", "layer_cam"]).save("compare.png")
        """
        from cliploc.draw.comparison import ModelResults, check_cells, draw_comparison  # only for those who draw

        prompts.refuse_no_list(names)
        titles = {spec: task.method.title for spec, task in self.flow.tasks_of(methods).items()}
        check_cells(len(titles), len(names))
        with closing(self.compare([image], names, methods)) as results:
            return draw_comparison([ModelResults(self.backbone.name, next(results))], titles)

    def run(
        self,
        requests: Iterable[Request],
        methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
        *,
        reporter: Reporter = SILENT,
        absent_maps: bool = True,
        keep_maps: bool = True,
        presence: bool | None = None,
        lessons: bool = False,
    ) -> Generator[Result, None, None]:
        """Processes requests, each with its own id; a picture that cannot be read gives its error as the result.

        Args:
            requests: pictures and names; read ahead by a few.
            methods: as for `compare`, as are the other arguments and the errors; None for the localizer's own.
            lessons: whether results have what `cliploc.find.lesson` needs of their pictures.

        Yields:
            For each request in order, its id with what was found, or with the error of a picture that cannot be read.

        Example:
            >>> import numpy as np
            >>> [result] = Localizer().run([Request("a", np.zeros((64, 48, 3), np.uint8), ["cat"])])
            >>> result.id, list(result.found)
            ('a', ['cam'])
        """
        how = {"absent_maps": absent_maps, "keep_maps": keep_maps, "lessons": lessons}
        return self._run(requests, methods, presence, reporter, "skip", **how)

    def _run(
        self,
        requests: Iterable[Request],
        methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
        presence: bool | None,
        reporter: Reporter,
        on_error: OnError,
        **how: bool,
    ) -> Generator[Result, None, None]:
        flow = self._own if methods is None else self.flow
        tasks = {self.method.name: self._task} if methods is None else flow.tasks_of(methods)
        self._refuse_misfit(methods)
        compared = self._own.min_presence > 0 if presence is None else presence
        bank = self._bank if compared and not self.calibrated else None
        return flow.run(requests, tasks, bank, reporter, on_error, **how)

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

        The whole picture is compared, once, at the first scale, or, where that is 2 or more, at the model's own size.
        `method`, `flip` and `background` play no part.

        Args:
            images: a path, PIL image or array, or a list of them.
            names: what to choose from ("cat|kitten": synonyms), or "imagenet" for its 1,000 classes.
            top_k: how many of the names, best first.

        Returns:
            A list of `Classified` for the picture, or one for each picture.

        Raises:
            InputError: a picture cannot be read.
            UsageError: a name or `top_k` is wrong, or the model knows none of the names.
            ModelError: the tower returned NaN.

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
        names: Sequence[str] | Literal["imagenet"] = "imagenet",
        top_k: int = 5,
        *,
        on_error: OnError = "raise",
        reporter: Reporter = SILENT,
    ) -> Iterator[Classification]:
        """Like `classify`, for any number of pictures, in order, with only a few in memory.

        Arguments and errors are those of `classify` and `compare`; the names in `unknown_names` take no part.

        Yields:
            One `Classification` for each picture.
        """
        if not is_whole(top_k, 1):
            raise UsageError(f"expected top_k to be a whole number of at least 1, got {short(top_k)}: the default is 5")
        if isinstance(names, str) and names == "imagenet":
            names = [known.name for known in prompts.imagenet_classes()]
        prompts.parse(names, contrasts=False)
        unknown = self.unknown_names(names)
        if len(unknown) == len(names):
            raise UsageError(f"expected a name that {self.backbone.name} knows: {next(iter(unknown.values()))}")
        known = [entry for entry in names if prompts.parse([entry]).names[0] not in unknown]
        return self._classifications(images, known, top_k, on_error, reporter)

    def _classifications(
        self,
        images: ImageLike | Iterable[ImageLike],
        known: Sequence[str],
        top_k: int,
        on_error: OnError,
        reporter: Reporter,
    ) -> Iterator[Classification]:
        def work(batch: Sequence[Prepared | Unreadable], _: object) -> Callable[[], list[list[Classified]] | None]:
            readable = [item for item in batch if isinstance(item, Prepared)]
            ranked = self._classified(readable, top_k) if readable else None
            return lambda: ranked

        with (
            self.flow.batches(_requests(images, known), on_error, DECODERS) as gathered,
            Ahead(gathered, work, reporter.masked, reporter.halved, on_error == "skip") as ahead,
        ):
            for batch, ranked in ahead:
                of_batch = iter(ranked if isinstance(ranked, list) else [])
                for item in batch:
                    if isinstance(item, Prepared) and isinstance(ranked, ModelError):
                        item = Unreadable.by(item, ranked)
                    if isinstance(item, Prepared):
                        yield Classification(item.picture, next(of_batch))
                    else:
                        reporter.failed(item.source, item.error)

    # ---------------------------------------------------------------------------------------------- ask about it
    def embed_names(self, names: Sequence[str]) -> Tensor:
        """The text embeddings of the names.

        Args:
            names: "cat|kitten": synonyms, averaged, as are the templates. A contrast does not change an embedding.

        Returns:
            `[P, D]` float32, unit norm, on the model's device; times `Localization.embedding` it is a cosine.

        Raises:
            UsageError: a name that cannot be used.

        Example:
            >>> tuple(Localizer().embed_names(["cat|kitten", "dog"]).shape)
            (2, 1280)
        """
        return self._texts.embed(prompts.parse(names, self.templates))

    def trace(
        self,
        image: ImageLike,
        names: Sequence[str],
        method: str | None = None,
        method_options: Mapping[str, Any] | None = None,
        *,
        needs: Needs | None = None,
    ) -> Inside:
        """What the model and a method see of one picture, as tensors: raw maps, attention, q, k, v, tokens, features.

        Args:
            image: a path, PIL image or array. It is seen whole, at the first scale, not mirrored.
            names: "cat|kitten": synonyms.
            method: the method of the raw map; None for the localizer's own, with its options.
            method_options: of that method.
            needs: what is kept besides what the method reads; None: all that a ViT has, of a CNN the last and the
                middle stage. Attention of all blocks takes L·H·T² numbers: 8 MB for ViT-B-16 at 224 pixels.

        Returns:
            An `Inside`; docs/internals.md has its shapes.

        Raises:
            InputError: the picture cannot be read.
            UsageError: a name, or a method or option that does not work on this tower.

        Example:
            >>> import numpy as np
            >>> inside = Localizer("mini-vit").trace(np.zeros((64, 48, 3), np.uint8), ["cat"], "legrad")
            >>> tuple(inside.raw.shape) == (1, *inside.grid)
            True
        """
        with own_modes(self.backbone.device):
            pipeline = self._own if method is None else self.flow
            task = self._task if method is None else pipeline.tasks.make(method, method_options or {})
            if method is None and method_options:
                raise UsageError("expected a method with method_options, got none: name the method that they belong to")
            texts = prompts.parse(names, self.templates)
            request = Request(0, image, names)
            item = pipeline.preparation.prepare(request, texts, source_of(request))
            from cliploc.find.inside import look_inside

            return look_inside(self.backbone, self._texts, self.guide, task, item, needs)

    def word_shares(self, image: ImageLike, name: str) -> list[tuple[str, float]] | None:
        """Which words the match of a picture and a name used: the word side of Grad-ECLIP (Zhao et al. 2024).

        The sentence is that of the name's templates and synonyms which fits the picture best.

        Args:
            image: a path, PIL image or array. It is seen whole, at the first scale, not mirrored.
            name: "cat|kitten": synonyms.

        Returns:
            The words of the sentence with their shares, which add up to 1, or are all 0 where no word raises the
            cosine; None where pictures stand for the name, or the model's text tower is not CLIP's own.

        Raises:
            InputError: the picture cannot be read.
            UsageError: a name that cannot be used.

        Example:
            >>> import numpy as np
            >>> Localizer("mini").word_shares(np.zeros((64, 48, 3), np.uint8), "red car") is None  # no transformer
            True
        """
        with own_modes(self.backbone.device):
            texts = prompts.parse([name], self.templates, contrasts=False)
            if self._texts.by_exemplars(texts.synonyms[0]):
                return None
            request = Request(0, image, [name])
            item = self.flow.preparation.prepare(request, texts, source_of(request))
            [embedding] = self._embedded([item])
            sentences = tuple(template.replace("{}", word) for word in texts.synonyms[0] for template in self.templates)
            each = TextSet(sentences, tuple((sentence,) for sentence in sentences), ("{}",))
            best = int((self._texts.beside(each.templates).embed(each) @ embedding).argmax())
            return self.backbone.word_shares(sentences[best], embedding)

    def box_rule_of(self, method: str, options: Mapping[str, Any] | None = None) -> BoxRule:
        """How `compare` extracts boxes from a method's maps: with the given threshold, or the method's own.

        Example:
            >>> Localizer(threshold=0.25).box_rule_of("layer_cam").threshold
            0.25
        """
        return self.flow.tasks.make(method, options or {}).box_rule

    def options_of(self, method: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options of a method, with defaults for those not given; a trained head is named by its file."""
        return self.flow.tasks.named_options(self.flow.tasks.make(method, options or {}), options or {})

    def describe(self, method: str | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that the results depend on, with the defaults filled in: the identity of a run.

        Options that change no result, such as the text cache, are left out. Models and trained heads are told apart by
        the checksums of their contents.

        Args:
            method: as for `compare`; None for the localizer's own, with its options.
            options: of that method.

        Returns:
            Option → value; plain values, except for objects that were given as options.

        Raises:
            UsageError: a method that does not fit, or that the file of `learnt` does not hold for.

        Example:
            >>> Localizer(scales=(1, 1.5)).describe()["scales"]
            (1.0, 1.5)
        """
        pipeline = self._own if method is None else self.flow
        spec, given = (self.method.name, self.options.method_options) if method is None else (method, options or {})
        task = pipeline.tasks.make(spec, given)
        # "weights", "options" and "heads" below
        under_other_keys = {"pretrained", "method_options", "head", "second_look", "calibration", "learnt"}
        by_bank = self._own.min_presence > 0 and not self.calibrated
        second_look = {"second_look": {"bank": BANK_VERSION, "calibration": self.calibration.document()}}
        described = {
            **{name: getattr(pipeline.options, name) for name in RESULT_OPTIONS if name not in under_other_keys},
            "model": self.backbone.name,
            "weights": self._weights,
            "method": task.method.name,
            "options": pipeline.tasks.named_options(task, given),
            "heads": {key: head.digest() for key, head in task.heads.items()},
            "ensemble": self.options.ensemble if task.method.members else None,  # one method has nothing to average
            "templates": self.templates,
            "exemplars": self.exemplars,
            "background": tuple(map("|".join, self._texts.background_synonyms)),
            "resize": pipeline.preparation.resize,
            "interpolation": self.backbone.interpolation,
            "image_size": pipeline.preparation.input_hw,
            "refine": pipeline.refine if task.refined else (),
            **asdict(task.box_rule),
            "precision": self.precision,
            "masked_precision": self.masked_precision,
            "guide": None if self.guide is None else {"name": self.guide.name, "weights": self.guide.weights_id},
            "masks_by": self.options.masks_by if self.mask_source is None else self.mask_source.id,
            "min_presence": pipeline.min_presence,
            **({"reads_apart": True} if pipeline.reads_apart else {}),
            **(second_look if pipeline.second_look else {"presence_bank": BANK_VERSION} if by_bank else {}),
        }
        learnt = self._texts.learnt
        if learnt is None:
            return described
        if task.refined:  # a map that is the same for every picture stays as it is
            _refuse_file(self.options.learnt, learnt.misfit({**described, "teaching": pipeline.steps.teaching(task)}))
        return {**described, "learnt": learnt.digest()}

    def _refuse_misfit(self, methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Refuses a file of what was learnt that does not hold for these methods; None: for the localizer's own."""
        if self._texts.learnt is None:
            return
        if methods is None:
            self.describe()
        for method in methods or ():
            self.describe(method, methods[method] if isinstance(methods, Mapping) else None)

    def unteachable_reason(self) -> str | None:
        """Why what it computes cannot be kept for teaching (`cliploc.find.lesson`); None where it can."""
        return self._own.steps.unteachable_reason(self._task)

    def teaching(self) -> dict[str, Any]:
        """How maps are made again from what is kept, as part of a run's identity."""
        return self._own.steps.teaching(self._task)

    @cached_property
    def _weights(self) -> str:
        return self.backbone.weights_id

    def unknown_names(self, names: Sequence[str]) -> dict[str, str]:
        """The names that the model cannot know, each with the reason."""
        texts = prompts.parse(names)
        reasons = zip(texts.names, self._texts.unknown_reasons(texts), strict=True)
        return {name: reason for name, reason in reasons if reason is not None}

    def readings(self, names: Sequence[str]) -> tuple[str, ...]:
        """How names are read that the model does not read as they stand, in one line each.

        Example:
            >>> Localizer("mini").readings(["my wife", "cat"])
            ("mini reads 'my wife' as 'wife', a kind of 'woman'",)
        """
        return self._texts.readings(prompts.parse(names))

    def _classified(self, batch: Sequence[Prepared], top_k: int) -> list[list[Classified]]:
        with own_modes(self.backbone.device):
            embedding = self._embedded(batch)
            texts = batch[0].texts  # the same for all
            cosines = embedding @ self._texts.embed(texts).T.to(embedding)  # [B, P]
            probabilities = (self.backbone.logit_scale * cosines).softmax(dim=-1)  # [B, P]
            best = cosines.topk(min(top_k, len(texts))).indices  # [B, k]
            return [
                [Classified(texts.names[p], float(probabilities[b, p]), float(cosines[b, p])) for p in row.tolist()]
                for b, row in enumerate(best)
            ]

    def _embedded(self, batch: Sequence[Prepared]) -> Tensor:
        """`[B, D]` of whole pictures at the scale that is read."""
        pixels = stacked([item.inputs[self.flow.read_scale] for item in batch])  # [B, 3, H, W] uint8
        embedding = self.backbone.encode_image(
            self.backbone.normalize(pixels.to(self.backbone.device).float().div_(255))
        )
        refuse_nan(embedding[:, None], batch, "an embedding", self.backbone)
        return embedding


def _requests(images: ImageLike | Iterable[ImageLike], names: Names) -> Iterator[Request]:
    """A request for each picture, with the names of all pictures or its own; its id is its number."""
    prompts.refuse_no_list(names)
    images = pictures_in(images)
    if not names or isinstance(names[0], str):
        for number, image in enumerate(images):
            yield Request(number, image, names)  # type: ignore[arg-type]
        return
    if isinstance(images, Sequence) and len(images) != len(names):
        raise UsageError(f"expected a list of names for each of {len(images)} pictures, got {len(names)} lists")
    number = -1
    for number, image in enumerate(images):
        if number >= len(names):
            raise UsageError(f"expected a list of names for each picture, got {len(names)} lists and more pictures")
        yield Request(number, image, names[number])
    if number + 1 < len(names):
        raise UsageError(f"expected a list of names for each picture, got {len(names)} lists and {number + 1} pictures")


def _refuse_file(path: Any, reason: str | None) -> None:
    """Refuses a file of what was learnt, for this reason; None: it fits."""
    if reason is not None:
        raise UsageError(
            f"expected a file learnt with this model and these settings, got {os.fspath(path)}: {reason}: give the "
            "settings of its run, or leave learnt out"
        )


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
    resize: ResizePolicy | None = None,
) -> Localizer:
    """A localizer to `classify` with, for a tower of any kind; pictures are fitted in the model's own way by default.

    Arguments and errors are those of `Localizer`.
    """
    backbone = _created(model, pretrained, device, precision)
    if resize is None and backbone.resize_policy.startswith("crop"):
        resize = "crop"  # CLIP's own; without this a localizer pads
    return Localizer(backbone, templates=templates, batch_size=batch_size, text_cache=text_cache, resize=resize)


def _built(options: dict[str, Any]) -> Localizer:
    """A localizer of these options; what a pickled one names."""
    return Localizer(**options)


def best_device() -> str:
    """The first device that this machine has of "cuda", "mps" and "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def checked_device(device: str | None) -> str:
    """The device asked for, which this machine must have, or the best."""
    if device is None:
        return best_device()
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device not in there and not (device == "cuda" and torch.cuda.is_available()):
        raise UsageError(f"expected a device of this machine ({', '.join(there)}), got {device!r}: leave it out")
    return device


def _created(model: str, pretrained: str | None, device: str | None, precision: str) -> Backbone:
    """The model by its name, on the device asked for or the best."""
    checked = checked_device(device)
    with own_modes(checked):
        return towers.create(model, pretrained, checked, precision=precision)


def _mask_source(name: str, device: str | None) -> MaskSource | None:
    """What draws masks, by its name in the options; None for the heat."""
    if name == "heat":
        return None
    if not name.startswith(SAM):
        from cliploc.find.masks import GrabCutMasks

        return GrabCutMasks()
    from cliploc.towers.sam import SamMasks

    return SamMasks(name.removeprefix(SAM), device=checked_device(device))


def _text_cache_of(backbone: Backbone) -> TextCache | None:
    """The cache of text embeddings on disk; None for the quick models of the package, and weights in memory."""
    if backbone.weights_file is None:
        return None
    from cliploc.find.text_cache import TextCache, cache_folder

    folder = cache_folder()
    return None if folder is None else TextCache(folder, backbone.weights_id)


def _masked_encoder(backbone: Backbone, precision: str | None) -> MaskedEncoder:
    """`encode_image` in another precision, by a copy of the tower if that precision is not its own."""
    if precision is None:
        return MaskedEncoder(None, towers.precision_name(backbone.dtype))
    dtype = towers.resolve_precision(precision, str(backbone.device))
    name = towers.precision_name(dtype)
    return MaskedEncoder(None if dtype == backbone.dtype else backbone.in_precision(dtype).encode_image, name)
