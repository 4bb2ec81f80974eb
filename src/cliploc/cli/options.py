"""Flags of commands: fields of dataclasses, here and in `cliploc.options`, make a command's signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, dataclass_transform, get_type_hints

import typer

from cliploc.cli.commands import section
from cliploc.errors import UsageError
from cliploc.images.exemplars import split_entries
from cliploc.options import (
    DEFAULTS,
    SAM,
    UNREFINED,
    Group,
    Option,
    Options,
    flags_of,
    option_of,
    parse_list,
    parse_pair,
    short,
    text_of,
)
from cliploc.support.files import user_path
from cliploc.support.imports import check_installed
from cliploc.support.process import MAX_THREADS

if TYPE_CHECKING:
    from cliploc.runs.engine import Engine

MOST_COUNTED = 10_000_000  # pictures, epochs …: whatever a person counts
MOST_TOLD = 2**16  # the largest maximum that help tells; a larger one is no limit that a person meets
MOST_SEED = 2**32 - 1  # as numpy takes it


def in_words(values: Mapping[str, Any]) -> dict[str, str]:
    """Defaults as help tells them."""
    return {name: "no" if value is False else text_of(value) or "none" for name, value in values.items()}


# Defaults in words of a command that runs methods as published, without recipes.
AS_PUBLISHED = {"threshold": "the method's own", **in_words(UNREFINED)}
Command = Callable[..., int]


# ------------------------------------------------------------------------------------------------------- the mechanism
@dataclass_transform(kw_only_default=True)
@dataclass(kw_only=True, eq=False, repr=False)
class Flags:
    """Base of dataclasses whose fields, made by `flag`, are flags of commands; the parser converts to their types."""

    def __init_subclass__(cls) -> None:
        dataclass(kw_only=True, eq=False, repr=False)(cls)

    def given(self) -> dict[str, Any]:
        """Those that differ from their defaults, by the names that users type."""
        values = {_names(option)[0]: (getattr(self, option.name), option.default) for option in fields(self)}
        return {name: value for name, (value, default) in values.items() if value not in (default, [])}


def flag(text: str, default: Any = MISSING, *, group: Group = "input", usual: bool = True, **facts: Any) -> Any:
    """A field of `Flags`: its help, its default if it is not required, and the `facts` of an `Option`."""
    return field(default=default, metadata={"option": Option(text, group, usual=usual, **facts)})


def rare(text: str, default: Any = MISSING, **facts: Any) -> Any:
    """The same for a flag that few users need: help lists it below the others."""
    return flag(text, default, usual=False, **facts)


def command(
    *,
    only: Collection[str] | None = None,  # which options of `Localizer`; None for all that a command line can name
    leave_out: Collection[str] = (),  # those that the command does not have, or has in a form of its own
    defaults: Mapping[str, Any] | None = None,
    without: Mapping[str, str] | None = None,  # option → its default in words, where it differs from a localizer's
) -> Callable[[Command], Command]:
    """Makes a command's flags of the fields of its parameters, which are dataclasses of options."""

    def taken(kind: Any) -> list[Field[Any]]:
        """The fields that become flags."""
        if issubclass(kind, Flags):
            return list(fields(kind))
        there = [option for option in fields(kind) if not option_of(option).python_only]
        if kind is Options and only is not None:
            return [option for option in there if option.name in only]
        return [option for option in there if option.name not in leave_out]

    def flags(kind: type) -> Iterator[inspect.Parameter]:
        if issubclass(kind, Flags):
            hints = get_type_hints(kind)
            yield from (_typed_flag(option, hints[option.name]) for option in taken(kind))
            return
        for option in taken(kind):
            own = getattr(DEFAULTS, option.name) if kind is Options else option.default
            default = (defaults or {}).get(option.name, own)
            yield _text_flag(option, default, (without or {}).get(option.name))

    def decorate(function: Command) -> Command:
        asked = inspect.signature(function, eval_str=True).parameters
        kinds: dict[str, Any] = {name: parameter.annotation for name, parameter in asked.items()}
        parameters = [parameter for kind in kinds.values() for parameter in flags(kind)]

        @functools.wraps(function)
        def run(**given: Any) -> int:
            made = {}
            for name, kind in kinds.items():
                parse = not issubclass(kind, Flags)
                chosen = [option for option in taken(kind) if not parse or given[option.name] not in (None, [])]
                made[name] = kind(**{option.name: _value(option, given[option.name], parse=parse) for option in chosen})
                if kind is Options:
                    _refuse_early(made[name])
            return function(**made)

        # What typer reads: https://docs.python.org/3/library/inspect.html#inspect.signature
        run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": int}
        return run

    return decorate


def _text_flag(of: Field[Any], default: Any, without: str | None) -> inspect.Parameter:
    """An option of `cliploc.options` as typer takes it: a flag, a text, or a list of texts."""
    option = option_of(of)
    on_off = "/" in flags_of(of.name)[0] or isinstance(default, bool)
    kind: Any = bool | None if on_off else list[str] | None if option.repeat else str | None
    if not on_off:
        default = None if option.repeat or default in (None, ()) else option.text(default)
    none = without or option.none
    words = f"{option.help}  [default: {none}]" if none and default is None else option.help
    info = typer.Option(
        *(option.flags or flags_of(of.name)),
        metavar=option.metavar or None,
        help=words,
        rich_help_panel=section(option.group, usual=option.usual),
    )
    return inspect.Parameter(of.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _typed_flag(of: Field[Any], kind: Any) -> inspect.Parameter:
    """A field of `Flags` as typer takes it, which converts texts to the field's type."""
    option = option_of(of)
    info: dict[str, Any] = {
        "metavar": option.metavar or None,
        "help": f"{option.help}  [default: {option.none}]" if option.none else option.help,
        "rich_help_panel": section(option.group, usual=option.usual),
    }
    if option.within is not None:
        least, most = option.within

        def check(parameter: typer.CallbackParam, value: float | None) -> float | None:
            """While the command line is parsed, before any work."""
            if value is not None and not least <= value <= most:
                raise UsageError(f"expected {parameter.opts[0]} from {least} to {most}, got {short(value)}")
            return value

        info |= {"metavar": f"{least}-{most}" if most <= MOST_TOLD else "N", "callback": check}
    made = typer.Argument(**info) if option.positional else typer.Option(*_names(of), **info)
    default = inspect.Parameter.empty if of.default is MISSING else of.default
    return inspect.Parameter(of.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made])


def _names(of: Field[Any]) -> tuple[str, ...]:
    return option_of(of).flags or (f"--{of.name.replace('_', '-')}",)


def _value(of: Field[Any], given: Any, *, parse: bool) -> Any:
    """A checked value out of what the command line has."""
    option = option_of(of)
    if isinstance(given, list):
        given = [user_path(item) if isinstance(item, Path) else item for item in given]
    elif isinstance(given, Path):
        given = user_path(given)
    try:
        if parse and isinstance(given, str):
            given = option.parse(given)
        elif parse and not isinstance(given, bool):
            given = option.gather([option.parse(text) for text in given])
        return option.check(given)
    except UsageError as error:
        shown = (option.flags or flags_of(of.name))[0].partition("/")[0] if parse else f"--{of.name}"
        raise UsageError(str(error).replace(f"expected {of.name}", f"expected {shown}", 1)) from None


def _refuse_early(options: Options) -> None:
    """Refuses what is not installed or not known, before torch is imported."""
    if options.masks_by.startswith(SAM):
        check_installed("sam", "masks-by sam")
    refuse_unknown(
        [str(options.model)],
        [] if options.method is None else [options.method],
        options.refine or (),
        [] if options.guide is None else [str(options.guide)],
    )


# ------------------------------------------------------------------------------------- flags that several commands have
class WithDebug(Flags):
    """What nearly every command has; `main` reads it, where errors end up."""

    debug: bool = rare("Show a traceback when something goes wrong.", False, group="run")


class WithThreads(WithDebug):
    """Of commands that run a model."""

    threads: int | None = rare(
        "CPU threads of a model.", None, within=(1, MAX_THREADS), none="all cores of this machine", group="run"
    )


class WithJson(WithDebug):
    """Of commands that can print a document."""

    as_json: bool = flag("Print one JSON document instead of lines.", False, flags=("--json",), group="output")


class PhotoFlags(WithThreads, WithJson):
    """Of commands that look for names in pictures."""

    photos: list[str] = flag("Files and folders, as for localize.", metavar="PICTURE", positional=True)
    prompt: list[str] | None = flag(
        'Name; repeatable. "cat|kitten": synonyms.', None, metavar="NAME", flags=("--prompt", "-p")
    )
    classes: str | None = flag(
        "Read the names from a file, one per line, instead of --prompt.", None, metavar="FILE|imagenet"
    )


class ImagePhotoFlags(PhotoFlags):
    """The same, where a name can be a picture, too."""

    prompt: list[str] | None = flag(
        'What to look for; repeatable. "cat|kitten": synonyms; "cup~mug": not a mug; @FILE: a picture.',
        None,
        metavar="NAME",
        flags=("--prompt", "-p"),
    )


class FilePhotoFlags(PhotoFlags):
    """The same, where names may also come out of a file of labels."""

    prompts_file: Path | None = rare(
        "A file with more names, one per line: cat|kitten; or background: lawn.",
        None,
        metavar="FILE",
        flags=("--prompts-file", "--labels"),
    )

    def names(self) -> tuple[list[str], list[str]]:
        """The names asked for, and the background names of the file."""
        if self.classes and self.prompts_file:
            raise UsageError("expected --prompts-file or --classes, got both: write all names into one file")
        names = asked_names(self.prompt, self.classes)
        if self.prompts_file is None:
            return names, []
        from cliploc.find.labels import read_labels

        labels = read_labels(self.prompts_file)
        for entry, threshold in zip(labels.entries, labels.thresholds, strict=True):
            if threshold is not None:
                raise UsageError(
                    f"{self.prompts_file}: {entry} @{threshold:g}: only annotate takes a threshold for each name: "
                    "leave it out, or use --min-presence"
                )
        return [*names, *labels.entries], list(labels.background)


class ModelFlags(Flags):
    """Of commands that take several models."""

    model: list[str] | None = flag(
        "A name of `cliploc models`; repeatable.", None, metavar="NAME", none="mini", group="model"
    )
    pretrained: list[str] | None = flag(
        "Weights: once for all models, or once per model; own: the model's own.",
        None,
        metavar="TAG|FILE|own",
        group="model",
    )


class MethodFlags(Flags):
    """Of commands that take several methods."""

    method: list[str] | None = flag(
        "Methods; `cliploc methods` lists them; repeatable.", None, metavar="NAME,NAME", group="method"
    )
    option: list[str] | None = rare(
        "An option for each method that has it, or METHOD.KEY=VALUE; repeatable.",
        None,
        metavar="KEY=VALUE",
        flags=("--option", "-o"),
        group="method",
    )


class DrawnFlags(Flags):
    """Which pictures of a dataset."""

    split: str | None = flag("Split of the dataset.", None, metavar="NAME", none="its first")
    limit: int | None = flag("Use only the first N samples.", None, within=(1, MOST_COUNTED))
    sample: int | None = flag("Use N samples drawn at random.", None, within=(1, MOST_COUNTED))
    seed: int = flag("Random seed of --sample.", 0, within=(0, MOST_SEED))

    def chosen(self) -> dict[str, Any]:
        """How `open_labelled` takes them."""
        return {"limit": self.limit, "sample": self.sample, "seed": self.seed}


class SampleFlags(DrawnFlags):
    """The same of a dataset with one class or several for each picture."""

    subset: str | None = flag("Use only the classes of this subset, such as ten-classes.", None, metavar="NAME")
    classes: str | None = flag(
        "Use only these classes: names, synonyms or WordNet ids.", None, metavar="NAME,NAME|FILE"
    )

    def chosen(self) -> dict[str, Any]:
        """How `open_dataset` takes them."""
        names = None if self.classes is None else class_names(self.classes)
        return {"subset": self.subset, "classes": names, **super().chosen()}


class EngineFlags(WithThreads):
    """Of commands whose work can be spread over machines."""

    engine: str = rare("Run on this machine, or with Ray.", "local", metavar="local|ray", group="run")
    address: str | None = rare(
        "Address of a running Ray cluster.", None, metavar="HOST:PORT|auto", none="this machine", group="run"
    )

    def parsed(self) -> Engine:
        """The engine that runs the shards."""
        if self.engine == "local":
            from cliploc.runs.engine import run_here

            if self.address is not None:
                raise UsageError("expected --address with --engine ray only: leave it out, or add --engine ray")
            return partial(run_here, threads=self.threads)
        if self.engine == "ray":
            check_installed("ray", "engine ray")
            from cliploc.runs import ray

            return partial(ray.run, address=self.address, threads=self.threads)
        raise UsageError(f"expected --engine to be one of local, ray, got {self.engine!r}")


# -------------------------------------------------------------------------------------------------- what texts mean
def asked_names(prompt: Sequence[str] | None, classes: str | None) -> list[str]:
    """The names asked for, by `--prompt` or by `--classes`."""
    from cliploc.find import prompts

    if prompt and classes:
        raise UsageError("expected --prompt or --classes, got both: write all names into the file")
    if classes == "imagenet":
        return [class_name.name for class_name in prompts.imagenet_classes()]
    return prompts.read_classes(classes) if classes else list(prompt or [])


def with_exemplars(names: Sequence[str], options: Options) -> tuple[list[str], Options]:
    """Moves the `@FILE`s among the names into the options; a user of the command line may name files."""
    plain, exemplars = split_entries(names)
    return plain, options.but(exemplars=(*options.exemplars, *exemplars))


def refuse_exemplars(names: Iterable[str], command: str) -> None:
    """Refuses `@FILE`s among the names of a command that compares words only."""
    for name in names:
        if split_entries([name])[1]:
            raise UsageError(f"expected names in words, got {name!r}: {command} takes no pictures as prompts")


def class_names(text: str) -> list[str]:
    """Names separated by commas, or the lines of a file."""
    if not Path(text).is_file():
        return list(parse_list(text))
    from cliploc.support.documents import lines_of

    lines = [line.strip() for line in lines_of(text)]
    return [line for line in lines if line and not line.startswith("#")]


def refuse_unknown(
    models: Iterable[str], methods: Iterable[str] = (), refinements: Iterable[str] = (), guides: Iterable[str] = ()
) -> None:
    """Refuses unknown models, methods, refinements and guides before torch is imported, which takes about a second."""
    from cliploc import methods as saliency
    from cliploc import refine, towers

    for model in models:
        towers.refuse_unknown(model)
    for method in methods:
        saliency.refuse_unknown(method)
    for refinement in refinements:
        refine.refinements.refuse_unknown(refinement)
    for guide in guides:
        towers.refuse_unknown_guide(guide)


def pair_weights(models: Sequence[str], pretrained: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Each model with its weights, given once for all or once for each; None for its own."""
    tags = list(pretrained or ["own"])
    if len(tags) not in (1, len(models)):
        raise UsageError(f"expected --pretrained once, or for each of {len(models)} models, got {len(tags)}")
    tags = tags * len(models) if len(tags) == 1 else tags
    return [(model, None if tag == "own" else tag) for model, tag in zip(models, tags, strict=True)]


def method_names(texts: Sequence[str] | None) -> list[str]:
    """Methods of one or several `--method NAME,NAME`; none where it is not given."""
    names = [name for text in texts or () for name in parse_list(text)]
    if texts and not names:
        raise UsageError("expected --method as names of `cliploc methods`, got none")
    return names


def options_of_methods(methods: Sequence[str], pairs: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """For each method, the options meant for it among the `[METHOD.]KEY=VALUE` texts."""
    from cliploc.methods import find, resolve_options

    chosen_methods = {name: find(name) for name in methods}
    chosen: dict[str, dict[str, str]] = {name: {} for name in methods}
    for pair in pairs or ():
        key, text = parse_pair(pair)
        taken = False
        for name, method in chosen_methods.items():
            own = (option for option in method.options if key in (option, option.partition(".")[2]))
            if key.startswith(f"{name}.") or any(own):
                chosen[name][key], taken = text, True
        if not taken:
            raise UsageError(
                f"--option {pair}: none of {', '.join(methods)} has this option: `cliploc methods` lists them"
            )
    return {name: resolve_options(chosen_methods[name], own) for name, own in chosen.items()}


def use_threads(threads: int | None) -> None:
    """Sets the number of torch's threads in this process; None leaves the choice to torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
