"""Flags of commands: fields of dataclasses, here and in `cliploc.options`, make a command's signature."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, dataclass_transform, get_type_hints

import typer
from msgspec import Meta

from cliploc import Options, UsageError
from cliploc import options as core
from cliploc.cli.commands import section
from cliploc.images.exemplars import split_entries
from cliploc.options import Group, Option, flags_of, option_of, text_of
from cliploc.runs.engine import Engine, run_here
from cliploc.support.imports import check_installed
from cliploc.support.process import MAX_THREADS

Count = Annotated[int, Meta(ge=1, le=10_000_000)]  # pictures, epochs …: whatever a person counts
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]  # as numpy takes it
Port = Annotated[int, Meta(ge=0, le=65_535)]
Workers = Annotated[int, Meta(ge=1, le=MAX_THREADS)]


def in_words(values: Mapping[str, Any]) -> dict[str, str]:
    """Defaults as help has them."""
    return {name: "no" if value is False else text_of(value) or "none" for name, value in values.items()}


# Defaults in words of a command that runs methods as published, without recipes.
AS_PUBLISHED = {"threshold": "the method's own", **in_words(core.UNREFINED)}
Command = Callable[..., int]


# ------------------------------------------------------------------------------------------------------- the mechanism
@dataclass_transform(kw_only_default=True)
@dataclass(kw_only=True, eq=False, repr=False)
class Flags:
    """Base of dataclasses whose fields, made by `flag`, are flags of commands."""

    def __init_subclass__(cls) -> None:
        dataclass(kw_only=True, eq=False, repr=False)(cls)
        kinds = get_type_hints(cls, include_extras=True)
        for one in fields(cls):
            option_of(one).bind(_names(one)[0], kinds[one.name])

    def changed(self) -> dict[str, Any]:
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
    defaults: Mapping[str, Any] = MappingProxyType({}),
    without: Mapping[str, str] = MappingProxyType({}),  # option → its default in words, where it is another one
) -> Callable[[Command], Command]:
    """Makes a command's flags of the fields of its parameters, which are dataclasses of options."""

    def selected(kind: Any) -> list[Field[Any]]:
        """The fields that become flags."""
        if issubclass(kind, Flags):
            return list(fields(kind))
        available = [option for option in fields(kind) if not option_of(option).python_only]
        if kind is Options and only is not None:
            return [option for option in available if option.name in only]
        return [option for option in available if option.name not in leave_out]

    def parameters(kind: Any) -> Iterator[inspect.Parameter]:
        for option in selected(kind):
            default = defaults.get(option.name, option.default)
            yield _parameter(option, default, without.get(option.name))

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True).parameters
        kinds: dict[str, Any] = {name: parameter.annotation for name, parameter in signature.items()}

        @functools.wraps(function)
        def run(**values: Any) -> int:
            made = {}
            for name, kind in kinds.items():
                present = [option for option in selected(kind) if values[option.name] not in (None, [])]
                made[name] = kind(**{one.name: _value(one, values[one.name]) for one in present})
                if kind is Options:
                    _check_early(made[name])
            return function(**made)

        # What typer reads: https://docs.python.org/3/library/inspect.html#inspect.signature
        made = [parameter for kind in kinds.values() for parameter in parameters(kind)]
        run.__signature__ = inspect.Signature(made, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in made} | {"return": int}
        return run

    return decorate


def _parameter(of: Field[Any], default: Any, without: str | None) -> inspect.Parameter:
    """An option as typer takes it: a flag, a text, or a list of texts."""
    option, names = option_of(of), _names(of)
    on_off = "/" in names[0] or isinstance(default, bool)
    kind: Any = bool | None if on_off else list[str] | None if option.repeat else str | None
    required = default is MISSING and of.default_factory is MISSING
    if not on_off:
        default = None if option.repeat or default in (MISSING, None, ()) else option.text(default)
    none = without or option.none
    info: dict[str, Any] = {
        "metavar": option.metavar or None,
        "help": f"{option.help}  [default: {none}]" if none and default is None else option.help,
        "rich_help_panel": section(option.group, usual=option.usual),
    }
    made = typer.Argument(**info) if option.positional else typer.Option(*names, **info)
    default = inspect.Parameter.empty if required else default
    kind = (list[str] if option.repeat else str) if required else kind
    return inspect.Parameter(of.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made])


def _names(of: Field[Any]) -> tuple[str, ...]:
    return option_of(of).flags or flags_of(of.name)


def _value(of: Field[Any], value: Any) -> Any:
    """A checked value out of the texts of the command line."""
    option = option_of(of)
    if isinstance(value, str):
        value = option.parse(value)
    elif not isinstance(value, bool):
        value = option.gather([option.parse(text) for text in value])
    try:
        return option.check(value)
    except UsageError as error:
        name = _names(of)[0].partition("/")[0]
        raise UsageError(str(error).replace(f"expected {of.name}", f"expected {name}", 1)) from None


def _check_early(options: Options) -> None:
    """What is not installed or not known is an error before torch is imported."""
    if options.masks_by.startswith(core.SAM):
        check_installed("sam", "masks-by sam")
    check_known(
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

    threads: Workers | None = rare("CPU threads of a model.", None, none="all cores of this machine", group="run")


class WithJson(WithDebug):
    """Of commands that can print a document."""

    as_json: bool = flag("Print one JSON document instead of lines.", False, flags=("--json",), group="output")


class PhotoFlags(WithThreads, WithJson):
    """Of commands that look for names in pictures."""

    photos: list[str] = flag(
        "Pictures (JPEG, PNG, WebP, HEIC …), folders or patterns of them.", metavar="PICTURE", positional=True
    )
    prompt: list[str] | None = flag(
        'Name; repeatable. "cat|kitten": synonyms; "cup~mug": not a mug; @FILE: a picture.',
        None,
        metavar="NAME",
        flags=("--prompt", "-p"),
    )
    labels: Path | None = flag(
        "A file with more names, one per line: cat|kitten; or FILE.safetensors of embeddings.",
        None,
        metavar="FILE|imagenet",
    )

    def names(self) -> list[str]:
        """The names asked for."""
        return [*(self.prompt or ()), *read_names(self.labels)]


class DrawingFlags(Flags):
    """How results are drawn."""

    colormap: core.Colormap = rare("Colours of the heat.", "viridis", group="output")
    figures: core.FigureKind = rare("Files of the drawings; svg and pdf for papers.", "jpg", group="output")


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
    limit: Count | None = flag("Use only the first N samples.", None)
    sample: Count | None = flag("Use N samples drawn at random.", None)
    seed: Seed = flag("Random seed of --sample.", 0)

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

    engine: Literal["local", "ray"] = rare("Run on this machine, or with Ray.", "local", group="run")
    address: str | None = rare(
        "Address of a running Ray cluster.", None, metavar="HOST:PORT|auto", none="this machine", group="run"
    )

    def parsed(self) -> Engine:
        """The engine that runs the shards."""
        if self.engine == "local":
            if self.address is not None:
                raise UsageError("expected --address with --engine ray only: leave it out, or add --engine ray")
            return partial(run_here, threads=self.threads)
        check_installed("ray", "engine ray")
        from cliploc.runs import ray

        return partial(ray.run, address=self.address, threads=self.threads)


# -------------------------------------------------------------------------------------------------- what texts mean
def read_names(labels: str | Path | None) -> list[str]:
    """The names in a file of labels, or ImageNet's."""
    from cliploc.find import prompts

    if labels is None or str(labels) == "imagenet":
        return [one.name for one in prompts.imagenet_classes()] if labels else []
    if Path(labels).suffix == ".safetensors":
        return list(prompts.read_embeddings(labels))
    read = prompts.read_labels(labels)
    for entry, threshold in zip(read.entries, read.thresholds, strict=True):
        if threshold is not None:
            raise UsageError(
                f"{labels}: {entry} @{threshold:g}: only annotate takes a threshold for each name: leave it out, or "
                "use --min-presence"
            )
    return list(read.entries)


def with_exemplars(names: Sequence[str], options: Options) -> tuple[list[str], Options]:
    """Moves the `@FILE`s among the names into the options; a user of the command line may name files."""
    plain, exemplars = split_entries(names)
    return plain, options.but(exemplars=(*options.exemplars, *exemplars))


def check_words(names: Iterable[str], command: str) -> None:
    """Refuses `@FILE`s among the names of a command that compares words only."""
    for name in names:
        if split_entries([name])[1]:
            raise UsageError(f"expected names in words, got {name!r}: {command} takes no pictures as prompts")


def class_names(text: str) -> list[str]:
    """Names separated by commas, or the lines of a file."""
    if not Path(text).is_file():
        return list(core.parse_list(text))
    from cliploc.support.files import read_text

    lines = [line.strip() for line in read_text(text).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def check_known(
    models: Iterable[str], methods: Iterable[str] = (), refinements: Iterable[str] = (), guides: Iterable[str] = ()
) -> None:
    """Refuses unknown models, methods, refinements and guides before torch is imported, which takes about a second."""
    from cliploc import methods as saliency
    from cliploc import refine, towers

    for model in models:
        towers.check_model(model)
    for method in methods:
        saliency.check_method(method)
    for refinement in refinements:
        refine.refinements.check_known(refinement)
    for guide in guides:
        towers.check_guide(guide)


def pair_weights(models: Sequence[str], pretrained: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Each model with its weights, given once for all or once for each; None for its own."""
    tags = list(pretrained or ["own"])
    if len(tags) not in (1, len(models)):
        raise UsageError(f"expected --pretrained once, or for each of {len(models)} models, got {len(tags)}")
    tags = tags * len(models) if len(tags) == 1 else tags
    return [(model, None if tag == "own" else tag) for model, tag in zip(models, tags, strict=True)]


def method_names(texts: Sequence[str] | None) -> list[str]:
    """Methods of one or several `--method NAME,NAME(KEY=VALUE)`; none where it is not given."""
    parts = (part.strip() for text in texts or () for part in re.split(r",(?![^()]*\))", text))
    names = [name for name in parts if name]
    if texts and not names:
        raise UsageError("expected --method as names of `cliploc methods`, got none")
    return names


def options_of_methods(methods: Sequence[str], pairs: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """For each method, the options meant for it among the `[METHOD.]KEY=VALUE` texts."""
    from cliploc.methods import find, resolve_options

    found = {name: find(name) for name in methods}
    values: dict[str, dict[str, str]] = {name: {} for name in methods}
    for pair in pairs or ():
        key, text = core.parse_pair(pair)
        having = [
            name for name, method in found.items()
            if key.startswith(f"{method.name}.") or any(key in (one, one.partition(".")[2]) for one in method.options)
        ]  # fmt: skip
        if not having:
            raise UsageError(f"--option {pair}: none of {', '.join(methods)} has this option: see `cliploc methods`")
        for name in having:
            values[name][key] = text
    return {name: resolve_options(found[name], of_method) for name, of_method in values.items()}


def use_threads(threads: int | None) -> None:
    """Sets the number of torch's threads in this process; None leaves the choice to torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
