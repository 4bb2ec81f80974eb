"""`cliploc compare`: methods on one or several models, compared on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

import cliploc
from cliploc import Options, UsageError
from cliploc.cli import options as cli
from cliploc.cli.localize import MAPS_AT_ONCE
from cliploc.cli.photos import PhotoRun, rows_of, settings_of

LISTS = ("model", "pretrained", "method", "method_options", "recipe", "masks_by")  # of its own form; no masks
EXAMPLE = "cliploc compare cat.jpg -p cat --method cam,layer_cam"
OfMethods = Mapping[str, Mapping[str, Any]]  # method → its options


class CompareFlags(cli.PhotoFlags, cli.MethodFlags, cli.ModelFlags, cli.DrawingFlags):
    """What `compare` has besides options of `Localizer`."""

    out: Path = cli.flag(
        "Folder for one sheet per picture and results.json.", Path("compare-out"), metavar="DIR", group="output"
    )


@cli.command(leave_out=LISTS, without=cli.AS_PUBLISHED)
def compare(flags: CompareFlags, options: Options) -> int:
    """Compare methods, with one sheet per picture.

    A sheet has a drawing for each name by each method, which runs as published, without
    refinement unless you give --refine.

    Example: cliploc compare street.jpg -p bicycle --method cam,grad_cam,layer_cam
    """
    cli.check_known(flags.model or [], cli.method_names(flags.method))
    from cliploc.draw.comparison import ModelResults, check_cells
    from cliploc.find import prompts
    from cliploc.find.prepare import Request
    from cliploc.methods import find

    names = flags.names()
    if not names or not flags.method:
        missing = "--method as names of `cliploc methods`" if names else "at least one name to look for"
        raise UsageError(f"expected {missing}, got none: {EXAMPLE}")
    methods = {name: find(name) for name in cli.method_names(flags.method)}
    titles = {name: method.title for name, method in methods.items()}
    names, options = cli.with_exemplars(names, options)
    of_methods = cli.options_of_methods(list(methods), flags.option)
    prompts.parse(names, prompts.resolve_templates(options.templates))  # checked before a model is loaded
    weights = cli.pair_weights(flags.model or ["mini"], flags.pretrained)
    check_cells(len(methods), len(names), len(weights))
    options = options.but(batch_size=min(options.batch_size, max(1, MAPS_AT_ONCE // (len(names) * len(methods)))))
    of_models = _models(options, weights, methods)
    others = (flags.labels, options.head, options.learnt, *(flags.pretrained or ()))
    run = PhotoRun(flags.photos, flags.out, quiet=flags.as_json, others=others)
    with run.started(f"loading {', '.join(of_models)}") as reporter, ExitStack() as stack:
        cli.use_threads(flags.threads)
        models = {label: cliploc.Localizer(**one.changed()) for label, one in of_models.items()}
        missing_of = {label: _unfit(localizer, methods, of_methods) for label, localizer in models.items()}
        unfit = [[missing.get(name) for missing in missing_of.values()] for name in methods]  # [methods, models]
        for reasons in (*unfit, *zip(*unfit, strict=True)):
            if all(reasons):  # of a method that fits no model, or of a model that no method fits
                raise UsageError(f"{'; '.join(map(str, reasons))}: leave it out; `cliploc models NAME` lists what runs")
        run.count(reporter, "compare")
        requests = [Request(number, path, names) for number, path in enumerate(run.paths)]
        silent = replace(reporter, failed=lambda *_: None)  # failures are reported once for all models
        fitting = {
            label: {name: chosen for name, chosen in of_methods.items() if name not in missing}
            for label, missing in missing_of.items()
        }
        streams = [
            stack.enter_context(closing(models[label].run(requests, chosen, reporter=silent)))
            for label, chosen in fitting.items()
        ]
        try:
            for path, *results in zip(run.paths, *streams, strict=True):
                if errors := [result.error for result in results if result.error is not None]:
                    run.fail(path, errors[0])
                    continue
                found = zip(missing_of.items(), results, strict=True)
                compared = [ModelResults(label, one.found, missing) for (label, missing), one in found]
                _take(run, path, compared, titles, flags)
        finally:  # also when interrupted: what is done is not lost
            run.keep({"names": names, "methods": titles, **_settings(models, fitting)})
    found_names = [name["found"] for record in run.records for result in record["results"] for name in result["names"]]
    return run.end(f", {sum(found_names)} of {len(found_names)} maps have boxes", "sheets")


def _take(run: PhotoRun, source: str, models: Sequence[Any], titles: Mapping[str, str], flags: CompareFlags) -> None:
    """One picture is done, by all models; methods and their titles in the order of the rows."""
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

    record = compared_record(models, titles)
    name = run.names.of(source, "-compare", ".png" if flags.figures == "jpg" else f".{flags.figures}")
    run.draw(source, record, "figure", name, partial(draw_comparison, models, titles, flags.colormap))
    run.done(source, record, rows())


# --------------------------------------------------------------------------------------------------------- the models
def _models(
    options: Options, weights: Sequence[tuple[str, str | None]], methods: Mapping[str, Any]
) -> dict[str, Options]:
    """The options of each model by its label; a head is for the model that it was trained on."""
    from cliploc.find.heads import read_config
    from cliploc.find.recipes import recipe_of

    head = None if options.head is None else read_config(str(options.head))
    if head is not None:
        members = [member.name for method in methods.values() for member in method.members or (method,)]
        for what, name, given in (("method", head.method, members), ("model", head.tower, [m for m, _ in weights])):
            if name not in given:
                raise UsageError(f"{options.head} is trained for {name}: add --{what} {name}, or leave --head out")
    made: dict[str, Options] = {}
    for model, tag in weights:
        label = model if tag is None else f"{model} · {Path(tag).name}"
        if label in made:
            raise UsageError(f"expected each --model once, got {label} 2 times: leave one out")
        own_head = options.head if head is not None and head.tower == model else None
        # A method is named, so that it runs as published. A head names its own.
        method = None if own_head is not None else recipe_of(model).method
        made[label] = options.but(model=model, pretrained=tag, head=own_head, method=method)
    return made


def _unfit(localizer: cliploc.Localizer, methods: Mapping[str, Any], of_methods: OfMethods) -> dict[str, str]:
    """The methods that do not run on a model, each with the reason."""
    from cliploc.methods import unfit_reason

    trained = () if localizer.options.head is None else (localizer.method.name,)
    guided = localizer.guide is not None
    reasons = (
        (one, unfit_reason(methods[one], localizer.backbone, of_methods[one], trained, guided)) for one in methods
    )
    return {name: reason for name, reason in reasons if reason is not None}


def _settings(models: Mapping[str, cliploc.Localizer], fitting: Mapping[str, OfMethods]) -> dict[str, Any]:
    """The settings of each model and method, with their defaults."""
    described = []
    for label, localizer in models.items():
        of_methods = {}
        for name, options in fitting[label].items():
            threshold = localizer.box_rule_of(name, options).threshold
            of_methods[name] = {"threshold": threshold, "options": localizer.options_of(name, options)}
        described.append({**settings_of(localizer), "label": label, "methods": of_methods})
    return {"models": described}
