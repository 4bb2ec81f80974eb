"""`cliploc compare`: methods on one or several models, compared on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.cli import options as cli
from cliploc.cli.localize import MAPS_AT_ONCE
from cliploc.cli.photos import PhotoRun, model_settings, rows_of
from cliploc.errors import InputError, UsageError
from cliploc.options import OPTIONS, Options

if TYPE_CHECKING:
    from rich.text import Text

    from cliploc.draw.comparison import ModelResults
    from cliploc.localizer import Localizer
    from cliploc.methods import Method
    from cliploc.support.reporter import Reporter

LISTS = ("model", "pretrained", "method", "method_options", "recipe", "masks_by")  # of its own form; no masks
EXAMPLE = "cliploc compare cat.jpg -p cat --method cam,layer_cam"
OfMethods = Mapping[str, Mapping[str, Any]]  # method → its options


class CompareFlags(cli.ImagePhotoFlags, cli.MethodFlags, cli.ModelFlags, cli.DrawingFlags):
    """What `compare` has besides options of `Localizer`."""

    out: Path = cli.flag(
        "Folder for one sheet per picture and results.json.", Path("compare-out"), metavar="DIR", group="output"
    )


@cli.command(leave_out=LISTS, without=cli.AS_PUBLISHED)
def compare(flags: CompareFlags, options: Options) -> int:
    """Compare methods, with one sheet per picture.

    A sheet has one row per method and one column per name. Each method runs as published,
    without refinement unless you give --refine.

    Example: cliploc compare street.jpg -p bicycle --method cam,grad_cam,layer_cam
    """
    cli.check_known(flags.model or [], cli.method_names(flags.method))
    from cliploc.draw.comparison import check_cells
    from cliploc.find import prompts
    from cliploc.methods import find

    names = cli.read_names(flags.prompt, flags.classes)
    if not names:
        raise UsageError(f"expected at least one name to look for, got none: {EXAMPLE}")
    if not flags.method:
        raise UsageError(f"expected --method as names of `cliploc methods`, got none: {EXAMPLE}")
    methods = {name: find(name, options.ensemble) for name in cli.method_names(flags.method)}
    titles = {name: method.title for name, method in methods.items()}
    names, options = cli.with_exemplars(names, options)
    of_methods = cli.options_of_methods(list(methods), flags.option)
    prompts.parse(names, prompts.resolve_templates(options.templates))  # checked before a model is loaded
    weights = cli.pair_weights(flags.model or ["mini"], flags.pretrained)
    check_cells(len(methods), len(names), len(weights))
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // (len(names) * len(methods)))))
    of_models = _models(options, weights, methods)
    others = (flags.classes, options.head, options.learnt, *(flags.pretrained or ()))
    run = PhotoRun(flags.photos, flags.out, quiet=flags.as_json, others=others)
    with run.started(f"loading {', '.join(of_models)}") as reporter:
        cli.use_threads(flags.threads)
        models = [_Loaded.load(label, one, methods, of_methods) for label, one in of_models.items()]
        _check_fit(models, methods)
        run.count(reporter, "compare")
        try:
            silent = replace(reporter, failed=lambda *_: None)  # failures are reported once for all models
            for photo, results, errors in _compared(models, run.paths, names, silent):
                _take(run, photo, results, errors, titles, flags)
        finally:  # also when interrupted: what is done is not lost
            run.keep(_settings(names, titles, models))
    found = [name["found"] for record in run.records for result in record["results"] for name in result["names"]]
    return run.end(f", {sum(found)} of {len(found)} maps have boxes", "sheets")


def _take(
    run: PhotoRun,
    source: str,
    models: Sequence[ModelResults],
    errors: Mapping[str, InputError],
    titles: Mapping[str, str],  # in the order of the rows
    flags: CompareFlags,
) -> None:
    """One picture is done, by all models."""
    from cliploc.document import compared_record
    from cliploc.draw.comparison import draw_comparison

    def rows() -> Iterator[Sequence[str | Text]]:
        """The rows of each result, after model and method; a single model is not named."""
        for column in models:
            for method in titles:
                result = column.results.get(method)
                lines = [("", "–", column.missing[method])] if result is None else rows_of(result)
                for number, line in enumerate(lines):
                    start = ("", "") if number else (column.model, method)
                    yield [*(start if len(models) > 1 else start[1:]), *line]

    if len(errors) == len(models):
        run.fail(source, next(iter(errors.values())))
        return
    for model, error in errors.items():
        run.fail_part(source, f"not compared on {model}: {str(error).removeprefix(f'{source}: ')}")
    record = compared_record(models, titles)
    name = run.names.of(source, "-compare", ".png" if flags.figures == "jpg" else f".{flags.figures}")
    draw = partial(draw_comparison, models, titles, flags.colormap)
    run.draw(source, record, "figure", name, draw, what="its sheet")
    run.done(source, record, rows())


# --------------------------------------------------------------------------------------------------------- the models
@dataclass(frozen=True)
class _Loaded:
    """A model, and which of the methods run on it."""

    label: str  # what the sheet calls it
    options: Options  # of its localizer
    localizer: Localizer
    fitting: OfMethods  # those that run on it
    missing: Mapping[str, str]  # method → why it does not

    @classmethod
    def load(cls, label: str, options: Options, methods: Mapping[str, Method], of_methods: OfMethods) -> _Loaded:
        from cliploc.find.recipes import recipe_of
        from cliploc.localizer import Localizer
        from cliploc.methods import unfit_reason

        # A method is named, so that it runs as published. A head names its own.
        named = None if options.head is not None else recipe_of(options.model).method
        localizer = Localizer(**options.but(method=named).changed())
        missing = {}
        for name, method in methods.items():
            reason = unfit_reason(
                method, localizer.backbone, of_methods[name], _trained(localizer), options.guide is not None
            )
            if reason is not None:
                missing[name] = reason
        return cls(label, options, localizer, {n: o for n, o in of_methods.items() if n not in missing}, missing)


def _trained(localizer: Localizer) -> tuple[str, ...]:
    """The method that a localizer has a trained head for."""
    return () if localizer.options.head is None else (localizer.method.name,)


def _models(
    options: Options, weights: Sequence[tuple[str, str | None]], methods: Mapping[str, Method]
) -> dict[str, Options]:
    """The options of each model by its label; a head is for the model that it was trained on."""
    from cliploc.find.heads import read_config

    head = None if options.head is None else read_config(str(options.head))
    if head is not None:
        members = [member.name for method in methods.values() for member in method.members or (method,)]
        if head.method not in members:
            raise UsageError(
                f"{options.head} is trained for {head.method}: add --method {head.method}, or leave --head out"
            )
        if head.tower not in [model for model, _ in weights]:
            raise UsageError(
                f"{options.head} was trained on {head.tower}, which is not among the models: add --model {head.tower}"
            )
    made: dict[str, Options] = {}
    for model, tag in weights:
        label = model if tag is None else f"{model} · {Path(tag).name}"
        if label in made:
            raise UsageError(f"expected each --model once, got {label} 2 times: leave one out")
        its_head = options.head if head is not None and head.tower == model else None
        made[label] = options.but(model=model, pretrained=tag, head=its_head)
    return made


def _check_fit(models: Sequence[_Loaded], methods: Mapping[str, Method]) -> None:
    """A method that fits none of the models is an error, and a model that none of the methods fits."""
    from cliploc.methods import fitting

    fit = {
        model.label: fitting(model.localizer.backbone, _trained(model.localizer), model.options.guide is not None)
        for model in models
    }
    for name in methods:
        if all(name in model.missing for model in models):
            others = list(dict.fromkeys(other for names in fit.values() for other in names))
            advice = "leave the option out" if name in others else f"use one of {', '.join(others)}"
            raise UsageError(f"{'; '.join(model.missing[name] for model in models)}: {advice}")
    for model in models:
        if not model.fitting:
            raise UsageError(
                f"none of {', '.join(methods)} works on {model.label}: leave {model.label} out, or add one of "
                f"{', '.join(fit[model.label])}"
            )


def _compared(
    models: Sequence[_Loaded], paths: Sequence[str], names: Sequence[str], reporter: Reporter
) -> Iterator[tuple[str, list[ModelResults], dict[str, InputError]]]:
    """For each picture the methods' results on each model, and the errors of models that cannot use it."""
    from cliploc.draw.comparison import ModelResults
    from cliploc.find.prepare import Request

    requests = [Request(number, path, names) for number, path in enumerate(paths)]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(model.localizer.run(requests, model.fitting, reporter=reporter)))
            for model in models
        ]
        for path, *results in zip(paths, *streams, strict=True):
            of_models, errors = [], {}
            for model, result in zip(models, results, strict=True):
                missing = model.missing
                if result.error is not None:
                    errors[model.label] = result.error
                    missing = {**missing, **dict.fromkeys(model.fitting, str(result.error))}
                of_models.append(ModelResults(model.label, result.found, missing))
            yield path, of_models, errors


def _settings(names: Sequence[str], titles: Mapping[str, str], models: Sequence[_Loaded]) -> dict[str, Any]:
    """The settings of the run, with the defaults that each model and method has."""
    shared = [name for name, option in OPTIONS.items() if not option.python_only and name not in LISTS]
    first = models[0].localizer
    return {
        "names": names,
        "methods": titles,
        **{name: getattr(first.options, name) for name in shared},
        "templates": first.templates,
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
                        "threshold": model.localizer.box_rule_of(name, options).threshold,
                        "options": model.localizer.options_of(name, options),
                    }
                    for name, options in model.fitting.items()
                },
            }
            for model in models
        ],
    }
