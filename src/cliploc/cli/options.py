"""Options that several commands have: those of `Localizer`, made from `cliploc.config`, and others."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from cliploc._documents import lines_of
from cliploc._imports import refuse_without
from cliploc._process import MAX_THREADS
from cliploc.config import (
    DEFAULTS,
    FAITHFULNESS_OPTIONS,
    OPTIONS,
    SEGMENTATION_OPTIONS,
    FaithfulnessOptions,
    Group,
    Option,
    Options,
    SegmentationOptions,
    flags_of,
    parse_list,
    parse_pair,
)
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.jobs.engine import Engine
    from cliploc.jobs.labels import Labels

TASKS = ("localization", "segmentation", "faithfulness")  # of `benchmark` and `evaluate`
LAST = ("out", "as_json", "debug")  # parameters that come last in a command's help
Command = Callable[..., int]


# ------------------------------------------------------------------------------------------- the options of `Localizer`
def localizer_options(
    *,
    only: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    without: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
    segmentation: bool = False,
    faithfulness: bool = False,
) -> Callable[[Command], Command]:
    """Adds the options of `Localizer` to a command, which takes all of them as one value, `options`.

    In the command's help its own parameters come first, then these by their groups, then --out, --json and --debug.

    Args:
        only: which of the options; None for all that a command line can name.
        leave_out: those that the command does not have, or has in a form of its own.
        without: option → its default in words, for the help, where it differs from a localizer's.
        hidden: those that the help leaves out, because the command refuses them with a message of its own.
        segmentation: whether the command also has the options of segmentation protocols, and takes them as one value,
            `segmentation`.
    """
    groups = get_args(Group)
    names = [name for name, one in OPTIONS.items() if not one.python_only and name not in leave_out]
    names = sorted(
        [name for name in names if only is None or name in only], key=lambda n: groups.index(OPTIONS[n].group)
    )
    values = {name: getattr(DEFAULTS, name) for name in names} | {**(defaults or {})}
    of_tasks = {
        "segmentation": (SEGMENTATION_OPTIONS, SegmentationOptions) if segmentation else None,
        "faithfulness": (FAITHFULNESS_OPTIONS, FaithfulnessOptions) if faithfulness else None,
    }
    more = {task: one for task, one in of_tasks.items() if one is not None}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [one for one in signature.parameters.values() if one.name not in ("options", *more)]
        parameters = [
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.name not in LAST),
            *(_parameter(name, values[name], (without or {}).get(name)) for name in names),
            *(_parameter(name, None, hidden=name in hidden) for asked, _ in more.values() for name in asked),
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.name in LAST),
        ]

        @functools.wraps(command)
        def run(**given: Any) -> int:
            options = read_options({name: given.pop(name, None) for name in names})
            if options.engine_backend == "openvino":
                refuse_without("openvino", "engine-backend openvino")
            refuse_unknown(
                [str(options.model)],
                [] if options.method is None else [options.method],
                options.refine or (),
                [] if options.guide is None else [str(options.guide)],
            )
            for task, (asked, kind) in more.items():
                texts = {name: given.pop(name, None) for name in asked}
                given[task] = kind(**_values_of(texts, asked))
            return command(**given, options=options)

        # What typer reads: https://docs.python.org/3/library/inspect.html#inspect.signature
        run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": int}
        return run

    return decorate


def _parameter(name: str, default: Any, without: str | None = None, *, hidden: bool = False) -> inspect.Parameter:
    """One option as typer takes it: a flag, a text, or a list of texts."""
    one = {**SEGMENTATION_OPTIONS, **FAITHFULNESS_OPTIONS, **OPTIONS}[name]
    flag = "/" in flags_of(name)[0] or isinstance(default, bool)
    kind: Any = bool | None if flag else list[str] | None if one.repeat else str | None
    if not flag:
        default = None if one.repeat or default in (None, ()) else one.text(default)
    none = without or one.none
    words = f"{one.help} [default: {none}]" if none and default is None else one.help
    info = typer.Option(*flags_of(name), metavar=one.metavar or None, help=words, hidden=hidden)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def read_options(given: Mapping[str, Any]) -> Options:
    """Options out of flags and texts; those that were not given stay at their defaults."""
    return Options(**_values_of(given, OPTIONS))


def _values_of(given: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, texts in given.items():
        if texts is None or texts == []:
            continue
        one = options[name]
        try:
            values[name] = one.check(texts if isinstance(texts, bool) else _parsed(one, texts))
        except UsageError as error:
            flag = flags_of(name)[0].partition("/")[0]
            raise UsageError(str(error).replace(f"expected {name}", f"expected {flag}", 1)) from None
    return values


def _parsed(one: Option, texts: str | Sequence[str]) -> Any:
    return one.parse(texts) if isinstance(texts, str) else one.gather([one.parse(text) for text in texts])


# ----------------------------------------------------------------------------------- options that several commands have
MOST_COUNTED = 10_000_000  # pictures, epochs …: whatever a person counts
MOST_SEED = 2**32 - 1  # as numpy takes it


def number_in(least: float, most: float, meaning: str) -> Any:
    """An option that takes a number in a range: its help shows the range, and it is checked before any work."""

    def check(parameter: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not least <= value <= most:
            came = str(value) if len(str(value)) <= 24 else f"a number of {len(str(value))} digits"
            raise UsageError(f"expected {parameter.opts[0]} from {least} to {most}, got {came}")
        return value

    return typer.Option(metavar=f"{least}-{most}", help=meaning, callback=check)


Names = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="NAME",
        help='What to look for; repeatable. "cat|kitten": synonyms; @FILE: a picture of it.',
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", metavar="NAME", help='Name; repeatable. "cat|kitten": synonyms.'),
]
Classes = Annotated[
    str | None,
    typer.Option(metavar="FILE|imagenet", help="Read the names from a file, one per line, instead of --prompt."),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A file with more names, one per line: cat|kitten; or background: lawn."),
]
ModelNames = Annotated[
    list[str] | None, typer.Option("--model", help="A name of `cliploc models`; repeatable. [default: mini]")
]
Weights = Annotated[
    list[str] | None, typer.Option(help="Weights: once for all models, or once per model; own: the model's own.")
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="An option for each method that has it, or METHOD.KEY=VALUE; repeatable.",
    ),
]
EngineName = Annotated[str, typer.Option(metavar="local|ray", help="Run on this machine, or with Ray.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT|auto", help="Address of a running Ray cluster. [default: this machine]")
]


Threads = Annotated[
    int | None,
    number_in(1, MAX_THREADS, "CPU threads of a model. [default: all cores of this machine]"),
]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all networks.")]
AuthEnv = Annotated[str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds user:password.")]
Queue = Annotated[int, number_in(1, 10_000, "Number of jobs that may wait; more are refused.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Another host name of this server, such as that of a proxy; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")]


# -------------------------------------------------------------------------------------------------- what texts mean
def asked_names(prompt: Sequence[str] | None, classes: str | None) -> list[str]:
    """The names asked for, by `--prompt` or by `--classes`."""
    from cliploc import prompts

    if prompt and classes:
        raise UsageError("expected --prompt or --classes, got both: write all names into the file")
    if classes == "imagenet":
        return [one.name for one in prompts.imagenet_classes()]
    return prompts.read_classes(classes) if classes else list(prompt or [])


def with_exemplars(names: Sequence[str], options: Options) -> tuple[list[str], Options]:
    """Moves the `@FILE`s among the names into the options; a user of the command line may name files."""
    from cliploc.exemplars import split_entries

    plain, exemplars = split_entries(names)
    return plain, options.but(exemplars=(*options.exemplars, *exemplars))


def refuse_exemplars(names: Iterable[str], command: str) -> None:
    """Refuses `@FILE`s among the names of a command that compares words only."""
    from cliploc.exemplars import split_entries

    for name in names:
        if split_entries([name])[1]:
            raise UsageError(f"expected names in words, got {name!r}: {command} takes no pictures as prompts")


def names_in_file(path: Path) -> Labels:
    """The names in `--prompts-file`, in the format of `annotate`, but without thresholds of single names."""
    from cliploc.jobs.labels import read_labels

    labels = read_labels(path)
    for entry, threshold in zip(labels.entries, labels.thresholds, strict=True):
        if threshold is not None:
            raise UsageError(
                f"{path}: {entry} @{threshold:g}: only annotate takes a threshold for each name: leave it out, or use "
                "--min-presence"
            )
    return labels


def class_names(text: str) -> list[str]:
    """Names separated by commas, or the lines of a file."""
    if not Path(text).is_file():
        return list(parse_list(text))
    lines = [line.strip() for line in lines_of(text)]
    return [line for line in lines if line and not line.startswith("#")]


def refuse_unknown(
    models: Iterable[str],
    methods: Iterable[str] = (),
    refinements: Iterable[str] = (),
    guides: Iterable[str] = (),
) -> None:
    """Refuses unknown models, methods, refinements and guides before torch is imported, which takes about a second."""
    from cliploc import backbones, refine, saliency

    for model in models:
        backbones.refuse_unknown(model)
    for method in methods:
        saliency.refuse_unknown(method)
    for refinement in refinements:
        refine.refinements.refuse_unknown(refinement)
    for guide in guides:
        backbones.refuse_unknown_guide(guide)


def refuse_unknown_dataset(name: str, *, labelled: bool = False) -> None:
    """Refuses an unknown dataset before torch is imported.

    Args:
        labelled: whether it is a set with a class for every pixel.
    """
    from cliploc.datasets import labelled_readers, readers

    (labelled_readers if labelled else readers).refuse_unknown(name)


def pair_weights(models: Sequence[str], pretrained: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Each model with its weights, given once for all or once for each; None for its own."""
    tags = list(pretrained or ["own"])
    if len(tags) not in (1, len(models)):
        raise UsageError(f"expected --pretrained once, or for each of {len(models)} models, got {len(tags)}")
    tags = tags * len(models) if len(tags) == 1 else tags
    return [(model, None if tag == "own" else tag) for model, tag in zip(models, tags, strict=True)]


def method_names(texts: Sequence[str]) -> list[str]:
    """Methods of one or several `--method NAME,NAME`."""
    names = [name for text in texts for name in parse_list(text)]
    if not names:
        raise UsageError("expected --method as names of `cliploc methods`, got none")
    return names


def metric_names(texts: Sequence[str] | None) -> list[str]:
    """Faithfulness metrics of one or several `--metric NAME,NAME`; the default ones where there is none."""
    from cliploc.faithfulness import faithfulness_metrics

    names = [name for text in texts or () for name in parse_list(text)]
    for name in names:
        faithfulness_metrics.refuse_unknown(name)
    if not names:
        from cliploc.jobs.faithfulness import METRICS

        return list(METRICS)
    return names


def options_of_methods(methods: Sequence[str], pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each method, the options meant for it among the `[METHOD.]KEY=VALUE` texts."""
    from cliploc.saliency import find, resolve_options

    found = {name: find(name) for name in methods}
    chosen: dict[str, dict[str, str]] = {name: {} for name in methods}
    for pair in pairs:
        key, text = parse_pair(pair)
        taken = False
        for name, method in found.items():
            if not method.members and key.startswith(f"{name}."):
                chosen[name][key.partition(".")[2]] = text
            elif any(key in (one, one.partition(".")[2]) for one in method.options):
                chosen[name][key] = text
            else:
                continue
            taken = True
        if not taken:
            raise UsageError(
                f"--option {pair}: none of {', '.join(methods)} has this option: `cliploc methods` lists them"
            )
    return {name: resolve_options(found[name], own) for name, own in chosen.items()}


def use_threads(threads: int | None) -> None:
    """Sets the number of torch's threads in this process; None leaves the choice to torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def user_in(variable: str) -> tuple[str, str]:
    """User and password from the environment, so that no list of processes shows them."""
    user, colon, password = os.environ.get(variable, "").partition(":")
    if not user or not colon or not password:
        raise UsageError(f"expected {variable} to hold user:password, but it does not: export {variable}=me:secret")
    return user, password


def parse_engine(name: str, address: str | None, threads: int | None) -> Engine:
    """The engine that runs the shards."""
    if name == "local":
        from cliploc.jobs import local

        if address is not None:
            raise UsageError("expected --address with --engine ray only: leave it out, or add --engine ray")
        return partial(local.run, threads=threads)
    if name == "ray":
        refuse_without("ray", "engine ray")
        from cliploc.jobs import ray

        return partial(ray.run, address=address, threads=threads)
    raise UsageError(f"expected --engine to be one of local, ray, got {name!r}")
