"""`cliploc compare`: methods on one or several models, compared on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.cli.localize import MAPS_AT_ONCE
from cliploc.cli.options import (
    AS_PUBLISHED,
    ImagePhotoFlags,
    MethodFlags,
    ModelFlags,
    asked_names,
    command,
    flag,
    method_names,
    options_of_methods,
    pair_weights,
    refuse_unknown,
    use_threads,
    with_exemplars,
)
from cliploc.cli.photos import PhotoRun, lines_of, model_settings
from cliploc.errors import InputError, UsageError
from cliploc.options import OPTIONS, Options

if TYPE_CHECKING:
    from rich.text import Text

    from cliploc.draw.comparison import ModelResults
    from cliploc.find.prepare import Request, Result
    from cliploc.localizer import Localizer
    from cliploc.methods import Method
    from cliploc.support.reporter import Reporter

OWN = ("model", "pretrained", "method", "method_options", "recipe", "masks_by")  # lists of its own; no masks
EXAMPLE = "cliploc compare cat.jpg -p cat --method cam,layer_cam"


class CompareFlags(ImagePhotoFlags, MethodFlags, ModelFlags):
    """What `compare` has besides options of `Localizer`."""

    out: Path = flag(
        "Folder for one sheet per picture and results.json.", Path("compare-out"), metavar="DIR", group="output"
    )


@command(leave_out=OWN, without=AS_PUBLISHED)
def compare(asked: CompareFlags, options: Options) -> int:
    """Compare methods, with one sheet per picture.

    A sheet has one row per method and one column per name. Each method runs as published,
    without refinement unless you give --refine.

    Example: cliploc compare street.jpg -p bicycle --method cam,grad_cam,layer_cam
    """
    refuse_unknown(asked.model or [], method_names(asked.method))
    from cliploc.draw.comparison import refuse_too_many
    from cliploc.find import prompts
    from cliploc.methods import find

    names = asked_names(asked.prompt, asked.classes)
    if not names:
        raise UsageError(f"expected at least one name to look for, got none: {EXAMPLE}")
    if not asked.method:
        raise UsageError(f"expected --method as names of `cliploc methods`, got none: {EXAMPLE}")
    methods = {name: find(name, options.ensemble) for name in method_names(asked.method)}
    names, options = with_exemplars(names, options)
    of_methods = options_of_methods(list(methods), asked.option)
    prompts.parse(names, prompts.resolve_templates(options.templates))  # refused before a model is loaded
    weights = pair_weights(asked.model or ["mini"], asked.pretrained)
    refuse_too_many(len(methods), len(names), len(weights))
    maps = len(names) * len(methods)
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // maps)))
    models = _asked_models(options, weights, methods, of_methods)
    titles = {name: method.title for name, method in methods.items()}
    others = (asked.classes, options.head, options.learnt, *(asked.pretrained or ()))
    run = PhotoRun(asked.photos, asked.out, quiet=asked.as_json, others=others)
    with run.started(f"loading {', '.join(model.label for model in models)}") as reporter:
        from cliploc.find.prepare import Request

        use_threads(asked.threads)
        for model in models:
            model.load()
        _refuse_unfit(models, methods)
        run.count(reporter, "compare")
        try:
            requests = [Request(number, photo, names) for number, photo in enumerate(run.paths)]
            told = replace(reporter, failed=lambda *_: None)  # `_take` reports failures, once for all models
            for photo, results, errors in _compared(models, requests, told):
                _take(run, photo, results, errors, titles)
        finally:  # also when interrupted: what is done is not lost
            run.keep(_settings(names, methods, models))
    found_or_not = [name["found"] for record in run.records for result in record["results"] for name in result["names"]]
    counted = f", {sum(found_or_not)} of {len(found_or_not)} maps have boxes"
    return run.end(counted, "sheets")


def _take(
    run: PhotoRun,
    source: str,
    models: Sequence[ModelResults],
    errors: Mapping[str, InputError],
    titles: Mapping[str, str],
) -> None:
    """One picture is done, by all models; `titles` has the methods in the order of the rows."""
    from cliploc.document import compared_record
    from cliploc.draw.comparison import draw_comparison

    def rows() -> Iterator[Sequence[str | Text]]:
        """Those of `lines_of`, after model and method; a single model is not named."""
        for column in models:
            for method in titles:
                result = column.results.get(method)
                lines = [("", "–", column.missing[method])] if result is None else lines_of(result)
                for number, line in enumerate(lines):
                    start = ("", "") if number else (column.model, method)
                    yield [*(start if len(models) > 1 else start[1:]), *line]

    if len(errors) == len(models):
        run.fail(source, next(iter(errors.values())))
        return
    for model, error in errors.items():
        run.fail_part(source, f"not compared on {model}: {str(error).removeprefix(f'{source}: ')}")
    record = compared_record(models, titles)
    name = run.names.of(source, "-compare")
    run.draw(source, record, "figure", name, lambda: draw_comparison(models, titles), what="its sheet")
    run.done(source, record, rows())


# --------------------------------------------------------------------------------------------------------- the models
@dataclass
class _AskedModel:
    """A model, and which of the methods run on it."""

    label: str  # what the sheet calls it
    options: Options  # of its localizer
    methods: Mapping[str, Method]  # asked for
    of_methods: Mapping[str, Mapping[str, Any]]  # method → its options
    trained: frozenset[str]  # the method that it has a trained head for
    guided: bool  # whether there is a guide
    # method → why it does not run here, as far as known: for some models only after they are loaded
    missing: dict[str, str] = field(default_factory=dict)
    tower: Any = None  # what `unfit_reason` asks: the model's entry, later the model
    localizer: Localizer = field(init=False)  # once it is loaded

    def __post_init__(self) -> None:
        from cliploc.towers import models

        name = str(self.options.model)
        if ":" not in name:  # the tower of a hub's or folder's model is known only once it is loaded
            self._know(models.get(name.replace("/", "-")))

    def _know(self, tower: Any) -> None:
        from cliploc.methods import unfit_reason

        self.tower = tower
        # Members of each method that have a trained head among the method's options.
        with_head = {
            name: {key.rpartition(".")[0] or name for key in options if key.rpartition(".")[2] == "head"}
            for name, options in self.of_methods.items()
        }
        reasons = {
            name: unfit_reason(method, tower, self.of_methods[name], self.trained | with_head[name], self.guided)
            for name, method in self.methods.items()
        }
        self.missing = {name: reason for name, reason in reasons.items() if reason is not None}

    @property
    def fitting(self) -> dict[str, Mapping[str, Any]]:
        """The methods that run here, with their options."""
        return {name: self.of_methods[name] for name in self.methods if name not in self.missing}

    def load(self) -> None:
        """Loads the model; raises what `Localizer` raises."""
        from cliploc.find.recipes import recipe_of
        from cliploc.localizer import Localizer

        # A method is named, so that it runs as published. A head names its own.
        named = None if self.options.head is not None else recipe_of(self.options.model).method
        self.localizer = Localizer(**self.options.but(method=named).changed())
        self._know(self.localizer.backbone)


def _asked_models(
    options: Options,
    weights: Sequence[tuple[str, str | None]],
    methods: Mapping[str, Method],
    of_methods: Mapping[str, Mapping[str, Any]],
) -> list[_AskedModel]:
    """The models asked for; what is known to be unfit is refused before one is loaded."""
    from cliploc.find.heads import read_config

    head = None if options.head is None else read_config(str(options.head))
    if head is not None and head.method not in [
        member.name for method in methods.values() for member in method.members or (method,)
    ]:
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
        asked.append(_AskedModel(label, of_model, methods, of_methods, trained, options.guide is not None))
    labels = [model.label for model in asked]
    if doubled := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"expected each --model once, got {doubled} {labels.count(doubled)} times: leave one out")
    _refuse_unfit(asked, methods)
    return asked


def _refuse_unfit(asked: Sequence[_AskedModel], methods: Mapping[str, Method]) -> None:
    """Refuses a method that fits none of the models, and a model that none of the methods fits."""
    from cliploc.methods import fitting, unfit_reason

    if any(model.tower is None for model in asked):
        return
    fit = ", ".join(
        dict.fromkeys(name for model in asked for name in fitting(model.tower, model.trained, model.guided))
    )
    for name, method in methods.items():
        reasons = [model.missing[name] for model in asked if name in model.missing]
        if len(reasons) == len(asked):
            by_option = any(
                unfit_reason(method, model.tower, trained=model.trained, guided=model.guided) is None for model in asked
            )
            raise UsageError(f"{'; '.join(reasons)}: {'leave the option out' if by_option else f'use one of {fit}'}")
    for model in asked:
        if not model.fitting:
            raise UsageError(
                f"none of {', '.join(methods)} works on {model.label}: leave {model.label} out, or add one of "
                f"{', '.join(fitting(model.tower, model.trained, model.guided))}"
            )


def _compared(
    asked: Sequence[_AskedModel], requests: Sequence[Request], reporter: Reporter
) -> Iterator[tuple[str, list[ModelResults], dict[str, InputError]]]:
    """For each picture the methods' results on each model, and the errors of models that cannot use it."""
    from cliploc.draw.comparison import ModelResults

    with ExitStack() as stack:
        streams: list[Iterator[Result]] = [
            stack.enter_context(closing(model.localizer.run(requests, model.fitting, reporter=reporter)))
            for model in asked
        ]
        for request, *results in zip(requests, *streams, strict=True):
            of_models, errors = [], {}
            for model, result in zip(asked, results, strict=True):
                missing = model.missing
                if result.error is not None:
                    errors[model.label] = result.error
                    missing = missing | dict.fromkeys(model.fitting, str(result.error))
                of_models.append(ModelResults(model.label, result.found, missing))
            yield str(request.image), of_models, errors


def _settings(names: Sequence[str], methods: Mapping[str, Method], asked: Sequence[_AskedModel]) -> dict[str, Any]:
    """What the run was asked for, with the defaults that each model and method has."""
    shared = [name for name, option in OPTIONS.items() if not option.python_only and name not in OWN]
    return {
        "names": names,
        "methods": {name: method.title for name, method in methods.items()},
        **{name: getattr(asked[0].localizer.options, name) for name in shared},
        "templates": asked[0].localizer.templates,
        "models": [
            {
                "label": model.label,
                **model_settings(model.localizer, model.options, ("model", "pretrained", "head")),
                "resize": model.localizer.resize,
                "interpolation": model.localizer.backbone.interpolation,
                "image_size": model.localizer.input_hw,
                "refine": model.localizer.refine,
                "masked_precision": model.localizer.masked_precision,
                "methods": {
                    name: {
                        "threshold": model.localizer.box_rule_of(name, given).threshold,
                        "options": model.localizer.options_of(name, given),
                    }
                    for name, given in model.fitting.items()
                },
            }
            for model in asked
        ],
    }
