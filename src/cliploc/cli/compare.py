"""`cliploc compare`: methods on one or several models, compared on the same photos."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cliploc._files import alone_in
from cliploc._terminal import Terminal
from cliploc.cli.localize import MAPS_AT_ONCE
from cliploc.cli.options import (
    Classes,
    Debug,
    Json,
    MethodOptions,
    ModelNames,
    Names,
    Threads,
    Weights,
    asked_names,
    localizer_options,
    method_names,
    options_of_methods,
    pair_weights,
    refuse_unknown,
    use_threads,
    with_exemplars,
)
from cliploc.cli.output import json_text, print_document, writable, write
from cliploc.cli.photos import RESULTS, CompareRun, asked_photos, model_settings
from cliploc.config import OPTIONS, Options
from cliploc.errors import InputError, UsageError

if TYPE_CHECKING:
    from cliploc.localizer import Localizer
    from cliploc.method import Method
    from cliploc.pipeline.prepare import Request, Result
    from cliploc.report import ModelResults
    from cliploc.reporter import Reporter

OWN = ("model", "pretrained", "method", "method_options", "recipe")  # compare has lists of these
EXAMPLE = "cliploc compare cat.jpg -p cat --method cam,layer_cam"


@localizer_options(leave_out=OWN)
def compare(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO", help="Files and folders, as for localize.")],
    prompt: Names = None,
    classes: Classes = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME,NAME", help="Methods; `cliploc methods` lists them; repeatable."),
    ] = None,
    option: MethodOptions = None,
    model: ModelNames = None,
    pretrained: Weights = None,
    *,
    threads: Threads = None,
    options: Options,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for one sheet per photo and results.json.")] = Path(
        "compare-out"
    ),
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Compare methods on photos, with one sheet per photo.

    A sheet has one row per method and one column per name. Each method runs as published,
    without refinement unless you give --refine.

    Example: cliploc compare street.jpg -p bicycle --method cam,grad_cam,layer_cam
    """
    refuse_unknown(model or [], method_names(method) if method else [])
    from cliploc import prompts
    from cliploc.report.comparison import refuse_too_many
    from cliploc.saliency import find

    names = asked_names(prompt, classes)
    if not names:
        raise UsageError(f"expected at least one name to look for, got none: {EXAMPLE}")
    if not method:
        raise UsageError(f"expected --method as names of `cliploc methods`, got none: {EXAMPLE}")
    methods = {name: find(name, options.ensemble) for name in method_names(method)}
    names, options = with_exemplars(names, options)
    of_methods = options_of_methods(list(methods), option or [])
    prompts.parse(names, prompts.resolve_templates(options.templates))  # refused before a model is loaded
    weights = pair_weights(model or ["mini"], pretrained)
    refuse_too_many(len(methods), len(names), len(weights))
    maps = len(names) * len(methods)
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // maps)))
    asked = _asked_models(options, weights, methods, of_methods)
    folder = writable(out)
    terminal = Terminal()
    others = [str(one) for one in (classes, options.head, *(pretrained or ())) if one is not None]
    titles = {name: one.title for name, one in methods.items()}
    pictures = asked_photos(terminal, photos, folder)
    run = CompareRun(terminal, folder, pictures, titles, as_json, others)
    start = time.perf_counter()
    with alone_in(folder), terminal.progress(f"loading {', '.join(one.label for one in asked)}") as reporter:
        from cliploc.pipeline.prepare import Request

        use_threads(threads)
        for one in asked:
            one.load()
        _refuse_unfit(asked, methods)
        reporter.phase("compare")
        reporter.start(len(pictures.paths), len(pictures.paths))
        try:
            requests = [Request(number, photo, names) for number, photo in enumerate(pictures.paths)]
            told = replace(reporter, failed=lambda *_: None)  # `take` reports failures, once for all models
            for photo, found, errors in _compared(asked, requests, told):
                run.take(photo, found, errors)
                reporter.images(1)
        finally:  # also when interrupted: what is done is not lost
            document = run.document(_settings(names, methods, asked))
            write(folder / RESULTS, json_text(document).encode())
    if as_json:
        print_document(document)
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code


# --------------------------------------------------------------------------------------------------------- the models
@dataclass
class _AskedModel:
    """A model, and which of the methods run on it."""

    label: str  # what the sheet calls it
    options: Options  # of its localizer
    methods: Mapping[str, Method]  # asked for
    of_methods: Mapping[str, Mapping[str, Any]]  # method → its options
    trained: frozenset[str]  # the method that it has a trained head for
    # method → why it does not run here, as far as known: for some models only after they are loaded
    missing: dict[str, str] = field(default_factory=dict)
    tower: Any = None  # what `unfit_reason` asks: the model's entry, later the model
    _localizer: Localizer | None = None

    def __post_init__(self) -> None:
        from cliploc.backbones import models

        name = str(self.options.model)
        if ":" not in name:  # the tower of a hub's or folder's model is known only once it is loaded
            self._know(models.get(name.replace("/", "-")))

    def _know(self, tower: Any) -> None:
        from cliploc.saliency import unfit_reason

        self.tower = tower
        reasons = {
            name: unfit_reason(method, tower, self.of_methods[name], self._heads_of(name), self.guided)
            for name, method in self.methods.items()
        }
        self.missing = {name: reason for name, reason in reasons.items() if reason is not None}

    @property
    def guided(self) -> bool:
        """Whether there is a guide."""
        return self.options.guide is not None

    def _heads_of(self, name: str) -> set[str]:
        """Members of the method that have a trained head: this model's, or one among the method's options."""
        given = {key.rpartition(".")[0] or name for key in self.of_methods[name] if key.rpartition(".")[2] == "head"}
        return given | self.trained

    @property
    def fitting(self) -> dict[str, Mapping[str, Any]]:
        """The methods that run here, with their options."""
        return {name: self.of_methods[name] for name in self.methods if name not in self.missing}

    def load(self) -> None:
        """Loads the model; raises what `Localizer` raises."""
        from cliploc.localizer import Localizer
        from cliploc.recipes import recipe_of

        # A method is named, so that it runs as published. A head names its own.
        named = None if self.options.head is not None else recipe_of(self.options.model).method
        self._localizer = Localizer(**self.options.but(method=named).given())
        self._know(self._localizer.backbone)

    @property
    def localizer(self) -> Localizer:
        """Once it is loaded."""
        assert self._localizer is not None
        return self._localizer


def _asked_models(
    options: Options,
    weights: Sequence[tuple[str, str | None]],
    methods: Mapping[str, Method],
    of_methods: Mapping[str, Mapping[str, Any]],
) -> list[_AskedModel]:
    """The models asked for; what is known to be unfit is refused before one is loaded."""
    from cliploc.heads import read_config

    head = None if options.head is None else read_config(str(options.head))
    if head is not None and head.method not in [one.name for method in methods.values() for one in _members(method)]:
        raise UsageError(
            f"{options.head} is trained for {head.method}: add --method {head.method}, or leave --head out"
        )
    if head is not None and head.tower not in [model for model, _ in weights]:
        raise UsageError(
            f"{options.head} was trained on {head.tower}, which is not among the models: add --model {head.tower}"
        )
    asked = []
    for model, tag in weights:
        own_head = head is not None and head.tower == model
        of_model = options.but(model=model, pretrained=tag, head=options.head if own_head else None)
        label = model if tag is None else f"{model} · {Path(tag).name}"
        trained = frozenset([head.method] if head is not None and own_head else [])
        asked.append(_AskedModel(label, of_model, methods, of_methods, trained))
    labels = [one.label for one in asked]
    if doubled := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"expected each --model once, got {doubled} {labels.count(doubled)} times: leave one out")
    _refuse_unfit(asked, methods)
    return asked


def _members(method: Method) -> tuple[Method, ...]:
    return method.members or (method,)


def _refuse_unfit(asked: Sequence[_AskedModel], methods: Mapping[str, Method]) -> None:
    """Refuses a method that fits none of the models, and a model that none of the methods fits."""
    from cliploc.saliency import fitting, unfit_reason

    if any(one.tower is None for one in asked):
        return
    fit = ", ".join(dict.fromkeys(name for one in asked for name in fitting(one.tower, one.trained, one.guided)))
    for name, method in methods.items():
        reasons = [one.missing[name] for one in asked if name in one.missing]
        if len(reasons) == len(asked):
            by_option = any(
                unfit_reason(method, one.tower, trained=one.trained, guided=one.guided) is None for one in asked
            )
            raise UsageError(f"{'; '.join(reasons)}: {'leave the option out' if by_option else f'use one of {fit}'}")
    for one in asked:
        if not one.fitting:
            raise UsageError(
                f"none of {', '.join(methods)} works on {one.label}: leave {one.label} out, or add one of "
                f"{', '.join(fitting(one.tower, one.trained, one.guided))}"
            )


def _compared(
    asked: Sequence[_AskedModel], requests: Sequence[Request], reporter: Reporter
) -> Iterator[tuple[str, list[ModelResults], dict[str, InputError]]]:
    """For each photo the methods' results on each model, and the errors of models that cannot use it."""
    from cliploc.report import ModelResults

    with ExitStack() as stack:
        streams: list[Iterator[Result]] = [
            stack.enter_context(closing(one.localizer.run(requests, one.fitting, reporter=reporter))) for one in asked
        ]
        for request, *results in zip(requests, *streams, strict=True):
            found, errors = [], {}
            for one, result in zip(asked, results, strict=True):
                missing = one.missing
                if result.error is not None:
                    errors[one.label] = result.error
                    missing = missing | dict.fromkeys(one.fitting, str(result.error))
                found.append(ModelResults(one.label, result.found, missing))
            yield str(request.image), found, errors


def _settings(names: Sequence[str], methods: Mapping[str, Method], asked: Sequence[_AskedModel]) -> dict[str, Any]:
    """What the run was asked for, with the defaults that each model and method has."""
    shared = [name for name, one in OPTIONS.items() if not one.python_only and name not in OWN]
    return {
        "names": names,
        "methods": {name: one.title for name, one in methods.items()},
        **{name: getattr(asked[0].localizer.options, name) for name in shared},
        "templates": asked[0].localizer.templates,
        "models": [_model_settings(one) for one in asked],
    }


def _model_settings(one: _AskedModel) -> dict[str, Any]:
    localizer = one.localizer
    return {
        "label": one.label,
        **model_settings(localizer, one.options, ("model", "pretrained", "head")),
        "resize": localizer.resize,
        "interpolation": localizer.backbone.interpolation,
        "image_size": localizer.input_hw,
        "refine": localizer.refine,
        "masked_precision": localizer.masked_precision,
        "methods": {
            name: {
                "threshold": localizer.box_rule_of(name, given).threshold,
                "options": localizer.options_of(name, given),
            }
            for name, given in one.fitting.items()
        },
    }
